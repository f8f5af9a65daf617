use std::cell::Cell;

use patchdoor_data::{ImageSet, stratified_subset, stream};
use patchdoor_kernels::TrainingBackend;
use patchdoor_metrics::share_down;
use patchdoor_model::Classifier;
use patchdoor_train::{Trainable, TrainingConfig};
use serde::{Deserialize, Serialize};

use crate::defense::has_training_table;
use crate::error::{check_fraction, check_positive};
use crate::neural_cleanse::judged;
use crate::reversal::ReversalConfig;
use crate::reversed_trigger::ReversedTrigger;
use crate::tuning::{field_training, tune, validate_training};
use crate::{
    DefendedClassifier, DefenderData, Defense, DefenseError, ModelRepair, Need, RepairDetails, RepairWork, Repaired,
};

/// Unlearns the triggers that Neural Cleanse makes: trains on clean images of which some carry them under their true labels.
///
/// The repair of Wang et al. (2019, IEEE S&P). Triggers are made and judged as [`NeuralCleanse`](crate::NeuralCleanse) does it;
/// those of the flagged classes are stamped, in turn, on a share of the clean images. If no class is flagged, it is fine-tuning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct NeuralCleanseUnlearning {
    /// Share of the clean images that are stamped, rounded down, in [0, 1].
    pub stamped_fraction: f64,
    /// The score above which a class is flagged, a finite number above 0.
    pub anomaly: f64,
    /// How the trigger of a class is looked for.
    pub reversal: ReversalConfig,
    /// How the images are fitted.
    pub training: TrainingConfig,
}

impl Default for NeuralCleanseUnlearning {
    /// 20 % of the images, as Wang et al. (2019), who train one epoch; 100 epochs as `BackdoorBench` (Wu et al. 2022,
    /// arXiv:2206.12654).
    fn default() -> Self {
        Self { stamped_fraction: 0.2, anomaly: 2.0, reversal: ReversalConfig::default(), training: field_training(100) }
    }
}

impl Defense for NeuralCleanseUnlearning {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        problems.extend(check_fraction("stamped-fraction", self.stamped_fraction));
        problems.extend(check_positive("anomaly", self.anomaly));
        problems.extend(self.reversal.validate());
        problems.extend(validate_training(&self.training, false));
        problems
    }

    fn needs(&self) -> &'static [Need] {
        if self.reversal.asks_routers() { &[Need::Experts] } else { &[] }
    }

    /// The 5 % of `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654).
    fn default_clean_fraction(&self) -> f64 {
        0.05
    }

    has_training_table!();

    fn make_quick(&mut self) {
        self.reversal.make_quick();
    }
}

impl<B: TrainingBackend> ModelRepair<B> for NeuralCleanseUnlearning {
    fn repair(
        &self,
        classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        let lacks_routers = self.reversal.asks_routers() && classifier.config().network().experts().is_none();
        if lacks_routers {
            return Err(DefenseError::NoExperts { defense: "neural-cleanse-unlearning" });
        }
        let DefenderData { clean, validation } = work.data;
        let is_stopped = || work.observer.is_stopped();
        let triggers = self.reversal.reverse(classifier.clone(), (clean, work.seed), &is_stopped, device)?;
        let is_flagged = judged(&triggers, self.anomaly).is_flagged;
        let targets = (0..triggers.len()).filter(|&class| is_flagged[class]).collect::<Vec<_>>();
        let flagged = targets.iter().map(|&class| &triggers[class]).collect::<Vec<_>>();
        let stamped = stamped(clean, &flagged, self.stamped_fraction, work.seed);
        let mut unlearning = RepairWork {
            data: DefenderData { clean: &stamped, validation },
            seed: work.seed,
            checkpoints: work.checkpoints,
            observer: &mut *work.observer,
        };
        let (classifier, history) = tune(classifier, &self.training, &Trainable::default(), &mut unlearning, device)?;
        let details = RepairDetails { targets, ..RepairDetails::default() };
        Ok(Repaired { details, ..Repaired::tuned(classifier, history) })
    }
}

/// A share of the images with the triggers, which take turns, under their true labels.
fn stamped(images: &ImageSet, triggers: &[&ReversedTrigger], fraction: f64, seed: u64) -> ImageSet {
    let count = share_down(fraction, images.len());
    if triggers.is_empty() || count == 0 {
        return images.clone();
    }
    let drawn = stratified_subset(images, count, &mut stream(seed, "defense/stamped"));
    let turn = Cell::new(0);
    let of_image = |index: usize| {
        if drawn.binary_search(&index).is_err() {
            return images.pixels(index).to_vec();
        }
        turn.set(turn.get() + 1);
        triggers[(turn.get() - 1) % triggers.len()].stamp(images.pixels(index))
    };
    let pixels = (0..images.len()).flat_map(of_image).collect();
    ImageSet::new(images.shape(), pixels, images.labels().to_vec(), images.classes().to_vec())
        .expect("as many pixels as before")
}

#[cfg(test)]
mod tests {
    use patchdoor_train::BatchNormStatistics;

    use super::*;
    use crate::planted::{SeenOn, planted};

    #[test]
    fn a_share_of_the_images_is_stamped_and_all_keep_their_labels() {
        let images = planted().validation();
        let shape = images.shape();
        let all = ReversedTrigger::even(shape, 1.0, 1.0, true);
        let none = ReversedTrigger::even(shape, 1.0, 0.0, true);
        let found = stamped(images, &[&all, &none], 0.2, 0);
        let of = |value: u8| (0..200).filter(|&i| found.pixels(i).iter().all(|&pixel| pixel == value)).count();
        // 40 of 200, in turn.
        assert_eq!((of(255), of(0)), (20, 20));
        assert_eq!((0..200).filter(|&index| found.pixels(index) != images.pixels(index)).count(), 40);
        assert_eq!(found.labels(), images.labels());
        assert!(stamped(images, &[], 0.2, 0).all_pixels() == images.all_pixels(), "no trigger, no change");
    }

    #[test]
    fn a_planted_backdoor_goes_and_the_accuracy_stays() {
        if !SeenOn::Avx512.is_here() {
            return;
        }
        let training = TrainingConfig {
            batch_size: 40,
            batch_norm_statistics: BatchNormStatistics::Recomputed,
            ..field_training(5)
        };
        let reversal = ReversalConfig::of_small_images();
        // As in the test of the inspector.
        let defense = NeuralCleanseUnlearning { training, reversal, anomaly: 1.5, ..Default::default() };
        planted().assert_repairs(&defense);
        let repaired = planted().repair(&defense, planted().victim());
        assert_eq!(repaired.details.targets, [0]);
    }
}
