//! The published data sets: where they are looked for, what belongs to them, where they come from, what is there.

use crate::idx;

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
}
