//! Which data sets lie where.

use std::path::{Path, PathBuf};

use crate::catalog::{CatalogEntry, catalog};
use crate::error::DataError;
use crate::{forms, idx};

impl CatalogEntry {
    /// Finds the data set in the first of `roots` that has it whole, and returns its folder or its archive; a root may also
    /// be that folder itself. `docs/datasets.md` lists the forms in which it may lie there.
    ///
    /// # Errors
    ///
    /// [`DataError::Missing`] if no root has it in any form, [`DataError::Incomplete`] if those that do lack files of it.
    pub fn locate(&self, roots: &[PathBuf]) -> Result<PathBuf, DataError> {
        self.find(roots).map(|found| found.location)
    }

    /// Names of the files that `directory` lacks.
    pub(crate) fn missing_files(&self, directory: &Path) -> Vec<String> {
        if self.files == idx::FILES {
            idx::missing_files(directory)
        } else {
            forms::missing_files(directory, self.files)
        }
    }
}

/// Whether a data set can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatasetState {
    /// It is drawn, and needs no file.
    BuiltIn,
    /// Its files are here. Their content has not been looked at; [`verify`](crate::verify) does.
    Present(PathBuf),
    /// Its folder is here, but these files are missing from it.
    Incomplete(PathBuf, Vec<String>),
    /// It is in none of the places searched.
    Missing,
}

/// What is known about a data set without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetStatus {
    /// Its name, as in a configuration.
    pub name: &'static str,
    /// Its name as its authors write it, and what to cite.
    pub title: &'static str,
    /// Whether it can be used.
    pub state: DatasetState,
    /// What a user can do to have it, if it is not there.
    pub how_to_get: String,
}

/// Looks for every data set in `roots`, in that order.
pub fn status(roots: &[PathBuf]) -> Vec<DatasetStatus> {
    let built_in = DatasetStatus {
        name: "shapes",
        title: "Ten classes of drawn shapes, built in",
        state: DatasetState::BuiltIn,
        how_to_get: "it is always there".to_owned(),
    };
    let from_files = catalog().into_iter().map(|entry| DatasetStatus {
        name: entry.name,
        title: entry.title,
        state: match entry.locate(roots) {
            Ok(location) => DatasetState::Present(location),
            Err(DataError::Incomplete { directory, missing, .. }) => DatasetState::Incomplete(directory, missing),
            Err(_) => DatasetState::Missing,
        },
        how_to_get: entry.how_to_get(),
    });
    std::iter::once(built_in).chain(from_files).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::entry;
    use crate::{DatasetConfig, load, verify};

    #[test]
    fn the_first_root_that_has_the_folder_counts() {
        let roots = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let paths = roots.each_ref().map(|root| root.path().to_owned());
        let cifar100 = || status(&paths).into_iter().find(|status| status.name == "cifar100").unwrap();
        assert_eq!(cifar100().state, DatasetState::Missing);
        assert_eq!(cifar100().how_to_get, "`cargo xtask data fetch cifar100` downloads it");
        let folder = paths[1].join("cifar-100-binary");
        fs_err::create_dir(&folder).unwrap();
        fs_err::write(folder.join("test.bin"), "").unwrap();
        assert_eq!(cifar100().state, DatasetState::Incomplete(folder.clone(), vec!["train.bin".to_owned()]));
        fs_err::write(folder.join("train.bin"), "").unwrap();
        assert_eq!(cifar100().state, DatasetState::Present(folder.clone()));
        // The folder itself may be given too.
        assert_eq!(entry("cifar100").unwrap().locate(std::slice::from_ref(&folder)).unwrap(), folder);
        assert_eq!(status(&paths)[0].state, DatasetState::BuiltIn);
    }

    #[test]
    fn idx_files_may_be_gzipped() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("mnist");
        fs_err::create_dir(&folder).unwrap();
        for file in idx::FILES {
            fs_err::write(folder.join(format!("{file}.gz")), "").unwrap();
        }
        assert_eq!(entry("mnist").unwrap().locate(&[root.path().to_owned()]).unwrap(), folder);
        fs_err::rename(folder.join("t10k-labels-idx1-ubyte.gz"), folder.join("t10k-labels-idx1-ubyte")).unwrap();
        assert!(entry("mnist").unwrap().missing_files(&folder).is_empty());
    }

    #[test]
    fn a_missing_set_says_where_it_was_looked_for_and_how_to_get_it() {
        let error = load(&DatasetConfig::Cifar10, &["a".into(), "b".into()]).unwrap_err().to_string();
        assert_eq!(
            error,
            "cifar10 was not found in a/cifar-10-batches-bin, b/cifar-10-batches-bin; `cargo xtask data fetch cifar10` \
             downloads it"
        );
    }

    #[test]
    fn counts_other_than_the_published_are_an_error() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("cifar-100-binary");
        fs_err::create_dir(&folder).unwrap();
        for file in ["train.bin", "test.bin"] {
            fs_err::write(folder.join(file), [vec![0, 3], vec![0; 3072]].concat()).unwrap();
        }
        let roots = [root.path().to_owned()];
        let notes = load(&DatasetConfig::Cifar100, &roots).unwrap().notes;
        assert_eq!(notes[0], "cifar100 in part: 1 of 50000 training and 1 of 10000 test images");
        assert_eq!(notes[1], "1 of 1 test images is also a training image");
        assert_eq!(notes[2], "no training image of classes apple, aquarium_fish, baby, beaver, bed and 94 more");
        let error = verify("cifar100", &roots).unwrap_err().to_string();
        assert!(
            error.ends_with("cifar-100-binary holds 0 training images of class 0 (apple), expected 500"),
            "{error}"
        );
    }

    #[test]
    fn built_in_shapes_are_verified_and_unknown_names_refused() {
        let error = verify("cifar", &[]).unwrap_err().to_string();
        assert_eq!(error, "dataset is cifar, expected one of shapes, cifar10, cifar100, gtsrb, mnist, fashion-mnist");
    }
}
