use patchdoor_metrics::{Standing, defense_effectiveness_rating, robust_improvement_rating};
use serde::{Deserialize, Serialize};

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

impl DefenseStanding {
    /// Whether the classifier has collapsed to one class.
    pub(crate) fn is_collapsed(&self) -> bool {
        self.largest_class_share.is_some_and(|share| share > COLLAPSE)
    }
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
        self.after.is_collapsed()
    }
}
