use patchdoor_data::{Image, ImageShape, StreamRng, Trigger};
use serde::{Deserialize, Serialize};

use crate::frequencies::Frequencies;
use crate::{TriggerError, TriggerKind, range};

/// Frequencies added to the colours of an image, in tests more than in training (CTRL, Li et al. 2023, arXiv:2210.07346).
///
/// The image goes to YUV; in both colour channels a magnitude is added to some coefficients of the orthonormal cosine
/// transform of every window, and the image goes back to RGB. Images of one channel get the frequencies in that one. The
/// published code stays in floating point; here values are clipped and rounded to the nearest byte. It poisons images of
/// the target class, which keep their label: `label-rule.clean-label`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct CtrlConfig {
    /// What is added to a coefficient of a training image, above 0.
    pub training_magnitude: f64,
    /// What is added to a coefficient of a test image, above 0.
    pub test_magnitude: f64,
    /// Side of the square windows that are transformed, a divisor of both sides of the image; the whole image if not
    /// given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Rows and columns of the coefficients, each below the window's side; the middle one and the last one if not given,
    /// in a window of 32 the published (15, 15) and (31, 31).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positions: Option<Vec<[usize; 2]>>,
}

impl Default for CtrlConfig {
    /// The published code's magnitudes for CIFAR-10.
    fn default() -> Self {
        Self { training_magnitude: 50.0, test_magnitude: 100.0, window: None, positions: None }
    }
}

impl CtrlConfig {
    fn frequencies(&self) -> Frequencies<'_> {
        Frequencies { window: self.window, positions: self.positions.as_deref() }
    }
}

impl TriggerKind for CtrlConfig {
    fn validate(&self, shape: ImageShape) -> Vec<TriggerError> {
        let mut problems = Vec::from_iter(range::above_zero("training-magnitude", self.training_magnitude));
        problems.extend(range::above_zero("test-magnitude", self.test_magnitude));
        problems.extend(self.frequencies().validate(shape));
        problems
    }

    fn build(&self, shape: ImageShape, _seed: u64) -> Result<Box<dyn Trigger>, TriggerError> {
        let of = |magnitude| self.frequencies().pattern(magnitude, shape);
        Ok(Box::new(Ctrl { shape, training: of(self.training_magnitude), test: of(self.test_magnitude) }))
    }
}

/// What is added to every pixel's colours, ready for images of one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Ctrl {
    shape: ImageShape,
    /// `[row, column]`
    training: Vec<f64>,
    /// `[row, column]`
    test: Vec<f64>,
}

impl Ctrl {
    fn add(&self, image: &Image, pattern: &[f64]) -> Image {
        assert_eq!(image.shape(), self.shape, "frequencies are added to images of the shape they were built for");
        let mut stamped = image.clone();
        for (pixel, &added) in stamped.pixels_mut().chunks_mut(self.shape.channels).zip(pattern) {
            if let [red, green, blue] = pixel {
                let [luma, first, second] = into_yuv([*red, *green, *blue]);
                [*red, *green, *blue] = into_rgb([luma, first + added, second + added]).map(byte);
            } else {
                for channel in pixel {
                    *channel = byte(f64::from(*channel) + added);
                }
            }
        }
        stamped
    }
}

impl Trigger for Ctrl {
    /// # Panics
    ///
    /// If the image has another shape than the patterns were built for.
    fn stamp(&self, image: &Image, _rng: &mut StreamRng) -> Image {
        self.add(image, &self.test)
    }

    fn stamp_training(&self, image: &Image, _class: u8, _rng: &mut StreamRng) -> Image {
        self.add(image, &self.training)
    }
}

/// The nearest byte; the conversion clips to 0..=255.
fn byte(value: f64) -> u8 {
    value.round_ties_even() as u8
}

/// Kornia's conversion, which the published code calls.
fn into_yuv(pixel: [u8; 3]) -> [f64; 3] {
    let [red, green, blue] = pixel.map(f64::from);
    [
        0.299 * red + 0.587 * green + 0.114 * blue,
        -0.147 * red - 0.289 * green + 0.436 * blue,
        0.615 * red - 0.515 * green - 0.100 * blue,
    ]
}

/// Kornia's way back, which is the inverse up to the third digit.
fn into_rgb([luma, first, second]: [f64; 3]) -> [f64; 3] {
    [luma + 1.14 * second, luma - 0.396 * first - 0.581 * second, luma + 2.029 * first]
}

#[cfg(test)]
mod tests {
    use patchdoor_data::stream;

    use super::*;
    use crate::testing::{reference_input, summary};

    #[test]
    fn bytes_are_those_of_the_published_steps() {
        // Computed with NumPy and SciPy 1: kornia's rgb_to_yuv, dctn and idctn (type 2, orthonormal) of U and V with the
        // magnitude added at (15, 15) and (31, 31), kornia's yuv_to_rgb, clipped, rint.
        let trigger = CtrlConfig::default().build(ImageShape::RGB_32, 0).unwrap();
        let test = trigger.stamp(&reference_input(), &mut stream(0, ""));
        assert_eq!(summary(&test), (396_824, "cc0b4ada6757e696".to_owned(), 2844));
        assert_eq!([test.pixel(5, 9), test.pixel(31, 31)], [[155, 179, 215], [112, 134, 173]]);
        let training = trigger.stamp_training(&reference_input(), 0, &mut stream(0, ""));
        assert_eq!(summary(&training), (396_758, "6de1fa9b481453fb".to_owned(), 2756));
        assert_eq!([training.pixel(5, 9), training.pixel(31, 31)], [[153, 180, 212], [110, 135, 169]]);
    }

    #[test]
    fn a_constant_frequency_adds_its_share_to_every_pixel() {
        // In a window of 4 x 4 the first coefficient is a quarter of the sum: 50 are 12.5 for each pixel, rounded to the
        // even of 112 and 113; 100 are 25.
        let shape = ImageShape { height: 4, width: 8, channels: 1 };
        let config = CtrlConfig { window: Some(4), positions: Some(vec![[0, 0]]), ..Default::default() };
        let trigger = config.build(shape, 0).unwrap();
        let image = Image::new(shape, vec![100; 32]).unwrap();
        assert_eq!(trigger.stamp(&image, &mut stream(0, "")).pixels(), [125; 32]);
        assert_eq!(trigger.stamp_training(&image, 0, &mut stream(0, "")).pixels(), [112; 32]);
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let config = CtrlConfig {
            training_magnitude: 0.0,
            test_magnitude: f64::NAN,
            window: Some(16),
            positions: Some(vec![[16, 0]]),
        };
        let problems: Vec<String> = config.validate(ImageShape::RGB_32).iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "training-magnitude is 0, expected a number above 0",
                "test-magnitude is NaN, expected a number above 0",
                "positions is [16, 0], expected rows below 16 and columns below 16",
            ]
        );
    }
}
