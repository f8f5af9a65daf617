use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::Kernels;
use crate::primitives::{primitive, tensor};

/// What [`batch_norm_relu`] gives.
#[derive(Clone, Debug)]
pub struct Normalized<B: Backend, const D: usize> {
    /// Normalized, scaled, shifted and rectified, `[.., channel]`.
    pub output: Tensor<B, D>,
    /// Mean of the batch, `[channel]`, without gradient.
    pub mean: Tensor<B, 1>,
    /// Biased variance of the batch, `[channel]`, without gradient.
    pub variance: Tensor<B, 1>,
}

/// Batch normalization by the batch's own statistics, followed by a rectifier.
///
/// `output = max(gamma * (x - mean) / sqrt(variance + epsilon) + beta, 0)`, where mean and (biased) variance are taken
/// over all axes but the last. Gradients flow into `x` (through the statistics too), `gamma` and `beta`; at zero the
/// rectifier's slope is zero.
///
/// # Shapes
/// - x, output: `[.., channel]`
/// - gamma, beta: `[channel]`
///
/// # Panics
/// If `gamma` or `beta` do not have one value per channel.
pub fn batch_norm_relu<B: Kernels, const D: usize>(
    x: Tensor<B, D>,
    gamma: Tensor<B, 1>,
    beta: Tensor<B, 1>,
    epsilon: f64,
) -> Normalized<B, D> {
    check_channels(&x, [&gamma, &beta]);
    let (output, mean, variance) = B::batch_norm_relu(primitive(x), primitive(gamma), primitive(beta), epsilon);
    Normalized { output: tensor(output), mean: tensor(mean), variance: tensor(variance) }
}

/// Multiplies every channel by its scale, adds its shift, and rectifies: a batch normalization in inference mode.
///
/// With running statistics, `scale = gamma / sqrt(variance + epsilon)` and `shift = beta - mean * scale`.
///
/// # Shapes
/// - x, output: `[.., channel]`
/// - scale, shift: `[channel]`
///
/// # Panics
/// If `scale` or `shift` do not have one value per channel.
pub fn scale_shift_relu<B: Kernels, const D: usize>(
    x: Tensor<B, D>,
    scale: Tensor<B, 1>,
    shift: Tensor<B, 1>,
) -> Tensor<B, D> {
    check_channels(&x, [&scale, &shift]);
    tensor(B::scale_shift_relu(primitive(x), primitive(scale), primitive(shift)))
}

fn check_channels<B: Backend, const D: usize>(x: &Tensor<B, D>, parameters: [&Tensor<B, 1>; 2]) {
    for parameter in parameters {
        assert_eq!(parameter.dims()[0], x.dims()[D - 1], "a normalization needs one parameter per channel");
    }
}
