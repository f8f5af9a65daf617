use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};
use patchdoor_kernels::{ConvOptions, Kernels, dense, grouped_conv2d, join};
use rand::Rng;

use crate::init::ParameterSource;

/// A dense layer with bias.
#[derive(Module, Debug)]
pub(crate) struct Dense<B: Backend> {
    /// `[out, in]`
    pub(crate) weight: Param<Tensor<B, 2>>,
    /// `[out]`
    pub(crate) bias: Param<Tensor<B, 1>>,
}

impl<B: Backend> Dense<B> {
    pub(crate) fn new<R: Rng>(source: &mut ParameterSource<'_, R, B>, input: usize, output: usize) -> Self {
        Self { weight: source.weight([output, input]), bias: source.constant(0.0, output) }
    }
}

impl<B: Kernels> Dense<B> {
    /// Layers of one shape side by side, each over its own group of inputs.
    ///
    /// # Shapes
    /// - input: `[batch, group * in]`
    /// - output: `[batch, group * out]`
    pub(crate) fn forward_groups(groups: &[&Self], x: Tensor<B, 2>) -> Tensor<B, 2> {
        if let ([only], false) = (groups, B::ON_DEVICE) {
            let (weight, bias) = (only.weight.val(), only.bias.val());
            if B::ad_enabled(&x.device()) {
                return x.matmul(weight.transpose()) + bias.unsqueeze();
            }
            // Predictions must not depend on the batch.
            return dense(x, weight, bias);
        }
        // A pixel by kernels of one pixel: the device adds the bias on the way, and gives both gradients at once.
        let [batch, wide] = x.dims();
        let weights = join(groups.iter().map(|group| group.weight.val()).collect());
        let biases = join(groups.iter().map(|group| group.bias.val()).collect());
        let [outputs, input] = weights.dims();
        let (x, weights) = (x.reshape([batch, 1, 1, wide]), weights.reshape([outputs, input, 1, 1]));
        let options = ConvOptions::symmetric([1, 1], 1);
        grouped_conv2d(x, weights, biases, groups.len(), options).reshape([batch, outputs])
    }
}
