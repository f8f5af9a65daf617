use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cifar::{RecordLayout, read_records};
use crate::class_counts::check_class_counts;
use crate::error::invalid;
use crate::folder::FolderConfig;
use crate::forms::{self, Form};
use crate::shapes::ShapesConfig;
use crate::{DataError, ImageSet, ImageShape, catalog, duplicates, folder, gtsrb, gtsrb_files, idx, labels, shapes};

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
            Self::Folder(config) => problems.extend(config.validate()),
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

/// Loads a data set whole into memory, from the first of `roots` that has all its files.
///
/// # Errors
///
/// [`DataError::InvalidField`] if the configuration is wrong, [`DataError::Missing`] if no root has the folder,
/// [`DataError::Incomplete`] if files are missing from it, and the errors of the readers.
pub fn load(config: &DatasetConfig, roots: &[PathBuf]) -> Result<Dataset, DataError> {
    if let Some(problem) = config.validate().into_iter().next() {
        return Err(problem);
    }
    let Loaded { location, train, test, mut notes } = match config {
        DatasetConfig::Shapes(config) => {
            let (train, test) = shapes::draw(config)?;
            Loaded { location: None, train, test, notes: Vec::new() }
        }
        DatasetConfig::Folder(config) => {
            let directory = folder::locate(config, roots)?;
            let images = folder::read(&directory, config)?;
            Loaded { location: Some(directory), train: images.train, test: images.test, notes: images.notes }
        }
        _ => published(config, roots)?,
    };
    notes.extend(facts(config, location.as_deref(), &train, &test)?);
    tracing::info!(dataset = config.name(), train = train.len(), test = test.len(), "loaded");
    Ok(Dataset { train, test, name: config.name().to_owned(), location, notes })
}

/// What a reader has made.
struct Loaded {
    location: Option<PathBuf>,
    train: ImageSet,
    test: ImageSet,
    notes: Vec<String>,
}

/// Reads a published data set, in whatever form it lies in `roots`.
fn published(config: &DatasetConfig, roots: &[PathBuf]) -> Result<Loaded, DataError> {
    let entry = catalog::entry(config.name()).expect("the catalog has every data set made of files");
    let found = entry.find(roots)?;
    let mut notes = Vec::new();
    let batches = |layout, classes: &[&str]| {
        let classes = labels::owned(classes);
        let (train, test) = forms::batches(&entry, &found, layout)?;
        Ok::<_, DataError>((read_records(&train, layout, classes.clone())?, read_records(&[test], layout, classes)?))
    };
    let (train, test) = match (config, &found.form) {
        (DatasetConfig::Gtsrb, Form::Signs(files)) => {
            let (train, test, about) = gtsrb_files::read(files)?;
            notes.extend(about);
            (train, test)
        }
        (DatasetConfig::Gtsrb, _) => {
            let (train, test) = batches(RecordLayout::CIFAR10, &labels::GTSRB)?;
            match gtsrb::tracks(train.labels()) {
                Some(tracks) => (train.with_groups(tracks)?, test),
                None => (train, test),
            }
        }
        (DatasetConfig::Mnist, _) => idx::read_directory(&found.location, &labels::MNIST)?,
        (DatasetConfig::FashionMnist, _) => idx::read_directory(&found.location, &labels::FASHION_MNIST)?,
        (DatasetConfig::Cifar100, _) => batches(RecordLayout::CIFAR100, &labels::CIFAR100)?,
        _ => batches(RecordLayout::CIFAR10, &labels::CIFAR10)?,
    };
    Ok(Loaded { location: Some(found.location), train, test, notes })
}

fn facts(
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
    } else if let (Some(location), false) = (location, matches!(config, DatasetConfig::Folder(_))) {
        check_class_counts(config.exact_class_counts(), location, train, test)?;
    }
    if *config == DatasetConfig::Gtsrb && train.groups().is_none() {
        notes.push("gtsrb without known tracks: a validation split shows signs that were trained on".to_owned());
    }
    if !matches!(config, DatasetConfig::Shapes(_)) {
        notes.extend(duplicates::notes(train, test));
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{split, stream};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct File {
        dataset: DatasetConfig,
    }

    fn parse(text: &str) -> Result<DatasetConfig, toml::de::Error> {
        toml::from_str::<File>(text).map(|file| file.dataset)
    }

    #[test]
    fn a_data_set_is_a_name_or_a_table() {
        assert_eq!(parse("dataset = \"cifar10\"").unwrap(), DatasetConfig::Cifar10);
        assert_eq!(parse("dataset = \"fashion-mnist\"").unwrap(), DatasetConfig::FashionMnist);
        assert_eq!(parse("dataset = \"shapes\"").unwrap(), DatasetConfig::Shapes(ShapesConfig::default()));
        let shapes = ShapesConfig { train: 50, ..ShapesConfig::default() };
        assert_eq!(parse("[dataset.shapes]\ntrain = 50").unwrap(), DatasetConfig::Shapes(shapes));
        let folder = FolderConfig::new("here", 32);
        assert_eq!(parse("dataset.folder.path = \"here\"").unwrap(), DatasetConfig::Folder(folder));
    }

    #[test]
    fn every_configuration_survives_toml() {
        let folder = FolderConfig::new("here", 48);
        for dataset in [
            DatasetConfig::Cifar10,
            DatasetConfig::Cifar100,
            DatasetConfig::Gtsrb,
            DatasetConfig::Mnist,
            DatasetConfig::FashionMnist,
            DatasetConfig::Shapes(ShapesConfig::default()),
            DatasetConfig::Folder(folder),
        ] {
            let file = File { dataset };
            let text = toml::to_string(&file).unwrap();
            assert_eq!(toml::from_str::<File>(&text).unwrap(), file, "{text}");
            assert!(text.contains(file.dataset.name()), "{text}");
        }
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        for (text, message, at) in [
            ("dataset = \"cifar\"", "unknown variant `cifar`, expected one of `cifar10`, `cifar100`, `gtsrb`", 10..17),
            ("dataset = 3", "expected the name of a data set, or a table of one with its settings", 10..11),
            ("[dataset.shapse]", "unknown variant `shapse`", 9..15),
            ("[dataset.shapes]\ntrian = 3", "unknown field `trian`, expected one of `train`, `test`, `seed`", 17..22),
            ("[dataset.shapes]\ntrain = \"x\"", "invalid type: string \"x\"", 25..28),
            ("dataset = \"folder\"", "`folder` needs a path", 10..18),
            ("[dataset.folder]\nsize = 3", "missing field `path`", 0..16),
            ("[dataset.cifar10]\nsize = 3", "this data set has no settings: write its name alone", 1..8),
            ("[dataset]", "expected one data set", 0..9),
            ("[dataset]\nshapes = {}\nfolder = { path = \"a\" }", "expected one data set", 0..9),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.message().contains(message), "{text}: {}", error.message());
            assert_eq!(error.span(), Some(at), "{text}: {error}");
        }
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let texts =
            |config: DatasetConfig| -> Vec<String> { config.validate().iter().map(ToString::to_string).collect() };
        assert_eq!(
            texts(DatasetConfig::Shapes(ShapesConfig { train: 9, test: 0, seed: 0 })),
            ["train is 9, expected 10 to 10000000 images", "test is 0, expected 10 to 10000000 images"]
        );
        assert_eq!(
            texts(DatasetConfig::Folder(FolderConfig::new("", 0))),
            ["path is empty, expected a folder", "size is 0, expected 1 to 1024 pixels"]
        );
        assert!(texts(DatasetConfig::Cifar10).is_empty());
    }

    #[test]
    fn what_is_known_beforehand_is_true() {
        let config = DatasetConfig::Shapes(ShapesConfig { train: 30, test: 10, seed: 0 });
        let dataset = load(&config, &[]).unwrap();
        assert_eq!(config.shape(), dataset.train.shape());
        assert_eq!(config.class_count(), Some(dataset.train.class_count()));
        assert_eq!(config.training_images(), Some(dataset.train.len()));
        assert_eq!((dataset.name.as_str(), dataset.location), ("shapes", None));
    }

    #[test]
    fn cifar10_is_read_from_its_six_files() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("cifar-10-batches-bin");
        fs_err::create_dir(&folder).unwrap();
        let roots = [root.path().to_owned()];
        for batch in 1..=5 {
            fs_err::write(folder.join(format!("data_batch_{batch}.bin")), [vec![batch], vec![batch; 3072]].concat())
                .unwrap();
        }
        let error = load(&DatasetConfig::Cifar10, &roots).unwrap_err().to_string();
        assert!(
            error.ends_with("cifar-10-batches-bin lacks test_batch.bin; `cargo xtask data fetch cifar10` downloads it"),
            "{error}"
        );
        fs_err::write(folder.join("test_batch.bin"), [vec![9], vec![0; 3072]].concat()).unwrap();
        fs_err::write(folder.join("lossy_images.csv"), "file,index,label\ntest_batch.bin,0,9\n").unwrap();
        let dataset = load(&DatasetConfig::Cifar10, &roots).unwrap();
        assert_eq!(dataset.train.labels(), [1, 2, 3, 4, 5]);
        assert_eq!(dataset.test.labels(), [9]);
        assert_eq!(dataset.location, Some(folder));
        assert_eq!(
            dataset.notes,
            [
                "CIFAR-10 (reconstructed; 1 images JPEG-decoded)",
                "cifar10 in part: 5 of 50000 training and 1 of 10000 test images",
                "no training image of classes airplane, frog, horse, ship, truck",
                "no test image of classes airplane, automobile, bird, cat, deer and 4 more",
            ]
        );
    }

    /// The folder of real data, or a word why a test is skipped. Only tests read the environment.
    #[allow(clippy::print_stderr, reason = "a test says that it skips")]
    fn real(folder: &str) -> Option<Vec<PathBuf>> {
        let root = PathBuf::from(std::env::var_os("PATCHDOOR_DATA").unwrap_or_else(|| "../../../shared/data".into()));
        if root.join(folder).is_dir() {
            return Some(vec![root]);
        }
        eprintln!("skipped: no {folder} in {}, set PATCHDOOR_DATA", root.display());
        None
    }

    #[test]
    fn real_cifar10_has_the_published_counts_and_means() {
        let Some(roots) = real("cifar-10-batches-bin") else { return };
        let dataset = load(&DatasetConfig::Cifar10, &roots).unwrap();
        assert_eq!(dataset.train.class_counts(), [5000; 10]);
        assert_eq!(dataset.test.class_counts(), [1000; 10]);
        // The first image of the distribution is a frog.
        assert_eq!(dataset.train.classes()[usize::from(dataset.train.label(0))], "frog");
        // Means of the channels over the training set as commonly quoted.
        for (channel, expected) in [0.4914, 0.4822, 0.4465].into_iter().enumerate() {
            let sum: u64 = dataset.train.all_pixels().iter().skip(channel).step_by(3).map(|&p| u64::from(p)).sum();
            let mean = sum as f64 / (50_000.0 * 1024.0 * 255.0);
            assert!((mean - expected).abs() < 1e-3, "channel {channel}: {mean}");
        }
    }

    #[test]
    fn real_gtsrb_is_split_by_whole_tracks() {
        let Some(roots) = real("gtsrb-32x32") else { return };
        let dataset = load(&DatasetConfig::Gtsrb, &roots).unwrap();
        let groups = dataset.train.groups().expect("the subset's tracks are known");
        assert_eq!(groups.last(), Some(&1306));
        let (kept, held_out) = split::stratified(&dataset.train, 0.1, &mut stream(0, "validation"));
        let kept: std::collections::BTreeSet<u32> = kept.iter().map(|&index| groups[index]).collect();
        assert!(held_out.iter().all(|&index| !kept.contains(&groups[index])));
        let share = held_out.len() as f64 / dataset.train.len() as f64;
        assert!((share - 0.1).abs() < 0.01, "{share}");
        crate::verification::verify("gtsrb", &roots).unwrap();
    }

    #[test]
    fn real_fashion_mnist_has_the_published_counts() {
        let Some(roots) = real("fashion-mnist") else { return };
        crate::verification::verify("fashion-mnist", &roots).unwrap();
    }
}
