use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};
use patchdoor_kernels::{Kernels, average_positions};
use rand::Rng;

use crate::batch_norm::BatchNormRelu;
use crate::dense::Dense;
use crate::init::ParameterSource;
use crate::trunk::{LayerOptions, ResidualBlock, Trunk};
use crate::{InputShape, WideResNetConfig};

/// The dense baseline: the network of [`crate::PatchMoe`] with an ordinary third group.
#[derive(Module, Debug)]
pub struct WideResNet<B: Backend> {
    pub(crate) trunk: Trunk<B>,
    pub(crate) group3: ResidualBlock<B>,
    pub(crate) norm: BatchNormRelu<B>,
    pub(crate) head: Dense<B>,
}

impl<B: Backend> WideResNet<B> {
    pub(crate) fn new<R: Rng>(
        config: &WideResNetConfig,
        input: InputShape,
        classes: usize,
        rng: &mut R,
        device: &B::Device,
    ) -> Self {
        let options = LayerOptions { padding: config.padding, batch_norm: config.batch_norm };
        let widen = config.widen_factor;
        let source = &mut ParameterSource::new(rng, device, config.initializer);
        Self {
            trunk: Trunk::new(source, input.channels, widen, options),
            group3: ResidualBlock::new(source, [32 * widen, 64 * widen], 2, options),
            norm: BatchNormRelu::new(source, 64 * widen, config.batch_norm),
            head: Dense::new(source, 64 * widen, classes),
        }
    }
}

impl<B: Kernels> WideResNet<B> {
    /// Returns logits.
    ///
    /// # Shapes
    /// - images: `[batch, height, width, channel]`, pixels in [0, 1]
    /// - output: `[batch, class]`
    pub fn forward(&self, images: Tensor<B, 4>) -> Tensor<B, 2> {
        let x = self.group3.forward(self.trunk.forward(images));
        self.head.forward(average_positions(self.norm.forward(x)))
    }
}
