use std::path::Path;

use crate::error::DataError;
use crate::image_set::ImageSet;

/// Compares the number of images of each class, training and test, with what is published; where nothing is, every class
/// must have one at least.
///
/// # Errors
///
/// [`DataError::WrongCounts`] names the first class that differs.
pub(crate) fn check_class_counts(
    published: Option<[Vec<usize>; 2]>,
    path: &Path,
    train: &ImageSet,
    test: &ImageSet,
) -> Result<(), DataError> {
    let [published_train, published_test] = published.map_or([None, None], |counts| counts.map(Some));
    check_counts(path, "training", train, published_train.as_deref())?;
    check_counts(path, "test", test, published_test.as_deref())
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
