//! Batches of images that live on the device, in burn's operations.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor};

use crate::primitives::primitive;

pub(crate) fn take_images<B: Backend>(
    pixels: IntTensor<B>,
    draws: IntTensor<B>,
    [height, width, channels]: [usize; 3],
    padding: usize,
) -> FloatTensor<B> {
    let pixels = Tensor::<B, 1, Int>::from_primitive(pixels);
    let draws = Tensor::<B, 2, Int>::from_primitive(draws);
    let [batch, _] = draws.dims();
    let shape = [batch, height, width];
    let device = pixels.device();
    let number = |column: usize| draws.clone().narrow(1, column, 1).reshape([batch, 1, 1]).expand(shape);
    let axis = |length: usize| Tensor::<B, 1, Int>::arange(0..length as i64, &device);
    let rows = axis(height).reshape([1, height, 1]).expand(shape);
    let columns = axis(width).reshape([1, 1, width]).expand(shape);
    let mirrored = columns.clone().neg() + (width - 1) as i64;
    let mirror = number(1);
    let columns = columns * mirror.clone().equal_elem(0).int() + mirrored * mirror.not_equal_elem(0).int();
    let rows = rows + number(2) - padding as i64;
    let columns = columns + number(3) - padding as i64;
    let within = |axis: &Tensor<B, 3, Int>, length: usize| {
        axis.clone().greater_equal_elem(0).int() * axis.clone().lower_elem(length as i64).int()
    };
    let inside = within(&rows, height) * within(&columns, width);
    let place = (number(0) * height as i64 + rows) * width as i64 + columns;
    let place = (place * inside.clone()).reshape([batch, height, width, 1]).expand([batch, height, width, channels]);
    let place = place * channels as i64 + axis(channels).reshape([1, 1, 1, channels]);
    let count = batch * height * width * channels;
    let words = pixels.gather(0, (place.clone() / 4).reshape([count])).reshape([batch, height, width, channels]);
    let bytes =
        words.bitwise_right_shift((place % 4) * 8).bitwise_and_scalar(burn::tensor::ElementConversion::elem(255));
    let inside = inside.reshape([batch, height, width, 1]).expand([batch, height, width, channels]);
    primitive((bytes * inside).float() / 255.0)
}
