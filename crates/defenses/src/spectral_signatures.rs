use patchdoor_data::ImageSet;
use patchdoor_kernels::TrainingBackend;
use patchdoor_metrics::share_down;
use patchdoor_model::Classifier;
use serde::{Deserialize, Serialize};

use crate::class_features::ClassFeatures;
use crate::error::invalid;
use crate::principal::{centred, dot, principal_axes};
use crate::{DatasetFilter, DefendedClassifier, Defense, DefenseError, Filtering};

/// Spectral signatures (Tran et al. 2018, arXiv:1811.00636): drops the examples of each class that lie farthest out along the
/// direction in which the class's features vary most.
///
/// For each class, features before the head are *centred*; the score of an example is the square of its projection on the first
/// right singular vector. Of each class the 1.5 eps share with the largest scores is dropped, poisoned or not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct SpectralSignatures {
    /// The authors' eps: the largest share of a class that may be poisoned, in (0, 2/3).
    pub poisoned_share: f64,
    /// Whether a classifier is trained anew on what is left.
    pub retrain: bool,
}

impl Default for SpectralSignatures {
    /// 10 % of the class, the larger of the authors' two settings for CIFAR-10; no training.
    fn default() -> Self {
        Self { poisoned_share: 0.1, retrain: false }
    }
}

impl Defense for SpectralSignatures {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let is_valid = self.poisoned_share > 0.0 && self.poisoned_share < 2.0 / 3.0;
        let problem = || invalid("poisoned-share", self.poisoned_share, "a fraction in (0, 2/3)");
        (!is_valid).then(problem).into_iter().collect()
    }
}

impl<B: TrainingBackend> DatasetFilter<B> for SpectralSignatures {
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
        let mut filtering = Filtering::of_none(set.len());
        for examples in &features.classes {
            let scores = outlier_scores(&features.rows(examples));
            let mut order: Vec<usize> = (0..examples.len()).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
            let dropped = share_down(1.5 * self.poisoned_share, examples.len());
            for &place in order.iter().take(dropped) {
                filtering.is_suspect[examples[place]] = true;
            }
            for (&example, score) in examples.iter().zip(scores) {
                filtering.scores[example] = score;
            }
        }
        Ok(filtering)
    }
}

/// The squared projection of each row, centred, on the direction of largest variance.
fn outlier_scores(rows: &[&[f64]]) -> Vec<f64> {
    let rows = centred(rows);
    match principal_axes(&rows, 1).first() {
        Some(axis) => rows.iter().map(|row| dot(row, axis).powi(2)).collect(),
        None => vec![0.0; rows.len()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detectable::Planted;

    #[test]
    fn scores_are_centred_squared_projections() {
        // The mean, (100, 0), is far from the origin, and must not matter. Along the axis (1, 0): -3, -1 and 4.
        let rows = [[97.0, 0.0], [99.0, 0.0], [104.0, 0.0]];
        let scores = outlier_scores(&[&rows[0], &rows[1], &rows[2]]);
        for (score, expected) in scores.iter().zip([9.0, 1.0, 16.0]) {
            assert!((score - expected).abs() < 1e-9, "{scores:?}");
        }
    }

    #[test]
    fn it_drops_its_share_of_every_class_and_the_poisoned_images_first() {
        let (found, filtering) = Planted::Backdoored.filtered(&SpectralSignatures::default());
        assert!(found > 0.9, "{found}");
        let dropped = filtering.is_suspect.iter().filter(|&&dropped| dropped).count();
        // 15 % of each of ten classes, rounded down.
        let all = filtering.scores.len();
        assert!(dropped <= all * 15 / 100 && dropped > all * 15 / 100 - 10, "{dropped} of {all}");
    }
}
