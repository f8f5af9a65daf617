//! Numbers from predictions, labels and routing decisions, as the backdoor field defines them.
//!
//! Everything here takes plain slices and returns plain numbers: this crate knows no tensors, no
//! images and no models, so its definitions can be read, tested and reused without any of them. A
//! rate over no images is `None`, never zero. What a training tells of an epoch and a repair of its
//! work are plain types of this crate too, so that records can be read without a tensor library.
//!
//! ```
//! use patchdoor_metrics::{AttackOutcome, accuracy};
//!
//! // Four clean test images, one of them wrong.
//! assert_eq!(accuracy(&[0, 1, 2, 2], &[0, 1, 2, 3]), Some(0.75));
//!
//! // The same images triggered, target class 0. The image that truly is of class 0 does not count.
//! let outcome = AttackOutcome::all_to_one(&[0, 0, 0, 3], &[0, 1, 2, 3], 0);
//! assert_eq!(outcome.images, 3);
//! assert_eq!(outcome.attack_success_rate(), Some(2.0 / 3.0));
//! assert_eq!(outcome.robust_accuracy(), Some(1.0 / 3.0));
//! ```

mod accuracy;
mod attack;
mod comparison;
mod confusion;
mod defense;
mod detection;
mod detector;
mod double_masking;
mod epoch;
mod gamma;
mod mediation;
mod profile;
mod repair;
mod routing;
mod share;
mod stealth;
mod summary;

pub use accuracy::{ClassAccuracy, accuracy, accuracy_per_class, largest_class_share};
pub use attack::AttackOutcome;
pub use comparison::{Hypothesis, Judgement, PairedDifferences};
pub use confusion::ConfusionMatrix;
pub use defense::{Standing, defense_effectiveness_rating, robust_improvement_rating};
pub use detection::{DetectionOutcome, area_under_roc};
pub use detector::{OperatingPoint, separation, share_with_interval, threshold_for};
pub use double_masking::{DoubleMasking, MaskedPredictions, pairs_of_masks};
pub use epoch::EpochRecord;
pub use gamma::Gamma;
pub use mediation::{RoutedSuccess, SMALLEST_EFFECT};
pub use profile::{RoutingProfile, SelectionMaps};
pub use repair::{ExpertSuspicion, PrunedFilters, PruningStep, RepairDetails, TrainingPhase, TriedStrength, Tuning};
pub use routing::{
    Departure, Estimate, PatchScores, PerImage, PooledAreas, RoutingDecisions, SelectionCounts, area_within_images,
    capture, capture_by_any, chance_overlap, correlation_within_images, expert_similarity, load_entropy, overlap,
    pooled_areas,
};
pub use share::{share_down, share_up};
pub use stealth::{Stealth, frequency_distance, structural_similarity};
pub use summary::Summary;
