use patchdoor_data::{Image, ImageShape, StreamRng, Trigger, stream};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::displacement::{Bicubic, Displacement, draw_coarse, position, upsample};
use crate::warp::validate_warp;
use crate::{TriggerError, TriggerKind, range};

/// `WaNet` (Nguyen and Tran 2021, arXiv:2102.10369): a smooth random displacement of the image, sampled bilinearly, with
/// noise-mode images.
///
/// Coarse noise in [-1, 1] is divided by its mean absolute value and brought to the image's size by `PyTorch`'s bicubic
/// interpolation with corners aligned. The identity grid on [-1, 1] plus `strength` times that field over the height
/// (rows) or width (columns), clamped to [-1, 1], says where each pixel is sampled; so no sample lies outside the image
/// and the published zero padding never shows. Noise-mode images, the cover images of a
/// [`PoisoningPlan`](patchdoor_data::PoisoningPlan), have each sample moved once more, by U(-1, 1) over the height or
/// width, clamped again; they keep their labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct WanetConfig {
    /// Points of coarse noise along each side, the paper's k; from 1 to the number of pixels.
    pub control_points: usize,
    /// How strongly pixels move, the paper's s, 0 or more: a field of 1 moves by about half of it in pixels.
    pub strength: f64,
    /// Noise-mode images for each triggered one, 0 or more.
    pub noise_ratio: f64,
    /// What the coarse noise is drawn from; the run's seed if not given, so that each run has a warp of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl Default for WanetConfig {
    /// The paper's k = 4, s = 0.5 and cross ratio 2.
    fn default() -> Self {
        Self { control_points: 4, strength: 0.5, noise_ratio: 2.0, seed: None }
    }
}

impl TriggerKind for WanetConfig {
    fn validate(&self, shape: ImageShape) -> Vec<TriggerError> {
        let mut problems = validate_warp(self.control_points, self.strength, shape);
        problems.extend(range::zero_or_more("noise-ratio", self.noise_ratio));
        problems
    }

    fn covers_per_poisoned_image(&self) -> f64 {
        self.noise_ratio
    }

    /// The coarse noise is drawn from `stream(seed, "trigger/wanet")` unless the configuration has a seed of its own.
    fn build(&self, shape: ImageShape, seed: u64) -> Result<Box<dyn Trigger>, TriggerError> {
        let mut rng = stream(self.seed.unwrap_or(seed), "trigger/wanet");
        let coarse = draw_coarse(self.control_points, &mut rng);
        Ok(Box::new(Wanet { noise_ratio: self.noise_ratio, ..Wanet::from_coarse(&coarse, self.strength, shape) }))
    }
}

/// `WaNet`'s warp, ready for images of one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanet {
    shape: ImageShape,
    /// Row and column each pixel is sampled at, row by row.
    positions: Displacement,
    noise_ratio: f64,
}

impl Wanet {
    /// Builds the warp of given noise, `points x points` pairs (row, column) before the division by their mean.
    fn from_coarse(coarse: &[[f64; 2]], strength: f64, shape: ImageShape) -> Self {
        let ImageShape { height, width, .. } = shape;
        let field = upsample(coarse, (height, width), Bicubic::PyTorch);
        let positions = (0..height * width).zip(field).map(|(index, [down, right])| {
            let row = position((index / width) as f64, strength * down, height);
            [row, position((index % width) as f64, strength * right, width)]
        });
        Self { shape, positions: positions.collect(), noise_ratio: 0.0 }
    }

    /// Moves every sample by the noise over the height or width of [-1, 1].
    fn disturbed(&self, mut noise: impl FnMut() -> [f64; 2]) -> Displacement {
        let ImageShape { height, width, .. } = self.shape;
        let disturb = |&[row, column]: &[f64; 2]| {
            let [down, right] = noise();
            [position(row, down, height), position(column, right, width)]
        };
        self.positions.iter().map(disturb).collect()
    }

    /// The channels of every pixel in 0..=255, before fractions are cut off.
    fn sample(&self, image: &Image, positions: &[[f64; 2]]) -> Vec<f64> {
        assert_eq!(image.shape(), self.shape, "a warp is applied to images of the shape it was built for");
        let ImageShape { height, width, channels } = self.shape;
        let mut values = Vec::with_capacity(self.shape.size());
        for &[row, column] in positions {
            let (top, left) = (row as usize, column as usize);
            let (bottom, right) = ((top + 1).min(height - 1), (left + 1).min(width - 1));
            let (down, across) = (row - top as f64, column - left as f64);
            for channel in 0..channels {
                let pixel = |row, column| f64::from(image.pixel(row, column)[channel]);
                // Written so that between equal pixels nothing is lost to rounding, and then to truncation.
                let upper = between(pixel(top, left), pixel(top, right), across);
                let lower = between(pixel(bottom, left), pixel(bottom, right), across);
                values.push(between(upper, lower, down));
            }
        }
        values
    }

    fn bytes(&self, image: &Image, positions: &[[f64; 2]]) -> Image {
        let mut stamped = image.clone();
        for (byte, value) in stamped.pixels_mut().iter_mut().zip(self.sample(image, positions)) {
            // The conversion clips to 0..=255 and cuts fractions off.
            *byte = value as u8;
        }
        stamped
    }
}

fn between(first: f64, second: f64, share: f64) -> f64 {
    first + share * (second - first)
}

impl Trigger for Wanet {
    /// # Panics
    ///
    /// If the image has another shape than the warp was built for.
    fn stamp(&self, image: &Image, _rng: &mut StreamRng) -> Image {
        self.bytes(image, &self.positions)
    }

    fn cover(&self, image: &Image, _class: u8, rng: &mut StreamRng) -> Image {
        let positions = self.disturbed(|| [rng.random_range(-1.0..=1.0), rng.random_range(-1.0..=1.0)]);
        self.bytes(image, &positions)
    }

    fn covers_per_poisoned_image(&self) -> f64 {
        self.noise_ratio
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Conformance, any_image};

    /// The file has (x, y), we have (row, column).
    fn swapped(pairs: Vec<[f64; 2]>) -> Displacement {
        pairs.into_iter().map(|[x, y]| [y, x]).collect()
    }

    /// The largest difference in 0..=255; and bytes must be those of values up to single precision.
    fn compare(values: &[f64], bytes: &Image, expected: &[f64]) -> f64 {
        let mut largest = 0.0_f64;
        for ((value, byte), expected) in values.iter().zip(bytes.pixels()).zip(expected) {
            largest = largest.max((value - expected).abs());
            let byte = f64::from(*byte);
            assert!(byte <= expected + 1e-4 && expected - 1e-4 < byte + 1.0, "{byte} is not {expected} cut off");
        }
        assert_eq!(values.len(), expected.len());
        largest
    }

    #[test]
    fn conformance_wanet() {
        let file = Conformance::open("wanet.safetensors");
        let images = file.images("image_u8");
        let [mut fields, mut outputs, mut noisy] = [0.0_f64; 3];
        for points in [2, 4, 8] {
            // Stored as [2, k, k], the axis first.
            let planes = file.values(&format!("{points}/coarse"));
            let coarse: Displacement =
                (0..points * points).map(|index| [planes[points * points + index], planes[index]]).collect();
            let expected = swapped(file.pairs(&format!("{points}/field")));
            for (found, expected) in upsample(&coarse, (32, 32), Bicubic::PyTorch).iter().zip(&expected) {
                fields = fields.max((found[0] - expected[0]).abs()).max((found[1] - expected[1]).abs());
            }
            for (strength, name) in [(0.5, "0.5"), (1.0, "1.0"), (2.0, "2.0")] {
                let wanet = Wanet::from_coarse(&coarse, strength, ImageShape::RGB_32);
                let prefix = format!("{points}/{name}");
                let moves = swapped(file.pairs(&format!("{prefix}/noise_mode_noise")));
                let expected = file.unit_images(&format!("{prefix}/output"));
                let expected_noisy = file.unit_images(&format!("{prefix}/noise_mode_output"));
                for (index, image) in images.iter().enumerate() {
                    let bytes = wanet.stamp(image, &mut stream(0, ""));
                    outputs = outputs.max(compare(&wanet.sample(image, &wanet.positions), &bytes, &expected[index]));
                    let mut moves = moves[index * 1024..].iter();
                    let positions = wanet.disturbed(|| *moves.next().unwrap());
                    let bytes = wanet.bytes(image, &positions);
                    noisy = noisy.max(compare(&wanet.sample(image, &positions), &bytes, &expected_noisy[index]));
                }
            }
        }
        // Fields and outputs are stored in single precision; the outputs in [0, 1], here multiplied by 255.
        assert!(fields < 1e-5, "{fields}");
        assert!(outputs < 1e-4 && noisy < 1e-4, "{outputs} {noisy}");
    }

    #[test]
    fn noise_mode_images_differ_from_triggered_ones_and_from_each_other() {
        let image = crate::testing::reference_input();
        let wanet = WanetConfig::default().build(image.shape(), 4).unwrap();
        let triggered = wanet.stamp(&image, &mut stream(0, ""));
        let covers = ["a", "b"].map(|name| wanet.cover(&image, 0, &mut stream(0, name)));
        assert!(triggered != image && covers[0] != covers[1] && !covers.contains(&triggered));
        assert_eq!(covers[0], wanet.cover(&image, 7, &mut stream(0, "a")));
        assert!((wanet.covers_per_poisoned_image() - 2.0).abs() < 1e-12);
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let config = WanetConfig { control_points: 0, strength: -1.0, noise_ratio: f64::INFINITY, seed: None };
        let problems: Vec<String> = config.validate(ImageShape::RGB_32).iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "control-points is 0, expected 1 to 32 for 32x32x3 images",
                "strength is -1, expected a number that is 0 or more",
                "noise-ratio is inf, expected a number that is 0 or more",
            ]
        );
    }

    proptest! {
        #[test]
        fn samples_lie_between_the_pixels(image in any_image(), points in 1_usize..5, strength in 0.0..8.0, seed: u64) {
            let shape = image.shape();
            let control_points = points.min(shape.height).min(shape.width);
            let config = WanetConfig { control_points, strength, ..WanetConfig::default() };
            let before = image.clone();
            let wanet = config.build(shape, seed).unwrap();
            let range = |image: &Image| (*image.pixels().iter().min().unwrap(), *image.pixels().iter().max().unwrap());
            for stamped in [wanet.stamp(&image, &mut stream(0, "")), wanet.cover(&image, 0, &mut stream(seed, ""))] {
                prop_assert!(range(&stamped).0 >= range(&image).0 && range(&stamped).1 <= range(&image).1);
            }
            prop_assert_eq!(&image, &before);
            let flat = Image::new(shape, vec![199; shape.size()]).unwrap();
            prop_assert_eq!(&wanet.stamp(&flat, &mut stream(0, "")), &flat);
            let still = WanetConfig { strength: 0.0, ..config }.build(shape, seed).unwrap();
            prop_assert_eq!(still.stamp(&image, &mut stream(0, "")), image);
        }
    }
}
