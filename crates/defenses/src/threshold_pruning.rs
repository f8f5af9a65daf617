use burn::module::AutodiffModule;
use patchdoor_data::ImageSet;
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use patchdoor_train::{PREDICTION_BATCH, TrainingObserver, accuracy_on};
use serde::{Deserialize, Serialize};

use crate::error::invalid;
use crate::norm_channels::{NormChannels, Silencing, prune_channels, pruned_channels};
use crate::{DefenseError, PruningStep, RepairDetails};

/// How far channels with low masks are pruned.
///
/// The threshold rises from `step` to `largest`; channels whose mask is at most the threshold lose their scale, and the shift
/// stays, as published. The first threshold that costs too much validation accuracy is undone and ends it. (The published
/// tools choose by the test set's accuracy and attack success.)
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ThresholdConfig {
    /// From one threshold to the next, in (0, 1].
    pub step: f64,
    /// In [0, 1].
    pub largest: f64,
    /// The largest drop of the validation accuracy, as a share of what it was before, in [0, 1).
    pub max_accuracy_drop: f64,
}

impl Default for ThresholdConfig {
    /// Steps of 0.05 to 0.9, as in the code of Wu and Wang (2021, arXiv:2110.14430) and Li et al. (2023, arXiv:2305.14876), and the
    /// 10 % of `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654).
    fn default() -> Self {
        Self { step: 0.05, largest: 0.9, max_accuracy_drop: 0.1 }
    }
}

impl ThresholdConfig {
    /// All problems, below the table `pruning`.
    pub(crate) fn validate(&self) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        if !(self.step > 0.0 && self.step <= 1.0) {
            problems.push(invalid("pruning.step", self.step, "a number in (0, 1]"));
        }
        if !(0.0..=1.0).contains(&self.largest) {
            problems.push(invalid("pruning.largest", self.largest, "a number in [0, 1]"));
        }
        if !(0.0..1.0).contains(&self.max_accuracy_drop) {
            problems.push(invalid("pruning.max-accuracy-drop", self.max_accuracy_drop, "a fraction in [0, 1)"));
        }
        problems
    }

    /// Few thresholds.
    pub(crate) fn make_quick(&mut self) {
        self.step = self.step.max(0.3);
    }

    /// Prunes by masks as far as validation images allow.
    pub(crate) fn prune<B: TrainingBackend>(
        &self,
        classifier: Classifier<B>,
        masks: &[NormChannels<f64>],
        validation: &ImageSet,
        observer: &dyn TrainingObserver,
        device: &B::Device,
    ) -> Result<(Classifier<B>, RepairDetails), DefenseError> {
        let plain = classifier.valid();
        let standing = |pruned: &[NormChannels<bool>]| {
            let candidate = prune_channels(plain.clone(), pruned, Silencing::Scale);
            let accuracy = accuracy_on(&candidate, validation, PREDICTION_BATCH, device);
            let count = pruned.iter().flat_map(|norm| &norm.values).filter(|&&pruned| pruned).count();
            PruningStep { pruned: count, validation_accuracy: accuracy.unwrap_or(0.0) }
        };
        let mut kept: Vec<_> = masks.iter().map(|norm| norm.map(|_| false)).collect();
        let mut steps = vec![standing(&kept)];
        let before = steps[0].validation_accuracy;
        // 0.9 / 0.05 is 17.99.. in floating point.
        let count = (self.largest / self.step + 1e-9).floor() as usize;
        for threshold in (1..=count).map(|step| self.step * step as f64) {
            if observer.is_stopped() {
                return Err(DefenseError::Interrupted { epochs: 0 });
            }
            let pruned: Vec<_> = masks.iter().map(|norm| norm.map(|&mask| mask <= threshold + 1e-9)).collect();
            if pruned == kept {
                continue;
            }
            let step = standing(&pruned);
            steps.push(step);
            if before - step.validation_accuracy > self.max_accuracy_drop * before {
                break;
            }
            kept = pruned;
        }
        let details = RepairDetails { pruned: pruned_channels(&kept), steps, ..RepairDetails::default() };
        Ok((prune_channels(classifier, &kept, Silencing::Scale), details))
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::FlexDevice;

    use super::*;
    use crate::planted::planted;

    /// Masks of the last normalization: a tenth for the first channels, one half for the next, one for the others.
    fn masks(low: usize, middle: usize) -> Vec<NormChannels<f64>> {
        let mask = |channel| {
            if channel < low {
                0.1
            } else if channel < middle {
                0.5
            } else {
                1.0
            }
        };
        vec![NormChannels { path: "norm".into(), values: (0..64).map(mask).collect() }]
    }

    fn pruned(config: &ThresholdConfig, masks: &[NormChannels<f64>]) -> (usize, Vec<usize>) {
        let planted = planted();
        let done = config.prune(planted.victim(), masks, planted.validation(), &(), &FlexDevice);
        let (_, details) = done.expect("nothing stops it");
        let kept = details.pruned.iter().map(|norm| norm.filters.len()).sum();
        (kept, details.steps.iter().map(|step| step.pruned).collect())
    }

    #[test]
    fn the_threshold_rises_until_validation_images_say_no_and_that_step_is_undone() {
        let config = ThresholdConfig::default();
        // One channel of 64 costs little; all but one of them make the classifier guess.
        assert_eq!(pruned(&config, &masks(1, 63)), (1, vec![0, 1, 63]));
        // Where any drop is allowed, the largest threshold ends it: 0.45 does not reach one half.
        let low = ThresholdConfig { largest: 0.45, max_accuracy_drop: 0.99, ..config };
        assert_eq!(pruned(&low, &masks(1, 63)), (1, vec![0, 1]));
    }

    #[test]
    fn masks_of_one_prune_nothing_and_change_nothing() {
        let planted = planted();
        let before = crate::testing::bits(&planted.victim());
        let config = ThresholdConfig::default();
        let (classifier, details) = config
            .prune(planted.victim(), &masks(0, 0), planted.validation(), &(), &FlexDevice)
            .expect("nothing stops it");
        assert!(crate::testing::bits(&classifier) == before);
        assert_eq!(details.steps.len(), 1);
    }
}
