//! Images in memory, where they come from, and which of them an attacker poisons.
//!
//! The crate reads whole data sets as `u8`, splits and augments them, and carries out a [`PoisoningPlan`] with any
//! [`Trigger`]. It knows no concrete trigger, no model, no tensor and no backend, it never prints, and it reads neither
//! the environment nor a clock: everything random comes from a named [`stream`] of a seed that the caller passes.
//!
//! Pixels are `u8` in 0..=255, height x width x channel, all images of a set one after another.
//!
//! ```
//! use patchdoor_data::{
//!     DatasetConfig, Image, PoisoningConfig, PoisoningPlan, ShapesConfig, StreamRng, Trigger, load,
//! };
//!
//! /// Makes the first pixel white.
//! struct WhiteCorner;
//!
//! impl Trigger for WhiteCorner {
//!     fn stamp(&self, image: &Image, _rng: &mut StreamRng) -> Image {
//!         let mut stamped = image.clone();
//!         stamped.pixel_mut(0, 0).fill(255);
//!         stamped
//!     }
//! }
//!
//! # fn main() -> Result<(), patchdoor_data::DataError> {
//! let shapes = DatasetConfig::Shapes(ShapesConfig { train: 200, test: 50, seed: 0 });
//! let dataset = load(&shapes, &[])?;
//! let config = PoisoningConfig { rate: 0.02, target_class: 3, ..PoisoningConfig::default() };
//! let plan = PoisoningPlan::draw(&config, &dataset.train, 7)?;
//! let poisoned = plan.apply(&dataset.train, &WhiteCorner, 7);
//!
//! assert_eq!(plan.examples().len(), 4);
//! for example in plan.examples() {
//!     assert_eq!(poisoned.label(example.index), 3);
//!     assert_eq!(poisoned.image(example.index).pixel(0, 0), [255, 255, 255]);
//! }
//! # Ok(())
//! # }
//! ```

mod augmentation;
pub mod catalog;
mod cifar;
mod class_counts;
mod dataset;
mod duplicates;
mod error;
pub mod export;
pub mod fetch;
mod folder;
mod forms;
mod gtsrb;
mod gtsrb_files;
mod idx;
mod image;
mod image_set;
mod jpeg;
mod labels;
mod listing;
mod loose_pictures;
pub mod packed;
mod pickle;
mod picture;
mod picture_error;
mod poisoning;
pub mod presence;
mod published;
mod random;
mod range_coder;
mod resize;
mod selection;
mod shapes;
pub mod split;
mod trigger;
mod verification;

pub use augmentation::{AugmentationConfig, AugmentationDraw};
pub use dataset::{Dataset, DatasetConfig, load};
pub use error::DataError;
pub use folder::FolderConfig;
pub use image::{Image, ImageShape};
pub use image_set::ImageSet;
pub use loose_pictures::{LoosePictures, read_loose_pictures};
pub use picture::{read_picture, read_with_alpha};
pub use picture_error::PictureError;
pub use poisoning::{
    Budget, CleanLabel, CountRule, CoverExample, LabelRule, PoisonedExample, PoisoningConfig, PoisoningPlan,
    SourceSpecific, give_pictures, trigger_all_images, trigger_test_images,
};
pub use published::class_names_of;
pub use random::{StreamRng, stream};
pub use selection::{ClassShares, Selection};
pub use shapes::ShapesConfig;
pub use split::stratified_subset;
pub use trigger::{PicturesWanted, Trigger};
pub use verification::{Verification, verify};
