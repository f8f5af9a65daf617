use serde::{Deserialize, Serialize};

use crate::Estimate;
use crate::share::share_down;

/// Two-sided 95 % quantile of the normal distribution.
const NORMAL_QUANTILE: f64 = 1.959_963_984_540_054;

/// How well a score tells positives, which should score higher, from negatives: the area under the receiver operating
/// characteristic with the interval of `DeLong` et al. (1988). 0.5 is chance, and less means that the score has the wrong
/// sign. `None` if one of the two groups is empty.
///
/// The variance is that of the share of negatives below each positive, over positives, plus that of the share of
/// positives above each negative, over negatives; the interval ends at 0 and 1.
///
/// # Panics
/// If a score is NaN.
pub fn separation(positives: &[f64], negatives: &[f64]) -> Option<Estimate> {
    if positives.is_empty() || negatives.is_empty() {
        return None;
    }
    let [above, below] = [positives, negatives].map(sorted);
    let of_positives = positives.iter().map(|&score| share_below(&below, score)).collect::<Vec<_>>();
    let of_negatives = negatives.iter().map(|&score| 1.0 - share_below(&above, score)).collect::<Vec<_>>();
    let value = of_positives.iter().sum::<f64>() / positives.len() as f64;
    let variance = variance_of_mean(&of_positives, value) + variance_of_mean(&of_negatives, value);
    let margin = NORMAL_QUANTILE * variance.sqrt();
    let is_known = positives.len() > 1 && negatives.len() > 1;
    Some(Estimate {
        value,
        low: is_known.then(|| (value - margin).max(0.0)),
        high: is_known.then(|| (value + margin).min(1.0)),
        images: positives.len() + negatives.len(),
    })
}

fn sorted(scores: &[f64]) -> Vec<f64> {
    let mut sorted = scores.to_vec();
    assert!(sorted.iter().all(|score| !score.is_nan()), "scores are not NaN");
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Share of sorted scores below one, ties counting half.
fn share_below(sorted: &[f64], score: f64) -> f64 {
    let below = sorted.partition_point(|&other| other < score);
    let tied = sorted.partition_point(|&other| other <= score) - below;
    (below as f64 + tied as f64 / 2.0) / sorted.len() as f64
}

fn variance_of_mean(values: &[f64], mean: f64) -> f64 {
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    squares / (values.len().max(2) - 1) as f64 / values.len() as f64
}

/// The share `hits / of` with the 95 % interval of Wilson (1927), which stays in [0, 1]; `None` without any.
pub fn share_with_interval(hits: usize, of: usize) -> Option<Estimate> {
    if of == 0 {
        return None;
    }
    let (count, share) = (of as f64, hits as f64 / of as f64);
    let square = NORMAL_QUANTILE.powi(2) / count;
    let middle = (share + square / 2.0) / (1.0 + square);
    let margin = (square * share * (1.0 - share) + (square / 2.0).powi(2)).sqrt() / (1.0 + square);
    // Rounding may leave the share itself out where it is 0 or 1.
    let (low, high) = ((middle - margin).clamp(0.0, share), (middle + margin).clamp(share, 1.0));
    Some(Estimate { value: share, low: Some(low), high: Some(high), images: of })
}

/// The lowest threshold that at most this share of the scores lies above. What scores more than it is flagged; ties are not, so
/// that fewer are flagged where many scores are the same. Infinite without scores: then nothing is flagged.
///
/// # Panics
/// If a score is NaN.
pub fn threshold_for(scores: &[f64], false_positive_rate: f64) -> f64 {
    let sorted = sorted(scores);
    let flagged = share_down(false_positive_rate.clamp(0.0, 1.0), sorted.len());
    match sorted.len() - flagged {
        _ if sorted.is_empty() => f64::INFINITY,
        0 => f64::NEG_INFINITY,
        kept => sorted[kept - 1],
    }
}

/// What a detector does at one threshold.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct OperatingPoint {
    /// What scores more is flagged; absent where nothing or everything is.
    pub threshold: Option<f64>,
    /// Share of the positives that are flagged.
    pub true_positive_rate: Option<Estimate>,
    /// Share of the negatives that are flagged.
    pub false_positive_rate: Option<Estimate>,
}

impl OperatingPoint {
    /// At a threshold.
    pub fn at(threshold: f64, positives: &[f64], negatives: &[f64]) -> Self {
        let flagged = |scores: &[f64]| {
            let flagged = scores.iter().filter(|&&score| score > threshold).count();
            share_with_interval(flagged, scores.len())
        };
        Self {
            // JSON has no infinity.
            threshold: threshold.is_finite().then_some(threshold),
            true_positive_rate: flagged(positives),
            false_positive_rate: flagged(negatives),
        }
    }
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;
    use proptest::prelude::*;

    use super::*;
    use crate::area_under_roc;

    #[test]
    fn the_interval_of_an_area_is_delongs() {
        // Positives 3, 1; negatives 2, 0. Below 3: both, below 1: one of two. Area (1 + 1/2) / 2 = 3/4.
        // Positives: (1/4)^2 + (1/4)^2 over 1 over 2 = 1/16. Above 2: one of two, above 0: both: 1/16 again.
        // 1.959964 * sqrt(1/8) = 0.692952.
        let area = separation(&[3.0, 1.0], &[2.0, 0.0]).expect("both groups");
        assert_abs_diff_eq!(area.value, 0.75);
        assert_abs_diff_eq!(area.low.expect("known"), 0.057_048, epsilon = 1e-6);
        assert_abs_diff_eq!(area.high.expect("known"), 1.0);
        assert_eq!(area.images, 4);
        assert_eq!(separation(&[], &[1.0]), None);
        assert_eq!(separation(&[1.0], &[0.0]).map(|area| (area.value, area.low)), Some((1.0, None)));
    }

    #[test]
    fn the_interval_of_a_share_is_wilsons() {
        // Wilson's interval for 0 of 10 is [0, z^2 / (10 + z^2)] = [0, 3.841459 / 13.841459] = [0, 0.277533].
        let none = share_with_interval(0, 10).expect("ten");
        assert_abs_diff_eq!(none.low.expect("known"), 0.0, epsilon = 1e-12);
        assert_abs_diff_eq!(none.high.expect("known"), 0.277_533, epsilon = 1e-6);
        // 5 of 10: 1/2 -+ z / (2 sqrt(10 + z^2)) = 1/2 -+ 0.263407.
        let half = share_with_interval(5, 10).expect("ten");
        assert_abs_diff_eq!(half.low.expect("known"), 0.236_593, epsilon = 1e-6);
        assert_eq!(share_with_interval(0, 0), None);
    }

    #[test]
    fn a_threshold_lets_at_most_its_share_through() {
        let scores: Vec<f64> = (0..100).map(f64::from).collect();
        assert_abs_diff_eq!(threshold_for(&scores, 0.05), 94.0);
        assert_abs_diff_eq!(threshold_for(&scores, 0.07), 92.0);
        // Of ten the same, none is above any of them.
        assert_abs_diff_eq!(threshold_for(&[1.0; 10], 0.5), 1.0);
        assert!(threshold_for(&[], 0.5) > f64::MAX);
        assert!(threshold_for(&scores, 1.0) < f64::MIN);
        let point = OperatingPoint::at(94.0, &[95.0, 94.0], &scores);
        assert_eq!(point.true_positive_rate.map(|rate| rate.value), Some(0.5));
        assert_eq!(point.false_positive_rate.map(|rate| rate.value), Some(0.05));
        assert_eq!(OperatingPoint::at(f64::INFINITY, &[1.0], &[]).threshold, None);
    }

    proptest! {
        #[test]
        fn the_area_is_that_of_the_pairs_and_turns_round_with_the_sign(
            positives in prop::collection::vec(0i8..6, 1..20),
            negatives in prop::collection::vec(0i8..6, 1..20),
        ) {
            let [positives, negatives] = [positives, negatives].map(|scores| scores.into_iter().map(f64::from).collect::<Vec<_>>());
            let scores = [&positives[..], &negatives].concat();
            let is_positive = (0..scores.len()).map(|index| index < positives.len()).collect::<Vec<_>>();
            let area = separation(&positives, &negatives).expect("both groups");
            prop_assert!((area.value - area_under_roc(&scores, &is_positive).expect("both groups")).abs() < 1e-12);
            let turned = separation(&negatives, &positives).expect("both groups");
            prop_assert!((area.value + turned.value - 1.0).abs() < 1e-12);
            if let (Some(low), Some(high)) = (area.low, area.high) {
                prop_assert!(0.0 <= low && low <= area.value && area.value <= high && high <= 1.0);
            }
        }

        #[test]
        fn no_more_than_the_stated_share_is_flagged(scores in prop::collection::vec(0i8..20, 1..60), rate in 0.0..1.0f64) {
            let scores = scores.into_iter().map(f64::from).collect::<Vec<_>>();
            let threshold = threshold_for(&scores, rate);
            let flagged = scores.iter().filter(|&&score| score > threshold).count();
            prop_assert!(flagged as f64 <= rate * scores.len() as f64 + 1e-9);
        }
    }
}
