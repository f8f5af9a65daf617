use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::imageops::FilterType;
use rayon::prelude::*;

use crate::{DataError, FolderConfig, ImageSet, ImageShape};

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
