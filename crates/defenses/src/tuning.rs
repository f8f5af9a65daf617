use patchdoor_data::AugmentationConfig;
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use patchdoor_train::{
    Blind, CosineConfig, EpochRecord, Member, Objective, OptimizerConfig, Outcome, ScheduleConfig, SgdConfig,
    TrainError, Trainable, TrainingConfig, TrainingData, train_member,
};

use crate::error::invalid;
use crate::{DefenseError, RepairWork};

/// How `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654) trains in most of its defenses of CIFAR-10: SGD with momentum and
/// weight decay, batches of 256 and half a cosine from 0.01 to 0.
pub(crate) fn field_training(epochs: usize) -> TrainingConfig {
    TrainingConfig {
        epochs,
        batch_size: 256,
        learning_rate: 0.01,
        optimizer: OptimizerConfig::Sgd(SgdConfig { momentum: 0.9, nesterov: false, weight_decay: 5e-4 }),
        schedule: ScheduleConfig::Cosine(CosineConfig { floor: 0.0 }),
        ..TrainingConfig::default()
    }
}

/// Fits the defender's clean images, without augmentation; with 0 epochs, nothing happens.
pub(crate) fn tune<B: TrainingBackend>(
    classifier: Classifier<B>,
    config: &TrainingConfig,
    trainable: &Trainable,
    work: &mut RepairWork<'_>,
    device: &B::Device,
) -> Result<(Classifier<B>, Vec<EpochRecord>), DefenseError> {
    tune_on(None, classifier, config, trainable, work, device)
}

/// Like [`tune`], on an objective of one's own if there is one.
pub(crate) fn tune_on<B: TrainingBackend>(
    objective: Option<&mut dyn Objective<B>>,
    classifier: Classifier<B>,
    config: &TrainingConfig,
    trainable: &Trainable,
    work: &mut RepairWork<'_>,
    device: &B::Device,
) -> Result<(Classifier<B>, Vec<EpochRecord>), DefenseError> {
    if config.epochs == 0 {
        return Ok((classifier, Vec::new()));
    }
    let augmentation = AugmentationConfig::default();
    let data =
        TrainingData { training: work.data.clean, validation: work.data.validation, augmentation: &augmentation };
    let observer = &mut Blind(work.observer);
    let member = Member { classifier, data, seed: work.seed, checkpoints: work.checkpoints, observer };
    match train_member(member, config, trainable, objective, device)? {
        Outcome::Finished(trained) => Ok((trained.classifier, trained.history)),
        Outcome::Interrupted { epochs } => Err(DefenseError::Interrupted { epochs }),
    }
}

/// The problems of a `training` table.
pub(crate) fn validate_training(config: &TrainingConfig, may_be_none: bool) -> Vec<DefenseError> {
    validate_training_in("training", config, may_be_none)
}

/// The problems of a `training` table of a defense that has a rule of its own for every step.
pub(crate) fn validate_own_training(config: &TrainingConfig) -> Vec<DefenseError> {
    let mut problems = validate_training(config, false);
    problems.extend(
        config.own_objective().map(|table| {
            invalid(&format!("training.{table}"), "given", "none, as this training has a rule of its own")
        }),
    );
    problems
}

/// The problems of a table of training of another name.
pub(crate) fn validate_training_in(table: &str, config: &TrainingConfig, may_be_none: bool) -> Vec<DefenseError> {
    // No training at all is no problem of the training's own.
    let epochs = if may_be_none { config.epochs.max(1) } else { config.epochs };
    let problems = TrainingConfig { epochs, ..config.clone() }.validate();
    let prefixed = problems.into_iter().map(|problem| match problem {
        TrainError::InvalidField { field, found, allowed } => {
            let allowed = if may_be_none && field == "epochs" { "0 to 100000".into() } else { allowed };
            DefenseError::InvalidField { field: format!("{table}.{field}"), found, allowed }
        }
        other => DefenseError::Training(other),
    });
    prefixed.collect()
}
