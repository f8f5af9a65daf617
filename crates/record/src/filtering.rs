use patchdoor_metrics::{DetectionOutcome, Estimate, separation, share_with_interval};
use serde::{Deserialize, Serialize};

use crate::standing::{DefenseStanding, Ratings};

/// What was measured of a filter of training examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FilteringMeasurements {
    /// On the poisoned training set.
    #[serde(flatten)]
    pub victim: FilterStanding,
    /// On the set without poison, with the clean twin, if the experiment asks for it: all that it drops there is clean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean_twin: Option<FilterStanding>,
    /// A classifier trained on what is left, if the filter is to have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retrained: Option<Retrained>,
    /// Seconds that judging took, the twin and the training apart.
    pub seconds: f64,
}

/// How well a filter tells poisoned examples, covers not among them, from the others.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FilterStanding {
    /// Area under the ROC curve of its scores over the whole set; `None` without poisoned examples.
    pub auc: Option<Estimate>,
    /// Share of the poisoned examples that are dropped.
    pub true_positive_rate: Option<Estimate>,
    /// Share of the others that are dropped.
    pub false_positive_rate: Option<Estimate>,
    /// The same as numbers of examples.
    pub outcome: DetectionOutcome,
}

/// A classifier trained anew on what a filter has left.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Retrained {
    /// Where the classifier stands that was trained on all of it.
    pub before: DefenseStanding,
    /// Where the new one stands.
    pub after: DefenseStanding,
    /// How much it helped.
    #[serde(flatten)]
    pub ratings: Ratings,
    /// Epochs of its training.
    pub epochs: usize,
}

impl FilterStanding {
    /// Of a filter's scores and decisions, and the truth.
    pub fn of(scores: &[f64], is_suspect: &[bool], is_poisoned: &[bool]) -> Self {
        let of_group = |poisoned: bool| {
            let group = scores.iter().zip(is_poisoned).filter(|(_, is_poisoned)| **is_poisoned == poisoned);
            group.map(|(&score, _)| score).collect::<Vec<_>>()
        };
        let outcome = DetectionOutcome::count(is_suspect, is_poisoned);
        let DetectionOutcome { true_positives, false_positives, true_negatives, false_negatives } = outcome;
        Self {
            auc: separation(&of_group(true), &of_group(false)),
            true_positive_rate: share_with_interval(true_positives, true_positives + false_negatives),
            false_positive_rate: share_with_interval(false_positives, false_positives + true_negatives),
            outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_counted_among_poisoned_and_clean() {
        let standing =
            FilterStanding::of(&[3.0, 1.0, 2.0, 0.0], &[true, false, true, false], &[true, true, false, false]);
        let value = |estimate: Option<Estimate>| estimate.map(|estimate| estimate.value);
        // 3 is above 2 and 0, 1 above 0 alone: 3 of 4 pairs.
        assert_eq!(value(standing.auc), Some(0.75));
        assert_eq!((value(standing.true_positive_rate), value(standing.false_positive_rate)), (Some(0.5), Some(0.5)));
        let clean = FilterStanding::of(&[0.0; 2], &[true, false], &[false; 2]);
        assert_eq!((clean.auc, clean.true_positive_rate, value(clean.false_positive_rate)), (None, None, Some(0.5)));
    }
}
