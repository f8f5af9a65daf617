use std::path::{Path, PathBuf};

use crate::class_counts::check_class_counts;
use crate::dataset::{DatasetConfig, load};
use crate::error::{DataError, invalid};
use crate::presence::status;
use crate::shapes::ShapesConfig;

/// What reading a whole data set has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// Where it was read; `None` if it is drawn.
    pub location: Option<PathBuf>,
    /// Training images of each class.
    pub train_counts: Vec<usize>,
    /// Test images of each class.
    pub test_counts: Vec<usize>,
    /// [`ImageSet::fingerprint`](crate::ImageSet::fingerprint) of the training and of the test images.
    pub fingerprints: [String; 2],
    /// What a reader of results must know about these images; one sentence each.
    pub notes: Vec<String>,
}

/// Reads a whole data set and compares it with what is published: file and record sizes, the range of the labels, and
/// the number of images of each class.
///
/// # Errors
///
/// Those of [`load`]; [`DataError::WrongCounts`] if a class has another number of images than published, or, for GTSRB,
/// of which there are subsets, none at all.
pub fn verify(name: &str, roots: &[PathBuf]) -> Result<Verification, DataError> {
    let config = match name {
        "cifar10" => DatasetConfig::Cifar10,
        "cifar100" => DatasetConfig::Cifar100,
        "gtsrb" => DatasetConfig::Gtsrb,
        "mnist" => DatasetConfig::Mnist,
        "fashion-mnist" => DatasetConfig::FashionMnist,
        "shapes" => DatasetConfig::Shapes(ShapesConfig::default()),
        _ => {
            let names: Vec<_> = status(&[]).iter().map(|status| status.name).collect();
            return Err(invalid("dataset", name, format!("one of {}", names.join(", "))));
        }
    };
    let dataset = load(&config, roots)?;
    let location = dataset.location.clone();
    let place = location.as_deref().unwrap_or(Path::new(name));
    check_class_counts(config.exact_class_counts(), place, &dataset.train, &dataset.test)?;
    Ok(Verification {
        location,
        train_counts: dataset.train.class_counts(),
        test_counts: dataset.test.class_counts(),
        fingerprints: [dataset.train.fingerprint(), dataset.test.fingerprint()],
        notes: dataset.notes,
    })
}
