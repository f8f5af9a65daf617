//! What a defender does to a data set, a model or an input.
//!
//! A defense is one of four, by what it acts on: [`DatasetFilter`], [`ModelInspector`],
//! [`ModelRepair`], [`InputDetector`]. None of them can see the trigger, the poisoning plan or a test
//! image: this crate does not depend on `patchdoor-triggers`, and [`DefenderData`] is all it gets.
//!
//! ```
//! use patchdoor_defenses::{DefenseConfig, FinePruning};
//!
//! // 16 of 160 filters of each expert, then five epochs on clean images, as the paper does.
//! let defense = FinePruning::default();
//! assert_eq!((defense.pruned_fraction, defense.training.epochs), (0.1, 5));
//! assert!(DefenseConfig::FinePruning(defense).validate(Some(4)).is_empty());
//! ```

mod config;
mod error;
mod expert_fine_tuning;
mod expert_pruning;
mod filter_scores;
mod fine_pruning;
mod fine_tuning;
mod pruning_series;
mod router_retraining;
mod stepwise_fine_pruning;
#[cfg(test)]
mod testing;
mod traits;
mod tuning;
mod view;

pub use config::DefenseConfig;
pub use patchdoor_metrics::{ExpertSuspicion, PrunedFilters, PruningStep, RepairDetails};
pub use error::DefenseError;
pub use expert_fine_tuning::ExpertFineTuning;
pub use expert_pruning::{ExpertPruning, SuspicionMeasure};
pub use filter_scores::FilterScore;
pub use fine_pruning::FinePruning;
pub use fine_tuning::FineTuning;
pub use pruning_series::PruningSeries;
pub use router_retraining::RouterRetraining;
pub use stepwise_fine_pruning::StepwiseFinePruning;
pub use traits::{DatasetFilter, InputDetector, ModelInspector, ModelRepair, Repaired, SeriesPoint};
pub use view::{DefenderData, RepairWork};
