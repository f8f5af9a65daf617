use std::path::PathBuf;

/// What can go wrong when a classifier is configured, saved or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A field of a configuration is out of range or does not fit the input.
    #[error("{field} is {found}, expected {allowed}")]
    InvalidField {
        /// Dotted path of the field in the model's table, as written in TOML.
        field: &'static str,
        /// The value found.
        found: String,
        /// What is allowed.
        allowed: String,
    },
    /// A network without routers was given a routing.
    #[error("{network} has no routing that could be given")]
    NoRouting {
        /// The network's name.
        network: &'static str,
    },
    /// A given routing does not fit the network or the images.
    #[error("the given routing is of {found}, expected {expected}")]
    OtherRouting {
        /// What it is of.
        found: String,
        /// What fits.
        expected: String,
    },
    /// A weights file lacks a parameter of the classifier.
    #[error("{path} has no parameter {name}")]
    MissingParameter {
        /// The weights file.
        path: PathBuf,
        /// The parameter's name.
        name: String,
    },
    /// A weights file holds a parameter the classifier does not have.
    #[error("{path} holds {name}, which this classifier does not have")]
    UnknownParameter {
        /// The weights file.
        path: PathBuf,
        /// The parameter's name.
        name: String,
    },
    /// A parameter of a weights file has another shape or type than the classifier's.
    #[error("{name} in {path} is {found}, expected {expected}")]
    ParameterMismatch {
        /// The weights file.
        path: PathBuf,
        /// The parameter's name.
        name: String,
        /// Type and shape in the file.
        found: String,
        /// Type and shape in the classifier.
        expected: String,
    },
    /// A weights file belongs to a classifier of another structure.
    #[error("{path} belongs to {found}; this classifier is {expected}")]
    OtherStructure {
        /// The weights file.
        path: PathBuf,
        /// What the file says of itself, where the two differ.
        found: String,
        /// The same of the classifier.
        expected: String,
    },
    /// What a weights file says about itself is missing, not understood or not true.
    #[error("{path} {reason}")]
    Description {
        /// The weights file.
        path: PathBuf,
        /// What is wrong, as "has no schema".
        reason: String,
    },
    /// A weights file is not in the safetensors format.
    #[error("{path} is not a whole safetensors file")]
    Format {
        /// The weights file.
        path: PathBuf,
        /// What the reader says.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
