use std::ops::ControlFlow;
use std::path::Path;

use patchdoor_data::AugmentationConfig;
use patchdoor_kernels::{TrainingBackend, differentiate};
use patchdoor_model::Classifier;
use patchdoor_train::{
    Batch, BatchPass, BatchProgress, ClassifierObserver, EpochRecord, Member, Objective, OptimizerConfig, Outcome,
    ScheduleConfig, SgdConfig, StepConfig, Trainable, TrainingConfig, TrainingData, TrainingObserver, cross_entropy,
    train_member,
};
use serde::{Deserialize, Serialize};

use crate::batch_stream::BatchStream;
use crate::defense::has_training_table;
use crate::error::{check_positive, invalid};
use crate::neuron_masks::{FactoredNorms, Factors, MaskTrainingConfig, Masks};
use crate::threshold_pruning::ThresholdConfig;
use crate::tuning::validate_training;
use crate::{DefendedClassifier, Defense, DefenseError, ModelRepair, Need, RepairWork, Repaired, Strengths};

/// Unlearns clean images, and prunes the channels that have to be masked to learn them again.
///
/// Reconstructive neuron pruning (RNP; Li et al. 2023, arXiv:2305.14876), in three stages: gradient *ascent* on clean images until
/// the accuracy on them nears chance, which leaves the backdoor; masks on the scales of that network, trained to bring the
/// accuracy back; pruning of the channels with low masks in the network from before. The published code also clips gradients,
/// but before there are any, which does nothing; nothing is clipped here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ReconstructiveNeuronPruning {
    /// The accuracy on an epoch's batches at which unlearning ends, in [0, 1].
    pub forgotten_accuracy: f64,
    /// What the loss of the masks is multiplied by, a finite number above 0.
    pub mask_loss_weight: f64,
    /// How clean images are unlearned, until they are or these epochs are over.
    pub training: TrainingConfig,
    /// How the masks are trained.
    pub masks: MaskTrainingConfig,
    /// How far is pruned.
    pub pruning: ThresholdConfig,
}

impl Default for ReconstructiveNeuronPruning {
    /// The numbers of Li et al. (2023, arXiv:2305.14876) for CIFAR-10; their 20 epochs of 500 images are 80 batches of masks.
    fn default() -> Self {
        Self {
            forgotten_accuracy: 0.2,
            mask_loss_weight: 0.2,
            training: TrainingConfig {
                epochs: 20,
                batch_size: 128,
                learning_rate: 0.01,
                optimizer: OptimizerConfig::Sgd(SgdConfig { momentum: 0.9, nesterov: false, weight_decay: 5e-4 }),
                schedule: ScheduleConfig::Step(StepConfig { epochs: vec![10], factor: 0.1 }),
                ..TrainingConfig::default()
            },
            masks: MaskTrainingConfig { steps: 80, ..MaskTrainingConfig::default() },
            pruning: ThresholdConfig::default(),
        }
    }
}

impl Defense for ReconstructiveNeuronPruning {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        if !(0.0..=1.0).contains(&self.forgotten_accuracy) {
            problems.push(invalid("forgotten-accuracy", self.forgotten_accuracy, "a number in [0, 1]"));
        }
        problems.extend(check_positive("mask-loss-weight", self.mask_loss_weight));
        problems.extend(validate_training(&self.training, false));
        problems.extend(self.masks.validate());
        problems.extend(self.pruning.validate());
        problems
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::BatchNorm, Need::ValidationImages]
    }

    /// The 5 % of `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654), as its siblings here; Li et al. have 1 %.
    fn default_clean_fraction(&self) -> f64 {
        0.05
    }

    has_training_table!();

    /// It chooses where to prune on validation images itself.
    fn strengths(&self) -> Option<Strengths> {
        None
    }

    fn make_quick(&mut self) {
        self.masks.make_quick();
        self.pruning.make_quick();
    }
}

impl<B: TrainingBackend> ModelRepair<B> for ReconstructiveNeuronPruning {
    fn repair(
        &self,
        classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        let validation =
            work.data.validation.ok_or(DefenseError::NoValidation { defense: "reconstructive-neuron-pruning" })?;
        let (unlearned, history) = self.unlearn(classifier.clone(), work, device)?;
        let network = FactoredNorms::new(unlearned);
        let mut masks = Masks::ones(&network);
        let mut batches =
            BatchStream::new(work.data.clean, self.masks.batch_size, work.seed, "defense/mask-order", device);
        for step in 0..self.masks.steps {
            if work.observer.is_stopped() {
                return Err(DefenseError::Interrupted { epochs: 0 });
            }
            let factors =
                masks.values.iter().map(|values| Factors { scale: values.clone(), shift: vec![1.0; values.len()] });
            let gradients = network.gradients(&factors.collect::<Vec<_>>(), batches.next(device));
            let gradients = gradients
                .ok_or(DefenseError::NoLoss { step })?
                .into_iter()
                .map(|gradient| gradient.scale.into_iter().map(|by| self.mask_loss_weight * by).collect::<Vec<_>>());
            masks.step(&gradients.collect::<Vec<_>>(), &self.masks);
        }
        let masks = network.named(masks.values);
        let (classifier, details) = self.pruning.prune(classifier, &masks, validation, work.observer, device)?;
        Ok(Repaired { details, ..Repaired::tuned(classifier, history) })
    }
}

impl ReconstructiveNeuronPruning {
    /// The classifier after it has forgotten the clean images. An interruption begins again: this is a few epochs.
    fn unlearn<B: TrainingBackend>(
        &self,
        classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<(Classifier<B>, Vec<EpochRecord>), DefenseError> {
        let augmentation = AugmentationConfig::default();
        let data =
            TrainingData { training: work.data.clean, validation: work.data.validation, augmentation: &augmentation };
        let mut watch = UntilForgotten {
            observer: work.observer,
            enough: self.forgotten_accuracy,
            left: None,
            history: Vec::new(),
        };
        let member = Member { classifier, data, seed: work.seed, checkpoints: None, observer: &mut watch };
        let outcome = train_member(member, &self.training, &Trainable::default(), Some(&mut Ascent), device)?;
        match (outcome, watch.left) {
            (Outcome::Finished(trained), _) => Ok((trained.classifier, trained.history)),
            (Outcome::Interrupted { .. }, Some(classifier)) => Ok((classifier, watch.history)),
            (Outcome::Interrupted { epochs }, None) => Err(DefenseError::Interrupted { epochs }),
        }
    }
}

/// The cross-entropy, to be climbed.
struct Ascent;

impl<B: TrainingBackend> Objective<B> for Ascent {
    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        differentiate(|| {
            let logits = classifier.forward(batch.images);
            let loss = cross_entropy(logits.clone(), batch.labels);
            let climbed = BatchPass::backward(classifier, &logits, &loss.neg());
            // What is shown is the loss, which rises.
            BatchPass { loss: -climbed.loss, ..climbed }
        })
    }
}

/// Ends a training after the epoch whose images were predicted no better than this.
struct UntilForgotten<'a, B: TrainingBackend> {
    observer: &'a mut dyn TrainingObserver,
    enough: f64,
    /// The classifier that has forgotten, unless somebody else stops the training.
    left: Option<Classifier<B>>,
    history: Vec<EpochRecord>,
}

impl<B: TrainingBackend> TrainingObserver for UntilForgotten<'_, B> {
    fn checkpoint_refused(&mut self, path: &Path, reason: &str) {
        self.observer.checkpoint_refused(path, reason);
    }

    fn batch_done(&mut self, progress: &BatchProgress) -> ControlFlow<()> {
        self.observer.batch_done(progress)
    }

    fn epoch_done(&mut self, record: &EpochRecord) -> ControlFlow<()> {
        self.history.push(record.clone());
        if self.observer.epoch_done(record).is_break() {
            self.left = None;
            return ControlFlow::Break(());
        }
        if self.left.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn is_stopped(&self) -> bool {
        self.observer.is_stopped()
    }
}

impl<B: TrainingBackend> ClassifierObserver<B> for UntilForgotten<'_, B> {
    fn classifier_trained(&mut self, classifier: &Classifier<B>, record: &EpochRecord) {
        if record.training_accuracy <= self.enough {
            self.left = Some(classifier.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::FlexDevice;
    use patchdoor_train::BatchNormStatistics;

    use super::*;
    use crate::DefenderData;
    use crate::planted::planted;
    use crate::testing::{Learner, ascending_filters, shapes};

    fn defense() -> ReconstructiveNeuronPruning {
        let training = TrainingConfig {
            batch_size: 40,
            learning_rate: 0.0005,
            schedule: ScheduleConfig::Constant,
            batch_norm_statistics: BatchNormStatistics::Recomputed,
            ..ReconstructiveNeuronPruning::default().training
        };
        let masks = MaskTrainingConfig { steps: 400, batch_size: 40, ..MaskTrainingConfig::default() };
        let pruning = ThresholdConfig { max_accuracy_drop: 0.05, ..ThresholdConfig::default() };
        ReconstructiveNeuronPruning { mask_loss_weight: 1.0, training, masks, pruning, ..Default::default() }
    }

    fn unlearn(defense: &ReconstructiveNeuronPruning, classifier: Classifier<Learner>) -> Vec<EpochRecord> {
        let images = shapes(40);
        let data = DefenderData { clean: &images, validation: None };
        let mut work = RepairWork { data, seed: 0, checkpoints: None, observer: &mut () };
        defense.unlearn(classifier, &mut work, &FlexDevice).expect("nothing fails").1
    }

    #[test]
    fn unlearning_climbs_and_ends_where_the_images_are_forgotten() {
        // Never forgotten enough: all epochs are taken, and the loss rises.
        let stubborn = ReconstructiveNeuronPruning {
            forgotten_accuracy: 0.0,
            training: TrainingConfig { epochs: 3, ..defense().training },
            ..defense()
        };
        let history = unlearn(&stubborn, ascending_filters());
        assert!(history.len() == 3 || history.last().is_some_and(|last| last.training_accuracy == 0.0));
        assert!(history.windows(2).all(|pair| pair[1].loss > pair[0].loss), "{history:?}");
        // Forgotten at once: one epoch is enough.
        let easy = ReconstructiveNeuronPruning { forgotten_accuracy: 1.0, ..stubborn };
        assert_eq!(unlearn(&easy, ascending_filters()).len(), 1);
    }

    #[test]
    fn where_all_is_forgotten_many_masks_fall_to_zero_at_once_and_nothing_can_be_pruned() {
        // The first threshold takes 35 channels, which costs more than a third of the accuracy, and is undone.
        let published = ReconstructiveNeuronPruning::default();
        let training = TrainingConfig { learning_rate: 0.002, ..defense().training };
        let masks = MaskTrainingConfig { batch_size: 40, ..published.masks.clone() };
        let eager = ReconstructiveNeuronPruning { training, masks, ..published };
        let repaired = planted().repair(&eager, planted().victim());
        assert!(repaired.details.pruned.iter().all(|norm| norm.filters.is_empty()), "{:?}", repaired.details);
        assert!(repaired.details.steps[1].pruned > 20, "{:?}", repaired.details.steps);
    }

    #[test]
    fn a_planted_backdoor_goes_and_the_accuracy_stays() {
        planted().assert_repairs(&defense());
    }
}
