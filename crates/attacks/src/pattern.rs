use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use patchdoor_data::{ImageSet, ImageShape, stream};
use rand::RngExt;
use rand::seq::SliceRandom;

use crate::Change;

/// A pattern in the making: one number for every row, column and channel, where [0, 1] are the pixels.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pattern {
    pub(crate) shape: ImageShape,
    pub(crate) values: Vec<f64>,
    /// The most that it adds to a pixel; `None` if it is written over pixels.
    pub(crate) bound: Option<f64>,
}

impl Pattern {
    /// One drawn at random: any colours, or each value the bound up or down.
    pub(crate) fn random(shape: ImageShape, bound: Option<f64>, seed: u64) -> Self {
        let mut rng = stream(seed, "crafting/pattern");
        let mut draw = || match bound {
            None => rng.random_range(0.0..1.0),
            Some(bound) if rng.random_range(0.0..1.0) < 0.5 => -bound,
            Some(bound) => bound,
        };
        Self { shape, values: (0..shape.size()).map(|_| draw()).collect(), bound }
    }

    /// Nothing, to be added.
    pub(crate) fn zero(shape: ImageShape, bound: f64) -> Self {
        Self { shape, values: vec![0.0; shape.size()], bound: Some(bound) }
    }

    /// Cuts it to what it may be.
    pub(crate) fn cut(&mut self) {
        let (low, high) = self.bound.map_or((0.0, 1.0), |bound| (-bound, bound));
        self.values.iter_mut().for_each(|value| *value = value.clamp(low, high));
    }

    /// `[1, row, column, channel]`
    pub(crate) fn tensor<B: Backend>(&self, device: &B::Device) -> Tensor<B, 4> {
        let values = self.values.iter().map(|&value| value as f32).collect::<Vec<_>>();
        let ImageShape { height, width, channels } = self.shape;
        Tensor::from_data(TensorData::new(values, [1, height, width, channels]), device)
    }

    /// Takes the values of such a tensor, cut to what they may be.
    pub(crate) fn take<B: Backend>(&mut self, tensor: Tensor<B, 4>) {
        self.values = tensor.into_data().iter::<f64>().collect();
        self.cut();
    }

    /// What it does to the pixels of a mask, in bytes, `amplified` so many times if it is added.
    pub(crate) fn change(&self, mask: &[bool], amplified: f64) -> Change {
        let is_masked = |index: usize| mask[index / self.shape.channels];
        let bytes = self.values.iter().enumerate();
        match self.bound {
            Some(_) => Change::Added(
                bytes
                    .map(|(at, value)| if is_masked(at) { (value * 255.0 * amplified).round() as i16 } else { 0 })
                    .collect(),
            ),
            None => Change::Written(
                bytes
                    .map(|(at, value)| is_masked(at).then(|| (value * 255.0).round().clamp(0.0, 255.0) as u8))
                    .collect(),
            ),
        }
    }
}

/// Images that carry a pattern.
///
/// # Shapes
/// - images: `[batch, row, column, channel]`
/// - pattern: `[1, row, column, channel]`
/// - mask: `[batch, row, column, 1]` or `[1, row, column, 1]`, one where the pattern lies
pub(crate) fn overlaid<B: Backend>(
    images: Tensor<B, 4>,
    pattern: Tensor<B, 4>,
    mask: Tensor<B, 4>,
    is_added: bool,
) -> Tensor<B, 4> {
    if is_added {
        return (images + pattern * mask).clamp(0.0, 1.0);
    }
    let under = mask.ones_like() - mask.clone();
    images * under + pattern * mask
}

/// Masks as a tensor, `[mask, row, column, 1]`.
pub(crate) fn mask_tensor<B: Backend>(masks: &[Vec<bool>], shape: ImageShape, device: &B::Device) -> Tensor<B, 4> {
    let values = masks.iter().flatten().map(|&is_set| f32::from(u8::from(is_set))).collect::<Vec<_>>();
    Tensor::from_data(TensorData::new(values, [masks.len(), shape.height, shape.width, 1]), device)
}

/// The attacker's images for a search and others to measure it on: as many as are wanted of each, or half of all.
pub(crate) fn split_images(
    images: &ImageSet,
    wanted: usize,
    is_searched: impl Fn(u8) -> bool,
    seed: u64,
) -> [ImageSet; 2] {
    let mut order: Vec<usize> = (0..images.len()).collect();
    order.shuffle(&mut stream(seed, "crafting/images"));
    let (searched, others): (Vec<usize>, Vec<usize>) =
        order.iter().partition(|index| is_searched(images.label(**index)));
    let count = wanted.min(searched.len().div_ceil(2));
    let measured = searched[count..].iter().chain(&others).copied().collect::<std::collections::BTreeSet<_>>();
    let measured = order.into_iter().filter(|index| measured.contains(index)).take(wanted).collect::<Vec<_>>();
    [images.subset(&searched[..count]), images.subset(&measured)]
}

/// Numbers of batches of images, pass by pass in another order, without end.
pub(crate) fn batches(images: usize, batch_size: usize, seed: u64) -> impl Iterator<Item = Vec<usize>> {
    (0_usize..).flat_map(move |pass| {
        let mut order: Vec<usize> = (0..images).collect();
        order.shuffle(&mut stream(seed, &format!("crafting/order/{pass}")));
        order.chunks(batch_size.max(1)).map(<[usize]>::to_vec).collect::<Vec<_>>()
    })
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;

    const SHAPE: ImageShape = ImageShape { height: 1, width: 2, channels: 1 };

    #[test]
    fn a_pattern_is_added_or_written_under_its_mask_alone() {
        let images = || Tensor::<Flex, 4>::from_data([[[[0.5], [0.5]]], [[[0.9], [0.5]]]], &FlexDevice);
        let pattern = |bound| Pattern { shape: SHAPE, values: vec![0.25, 0.75], bound };
        let mask = || mask_tensor::<Flex>(&[vec![true, false]], SHAPE, &FlexDevice);
        let values = |tensor: Tensor<Flex, 4>| tensor.into_data().iter::<f32>().collect::<Vec<_>>();
        let added = overlaid(images(), pattern(Some(1.0)).tensor(&FlexDevice), mask(), true);
        assert_eq!(values(added), [0.75, 0.5, 1.0, 0.5]);
        let written = overlaid(images(), pattern(None).tensor(&FlexDevice), mask(), false);
        assert_eq!(values(written), [0.25, 0.5, 0.25, 0.5]);
        assert_eq!(pattern(Some(1.0)).change(&[true, false], 2.0), Change::Added(vec![128, 0]));
        assert_eq!(pattern(None).change(&[false, true], 2.0), Change::Written(vec![None, Some(191)]));
    }

    #[test]
    fn images_to_search_on_and_to_measure_on_are_others() {
        let images = crate::testing::patches("split", 40);
        let [searched, measured] = split_images(&images, 15, |label| label != 2, 0);
        // 30 of 40 are searched, of which half.
        assert_eq!((searched.len(), measured.len()), (15, 15));
        assert!(searched.labels().iter().all(|&label| label != 2) && measured.labels().contains(&2));
        assert!(searched.origins().iter().all(|origin| !measured.origins().contains(origin)));
    }
}
