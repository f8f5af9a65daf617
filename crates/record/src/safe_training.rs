use patchdoor_metrics::TrainingPhase;
use serde::{Deserialize, Serialize};

use crate::filtering::FilterStanding;
use crate::standing::{Defended, DefenseStanding, Ratings};

/// What was measured of a defense that trains a classifier from scratch on the poisoned set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SafeTrainingMeasurements {
    /// The classifier trained on the same set without the defense.
    pub before: DefenseStanding,
    /// The one that the defense trained.
    pub after: DefenseStanding,
    /// How much it helped.
    #[serde(flatten)]
    pub ratings: Ratings,
    /// The examples that it isolated, among poisoned ones and others.
    pub isolation: FilterStanding,
    /// The trainings that it consisted of.
    pub phases: Vec<TrainingPhase>,
    /// Epochs of all of them.
    pub epochs: usize,
    /// Seconds that it took, interrupted epochs apart.
    pub seconds: f64,
    /// What the same came to on the set without poison, if the experiment asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean_twin: Option<SafelyTrainedTwin>,
}

/// A classifier that a defense trained on a set without poison.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SafelyTrainedTwin {
    /// Where it stands.
    #[serde(flatten)]
    pub standing: DefenseStanding,
    /// The examples that were isolated: all of them are clean.
    pub isolation: FilterStanding,
}

impl SafeTrainingMeasurements {
    pub(crate) fn defended(&self) -> Defended {
        let clean_twin = self.clean_twin.map(|twin| twin.standing);
        Defended { after: self.after, ratings: self.ratings, clean_twin }
    }

    /// Share of the isolated examples that are poisoned; `None` if none was isolated.
    pub fn precision(&self) -> Option<f64> {
        self.isolation.outcome.precision()
    }
}
