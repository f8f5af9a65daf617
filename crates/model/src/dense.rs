use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};
use patchdoor_kernels::{ConvOptions, Kernels, conv2d};
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
    /// # Shapes
    /// - input: `[batch, in]`
    /// - output: `[batch, out]`
    pub(crate) fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        if B::ON_DEVICE {
            // A pixel by a kernel of one pixel: the device adds the bias on the way, and gives both gradients at once.
            let [batch, input] = x.dims();
            let [output, _] = self.weight.dims();
            let weight = self.weight.val().reshape([output, input, 1, 1]);
            let options = ConvOptions::symmetric([1, 1], 1);
            return conv2d(x.reshape([batch, 1, 1, input]), weight, self.bias.val(), options).reshape([batch, output]);
        }
        x.matmul(self.weight.val().transpose()) + self.bias.val().unsqueeze()
    }
}
