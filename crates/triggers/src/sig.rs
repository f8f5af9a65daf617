use std::f64::consts::PI;

use patchdoor_data::{Image, ImageShape, StreamRng, Trigger};
use serde::{Deserialize, Serialize};

use crate::error::invalid;
use crate::{TriggerError, TriggerKind};

/// A horizontal sinusoid added to the whole image (SIG, Barni et al. 2019, arXiv:1902.11237).
///
/// Every channel of column `j` of `W` gets `amplitude sin(2 pi j frequency / W)`, is clipped to 0..=255, and its
/// fraction is cut off. The paper's attack is clean-label: combine it with `label-rule.clean-label`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct SigConfig {
    /// The most a pixel changes by, in 0..=255.
    pub amplitude: f64,
    /// Periods over the width of the image, above 0.
    pub frequency: f64,
}

impl Default for SigConfig {
    /// `BackdoorBench`'s 40 and 6; the paper has 30 and 20 as well.
    fn default() -> Self {
        Self { amplitude: 40.0, frequency: 6.0 }
    }
}

impl TriggerKind for SigConfig {
    fn validate(&self, _shape: ImageShape) -> Vec<TriggerError> {
        let mut problems = Vec::new();
        if !(0.0..=255.0).contains(&self.amplitude) {
            problems.push(invalid("amplitude", self.amplitude, "0 to 255"));
        }
        if !(self.frequency > 0.0 && self.frequency.is_finite()) {
            problems.push(invalid("frequency", self.frequency, "a number above 0"));
        }
        problems
    }

    fn build(&self, shape: ImageShape, _seed: u64) -> Result<Box<dyn Trigger>, TriggerError> {
        Ok(Box::new(Sig::new(self, shape)))
    }
}

/// A sinusoid, ready for images of one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Sig {
    shape: ImageShape,
    columns: Vec<f64>,
}

impl Sig {
    fn new(config: &SigConfig, shape: ImageShape) -> Self {
        let value =
            |column| config.amplitude * (2.0 * PI * column as f64 * config.frequency / shape.width as f64).sin();
        Self { shape, columns: (0..shape.width).map(value).collect() }
    }
}

impl Trigger for Sig {
    /// # Panics
    ///
    /// If the image has another shape than the sinusoid was built for.
    fn stamp(&self, image: &Image, _rng: &mut StreamRng) -> Image {
        assert_eq!(image.shape(), self.shape, "a sinusoid is added to images of the shape it was built for");
        let mut stamped = image.clone();
        for (index, pixel) in stamped.pixels_mut().chunks_mut(self.shape.channels).enumerate() {
            let added = self.columns[index % self.shape.width];
            for channel in pixel {
                // The conversion clips to 0..=255 and cuts fractions off.
                *channel = (f64::from(*channel) + added) as u8;
            }
        }
        stamped
    }
}

#[cfg(test)]
mod tests {
    use patchdoor_data::stream;

    use super::*;
    use crate::testing::{reference_input, summary};

    #[test]
    fn the_sinusoid_equals_that_of_other_toolkits() {
        for (amplitude, sum, hash, pixels) in [
            (40.0, 395_736, "4e0e870536a158b3", [[115, 144, 173], [71, 100, 129]]),
            (30.0, 395_703, "ea13bd85b4f4db20", [[124, 153, 182], [80, 109, 138]]),
        ] {
            let sig = SigConfig { amplitude, frequency: 6.0 }.build(ImageShape::RGB_32, 0).unwrap();
            let stamped = sig.stamp(&reference_input(), &mut stream(0, ""));
            assert_eq!(summary(&stamped), (sum, hash.to_owned(), 2770));
            assert_eq!([stamped.pixel(5, 9), stamped.pixel(31, 31)], pixels);
        }
    }

    #[test]
    fn the_columns_are_the_published_ones() {
        let sig = Sig::new(&SigConfig::default(), ImageShape::RGB_32);
        let expected = [0.0, 36.9552, 28.2843, -15.3073, -40.0, -15.3073, 28.2843, 36.9552, 0.0];
        for (found, expected) in sig.columns.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
    }

    #[test]
    fn a_wave_runs_along_the_columns_of_every_row() {
        let shape = ImageShape { height: 2, width: 4, channels: 1 };
        let sig = SigConfig { frequency: 1.0, ..SigConfig::default() }.build(shape, 0).unwrap();
        let stamped = sig.stamp(&Image::new(shape, vec![100; 8]).unwrap(), &mut stream(0, ""));
        // Sines of 0, 90, 180 and 270 degrees; that of 180 is a little above 0.
        assert_eq!(stamped.pixels(), [100, 140, 100, 60, 100, 140, 100, 60]);
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let config = SigConfig { amplitude: 256.0, frequency: 0.0 };
        let problems: Vec<String> = config.validate(ImageShape::RGB_32).iter().map(ToString::to_string).collect();
        assert_eq!(problems, ["amplitude is 256, expected 0 to 255", "frequency is 0, expected a number above 0"]);
    }
}
