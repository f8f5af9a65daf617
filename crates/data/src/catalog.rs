//! The published data sets: where they are looked for, what belongs to them, where they come from, what is there.

use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::{forms, idx};

/// A data set made of files.
#[derive(Clone, Debug)]
pub struct CatalogEntry {
    /// Its name, as in a configuration.
    pub name: &'static str,
    /// Its name as its authors write it, and what to cite.
    pub title: &'static str,
    /// The folder it is looked for in, below a data folder.
    pub folder: &'static str,
    /// The files that must be there; a name may also end in `.gz` where the format is IDX.
    pub files: &'static [&'static str],
    /// What `fetch` downloads; nothing, if the data set has no plain download.
    pub archives: Vec<Archive>,
    /// How a user can come by it otherwise, fit to follow a semicolon; empty if there is nothing to say.
    pub by_hand: &'static str,
}

/// A file to download.
#[derive(Clone, Debug)]
pub struct Archive {
    /// Where it lies; all hold the same bytes, and they are tried in order.
    pub urls: Vec<String>,
    /// Its name.
    pub file_name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its published SHA-256 in hexadecimal.
    pub sha256: String,
    /// Whether it is a `.tar.gz` to unpack, or a file to keep as it is.
    pub unpack: bool,
}

/// All data sets made of files. The order is that of their names in a configuration's documentation.
///
/// Sizes and SHA-256 are those TensorFlow Datasets publishes (`tensorflow_datasets/url_checksums/{cifar10, cifar100,
/// mnist, fashion_mnist}.txt`); CIFAR's own page gives only MD5.
pub fn catalog() -> Vec<CatalogEntry> {
    const CIFAR: &str = "https://www.cs.toronto.edu/~kriz";
    const MNIST: [&str; 2] =
        ["https://storage.googleapis.com/cvdf-datasets/mnist", "https://ossci-datasets.s3.amazonaws.com/mnist"];
    const FASHION_MNIST: [&str; 1] = ["http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"];
    vec![
        CatalogEntry {
            name: "cifar10",
            title: "CIFAR-10 (Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009)",
            folder: "cifar-10-batches-bin",
            files: &[
                "data_batch_1.bin",
                "data_batch_2.bin",
                "data_batch_3.bin",
                "data_batch_4.bin",
                "data_batch_5.bin",
                "test_batch.bin",
            ],
            archives: vec![archive(
                &[CIFAR],
                "cifar-10-binary.tar.gz",
                170_052_171,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            )],
            by_hand: "",
        },
        CatalogEntry {
            name: "cifar100",
            title: "CIFAR-100 (Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009)",
            folder: "cifar-100-binary",
            files: &["train.bin", "test.bin"],
            archives: vec![archive(
                &[CIFAR],
                "cifar-100-binary.tar.gz",
                168_513_733,
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            )],
            by_hand: "",
        },
        CatalogEntry {
            name: "gtsrb",
            title: "GTSRB (Stallkamp, Schlipsing, Salmen, Igel, Man vs. Computer, Neural Networks 32, 2012)",
            folder: "gtsrb-32x32",
            files: &["train.bin", "test.bin"],
            archives: Vec::new(),
            by_hand: "unpack GTSRB_Final_Training_Images.zip, GTSRB_Final_Test_Images.zip and GTSRB_Final_Test_GT.zip \
                         (https://benchmark.ini.rub.de) in a data folder",
        },
        CatalogEntry {
            name: "mnist",
            title: "MNIST (LeCun, Bottou, Bengio, Haffner, Gradient-Based Learning Applied to Document Recognition, 1998)",
            folder: "mnist",
            files: &idx::FILES,
            archives: idx_archives(
                &MNIST,
                [
                    (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
                    (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
                    (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
                    (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
                ],
            ),
            by_hand: "",
        },
        CatalogEntry {
            name: "fashion-mnist",
            title: "Fashion-MNIST (Xiao, Rasul, Vollgraf, arXiv:1708.07747, 2017)",
            folder: "fashion-mnist",
            files: &idx::FILES,
            archives: idx_archives(
                &FASHION_MNIST,
                [
                    (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
                    (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
                    (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
                    (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
                ],
            ),
            by_hand: "Debian's package dataset-fashion-mnist holds it too (`--data /usr/share/datasets`)",
        },
    ]
}

/// The data set of a name, if it is one made of files.
pub fn entry(name: &str) -> Option<CatalogEntry> {
    catalog().into_iter().find(|entry| entry.name == name)
}

impl CatalogEntry {
    /// What a user can do to have the data set, fit to follow a semicolon.
    pub fn how_to_get(&self) -> String {
        let fetch = format!("`cargo xtask data fetch {}` downloads it", self.name);
        match (self.is_fetchable(), self.by_hand) {
            (true, "") => fetch,
            (true, by_hand) => format!("{fetch}; {by_hand}"),
            (false, by_hand) => by_hand.to_owned(),
        }
    }

    /// Whether `fetch` can download it.
    pub fn is_fetchable(&self) -> bool {
        !self.archives.is_empty()
    }

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

fn archive(folders: &[&str], file_name: &str, size: u64, sha256: &str) -> Archive {
    Archive {
        urls: folders.iter().map(|folder| format!("{folder}/{file_name}")).collect(),
        file_name: file_name.to_owned(),
        size,
        sha256: sha256.to_owned(),
        unpack: file_name.ends_with(".tar.gz"),
    }
}

fn idx_archives(folders: &[&str], sizes_and_sums: [(u64, &str); 4]) -> Vec<Archive> {
    let files = idx::FILES.into_iter().zip(sizes_and_sums);
    files.map(|(file, (size, sha256))| archive(folders, &format!("{file}.gz"), size, sha256)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DatasetConfig, load, verify};

    #[test]
    fn every_sum_is_a_sha256_and_every_address_names_its_file() {
        for entry in catalog() {
            for archive in entry.archives {
                assert_eq!(archive.sha256.len(), 64, "{}", archive.file_name);
                assert!(archive.sha256.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)));
                assert!(archive.urls.iter().all(|url| url.ends_with(&archive.file_name)));
            }
        }
    }

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
