use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::invalid;
use crate::listing::{Listing, class_folders, folders_beside, names};
use crate::{DataError, ImageSet, ImageShape, read_picture, split, stream};

/// Where a folder of images lies, how it is laid out, and to what size its images are brought.
///
/// The folder holds `train/<class>/*` and `test/<class>/*`: pictures of any usual format, also in folders inside a class.
/// Classes are numbered in the order of their names, images in the order of theirs, as torchvision's `ImageFolder` does.
/// `docs/datasets.md` says how pictures become pixels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FolderConfig {
    /// The folder; a relative path is looked for in the data folders first, then from the working directory.
    pub path: PathBuf,
    /// Height and width of the images in pixels; files of another size are resized, without keeping proportions.
    #[serde(default = "default_size")]
    pub size: usize,
    /// Name of the folder of training images.
    #[serde(default = "default_train", skip_serializing_if = "is_default_train")]
    pub train: String,
    /// Name of the folder of test images, such as `val`.
    #[serde(default = "default_test", skip_serializing_if = "is_default_test")]
    pub test: String,
    /// Where there is no test split: the share of the images, of each class, that becomes one. The images lie in `train`
    /// or, where there is no such folder, in `<class>/*` at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_fraction: Option<f64>,
    /// What that test split is drawn from; the same for all seeds of an experiment.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub test_seed: u64,
}

fn default_size() -> usize {
    32
}

fn default_train() -> String {
    "train".to_owned()
}

fn default_test() -> String {
    "test".to_owned()
}

fn is_default_train(name: &str) -> bool {
    name == "train"
}

fn is_default_test(name: &str) -> bool {
    name == "test"
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(seed: &u64) -> bool {
    *seed == 0
}

/// Names under which people keep a second split.
const OTHER_TESTS: [&str; 6] = ["test", "val", "valid", "validation", "eval", "dev"];

impl FolderConfig {
    /// The folder of this path and size, laid out as usual.
    pub fn new(path: impl Into<PathBuf>, size: usize) -> Self {
        Self {
            path: path.into(),
            size,
            train: default_train(),
            test: default_test(),
            test_fraction: None,
            test_seed: 0,
        }
    }

    /// Checks every field, without looking for files.
    pub(crate) fn validate(&self) -> Vec<DataError> {
        let mut problems = Vec::new();
        if self.path.as_os_str().is_empty() {
            problems.push(invalid("path", "empty", "a folder"));
        }
        if !(1..=1024).contains(&self.size) {
            problems.push(invalid("size", self.size, "1 to 1024 pixels"));
        }
        for (field, name) in [("train", &self.train), ("test", &self.test)] {
            if name.is_empty() || name.contains(['/', '\\']) || name.starts_with('.') {
                problems.push(invalid(field, format!("{name:?}"), "the name of a folder in path"));
            }
        }
        if self.train.eq_ignore_ascii_case(&self.test) {
            problems.push(invalid("test", format!("{:?}", self.test), "another folder than train"));
        }
        if let Some(fraction) = self.test_fraction
            && !(fraction > 0.0 && fraction < 1.0)
        {
            problems.push(invalid("test-fraction", fraction, "a fraction between 0 and 1"));
        }
        if self.test_fraction.is_none() && self.test_seed != 0 {
            problems.push(invalid("test-seed", self.test_seed, "none without test-fraction"));
        }
        problems
    }
}

/// Finds the folder: in one of `roots`, or from the working directory.
pub(crate) fn locate(config: &FolderConfig, roots: &[PathBuf]) -> Result<PathBuf, DataError> {
    let mut candidates: Vec<PathBuf> = roots.iter().map(|root| root.join(&config.path)).collect();
    candidates.push(config.path.clone());
    candidates.dedup();
    match candidates.iter().find(|path| path.is_dir()) {
        Some(path) => Ok(path.clone()),
        None => Err(DataError::Missing {
            dataset: format!("folder {}", config.path.display()),
            looked_in: candidates,
            how_to_get: format!("it must hold {}", layout(config)),
        }),
    }
}

fn layout(config: &FolderConfig) -> String {
    format!("pictures in {}/<class>/ and {}/<class>/", config.train, config.test)
}

/// Both splits of a folder, and what is to be known about them.
#[derive(Debug)]
pub(crate) struct FolderImages {
    pub(crate) train: ImageSet,
    pub(crate) test: ImageSet,
    pub(crate) notes: Vec<String>,
}

/// Reads both splits as RGB images.
pub(crate) fn read(directory: &Path, config: &FolderConfig) -> Result<FolderImages, DataError> {
    let [train, test] = [&config.train, &config.test].map(|name| split_folder(directory, name));
    let (train, test) = match (train, test, config.test_fraction) {
        (Some(train), Some(test), None) => (train, test),
        (train, None, Some(fraction)) => {
            let source = train.unwrap_or_else(|| directory.to_owned());
            return cut(directory, &source, config, fraction);
        }
        (_, Some(test), Some(fraction)) => {
            return Err(invalid("test-fraction", fraction, format!("none, as {} is there", test.display())));
        }
        (train, test, None) => return Err(wrong_layout(directory, config, train.is_some(), test.is_some())?),
    };
    let classes = classes(&train)?;
    let unknown: Vec<String> = class_folders(&test)?.into_iter().filter(|class| !classes.contains(class)).collect();
    if !unknown.is_empty() {
        return Err(DataError::BadFolder {
            path: test,
            found: format!("classes {}", unknown.join(", ")),
            expected: format!("only those of {}", train.display()),
        });
    }
    let mut notes = Vec::new();
    let train_images = read_split(&train, config.size, &classes, &mut notes)?;
    let test_images = read_split(&test, config.size, &classes, &mut notes)?;
    notes.extend(not_read(directory, &[&train, &test])?);
    Ok(FolderImages { train: train_images, test: test_images, notes })
}

/// Reads a folder that has one split and cuts a test split from it.
fn cut(directory: &Path, source: &Path, config: &FolderConfig, fraction: f64) -> Result<FolderImages, DataError> {
    let classes = classes(source)?;
    let mut notes = Vec::new();
    let images = read_split(source, config.size, &classes, &mut notes)?;
    let (kept, held_out) = split::stratified(&images, fraction, &mut stream(config.test_seed, "test-split"));
    if kept.is_empty() || held_out.is_empty() {
        let allowed = format!("one that leaves images in both parts of {}", images.len());
        return Err(invalid("test-fraction", fraction, allowed));
    }
    notes.push(format!(
        "there is no test split: {} of {} images, drawn class by class with seed {}, are it",
        held_out.len(),
        images.len(),
        config.test_seed
    ));
    if source != directory {
        notes.extend(not_read(directory, &[source])?);
    }
    Ok(FolderImages { train: images.subset(&kept), test: images.subset(&held_out), notes })
}

/// The folder of a split; its name counts in any letter case if it is not there as written.
fn split_folder(directory: &Path, name: &str) -> Option<PathBuf> {
    let exact = directory.join(name);
    if exact.is_dir() {
        return Some(exact);
    }
    let found = names(directory).ok()?.into_iter().filter(|found| found.eq_ignore_ascii_case(name));
    let mut found = found.map(|found| directory.join(found)).filter(|path| path.is_dir());
    found.next().filter(|_| found.next().is_none())
}

/// Says what lies in a folder that lacks a split, and what can be done.
fn wrong_layout(
    directory: &Path,
    config: &FolderConfig,
    has_train: bool,
    has_test: bool,
) -> Result<DataError, DataError> {
    let found = names(directory)?;
    let mut expected = layout(config);
    let other = found
        .iter()
        .find(|name| OTHER_TESTS.iter().any(|other| name.eq_ignore_ascii_case(other)) && directory.join(name).is_dir());
    match other {
        Some(other) if has_train && !has_test => {
            let hint = format!("; with test = {other:?} in [dataset.folder] the images of {other} are the test split");
            expected += &hint;
        }
        _ if has_test => {}
        _ if has_train || !class_folders(directory)?.is_empty() => {
            expected.push_str(
                "; with test-fraction = 0.2 in [dataset.folder] a fifth of its images becomes the test split",
            );
        }
        _ => {}
    }
    Ok(DataError::BadFolder { path: directory.to_owned(), found: some_of(&found), expected })
}

/// The first few of many names.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 6;
    match names {
        [] => "nothing".to_owned(),
        _ if names.len() <= SHOWN => names.join(", "),
        _ => format!("{} and {} more", names[..SHOWN].join(", "), names.len() - SHOWN),
    }
}

/// A note about folders beside the splits.
fn not_read(directory: &Path, splits: &[&Path]) -> Result<Option<String>, DataError> {
    let others = folders_beside(directory, splits)?;
    let are = if others.len() == 1 { "is" } else { "are" };
    Ok((!others.is_empty()).then(|| format!("{} beside the splits {are} not read", some_of(&others))))
}

/// The classes that a split's folders name.
fn classes(directory: &Path) -> Result<Arc<[String]>, DataError> {
    let classes = class_folders(directory)?;
    if classes.is_empty() || classes.len() > 256 {
        let is_flat = classes.is_empty() && !names(directory)?.is_empty();
        return Err(DataError::BadFolder {
            path: directory.to_owned(),
            found: format!("{} folders{}", classes.len(), if is_flat { ", only files" } else { "" }),
            expected: "1 to 256, one a class".to_owned(),
        });
    }
    Ok(classes.into())
}

fn read_split(
    directory: &Path,
    size: usize,
    classes: &Arc<[String]>,
    notes: &mut Vec<String>,
) -> Result<ImageSet, DataError> {
    let listing = Listing::of(directory, classes)?;
    if listing.pictures.is_empty() {
        let found = listing.not_read().map_or_else(String::new, |rest| format!(" ({rest})"));
        return Err(DataError::BadFolder {
            path: directory.to_owned(),
            found: format!("no class{found}"),
            expected: "at least one folder of images".to_owned(),
        });
    }
    notes.extend(listing.not_read());
    let shape = ImageShape { height: size, width: size, channels: 3 };
    let labels = listing.pictures.iter().map(|&(_, label)| label).collect();
    let pixels = read_pictures(&listing.pictures.into_iter().map(|(path, _)| path).collect::<Vec<_>>(), [size; 2])?;
    ImageSet::new(shape, pixels, labels, Arc::clone(classes))
}

/// The RGB pixels of many files brought to `[height, width]`, one after another; the first that is no picture is named, and how many others are none.
pub(crate) fn read_pictures(paths: &[PathBuf], [height, width]: [usize; 2]) -> Result<Vec<u8>, DataError> {
    let images: Vec<_> = paths.par_iter().map(|path| read_picture(path, height, width)).collect();
    let bad = images.iter().filter(|image| matches!(image, Err(DataError::ImageFile { .. }))).count();
    let mut pixels = Vec::with_capacity(paths.len() * height * width * 3);
    for image in images {
        match image {
            Ok(image) => pixels.extend(image.into_pixels()),
            Err(DataError::ImageFile { path, source, .. }) => {
                return Err(DataError::ImageFile { path, others: bad - 1, source });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(pixels)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn write_image(path: &Path, width: u32, height: u32, color: [u8; 3]) {
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        image::RgbImage::from_pixel(width, height, image::Rgb(color)).save(path).unwrap();
    }

    fn good_folder() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        write_image(&root.join("train/dog/b.png"), 8, 8, [1, 2, 3]);
        write_image(&root.join("train/dog/a.PNG"), 8, 8, [4, 5, 6]);
        write_image(&root.join("train/cat/z.jpg"), 20, 10, [200, 100, 50]);
        write_image(&root.join("test/dog/one.png"), 3, 5, [7, 8, 9]);
        fs_err::write(root.join("train/cat/notes.txt"), "not an image").unwrap();
        fs_err::write(root.join("train/cat/.hidden.png"), "not an image").unwrap();
        directory
    }

    #[test]
    fn classes_and_files_come_in_the_order_of_their_names_and_are_resized() {
        let directory = good_folder();
        let FolderImages { train, test, notes } = read(directory.path(), &FolderConfig::new("", 8)).unwrap();
        assert_eq!(notes, ["train: 2 files are not read (1 .txt, 1 hidden), such as cat/.hidden.png"]);
        assert_eq!(train.classes(), ["cat", "dog"]);
        assert_eq!(train.labels(), [0, 1, 1]);
        assert_eq!(train.image(1).pixel(0, 0), [4, 5, 6]);
        assert_eq!(train.image(2).pixel(7, 7), [1, 2, 3]);
        // JPEG keeps a plain colour to within a step or two.
        for (found, expected) in train.image(0).pixel(4, 4).iter().zip([200, 100, 50]) {
            assert!(found.abs_diff(expected) <= 2, "{found}, expected {expected}");
        }
        assert_eq!(test.labels(), [1]);
        assert_eq!(test.image(0).pixel(7, 0), [7, 8, 9]);
    }

    #[test]
    fn a_relative_folder_is_found_in_a_root() {
        let directory = good_folder();
        let config = FolderConfig::new("train", 8);
        let found = locate(&config, &["no/such".into(), directory.path().to_owned()]).unwrap();
        assert_eq!(found, directory.path().join("train"));
        let config = FolderConfig::new("nothing", 8);
        let error = locate(&config, &["no/such".into()]).unwrap_err().to_string();
        assert!(error.starts_with("folder nothing was not found in no/such/nothing, nothing; it must hold"), "{error}");
    }

    #[test]
    fn what_is_wrong_with_a_folder_is_named() {
        let directory = good_folder();
        let root = directory.path();
        let error = || read(root, &FolderConfig::new("", 8)).unwrap_err().to_string();
        fs_err::create_dir(root.join("test/fish")).unwrap();
        assert!(error().contains("test holds classes fish, expected only those of"), "{}", error());
        fs_err::remove_dir(root.join("test/fish")).unwrap();
        fs_err::create_dir(root.join("train/ant")).unwrap();
        assert!(
            error().contains("ant holds no images, expected at least one file that ends in .png, .jpg,"),
            "{}",
            error()
        );
        fs_err::remove_dir(root.join("train/ant")).unwrap();
        fs_err::remove_dir_all(root.join("test/dog")).unwrap();
        assert!(error().contains("test holds no class"), "{}", error());
        fs_err::write(root.join("train/dog/a.PNG"), "no PNG").unwrap();
        assert!(error().ends_with("a.PNG is no image we can use"), "{}", error());
        fs_err::remove_dir_all(root.join("train")).unwrap();
        assert!(error().contains("train"), "{}", error());
        fs_err::create_dir(root.join("train")).unwrap();
        assert!(error().contains("train holds 0 folders, expected 1 to 256, one a class"), "{}", error());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400), damage: Option<(u8, u8)>) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("image.png");
            match damage {
                None => fs_err::write(&path, bytes).unwrap(),
                Some((at, value)) => {
                    write_image(&path, 5, 5, [1, 2, 3]);
                    let mut file = fs_err::read(&path).unwrap();
                    let at = usize::from(at) % file.len();
                    file[at] ^= value;
                    fs_err::write(&path, file).unwrap();
                }
            }
            if let Ok(image) = read_picture(&path, 4, 4) {
                prop_assert_eq!(image.pixels().len(), 48);
            }
        }
    }
}
