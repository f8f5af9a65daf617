use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::backend::Backend;
use crate::plan::hex;
use crate::result::{ImagesUsed, SCHEMA};
use crate::{Plan, files};

const RUSTFLAGS: &str = env!("PATCHDOOR_RUSTFLAGS");
const CARGO_LOCK: &str = include_str!("../../../Cargo.lock");

/// With what a run was computed; `environment.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Environment {
    /// Layout of this file.
    pub schema: u32,
    /// Version of this program.
    pub patchdoor: String,
    /// Version of burn.
    pub burn: Option<String>,
    /// The compiler.
    pub rustc: String,
    /// What it compiled for.
    pub target: String,
    /// Extra compiler flags.
    pub rustflags: String,
    /// Whether the compiler optimized.
    pub optimized: bool,
    /// The commit of the source, if it lies in a git repository.
    pub commit: Option<String>,
    /// Whether the source differs from that commit.
    pub dirty: Option<bool>,
    /// SHA-256 of `Cargo.lock`.
    pub cargo_lock: String,
    /// What computes.
    pub backend: String,
    /// On which device.
    pub device: String,
    /// Threads the machine offers.
    pub threads: usize,
    /// The experiment file.
    pub experiment_file: String,
    /// Overrides of the experiment file, in order.
    pub overrides: Vec<String>,
    /// Whether this is the quick version.
    pub quick: bool,
    /// Which images.
    #[serde(flatten)]
    pub images: ImagesUsed,
    /// Where they were read from; `None` if they are drawn by the program.
    pub location: Option<String>,
    /// What is to be known about these copies of the images.
    pub notes: Vec<String>,
    /// SHA-256 over pixels and labels of training and test split.
    pub fingerprint: String,
    /// When the run was started, in seconds since 1970.
    pub started: u64,
}

/// What a run reads: where from, and what it holds.
pub(crate) struct ImageSource<'a> {
    pub(crate) used: &'a ImagesUsed,
    pub(crate) location: Option<&'a Path>,
    pub(crate) notes: &'a [String],
    pub(crate) fingerprint: &'a str,
}

impl Environment {
    pub(crate) fn of(plan: &Plan, backend: &Backend, source: &ImageSource<'_>) -> Self {
        let (commit, dirty) = revision();
        Self {
            schema: SCHEMA,
            patchdoor: env!("CARGO_PKG_VERSION").into(),
            burn: locked_version("burn"),
            rustc: env!("PATCHDOOR_RUSTC").into(),
            target: env!("PATCHDOOR_TARGET").into(),
            rustflags: String::from(RUSTFLAGS),
            optimized: !cfg!(debug_assertions),
            commit,
            dirty,
            cargo_lock: hex(&Sha256::digest(CARGO_LOCK)),
            backend: backend.name().into(),
            device: backend.device().into(),
            threads: threads(),
            experiment_file: plan.path().display().to_string(),
            overrides: plan.overrides().to_vec(),
            quick: plan.is_quick(),
            images: source.used.clone(),
            location: source.location.map(|path| path.display().to_string()),
            notes: source.notes.to_vec(),
            fingerprint: source.fingerprint.into(),
            started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        }
    }

    pub(crate) fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs_err::read(path).ok()?).ok()
    }

    pub(crate) fn write(&self, path: &Path) -> std::io::Result<()> {
        files::write_json(path, self)
    }
}

/// Threads the machine offers.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The commit this program was built from, as far as git can still tell, and whether the source differs from it.
fn revision() -> (Option<String>, Option<bool>) {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "HEAD"]);
    let dirty = git(&["status", "--porcelain"]).map(|changes| !changes.is_empty());
    (commit, dirty)
}

/// The version of a package in `Cargo.lock`.
fn locked_version(package: &str) -> Option<String> {
    let after = CARGO_LOCK.split_once(&format!("name = \"{package}\"\nversion = \""))?.1;
    after.split_once('"').map(|(version, _)| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burns_version_is_found_in_the_lock_file() {
        assert!(locked_version("burn").is_some_and(|version| version.starts_with("0.21.")));
        assert_eq!(locked_version("no-such-package"), None);
    }
}
