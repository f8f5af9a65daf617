use patchdoor_data::{Image, ImageShape, StreamRng, Trigger};
use serde::{Deserialize, Serialize};

use crate::error::invalid;
use crate::{TriggerError, TriggerKind};

/// The Adversarial Robustness Toolbox's `add_pattern_bd` and `add_single_bd`: four pixels, or one, near the lower right
/// corner (the pattern of Gu et al. 2017, arXiv:1708.06733).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ArtPatternConfig {
    /// Four pixels or one.
    pub form: ArtForm,
    /// How far the lower right pixel lies from the image's end, in pixels, 1 or more: 2 is one pixel off the border.
    pub distance: usize,
    /// What is written to all channels, in 0..=255.
    pub value: u8,
}

/// Which of the toolbox's two patterns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArtForm {
    /// `add_pattern_bd`: the lower right pixel, those two to the left and two above, and the one between these two.
    #[default]
    Pattern,
    /// `add_single_bd`: the lower right pixel.
    SinglePixel,
}

impl Default for ArtPatternConfig {
    /// The toolbox's distance 2 and greatest value.
    fn default() -> Self {
        Self { form: ArtForm::default(), distance: 2, value: 255 }
    }
}

impl TriggerKind for ArtPatternConfig {
    fn validate(&self, shape: ImageShape) -> Vec<TriggerError> {
        let most = shape.height.min(shape.width).saturating_sub(self.form.reach());
        if (1..=most).contains(&self.distance) {
            return Vec::new();
        }
        let allowed = match most {
            0 => format!("larger images than {shape}"),
            _ => format!("1 to {most} pixels in {shape} images"),
        };
        vec![invalid("distance", self.distance, allowed)]
    }

    fn build(&self, shape: ImageShape, _seed: u64) -> Result<Box<dyn Trigger>, TriggerError> {
        Ok(Box::new(ArtPattern::new(self, shape)))
    }

    fn mask(&self, shape: ImageShape) -> Vec<bool> {
        ArtPattern::new(self, shape).mask()
    }
}

impl ArtForm {
    /// How far the pattern extends above and left of its lower right pixel.
    fn reach(self) -> usize {
        match self {
            Self::Pattern => 2,
            Self::SinglePixel => 0,
        }
    }
}

/// Single pixels ready to be stamped on images of one shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArtPattern {
    shape: ImageShape,
    pixels: Vec<(usize, usize)>,
    value: u8,
}

impl ArtPattern {
    fn new(config: &ArtPatternConfig, shape: ImageShape) -> Self {
        let (row, column) = (shape.height - config.distance, shape.width - config.distance);
        let pixels = match config.form {
            ArtForm::Pattern => vec![(row - 2, column), (row - 1, column - 1), (row, column - 2), (row, column)],
            ArtForm::SinglePixel => vec![(row, column)],
        };
        Self { shape, pixels, value: config.value }
    }

    fn mask(&self) -> Vec<bool> {
        let ImageShape { height, width, .. } = self.shape;
        (0..height * width).map(|index| self.pixels.contains(&(index / width, index % width))).collect()
    }
}

impl Trigger for ArtPattern {
    /// # Panics
    ///
    /// If the image has another shape than the pattern was built for.
    fn stamp(&self, image: &Image, _rng: &mut StreamRng) -> Image {
        assert_eq!(image.shape(), self.shape, "a pattern is stamped on images of the shape it was built for");
        let mut stamped = image.clone();
        for &(row, column) in &self.pixels {
            stamped.pixel_mut(row, column).fill(self.value);
        }
        stamped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pixels_are_the_published_ones() {
        let shape = ImageShape::RGB_32;
        let pattern = ArtPattern::new(&ArtPatternConfig::default(), shape);
        assert_eq!(pattern.pixels, [(28, 30), (29, 29), (30, 28), (30, 30)]);
        let single = ArtPatternConfig { form: ArtForm::SinglePixel, ..ArtPatternConfig::default() };
        assert_eq!(ArtPattern::new(&single, shape).pixels, [(30, 30)]);
        let image = Image::new(shape, vec![7; shape.size()]).unwrap();
        let stamped = pattern.stamp(&image, &mut patchdoor_data::stream(0, ""));
        assert_eq!(stamped.pixel(30, 30), [255; 3]);
        assert_eq!(crate::testing::changed(&stamped, &image), 12);
    }

    #[test]
    fn a_pattern_must_fit() {
        let problem = |form, distance, side| {
            let shape = ImageShape { height: side, width: side, channels: 1 };
            let config = ArtPatternConfig { form, distance, ..ArtPatternConfig::default() };
            config.validate(shape).first().map(ToString::to_string)
        };
        assert_eq!(problem(ArtForm::Pattern, 2, 4), None);
        assert_eq!(problem(ArtForm::Pattern, 3, 4).unwrap(), "distance is 3, expected 1 to 2 pixels in 4x4x1 images");
        assert_eq!(problem(ArtForm::SinglePixel, 4, 4), None);
        assert_eq!(problem(ArtForm::Pattern, 1, 2).unwrap(), "distance is 1, expected larger images than 2x2x1");
    }
}
