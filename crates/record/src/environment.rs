use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ImagesUsed;

/// The program that computed a run, as it was when it was built.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Build {
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
    /// The commit that was built, if the source lay in a git repository.
    pub commit: Option<String>,
    /// Whether the source differed from that commit when it was built.
    pub dirty: Option<bool>,
    /// SHA-256 of `Cargo.lock`.
    pub cargo_lock: String,
}

/// With what a run was computed; `environment.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Environment {
    /// Layout of this file.
    pub schema: u32,
    /// The program.
    #[serde(flatten)]
    pub build: Build,
    /// What computes.
    pub backend: String,
    /// On which device.
    pub device: String,
    /// Threads that computed.
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
    /// SHA-256 of other files that the results depend on, such as a trigger's picture, by their paths as written.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, String>,
    /// When the run was started, in seconds since 1970.
    pub started: u64,
}
