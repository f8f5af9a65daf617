use serde::{Deserialize, Serialize};

/// How much of an image a trigger touches, on average over test images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Reach {
    /// Pixels that the trigger changes.
    pub pixels: f64,
    /// Cells with such a pixel, of a grid with a cell for each patch.
    pub cells: f64,
    /// Patches of the feature map with such a pixel in their receptive field.
    pub patches: f64,
    /// Patches there are.
    pub all_patches: usize,
}
