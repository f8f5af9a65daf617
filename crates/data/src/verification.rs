use std::path::{Path, PathBuf};

use crate::catalog::status;
use crate::dataset::{DatasetConfig, load};
use crate::error::{DataError, invalid};
use crate::image_set::ImageSet;
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
    /// [`ImageSet::fingerprint`] of the training and of the test images.
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
    check_published(&config, place, &dataset.train, &dataset.test)?;
    Ok(Verification {
        location,
        train_counts: dataset.train.class_counts(),
        test_counts: dataset.test.class_counts(),
        fingerprints: [dataset.train.fingerprint(), dataset.test.fingerprint()],
        notes: dataset.notes,
    })
}

/// Compares the number of images of each class with what is published.
///
/// # Errors
///
/// [`DataError::WrongCounts`], as for [`verify`].
pub(crate) fn check_published(
    config: &DatasetConfig,
    path: &Path,
    train: &ImageSet,
    test: &ImageSet,
) -> Result<(), DataError> {
    for (split, set, published) in
        [("training", train, published_counts(config, true)), ("test", test, published_counts(config, false))]
    {
        check_counts(path, split, set, published.as_deref())?;
    }
    Ok(())
}

/// Images of each class as published, if there is one number; the shapes are as many as asked for.
fn published_counts(config: &DatasetConfig, train: bool) -> Option<Vec<usize>> {
    match config {
        DatasetConfig::Gtsrb | DatasetConfig::Shapes(_) => None,
        config => config.published_class_counts().map(|[training, test]| if train { training } else { test }),
    }
}

fn check_counts(path: &Path, split: &str, set: &ImageSet, published: Option<&[usize]>) -> Result<(), DataError> {
    let counts = set.class_counts();
    let wrong = counts.iter().enumerate().find_map(|(class, &found)| match published {
        Some(published) => (found != published[class]).then(|| (class, found, published[class].to_string())),
        None => (found == 0).then(|| (class, found, "at least one".to_owned())),
    });
    match wrong {
        None => Ok(()),
        Some((class, found, expected)) => Err(DataError::WrongCounts {
            path: path.to_owned(),
            found: format!("{found} {split} images of class {class} ({})", set.classes()[class]),
            expected,
        }),
    }
}
