//! What an attacker adds to an image.
//!
//! Each trigger is a configuration as it stands in an experiment file, checked against the shape of the images and
//! built into a [`Trigger`](patchdoor_data::Trigger), which maps an image to a new image. The crate knows nothing of
//! models, training or defenses, and defenses do not depend on it: a defender cannot see the trigger.
//!
//! A new trigger is a new file, whose configuration implements [`TriggerKind`], and a new line of [`TriggerConfig`]. Any trigger can be stamped on the whole image or,
//! with a [`PlacementConfig`], into cells of a grid; [`ContactSheet`] shows what triggers do.
//!
//! ```
//! use patchdoor_data::{Image, ImageShape, stream};
//! use patchdoor_triggers::{Anchor, SquareConfig, TriggerConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let shape = ImageShape { height: 32, width: 32, channels: 3 };
//! let config = TriggerConfig::Square(SquareConfig { size: 3, anchor: Anchor::LowerRight, ..SquareConfig::default() });
//! let trigger = config.build(shape)?;
//!
//! let image = Image::new(shape, vec![7; 32 * 32 * 3])?;
//! let stamped = trigger.stamp(&image, &mut stream(0, "trigger"));
//! assert_eq!(stamped.pixel(29, 31), [255, 255, 255]);
//! assert_eq!(stamped.pixel(28, 31), [7, 7, 7]);
//! assert_eq!(image.pixel(29, 31), [7, 7, 7]);
//!
//! // A white square in each of four of 8x8 cells, drawn once for all images.
//! use patchdoor_triggers::{CellsConfig, PlacementConfig, RandomCells};
//! let cells = CellsConfig::Random(RandomCells { count: 4, per_image: false });
//! let placement = PlacementConfig { grid: 8, cells, ..PlacementConfig::default() };
//! let trigger = TriggerConfig::default().build_placed(shape, &placement, 0)?;
//! let stamped = trigger.stamp(&image, &mut stream(0, "trigger"));
//! assert_eq!(stamped.pixels().iter().filter(|&&pixel| pixel == 255).count(), 4 * 16 * 3);
//! # Ok(())
//! # }
//! ```

mod adaptive_blend;
mod adaptive_patch;
mod anchor;
mod art_pattern;
mod blend;
mod bpp;
mod config;
mod contact_sheet;
mod ctrl;
mod cutout;
mod displacement;
mod error;
mod frequencies;
mod ftrojan;
mod kind;
mod pattern;
mod placement;
mod range;
mod reflection;
mod refool;
mod registry;
mod sig;
mod square;
mod sticker;
#[cfg(test)]
mod testing;
mod wanet;
mod warp;

pub use adaptive_blend::{AdaptiveBlend, AdaptiveBlendConfig};
pub use adaptive_patch::{AdaptivePatch, AdaptivePatchConfig, AdaptivePatchPart};
pub use anchor::Anchor;
pub use art_pattern::{ArtForm, ArtPattern, ArtPatternConfig};
pub use blend::{Blend, BlendConfig};
pub use bpp::{Bpp, BppConfig};
pub use config::TriggerConfig;
pub use contact_sheet::ContactSheet;
pub use ctrl::{Ctrl, CtrlConfig};
pub use error::TriggerError;
pub use ftrojan::{Ftrojan, FtrojanConfig};
pub use kind::TriggerKind;
pub use pattern::{CheckerPattern, NoisePattern, PatternConfig, PicturePattern};
pub use placement::{BlockCells, CellsConfig, Fit, PlacementConfig, RandomCells, SelectedCells};
pub use refool::{Refool, RefoolConfig};
pub use sig::{Sig, SigConfig};
pub use square::{Square, SquareConfig};
pub use sticker::{CutoutFile, Sticker, StickerConfig, StickerPicture};
pub use wanet::{Wanet, WanetConfig};
pub use warp::{Warp, WarpConfig};
