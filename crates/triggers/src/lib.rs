//! What an attacker adds to an image.
//!
//! Each trigger is a configuration as it stands in an experiment file, checked against the shape of the images and
//! built into a [`Trigger`](patchdoor_data::Trigger), which maps an image to a new image. The crate knows nothing of
//! models, training or defenses, and defenses do not depend on it: a defender cannot see the trigger.
//!
//! A new trigger is a new file and a new variant of [`TriggerConfig`].
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
//! # Ok(())
//! # }
//! ```

mod config;
mod error;
mod square;

pub use config::TriggerConfig;
pub use error::TriggerError;
pub use square::{Anchor, Square, SquareConfig};
