use std::io;
use std::path::PathBuf;

/// Why something that a run left cannot be read back, or not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A file cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A file is not as it was written.
    #[error(
        "{} is damaged: it has the SHA-256 {found}, but {expected} was written; remove its folder, or run with --fresh, to compute it anew",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was written.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Nothing says what was written.
    #[error(
        "{} has no checksum in SHA256SUMS beside it, so nobody can tell whether it is as it was written; remove its folder, or run with --fresh, to compute it anew",
        path.display()
    )]
    Unsealed {
        /// The file.
        path: PathBuf,
    },
    /// The list of checksums itself cannot be understood.
    #[error("{} line {line} is {found:?}, expected a SHA-256, two spaces and the name of a file", path.display())]
    Checksums {
        /// The list.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What it says.
        found: String,
    },
    /// A file is whole, but not what it should be.
    #[error("{} is not a result of this program", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Runs that should differ only in their seeds were computed on different images.
    #[error(
        "{} and {} were computed on different images, or with different pictures, and cannot stand in one table; move one of them aside",
        first.display(), second.display()
    )]
    MixedImages {
        /// One of them.
        first: PathBuf,
        /// Another.
        second: PathBuf,
    },
    /// A file has the layout of another version.
    #[error("{} has layout {found}, this program reads {expected}; --fresh computes it anew", path.display())]
    OtherSchema {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: u32,
        /// Ours.
        expected: u32,
    },
}
