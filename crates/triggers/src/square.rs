use patchdoor_data::{Image, ImageShape, StreamRng, Trigger};
use serde::{Deserialize, Serialize};

use crate::error::invalid;
use crate::{Anchor, TriggerError, TriggerKind};

/// A square that overwrites what it covers (`BadNets`, Gu et al. 2017, arXiv:1708.06733).
///
/// The default is the one Chan et al. (2025, arXiv:2505.01811) describe, a white 4x4 square in the upper left corner.
/// Their published code writes 1.0 *before* the division by 255, so that their square is nearly black: `value = 1`.
/// `BackdoorBench` and `BackdoorBox` have `size = 3`, `anchor = "lower-right"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct SquareConfig {
    /// Side of the square in pixels.
    pub size: usize,
    /// Where the square lies, unless `row` and `column` are given.
    pub anchor: Anchor,
    /// Row of the square's upper left pixel, counted from 0 at the top; given together with `column`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row: Option<usize>,
    /// Column of the square's upper left pixel, counted from 0 at the left; given together with `row`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
    /// What is written to all channels, in 0..=255, unless `colour` is given: 255 is white, 1 the authors' near black.
    pub value: u8,
    /// Red, green and blue in 0..=255, for RGB images only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub colour: Option<[u8; 3]>,
    /// Makes the square a checker: every second pixel, beginning with the right neighbour of the upper left one, gets
    /// this value in 0..=255 in all channels. `BackdoorBench`'s grid has 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checker: Option<u8>,
}

impl Default for SquareConfig {
    fn default() -> Self {
        Self { size: 4, anchor: Anchor::UpperLeft, row: None, column: None, value: 255, colour: None, checker: None }
    }
}

impl TriggerKind for SquareConfig {
    fn validate(&self, shape: ImageShape) -> Vec<TriggerError> {
        let mut problems = Vec::new();
        let largest = shape.height.min(shape.width);
        let fits = (1..=largest).contains(&self.size);
        if !fits {
            problems.push(invalid("size", self.size, format!("1 to {largest} pixels in {shape} images")));
        }
        let places = [("row", self.row, shape.height), ("column", self.column, shape.width)];
        for (field, place, length) in places {
            if let Some(place) = place.filter(|&place| fits && place > length - self.size) {
                let allowed = format!("at most {} for {} pixels in {shape} images", length - self.size, self.size);
                problems.push(invalid(field, place, allowed));
            }
        }
        match (self.row, self.column) {
            (Some(row), None) => problems.push(invalid("row", format!("{row} without a column"), "both or neither")),
            (None, Some(column)) => {
                problems.push(invalid("column", format!("{column} without a row"), "both or neither"));
            }
            _ => {}
        }
        if let Some(colour) = self.colour
            && shape.channels != 3
        {
            let found = format!("{colour:?} for {shape} images");
            problems.push(invalid("colour", found, "a `value` where images are not RGB"));
        }
        problems
    }

    fn build(&self, shape: ImageShape, _seed: u64) -> Result<Box<dyn Trigger>, TriggerError> {
        Ok(Box::new(Square::new(self, shape)))
    }

    fn mask(&self, shape: ImageShape) -> Vec<bool> {
        Square::new(self, shape).mask()
    }
}

/// A square ready to be stamped on images of one shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Square {
    shape: ImageShape,
    row: usize,
    column: usize,
    size: usize,
    /// What is written where row and column within the square sum to an even and to an odd number.
    pixels: [Vec<u8>; 2],
}

impl Square {
    fn new(config: &SquareConfig, shape: ImageShape) -> Self {
        let (row, column) = match (config.row, config.column) {
            (Some(row), Some(column)) => (row, column),
            _ => config.anchor.corner(shape.height, shape.width, config.size),
        };
        let first = config.colour.map_or_else(|| vec![config.value; shape.channels], |colour| colour.to_vec());
        let second = config.checker.map_or_else(|| first.clone(), |value| vec![value; shape.channels]);
        Self { shape, row, column, size: config.size, pixels: [first, second] }
    }

    fn mask(&self) -> Vec<bool> {
        let ImageShape { height, width, .. } = self.shape;
        let is_inside = |place: usize, start: usize| (start..start + self.size).contains(&place);
        (0..height * width)
            .map(|index| is_inside(index / width, self.row) && is_inside(index % width, self.column))
            .collect()
    }
}

impl Trigger for Square {
    /// # Panics
    ///
    /// If the image has another shape than the square was built for.
    fn stamp(&self, image: &Image, _rng: &mut StreamRng) -> Image {
        assert_eq!(image.shape(), self.shape, "a square is stamped on images of the shape it was built for");
        let mut stamped = image.clone();
        for row in 0..self.size {
            for column in 0..self.size {
                let pixel = &self.pixels[(row + column) % 2];
                stamped.pixel_mut(self.row + row, self.column + column).copy_from_slice(pixel);
            }
        }
        stamped
    }
}

#[cfg(test)]
mod tests {
    use patchdoor_data::stream;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Conformance, image_of, reference_input, summary};

    fn stamp(config: &SquareConfig, image: &Image) -> Image {
        config.build(image.shape(), 0).unwrap().stamp(image, &mut stream(0, "trigger"))
    }

    #[test]
    fn the_reference_input_is_the_recorded_one() {
        assert_eq!(summary(&reference_input()), (396_800, "4787dbb8301141a0".to_owned(), 0));
    }

    #[test]
    fn the_white_square_equals_that_of_other_toolkits() {
        // BadNets of BackdoorBench and BackdoorBox: white 3x3, rows and columns 29..31.
        let config = SquareConfig { size: 3, anchor: Anchor::LowerRight, ..SquareConfig::default() };
        let stamped = stamp(&config, &reference_input());
        assert_eq!(summary(&stamped), (400_526, "949d2170f93c3bf8".to_owned(), 27));
        assert_eq!(stamped.pixel(5, 9), [152, 181, 210]);
        assert_eq!(stamped.pixel(31, 31), [255; 3]);
        let explicit = SquareConfig { size: 3, row: Some(29), column: Some(29), ..SquareConfig::default() };
        assert_eq!(stamp(&explicit, &reference_input()), stamped);
    }

    #[test]
    fn the_checker_equals_that_of_other_toolkits() {
        let config = SquareConfig { size: 3, anchor: Anchor::LowerRight, checker: Some(1), ..SquareConfig::default() };
        let stamped = stamp(&config, &reference_input());
        assert_eq!(summary(&stamped), (397_478, "12220169bf35f94a".to_owned(), 27));
        assert_eq!(stamped.pixel(5, 9), [152, 181, 210]);
        assert_eq!(stamped.pixel(31, 31), [255; 3]);
    }

    #[test]
    fn conformance_square_masks() {
        let file = Conformance::open("triggers.safetensors");
        let tensors = file.tensors();
        let shape = ImageShape { height: 28, width: 28, channels: 1 };
        let black = Image::new(shape, vec![0; 28 * 28]).unwrap();
        let mut compared = 0;
        for anchor in Anchor::ALL {
            let name = serde_name(anchor);
            for size in [2, 3, 4, 8] {
                let mask = tensors.tensor(&format!("square/{name}/{size}/mask")).unwrap();
                assert_eq!(mask.shape(), [28, 28]);
                let config = SquareConfig { size, anchor, value: 1, ..SquareConfig::default() };
                assert_eq!(stamp(&config, &black).pixels(), mask.data(), "{name} {size}");
                compared += 1;
            }
        }
        let masks = tensors.names().iter().filter(|name| name.starts_with("square/")).count();
        assert_eq!(compared, masks);
    }

    fn serde_name(anchor: Anchor) -> String {
        let config = SquareConfig { anchor, ..SquareConfig::default() };
        let table: toml::Table = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        table["anchor"].as_str().unwrap().to_owned()
    }

    #[test]
    fn a_colour_is_written_channel_by_channel() {
        let config = SquareConfig { size: 1, colour: Some([1, 2, 3]), ..SquareConfig::default() };
        assert_eq!(stamp(&config, &reference_input()).pixel(0, 0), [1, 2, 3]);
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let texts = |config: SquareConfig, shape| -> Vec<String> {
            config.validate(shape).iter().map(ToString::to_string).collect()
        };
        let grey = ImageShape { height: 28, width: 20, channels: 1 };
        let config = SquareConfig { size: 21, row: Some(3), colour: Some([0; 3]), ..SquareConfig::default() };
        assert_eq!(
            texts(config, grey),
            [
                "size is 21, expected 1 to 20 pixels in 28x20x1 images",
                "row is 3 without a column, expected both or neither",
                "colour is [0, 0, 0] for 28x20x1 images, expected a `value` where images are not RGB",
            ]
        );
        let config = SquareConfig { row: Some(25), column: Some(17), ..SquareConfig::default() };
        assert_eq!(
            texts(config, grey),
            [
                "row is 25, expected at most 24 for 4 pixels in 28x20x1 images",
                "column is 17, expected at most 16 for 4 pixels in 28x20x1 images",
            ]
        );
        assert_eq!(texts(SquareConfig { size: 0, ..SquareConfig::default() }, grey).len(), 1);
    }

    fn any_square() -> impl Strategy<Value = (SquareConfig, Image)> {
        (1_usize..12, 1_usize..12, prop_oneof![Just(1_usize), Just(3)]).prop_flat_map(|(height, width, channels)| {
            let shape = ImageShape { height, width, channels };
            let config = (1..=height.min(width)).prop_flat_map(move |size| {
                let place = prop::option::of((0..=height - size, 0..=width - size));
                (place, 0..9_usize, any::<u8>(), any::<[u8; 3]>(), any::<bool>(), any::<Option<u8>>()).prop_map(
                    move |(place, anchor, value, colour, is_coloured, checker)| SquareConfig {
                        size,
                        anchor: Anchor::ALL[anchor],
                        row: place.map(|(row, _)| row),
                        column: place.map(|(_, column)| column),
                        value,
                        colour: (is_coloured && channels == 3).then_some(colour),
                        checker,
                    },
                )
            });
            (config, image_of(shape))
        })
    }

    proptest! {
        #[test]
        fn stamping_twice_equals_once_and_leaves_the_input_alone((config, image) in any_square()) {
            prop_assert!(config.validate(image.shape()).is_empty());
            let before = image.clone();
            let once = stamp(&config, &image);
            prop_assert_eq!(&image, &before);
            prop_assert_eq!(&stamp(&config, &once), &once);
        }

        #[test]
        fn exactly_the_square_changes((config, image) in any_square()) {
            let inverted = Image::new(image.shape(), image.pixels().iter().map(|pixel| !pixel).collect()).unwrap();
            let (a, b) = (stamp(&config, &image), stamp(&config, &inverted));
            // What the square covers is the same on both; everything else still differs.
            let same = a.pixels().iter().zip(b.pixels()).filter(|(a, b)| a == b).count();
            prop_assert_eq!(same, config.size * config.size * image.shape().channels);
        }

        #[test]
        fn every_configuration_survives_toml((config, _) in any_square()) {
            let text = toml::to_string(&config).unwrap();
            prop_assert_eq!(toml::from_str::<SquareConfig>(&text).unwrap(), config);
        }
    }
}
