use serde::{Deserialize, Serialize};

use crate::{DefenseResult, DefenseStanding, ImagesUsed};

/// What defenses of weights of one's own came to; `defended.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct OwnWeightsResult {
    /// Layout of this file.
    pub schema: u32,
    /// The command: `defend`, `detect` or `inspect`.
    pub command: String,
    /// Name of the folder.
    pub run: String,
    /// The weights, as the user named them.
    pub weights: String,
    /// Their SHA-256.
    pub weights_sha256: String,
    /// The file of defenses.
    pub defense_file: String,
    /// The images of the defender and of the measurement.
    pub images: ImagesUsed,
    /// What feeds every random choice.
    pub seed: u64,
    /// Test images that the classifier is measured on.
    pub test_images: usize,
    /// Whether a trigger was known to the measurement.
    pub knows_trigger: bool,
    /// What a reader must know.
    pub notes: Vec<String>,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// What computed it.
    pub backend: String,
    /// On what.
    pub device: String,
    /// Where the classifier stands undefended.
    pub before: DefenseStanding,
    /// What each defense came to.
    pub defenses: Vec<DefenseResult>,
}

impl OwnWeightsResult {
    /// Name of the file.
    pub const FILE: &str = "defended.json";

    /// Whether every defense came to its end.
    pub fn is_complete(&self) -> bool {
        self.defenses.iter().all(|defense| defense.failure().is_none())
    }
}
