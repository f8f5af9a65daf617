use patchdoor_data::ImageSet;
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use serde::{Deserialize, Serialize};

use crate::class_features::ClassFeatures;
use crate::error::{check_count, invalid};
use crate::two_means::Split;
use crate::{DatasetFilter, DefendedClassifier, Defense, DefenseError, Filtering};

/// Activation clustering (Chen et al. 2018, arXiv:1811.03728): splits the features of each class in two, and drops the smaller
/// cluster where it is small and well apart.
///
/// For each class, features before the head are reduced to their principal components and split by 2-means. Which cluster an image
/// is in is decided by the whole class at once. The smaller one is dropped where its share of the class is at most
/// [`largest_share`](Self::largest_share) and the mean silhouette at least [`least_silhouette`](Self::least_silhouette). The score
/// of an example is how much nearer it is to the centre of the smaller cluster than to that of the larger, over the distance of
/// the two; it does not say whether its class is suspicious. Departures: principal components instead of independent ones, as
/// most code since; 2-means starts from the two sides of the first component instead of at random.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ActivationClustering {
    /// Principal components that are clustered.
    pub components: usize,
    /// The largest share of a class that a poisoned cluster may be, in (0, 0.5].
    pub largest_share: f64,
    /// The least mean silhouette of a class that is split for poison, in [-1, 1].
    pub least_silhouette: f64,
    /// Whether a classifier is trained anew on what is left.
    pub retrain: bool,
}

impl Default for ActivationClustering {
    /// Ten components, as Chen et al.; a share of 0.35 and a silhouette of 0.1, as the Adversarial Robustness Toolbox (Nicolae et
    /// al. 2018, arXiv:1807.01069) judges; no training.
    fn default() -> Self {
        Self { components: 10, largest_share: 0.35, least_silhouette: 0.1, retrain: false }
    }
}

impl Defense for ActivationClustering {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        problems.extend(check_count("components", self.components));
        if !(self.largest_share > 0.0 && self.largest_share <= 0.5) {
            problems.push(invalid("largest-share", self.largest_share, "a fraction in (0, 0.5]"));
        }
        if !(-1.0..=1.0).contains(&self.least_silhouette) {
            problems.push(invalid("least-silhouette", self.least_silhouette, "a number in [-1, 1]"));
        }
        problems
    }
}

impl<B: TrainingBackend> DatasetFilter<B> for ActivationClustering {
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
            let Some(split) = Split::of(&features.rows(examples), self.components) else { continue };
            let drops = split.share() <= self.largest_share && split.silhouette() >= self.least_silhouette;
            for (place, &example) in examples.iter().enumerate() {
                filtering.scores[example] = split.score(place);
                filtering.is_suspect[example] = drops && split.is_smaller[place];
            }
        }
        Ok(filtering)
    }
}

#[cfg(test)]
mod tests {
    use patchdoor_metrics::DetectionOutcome;

    use super::*;
    use crate::detectable::{Planted, poisoned_images};

    #[test]
    fn it_drops_the_poisoned_images_of_the_target_class_and_few_others() {
        let (_, filtering) = Planted::Backdoored.filtered(&ActivationClustering::default());
        let outcome = DetectionOutcome::count(&filtering.is_suspect, &poisoned_images().1);
        assert!(outcome.true_positive_rate() > Some(0.9), "{outcome:?}");
        assert!(outcome.false_positive_rate() < Some(0.2), "{outcome:?}");
    }
}
