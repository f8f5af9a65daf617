use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use patchdoor_data::{AugmentationConfig, ImageSet, stream};
use rand::seq::SliceRandom;

/// The order in which an epoch visits the images: a permutation that depends on seed and epoch alone.
pub(crate) fn epoch_order(images: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..images).collect();
    order.shuffle(&mut stream(seed, &format!("training/order/{epoch}")));
    order
}

/// Turns images of a set into tensors, one buffer reused.
pub(crate) struct BatchAssembler<'a> {
    set: &'a ImageSet,
    augmentation: Option<(&'a AugmentationConfig, patchdoor_data::StreamRng)>,
    scratch: Vec<u8>,
}

/// One step's input.
pub(crate) struct Batch<B: Backend> {
    /// `[batch, height, width, channel]`, pixels in [0, 1].
    pub(crate) images: Tensor<B, 4>,
    /// `[batch]`
    pub(crate) labels: Tensor<B, 1, Int>,
}

impl<'a> BatchAssembler<'a> {
    /// Images as they are.
    pub(crate) fn plain(set: &'a ImageSet) -> Self {
        Self { set, augmentation: None, scratch: Vec::new() }
    }

    /// Images augmented with draws that depend on seed and epoch alone.
    pub(crate) fn augmented(set: &'a ImageSet, augmentation: &'a AugmentationConfig, seed: u64, epoch: usize) -> Self {
        let rng = stream(seed, &format!("training/augmentation/{epoch}"));
        Self { set, augmentation: Some((augmentation, rng)), scratch: Vec::new() }
    }

    pub(crate) fn assemble<B: Backend>(&mut self, indices: &[usize], device: &B::Device) -> Batch<B> {
        let shape = self.set.shape();
        let length = shape.height * shape.width * shape.channels;
        let mut pixels: Vec<f32> = Vec::with_capacity(indices.len() * length);
        self.scratch.resize(length, 0);
        for &index in indices {
            let source = self.set.pixels(index);
            let image = match &mut self.augmentation {
                Some((augmentation, rng)) => {
                    augmentation.apply(shape, source, &mut self.scratch, rng);
                    &self.scratch
                }
                None => source,
            };
            pixels.extend(image.iter().map(|&pixel| f32::from(pixel) / 255.0));
        }
        let labels: Vec<i32> = indices.iter().map(|&index| i32::from(self.set.label(index))).collect();
        let images = TensorData::new(pixels, [indices.len(), shape.height, shape.width, shape.channels]);
        let labels = TensorData::new(labels, [indices.len()]);
        Batch { images: Tensor::from_data(images, device), labels: Tensor::from_data(labels, device) }
    }
}

/// The images of a set as they are, batch by batch in their order.
///
/// # Shapes
/// - each batch: `[batch, height, width, channel]`, pixels in [0, 1]; the last may be smaller
pub fn image_batches<'a, B: Backend>(
    set: &'a ImageSet,
    batch_size: usize,
    device: &'a B::Device,
) -> impl Iterator<Item = Tensor<B, 4>> + 'a {
    let mut assembler = BatchAssembler::plain(set);
    let (batch_size, images) = (batch_size.max(1), set.len());
    (0..images).step_by(batch_size).map(move |first| {
        let indices = (first..images.min(first + batch_size)).collect::<Vec<_>>();
        assembler.assemble::<B>(&indices, device).images
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_a_permutation_that_changes_with_epoch_and_seed() {
        let order = epoch_order(100, 7, 0);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(order, epoch_order(100, 7, 0));
        assert_ne!(order, epoch_order(100, 7, 1));
        assert_ne!(order, epoch_order(100, 8, 0));
    }
}
