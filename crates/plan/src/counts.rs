use patchdoor_data::{Budget, CleanLabel, LabelRule, PoisoningConfig};

use crate::amount::share_of;
use crate::config::{DataConfig, ExperimentConfig};
use crate::facts::DatasetFacts;

/// A number of images for each purpose, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageCounts {
    /// Images trained on.
    pub training: Option<usize>,
    /// Images held out of training.
    pub validation: Option<usize>,
    /// Images tested on.
    pub test: Option<usize>,
    /// Training images that are poisoned.
    pub poisoned: Option<usize>,
}

/// How many of a training split's images are held out for validation, and how many that leaves to train on.
pub(crate) fn split_of(images: usize, validation_fraction: f64) -> (usize, usize) {
    let held_out = share_of(images, validation_fraction);
    (held_out, images - held_out)
}

/// How many images are drawn to train on and to validate on, if not all are.
pub fn split_sizes(data: &DataConfig) -> Option<(usize, usize)> {
    let fraction = data.validation_fraction;
    data.training_images.map(|count| (count, share_of(count, fraction / (1.0 - fraction))))
}

/// How many images serve each purpose.
pub(crate) fn counts(config: &ExperimentConfig, facts: &DatasetFacts) -> ImageCounts {
    let fraction = config.data.validation_fraction.clamp(0.0, 0.5);
    let (held_out, rest) = facts.training_images.map(|images| split_of(images, fraction)).unzip();
    let training = config.data.training_images.or(rest);
    let validation = match config.data.training_images {
        Some(training) => Some(share_of(training, fraction / (1.0 - fraction)).min(held_out.unwrap_or(usize::MAX))),
        None => held_out,
    };
    ImageCounts {
        training,
        validation,
        test: config.data.test_images.or(facts.test_images),
        poisoned: training.filter(|_| is_of_all_images(&config.poisoning)).map(|images| config.poisoning.count(images)),
    }
}

/// Whether the poisoning rate is a fraction of all training images, whose number is known before they are read.
fn is_of_all_images(poisoning: &PoisoningConfig) -> bool {
    !matches!(poisoning.label_rule, LabelRule::CleanLabel(CleanLabel { budget: Budget::TargetClass }))
}
