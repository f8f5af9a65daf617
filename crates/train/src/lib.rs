//! The training loop, schedules, optimisers, checkpoints and prediction.
//!
//! [`train`] fits a classifier to an image set. It knows nothing of poisoning: whoever calls it has
//! already stamped and relabelled the images. Defenses fine-tune with the same loop. Nothing here
//! prints; a [`TrainingObserver`] follows progress and may stop it.
//!
//! ```
//! use burn::backend::Autodiff;
//! use burn::module::AutodiffModule;
//! use burn_flex::{Flex, FlexDevice};
//! use patchdoor_data::{AugmentationConfig, DatasetConfig, ShapesConfig, load, stream};
//! use patchdoor_model::{ClassifierConfig, PatchMoeConfig};
//! use patchdoor_train::{Outcome, TrainingConfig, TrainingData, input_shape, predict, train};
//!
//! let shapes = DatasetConfig::Shapes(ShapesConfig { train: 16, test: 10, seed: 0 });
//! let images = load(&shapes, &[])?.train;
//! let input = input_shape(images.shape());
//! let config = ClassifierConfig::PatchMoe(PatchMoeConfig { widen_factor: 1, ..Default::default() });
//! let classifier = config.init::<Autodiff<Flex>>(input, 10, &mut stream(0, "weights"), &FlexDevice)?;
//!
//! let data = TrainingData { training: &images, validation: None, augmentation: &AugmentationConfig::default() };
//! let training = TrainingConfig { epochs: 1, batch_size: 8, ..Default::default() };
//! let Outcome::Finished(trained) = train(classifier, &data, &training, 0, None, &mut (), &FlexDevice)? else {
//!     unreachable!("nothing interrupts this training");
//! };
//! assert_eq!(predict(&trained.classifier.valid(), &images, 8, &FlexDevice).len(), 16);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adam;
mod adversarial;
mod adversarial_config;
mod batches;
mod checkpoint;
mod config;
mod diversity;
mod error;
mod gradient;
mod manifest;
mod objective;
mod observer;
mod optimizer;
mod perturbation;
mod prediction;
mod schedule;
mod sgd;
mod trainable;
mod training;

#[cfg(test)]
mod tests;

pub use adam::Adam;
pub use adversarial_config::{AdversarialConfig, AdversarialMethod, DivergenceConfig};
pub use batches::{Batch, BatchAssembler, image_batches};
pub use config::{
    AdamConfig, BatchNormStatistics, CosineConfig, OneCycleConfig, OptimizerConfig, ScheduleConfig, SgdConfig,
    StepConfig, TrainingConfig,
};
pub use diversity::DiversityConfig;
pub use error::TrainError;
pub use gradient::gradient_by;
pub use objective::{BatchPass, BatchPosition, Objective, ObjectiveState, cross_entropy, divergence};
pub use observer::{BatchProgress, Blind, ClassifierObserver, TrainingObserver};
pub use patchdoor_metrics::EpochRecord;
pub use perturbation::PerturbationConfig;
pub use prediction::{
    PREDICTION_BATCH, RoutedPrediction, Selections, accuracy_on, classes_of, input_shape, predict, predict_features,
    predict_given_routing, predict_with_routing,
};
pub use schedule::Schedule;
pub use trainable::Trainable;
pub use training::{
    Member, Outcome, Trained, TrainingData, train, train_group, train_member, train_observed, train_restricted,
    train_restricted_observed,
};
