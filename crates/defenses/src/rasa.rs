use burn::module::{AutodiffModule, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use patchdoor_data::{ImageSet, ImageShape};
use patchdoor_kernels::{TrainingBackend, differentiate};
use patchdoor_model::{Classifier, Part};
use patchdoor_train::{
    Batch, BatchPass, BatchPosition, Objective, PREDICTION_BATCH, Trainable, TrainingConfig, cross_entropy, divergence,
    image_batches,
};
use serde::{Deserialize, Serialize};

use crate::covered_gates::cells;
use crate::defense::has_training_table;
use crate::error::{check_weight, invalid};
use crate::reversal::ReversalConfig;
use crate::reversed_trigger::{ReversedTrigger, smallest, stamped};
use crate::tuning::{field_training, tune_on, validate_own_training};
use crate::{
    DefendedClassifier, DefenderData, Defense, DefenseError, ModelRepair, Need, RepairDetails, RepairWork, Repaired,
};

/// Tunes the experts that a reversed trigger wakes, and then pulls the routers back to what they select in clean images.
///
/// The two steps of RASA (2026, arXiv:2602.04448), which repairs language models, for experts that choose patches; the form is ours. A
/// trigger is made of every class ([`ReversalConfig`]), and the smallest that works is taken for the attack's.
/// An expert is over-active if the part of its gates on the cells that the trigger covers grows by more than
/// [`over_active`](Self::over_active) where the trigger is; if none does, the one that grows most. Epochs alternate:
///
/// 1. The over-active experts learn alone, from clean images and from the same with the trigger under their true labels. Routers and
///    trunk are frozen, so that selections are.
/// 2. The routers learn alone: the Kullback-Leibler divergence of their distribution over the patches of an image with the trigger from
///    what they had for the untouched image before the repair, counted [`router_weight`](Self::router_weight) times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Rasa {
    /// How much more of its gates an expert must give to the covered cells, in [0, 1).
    pub over_active: f64,
    /// What the routers' steps count, a finite number of 0 or more.
    pub router_weight: f64,
    /// How the trigger of a class is looked for.
    pub reversal: ReversalConfig,
    /// How the images are fitted; experts learn in the first epoch, routers in the second, and so on.
    pub training: TrainingConfig,
}

impl Default for Rasa {
    /// Three rounds of one epoch each, a threshold of 0.05 and a fiftieth of the rate for routers, as the authors; `BackdoorBench`'s SGD.
    fn default() -> Self {
        Self {
            over_active: 0.05,
            router_weight: 0.02,
            reversal: ReversalConfig::default(),
            training: TrainingConfig { batch_size: 128, ..field_training(6) },
        }
    }
}

impl Defense for Rasa {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        if !(0.0..1.0).contains(&self.over_active) {
            problems.push(invalid("over-active", self.over_active, "a fraction in [0, 1)"));
        }
        problems.extend(check_weight("router-weight", self.router_weight));
        problems.extend(self.reversal.validate());
        problems.extend(validate_own_training(&self.training));
        problems
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Experts, Need::LearningRouters]
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

impl<B: TrainingBackend> ModelRepair<B> for Rasa {
    fn repair(
        &self,
        classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        let DefenderData { clean, .. } = work.data;
        let none = || DefenseError::NoExperts { defense: "rasa" };
        let cells = cells::<B>(&classifier, clean.shape(), device).ok_or_else(none)?.inner();
        let is_stopped = || work.observer.is_stopped();
        let triggers = self.reversal.reverse(classifier.clone(), (clean, work.seed), &is_stopped, device)?;
        let target = smallest(&triggers);
        let trigger = TriggerTensors::<B::InnerBackend>::of(&triggers[target], clean.shape(), device);
        let rises = rises(&classifier.valid(), clean, &trigger, &cells, device);
        let ids = classifier.parameter_ids();
        let of = |belongs: &dyn Fn(&str) -> bool| {
            ids.iter().filter(|(path, _)| belongs(path)).map(|(_, &id)| id).collect::<Vec<_>>()
        };
        let woken = over_active(&rises, self.over_active);
        let is_woken = |path: &str| woken.iter().any(|expert| path.starts_with(&format!("experts.{expert}.")));
        let mut objective = TwoSteps {
            trigger,
            before: classifier.valid(),
            experts: of(&is_woken),
            routers: of(&|path| Part::of(path) == Part::Router),
            router_weight: self.router_weight,
            epoch: 0,
        };
        let trainable = Trainable::only(&[Part::Experts, Part::Router]);
        let (classifier, history) =
            tune_on(Some(&mut objective), classifier, &self.training, &trainable, work, device)?;
        let details = RepairDetails { targets: vec![target], ..RepairDetails::default() };
        Ok(Repaired { details, ..Repaired::tuned(classifier, history) })
    }
}

/// The experts whose part of gates on the covered cells rises by more than this, or the one that rises most.
fn over_active(rises: &[f64], least: f64) -> Vec<usize> {
    let woken = (0..rises.len()).filter(|&expert| rises[expert] > least).collect::<Vec<_>>();
    if !woken.is_empty() {
        return woken;
    }
    (0..rises.len())
        .reduce(|best, expert| if rises[expert] > rises[best] { expert } else { best })
        .into_iter()
        .collect()
}

/// A trigger on the device.
struct TriggerTensors<B: Backend> {
    /// `[1, row, column, 1]`
    mask: Tensor<B, 4>,
    /// `[1, row, column, channel]`
    pattern: Tensor<B, 4>,
}

impl<B: Backend> TriggerTensors<B> {
    fn of(trigger: &ReversedTrigger, shape: ImageShape, device: &B::Device) -> Self {
        let ImageShape { height, width, channels } = shape;
        let tensor = |values: &[f64], channels| {
            let values = values.iter().map(|&value| value as f32).collect::<Vec<_>>();
            Tensor::from_data(TensorData::new(values, [1, height, width, channels]), device)
        };
        Self { mask: tensor(&trigger.mask, 1), pattern: tensor(&trigger.pattern, channels) }
    }

    /// Images with it.
    fn stamp(&self, images: Tensor<B, 4>) -> Tensor<B, 4> {
        stamped(images, self.mask.clone(), self.pattern.clone())
    }
}

/// How much more of its gates each expert gives to the covered cells where the trigger is.
fn rises<B: patchdoor_kernels::Kernels>(
    classifier: &Classifier<B>,
    images: &ImageSet,
    trigger: &TriggerTensors<B>,
    cells: &Tensor<B, 2>,
    device: &B::Device,
) -> Vec<f64> {
    let [pixels, patches] = cells.dims();
    let covered = trigger.mask.clone().reshape([1, pixels]).matmul(cells.clone()).reshape([1, 1, patches]);
    let part = |batch: Tensor<B, 4>| {
        let (_, routings) = classifier.forward_with_routing(batch);
        let gates = routings.into_iter().next().expect("experts choose patches").weights();
        let all = gates.clone().sum_dim(2).clamp_min(1e-6);
        // `[1, expert, 1]`
        ((gates * covered.clone()).sum_dim(2) / all).sum_dim(0).into_data().iter::<f64>().collect::<Vec<_>>()
    };
    let mut sums = Vec::new();
    for batch in image_batches::<B>(images, PREDICTION_BATCH, device) {
        let [with, without] = [part(trigger.stamp(batch.clone())), part(batch)];
        sums.resize(with.len(), 0.0);
        for ((sum, with), without) in sums.iter_mut().zip(with).zip(without) {
            *sum += (with - without) / images.len() as f64;
        }
    }
    sums
}

/// Experts in even epochs, routers in odd ones.
struct TwoSteps<B: TrainingBackend> {
    trigger: TriggerTensors<B::InnerBackend>,
    /// The classifier before the repair, whose routers say what clean images select.
    before: Classifier<B::InnerBackend>,
    experts: Vec<ParamId>,
    routers: Vec<ParamId>,
    router_weight: f64,
    epoch: usize,
}

impl<B: TrainingBackend> Objective<B> for TwoSteps<B> {
    fn rewrite(&mut self, batch: Batch<B>, at: &BatchPosition<'_>) -> Batch<B> {
        self.epoch = at.epoch;
        batch
    }

    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        let stamped = Tensor::from_inner(self.trigger.stamp(batch.images.clone().inner()));
        if self.epoch.is_multiple_of(2) {
            return self.experts_pass(classifier, batch, stamped);
        }
        self.routers_pass(classifier, batch, stamped)
    }
}

impl<B: TrainingBackend> TwoSteps<B> {
    /// Clean images and the same with the trigger, under their true labels.
    fn experts_pass(&self, classifier: &Classifier<B>, batch: Batch<B>, stamped: Tensor<B, 4>) -> BatchPass {
        let count = batch.images.dims()[0];
        let labels: Tensor<B, 1, Int> = Tensor::cat(vec![batch.labels.clone(), batch.labels], 0);
        differentiate(|| {
            let logits = classifier.forward(Tensor::cat(vec![batch.images, stamped], 0));
            let loss = cross_entropy(logits.clone(), labels);
            BatchPass::backward_to(classifier, &self.experts, &logits.narrow(0, 0, count), &loss)
        })
    }

    /// What routers make of images with the trigger, towards what they made of clean ones.
    fn routers_pass(&self, classifier: &Classifier<B>, batch: Batch<B>, stamped: Tensor<B, 4>) -> BatchPass {
        let chosen = "experts choose patches";
        let (_, wanted) = self.before.forward_with_scores(batch.images.clone().inner()).expect(chosen);
        let wanted = Tensor::<B, 3>::from_inner(wanted);
        // A copy: routers alone are at work, and the experts' statistics stay.
        let routers = classifier.clone().freeze_all_but(&[Part::Router]);
        let logits = routers.valid().forward(batch.images.inner());
        differentiate(|| {
            let (_, scores) = routers.forward_with_scores(stamped).expect(chosen);
            let loss = divergence(scores, wanted) * self.router_weight;
            BatchPass::backward_to(&routers, &self.routers, &Tensor::from_inner(logits), &loss)
        })
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::activation::log_softmax;
    use burn_flex::{Flex, FlexDevice};
    use patchdoor_train::BatchNormStatistics;

    use super::*;
    use crate::planted::{SeenOn, planted};
    use crate::testing::{ascending_filters, bits, quick_training, repair_with};

    #[test]
    fn the_divergence_is_zero_of_itself_and_counts_images_and_experts() {
        // Odds of 3 to 1 against even ones: 3/4 ln(3/2) + 1/4 ln(1/2) = 0.130812; the other expert's are even.
        let scores = Tensor::<Flex, 3>::from_data([[[3f64.ln(), 0.0], [0.5, 0.5]]], &FlexDevice);
        let even = Tensor::<Flex, 3>::full([1, 2, 2], 0.5f64.ln(), &FlexDevice);
        let found = divergence(scores.clone(), even).into_scalar();
        assert!((found - 0.065_406).abs() < 1e-5, "{found}");
        assert!(divergence(scores.clone(), log_softmax(scores, 2)).into_scalar().abs() < 1e-6);
    }

    #[test]
    fn whoever_rises_is_over_active_and_someone_is() {
        assert_eq!(over_active(&[0.1, 0.04, 0.06, -0.2], 0.05), [0, 2]);
        assert_eq!(over_active(&[0.01, 0.04, -0.2], 0.05), [1]);
    }

    #[test]
    fn one_epoch_moves_an_expert_and_no_router_and_two_move_routers_too() {
        let before = bits(&ascending_filters());
        for epochs in [1, 2] {
            let mut defense = Rasa { training: TrainingConfig { epochs, ..quick_training() }, ..Rasa::default() };
            defense.reversal.make_quick();
            // No expert gives all of its gates to the trigger: the one that gives most learns.
            defense.over_active = 0.99;
            let after = bits(&repair_with(&defense, ascending_filters(), None).classifier);
            let moved = |part: &dyn Fn(&str) -> bool| {
                after.iter().filter(|(name, values)| part(name) && *values != &before[*name]).count()
            };
            assert_eq!(moved(&|name| Part::of(name) == Part::Router) > 0, epochs == 2, "{epochs}");
            assert_eq!(moved(&|name| matches!(Part::of(name), Part::Trunk | Part::Head)), 0);
            let kernels = (0..4).filter(|expert| moved(&|name| name == format!("experts.{expert}.conv.weight")) > 0);
            assert_eq!(kernels.count(), 1, "one expert learns");
        }
    }

    /// 21 % of the attack is left on the processor that this was seen on, 41 % where routers stay as they are (98 % before).
    #[test]
    fn most_of_a_planted_backdoor_goes_and_the_accuracy_stays() {
        if !SeenOn::Avx2.is_here() {
            return;
        }
        let training = TrainingConfig {
            batch_size: 40,
            learning_rate: 0.05,
            batch_norm_statistics: BatchNormStatistics::Recomputed,
            ..Rasa::default().training
        };
        let reversal = ReversalConfig::of_small_images();
        let defense = Rasa { router_weight: 1.0, reversal, training, ..Rasa::default() };
        planted().assert_leaves(0.35, &defense);
        assert_eq!(planted().repair(&defense, planted().victim()).details.targets, [0]);
    }
}
