use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};
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

    /// # Shapes
    /// - input: `[batch, in]`
    /// - output: `[batch, out]`
    pub(crate) fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        x.matmul(self.weight.val().transpose()) + self.bias.val().unsqueeze()
    }
}
