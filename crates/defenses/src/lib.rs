//! What a defender does to a data set, a model or an input.
//!
//! A defense is one of five, by what it acts on: [`DatasetFilter`], [`ModelInspector`],
//! [`ModelRepair`], [`InputDetector`], [`TrainingDefense`]. None of them can see the trigger, the poisoning plan or a test
//! image: this crate does not depend on `patchdoor-triggers`, and [`DefenderData`] is all it gets.
//!
//! A new defense is a new file, whose configuration implements [`Defense`] and one of the five, and a new line of
//! [`DefenseConfig`].
//!
//! ```
//! use patchdoor_defenses::{DefendedClassifier, DefenseConfig, FinePruning};
//!
//! // 16 of 160 filters of each expert, then five epochs on clean images, as the paper does.
//! let defense = FinePruning::default();
//! assert_eq!((defense.pruned_fraction, defense.training.epochs), (0.1, 5));
//! let classifier = DefendedClassifier { name: "patch-moe", experts: Some(4), routers_learn: true, has_batch_norm: true };
//! assert!(DefenseConfig::FinePruning(defense).validate(&classifier).is_empty());
//! ```

mod activation_clustering;
mod adversarial_feature_map_pruning;
mod adversarial_neuron_pruning;
mod anti_backdoor_learning;
mod attention_distillation;
mod ban_fine_tuning;
mod batch_stream;
mod bti_dbf;
mod calibration;
mod channel_lipschitz_pruning;
mod class_features;
mod config;
mod covered_gates;
mod defense;
#[cfg(test)]
mod detectable;
mod error;
mod expert_additions;
mod expert_disagreement;
mod expert_fine_tuning;
mod expert_pruning;
mod feature_shift_tuning;
mod filter_scores;
mod fine_pruning;
mod fine_tuning;
mod implicit_backdoor_unlearning;
mod label_likelihood;
mod mm_bd;
mod neural_cleanse;
mod neural_cleanse_unlearning;
mod neural_polarizer;
mod neuron_masks;
mod neuron_noise;
mod neuron_noise_inspection;
mod norm_channels;
mod parameter_scaling;
mod patch_blocking;
mod patch_drop;
mod patch_search;
mod patch_shuffle;
mod pixel_variance;
#[cfg(test)]
mod planted;
mod principal;
mod pruning_series;
mod rasa;
mod reconstructive_neuron_pruning;
mod registry;
mod reversal;
mod reversed_trigger;
mod router_consensus;
mod router_null_space;
mod router_retraining;
mod routing_distance;
mod scale_up;
mod scan;
mod shared_adversarial_unlearning;
mod sharpness_aware_fine_tuning;
mod spectral_signatures;
mod spectrum;
mod stepwise_fine_pruning;
mod strength;
mod strip;
#[cfg(test)]
mod testing;
mod threshold_pruning;
mod topological_evolution;
mod training_work;
mod traits;
mod trap_expert;
mod tuning;
mod two_means;
mod view;

pub use activation_clustering::ActivationClustering;
pub use adversarial_feature_map_pruning::AdversarialFeatureMapPruning;
pub use adversarial_neuron_pruning::AdversarialNeuronPruning;
pub use anti_backdoor_learning::{AntiBackdoorLearning, IsolationLoss, LossScope};
pub use attention_distillation::AttentionDistillation;
pub use ban_fine_tuning::BanFineTuning;
pub use bti_dbf::BtiDbf;
pub use calibration::Calibrated;
pub use channel_lipschitz_pruning::ChannelLipschitzPruning;
pub use config::{DefenseConfig, DefenseName};
pub use defense::{ActionKind, DefendedClassifier, Defense, DefenseAction, Need};
pub use error::DefenseError;
pub use expert_disagreement::ExpertDisagreement;
pub use expert_fine_tuning::ExpertFineTuning;
pub use expert_pruning::{ExpertPruning, SuspicionMeasure};
pub use feature_shift_tuning::FeatureShiftTuning;
pub use filter_scores::FilterScore;
pub use fine_pruning::FinePruning;
pub use fine_tuning::FineTuning;
pub use implicit_backdoor_unlearning::ImplicitBackdoorUnlearning;
pub use mm_bd::MmBd;
pub use neural_cleanse::NeuralCleanse;
pub use neural_cleanse_unlearning::NeuralCleanseUnlearning;
pub use neural_polarizer::NeuralPolarizer;
pub use neuron_masks::MaskTrainingConfig;
pub use neuron_noise_inspection::NeuronNoiseInspection;
pub use parameter_scaling::ParameterScaling;
pub use patch_blocking::{BlockingMeasure, PatchBlocking};
pub use patch_drop::{PatchDrop, PatchLevel};
pub use patch_search::PatchSearch;
pub use patch_shuffle::PatchShuffle;
pub use patchdoor_metrics::{
    ExpertSuspicion, PrunedFilters, PruningStep, RepairDetails, TrainingPhase, TriedStrength, Tuning,
};
pub use pixel_variance::PixelVariance;
pub use pruning_series::PruningSeries;
pub use rasa::Rasa;
pub use reconstructive_neuron_pruning::ReconstructiveNeuronPruning;
pub use reversal::ReversalConfig;
pub use router_consensus::RouterConsensus;
pub use router_null_space::RouterNullSpace;
pub use router_retraining::RouterRetraining;
pub use routing_distance::{RoutingDistance, RoutingSpace};
pub use scale_up::ScaleUp;
pub use scan::Scan;
pub use shared_adversarial_unlearning::SharedAdversarialUnlearning;
pub use sharpness_aware_fine_tuning::SharpnessAwareFineTuning;
pub use spectral_signatures::SpectralSignatures;
pub use stepwise_fine_pruning::StepwiseFinePruning;
pub use strength::{Strengths, TuneConfig};
pub use strip::{Strip, Superimposition};
pub use threshold_pruning::ThresholdConfig;
pub use topological_evolution::TopologicalEvolution;
pub use training_work::TrainingWork;
pub use traits::{
    DatasetFilter, DetectionThreshold, Filtering, InputDetector, Inspection, ModelInspector, ModelRepair, Repaired,
    SafelyTrained, Scorer, SeriesPoint, TrainingDefense,
};
pub use trap_expert::{TrapExpert, TrapUse};
pub use view::{DefenderData, Inputs, InspectionWork, RepairWork};
