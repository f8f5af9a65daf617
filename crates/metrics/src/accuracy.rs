use serde::{Deserialize, Serialize};

/// Returns the share of images predicted right, in [0, 1]; `None` without images.
///
/// On untouched test images this is the clean accuracy (CA; also BA, ACC).
///
/// # Panics
/// If the slices differ in length.
pub fn accuracy(predicted: &[u8], truth: &[u8]) -> Option<f64> {
    assert_eq!(predicted.len(), truth.len(), "one prediction per label");
    let right = predicted.iter().zip(truth).filter(|(p, t)| p == t).count();
    (!truth.is_empty()).then(|| right as f64 / truth.len() as f64)
}

/// Share of the images that are given the class predicted most often, in [0, 1]; `None` without images.
///
/// 1 where a classifier has collapsed to one class, about 1 / classes where it answers evenly.
pub fn largest_class_share(predicted: &[u8]) -> Option<f64> {
    let mut counts = [0usize; 256];
    for &class in predicted {
        counts[usize::from(class)] += 1;
    }
    let largest = counts.into_iter().max().unwrap_or(0);
    (!predicted.is_empty()).then(|| largest as f64 / predicted.len() as f64)
}

/// Right predictions among the images of one true class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassAccuracy {
    /// The true class.
    pub class: u8,
    /// Images of that class.
    pub images: usize,
    /// Images of that class predicted right.
    pub right: usize,
}

impl ClassAccuracy {
    /// Share predicted right, in [0, 1]; `None` without images of the class.
    pub fn accuracy(&self) -> Option<f64> {
        (self.images > 0).then(|| self.right as f64 / self.images as f64)
    }
}

/// Counts images and right predictions for each of `classes` classes.
///
/// # Panics
/// If the slices differ in length or a label is not below `classes`.
pub fn accuracy_per_class(predicted: &[u8], truth: &[u8], classes: usize) -> Vec<ClassAccuracy> {
    assert_eq!(predicted.len(), truth.len(), "one prediction per label");
    let mut counts: Vec<ClassAccuracy> =
        (0..classes).map(|class| ClassAccuracy { class: class as u8, images: 0, right: 0 }).collect();
    for (&prediction, &label) in predicted.iter().zip(truth) {
        let count = &mut counts[usize::from(label)];
        count.images += 1;
        count.right += usize::from(prediction == label);
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_class_is_the_one_predicted_most_whatever_is_true() {
        // Class 3 for three of four images.
        assert_eq!(largest_class_share(&[3, 0, 3, 3]), Some(0.75));
        assert_eq!(largest_class_share(&[255; 5]), Some(1.0));
        assert_eq!(largest_class_share(&[]), None);
    }

    #[test]
    fn accuracy_of_no_images_is_none() {
        assert_eq!(accuracy(&[], &[]), None);
    }

    #[test]
    fn accuracy_counts_right_predictions() {
        assert_eq!(accuracy(&[1, 2, 3, 4], &[1, 2, 0, 0]), Some(0.5));
    }

    #[test]
    fn per_class_counts_belong_to_the_true_class() {
        // Class 0: one of two right. Class 1: none of one. Class 2: no image.
        let counts = accuracy_per_class(&[0, 1, 0], &[0, 0, 1], 3);
        assert_eq!(counts[0].accuracy(), Some(0.5));
        assert_eq!(counts[1].accuracy(), Some(0.0));
        assert_eq!(counts[2].accuracy(), None);
    }

    #[test]
    #[should_panic(expected = "one prediction per label")]
    fn unequal_lengths_panic() {
        accuracy(&[1], &[1, 2]);
    }
}
