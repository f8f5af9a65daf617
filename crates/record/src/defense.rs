use patchdoor_metrics::{RepairDetails, Standing, defense_effectiveness_rating, robust_improvement_rating};
use serde::{Deserialize, Serialize};

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
    /// What was measured, or why nothing was.
    pub outcome: DefenseOutcome,
}

/// How a defense ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DefenseOutcome {
    /// With a repaired classifier.
    Finished(Box<DefenseMeasurements>),
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

/// Where a classifier stands; shares of test images in [0, 1], as in [`Measurements`](crate::Measurements).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DefenseStanding {
    /// Share of untouched test images predicted right.
    pub clean_accuracy: f64,
    /// Attack success rate, by the attack's own label rule.
    pub asr: Option<f64>,
    /// Share of the triggered images still given their true class.
    pub robust_accuracy: Option<f64>,
    /// Share of untouched test images that are given the class predicted most often; above [`COLLAPSE`], the classifier has
    /// collapsed to one class. `None` in results of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub largest_class_share: Option<f64>,
}

/// Share of untouched test images in one predicted class above which a classifier counts as collapsed to it: tables then say so
/// and give no mean, because where such a classifier stands depends on whether the class is the attack's target.
pub const COLLAPSE: f64 = 0.5;

/// How much a defense helped, in [0, 1]; 0.5 means that nothing happened. `None` where nothing is attacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ratings {
    /// Defense effectiveness rating (DER).
    pub defense_effectiveness: Option<f64>,
    /// Robust improvement rating (RIR).
    pub robust_improvement: Option<f64>,
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

/// What a defense, or one strength of a series, came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Defended {
    pub(crate) after: DefenseStanding,
    pub(crate) ratings: Ratings,
    pub(crate) clean_twin: Option<DefenseStanding>,
}

impl Defended {
    /// Whether the classifier has collapsed to one class.
    pub(crate) fn is_collapsed(&self) -> bool {
        self.after.largest_class_share.is_some_and(|share| share > COLLAPSE)
    }
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

impl Ratings {
    /// Of a classifier before and after.
    pub fn of(before: DefenseStanding, after: DefenseStanding) -> Self {
        let standing = |standing: DefenseStanding| {
            Some(Standing {
                clean_accuracy: standing.clean_accuracy,
                attack_success_rate: standing.asr?,
                robust_accuracy: standing.robust_accuracy?,
            })
        };
        standing(before).zip(standing(after)).map_or_else(Self::default, |(before, after)| Self {
            defense_effectiveness: Some(defense_effectiveness_rating(&before, &after)),
            robust_improvement: Some(robust_improvement_rating(&before, &after)),
        })
    }
}

impl DefenseResult {
    /// What was measured, if the defense finished.
    pub fn measurements(&self) -> Option<&DefenseMeasurements> {
        match &self.outcome {
            DefenseOutcome::Finished(measurements) => Some(measurements),
            DefenseOutcome::Failed { .. } => None,
        }
    }

    /// Why nothing was measured, if the defense failed.
    pub fn failure(&self) -> Option<&str> {
        match &self.outcome {
            DefenseOutcome::Finished(_) => None,
            DefenseOutcome::Failed { reason } => Some(reason),
        }
    }
}
