use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::imageops::FilterType;
use rayon::prelude::*;

use serde::{Deserialize, Serialize};

use crate::{DataError, ImageSet, ImageShape};

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

/// Endings of the files that are read, in lower case; other files are passed over.
const ENDINGS: [&str; 3] = ["png", "jpg", "jpeg"];

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
            how_to_get: "it must hold train/<class>/*.png and test/<class>/*.png (or .jpg)".to_owned(),
        }),
    }
}

/// Reads both splits as RGB images of `size` x `size`.
pub(crate) fn read(directory: &Path, size: usize) -> Result<(ImageSet, ImageSet), DataError> {
    let [train, test] = ["train", "test"].map(|split| directory.join(split));
    let classes = entries(&train, Path::is_dir)?;
    if classes.is_empty() || classes.len() > 256 {
        return Err(DataError::BadFolder {
            path: train,
            found: format!("{} folders", classes.len()),
            expected: "1 to 256, one a class".to_owned(),
        });
    }
    let unknown: Vec<String> =
        entries(&test, Path::is_dir)?.into_iter().filter(|class| !classes.contains(class)).collect();
    if !unknown.is_empty() {
        return Err(DataError::BadFolder {
            path: test,
            found: format!("classes {}", unknown.join(", ")),
            expected: format!("only those of {}", train.display()),
        });
    }
    let classes: Arc<[String]> = classes.into();
    Ok((read_split(&train, size, &classes)?, read_split(&test, size, &classes)?))
}

fn read_split(directory: &Path, size: usize, classes: &Arc<[String]>) -> Result<ImageSet, DataError> {
    let mut files = Vec::new();
    for (label, class) in classes.iter().enumerate() {
        let class = directory.join(class);
        if !class.exists() {
            continue;
        }
        let images = entries(&class, is_image)?;
        if images.is_empty() {
            return Err(DataError::BadFolder {
                path: class,
                found: "no images".to_owned(),
                expected: "at least one .png, .jpg or .jpeg".to_owned(),
            });
        }
        files.extend(images.into_iter().map(|image| (class.join(image), label as u8)));
    }
    if files.is_empty() {
        return Err(DataError::BadFolder {
            path: directory.to_owned(),
            found: "no class".to_owned(),
            expected: "at least one folder of images".to_owned(),
        });
    }
    let shape = ImageShape { height: size, width: size, channels: 3 };
    let images: Vec<Result<Vec<u8>, DataError>> = files.par_iter().map(|(path, _)| read_image(path, size)).collect();
    let mut pixels = Vec::with_capacity(files.len() * shape.size());
    for image in images {
        pixels.extend(image?);
    }
    ImageSet::new(shape, pixels, files.iter().map(|&(_, label)| label).collect(), Arc::clone(classes))
}

/// Decodes one file, whatever its ending, and brings it to `size` x `size` RGB by bilinear interpolation; transparency
/// is dropped.
fn read_image(path: &Path, size: usize) -> Result<Vec<u8>, DataError> {
    let no_image = |source| DataError::ImageFile { path: path.to_owned(), source };
    let reader = image::ImageReader::open(path).map_err(|source| no_image(source.into()))?;
    let image = reader.with_guessed_format().map_err(|source| no_image(source.into()))?.decode().map_err(no_image)?;
    let image = image.into_rgb8();
    let target = size as u32;
    if image.dimensions() == (target, target) {
        return Ok(image.into_raw());
    }
    Ok(image::imageops::resize(&image, target, target, FilterType::Triangle).into_raw())
}

fn is_image(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_lowercase();
    path.is_file() && ENDINGS.contains(&ending.as_str())
}

/// Sorted names of what `directory` holds, as far as it is wanted; hidden entries are passed over.
fn entries(directory: &Path, is_wanted: impl Fn(&Path) -> bool) -> Result<Vec<String>, DataError> {
    let mut names = Vec::new();
    for entry in fs_err::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if !name.starts_with('.') && is_wanted(&path) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
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
        let (train, test) = read(directory.path(), 8).unwrap();
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
        let config = FolderConfig { path: "train".into(), size: 8 };
        let found = locate(&config, &["no/such".into(), directory.path().to_owned()]).unwrap();
        assert_eq!(found, directory.path().join("train"));
        let config = FolderConfig { path: "nothing".into(), size: 8 };
        let error = locate(&config, &["no/such".into()]).unwrap_err().to_string();
        assert!(error.starts_with("folder nothing was not found in no/such/nothing, nothing; it must hold"), "{error}");
    }

    #[test]
    fn what_is_wrong_with_a_folder_is_named() {
        let directory = good_folder();
        let root = directory.path();
        let error = || read(root, 8).unwrap_err().to_string();
        fs_err::create_dir(root.join("test/fish")).unwrap();
        assert!(error().contains("test holds classes fish, expected only those of"), "{}", error());
        fs_err::remove_dir(root.join("test/fish")).unwrap();
        fs_err::create_dir(root.join("train/ant")).unwrap();
        assert!(error().contains("ant holds no images, expected at least one .png, .jpg or .jpeg"), "{}", error());
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
            if let Ok(pixels) = read_image(&path, 4) {
                prop_assert_eq!(pixels.len(), 48);
            }
        }
    }
}
