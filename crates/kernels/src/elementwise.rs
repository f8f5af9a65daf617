use burn::tensor::Tensor;

use crate::Kernels;
use crate::primitives::{primitive, tensor};

/// Adds two tensors of one shape, as a residual connection does.
///
/// # Panics
/// If the shapes differ.
pub fn add<B: Kernels, const D: usize>(left: Tensor<B, D>, right: Tensor<B, D>) -> Tensor<B, D> {
    assert_eq!(left.dims(), right.dims(), "both sides of a residual connection must have one shape");
    tensor(B::add(primitive(left), primitive(right)))
}

/// Averages a map over its positions.
///
/// # Shapes
/// - map: `[batch, height, width, channel]`
/// - output: `[batch, channel]`
pub fn average_positions<B: Kernels>(map: Tensor<B, 4>) -> Tensor<B, 2> {
    tensor(B::average_positions(primitive(map)))
}

/// A dense layer, `x * transposed(weight) + bias`, never rounded whatever the [`Precision`](crate::Precision) in use.
///
/// A row's result does not depend on the rows beside it: on burn's CPU backend not in its last bit, which a product of
/// matrices does not promise.
///
/// # Shapes
/// - x: `[row, in]`
/// - weight: `[out, in]`
/// - bias: `[out]`
/// - output: `[row, out]`
///
/// # Panics
/// If shapes disagree.
pub fn dense<B: Kernels>(x: Tensor<B, 2>, weight: Tensor<B, 2>, bias: Tensor<B, 1>) -> Tensor<B, 2> {
    let [out, input] = weight.dims();
    assert_eq!(x.dims()[1], input, "a dense layer's weight must have as many columns as its input");
    assert_eq!([out], bias.dims(), "a dense layer's bias must have one value per output");
    tensor(B::dense(primitive(x), primitive(weight), primitive(bias)))
}
