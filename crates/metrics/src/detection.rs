use serde::{Deserialize, Serialize};

use crate::attack::share;

/// Counts of a poisoned-or-not decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DetectionOutcome {
    /// Poisoned and flagged.
    pub true_positives: usize,
    /// Clean and flagged.
    pub false_positives: usize,
    /// Clean and passed.
    pub true_negatives: usize,
    /// Poisoned and passed.
    pub false_negatives: usize,
}

impl DetectionOutcome {
    /// Counts the decisions `is_flagged` against the truth `is_poisoned`.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn count(is_flagged: &[bool], is_poisoned: &[bool]) -> Self {
        assert_eq!(is_flagged.len(), is_poisoned.len(), "one decision per example");
        let mut outcome = Self::default();
        for (&flagged, &poisoned) in is_flagged.iter().zip(is_poisoned) {
            match (flagged, poisoned) {
                (true, true) => outcome.true_positives += 1,
                (true, false) => outcome.false_positives += 1,
                (false, false) => outcome.true_negatives += 1,
                (false, true) => outcome.false_negatives += 1,
            }
        }
        outcome
    }

    /// Share of the poisoned that are flagged (recall).
    pub fn true_positive_rate(&self) -> Option<f64> {
        share(self.true_positives, self.true_positives + self.false_negatives)
    }

    /// Share of the clean that are flagged.
    pub fn false_positive_rate(&self) -> Option<f64> {
        share(self.false_positives, self.false_positives + self.true_negatives)
    }

    /// Share of the flagged that are poisoned.
    pub fn precision(&self) -> Option<f64> {
        share(self.true_positives, self.true_positives + self.false_positives)
    }

    /// Harmonic mean of precision and recall.
    pub fn f1(&self) -> Option<f64> {
        share(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)
    }
}

/// Returns the area under the receiver operating characteristic: the chance that a positive scores
/// above a negative, ties counting half. `None` if one of the two groups is empty.
///
/// # Panics
/// If the slices differ in length or a score is NaN.
pub fn area_under_roc(scores: &[f64], is_positive: &[bool]) -> Option<f64> {
    assert_eq!(scores.len(), is_positive.len(), "one score per example");
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].partial_cmp(&scores[b]).expect("scores are not NaN"));
    let positives = is_positive.iter().filter(|&&positive| positive).count();
    let negatives = scores.len() - positives;
    if positives == 0 || negatives == 0 {
        return None;
    }
    // Mann-Whitney: each positive earns the negatives below it and half of those beside it.
    let (mut wins, mut negatives_below) = (0.0, 0usize);
    for tied in order.chunk_by(|&a, &b| scores[a].partial_cmp(&scores[b]).is_some_and(std::cmp::Ordering::is_eq)) {
        let tied_positives = tied.iter().filter(|&&index| is_positive[index]).count();
        let tied_negatives = tied.len() - tied_positives;
        wins += tied_positives as f64 * (negatives_below as f64 + tied_negatives as f64 / 2.0);
        negatives_below += tied_negatives;
    }
    Some(wins / (positives as f64 * negatives as f64))
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rates_follow_from_the_counts() {
        // Flagged: 3, of which 2 poisoned; poisoned: 4; clean: 2.
        let outcome =
            DetectionOutcome::count(&[true, true, true, false, false, false], &[true, true, false, true, true, false]);
        assert_eq!(outcome.true_positive_rate(), Some(0.5));
        assert_eq!(outcome.false_positive_rate(), Some(0.5));
        assert_eq!(outcome.precision(), Some(2.0 / 3.0));
        assert_eq!(outcome.f1(), Some(4.0 / 7.0));
    }

    #[test]
    fn area_counts_ties_half() {
        // Positives 2, 1; negatives 1, 0. Pairs: 2>1, 2>0, 1=1, 1>0: 3.5 of 4.
        assert_eq!(area_under_roc(&[2.0, 1.0, 1.0, 0.0], &[true, true, false, false]), Some(3.5 / 4.0));
        assert_eq!(area_under_roc(&[1.0], &[true]), None);
    }

    proptest! {
        #[test]
        fn area_equals_the_share_of_won_pairs(examples in prop::collection::vec((0i8..6, any::<bool>()), 2..40)) {
            let scores: Vec<f64> = examples.iter().map(|&(score, _)| f64::from(score)).collect();
            let positive: Vec<bool> = examples.iter().map(|&(_, positive)| positive).collect();
            let (mut wins, mut pairs) = (0.0, 0.0);
            for i in (0..scores.len()).filter(|&i| positive[i]) {
                for j in (0..scores.len()).filter(|&j| !positive[j]) {
                    pairs += 1.0;
                    wins += match scores[i].total_cmp(&scores[j]) {
                        Ordering::Greater => 1.0,
                        Ordering::Equal => 0.5,
                        Ordering::Less => 0.0,
                    };
                }
            }
            if let Some(area) = area_under_roc(&scores, &positive) { prop_assert!((area - wins / pairs).abs() < 1e-12) } else { prop_assert!(pairs < 0.5) }
        }
    }
}
