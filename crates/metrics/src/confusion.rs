use serde::{Deserialize, Serialize};

/// How often images of each true class are predicted as each class.
///
/// Counts, so that a sum over seeds has the shares of their mean.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConfusionMatrix {
    /// `[true class, predicted class]`
    counts: Vec<Vec<usize>>,
}

impl ConfusionMatrix {
    /// Counts for `classes` classes.
    ///
    /// # Panics
    /// If the slices differ in length, or a label or a prediction is not below `classes`.
    pub fn of(predicted: &[u8], truth: &[u8], classes: usize) -> Self {
        assert_eq!(predicted.len(), truth.len(), "one prediction per label");
        let mut counts = vec![vec![0; classes]; classes];
        for (&prediction, &label) in predicted.iter().zip(truth) {
            counts[usize::from(label)][usize::from(prediction)] += 1;
        }
        Self { counts }
    }

    /// The counts of the images of each true class, by predicted class.
    pub fn rows(&self) -> &[Vec<usize>] {
        &self.counts
    }

    /// The counts of several classifiers together; `None` without any, or if they have different classes.
    pub fn sum<'a>(matrices: impl IntoIterator<Item = &'a Self>) -> Option<Self> {
        let mut matrices = matrices.into_iter();
        let mut sum = matrices.next()?.clone();
        for matrix in matrices {
            if matrix.counts.len() != sum.counts.len() {
                return None;
            }
            for (row, other) in sum.counts.iter_mut().zip(&matrix.counts) {
                if row.len() != other.len() {
                    return None;
                }
                row.iter_mut().zip(other).for_each(|(count, other)| *count += other);
            }
        }
        Some(sum)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::accuracy_per_class;

    #[test]
    fn counts_stand_in_the_row_of_the_true_class_and_the_column_of_the_predicted_one() {
        // Class 0: one right, two taken for 2. Class 1: no image. Class 2: taken for 1.
        let matrix = ConfusionMatrix::of(&[0, 2, 2, 1], &[0, 0, 0, 2], 3);
        assert_eq!(matrix.rows(), [[1, 0, 2], [0, 0, 0], [0, 1, 0]]);
    }

    #[test]
    fn a_sum_adds_cell_by_cell_and_only_what_has_the_same_classes() {
        let (one, other) = (ConfusionMatrix::of(&[0, 1], &[0, 0], 2), ConfusionMatrix::of(&[1, 1], &[0, 1], 2));
        let sum = ConfusionMatrix::sum([&one, &other]).expect("two of two classes");
        assert_eq!(sum.rows(), [[1, 2], [0, 1]]);
        assert_eq!(ConfusionMatrix::sum([&one, &ConfusionMatrix::of(&[], &[], 3)]), None);
        assert_eq!(ConfusionMatrix::sum([]), None);
    }

    proptest! {
        #[test]
        fn rows_add_up_to_the_images_of_a_class_and_the_diagonal_is_right(
            images in prop::collection::vec((0u8..5, 0u8..5), 0..40),
        ) {
            let (predicted, truth): (Vec<u8>, Vec<u8>) = images.into_iter().unzip();
            let matrix = ConfusionMatrix::of(&predicted, &truth, 5);
            for (class, counts) in accuracy_per_class(&predicted, &truth, 5).iter().enumerate() {
                let row = &matrix.rows()[class];
                prop_assert_eq!((row.iter().sum::<usize>(), row[class]), (counts.images, counts.right));
            }
        }
    }
}
