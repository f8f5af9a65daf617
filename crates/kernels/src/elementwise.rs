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
