use std::path::PathBuf;

/// What can go wrong when a trigger is configured or drawn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TriggerError {
    /// A field of a configuration is out of range or does not fit the images.
    #[error("{field} is {found}, expected {allowed}")]
    InvalidField {
        /// Dotted path of the field in the trigger's or the placement's table, as written in TOML.
        field: &'static str,
        /// The value found.
        found: String,
        /// What is allowed.
        allowed: String,
    },
    /// Something is already where a contact sheet should go.
    #[error("{} exists already; it is never overwritten", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A contact sheet could not be encoded.
    #[error("{} could not be written", path.display())]
    Sheet {
        /// The file.
        path: PathBuf,
        /// What the codec says.
        #[source]
        source: image::ImageError,
    },
    /// A file could not be written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

pub(crate) fn invalid(field: &'static str, found: impl std::fmt::Display, allowed: impl Into<String>) -> TriggerError {
    TriggerError::InvalidField { field, found: format!("{found}"), allowed: allowed.into() }
}
