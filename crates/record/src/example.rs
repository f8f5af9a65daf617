use serde::{Deserialize, Serialize};

/// Name of the file in a seed's folder that says what the sheet of examples shows.
pub const EXAMPLES: &str = "examples.json";

/// Name of the sheet beside it.
pub const EXAMPLES_SHEET: &str = "examples.png";

/// Test images that show what the attack does with one seed; [`EXAMPLES`].
///
/// The sheet has a row for each: the image untouched, triggered, and ten times the difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Examples {
    /// Rows and columns of each of the three pictures, in pixels of the sheet.
    pub picture: [usize; 2],
    /// Pixels between pictures and around them.
    pub gap: usize,
    /// The images, from the top row down.
    pub images: Vec<Example>,
}

/// A test image and what the backdoored classifier takes it for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Example {
    /// Its index in the data set's test split.
    pub index: u32,
    /// Whether it is taken for what the attacker wants, triggered.
    pub flipped: bool,
    /// Its class.
    pub class: String,
    /// What it is taken for, untouched.
    pub clean: String,
    /// What it is taken for, triggered.
    pub triggered: String,
}
