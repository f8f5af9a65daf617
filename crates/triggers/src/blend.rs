use std::path::Path;

use patchdoor_data::{Image, ImageShape, StreamRng, Trigger};
use serde::{Deserialize, Serialize};

use crate::pattern::Pattern;
use crate::{PatternConfig, TriggerError, TriggerKind, range};

/// A picture mixed into the whole image (Blended, Chen et al. 2017, arXiv:1712.05526).
///
/// `(1 - alpha) image + alpha pattern`, whose fractions are cut off. As in `BackdoorBench`, `alpha pattern` is rounded to
/// single precision; all else is double. This decides whether a sum that should be whole ends just below.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct BlendConfig {
    /// Share of the pattern, in [0, 1].
    pub alpha: f64,
    /// What is mixed in.
    pub pattern: PatternConfig,
}

impl Default for BlendConfig {
    /// The 0.5 of Chan et al. (2025, arXiv:2505.01811), whose picture cannot be passed on, with a face of ours.
    /// `BackdoorBench` has 0.2.
    fn default() -> Self {
        Self { alpha: 0.5, pattern: PatternConfig::default() }
    }
}

impl TriggerKind for BlendConfig {
    fn validate(&self, shape: ImageShape) -> Vec<TriggerError> {
        let mut problems = Vec::from_iter(range::share("alpha", self.alpha));
        problems.extend(self.pattern.validate(shape));
        problems
    }

    fn files(&self) -> Vec<&Path> {
        self.pattern.files()
    }

    /// A noise pattern without a seed of its own is drawn from `seed`.
    fn build(&self, shape: ImageShape, seed: u64) -> Result<Box<dyn Trigger>, TriggerError> {
        Ok(Box::new(Blend::new(self, shape, seed)?))
    }
}

/// A pattern ready to be mixed into images of its shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Blend {
    alpha: f64,
    pattern: Pattern,
}

impl Blend {
    pub(crate) fn new(config: &BlendConfig, shape: ImageShape, seed: u64) -> Result<Self, TriggerError> {
        Ok(Self { alpha: config.alpha, pattern: config.pattern.draw(shape, seed)? })
    }

    /// The channels of every pixel in 0..=255, before fractions are cut off.
    fn mix(&self, image: &Image, pattern: &Image) -> impl Iterator<Item = f64> {
        assert_eq!(image.shape(), pattern.shape(), "a pattern is mixed into images of its shape");
        let pairs = image.pixels().iter().zip(pattern.pixels());
        pairs.map(|(&pixel, &pattern)| {
            (1.0 - self.alpha) * f64::from(pixel) + f64::from(self.alpha as f32 * f32::from(pattern))
        })
    }
}

impl Trigger for Blend {
    /// # Panics
    ///
    /// If the image has another shape than the pattern.
    fn stamp(&self, image: &Image, rng: &mut StreamRng) -> Image {
        // The conversion clips to 0..=255 and cuts fractions off.
        let pixels = self.mix(image, &self.pattern.picture(rng)).map(|value| value as u8).collect();
        Image::new(image.shape(), pixels).expect("a mixture has as many pixels as the image")
    }
}

#[cfg(test)]
mod tests {
    use patchdoor_data::stream;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Conformance, image_of, reference_input, reference_pattern, summary};

    #[test]
    fn the_mixture_equals_that_of_other_toolkits() {
        for (alpha, sum, hash, pixels, changed) in [
            (0.1, 393_382, "47cecace4b00bc6f", [[142, 179, 189], [122, 132, 168]], 2938),
            (0.2, 391_309, "13ca99127a9b0f33", [[133, 177, 169], [136, 128, 171]], 2986),
        ] {
            let pattern = Pattern::Fixed(reference_pattern());
            let stamped = Blend { alpha, pattern }.stamp(&reference_input(), &mut stream(0, ""));
            assert_eq!(summary(&stamped), (sum, hash.to_owned(), changed));
            assert_eq!([stamped.pixel(5, 9), stamped.pixel(31, 31)], pixels);
        }
    }

    #[test]
    fn conformance_blend() {
        let file = Conformance::open("triggers.safetensors");
        let pattern = file.unit_images("blend/pattern").remove(0).iter().map(|value| value.round() as u8).collect();
        let pattern = Image::new(ImageShape::RGB_32, pattern).unwrap();
        let blend = Blend { alpha: 0.5, pattern: Pattern::Fixed(pattern.clone()) };
        let mut compared = 0;
        for (image, expected) in file.images("image_u8").iter().zip(file.unit_images("blend/output")) {
            let stamped = blend.stamp(image, &mut stream(0, ""));
            for ((value, byte), expected) in blend.mix(image, &pattern).zip(stamped.pixels()).zip(&expected) {
                // The file has single precision in [0, 1]; halves of bytes are exact in ours.
                assert!((value - expected).abs() < 1e-4, "{value} {expected}");
                assert_eq!(*byte, ((expected * 2.0).round() / 2.0) as u8);
                compared += 1;
            }
        }
        assert_eq!(compared, 3 * 3072);
    }

    #[test]
    fn alpha_is_a_share() {
        let config = BlendConfig { alpha: 1.5, ..BlendConfig::default() };
        let problems: Vec<String> = config.validate(ImageShape::RGB_32).iter().map(ToString::to_string).collect();
        assert_eq!(problems, ["alpha is 1.5, expected a share in [0, 1]"]);
    }

    #[test]
    fn noise_per_image_differs_between_images_and_is_the_same_again() {
        let config: BlendConfig = toml::from_str("alpha = 1.0\npattern.noise = { per-image = true }").unwrap();
        let blend = config.build(ImageShape::RGB_32, 0).unwrap();
        let stamp = |stream_name| blend.stamp(&reference_input(), &mut stream(0, stream_name));
        assert_eq!(stamp("one"), stamp("one"));
        assert_ne!(stamp("one"), stamp("another"));
    }

    proptest! {
        #[test]
        fn a_mixture_lies_between_image_and_pattern(
            image in image_of(ImageShape { height: 7, width: 5, channels: 3 }), alpha in 0.0..=1.0,
        ) {
            let before = image.clone();
            let config = BlendConfig { alpha, ..BlendConfig::default() };
            let blend = Blend::new(&config, image.shape(), 0).unwrap();
            let stamped = blend.stamp(&image, &mut stream(0, ""));
            prop_assert_eq!(&image, &before);
            let pattern = blend.pattern.picture(&mut stream(0, "")).into_owned();
            for ((&new, &old), &pattern) in stamped.pixels().iter().zip(image.pixels()).zip(pattern.pixels()) {
                // Truncation may take one more.
                prop_assert!(new.saturating_add(1) >= old.min(pattern) && new <= old.max(pattern));
            }
            let all = BlendConfig { alpha: 1.0, ..config.clone() }.build(image.shape(), 0).unwrap();
            prop_assert_eq!(all.stamp(&image, &mut stream(0, "")), pattern);
            let none = BlendConfig { alpha: 0.0, ..config }.build(image.shape(), 0).unwrap();
            prop_assert_eq!(none.stamp(&image, &mut stream(0, "")), image);
        }
    }
}
