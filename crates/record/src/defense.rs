use patchdoor_metrics::RepairDetails;
use serde::{Deserialize, Serialize};

use crate::standing::{Defended, DefenseStanding, Ratings};
use crate::{DetectionMeasurements, FilteringMeasurements, InspectionMeasurements, SafeTrainingMeasurements};

/// What one defense of one seed came to; `seed-N/defenses/INDEX-NAME/result.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DefenseResult {
    /// Layout of this file.
    pub schema: u32,
    /// The defense, such as `fine-pruning`.
    pub name: String,
    /// What the report calls it.
    pub title: String,
    /// Which images the defender had, `clean` or `contaminated`.
    pub data: String,
    /// How many.
    pub clean_images: usize,
    /// How many of them carry the trigger, under their true labels.
    pub contaminated_images: usize,
    /// Images it could choose on.
    pub validation_images: usize,
    /// Bytes of main memory that the program held at most while it defended, all that it held for other reasons included; `None`
    /// where the system does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
    /// What was measured, or why nothing was.
    pub outcome: DefenseOutcome,
}

/// How a defense ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DefenseOutcome {
    /// With a repaired classifier.
    Finished(Box<DefenseMeasurements>),
    /// With scores of images.
    Detected(Box<DetectionMeasurements>),
    /// With judgements of training examples.
    Filtered(Box<FilteringMeasurements>),
    /// With what it says of the classifier.
    Inspected(Box<InspectionMeasurements>),
    /// With a classifier of its own, trained from scratch.
    Trained(Box<SafeTrainingMeasurements>),
    /// Its training could not go on.
    Failed {
        /// Why.
        reason: String,
    },
}

/// What was measured before and after a defense.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DefenseMeasurements {
    /// The backdoored classifier.
    pub before: DefenseStanding,
    /// The repaired one.
    pub after: DefenseStanding,
    /// How much it helped.
    #[serde(flatten)]
    pub ratings: Ratings,
    /// Seconds that the defense took, interrupted epochs apart.
    pub seconds: f64,
    /// Epochs of training in it.
    pub epochs: usize,
    /// What it did besides training.
    pub details: RepairDetails,
    /// The clean twin after the same defense, if the experiment asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean_twin: Option<DefenseStanding>,
    /// What was measured at each strength of a series.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub series: Vec<SeriesRow>,
}

/// One strength of a series of prunings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SeriesRow {
    /// Share of each expert's filters that was to be pruned.
    pub pruned_fraction: f64,
    /// Filters that were.
    pub pruned_filters: usize,
    /// Filters before the head, pruned or not; `None` in results of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filters: Option<usize>,
    /// The classifier without them.
    pub after: DefenseStanding,
    /// How much it helped.
    #[serde(flatten)]
    pub ratings: Ratings,
    /// The clean twin without as many filters, chosen by its own answers, if the experiment asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean_twin: Option<DefenseStanding>,
}

impl SeriesRow {
    pub(crate) fn defended(&self) -> Defended {
        Defended { after: self.after, ratings: self.ratings, clean_twin: self.clean_twin }
    }

    /// What was really pruned, `4 of 64 filters`; of results that do not say it, what was asked for, `0.1 pruned`.
    pub fn pruned_in_words(&self) -> String {
        match self.filters {
            Some(filters) => format!("{} of {filters} filters", self.pruned_filters),
            None => format!("{} pruned", self.pruned_fraction),
        }
    }
}

impl DefenseMeasurements {
    pub(crate) fn defended(&self) -> Defended {
        Defended { after: self.after, ratings: self.ratings, clean_twin: self.clean_twin }
    }

    /// Filters that were pruned, and of how many; `None` if none was to be.
    pub fn pruned_filters(&self) -> Option<(usize, usize)> {
        let layers = &self.details.pruned;
        let pruned = layers.iter().map(|layer| layer.filters.len()).sum();
        (!layers.is_empty()).then(|| (pruned, layers.iter().map(|layer| layer.of).sum()))
    }
}

/// What a defense acts on, and so what it is measured by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DefenseKind {
    /// It changes the classifier.
    #[default]
    Repair,
    /// It scores inputs.
    Detector,
    /// It drops training examples.
    Filter,
    /// It looks at a classifier.
    Inspector,
    /// It trains a classifier from scratch.
    Training,
}

impl DefenseKind {
    /// All kinds, in the order of tables.
    pub const ALL: [Self; 5] = [Self::Repair, Self::Training, Self::Detector, Self::Filter, Self::Inspector];

    /// Whether it is a repair.
    pub fn is_repair(&self) -> bool {
        *self == Self::Repair
    }

    /// Whether it leaves a classifier, to be compared with the undefended one.
    pub fn gives_classifier(self) -> bool {
        matches!(self, Self::Repair | Self::Training)
    }

    /// What its defenses are called together.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Repair => "defenses",
            Self::Detector => "detectors of triggered inputs",
            Self::Filter => "filters of training sets",
            Self::Inspector => "inspectors of classifiers",
            Self::Training => "trainings on the poisoned set",
        }
    }

    /// The numbers that its tables show, by their names in [`METRICS`](crate::METRICS).
    pub fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Repair => &[
                "clean-accuracy",
                "asr",
                "robust-accuracy",
                "defense-effectiveness",
                "robust-improvement",
                "seconds",
                "peak-memory",
            ],
            Self::Detector => &[
                "detection-auc",
                "clean-twin-detection-auc",
                "tpr-at-1",
                "tpr-at-5",
                "tpr-at-10",
                "fpr-at-5",
                "true-positive-rate",
                "false-positive-rate",
                "seconds",
                "peak-memory",
            ],
            Self::Filter => &[
                "detection-auc",
                "true-positive-rate",
                "false-positive-rate",
                "clean-twin-false-positive-rate",
                "clean-accuracy",
                "asr",
                "seconds",
                "peak-memory",
            ],
            Self::Training => &[
                "clean-accuracy",
                "asr",
                "robust-accuracy",
                "defense-effectiveness",
                "robust-improvement",
                "clean-twin-accuracy",
                "precision",
                "true-positive-rate",
                "seconds",
                "peak-memory",
            ],
            Self::Inspector => {
                &["targets-flagged", "target-rank", "wrongly-flagged", "clean-twin-flagged", "seconds", "peak-memory"]
            }
        }
    }
}

impl DefenseResult {
    /// What was measured, if a repair finished.
    pub fn measurements(&self) -> Option<&DefenseMeasurements> {
        match &self.outcome {
            DefenseOutcome::Finished(measurements) => Some(measurements),
            DefenseOutcome::Detected(_)
            | DefenseOutcome::Filtered(_)
            | DefenseOutcome::Inspected(_)
            | DefenseOutcome::Trained(_)
            | DefenseOutcome::Failed { .. } => None,
        }
    }

    /// Whether it left a classifier that has collapsed to one class.
    pub(crate) fn is_collapsed(&self) -> bool {
        match &self.outcome {
            DefenseOutcome::Finished(measured) => measured.defended().is_collapsed(),
            DefenseOutcome::Trained(measured) => measured.defended().is_collapsed(),
            DefenseOutcome::Detected(_)
            | DefenseOutcome::Filtered(_)
            | DefenseOutcome::Inspected(_)
            | DefenseOutcome::Failed { .. } => false,
        }
    }

    /// What it acts on; `None` of one that failed, of which nobody needs to know.
    pub fn kind(&self) -> Option<DefenseKind> {
        match &self.outcome {
            DefenseOutcome::Finished(_) => Some(DefenseKind::Repair),
            DefenseOutcome::Detected(_) => Some(DefenseKind::Detector),
            DefenseOutcome::Filtered(_) => Some(DefenseKind::Filter),
            DefenseOutcome::Inspected(_) => Some(DefenseKind::Inspector),
            DefenseOutcome::Trained(_) => Some(DefenseKind::Training),
            DefenseOutcome::Failed { .. } => None,
        }
    }

    /// Seconds it took, if it finished.
    pub fn seconds(&self) -> Option<f64> {
        match &self.outcome {
            DefenseOutcome::Finished(measured) => Some(measured.seconds),
            DefenseOutcome::Detected(measured) => Some(measured.seconds),
            DefenseOutcome::Filtered(measured) => Some(measured.seconds),
            DefenseOutcome::Inspected(measured) => Some(measured.seconds),
            DefenseOutcome::Trained(measured) => Some(measured.seconds),
            DefenseOutcome::Failed { .. } => None,
        }
    }

    /// Why nothing was measured, if the defense failed.
    pub fn failure(&self) -> Option<&str> {
        match &self.outcome {
            DefenseOutcome::Failed { reason } => Some(reason),
            DefenseOutcome::Finished(_)
            | DefenseOutcome::Detected(_)
            | DefenseOutcome::Filtered(_)
            | DefenseOutcome::Inspected(_)
            | DefenseOutcome::Trained(_) => None,
        }
    }
}
