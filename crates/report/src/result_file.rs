use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;
use patchdoor_record::{RecordError, ResultTable, write_whole};

/// Why results cannot be collected or shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResultsError {
    /// A file cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The claims are not as they have to be.
    #[error("{} cannot be understood", path.display())]
    Claims {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A run's record cannot be read back.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A result file is not as it has to be.
    #[error("{} is not a result of this program", path.display())]
    Result {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Results that would be collected do not come from one clean build.
    #[error(
        "results are collected only from one commit with unchanged source:\n  {}\n  \
         run what is named here again with one build, or move it aside; nothing was collected",
        refused.join("\n  ")
    )]
    Unclean {
        /// Each result, and which of its runs are of which build.
        refused: Vec<String>,
    },
    /// The claims speak of something that is not there; all such places.
    #[error("the claims do not fit the results:\n  {}", problems.join("\n  "))]
    Unknown {
        /// What is not there, and what is.
        problems: Vec<String>,
    },
}

/// Reads a collected result.
pub(crate) fn read_result(path: &Path) -> Result<ResultTable, ResultsError> {
    serde_json::from_slice(&fs::read(path)?).map_err(|source| ResultsError::Result { path: path.to_owned(), source })
}

/// Writes a result to be committed: git knows its checksum.
pub(crate) fn write_result(path: &Path, table: &ResultTable) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(table)?;
    text.push('\n');
    write_whole(path, text.as_bytes())
}
