use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use patchdoor_data::ImageSet;

/// A trigger made from a classifier: where the mask is one, the pattern stands instead of the image.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ReversedTrigger {
    /// `[row, column]`, flat, in [0, 1].
    pub(crate) mask: Vec<f64>,
    /// `[row, column, channel]`, flat, in [0, 1].
    pub(crate) pattern: Vec<f64>,
    /// Whether it sent enough images to its class.
    pub(crate) succeeds: bool,
}

impl ReversedTrigger {
    /// Pixels that the mask covers, parts added up.
    pub(crate) fn size(&self) -> f64 {
        self.mask.iter().sum()
    }

    /// An image with it, pixels in 0..=255.
    pub(crate) fn stamp(&self, pixels: &[u8]) -> Vec<u8> {
        let channels = self.pattern.len() / self.mask.len();
        let masks = self.mask.iter().flat_map(|&mask| std::iter::repeat_n(mask, channels));
        let mixed = pixels.iter().zip(masks).zip(&self.pattern).map(|((&pixel, mask), pattern)| {
            (f64::from(pixel) * (1.0 - mask) + 255.0 * pattern * mask).round().clamp(0.0, 255.0) as u8
        });
        mixed.collect()
    }

    /// All images with it, under the same labels.
    pub(crate) fn stamp_all(&self, images: &ImageSet) -> ImageSet {
        let pixels = (0..images.len()).flat_map(|index| self.stamp(images.pixels(index))).collect();
        ImageSet::new(images.shape(), pixels, images.labels().to_vec(), images.classes().to_vec())
            .expect("as many pixels as before")
    }
}

/// The class of the smallest trigger, of those that work if any does; ties go to the lower class.
pub(crate) fn smallest(triggers: &[ReversedTrigger]) -> usize {
    let any_works = triggers.iter().any(|trigger| trigger.succeeds);
    let candidates = (0..triggers.len()).filter(|&class| triggers[class].succeeds || !any_works);
    candidates.min_by(|&a, &b| triggers[a].size().total_cmp(&triggers[b].size())).unwrap_or(0)
}

#[cfg(test)]
impl ReversedTrigger {
    /// The same mask and value everywhere.
    pub(crate) fn even(shape: patchdoor_data::ImageShape, mask: f64, value: f64, succeeds: bool) -> Self {
        Self { mask: vec![mask; shape.height * shape.width], pattern: vec![value; shape.size()], succeeds }
    }

    /// What the experts weigh of the cells that it covers, on images that carry it, over what it covers.
    pub(crate) fn taken_by(
        &self,
        classifier: &patchdoor_model::Classifier<crate::testing::Learner>,
        images: &ImageSet,
    ) -> f64 {
        use burn::module::AutodiffModule;
        use burn::tensor::TensorData;
        use burn_flex::{Flex, FlexDevice};

        use crate::covered_gates::cells;

        let stamped = self.stamp_all(images);
        let batch = patchdoor_train::image_batches::<Flex>(&stamped, 1000, &FlexDevice).next();
        let (_, routings) = classifier.valid().forward_with_routing(batch.expect("there are images"));
        let cells = cells(classifier, images.shape(), &FlexDevice).expect("experts choose").inner();
        let [pixels, patches] = cells.dims();
        let mask = self.mask.iter().map(|&mask| mask as f32).collect::<Vec<_>>();
        let covered = Tensor::<Flex, 2>::from_data(TensorData::new(mask, [1, pixels]), &FlexDevice).matmul(cells);
        let gates = routings[0].weights().mean_dim(0).mean_dim(1).reshape([1, patches]);
        f64::from((gates * covered.clone()).sum().into_scalar()) / f64::from(covered.sum().into_scalar())
    }
}

/// Images with a pattern where the mask is one.
///
/// # Shapes
/// - images and output: `[batch, row, column, channel]`
/// - mask: `[1, row, column, 1]`
/// - pattern: `[1, row, column, channel]`
pub(crate) fn stamped<B: Backend>(images: Tensor<B, 4>, mask: Tensor<B, 4>, pattern: Tensor<B, 4>) -> Tensor<B, 4> {
    images * (mask.clone().neg() + 1.0) + mask * pattern
}

/// What a number in [0, 1] is squashed from; the ends are left out.
pub(crate) fn unsquashed(value: f64) -> f32 {
    ((value - 0.5) * (2.0 - 1e-6)).atanh() as f32
}

/// Mask `[1, row, column, 1]` and pattern `[1, row, column, channel]` in [0, 1].
pub(crate) fn mask_and_pattern<B: Backend>(raw: Tensor<B, 4>) -> [Tensor<B, 4>; 2] {
    let channels = raw.dims()[3] - 1;
    let squashed = raw.tanh() / 2.0 + 0.5;
    [squashed.clone().narrow(3, 0, 1), squashed.narrow(3, 1, channels)]
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use patchdoor_data::ImageShape;

    use super::*;

    #[test]
    fn the_smallest_trigger_that_works_is_the_smallest_of_all_if_none_does() {
        let shape = ImageShape { height: 2, width: 5, channels: 1 };
        let of_size = |size: f64, succeeds| ReversedTrigger::even(shape, size / 10.0, 1.0, succeeds);
        let triggers = [of_size(8.0, true), of_size(1.0, false), of_size(3.0, true), of_size(9.0, true)];
        assert_eq!(smallest(&triggers), 2);
        assert_eq!(smallest(&[of_size(8.0, false), of_size(1.0, false), of_size(9.0, false)]), 1);
    }

    #[test]
    fn a_trigger_mixes_its_pattern_into_the_image_by_its_mask() {
        let trigger = ReversedTrigger { mask: vec![0.0, 0.5], pattern: vec![1.0, 1.0, 0.0, 1.0], succeeds: true };
        // The first pixel stays; half of 100 and half of 0 or 255.
        assert_eq!(trigger.stamp(&[10, 20, 100, 100]), [10, 20, 50, 178]);
        assert!((trigger.size() - 0.5).abs() < 1e-12);
        // Squashing takes back what it was squashed from.
        let raw = Tensor::<Flex, 1>::from_data([unsquashed(0.25), unsquashed(0.0)], &FlexDevice).reshape([1, 1, 1, 2]);
        let [mask, pattern] = mask_and_pattern(raw);
        assert!((mask.into_scalar() - 0.25).abs() < 1e-6 && pattern.into_scalar() < 1e-5);
    }
}
