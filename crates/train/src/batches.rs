use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use patchdoor_data::{AugmentationConfig, AugmentationDraw, ImageSet, StreamRng, stream};
use patchdoor_kernels::{Kernels, pack_pixels, take_images};
use rand::seq::SliceRandom;

/// The order in which an epoch visits the images: a permutation that depends on seed and epoch alone.
pub(crate) fn epoch_order(images: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..images).collect();
    order.shuffle(&mut stream(seed, &format!("training/order/{epoch}")));
    order
}

/// Turns images of a set into tensors.
///
/// Where the backend computes on a device, the whole set lies there as bytes, and a batch is made there.
pub struct BatchAssembler<'a, B: Backend> {
    set: &'a ImageSet,
    on_device: Option<Tensor<B, 1, Int>>,
}

/// One step's input.
#[derive(Clone, Debug)]
pub struct Batch<B: Backend> {
    /// `[batch, height, width, channel]`, pixels in [0, 1].
    pub images: Tensor<B, 4>,
    /// `[batch]`
    pub labels: Tensor<B, 1, Int>,
}

/// Random changes to images, in the order in which they are used.
pub(crate) struct Augmentation<'a> {
    config: &'a AugmentationConfig,
    rng: StreamRng,
}

impl<'a> Augmentation<'a> {
    /// Draws that depend on seed and epoch alone.
    pub(crate) fn of_epoch(config: &'a AugmentationConfig, seed: u64, epoch: usize) -> Self {
        Self { config, rng: stream(seed, &format!("training/augmentation/{epoch}")) }
    }
}

impl<'a, B: Kernels> BatchAssembler<'a, B> {
    /// Takes the set to where the batches are made.
    pub fn new(set: &'a ImageSet, device: &B::Device) -> Self {
        let on_device = B::ON_DEVICE.then(|| {
            let pixels = (0..set.len()).flat_map(|index| set.pixels(index)).copied().collect::<Vec<u8>>();
            pack_pixels::<B>(&pixels, device)
        });
        Self { set, on_device }
    }

    /// The images of these numbers as they are.
    ///
    /// # Panics
    /// If there is no image of such a number.
    pub fn batch(&self, indices: &[usize], device: &B::Device) -> Batch<B> {
        self.assemble(indices, None, device)
    }

    /// Images as they are, or changed.
    pub(crate) fn assemble(
        &self,
        indices: &[usize],
        augmentation: Option<&mut Augmentation<'_>>,
        device: &B::Device,
    ) -> Batch<B> {
        let images = match &self.on_device {
            Some(pixels) => self.take(pixels.clone(), indices, augmentation, device),
            None => self.copy(indices, augmentation, device),
        };
        let labels: Vec<i32> = indices.iter().map(|&index| i32::from(self.set.label(index))).collect();
        let labels = TensorData::new(labels, [indices.len()]);
        Batch { images, labels: Tensor::from_data(labels, device) }
    }

    /// A batch made on the device.
    fn take(
        &self,
        pixels: Tensor<B, 1, Int>,
        indices: &[usize],
        augmentation: Option<&mut Augmentation<'_>>,
        device: &B::Device,
    ) -> Tensor<B, 4> {
        let padding = augmentation.as_ref().map_or(0, |augmentation| augmentation.config.crop_padding);
        let mut augmentation = augmentation;
        let draws = indices.iter().flat_map(|&index| {
            let draw = augmentation.as_mut().map(|augmentation| augmentation.config.draw(&mut augmentation.rng));
            let draw = draw.unwrap_or(AugmentationDraw { mirror: false, row: 0, column: 0 });
            [index, usize::from(draw.mirror), draw.row, draw.column].map(|number| number as i32)
        });
        let draws = TensorData::new(draws.collect::<Vec<i32>>(), [indices.len(), 4]);
        let shape = self.set.shape();
        let shape = [shape.height, shape.width, shape.channels];
        take_images(pixels, Tensor::from_data(draws, device), shape, padding)
    }

    /// A batch made on the host.
    fn copy(
        &self,
        indices: &[usize],
        mut augmentation: Option<&mut Augmentation<'_>>,
        device: &B::Device,
    ) -> Tensor<B, 4> {
        let shape = self.set.shape();
        let length = shape.height * shape.width * shape.channels;
        let mut pixels: Vec<f32> = Vec::with_capacity(indices.len() * length);
        let mut scratch = vec![0; length];
        for &index in indices {
            let source = self.set.pixels(index);
            let image = match &mut augmentation {
                Some(augmentation) => {
                    augmentation.config.apply(shape, source, &mut scratch, &mut augmentation.rng);
                    &scratch
                }
                None => source,
            };
            pixels.extend(image.iter().map(|&pixel| f32::from(pixel) / 255.0));
        }
        let images = TensorData::new(pixels, [indices.len(), shape.height, shape.width, shape.channels]);
        Tensor::from_data(images, device)
    }
}

/// The images of a set as they are, batch by batch in their order.
///
/// # Shapes
/// - each batch: `[batch, height, width, channel]`, pixels in [0, 1]; the last may be smaller
pub fn image_batches<'a, B: Kernels>(
    set: &'a ImageSet,
    batch_size: usize,
    device: &'a B::Device,
) -> impl Iterator<Item = Tensor<B, 4>> + 'a {
    let assembler = BatchAssembler::<B>::new(set, device);
    let (batch_size, images) = (batch_size.max(1), set.len());
    (0..images).step_by(batch_size).map(move |first| {
        let indices = (first..images.min(first + batch_size)).collect::<Vec<_>>();
        assembler.assemble(&indices, None, device).images
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
