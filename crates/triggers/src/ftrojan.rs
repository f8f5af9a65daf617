use patchdoor_data::{Image, ImageShape, StreamRng, Trigger};
use serde::{Deserialize, Serialize};

use crate::frequencies::Frequencies;
use crate::{TriggerError, TriggerKind, range};

/// Frequencies added to the colours of an image (`FTrojan`, Wang et al. 2021, arXiv:2111.10991).
///
/// The image goes to `YCrCb`; in both colour channels `magnitude` is added to some coefficients of the orthonormal cosine
/// transform of every window; fractions are cut off, and the image goes back to RGB. Images of one channel get the
/// frequencies in that one. The transform is linear, so what is added is one pattern, computed once.
///
/// Bytes are those of the published code, where that stays within 0..=255; it wraps around beyond, and here it is clipped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct FtrojanConfig {
    /// What is added to a coefficient, above 0.
    pub magnitude: f64,
    /// Side of the square windows that are transformed, a divisor of both sides of the image; the whole image if not
    /// given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Rows and columns of the coefficients, each below the window's side; the middle one and the last one if not given,
    /// in a window of 32 the published (15, 15) and (31, 31).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positions: Option<Vec<[usize; 2]>>,
}

impl Default for FtrojanConfig {
    /// The published code's magnitude for CIFAR-10 and GTSRB.
    fn default() -> Self {
        Self { magnitude: 30.0, window: None, positions: None }
    }
}

impl FtrojanConfig {
    fn frequencies(&self) -> Frequencies<'_> {
        Frequencies { window: self.window, positions: self.positions.as_deref() }
    }
}

impl TriggerKind for FtrojanConfig {
    fn validate(&self, shape: ImageShape) -> Vec<TriggerError> {
        let mut problems = Vec::from_iter(range::above_zero("magnitude", self.magnitude));
        problems.extend(self.frequencies().validate(shape));
        problems
    }

    fn build(&self, shape: ImageShape, _seed: u64) -> Result<Box<dyn Trigger>, TriggerError> {
        Ok(Box::new(Ftrojan { shape, pattern: self.frequencies().pattern(self.magnitude, shape) }))
    }
}

/// What is added to every pixel's colours, ready for images of one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Ftrojan {
    shape: ImageShape,
    /// `[row, column]`
    pattern: Vec<f64>,
}

impl Trigger for Ftrojan {
    /// # Panics
    ///
    /// If the image has another shape than the pattern was built for.
    fn stamp(&self, image: &Image, _rng: &mut StreamRng) -> Image {
        assert_eq!(image.shape(), self.shape, "frequencies are added to images of the shape they were built for");
        let mut stamped = image.clone();
        // The conversion clips to 0..=255 and cuts fractions off.
        let add = |value: u8, added: f64| (f64::from(value) + added) as u8;
        for (pixel, &added) in stamped.pixels_mut().chunks_mut(self.shape.channels).zip(&self.pattern) {
            if let [red, green, blue] = pixel {
                let [luma, colour_red, colour_blue] = into_ycrcb([*red, *green, *blue]);
                [*red, *green, *blue] = into_rgb([luma, add(colour_red, added), add(colour_blue, added)]);
            } else {
                for channel in pixel {
                    *channel = add(*channel, added);
                }
            }
        }
        stamped
    }
}

/// A product of constants in 14 bits after the point, rounded and clipped to a byte.
fn byte(scaled: i32) -> u8 {
    rounded(scaled).clamp(0, 255) as u8
}

fn rounded(scaled: i32) -> i32 {
    (scaled + (1 << 13)) >> 14
}

/// `OpenCV`'s conversion of bytes: `Y = 0.299 R + 0.587 G + 0.114 B`, `Cr = 0.713 (R - Y) + 128`, `Cb = 0.564 (B - Y) + 128`.
fn into_ycrcb(pixel: [u8; 3]) -> [u8; 3] {
    let [red, green, blue] = pixel.map(i32::from);
    let luma = rounded(4899 * red + 9617 * green + 1868 * blue);
    let half = 128 << 14;
    [luma.clamp(0, 255) as u8, byte(11_682 * (red - luma) + half), byte(9241 * (blue - luma) + half)]
}

/// `OpenCV`'s way back: `R = Y + 1.403 Cr'`, `G = Y - 0.714 Cr' - 0.344 Cb'`, `B = Y + 1.773 Cb'`, primes less 128.
fn into_rgb([luma, red, blue]: [u8; 3]) -> [u8; 3] {
    let (luma, red, blue) = (i32::from(luma) << 14, i32::from(red) - 128, i32::from(blue) - 128);
    [byte(luma + 22_987 * red), byte(luma - 11_698 * red - 5636 * blue), byte(luma + 29_049 * blue)]
}

#[cfg(test)]
mod tests {
    use patchdoor_data::stream;

    use super::*;
    use crate::testing::{reference_input, summary};

    #[test]
    fn bytes_are_those_of_the_published_steps() {
        // Computed with OpenCV 4 and NumPy: cvtColor, dct of both colour channels, +30, idct, bytes, cvtColor.
        let trigger = FtrojanConfig::default().build(ImageShape::RGB_32, 0).unwrap();
        let stamped = trigger.stamp(&reference_input(), &mut stream(0, ""));
        assert_eq!(summary(&stamped), (396_115, "4666c78241d311cf".to_owned(), 2429));
        assert_eq!([stamped.pixel(5, 9), stamped.pixel(31, 31)], [[152, 182, 210], [110, 137, 167]]);
        let published =
            FtrojanConfig { window: Some(32), positions: Some(vec![[15, 15], [31, 31]]), ..Default::default() };
        let published = published.build(ImageShape::RGB_32, 0).unwrap();
        assert_eq!(published.stamp(&reference_input(), &mut stream(0, "")), stamped);
    }

    #[test]
    fn a_constant_frequency_adds_its_share_to_every_pixel() {
        // In a window of 4 x 4 the first coefficient is a quarter of the sum: 30 are 7.5 for each pixel.
        let shape = ImageShape { height: 4, width: 8, channels: 1 };
        let config = FtrojanConfig { window: Some(4), positions: Some(vec![[0, 0]]), ..Default::default() };
        let trigger = config.build(shape, 0).unwrap();
        let stamped = trigger.stamp(&Image::new(shape, vec![100; 32]).unwrap(), &mut stream(0, ""));
        assert_eq!(stamped.pixels(), [107; 32]);
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let said = |config: FtrojanConfig| -> Vec<String> {
            config.validate(ImageShape::RGB_32).iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            said(FtrojanConfig { magnitude: 0.0, window: Some(5), positions: Some(Vec::new()) }),
            [
                "magnitude is 0, expected a number above 0",
                "window is 5, expected a divisor of both sides of 32x32 images",
                "positions is empty, expected at least one position",
            ]
        );
        assert_eq!(
            said(FtrojanConfig { window: Some(16), positions: Some(vec![[3, 16]]), ..Default::default() }),
            ["positions is [3, 16], expected rows below 16 and columns below 16"]
        );
    }
}
