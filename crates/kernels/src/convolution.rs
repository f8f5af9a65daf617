use burn::tensor::Tensor;

use crate::primitives::{primitive, tensor};
use crate::{ConvOptions, Kernels};

/// Convolves channels-last feature maps and adds a bias.
///
/// As everywhere in deep learning this is a cross-correlation: `output[b, i, j, o] = bias[o] + sum over (r, s, c) of
/// x[b, i * stride + r - top, j * stride + s - left, c] * weight[o, c, r, s]`, with zeros outside of `x`.
///
/// # Shapes
/// - x: `[batch, height, width, channel]`
/// - weight: `[out, channel, kernel height, kernel width]`, as `PyTorch` has it
/// - bias: `[out]`
/// - output: `[batch, height', width', out]`, see [`ConvOptions::output_size`]
///
/// # Panics
/// If shapes disagree or the kernel does not fit into the padded input.
pub fn conv2d<B: Kernels>(
    x: Tensor<B, 4>,
    weight: Tensor<B, 4>,
    bias: Tensor<B, 1>,
    options: ConvOptions,
) -> Tensor<B, 4> {
    grouped_conv2d(x, weight, bias, 1, options)
}

/// Convolves every group of channels by weights of its own and adds a bias.
///
/// The channels of input and output are divided into `groups` consecutive groups; output group `g` is
/// [`conv2d`] of input group `g` by the `g`-th part of the weight.
///
/// # Shapes
/// - x: `[batch, height, width, groups * channel]`
/// - weight: `[groups * out, channel, kernel height, kernel width]`
/// - bias: `[groups * out]`
/// - output: `[batch, height', width', groups * out]`
///
/// # Panics
/// If shapes disagree or the kernel does not fit into the padded input.
pub fn grouped_conv2d<B: Kernels>(
    x: Tensor<B, 4>,
    weight: Tensor<B, 4>,
    bias: Tensor<B, 1>,
    groups: usize,
    options: ConvOptions,
) -> Tensor<B, 4> {
    let [_, height, width, channels] = x.dims();
    let [out, weight_channels, rows, columns] = weight.dims();
    assert_eq!(
        channels,
        groups * weight_channels,
        "the input and the convolution's weight must have the same channels"
    );
    assert!(groups > 0 && out % groups == 0, "{groups} groups must divide {out} output channels");
    assert_eq!([out], bias.dims(), "a convolution's bias must have one value per output channel");
    options.output_size([height, width], [rows, columns]);
    tensor(B::conv2d_bias(primitive(x), primitive(weight), primitive(bias), groups, options))
}
