use patchdoor_data::ImageSet;
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use serde::{Deserialize, Serialize};

use crate::class_features::ClassFeatures;
use crate::error::check_positive;
use crate::neural_cleanse::median;
use crate::principal::{centred, dot, principal_axes};
use crate::two_means::Split;
use crate::{DatasetFilter, DefendedClassifier, Defense, DefenseError, Filtering};

/// `SCAn` (Tang et al. 2021, arXiv:1908.00686, USENIX Security): drops the smaller group of every class whose features are
/// much better told by two groups than by one.
///
/// Features before the head are a mean of the class plus a variation that all classes share. In units of that variation each
/// class is split in two groups, and J is twice the logarithm of the likelihood ratio of two groups with means of their own over
/// one: n1 n2 / n times the squared distance of the means. With k features, (J - k) / sqrt(2 k) of a class, less the median over
/// classes, over 1.4826 times the median absolute deviation, is its index; a class above [`index`](Self::index) is taken for a
/// target. The score of an example is the logarithm of the likelihood ratio of the smaller group over the larger. Departures: the
/// shared variation is the covariance within the classes of the set itself, which the authors estimate on clean images, by
/// expectation and maximization; the groups are found by 2-means, which in these units is what their linear discriminant comes to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Scan {
    /// The index above which a class is taken for a target, a finite number above 0.
    pub index: f64,
    /// Whether a classifier is trained anew on what is left.
    pub retrain: bool,
}

impl Default for Scan {
    /// The e^2 of Tang et al. (2021); no training.
    fn default() -> Self {
        Self { index: 7.3891, retrain: false }
    }
}

impl Defense for Scan {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        check_positive("index", self.index).into_iter().collect()
    }
}

impl<B: TrainingBackend> DatasetFilter<B> for Scan {
    fn retrains(&self) -> bool {
        self.retrain
    }

    fn filter(
        &self,
        set: &ImageSet,
        classifier: Classifier<B::InnerBackend>,
        device: &B::Device,
    ) -> Result<Filtering, DefenseError> {
        let features = ClassFeatures::of(&classifier, set, device);
        let classes = features.classes.iter().map(|examples| features.rows(examples)).collect::<Vec<_>>();
        let variation = Variation::within(&classes);
        let split = |rows: &Vec<&[f64]>| {
            let rows = rows.iter().map(|row| variation.units(row)).collect::<Vec<_>>();
            let rows = rows.iter().map(Vec::as_slice).collect::<Vec<_>>();
            Split::of(&rows, variation.axes.len())
        };
        let splits = classes.iter().map(split).collect::<Vec<_>>();
        let found = splits.iter().map(|split| split.as_ref().map_or(0.0, ratio)).collect::<Vec<_>>();
        let indices = indices(&found, variation.axes.len());
        let mut filtering = Filtering::of_none(set.len());
        for ((examples, split), index) in features.classes.iter().zip(&splits).zip(indices) {
            let Some(split) = split else { continue };
            for (place, &example) in examples.iter().enumerate() {
                filtering.scores[example] = towards_smaller(split, place);
                filtering.is_suspect[example] = index > self.index && split.is_smaller[place];
            }
        }
        Ok(filtering)
    }
}

/// How examples vary around the means of their classes: directions, and one over the standard deviation along each.
struct Variation {
    axes: Vec<(Vec<f64>, f64)>,
}

impl Variation {
    /// A direction in which nothing varies counts as one of a thousandth of the largest variance.
    fn within(classes: &[Vec<&[f64]>]) -> Self {
        let rows = classes.iter().flat_map(|rows| centred(rows)).collect::<Vec<_>>();
        let axes = principal_axes(&rows, rows.first().map_or(0, Vec::len));
        let count = rows.len().max(1) as f64;
        let variances = axes.iter().map(|axis| rows.iter().map(|row| dot(row, axis).powi(2)).sum::<f64>() / count);
        let variances = variances.collect::<Vec<_>>();
        let least = (1e-3 * variances.iter().copied().fold(0.0, f64::max)).max(f64::MIN_POSITIVE);
        let scaled = axes.into_iter().zip(variances).map(|(axis, variance)| (axis, 1.0 / variance.max(least).sqrt()));
        Self { axes: scaled.collect() }
    }

    /// The row in units of the variation.
    fn units(&self, row: &[f64]) -> Vec<f64> {
        self.axes.iter().map(|(axis, scale)| dot(row, axis) * scale).collect()
    }
}

fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}

/// Twice the logarithm of the likelihood ratio of two groups over one, of unit variation.
fn ratio(split: &Split) -> f64 {
    let count = split.is_smaller.len() as f64;
    let smaller = split.share() * count;
    smaller * (count - smaller) / count * squared_distance(&split.centres[0], &split.centres[1])
}

/// The logarithm of the likelihood ratio of the smaller group over the larger, of unit variation.
fn towards_smaller(split: &Split, place: usize) -> f64 {
    let [larger, smaller] = split.centres.each_ref().map(|centre| squared_distance(&split.points[place], centre));
    (larger - smaller) / 2.0
}

/// How far each class's ratio lies above the median of all, in median absolute deviations times 1.4826.
fn indices(ratios: &[f64], features: usize) -> Vec<f64> {
    let features = features as f64;
    let normal = ratios.iter().map(|ratio| (ratio - features) / (2.0 * features).sqrt()).collect::<Vec<_>>();
    let middle = median(&normal);
    let deviation = 1.4826 * median(&normal.iter().map(|value| (value - middle).abs()).collect::<Vec<_>>());
    normal.iter().map(|value| if deviation > 0.0 { (value - middle) / deviation } else { 0.0 }).collect()
}

#[cfg(test)]
mod tests {
    use patchdoor_metrics::DetectionOutcome;

    use super::*;
    use crate::detectable::{Planted, poisoned_images};

    #[test]
    fn features_are_counted_in_units_of_the_variation_within_the_classes() {
        // Two classes, each with -2 and 2 around its mean in the first feature and -0.5 and 0.5 in the second: variances 4 and 1/4.
        let class = |mean: f64| [[mean + 2.0, 0.5], [mean - 2.0, -0.5], [mean + 2.0, -0.5], [mean - 2.0, 0.5]];
        let rows = [class(0.0), class(10.0)];
        let classes = rows.iter().map(|rows| rows.iter().map(<[f64; 2]>::as_slice).collect()).collect::<Vec<Vec<_>>>();
        let found = Variation::within(&classes).units(&[6.0, 1.5]);
        assert!((found[0] - 3.0).abs() < 1e-9 && (found[1] - 3.0).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn the_likelihood_ratio_of_two_groups_worked_out_by_hand() {
        // 0, 1, 2 and 12 on a line: groups of three around 1 and of one at 12, 3 * 1 / 4 * 121 = 90.75. Of the point 2, (1 - 100) / 2.
        let rows = [[0.0], [1.0], [2.0], [12.0]];
        let split = Split::of(&rows.each_ref().map(<[f64; 1]>::as_slice), 1).expect("two groups");
        assert!((ratio(&split) - 90.75).abs() < 1e-9);
        assert!((towards_smaller(&split, 2) + 49.5).abs() < 1e-9);
        // Of 8 features: (40 - 8) / 4 = 8 and so on; medians 1 and 1.
        let found = indices(&[8.0, 12.0, 16.0, 12.0, 40.0], 8);
        let expected = [-1.0, 0.0, 1.0, 0.0, 7.0].map(|value| value / 1.4826);
        assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-9), "{found:?}");
    }

    #[test]
    fn it_drops_the_poisoned_images_of_the_target_class_and_none_of_a_clean_twin() {
        let (area, filtering) = Planted::Backdoored.filtered(&Scan::default());
        let outcome = DetectionOutcome::count(&filtering.is_suspect, &poisoned_images().1);
        let (_, of_twin) = Planted::CleanTwin.filtered(&Scan::default());
        let dropped = of_twin.is_suspect.iter().filter(|&&suspect| suspect).count();
        assert!(area > 0.95 && outcome.true_positive_rate() > Some(0.9), "{area}, {outcome:?}");
        assert!(outcome.false_positive_rate() < Some(0.02) && dropped == 0, "{outcome:?}, {dropped} of the twin");
    }
}
