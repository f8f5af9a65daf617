use patchdoor_data::{Image, ImageShape, PicturesWanted, StreamRng, Trigger};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::error::invalid;
use crate::{TriggerError, TriggerKind, range};

/// Fewer levels of every colour (`BppAttack`, Wang et al. 2022, arXiv:2205.13383).
///
/// A value `x` becomes `round(x / 255 (levels - 1)) / (levels - 1) * 255`, halves to the even level. With dithering,
/// what a pixel loses is handed on to those that come after it (Floyd and Steinberg 1976): 7/16 to the right, 3/16,
/// 5/16 and 1/16 to the three below.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct BppConfig {
    /// Levels of a channel, 2 to 256.
    pub levels: u16,
    /// Whether errors are handed on to neighbours.
    pub dithering: bool,
    /// Negative images for each triggered one, 0 or more: each gets the difference that fewer levels make in another
    /// training image, and keeps its label, so that the model learns these levels and not any noise.
    #[serde(skip_serializing_if = "is_none")]
    pub negative_ratio: f64,
}

/// Whether there are no negative images.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_none(ratio: &f64) -> bool {
    *ratio == 0.0
}

/// From how many training images differences are taken; the published code has all of them.
const DIFFERENCES: usize = 1000;

impl Default for BppConfig {
    /// The published code's 8 levels for CIFAR-10 (3 bits), dithered as in the paper; without negative images, so that what
    /// is poisoned compares with other triggers.
    fn default() -> Self {
        Self { levels: 8, dithering: true, negative_ratio: 0.0 }
    }
}

impl TriggerKind for BppConfig {
    fn validate(&self, _shape: ImageShape) -> Vec<TriggerError> {
        let is_allowed = (2..=256).contains(&self.levels);
        let mut problems = if is_allowed { Vec::new() } else { vec![invalid("levels", self.levels, "2 to 256")] };
        problems.extend(range::zero_or_more("negative-ratio", self.negative_ratio));
        problems
    }

    fn covers_per_poisoned_image(&self) -> f64 {
        self.negative_ratio
    }

    fn build(&self, _shape: ImageShape, _seed: u64) -> Result<Box<dyn Trigger>, TriggerError> {
        let Self { levels, dithering, negative_ratio } = *self;
        Ok(Box::new(Bpp { steps: f64::from(levels - 1), dithering, negative_ratio, pictures: Vec::new() }))
    }
}

/// Fewer levels, for images of any shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Bpp {
    /// Levels less one.
    steps: f64,
    dithering: bool,
    negative_ratio: f64,
    /// Whose differences negative images get.
    pictures: Vec<Image>,
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

    /// A negative image, clipped.
    ///
    /// # Panics
    ///
    /// If the trigger was not given its pictures.
    fn cover(&self, image: &Image, class: u8, rng: &mut StreamRng) -> Image {
        if self.negative_ratio == 0.0 {
            return self.stamp_training(image, class, rng);
        }
        assert!(!self.pictures.is_empty(), "BPP has pictures before it makes negative images");
        let other = &self.pictures[rng.random_range(0..self.pictures.len())];
        let fewer = self.stamp(other, rng);
        let mut negative = image.clone();
        for ((pixel, before), after) in negative.pixels_mut().iter_mut().zip(other.pixels()).zip(fewer.pixels()) {
            let difference = i16::from(*after) - i16::from(*before);
            *pixel = (i16::from(*pixel) + difference).clamp(0, 255) as u8;
        }
        negative
    }

    fn pictures_wanted(&self) -> Option<PicturesWanted> {
        (self.negative_ratio > 0.0).then_some(PicturesWanted { count: DIFFERENCES, of_target_class: true })
    }

    fn take_pictures(&mut self, pictures: Vec<Image>) {
        self.pictures = pictures;
    }

    fn covers_per_poisoned_image(&self) -> f64 {
        self.negative_ratio
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
            let image = stamped(&BppConfig { levels, dithering, ..Default::default() }, &reference_input());
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
        assert_eq!(
            stamped(&BppConfig { levels: 2, dithering: true, ..Default::default() }, &image).pixels(),
            [0, 255, 0, 0]
        );
        assert_eq!(stamped(&BppConfig { levels: 2, dithering: false, ..Default::default() }, &image).pixels(), [0; 4]);
    }

    #[test]
    fn negative_images_carry_the_difference_of_another_image() {
        // Two levels without dithering: 100 becomes 0 and 200 becomes 255, so the differences are -100 and 55.
        let shape = ImageShape { height: 1, width: 2, channels: 1 };
        let config = BppConfig { levels: 2, dithering: false, negative_ratio: 1.0 };
        let mut trigger = config.build(shape, 0).unwrap();
        let wanted = trigger.pictures_wanted().unwrap();
        assert!(wanted.count == 1000 && wanted.of_target_class);
        trigger.take_pictures(vec![Image::new(shape, vec![100, 200]).unwrap()]);
        let image = Image::new(shape, vec![130, 220]).unwrap();
        assert_eq!(trigger.cover(&image, 0, &mut stream(0, "")).pixels(), [30, 255]);
        assert!((trigger.covers_per_poisoned_image() - 1.0).abs() < 1e-12);
        // Without negative images a cover is as any poisoned image.
        let plain = BppConfig { negative_ratio: 0.0, ..config }.build(shape, 0).unwrap();
        assert_eq!(plain.cover(&image, 0, &mut stream(0, "")), plain.stamp(&image, &mut stream(0, "")));
        assert_eq!(plain.pictures_wanted(), None);
    }

    #[test]
    fn all_levels_change_nothing() {
        for dithering in [false, true] {
            assert_eq!(
                stamped(&BppConfig { levels: 256, dithering, ..Default::default() }, &reference_input()),
                reference_input()
            );
        }
    }

    #[test]
    fn a_single_level_is_refused() {
        let problems = BppConfig { levels: 1, dithering: true, ..Default::default() }.validate(ImageShape::RGB_32);
        assert_eq!(problems[0].to_string(), "levels is 1, expected 2 to 256");
    }
}
