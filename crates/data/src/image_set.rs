use std::fmt::Write;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::{DataError, Image, ImageShape};

/// Labelled images of one shape, whole in memory.
///
/// Besides pixels and labels, each image carries its `origin`, the index it had in the split it was read from, so that
/// subsets of subsets can still be traced to the file.
#[derive(Clone, PartialEq, Eq)]
pub struct ImageSet {
    pub(crate) shape: ImageShape,
    pub(crate) pixels: Vec<u8>,
    pub(crate) labels: Vec<u8>,
    pub(crate) classes: Arc<[String]>,
    pub(crate) origins: Vec<u32>,
    pub(crate) groups: Option<Vec<u32>>,
}

impl ImageSet {
    /// Makes a set of `labels.len()` images; `pixels` holds them one after another, height x width x channel, and
    /// `classes` the names of labels 0, 1, and so on. Origins count from 0.
    ///
    /// # Errors
    ///
    /// [`DataError::Inconsistent`] if the number of bytes does not fit the number of labels, if there are more than 256
    /// classes, or more images than `u32` can count; [`DataError::LabelOutOfRange`] if a label has no class.
    pub fn new(
        shape: ImageShape,
        pixels: Vec<u8>,
        labels: Vec<u8>,
        classes: impl Into<Arc<[String]>>,
    ) -> Result<Self, DataError> {
        let classes = classes.into();
        let inconsistent = |found: String, expected: String| Err(DataError::Inconsistent { found, expected });
        if shape.size() == 0 {
            return inconsistent(format!("images of {shape}"), "at least one pixel and channel".to_owned());
        }
        if labels.len().checked_mul(shape.size()) != Some(pixels.len()) {
            return inconsistent(
                format!("{} bytes of pixels", pixels.len()),
                format!("{} labels times {} bytes an image", labels.len(), shape.size()),
            );
        }
        if classes.is_empty() || classes.len() > 256 {
            return inconsistent(format!("{} classes", classes.len()), "1 to 256 classes".to_owned());
        }
        if u32::try_from(labels.len()).is_err() {
            return inconsistent(format!("{} images", labels.len()), "fewer than 2^32 images".to_owned());
        }
        if let Some(index) = labels.iter().position(|&label| usize::from(label) >= classes.len()) {
            return Err(DataError::LabelOutOfRange { index, label: labels[index], classes: classes.len() });
        }
        let origins = (0..labels.len() as u32).collect();
        Ok(Self { shape, pixels, labels, classes, origins, groups: None })
    }

    /// Says which images belong together, such as the frames of one GTSRB track; a split never tears a group apart.
    ///
    /// # Errors
    ///
    /// [`DataError::Inconsistent`] if there is not exactly one group number for each image.
    pub fn with_groups(mut self, groups: Vec<u32>) -> Result<Self, DataError> {
        if groups.len() != self.len() {
            return Err(DataError::Inconsistent {
                found: format!("{} group numbers", groups.len()),
                expected: format!("one for each of {} images", self.len()),
            });
        }
        self.groups = Some(groups);
        Ok(self)
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Height, width and channels of every image.
    pub fn shape(&self) -> ImageShape {
        self.shape
    }

    /// Number of classes, 1 to 256, whether or not each has images here.
    pub fn class_count(&self) -> usize {
        self.classes.len()
    }

    /// Names of the classes; label `i` is the `i`-th.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// All labels in order.
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// The label of one image.
    ///
    /// # Panics
    ///
    /// If there is no such image; so do all methods that take an index.
    pub fn label(&self, index: usize) -> u8 {
        self.labels[index]
    }

    /// The pixels of one image, height x width x channel.
    pub fn pixels(&self, index: usize) -> &[u8] {
        let size = self.shape.size();
        &self.pixels[index * size..(index + 1) * size]
    }

    /// The pixels of all images, one image after another.
    pub fn all_pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// A copy of one image.
    pub fn image(&self, index: usize) -> Image {
        Image { shape: self.shape, pixels: self.pixels(index).to_vec() }
    }

    /// The index that an image had in the split it was read from.
    pub fn origin(&self, index: usize) -> u32 {
        self.origins[index]
    }

    /// The indices that all images had in the split they were read from.
    pub fn origins(&self) -> &[u32] {
        &self.origins
    }

    /// Numbers of the groups the images belong to, if the data set has groups.
    pub fn groups(&self) -> Option<&[u32]> {
        self.groups.as_deref()
    }

    /// A new set of the images at `indices`, in that order.
    ///
    /// # Panics
    ///
    /// If there is no image at one of the indices.
    #[must_use]
    pub fn subset(&self, indices: &[usize]) -> Self {
        let mut pixels = Vec::with_capacity(indices.len() * self.shape.size());
        for &index in indices {
            pixels.extend_from_slice(self.pixels(index));
        }
        Self {
            shape: self.shape,
            pixels,
            labels: indices.iter().map(|&index| self.labels[index]).collect(),
            classes: Arc::clone(&self.classes),
            origins: indices.iter().map(|&index| self.origins[index]).collect(),
            groups: self.groups.as_ref().map(|groups| indices.iter().map(|&index| groups[index]).collect()),
        }
    }

    /// How many images each class has.
    pub fn class_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.class_count()];
        for &label in &self.labels {
            counts[usize::from(label)] += 1;
        }
        counts
    }

    /// SHA-256 of all pixels, then all labels, in hexadecimal: two sets of one shape with the same fingerprint train
    /// the same model.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(&self.pixels);
        hash.update(&self.labels);
        hexadecimal(&hash.finalize())
    }
}

impl std::fmt::Debug for ImageSet {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ImageSet")
            .field("images", &self.len())
            .field("shape", &self.shape)
            .field("classes", &self.class_count())
            .field("grouped", &self.groups.is_some())
            .finish_non_exhaustive()
    }
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string never fails");
        text
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A set of 2x2 grey images whose pixels all equal `10 index`.
    pub(crate) fn tiny(labels: &[u8], classes: usize) -> ImageSet {
        let shape = ImageShape { height: 2, width: 2, channels: 1 };
        let pixels = (0..labels.len()).flat_map(|index| [(10 * index) as u8; 4]).collect();
        ImageSet::new(shape, pixels, labels.to_vec(), (0..classes).map(|c| c.to_string()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_subset_of_a_subset_keeps_origins_and_groups() {
        let set = tiny(&[0, 1, 2, 0, 1], 3).with_groups(vec![7, 7, 8, 8, 9]).unwrap();
        let subset = set.subset(&[4, 2, 0]).subset(&[1, 0]);
        assert_eq!(subset.origins(), [2, 4]);
        assert_eq!(subset.labels(), [2, 1]);
        assert_eq!(subset.pixels(1), [40; 4]);
        assert_eq!(subset.groups().unwrap(), [8, 9]);
        assert_eq!(subset.class_counts(), [0, 1, 1]);
    }

    #[test]
    fn a_label_without_a_class_is_an_error() {
        let shape = ImageShape { height: 1, width: 1, channels: 1 };
        let error = ImageSet::new(shape, vec![0; 2], vec![1, 2], vec!["a".to_owned(), "b".to_owned()]).unwrap_err();
        assert_eq!(error.to_string(), "image 1 has label 2, expected a class below 2");
    }

    #[test]
    fn pixels_that_do_not_fit_the_labels_are_an_error() {
        let error = ImageSet::new(ImageShape::RGB_32, vec![0; 3073], vec![0], vec!["a".to_owned()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a set of images has 3073 bytes of pixels, expected 1 labels times 3072 bytes an image"
        );
    }

    #[test]
    fn the_fingerprint_sees_pixels_and_labels() {
        let set = tiny(&[0, 1], 2);
        assert_eq!(set.fingerprint(), tiny(&[0, 1], 2).fingerprint());
        assert_ne!(set.fingerprint(), tiny(&[1, 0], 2).fingerprint());
        assert_ne!(set.fingerprint(), set.subset(&[1, 0]).fingerprint());
        // SHA-256 of the ten bytes 0 0 0 0 10 10 10 10 0 1.
        assert_eq!(set.fingerprint(), hexadecimal(&Sha256::digest([0, 0, 0, 0, 10, 10, 10, 10, 0, 1])));
    }
}
