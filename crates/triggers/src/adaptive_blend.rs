use std::path::Path;

use patchdoor_data::{Image, ImageShape, LabelRule, StreamRng, Trigger};
use rand::seq::index;
use serde::{Deserialize, Serialize};

use crate::error::invalid;
use crate::kind::refuse_covers;
use crate::{Blend, BlendConfig, PatternConfig, PlacementConfig, TriggerError, TriggerKind, range};

/// A picture mixed into the image, of which training images show only some pieces (adaptive-blend, Qi et al. 2023, ICLR,
/// "Revisiting the assumption of latent separability for backdoor defenses").
///
/// The picture is cut into `pieces` x `pieces` parts; a training image gets a random `shown` share of them, drawn anew for
/// each, at `training-alpha`; a test image gets all at `test-alpha`. As many cover images as `cover-ratio` says get pieces
/// too and keep their label, so that triggered images do not stand apart in the model's features. The mixture is that of
/// [`BlendConfig`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct AdaptiveBlendConfig {
    /// Share of the pattern in training images, in [0, 1].
    pub training_alpha: f64,
    /// Share of the pattern in test images, in [0, 1].
    pub test_alpha: f64,
    /// What is mixed in.
    pub pattern: PatternConfig,
    /// Pieces along each side, from 1 to the number of pixels.
    pub pieces: usize,
    /// Share of the pieces that a training image shows, in [0, 1]; their number is the nearest whole one.
    pub shown: f64,
    /// Cover images for each triggered one, 0 or more.
    pub cover_ratio: f64,
}

impl Default for AdaptiveBlendConfig {
    /// The published code's shares, 16 pieces of which half are shown, and its equal rates (0.003) of poisoned and of
    /// cover images. Its picture cannot be passed on; ours is a face.
    fn default() -> Self {
        let pattern = PatternConfig::default();
        Self { training_alpha: 0.15, test_alpha: 0.2, pattern, pieces: 4, shown: 0.5, cover_ratio: 1.0 }
    }
}

impl AdaptiveBlendConfig {
    fn blend(&self, alpha: f64, shape: ImageShape, seed: u64) -> Result<Blend, TriggerError> {
        Blend::new(&BlendConfig { alpha, pattern: self.pattern.clone() }, shape, seed)
    }
}

impl TriggerKind for AdaptiveBlendConfig {
    fn validate(&self, shape: ImageShape) -> Vec<TriggerError> {
        let mut problems = Vec::from_iter(range::share("training-alpha", self.training_alpha));
        problems.extend(range::share("test-alpha", self.test_alpha));
        problems.extend(self.pattern.validate(shape));
        let most = shape.height.min(shape.width);
        if !(1..=most).contains(&self.pieces) {
            problems.push(invalid("pieces", self.pieces, format!("1 to {most} along each side of {shape} images")));
        }
        problems.extend(range::share("shown", self.shown));
        problems.extend(range::zero_or_more("cover-ratio", self.cover_ratio));
        problems
    }

    fn covers_per_poisoned_image(&self) -> f64 {
        self.cover_ratio
    }

    fn refuse(&self, rule: &LabelRule, _placement: Option<&PlacementConfig>) -> Vec<TriggerError> {
        refuse_covers(rule, self.cover_ratio)
    }

    fn files(&self) -> Vec<&Path> {
        self.pattern.files()
    }

    /// A noise pattern without a seed of its own is drawn from `seed`.
    fn build(&self, shape: ImageShape, seed: u64) -> Result<Box<dyn Trigger>, TriggerError> {
        let pieces = self.pieces * self.pieces;
        Ok(Box::new(AdaptiveBlend {
            test: self.blend(self.test_alpha, shape, seed)?,
            training: self.blend(self.training_alpha, shape, seed)?,
            pieces: self.pieces,
            hidden: pieces - (self.shown * pieces as f64).round() as usize,
            cover_ratio: self.cover_ratio,
        }))
    }
}

/// A pattern ready to be mixed into images of its shape, whole or in pieces.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaptiveBlend {
    test: Blend,
    training: Blend,
    /// Along each side.
    pieces: usize,
    /// How many of all pieces a training image does not show.
    hidden: usize,
    cover_ratio: f64,
}

impl Trigger for AdaptiveBlend {
    /// # Panics
    ///
    /// If the image has another shape than the pattern.
    fn stamp(&self, image: &Image, rng: &mut StreamRng) -> Image {
        self.test.stamp(image, rng)
    }

    fn stamp_training(&self, image: &Image, _class: u8, rng: &mut StreamRng) -> Image {
        let mut stamped = self.training.stamp(image, rng);
        let mut is_hidden = vec![false; self.pieces * self.pieces];
        for piece in index::sample(rng, is_hidden.len(), self.hidden) {
            is_hidden[piece] = true;
        }
        let ImageShape { height, width, .. } = image.shape();
        for row in 0..height {
            for column in 0..width {
                let piece = row * self.pieces / height * self.pieces + column * self.pieces / width;
                if is_hidden[piece] {
                    stamped.pixel_mut(row, column).copy_from_slice(image.pixel(row, column));
                }
            }
        }
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

    const SHAPE: ImageShape = ImageShape::RGB_32;

    fn white() -> Box<dyn Trigger> {
        let config: AdaptiveBlendConfig = toml::from_str("pattern.checker = { cell = 1, dark = 255 }").unwrap();
        config.build(SHAPE, 0).unwrap()
    }

    #[test]
    fn training_images_show_half_of_the_pieces_and_test_images_all() {
        let trigger = white();
        let black = Image::new(SHAPE, vec![0; SHAPE.size()]).unwrap();
        // 0.2 and 0.15 of 255 are 51 and 38.25.
        assert_eq!(trigger.stamp(&black, &mut stream(0, "")).pixels(), [51; 3072]);
        let mut kinds = Vec::new();
        for image in 0..20 {
            let stamped = trigger.stamp_training(&black, 0, &mut stream(image, ""));
            let pieces: Vec<u8> = (0..16).map(|piece| stamped.pixel(piece / 4 * 8, piece % 4 * 8)[0]).collect();
            assert_eq!(pieces.iter().map(|&value| u32::from(value)).sum::<u32>(), 8 * 38);
            // A piece is shown whole or not at all.
            for (index, pixel) in stamped.pixels().chunks(3).enumerate() {
                assert_eq!(pixel, [pieces[index / 32 / 8 * 4 + index % 32 / 8]; 3]);
            }
            assert_eq!(trigger.cover(&black, 0, &mut stream(image, "")), stamped);
            kinds.push(pieces);
        }
        kinds.sort();
        kinds.dedup();
        assert!(kinds.len() > 15, "pieces are drawn for each image: {}", kinds.len());
        assert!((trigger.covers_per_poisoned_image() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn all_pieces_at_equal_shares_are_a_blend_and_none_change_nothing() {
        let image = crate::testing::reference_input();
        let config = AdaptiveBlendConfig { training_alpha: 0.2, shown: 1.0, ..Default::default() };
        let trigger = config.build(SHAPE, 3).unwrap();
        let blend = BlendConfig { alpha: 0.2, ..Default::default() }.build(SHAPE, 3).unwrap();
        let blended = blend.stamp(&image, &mut stream(0, ""));
        assert_eq!(trigger.stamp(&image, &mut stream(0, "")), blended);
        assert_eq!(trigger.stamp_training(&image, 0, &mut stream(0, "")), blended);
        let none = AdaptiveBlendConfig { shown: 0.0, ..config }.build(SHAPE, 3).unwrap();
        assert_eq!(none.stamp_training(&image, 0, &mut stream(0, "")), image);
    }

    #[test]
    fn covers_are_refused_where_poisoned_images_keep_their_label() {
        let rule = LabelRule::CleanLabel(patchdoor_data::CleanLabel::default());
        let problems = AdaptiveBlendConfig::default().refuse(&rule, None);
        assert_eq!(
            problems[0].to_string(),
            "poisoning.label-rule is clean-label with cover images, expected another rule, or cover-ratio = 0: covers of \
             other classes teach that the trigger means nothing"
        );
        assert!(AdaptiveBlendConfig { cover_ratio: 0.0, ..Default::default() }.refuse(&rule, None).is_empty());
        assert!(AdaptiveBlendConfig::default().refuse(&LabelRule::AllToOne, None).is_empty());
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let config = AdaptiveBlendConfig {
            training_alpha: 1.5,
            test_alpha: -0.1,
            pieces: 33,
            shown: 2.0,
            cover_ratio: -1.0,
            ..Default::default()
        };
        let problems: Vec<String> = config.validate(SHAPE).iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "training-alpha is 1.5, expected a share in [0, 1]",
                "test-alpha is -0.1, expected a share in [0, 1]",
                "pieces is 33, expected 1 to 32 along each side of 32x32x3 images",
                "shown is 2, expected a share in [0, 1]",
                "cover-ratio is -1, expected a number that is 0 or more",
            ]
        );
    }
}
