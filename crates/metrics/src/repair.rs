use serde::{Deserialize, Serialize};

/// What a repair did besides training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct RepairDetails {
    /// The filters that were pruned, convolution by convolution.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pruned: Vec<PrunedFilters>,
    /// What each step of a stepwise pruning came to, the one that was undone included.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<PruningStep>,
    /// What was found of each expert.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub experts: Vec<ExpertSuspicion>,
    /// The patches that each expert passes over from then on, ascending.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocked_patches: Vec<Vec<u16>>,
    /// The classes that it took for targets of a backdoor, ascending.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<usize>,
    /// How strongly it was done, if that was chosen on validation images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tuning: Option<Tuning>,
}

/// How the strength of a repair was chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Tuning {
    /// The setting that makes it gentler or stronger, its path below the defense's table.
    pub field: String,
    /// The value that was taken.
    pub value: f64,
    /// Share of validation images that the classifier predicted right before.
    pub accuracy_before: f64,
    /// How far below that the taken value's may lie.
    pub max_accuracy_drop: f64,
    /// Every value that was tried, the strongest first.
    pub tried: Vec<TriedStrength>,
}

/// A repair at one of several strengths.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TriedStrength {
    /// The setting's value.
    pub value: f64,
    /// Share of validation images that the repaired classifier predicts right.
    pub validation_accuracy: f64,
}

/// The filters of one convolution, or the channels of one batch normalization, that were pruned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PrunedFilters {
    /// The convolution, such as `experts.0.conv`, or the normalization, such as `experts.0.norm`.
    pub convolution: String,
    /// The pruned ones of its filters, ascending.
    pub filters: Vec<usize>,
    /// How many it has.
    pub of: usize,
}

/// One step of a stepwise pruning.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PruningStep {
    /// Filters pruned after this step.
    pub pruned: usize,
    /// Share of validation images then predicted right.
    pub validation_accuracy: f64,
}

/// How suspicious an expert is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ExpertSuspicion {
    /// The expert, counted from 0.
    pub expert: usize,
    /// Share of what it does that is suspicious, in [0, 1].
    pub suspicious_share: f64,
    /// Whether it was removed.
    pub removed: bool,
}

/// One of the trainings that a defense consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TrainingPhase {
    /// What it is for, such as `isolation`.
    pub name: String,
    /// Examples that it trained on.
    pub images: usize,
    /// Its epochs.
    pub epochs: usize,
    /// Whether the last of them was taken back and the phase ended there, because it cost too much accuracy.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undone: bool,
}
