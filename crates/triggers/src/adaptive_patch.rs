use std::path::Path;

use patchdoor_data::{Image, ImageShape, LabelRule, StreamRng, Trigger};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::error::invalid;
use crate::kind::refuse_covers;
use crate::{
    Anchor, Blend, BlendConfig, CheckerPattern, NoisePattern, PatternConfig, PlacementConfig, TriggerError,
    TriggerKind, range,
};

/// Several patches, of which a training image shows one, faintly, and a test image some, plainly (adaptive-patch, Qi et
/// al. 2023, ICLR, "Revisiting the assumption of latent separability for backdoor defenses").
///
/// Which patch a training image gets is drawn for each with equal chances; the published code gives each patch the same
/// number of images. As many cover images as `cover-ratio` says get a patch too and keep their label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct AdaptivePatchConfig {
    /// The patches, at least one of them for tests; where they overlap, a later one lies on top.
    pub patches: Vec<AdaptivePatchPart>,
    /// Share of each patch in test images, in [0, 1].
    pub test_alpha: f64,
    /// Cover images for each triggered one, 0 or more.
    pub cover_ratio: f64,
}

/// One of the patches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AdaptivePatchPart {
    /// What is mixed in, scaled to the patch.
    pub pattern: PatternConfig,
    /// Side of the patch as a share of the image's shorter side, above 0 and up to 1; to the nearest pixel, at least one.
    pub size: f64,
    /// Where the patch lies.
    pub anchor: Anchor,
    /// Share of the patch in training images, in [0, 1].
    pub training_alpha: f64,
    /// Whether test images carry it.
    #[serde(default)]
    pub in_tests: bool,
}

impl Default for AdaptivePatchConfig {
    /// The published code's four shares, its two patches in tests, and its 0.006 covers for 0.003 poisoned. Its pictures
    /// cannot be passed on: ours are a face, noise, a fine and a coarse checker, of 10, 10, 3 and 8 pixels
    /// in images of 32, one in each corner.
    fn default() -> Self {
        let checker = |cell| PatternConfig::Checker(CheckerPattern { cell, ..CheckerPattern::default() });
        let part = |pattern, size, anchor, training_alpha, in_tests| AdaptivePatchPart {
            pattern,
            size,
            anchor,
            training_alpha,
            in_tests,
        };
        let patches = vec![
            part(PatternConfig::Face, 0.3125, Anchor::LowerRight, 0.5, true),
            part(PatternConfig::Noise(NoisePattern::default()), 0.3125, Anchor::LowerLeft, 0.2, false),
            part(checker(1), 0.09375, Anchor::UpperRight, 0.5, true),
            part(checker(2), 0.25, Anchor::UpperLeft, 0.3, false),
        ];
        Self { patches, test_alpha: 1.0, cover_ratio: 2.0 }
    }
}

impl AdaptivePatchPart {
    /// In pixels.
    fn side(&self, image: ImageShape) -> usize {
        ((self.size * image.height.min(image.width) as f64).round() as usize).max(1)
    }

    fn shape(&self, image: ImageShape) -> ImageShape {
        let side = self.side(image);
        ImageShape { height: side, width: side, ..image }
    }

    /// Row and column of the upper left pixel.
    fn corner(&self, image: ImageShape) -> (usize, usize) {
        self.anchor.corner(image.height, image.width, self.side(image))
    }

    fn blend(&self, alpha: f64, shape: ImageShape, seed: u64) -> Result<Blend, TriggerError> {
        Blend::new(&BlendConfig { alpha, pattern: self.pattern.clone() }, self.shape(shape), seed)
    }

    fn validate(&self, shape: ImageShape) -> Vec<TriggerError> {
        if !(self.size > 0.0 && self.size <= 1.0) {
            return vec![invalid("size", self.size, "a share above 0 and up to 1")];
        }
        let mut problems = self.pattern.validate(self.shape(shape));
        problems.extend(range::share("training-alpha", self.training_alpha));
        problems
    }

    fn build(&self, test_alpha: f64, shape: ImageShape, seed: u64) -> Result<Part, TriggerError> {
        let training = self.blend(self.training_alpha, shape, seed)?;
        let test = self.in_tests.then(|| self.blend(test_alpha, shape, seed)).transpose()?;
        Ok(Part { corner: self.corner(shape), size: self.side(shape), training, test })
    }
}

impl TriggerKind for AdaptivePatchConfig {
    fn validate(&self, shape: ImageShape) -> Vec<TriggerError> {
        let mut problems = Vec::new();
        if !self.patches.iter().any(|patch| patch.in_tests) {
            problems.push(invalid("patches", "none for tests", "at least one with in-tests = true"));
        }
        for (number, patch) in self.patches.iter().enumerate() {
            problems.extend(patch.validate(shape).into_iter().map(|problem| match problem {
                TriggerError::InvalidField { field, found, allowed } => {
                    invalid("patches", format!("a list whose patch {} has {field} = {found}", number + 1), allowed)
                }
                problem => problem,
            }));
        }
        problems.extend(range::share("test-alpha", self.test_alpha));
        problems.extend(range::zero_or_more("cover-ratio", self.cover_ratio));
        problems
    }

    fn mask(&self, shape: ImageShape) -> Vec<bool> {
        let mut mask = vec![false; shape.height * shape.width];
        for patch in &self.patches {
            let ((top, left), side) = (patch.corner(shape), patch.side(shape));
            for row in top..top + side {
                mask[row * shape.width + left..][..side].fill(true);
            }
        }
        mask
    }

    fn covers_per_poisoned_image(&self) -> f64 {
        self.cover_ratio
    }

    fn refuse(&self, rule: &LabelRule, _placement: Option<&PlacementConfig>) -> Vec<TriggerError> {
        refuse_covers(rule, self.cover_ratio)
    }

    fn files(&self) -> Vec<&Path> {
        self.patches.iter().flat_map(|patch| patch.pattern.files()).collect()
    }

    /// Noise without a seed of its own is drawn from `seed`.
    fn build(&self, shape: ImageShape, seed: u64) -> Result<Box<dyn Trigger>, TriggerError> {
        let parts = self.patches.iter().map(|patch| patch.build(self.test_alpha, shape, seed));
        Ok(Box::new(AdaptivePatch { parts: parts.collect::<Result<_, _>>()?, cover_ratio: self.cover_ratio }))
    }
}

/// Patches ready for images of one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaptivePatch {
    parts: Vec<Part>,
    cover_ratio: f64,
}

#[derive(Clone, Debug, PartialEq)]
struct Part {
    /// Row and column of the upper left pixel.
    corner: (usize, usize),
    size: usize,
    training: Blend,
    test: Option<Blend>,
}

impl Part {
    /// Mixes the patch into its place.
    fn stamp(&self, image: &mut Image, blend: &Blend, rng: &mut StreamRng) {
        let (top, left) = self.corner;
        let places: Vec<_> =
            (0..self.size * self.size).map(|index| (top + index / self.size, left + index % self.size)).collect();
        let shape = ImageShape { height: self.size, width: self.size, ..image.shape() };
        let pixels = places.iter().flat_map(|&(row, column)| image.pixel(row, column)).copied().collect();
        let mixed = blend.stamp(&Image::new(shape, pixels).expect("a patch has as many pixels as its shape says"), rng);
        for (&(row, column), pixel) in places.iter().zip(mixed.pixels().chunks(shape.channels)) {
            image.pixel_mut(row, column).copy_from_slice(pixel);
        }
    }
}

impl Trigger for AdaptivePatch {
    /// # Panics
    ///
    /// If the image is smaller than the patches need.
    fn stamp(&self, image: &Image, rng: &mut StreamRng) -> Image {
        let mut stamped = image.clone();
        for part in &self.parts {
            if let Some(test) = &part.test {
                part.stamp(&mut stamped, test, rng);
            }
        }
        stamped
    }

    fn stamp_training(&self, image: &Image, _class: u8, rng: &mut StreamRng) -> Image {
        let mut stamped = image.clone();
        let part = &self.parts[rng.random_range(0..self.parts.len())];
        part.stamp(&mut stamped, &part.training, rng);
        stamped
    }

    fn covers_per_poisoned_image(&self) -> f64 {
        self.cover_ratio
    }
}

#[cfg(test)]
mod tests {
    use patchdoor_data::stream;

    use super::*;

    /// Two white patches of 2 pixels in opposite corners of 6x6 grey images, one of them for tests.
    fn config() -> AdaptivePatchConfig {
        toml::from_str(
            "patches = [
                { pattern.checker = { cell = 1, dark = 255 }, size = 0.34, anchor = \"upper-left\", training-alpha = 0.5, in-tests = true },
                { pattern.checker = { cell = 1, dark = 255 }, size = 0.34, anchor = \"lower-right\", training-alpha = 0.2 },
            ]",
        )
        .unwrap()
    }

    const SHAPE: ImageShape = ImageShape { height: 6, width: 6, channels: 1 };

    #[test]
    fn a_training_image_shows_one_patch_and_a_test_image_those_for_tests() {
        let trigger = config().build(SHAPE, 0).unwrap();
        let grey = Image::new(SHAPE, vec![100; 36]).unwrap();
        let with = |places: [usize; 4], value| {
            let mut pixels = vec![100; 36];
            for place in places {
                pixels[place] = value;
            }
            pixels
        };
        assert_eq!(trigger.stamp(&grey, &mut stream(0, "")).pixels(), with([0, 1, 6, 7], 255));
        // Half of 100 and 255 are 177.5; 0.8 of 100 and 0.2 of 255 are 131.
        let either = [with([0, 1, 6, 7], 177), with([28, 29, 34, 35], 131)];
        let mut counts = [0; 2];
        for image in 0..200 {
            let stamped = trigger.stamp_training(&grey, 0, &mut stream(image, ""));
            let which = either.iter().position(|pixels| stamped.pixels() == pixels).expect("one of the two patches");
            counts[which] += 1;
            assert_eq!(trigger.cover(&grey, 3, &mut stream(image, "")), stamped);
        }
        assert!(counts.iter().all(|&count| (70..=130).contains(&count)), "{counts:?}");
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let mut config = config();
        config.patches[0].in_tests = false;
        config.patches[0].size = 1.5;
        config.patches[1].training_alpha = 2.0;
        let problems: Vec<String> = config.validate(SHAPE).iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "patches is none for tests, expected at least one with in-tests = true",
                "patches is a list whose patch 1 has size = 1.5, expected a share above 0 and up to 1",
                "patches is a list whose patch 2 has training-alpha = 2, expected a share in [0, 1]",
            ]
        );
    }
}
