use std::path::PathBuf;

use crate::picture_error::PictureError;

/// What can go wrong between a file and a poisoned set of images.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A field of a configuration is out of range or does not fit the data.
    #[error("{field} is {found}, expected {allowed}")]
    InvalidField {
        /// Dotted path of the field in its table, as written in TOML.
        field: &'static str,
        /// The value found.
        found: String,
        /// What is allowed.
        allowed: String,
    },
    /// A data set lies in none of the places searched.
    #[error("{dataset} was not found in {}; {how_to_get}", list(looked_in))]
    Missing {
        /// Name of the data set, as in a configuration.
        dataset: String,
        /// The folders or files looked for.
        looked_in: Vec<PathBuf>,
        /// What the user can do to have it.
        how_to_get: String,
    },
    /// A data set's folder is there, but files of it are not.
    #[error("{} lacks {}; {how_to_get}", directory.display(), missing.join(", "))]
    Incomplete {
        /// The folder.
        directory: PathBuf,
        /// Names of the missing files.
        missing: Vec<String>,
        /// What the user can do to have them.
        how_to_get: String,
    },
    /// A file does not hold what its format says.
    #[error("{} is corrupt at byte {offset}: found {found}, expected {expected}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where the problem begins, counted in bytes from the file's start; after unpacking, if the file is gzipped.
        offset: u64,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// A folder of images holds none, or not those it should.
    #[error("{} holds {found}, expected {expected}", path.display())]
    BadFolder {
        /// The folder.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// A picture could not be decoded.
    #[error("{} is no image we can use{}", path.display(), and_others(*others))]
    ImageFile {
        /// The file.
        path: PathBuf,
        /// How many files beside it are none either.
        others: usize,
        /// Why.
        #[source]
        source: PictureError,
    },
    /// A picture could not be written.
    #[error("{} could not be written", path.display())]
    ImageNotWritten {
        /// The file.
        path: PathBuf,
        /// What the codec says.
        #[source]
        source: image::ImageError,
    },
    /// A data set that is published with known numbers has others.
    #[error("{} holds {found}, expected {expected}", path.display())]
    WrongCounts {
        /// The data set's folder.
        path: PathBuf,
        /// The numbers found.
        found: String,
        /// The published numbers.
        expected: String,
    },
    /// Pixels do not fill their shape.
    #[error("an image has {found} bytes, expected {expected}")]
    PixelCount {
        /// Bytes the shape asks for.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// The parts of a set of images do not fit together.
    #[error("a set of images has {found}, expected {expected}")]
    Inconsistent {
        /// What was given.
        found: String,
        /// What would fit.
        expected: String,
    },
    /// A label is not one of the classes.
    #[error("image {index} has label {label}, expected a class below {classes}")]
    LabelOutOfRange {
        /// Index of the image in its set.
        index: usize,
        /// Its label.
        label: u8,
        /// Number of classes.
        classes: usize,
    },
    /// Something is already where a result should go.
    #[error("{} exists already; it is never overwritten", path.display())]
    Exists {
        /// The file or folder.
        path: PathBuf,
    },
    /// A table could not be written.
    #[error("{} could not be written", path.display())]
    Table {
        /// The file.
        path: PathBuf,
        /// What the writer says.
        #[source]
        source: csv::Error,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

pub(crate) fn invalid(field: &'static str, found: impl std::fmt::Display, allowed: impl Into<String>) -> DataError {
    DataError::InvalidField { field, found: format!("{found}"), allowed: allowed.into() }
}

fn and_others(others: usize) -> String {
    match others {
        0 => String::new(),
        1 => ", nor is 1 other file".to_owned(),
        _ => format!(", nor are {others} other files"),
    }
}

fn list(paths: &[PathBuf]) -> String {
    if paths.is_empty() {
        return "any folder (none was given)".to_owned();
    }
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
