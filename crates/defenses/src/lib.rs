//! What a defender does to a data set, a model or an input.
//!
//! A defense is one of four, by what it acts on: [`DatasetFilter`], [`ModelInspector`],
//! [`ModelRepair`], [`InputDetector`]. None of them can see the trigger, the poisoning plan or a test
//! image: this crate does not depend on `patchdoor-triggers`, and [`DefenderData`] is all it gets.
//!
//! ```
//! use patchdoor_defenses::FineTuning;
//!
//! // Five more epochs on clean images, as the paper does.
//! assert_eq!(FineTuning::default().training.epochs, 5);
//! ```

mod error;
mod fine_tuning;
mod traits;
mod view;

pub use error::DefenseError;
pub use fine_tuning::FineTuning;
pub use traits::{DatasetFilter, InputDetector, ModelInspector, ModelRepair, Repaired};
pub use view::DefenderData;
