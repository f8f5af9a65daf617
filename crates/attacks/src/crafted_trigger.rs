use std::collections::BTreeMap;

use patchdoor_data::{Image, ImageShape, StreamRng, Trigger};
use serde::{Deserialize, Serialize};

use crate::AttackError;

/// What a crafted trigger does to the pixels of an image; all lists have a number for every row, column and channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Added to the image, then cut to 0..=255.
    Added(Vec<i16>),
    /// Written over the image where there is a value.
    Written(Vec<Option<u8>>),
}

impl Change {
    fn apply(&self, image: &Image) -> Image {
        let mut changed = image.clone();
        let pixels = changed.pixels_mut();
        match self {
            Self::Added(values) => {
                for (pixel, value) in pixels.iter_mut().zip(values) {
                    *pixel = (i16::from(*pixel) + value).clamp(0, 255) as u8;
                }
            }
            Self::Written(values) => {
                for (pixel, value) in pixels.iter_mut().zip(values) {
                    *pixel = value.unwrap_or(*pixel);
                }
            }
        }
        changed
    }

    fn len(&self) -> usize {
        match self {
            Self::Added(values) => values.len(),
            Self::Written(values) => values.len(),
        }
    }
}

/// A trigger that was made with a model, as it lies on the disk: it needs the model no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CraftedTrigger {
    height: usize,
    width: usize,
    channels: usize,
    /// What test images get.
    test: Change,
    /// What poisoned training images get, if it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    training: Option<Change>,
    /// Images that poisoned training images are replaced by before they are changed, by the pixels of the original.
    #[serde(skip)]
    replacements: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl CraftedTrigger {
    /// One that does the same to all images of `shape`.
    ///
    /// # Panics
    /// If the change has not a value for every row, column and channel.
    pub fn new(shape: ImageShape, test: Change) -> Self {
        assert_eq!(test.len(), shape.size(), "a change has a value for every row, column and channel");
        let ImageShape { height, width, channels } = shape;
        Self { height, width, channels, test, training: None, replacements: BTreeMap::new() }
    }

    /// The same, with another change for poisoned training images.
    ///
    /// # Panics
    /// As [`Self::new`].
    #[must_use]
    pub fn with_training(self, training: Change) -> Self {
        assert_eq!(training.len(), self.test.len(), "both changes are for one shape");
        Self { training: Some(training), ..self }
    }

    /// The same, with poisoned training images replaced: pairs of an original and what stands in for it.
    #[must_use]
    pub fn with_replacements(self, pairs: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> Self {
        Self { replacements: pairs.into_iter().collect(), ..self }
    }

    /// The replaced images, original and replacement in turn, as [`Self::restored`] takes them; empty if there are none.
    pub fn replacement_bytes(&self) -> Vec<u8> {
        self.replacements.iter().flat_map(|(from, to)| from.iter().chain(to)).copied().collect()
    }

    /// Takes up the replaced images again after it was read from a file.
    ///
    /// # Errors
    /// If it is for images of another shape.
    pub fn restored(self, replacements: &[u8], expected: ImageShape) -> Result<Self, AttackError> {
        let shape = self.shape();
        let size = shape.size();
        if shape != expected || self.test.len() != size || !replacements.len().is_multiple_of(2 * size.max(1)) {
            return Err(AttackError::OtherImages { found: shape.to_string(), expected: expected.to_string() });
        }
        let pairs = replacements.chunks_exact(2 * size.max(1));
        Ok(self.with_replacements(pairs.map(|pair| (pair[..size].to_vec(), pair[size..].to_vec()))))
    }

    fn shape(&self) -> ImageShape {
        ImageShape { height: self.height, width: self.width, channels: self.channels }
    }

    /// A picture of the pattern: what is written on grey, or what is added around grey, drawn up to full contrast.
    ///
    /// # Panics
    /// Never: a change has a value for every row, column and channel.
    pub fn picture(&self) -> Image {
        let pixels = match &self.test {
            Change::Written(values) => values.iter().map(|value| value.unwrap_or(128)).collect(),
            Change::Added(values) => {
                let largest = values.iter().map(|value| value.abs()).max().unwrap_or(0).max(1);
                let shown = |&value: &i16| (128.0 + 127.0 * f64::from(value) / f64::from(largest)).round() as u8;
                values.iter().map(shown).collect()
            }
        };
        Image::new(self.shape(), pixels).expect("a change has a value for every row, column and channel")
    }
}

impl Trigger for CraftedTrigger {
    /// # Panics
    ///
    /// If the image has another shape than the one it was made for.
    fn stamp(&self, image: &Image, _rng: &mut StreamRng) -> Image {
        assert_eq!(image.shape(), self.shape(), "a trigger is for images of one shape");
        self.test.apply(image)
    }

    /// # Panics
    ///
    /// As [`stamp`](Self::stamp).
    fn stamp_training(&self, image: &Image, _class: u8, _rng: &mut StreamRng) -> Image {
        assert_eq!(image.shape(), self.shape(), "a trigger is for images of one shape");
        let change = self.training.as_ref().unwrap_or(&self.test);
        match self.replacements.get(image.pixels()) {
            Some(pixels) => {
                let replaced = Image::from_slice(self.shape(), pixels);
                change.apply(&replaced.expect("a replacement has the shape of its original"))
            }
            None => change.apply(image),
        }
    }
}

#[cfg(test)]
mod tests {
    use patchdoor_data::stream;

    use super::*;

    const SHAPE: ImageShape = ImageShape { height: 1, width: 2, channels: 1 };

    fn image(pixels: [u8; 2]) -> Image {
        Image::from_slice(SHAPE, &pixels).unwrap()
    }

    #[test]
    fn what_is_added_is_cut_and_what_is_written_overwrites() {
        let rng = &mut stream(0, "");
        let added = CraftedTrigger::new(SHAPE, Change::Added(vec![20, -20]));
        assert_eq!(added.stamp(&image([250, 10]), rng), image([255, 0]));
        let written = CraftedTrigger::new(SHAPE, Change::Written(vec![None, Some(7)]));
        assert_eq!(written.stamp(&image([250, 10]), rng), image([250, 7]));
    }

    #[test]
    fn training_images_are_replaced_and_changed_and_test_images_are_not_replaced() {
        let rng = &mut stream(0, "");
        let trigger = CraftedTrigger::new(SHAPE, Change::Added(vec![3, 0]))
            .with_training(Change::Added(vec![1, 0]))
            .with_replacements([(vec![5, 5], vec![9, 8])]);
        assert_eq!(trigger.stamp_training(&image([5, 5]), 0, rng), image([10, 8]));
        assert_eq!(trigger.stamp_training(&image([5, 6]), 0, rng), image([6, 6]));
        assert_eq!(trigger.stamp_for_class(&image([5, 5]), 0, rng), image([8, 5]));
    }

    #[test]
    fn what_was_written_down_comes_back_and_serves_no_other_images() {
        let trigger = CraftedTrigger::new(SHAPE, Change::Written(vec![Some(0), None]))
            .with_replacements([(vec![5, 5], vec![9, 8]), (vec![1, 2], vec![3, 4])]);
        let text = serde_json::to_string(&trigger).unwrap();
        let read = || serde_json::from_str::<CraftedTrigger>(&text).unwrap();
        assert_eq!(read().restored(&trigger.replacement_bytes(), SHAPE).unwrap(), trigger);
        assert!(read().restored(&[1, 2, 3], SHAPE).is_err(), "half a pair");
        assert!(read().restored(&[], ImageShape { width: 3, ..SHAPE }).is_err());
    }

    #[test]
    fn a_picture_shows_what_is_added_around_grey() {
        let added = CraftedTrigger::new(SHAPE, Change::Added(vec![4, -2]));
        assert_eq!(added.picture(), image([255, 65]), "128 + 127, and 128 - 63.5 to the nearest");
    }
}
