use patchdoor_data::{Image, ImageShape, StreamRng, Trigger, stream};
use serde::{Deserialize, Serialize};

use crate::displacement::{Bicubic, Displacement, draw_coarse, position, upsample};
use crate::error::invalid;
use crate::{TriggerError, TriggerKind, range};

/// The warp as Chan et al. (2025, arXiv:2505.01811) published it: a smooth random displacement of the image, sampled by
/// **truncating to whole pixels**.
///
/// Coarse noise in [-1, 1] is divided by its mean absolute value, brought to the image's size by `TensorFlow`'s bicubic
/// interpolation, and clipped to [-1, 1]. The identity grid on [-1, 1] plus `strength` times that field over the height
/// (rows) or width (columns), clipped to [-1, 1] again, says where each pixel is fetched. With the default strength no
/// pixel moves by more than 0.13 pixels; only because fractions are cut off do pixels move at all, by one whole pixel
/// up or to the left wherever the field is negative. [`WanetConfig`](crate::WanetConfig) is the warp they had in mind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct WarpConfig {
    /// Points of coarse noise along each side, the papers' k; from 1 to the number of pixels.
    pub control_points: usize,
    /// How strongly pixels move, the papers' s, 0 or more: a field of 1 moves by about half of it in pixels.
    pub strength: f64,
    /// What the noise is drawn from; the run's seed if not given, so that each run has a warp of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl Default for WarpConfig {
    /// The authors' k = 2 and s = 0.25.
    fn default() -> Self {
        Self { control_points: 2, strength: 0.25, seed: None }
    }
}

impl TriggerKind for WarpConfig {
    fn validate(&self, shape: ImageShape) -> Vec<TriggerError> {
        validate_warp(self.control_points, self.strength, shape)
    }

    /// The noise is drawn from `stream(seed, "trigger/warp")` unless the configuration has a seed of its own.
    fn build(&self, shape: ImageShape, seed: u64) -> Result<Box<dyn Trigger>, TriggerError> {
        Ok(Box::new(Warp::new(self, shape, seed)))
    }
}

/// What both warps ask of their fields.
pub(crate) fn validate_warp(control_points: usize, strength: f64, shape: ImageShape) -> Vec<TriggerError> {
    let mut problems = Vec::new();
    let most = shape.height.min(shape.width);
    if !(1..=most).contains(&control_points) {
        problems.push(invalid("control-points", control_points, format!("1 to {most} for {shape} images")));
    }
    problems.extend(range::zero_or_more("strength", strength));
    problems
}

/// A warp by whole pixels, ready for images of one shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warp {
    shape: ImageShape,
    /// Row and column each pixel is fetched from, row by row.
    sources: Vec<[usize; 2]>,
}

impl Warp {
    fn new(config: &WarpConfig, shape: ImageShape, seed: u64) -> Self {
        let mut rng = stream(config.seed.unwrap_or(seed), "trigger/warp");
        Self::from_coarse(&draw_coarse(config.control_points, &mut rng), config.strength, shape)
    }

    /// Builds the warp of given noise, `points x points` pairs (row, column) before the division by their mean.
    fn from_coarse(coarse: &[[f64; 2]], strength: f64, shape: ImageShape) -> Self {
        let ImageShape { height, width, .. } = shape;
        let sources = (0..height * width).zip(field(coarse, shape)).map(|(index, [down, right])| {
            let row = position((index / width) as f64, strength * down, height);
            let column = position((index % width) as f64, strength * right, width);
            // Positions are not negative, so the conversion cuts off their fractions.
            [row as usize, column as usize]
        });
        Self { shape, sources: sources.collect() }
    }
}

/// The upsampled noise, clipped to [-1, 1].
fn field(coarse: &[[f64; 2]], shape: ImageShape) -> Displacement {
    let mut field = upsample(coarse, (shape.height, shape.width), Bicubic::TensorFlow);
    field.as_flattened_mut().iter_mut().for_each(|value| *value = value.clamp(-1.0, 1.0));
    field
}

impl Trigger for Warp {
    /// # Panics
    ///
    /// If the image has another shape than the warp was built for.
    fn stamp(&self, image: &Image, _rng: &mut StreamRng) -> Image {
        assert_eq!(image.shape(), self.shape, "a warp is applied to images of the shape it was built for");
        let mut stamped = image.clone();
        for (index, &[row, column]) in self.sources.iter().enumerate() {
            let target = stamped.pixel_mut(index / self.shape.width, index % self.shape.width);
            target.copy_from_slice(image.pixel(row, column));
        }
        stamped
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Conformance, any_image};

    #[test]
    fn conformance_warp() {
        let file = Conformance::open("triggers.safetensors");
        let images = file.images("image_u8");
        let mut largest = 0.0_f64;
        let mut compared = 0;
        for points in [2, 4, 8] {
            for (strength, name) in [(0.25, "0.25"), (0.5, "0.5"), (1.0, "1.0"), (4.0, "4.0")] {
                let prefix = format!("warp/{points}/{name}");
                let coarse = file.pairs(&format!("{prefix}/coarse"));
                assert_eq!(coarse.len(), points * points);
                let expected = file.pairs(&format!("{prefix}/noise_grid"));
                for (found, expected) in
                    field(&coarse, ImageShape::RGB_32).as_flattened().iter().zip(expected.as_flattened())
                {
                    largest = largest.max((found - expected).abs());
                }
                let warp = Warp::from_coarse(&coarse, strength, ImageShape::RGB_32);
                for (image, expected) in images.iter().zip(file.unit_images(&format!("{prefix}/output"))) {
                    let expected: Vec<u8> = expected.iter().map(|value| value.round() as u8).collect();
                    assert_eq!(warp.stamp(image, &mut stream(0, "")).pixels(), expected, "{prefix}");
                    compared += 1;
                }
            }
        }
        assert_eq!(compared, 36);
        // The field is stored in single precision.
        assert!(largest < 1e-5, "{largest}");
    }

    #[test]
    fn each_seed_has_its_own_warp_unless_the_configuration_has_one() {
        let build = |own, seed| Warp::new(&WarpConfig { seed: own, ..WarpConfig::default() }, ImageShape::RGB_32, seed);
        assert_eq!(build(None, 1), build(None, 1));
        assert_ne!(build(None, 1), build(None, 2));
        assert_eq!(build(Some(1), 2), build(None, 1));
    }

    #[test]
    fn pixels_move_by_one_at_most_at_the_published_strength() {
        for seed in 0..20 {
            let warp = Warp::new(&WarpConfig::default(), ImageShape::RGB_32, seed);
            for (index, &[row, column]) in warp.sources.iter().enumerate() {
                let (here, there) = (index / 32, index % 32);
                assert!((row == here || row + 1 == here) && (column == there || column + 1 == there));
            }
        }
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let shape = ImageShape { height: 4, width: 5, channels: 1 };
        let config = WarpConfig { control_points: 5, strength: f64::NAN, seed: None };
        let problems: Vec<String> = config.validate(shape).iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "control-points is 5, expected 1 to 4 for 4x5x1 images",
                "strength is NaN, expected a number that is 0 or more"
            ]
        );
    }

    proptest! {
        #[test]
        fn warped_pixels_come_from_the_image(image in any_image(), points in 1_usize..5, strength in 0.0..8.0, seed: u64) {
            let ImageShape { height, width, .. } = image.shape();
            let control_points = points.min(height).min(width);
            let config = WarpConfig { control_points, strength, seed: None };
            let before = image.clone();
            let stamped = config.build(image.shape(), seed).unwrap().stamp(&image, &mut stream(0, ""));
            prop_assert_eq!(&image, &before);
            let all: Vec<&[u8]> = image.pixels().chunks(image.shape().channels).collect();
            prop_assert!(stamped.pixels().chunks(image.shape().channels).all(|pixel| all.contains(&pixel)));
            let still = WarpConfig { strength: 0.0, ..config }.build(image.shape(), seed).unwrap();
            prop_assert_eq!(still.stamp(&image, &mut stream(0, "")), image);
        }
    }
}
