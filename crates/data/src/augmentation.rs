use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::error::invalid;
use crate::{DataError, ImageShape};

/// Random changes to training images, made anew each time an image is used, after poisoning. The default changes
/// nothing, as in the published pMoE code.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct AugmentationConfig {
    /// Pixels of black border added on every side before an image of the old size is cut out at random; 0 cuts nothing.
    /// The usual CIFAR recipe has 4.
    pub crop_padding: usize,
    /// Whether half of the images are mirrored left to right.
    pub flip: bool,
}

/// How one image is changed: a piece of its old size is cut out of the bordered image, then perhaps mirrored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AugmentationDraw {
    /// Whether the piece is mirrored left to right.
    pub mirror: bool,
    /// First row of the piece, in `0..=2 * crop_padding`.
    pub row: usize,
    /// First column of the piece, in `0..=2 * crop_padding`.
    pub column: usize,
}

impl AugmentationConfig {
    /// Checks every field against the images and returns all problems at once.
    pub fn validate(&self, shape: ImageShape) -> Vec<DataError> {
        let limit = shape.height.min(shape.width);
        if self.crop_padding < limit {
            Vec::new()
        } else {
            vec![invalid("crop-padding", self.crop_padding, format!("at most {} for {shape} images", limit - 1))]
        }
    }

    /// Whether images stay as they are.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Draws how the next image is changed.
    ///
    /// Drawn in this order, as far as configured: mirror, row, column.
    pub fn draw(&self, rng: &mut impl Rng) -> AugmentationDraw {
        let mirror = self.flip && rng.random::<bool>();
        let padding = self.crop_padding;
        let (row, column) =
            if padding == 0 { (0, 0) } else { (rng.random_range(0..=2 * padding), rng.random_range(0..=2 * padding)) };
        AugmentationDraw { mirror, row, column }
    }

    /// Writes a randomly changed copy of `source` to `target`, both height x width x channel.
    ///
    /// # Panics
    ///
    /// If a slice has not exactly `shape.size()` bytes.
    pub fn apply(&self, shape: ImageShape, source: &[u8], target: &mut [u8], rng: &mut impl Rng) {
        assert!(source.len() == shape.size() && target.len() == shape.size(), "images of {shape} fill their slices");
        let AugmentationDraw { mirror, row, column } = self.draw(rng);
        let padding = self.crop_padding;
        if !mirror && row == padding && column == padding {
            target.copy_from_slice(source);
            return;
        }
        let channels = shape.channels;
        let stride = shape.width * channels;
        // Target columns `first..last` lie inside the source, the others in the border.
        let first = padding.saturating_sub(column);
        let last = (shape.width + padding - column).min(shape.width);
        target.fill(0);
        for (index, target) in target.chunks_exact_mut(stride).enumerate() {
            let Some(source_row) = (index + row).checked_sub(padding).filter(|&source_row| source_row < shape.height)
            else {
                continue;
            };
            let start = source_row * stride + (first + column - padding) * channels;
            let source = &source[start..start + (last - first) * channels];
            if mirror {
                let target = &mut target[(shape.width - last) * channels..(shape.width - first) * channels];
                for (target, source) in target.rchunks_exact_mut(channels).zip(source.chunks_exact(channels)) {
                    target.copy_from_slice(source);
                }
            } else {
                target[first * channels..last * channels].copy_from_slice(source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stream;

    const SHAPE: ImageShape = ImageShape { height: 3, width: 4, channels: 2 };

    fn source() -> Vec<u8> {
        (1..=SHAPE.size() as u8).collect()
    }

    #[test]
    fn nothing_is_drawn_or_changed_by_default() {
        let mut rng = stream(0, "augmentation");
        let mut target = vec![0; SHAPE.size()];
        AugmentationConfig::default().apply(SHAPE, &source(), &mut target, &mut rng);
        assert_eq!(target, source());
        assert_eq!(rng.next_u64(), stream(0, "augmentation").next_u64());
    }

    #[test]
    fn padding_as_large_as_the_image_is_refused() {
        let problems = AugmentationConfig { crop_padding: 3, flip: true }.validate(SHAPE);
        assert_eq!(problems[0].to_string(), "crop-padding is 3, expected at most 2 for 3x4x2 images");
        assert!(AugmentationConfig { crop_padding: 2, flip: true }.validate(SHAPE).is_empty());
    }

    proptest! {
        #[test]
        fn every_pixel_is_the_shifted_and_mirrored_one(crop_padding in 0_usize..3, flip: bool, seed: u64) {
            let config = AugmentationConfig { crop_padding, flip };
            let mut target = vec![77; SHAPE.size()];
            config.apply(SHAPE, &source(), &mut target, &mut stream(seed, "augmentation"));
            // The plain definition, pixel by pixel, from the same draws.
            let mut rng = stream(seed, "augmentation");
            let mirror = flip && rng.random::<bool>();
            let [row, column] = if crop_padding == 0 { [0; 2] } else { [0; 2].map(|_: usize| rng.random_range(0..=2 * crop_padding)) };
            for i in 0..SHAPE.height {
                for j in 0..SHAPE.width {
                    let cut = if mirror { SHAPE.width - 1 - j } else { j };
                    let (y, x) = ((i + row).wrapping_sub(crop_padding), (cut + column).wrapping_sub(crop_padding));
                    for c in 0..SHAPE.channels {
                        let inside = y < SHAPE.height && x < SHAPE.width;
                        let expected = if inside { source()[(y * SHAPE.width + x) * SHAPE.channels + c] } else { 0 };
                        prop_assert_eq!(target[(i * SHAPE.width + j) * SHAPE.channels + c], expected);
                    }
                }
            }
        }
    }
}
