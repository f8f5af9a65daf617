use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cifar::{RecordLayout, read_records};
use crate::error::invalid;
use crate::{DataError, ImageSet, ImageShape, catalog, folder, gtsrb, idx, labels, shapes};

/// Which images an experiment uses.
///
/// In TOML `dataset = "cifar10"`, or a table of its settings, `[dataset.folder]` and `[dataset.shapes]`;
/// `dataset = "shapes"` takes the default settings.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DatasetConfig {
    /// CIFAR-10 (Krizhevsky 2009), 32x32 RGB, 10 classes, from its binary files.
    Cifar10,
    /// CIFAR-100 (Krizhevsky 2009), 32x32 RGB, its 100 fine classes, from its binary files.
    Cifar100,
    /// The German Traffic Sign Recognition Benchmark (Stallkamp et al. 2012) at 32x32 RGB, 43 classes, in CIFAR-10's
    /// record layout.
    Gtsrb,
    /// MNIST (`LeCun` et al. 1998), 28x28 grey, 10 classes.
    Mnist,
    /// Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747), 28x28 grey, 10 classes.
    FashionMnist,
    /// A built-in set of drawn shapes, 32x32 RGB, 10 classes, which needs no file.
    Shapes(ShapesConfig),
    /// A folder of PNG and JPEG files.
    Folder(FolderConfig),
}

/// How many images of the built-in set are drawn, and from which seed.
///
/// Ten classes: disk, ring, square, frame, triangle, plus, star, crescent, stripes, dots. Place, size, turn, colours,
/// shading, specks and noise are random. As shapes are lighter than their background as often as darker, a linear
/// classifier of the pixels stays near chance, while a small convolutional network learns the set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ShapesConfig {
    /// Training images; classes take turns. A smaller set is the beginning of a larger one.
    pub train: usize,
    /// Test images.
    pub test: usize,
    /// What the images are drawn from. It belongs to the data, not to a run: all runs of a comparison share it.
    pub seed: u64,
}

impl Default for ShapesConfig {
    fn default() -> Self {
        Self { train: 4000, test: 1000, seed: 0 }
    }
}

/// Where a folder of images lies and to what size they are brought.
///
/// The folder holds `train/<class>/*.png` and `test/<class>/*.png` (or `.jpg`, `.jpeg`). Classes are numbered in the
/// order of their names, images in the order of theirs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FolderConfig {
    /// The folder; a relative path is looked for in the data folders first, then from the working directory.
    pub path: PathBuf,
    /// Height and width of the images in pixels; files of another size are resized, without keeping proportions.
    #[serde(default = "default_size")]
    pub size: usize,
}

fn default_size() -> usize {
    32
}

/// The names a configuration may use.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum DatasetName {
    Cifar10,
    Cifar100,
    Gtsrb,
    Mnist,
    FashionMnist,
    Shapes,
    Folder,
}

impl<'de> Deserialize<'de> for DatasetConfig {
    /// Derived code could not take `"shapes"` both alone and with a table.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = DatasetConfig;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("the name of a data set, or a table of one with its settings")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<DatasetConfig, E> {
                Ok(match DatasetName::deserialize(serde::de::value::StrDeserializer::new(name))? {
                    DatasetName::Cifar10 => DatasetConfig::Cifar10,
                    DatasetName::Cifar100 => DatasetConfig::Cifar100,
                    DatasetName::Gtsrb => DatasetConfig::Gtsrb,
                    DatasetName::Mnist => DatasetConfig::Mnist,
                    DatasetName::FashionMnist => DatasetConfig::FashionMnist,
                    DatasetName::Shapes => DatasetConfig::Shapes(ShapesConfig::default()),
                    DatasetName::Folder => {
                        return Err(E::custom("`folder` needs a path: write `folder = { path = \"..\" }`"));
                    }
                })
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<DatasetConfig, A::Error> {
                use serde::de::Error;
                let Some(name) = map.next_key::<DatasetName>()? else {
                    return Err(A::Error::invalid_length(0, &"one data set"));
                };
                let config = match name {
                    DatasetName::Shapes => DatasetConfig::Shapes(map.next_value()?),
                    DatasetName::Folder => DatasetConfig::Folder(map.next_value()?),
                    _ => return Err(A::Error::custom("this data set has no settings: write its name alone")),
                };
                if map.next_key::<DatasetName>()?.is_some() {
                    return Err(A::Error::invalid_length(2, &"one data set"));
                }
                Ok(config)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl DatasetConfig {
    /// The name used in configurations, in the catalog and on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cifar10 => "cifar10",
            Self::Cifar100 => "cifar100",
            Self::Gtsrb => "gtsrb",
            Self::Mnist => "mnist",
            Self::FashionMnist => "fashion-mnist",
            Self::Shapes(_) => "shapes",
            Self::Folder(_) => "folder",
        }
    }

    /// Checks every field, without looking for files, and returns all problems at once. Fields are those of the data
    /// set's own table.
    pub fn validate(&self) -> Vec<DataError> {
        let mut problems = Vec::new();
        match self {
            Self::Shapes(config) => {
                let classes = shapes::CLASSES.len();
                for (field, count) in [("train", config.train), ("test", config.test)] {
                    if !(classes..=10_000_000).contains(&count) {
                        problems.push(invalid(field, count, format!("{classes} to 10000000 images")));
                    }
                }
            }
            Self::Folder(config) => {
                if config.path.as_os_str().is_empty() {
                    problems.push(invalid("path", "empty", "a folder"));
                }
                if !(1..=1024).contains(&config.size) {
                    problems.push(invalid("size", config.size, "1 to 1024 pixels"));
                }
            }
            Self::Cifar10 | Self::Cifar100 | Self::Gtsrb | Self::Mnist | Self::FashionMnist => {}
        }
        problems
    }

    /// The shape its images will have, known before any file is read.
    pub fn shape(&self) -> ImageShape {
        match self {
            Self::Cifar10 | Self::Cifar100 | Self::Gtsrb | Self::Shapes(_) => ImageShape::RGB_32,
            Self::Mnist | Self::FashionMnist => ImageShape { height: 28, width: 28, channels: 1 },
            Self::Folder(config) => ImageShape { height: config.size, width: config.size, channels: 3 },
        }
    }

    /// Number of classes, if it is known before any file is read; a folder's is not.
    pub fn class_count(&self) -> Option<usize> {
        match self {
            Self::Cifar10 | Self::Mnist | Self::FashionMnist | Self::Shapes(_) => Some(10),
            Self::Cifar100 => Some(100),
            Self::Gtsrb => Some(43),
            Self::Folder(_) => None,
        }
    }

    /// Number of training images, if it is known before any file is read; that of a folder and of GTSRB, of which
    /// there are subsets, is not.
    pub fn training_images(&self) -> Option<usize> {
        match self {
            Self::Cifar10 | Self::Cifar100 => Some(50_000),
            Self::Mnist | Self::FashionMnist => Some(60_000),
            Self::Shapes(config) => Some(config.train),
            Self::Gtsrb | Self::Folder(_) => None,
        }
    }
}

/// A data set in memory.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The training split.
    pub train: ImageSet,
    /// The test split.
    pub test: ImageSet,
    /// Its name, as in a configuration.
    pub name: String,
    /// The folder it was read from; `None` if it was drawn.
    pub location: Option<PathBuf>,
    /// What a reader of results must know, such as that images are missing or not the originals; one sentence each.
    pub notes: Vec<String>,
}

/// Loads a data set whole into memory, from the first of `roots` that has its folder.
///
/// # Errors
///
/// [`DataError::InvalidField`] if the configuration is wrong, [`DataError::Missing`] if no root has the folder,
/// [`DataError::Incomplete`] if files are missing from it, and the errors of the readers.
pub fn load(config: &DatasetConfig, roots: &[PathBuf]) -> Result<Dataset, DataError> {
    if let Some(problem) = config.validate().into_iter().next() {
        return Err(problem);
    }
    let location = match config {
        DatasetConfig::Shapes(_) => None,
        DatasetConfig::Folder(config) => Some(folder::locate(config, roots)?),
        _ => catalog::entry(config.name()).map(|entry| entry.locate(roots)).transpose()?,
    };
    let (train, test) = match (config, location.as_deref()) {
        (DatasetConfig::Cifar10, Some(directory)) => {
            let batches = [1, 2, 3, 4, 5].map(|batch| format!("data_batch_{batch}.bin"));
            read_record_splits(directory, &batches, "test_batch.bin", RecordLayout::CIFAR10, &labels::CIFAR10)?
        }
        (DatasetConfig::Cifar100, Some(directory)) => {
            let train = ["train.bin".to_owned()];
            read_record_splits(directory, &train, "test.bin", RecordLayout::CIFAR100, &labels::CIFAR100)?
        }
        (DatasetConfig::Gtsrb, Some(directory)) => {
            let train = ["train.bin".to_owned()];
            let (train, test) =
                read_record_splits(directory, &train, "test.bin", RecordLayout::CIFAR10, &labels::GTSRB)?;
            match gtsrb::tracks(train.labels()) {
                Some(tracks) => (train.with_groups(tracks)?, test),
                None => (train, test),
            }
        }
        (DatasetConfig::Mnist, Some(directory)) => idx::read_directory(directory, &labels::MNIST)?,
        (DatasetConfig::FashionMnist, Some(directory)) => idx::read_directory(directory, &labels::FASHION_MNIST)?,
        (DatasetConfig::Folder(config), Some(directory)) => folder::read(directory, config.size)?,
        (DatasetConfig::Shapes(config), _) => shapes::draw(config)?,
        (_, None) => unreachable!("the catalog has every data set made of files"),
    };
    let notes = notes(config, location.as_deref(), &train, &test)?;
    tracing::info!(dataset = config.name(), train = train.len(), test = test.len(), "loaded");
    Ok(Dataset { train, test, name: config.name().to_owned(), location, notes })
}

fn read_record_splits(
    directory: &Path,
    train: &[String],
    test: &str,
    layout: RecordLayout,
    classes: &[&str],
) -> Result<(ImageSet, ImageSet), DataError> {
    let classes = labels::owned(classes);
    let train: Vec<PathBuf> = train.iter().map(|file| directory.join(file)).collect();
    Ok((read_records(&train, layout, classes.clone())?, read_records(&[directory.join(test)], layout, classes)?))
}

fn notes(
    config: &DatasetConfig,
    location: Option<&Path>,
    train: &ImageSet,
    test: &ImageSet,
) -> Result<Vec<String>, DataError> {
    let mut notes = Vec::new();
    // A reconstruction of CIFAR-10 lists the images that are not the original pixels.
    let lossy = location.map(|directory| directory.join("lossy_images.csv")).filter(|lossy| lossy.exists());
    if let (DatasetConfig::Cifar10, Some(lossy)) = (config, lossy) {
        let images = fs_err::read_to_string(lossy)?.lines().skip(1).filter(|line| !line.trim().is_empty()).count();
        notes.push(format!("CIFAR-10 (reconstructed; {images} images JPEG-decoded)"));
    }
    let [published_train, published_test] = match config {
        DatasetConfig::Cifar10 | DatasetConfig::Cifar100 => [50_000, 10_000],
        DatasetConfig::Gtsrb => [39_209, 12_630],
        DatasetConfig::Mnist | DatasetConfig::FashionMnist => [60_000, 10_000],
        DatasetConfig::Shapes(_) | DatasetConfig::Folder(_) => [train.len(), test.len()],
    };
    if [train.len(), test.len()] != [published_train, published_test] {
        notes.push(format!(
            "{} in part: {} of {published_train} training and {} of {published_test} test images",
            config.name(),
            train.len(),
            test.len(),
        ));
    }
    if *config == DatasetConfig::Gtsrb && train.groups().is_none() {
        notes.push("gtsrb without known tracks: a validation split shows signs that were trained on".to_owned());
    }
    Ok(notes)
}
