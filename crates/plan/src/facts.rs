use std::sync::Arc;

use patchdoor_data::{DatasetConfig, ImageSet, ImageShape, class_names_of};
use serde::Serialize;
use serde_json::Value;

/// What a plan is checked against: sizes of a data set, as far as they are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetFacts {
    /// Images of the training split, before validation images are held out.
    pub training_images: Option<usize>,
    /// Images of the test split.
    pub test_images: Option<usize>,
    /// Height, width and channels of each.
    pub shape: ImageShape,
    /// Number of classes.
    pub classes: Option<usize>,
    /// Their names, in the order of their labels.
    pub class_names: Option<Arc<[String]>>,
    /// Images of each class in the training and in the test split.
    pub class_counts: Option<[Arc<[usize]>; 2]>,
    /// Whether some training images belong together, so that what a class keeps for training depends on how they lie.
    pub has_groups: bool,
}

impl DatasetFacts {
    /// What is known before any file is read.
    pub fn published(dataset: &DatasetConfig) -> Self {
        let test_images = match dataset {
            DatasetConfig::Cifar10 | DatasetConfig::Cifar100 | DatasetConfig::Mnist | DatasetConfig::FashionMnist => {
                Some(10_000)
            }
            DatasetConfig::Shapes(shapes) => Some(shapes.test),
            DatasetConfig::Gtsrb | DatasetConfig::Folder(_) => None,
        };
        Self {
            training_images: dataset.training_images(),
            test_images,
            shape: dataset.shape(),
            classes: dataset.class_count(),
            class_names: class_names_of(dataset.name()).map(|names| names.iter().map(ToString::to_string).collect()),
            class_counts: dataset.published_class_counts().map(|counts| counts.map(Into::into)),
            has_groups: matches!(dataset, DatasetConfig::Gtsrb),
        }
    }

    /// What is true of a data set in memory.
    pub fn of(train: &ImageSet, test: &ImageSet) -> Self {
        Self {
            training_images: Some(train.len()),
            test_images: Some(test.len()),
            shape: train.shape(),
            classes: Some(train.class_count()),
            class_names: Some(train.classes().into()),
            class_counts: Some([train, test].map(|split| split.class_counts().into())),
            has_groups: train.groups().is_some(),
        }
    }

    /// A class by number and name, as far as the name is known: `3 (cat)`.
    pub fn class_in_words(&self, class: u8) -> String {
        let name = self.class_names.as_ref().and_then(|names| names.get(usize::from(class)));
        // MNIST's digits are called what they are.
        match name.filter(|name| **name != class.to_string()) {
            Some(name) => format!("{class} ({name})"),
            None => class.to_string(),
        }
    }
}

/// Name of a choice as a configuration writes it: `cifar10`, `square`, `patch-moe`.
///
/// The choices are externally tagged enums, so the name is what they serialize to, or its only key.
///
/// # Panics
/// If the choice cannot be written as JSON; configurations always can.
pub fn choice_name(choice: &impl Serialize) -> String {
    match serde_json::to_value(choice).expect("configurations are plain data") {
        Value::String(name) => name,
        Value::Object(table) => table.into_iter().next().map(|(name, _)| name).unwrap_or_default(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use patchdoor_model::{ClassifierConfig, WideResNetConfig};

    use super::*;

    #[test]
    fn a_choice_is_named_as_its_table() {
        assert_eq!(choice_name(&DatasetConfig::Cifar10), "cifar10");
        assert_eq!(choice_name(&DatasetConfig::Shapes(patchdoor_data::ShapesConfig::default())), "shapes");
        assert_eq!(choice_name(&ClassifierConfig::WideResnet(WideResNetConfig::default())), "wide-resnet");
    }
}
