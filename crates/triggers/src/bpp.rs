use patchdoor_data::{Image, ImageShape, StreamRng, Trigger};
use serde::{Deserialize, Serialize};

use crate::error::invalid;
use crate::{TriggerError, TriggerKind};

/// Fewer levels of every colour (`BppAttack`, Wang et al. 2022, arXiv:2205.13383).
///
/// A value `x` becomes `round(x / 255 (levels - 1)) / (levels - 1) * 255`, halves to the even level. With dithering,
/// what a pixel loses is handed on to those that come after it (Floyd and Steinberg 1976): 7/16 to the right, 3/16,
/// 5/16 and 1/16 to the three below. The paper trains with contrast images too; here the trigger is the image alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct BppConfig {
    /// Levels of a channel, 2 to 256.
    pub levels: u16,
    /// Whether errors are handed on to neighbours.
    pub dithering: bool,
}

impl Default for BppConfig {
    /// The published code's 8 levels for CIFAR-10 (3 bits), dithered as in the paper.
    fn default() -> Self {
        Self { levels: 8, dithering: true }
    }
}

impl TriggerKind for BppConfig {
    fn validate(&self, _shape: ImageShape) -> Vec<TriggerError> {
        let is_allowed = (2..=256).contains(&self.levels);
        if is_allowed { Vec::new() } else { vec![invalid("levels", self.levels, "2 to 256")] }
    }

    fn build(&self, _shape: ImageShape, _seed: u64) -> Result<Box<dyn Trigger>, TriggerError> {
        Ok(Box::new(Bpp { steps: f64::from(self.levels - 1), dithering: self.dithering }))
    }
}

/// Fewer levels, for images of any shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Bpp {
    /// Levels less one.
    steps: f64,
    dithering: bool,
}

impl Bpp {
    fn nearest(&self, value: f64) -> f64 {
        (value / 255.0 * self.steps).round_ties_even() / self.steps * 255.0
    }

    /// The levels of all values, each with what those before it have lost.
    fn dithered(&self, image: &Image) -> Vec<f64> {
        let ImageShape { height, width, channels } = image.shape();
        let mut values: Vec<f64> = image.pixels().iter().map(|&value| f64::from(value)).collect();
        for row in 0..height {
            for column in 0..width {
                for channel in 0..channels {
                    let place = (row * width + column) * channels + channel;
                    let level = self.nearest(values[place]);
                    let lost = values[place] - level;
                    values[place] = level;
                    let (is_last, below) = (column + 1 == width, row + 1 < height);
                    if !is_last {
                        values[place + channels] += lost * 7.0 / 16.0;
                    }
                    let place = place + width * channels;
                    if below && !is_last {
                        values[place + channels] += lost / 16.0;
                    }
                    if below {
                        values[place] += lost * 5.0 / 16.0;
                    }
                    if below && column > 0 {
                        values[place - channels] += lost * 3.0 / 16.0;
                    }
                }
            }
        }
        values
    }
}

impl Trigger for Bpp {
    fn stamp(&self, image: &Image, _rng: &mut StreamRng) -> Image {
        let values = if self.dithering {
            self.dithered(image)
        } else {
            image.pixels().iter().map(|&value| self.nearest(f64::from(value))).collect()
        };
        let mut stamped = image.clone();
        for (pixel, value) in stamped.pixels_mut().iter_mut().zip(values) {
            // The conversion clips to 0..=255.
            *pixel = value.round_ties_even() as u8;
        }
        stamped
    }
}

#[cfg(test)]
mod tests {
    use patchdoor_data::stream;

    use super::*;
    use crate::testing::{reference_input, summary};

    fn stamped(config: &BppConfig, image: &Image) -> Image {
        config.build(image.shape(), 0).unwrap().stamp(image, &mut stream(0, ""))
    }

    #[test]
    fn levels_equal_those_of_the_published_formula() {
        // Computed with NumPy from the published formula, rounded to bytes.
        for (levels, dithering, sum, hash, changed, pixels) in [
            (8, false, 396_793, "b0ae1713eb3f757d", 2974, [[146, 182, 219], [109, 146, 182]]),
            (8, true, 397_084, "0a1a0787485f83c4", 2974, [[146, 182, 219], [109, 146, 182]]),
            (4, false, 396_525, "5bae79fc12663a16", 3023, [[170, 170, 170], [85, 170, 170]]),
            (4, true, 397_290, "dff9ed0b2e4a8938", 3023, [[85, 170, 255], [85, 170, 170]]),
        ] {
            let image = stamped(&BppConfig { levels, dithering }, &reference_input());
            assert_eq!(summary(&image), (sum, hash.to_owned(), changed), "{levels} levels, dithering {dithering}");
            assert_eq!([image.pixel(5, 9), image.pixel(31, 31)], pixels);
        }
    }

    #[test]
    fn errors_go_to_the_four_neighbours_that_come_after() {
        // Two levels. 100 is nearer to 0 and hands on 43.75, 31.25 and 6.25; 100 + 43.75 is nearer to 255 and hands on
        // -111.25: -34.77 down and -20.86 down left. So the row below is 100 + 31.25 - 20.86 = 110.39, nearer to 0, which
        // hands 48.30 to the right, where 100 + 6.25 - 34.77 + 48.30 = 119.78 is nearer to 0.
        let shape = ImageShape { height: 2, width: 2, channels: 1 };
        let image = Image::new(shape, vec![100; 4]).unwrap();
        assert_eq!(stamped(&BppConfig { levels: 2, dithering: true }, &image).pixels(), [0, 255, 0, 0]);
        assert_eq!(stamped(&BppConfig { levels: 2, dithering: false }, &image).pixels(), [0; 4]);
    }

    #[test]
    fn all_levels_change_nothing() {
        for dithering in [false, true] {
            assert_eq!(stamped(&BppConfig { levels: 256, dithering }, &reference_input()), reference_input());
        }
    }

    #[test]
    fn a_single_level_is_refused() {
        let problems = BppConfig { levels: 1, dithering: true }.validate(ImageShape::RGB_32);
        assert_eq!(problems[0].to_string(), "levels is 1, expected 2 to 256");
    }
}
