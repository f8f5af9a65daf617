//! Convolutions in burn's operations.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::module::conv2d;
use burn::tensor::ops::{ConvOptions as BurnOptions, FloatTensor};

use super::normalization::scale_shift_relu;
use super::sum_rows::sum_rows;
use crate::primitives::{primitive, tensor};
use crate::{ConvOptions, InferenceConv};

pub(crate) fn forward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: FloatTensor<B>,
    groups: usize,
    options: ConvOptions,
) -> FloatTensor<B> {
    let x = pad(tensor::<B, 4>(x).permute([0, 3, 1, 2]), options);
    let output = conv2d(x, tensor(weight), Some(tensor(bias)), unpadded(groups, options));
    primitive(output.permute([0, 2, 3, 1]))
}

/// One operation after the other.
pub(crate) fn inference<B: Backend>(x: FloatTensor<B>, conv: InferenceConv<B>) -> FloatTensor<B> {
    let InferenceConv { before, weight, bias, added, after, groups, options } = conv;
    let normalized = |x, normalization: Option<[Tensor<B, 1>; 2]>| match normalization {
        Some([scale, shift]) => scale_shift_relu::<B>(x, primitive(scale), primitive(shift)),
        None => x,
    };
    let output = forward::<B>(normalized(x, before), primitive(weight), primitive(bias), groups, options);
    let output = match added {
        Some(added) => B::float_add(output, primitive(added)),
        None => output,
    };
    normalized(output, after)
}

/// One layer after the other.
pub(crate) fn residual<B: Backend>(
    x: FloatTensor<B>,
    [first, second, shortcut]: [InferenceConv<B>; 3],
) -> FloatTensor<B> {
    let added = tensor(inference::<B>(x.clone(), shortcut));
    inference::<B>(inference::<B>(x, first), InferenceConv { added: Some(added), ..second })
}

pub(crate) fn input_gradient<B: Backend>(
    weight: FloatTensor<B>,
    gradient: FloatTensor<B>,
    [height, width]: [usize; 2],
    groups: usize,
    options: ConvOptions,
) -> FloatTensor<B> {
    let gradient = tensor::<B, 4>(gradient).permute([0, 3, 1, 2]);
    let weight = at_least_the_stride(tensor::<B, 4>(weight), options.stride);
    let [_, channels, rows, columns] = weight.dims();
    let channels = groups * channels;
    let [batch, _, out_height, out_width] = gradient.dims();
    let [top, left, bottom, right] = options.padding;
    // A kernel that grew may reach beyond the padded input.
    let reached = |out: usize, kernel: usize| (out - 1) * options.stride + kernel;
    let padded = [
        (top + height + bottom).max(reached(out_height, rows)),
        (left + width + right).max(reached(out_width, columns)),
    ];
    // Burn reads only the shape of this input.
    let x = Tensor::<B, 4>::zeros([batch, channels, padded[0], padded[1]], (&gradient.device(), gradient.dtype()));
    let x = B::conv2d_x_backward(primitive(x), primitive(weight), primitive(gradient), unpadded(groups, options));
    let x = tensor::<B, 4>(x).slice([0..batch, 0..channels, top..top + height, left..left + width]);
    primitive(x.permute([0, 2, 3, 1]))
}

/// Adds zeros below and right of a kernel that is smaller than the stride.
///
/// The direct transposed convolution of burn-cubecl 0.21 looks for inputs in an empty range where the kernel is smaller
/// than the stride, and gives zeros: no gradient passes a 1x1 shortcut with stride 2. Autotune may choose that kernel.
fn at_least_the_stride<B: Backend>(weight: Tensor<B, 4>, stride: usize) -> Tensor<B, 4> {
    let [out, channels, rows, columns] = weight.dims();
    if rows >= stride && columns >= stride {
        return weight;
    }
    let grown = [out, channels, rows.max(stride), columns.max(stride)];
    let zeros = Tensor::zeros(grown, (&weight.device(), weight.dtype()));
    zeros.slice_assign([0..out, 0..channels, 0..rows, 0..columns], weight)
}

pub(crate) fn weight_gradients<B: Backend>(
    x: FloatTensor<B>,
    gradient: FloatTensor<B>,
    kernel: [usize; 2],
    groups: usize,
    options: ConvOptions,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let x = pad(tensor::<B, 4>(x).permute([0, 3, 1, 2]), options);
    let gradient = tensor::<B, 4>(gradient);
    let [batch, height, width, out] = gradient.dims();
    let bias = sum_rows(gradient.clone().reshape([batch * height * width, out])).reshape([out]);
    // Burn reads only the shape of this weight.
    let weight = Tensor::<B, 4>::zeros([out, x.dims()[1] / groups, kernel[0], kernel[1]], (&x.device(), x.dtype()));
    let gradient = primitive(gradient.permute([0, 3, 1, 2]));
    let weight = B::conv2d_weight_backward(primitive(x), primitive(weight), gradient, unpadded(groups, options));
    (weight, primitive(bias))
}

/// Adds the zeros around `[batch, channel, height, width]`; burn's convolution pads only symmetrically, and
/// `Tensor::pad` does not keep the element type.
fn pad<B: Backend>(x: Tensor<B, 4>, options: ConvOptions) -> Tensor<B, 4> {
    if options.padding == [0; 4] {
        return x;
    }
    let [top, left, bottom, right] = options.padding;
    let [batch, channels, height, width] = x.dims();
    let padded = [batch, channels, top + height + bottom, left + width + right];
    let inside = [0..batch, 0..channels, top..top + height, left..left + width];
    Tensor::zeros(padded, (&x.device(), x.dtype())).slice_assign(inside, x)
}

fn unpadded(groups: usize, options: ConvOptions) -> BurnOptions<2> {
    BurnOptions::new([options.stride; 2], [0, 0], [1, 1], groups)
}
