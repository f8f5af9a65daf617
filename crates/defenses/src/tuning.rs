use patchdoor_data::AugmentationConfig;
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use patchdoor_train::{EpochRecord, Outcome, TrainError, Trainable, TrainingConfig, TrainingData, train_restricted};

use crate::{DefenseError, RepairWork};

/// Fits the defender's clean images, without augmentation; with 0 epochs, nothing happens.
pub(crate) fn tune<B: TrainingBackend>(
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
    let outcome =
        train_restricted(classifier, &data, config, trainable, work.seed, work.checkpoints, work.observer, device)?;
    match outcome {
        Outcome::Finished(trained) => Ok((trained.classifier, trained.history)),
        Outcome::Interrupted { epochs } => Err(DefenseError::Interrupted { epochs }),
    }
}

/// The problems of a `training` table.
pub(crate) fn validate_training(config: &TrainingConfig, may_be_none: bool) -> Vec<DefenseError> {
    // No training at all is no problem of the training's own.
    let epochs = if may_be_none { config.epochs.max(1) } else { config.epochs };
    let problems = TrainingConfig { epochs, ..config.clone() }.validate();
    let prefixed = problems.into_iter().map(|problem| match problem {
        TrainError::InvalidField { field, found, allowed } => {
            let allowed = if may_be_none && field == "epochs" { "0 to 100000".into() } else { allowed };
            DefenseError::InvalidField { field: format!("training.{field}"), found, allowed }
        }
        other => DefenseError::Training(other),
    });
    prefixed.collect()
}
