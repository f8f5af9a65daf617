use burn::module::AutodiffModule;
use patchdoor_kernels::TrainingBackend;
use patchdoor_metrics::share_up;
use patchdoor_model::{Classifier, Pruning, Removal};
use patchdoor_train::{Trainable, TrainingConfig, accuracy_on};
use serde::{Deserialize, Serialize};

use crate::defense::has_training_table;
use crate::error::{check_count, check_share, invalid};
use crate::filter_scores::{FilterScore, filter_scores, lowest_first, pruned_filters, scored_images};
use crate::tuning::{field_training, tune, validate_training};
use crate::{
    DefendedClassifier, Defense, DefenseError, ModelRepair, Need, PruningStep, RepairDetails, RepairWork, Repaired,
};

/// Prunes the least active filters step by step until the validation accuracy drops, then trains the rest.
///
/// Fine-Pruning (Liu et al. 2018, arXiv:1805.12185) as `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654) does it:
/// filters of all experts in one order; a pruned filter loses its column of the head, so that nothing of it reaches a
/// class, and stays away in training. Two differences: it stops by validation images, where the published tool looks at
/// the test set, and the weights of pruned filters become zero too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct StepwiseFinePruning {
    /// The largest drop of the validation accuracy, as a share of what it was before, in [0, 1).
    pub max_accuracy_drop: f64,
    /// Share of all filters that one step prunes, rounded up, in (0, 1].
    pub step_fraction: f64,
    /// What filters are judged by.
    pub score: FilterScore,
    /// How many of the defender's images they are judged on, at most.
    pub scored_images: usize,
    /// How a filter is pruned: `channel`, its weights and its column of the head, `activation`, its output after normalization
    /// and rectifier, or `weights` alone. It stays so in training.
    #[serde(skip_serializing_if = "Removal::is_channel")]
    pub how: Removal,
    /// How the defender's images are fitted afterwards; 0 epochs prune alone.
    pub training: TrainingConfig,
}

impl Default for StepwiseFinePruning {
    /// The numbers of `BackdoorBench` for CIFAR-10: 10 %, steps of 1 %, then 100 epochs of SGD with momentum and weight
    /// decay, batches of 256 and half a cosine from 0.01 to 0.
    fn default() -> Self {
        Self {
            max_accuracy_drop: 0.1,
            step_fraction: 0.01,
            score: FilterScore::Activation,
            scored_images: 10_000,
            how: Removal::Channel,
            training: field_training(100),
        }
    }
}

impl Defense for StepwiseFinePruning {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        if !(0.0..1.0).contains(&self.max_accuracy_drop) {
            problems.push(invalid("max-accuracy-drop", self.max_accuracy_drop, "a fraction in [0, 1)"));
        }
        problems.extend(check_share("step-fraction", self.step_fraction));
        problems.extend(check_count("scored-images", self.scored_images));
        problems.extend(validate_training(&self.training, true));
        problems
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::ValidationImages]
    }

    /// The 5 % of `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654).
    fn default_clean_fraction(&self) -> f64 {
        0.05
    }

    fn make_quick(&mut self) {
        self.step_fraction = self.step_fraction.max(0.2);
    }

    has_training_table!();
}

impl<B: TrainingBackend> ModelRepair<B> for StepwiseFinePruning {
    fn repair(
        &self,
        classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        let validation = work.data.validation.ok_or(DefenseError::NoValidation { defense: "stepwise-fine-pruning" })?;
        let images = scored_images(work.data.clean, self.scored_images, work.seed, "stepwise-fine-pruning")?;
        let plain = classifier.valid();
        let order = lowest_first(&filter_scores(&plain, &images, self.score, device));
        let standing = |classifier: &Classifier<B::InnerBackend>| {
            accuracy_on(classifier, validation, self.training.batch_size, device).unwrap_or(0.0)
        };
        let before = standing(&plain);
        let step = share_up(self.step_fraction, order.len()).max(1);
        let (mut kept, mut steps) = (0, vec![PruningStep { pruned: 0, validation_accuracy: before }]);
        // One filter is always left.
        for pruned in (step..order.len()).step_by(step) {
            if work.observer.is_stopped() {
                return Err(DefenseError::Interrupted { epochs: 0 });
            }
            let pruning = Pruning::of(&order[..pruned], order.len(), self.how);
            let validation_accuracy = standing(&plain.clone().prune(&pruning));
            steps.push(PruningStep { pruned, validation_accuracy });
            if before - validation_accuracy > self.max_accuracy_drop * before {
                break;
            }
            kept = pruned;
        }
        let pruning = Pruning::of(&order[..kept], order.len(), self.how);
        let pruned = pruned_filters(&order[..kept], &classifier.filter_groups());
        let details = RepairDetails { pruned, steps, ..RepairDetails::default() };
        let classifier = classifier.prune(&pruning);
        let (classifier, history) = tune(classifier, &self.training, &Trainable::without(pruning), work, device)?;
        Ok(Repaired { details, ..Repaired::tuned(classifier, history) })
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use burn_flex::FlexDevice;
    use patchdoor_data::ImageSet;
    use patchdoor_train::TrainingObserver;

    use super::*;
    use crate::DefenderData;
    use crate::testing::{Learner, alive, constant_filters, quick_training, shapes, tensor};

    /// All images are taken for class 0 as long as filter 40 is there, whose feature alone speaks for it, and for class
    /// 1 without.
    fn one_filter_decides() -> Classifier<Learner> {
        let biases: Vec<f32> = (0..64u8).map(f32::from).collect();
        let classifier = alive(constant_filters(&biases));
        let mut weight = vec![0.0f32; 640];
        weight[40] = 1.0;
        let mut bias = vec![0.0f32; 10];
        bias[1] = 1.0;
        let tensors = [("head.weight", TensorData::new(weight, [10, 64])), ("head.bias", TensorData::new(bias, [10]))];
        classifier.with_tensors(tensors.map(|(name, data)| (name.to_owned(), data)).into())
    }

    fn of_class(class: u8) -> ImageSet {
        let images = shapes(40);
        let indices: Vec<usize> = (0..40).filter(|&index| images.label(index) == class).collect();
        images.subset(&indices)
    }

    fn repair(defense: &StepwiseFinePruning, clean: &ImageSet, validation: &ImageSet) -> Repaired<Learner> {
        let data = DefenderData { clean, validation: Some(validation) };
        let mut work = RepairWork { data, seed: 0, checkpoints: None, observer: &mut () };
        defense.repair(one_filter_decides(), &mut work, &FlexDevice).expect("nothing fails")
    }

    #[test]
    fn pruning_stops_before_the_step_that_costs_validation_accuracy() {
        let alone = TrainingConfig { epochs: 0, ..TrainingConfig::default() };
        // ceil(0.1 * 64) = 7 filters a step, the least active first: 35 leave filter 40, 42 do not.
        let defense = StepwiseFinePruning { step_fraction: 0.1, training: alone, ..Default::default() };
        let repaired = repair(&defense, &of_class(3), &of_class(0));
        let steps = repaired.details.steps.iter().map(|step| (step.pruned, step.validation_accuracy > 0.5));
        let expected = [(0, true), (7, true), (14, true), (21, true), (28, true), (35, true), (42, false)];
        assert_eq!(steps.collect::<Vec<_>>(), expected);
        let pruned = repaired.details.pruned.iter().map(|layer| layer.filters.len()).collect::<Vec<_>>();
        assert_eq!(pruned, [16, 16, 3, 0]);
        // The images that the defender trains on do not decide: of class 3 or of class 0, the stop is the same.
        let other = repair(&defense, &of_class(0), &of_class(0));
        assert_eq!(other.details, repaired.details);
        // Where validation images lose nothing, all but the last filter go.
        let gaining = repair(&defense, &of_class(0), &of_class(3));
        assert_eq!(gaining.details.steps.last().map(|step| step.pruned), Some(63));
    }

    #[test]
    fn masking_activations_silences_the_same_filters_step_by_step() {
        let alone = TrainingConfig { epochs: 0, ..TrainingConfig::default() };
        let by_channel = StepwiseFinePruning { step_fraction: 0.1, training: alone, ..Default::default() };
        let by_activation = StepwiseFinePruning { how: Removal::Activation, ..by_channel.clone() };
        let [channel, activation] =
            [&by_channel, &by_activation].map(|defense| repair(defense, &of_class(3), &of_class(0)));
        assert_eq!(activation.details, channel.details);
        let gamma = tensor(&activation.classifier, "norm.gamma");
        assert!(gamma.iter().enumerate().all(|(filter, &scale)| (scale == 0.0) == (filter < 35)), "{gamma:?}");
        // By weights alone nothing is silenced: the filters' constants go on as before, and all but one go.
        let weights = repair(&StepwiseFinePruning { how: Removal::Weights, ..by_channel }, &of_class(3), &of_class(0));
        assert!(tensor(&weights.classifier, "norm.gamma").iter().all(|&scale| scale != 0.0));
    }

    #[test]
    fn pruned_filters_reach_no_class_and_stay_away_in_training() {
        let defense = StepwiseFinePruning { step_fraction: 0.1, training: quick_training(), ..Default::default() };
        let repaired = repair(&defense, &shapes(40), &of_class(0));
        assert_eq!(repaired.history.len(), quick_training().epochs);
        let head = tensor(&repaired.classifier, "head.weight");
        for filter in 0..64 {
            let silent = (0..10).all(|class| head[class * 64 + filter] == 0.0);
            assert_eq!(silent, filter < 35, "filter {filter}");
        }
        assert!(tensor(&repaired.classifier, "experts.1.conv.weight").iter().all(|&weight| weight == 0.0));
    }

    #[test]
    fn a_stop_is_heard_between_the_steps_of_pruning() {
        struct Stopped;
        impl TrainingObserver for Stopped {
            fn is_stopped(&self) -> bool {
                true
            }
        }
        let images = shapes(10);
        let data = DefenderData { clean: &images, validation: Some(&images) };
        let mut work = RepairWork { data, seed: 0, checkpoints: None, observer: &mut Stopped };
        let defense = StepwiseFinePruning::default();
        let error = defense.repair(one_filter_decides(), &mut work, &FlexDevice).expect_err("it is stopped");
        assert!(matches!(error, DefenseError::Interrupted { epochs: 0 }), "{error}");
    }

    #[test]
    fn without_validation_images_it_says_so() {
        let clean = shapes(10);
        let data = DefenderData { clean: &clean, validation: None };
        let mut work = RepairWork { data, seed: 0, checkpoints: None, observer: &mut () };
        let defense = StepwiseFinePruning::default();
        let error = defense.repair(one_filter_decides(), &mut work, &FlexDevice).expect_err("none");
        assert!(matches!(error, DefenseError::NoValidation { .. }), "{error}");
    }
}
