use serde::{Deserialize, Serialize};

/// How much of the training images, without those held out for validation, a defender has: a stratified draw.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CleanAmount {
    /// A share, in (0, 1].
    CleanFraction(f64),
    /// A number of images.
    CleanImages(usize),
}

impl CleanAmount {
    /// Images out of `training`, at least one.
    pub fn count(self, training: usize) -> usize {
        match self {
            Self::CleanFraction(fraction) => share_of(training, fraction).clamp(1, training.max(1)),
            Self::CleanImages(images) => images,
        }
    }
}

/// The whole number nearest to a share of some images.
pub fn share_of(images: usize, share: f64) -> usize {
    (images as f64 * share).round() as usize
}
