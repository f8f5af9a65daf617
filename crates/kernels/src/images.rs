use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

use crate::Kernels;
use crate::primitives::tensor;

/// Puts pixels onto a device, four to a number: a backend need not know bytes.
///
/// # Shapes
/// - pixels: `[image * row * column * channel]`
/// - output: a quarter as many, the first pixel in the lowest byte
pub fn pack_pixels<B: Backend>(pixels: &[u8], device: &B::Device) -> Tensor<B, 1, Int> {
    let words = pixels.chunks(4).map(|four| {
        let mut bytes = [0; 4];
        bytes[..four.len()].copy_from_slice(four);
        i32::from_le_bytes(bytes)
    });
    let words: Vec<i32> = words.collect();
    let count = words.len();
    Tensor::from_data(TensorData::new(words, [count]), device)
}

/// Takes a batch of the images that [`pack_pixels`] put onto the device, changed as drawn.
///
/// A draw is the image's number, whether it is mirrored left to right (1) or not (0), and the first row and column cut
/// out of the image with `padding` black pixels around it. Cutting comes first, then mirroring.
///
/// # Shapes
/// - pixels: as [`pack_pixels`] gives them, of images of `[height, width, channel]`
/// - draws: `[batch, 4]`: image, mirror, row, column; row and column in `0..=2 * padding`
/// - output: `[batch, height, width, channel]`, each pixel divided by 255
///
/// # Panics
/// If a draw has not four numbers.
pub fn take_images<B: Kernels>(
    pixels: Tensor<B, 1, Int>,
    draws: Tensor<B, 2, Int>,
    shape: [usize; 3],
    padding: usize,
) -> Tensor<B, 4> {
    assert_eq!(draws.dims()[1], 4, "a draw is an image, a mirror, a row and a column");
    tensor(B::take_images(pixels.into_primitive(), draws.into_primitive(), shape, padding))
}
