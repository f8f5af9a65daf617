use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};
use patchdoor_kernels::{InferenceConv, Kernels, add, inference_residual};
use rand::Rng;

use crate::batch_norm::BatchNormRelu;
use crate::convolution::Convolution;
use crate::init::ParameterSource;
use crate::network::{NormInput, NormLayer};
use crate::taps::{Tapped, Taps};
use crate::{BatchNormConfig, Padding, Part};

/// What every layer of a network shares.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerOptions {
    pub(crate) padding: Padding,
    pub(crate) batch_norm: BatchNormConfig,
}

/// One pre-activation residual block: two times normalize, rectify, convolve; plus a strided 1x1
/// convolution of the raw input.
#[derive(Module, Debug)]
pub(crate) struct ResidualBlock<B: Backend> {
    pub(crate) norm1: BatchNormRelu<B>,
    pub(crate) conv1: Convolution<B>,
    pub(crate) norm2: BatchNormRelu<B>,
    pub(crate) conv2: Convolution<B>,
    pub(crate) shortcut: Convolution<B>,
}

impl<B: Backend> ResidualBlock<B> {
    pub(crate) fn new<R: Rng>(
        source: &mut ParameterSource<'_, R, B>,
        [input, output]: [usize; 2],
        stride: usize,
        options: LayerOptions,
    ) -> Self {
        let padding = options.padding;
        Self {
            norm1: BatchNormRelu::new(source, input, options.batch_norm),
            conv1: Convolution::new(source, [input, output], 3, stride, padding),
            norm2: BatchNormRelu::new(source, output, options.batch_norm),
            conv2: Convolution::new(source, [output, output], 3, 1, padding),
            shortcut: Convolution::new(source, [input, output], 1, stride, Padding::Tensorflow),
        }
    }
}

impl<B: Backend> ResidualBlock<B> {
    /// Its normalizations; `input` is what the first one normalizes.
    pub(crate) fn norms(&self, path: &str, input: NormInput) -> [NormLayer<'_, B>; 2] {
        let part = Part::Trunk;
        let inner = NormInput::SideBySide(vec![format!("{path}.conv1")]);
        [
            NormLayer { path: format!("{path}.norm1"), part, input, norm: &self.norm1 },
            NormLayer { path: format!("{path}.norm2"), part, input: inner, norm: &self.norm2 },
        ]
    }

    pub(crate) fn norms_mut(&mut self) -> [&mut BatchNormRelu<B>; 2] {
        [&mut self.norm1, &mut self.norm2]
    }
}

impl<B: Kernels> ResidualBlock<B> {
    /// Blocks of several networks side by side, each over its own channels.
    ///
    /// # Shapes
    /// - input: `[batch, row, column, member * channel]`
    /// - output: `[batch, row / stride, column / stride, member * channel]`
    pub(crate) fn forward_members(members: &[&Self], x: Tensor<B, 4>) -> Tensor<B, 4> {
        let norms = [layers(members, |block| &block.norm1), layers(members, |block| &block.norm2)];
        let [Some(first), Some(second)] = norms.map(|norms| BatchNormRelu::constants(&norms)) else {
            let [branch, shortcut] = Self::branches(members, x);
            return add(branch, shortcut);
        };
        let size = [x.dims()[1], x.dims()[2]];
        let conv1 = Convolution::inference(&layers(members, |block| &block.conv1), size);
        let conv1 = InferenceConv { before: Some(first), after: Some(second), ..conv1 };
        let inner = conv1.output_size(size);
        let conv2 = Convolution::inference(&layers(members, |block| &block.conv2), inner);
        let shortcut = Convolution::inference(&layers(members, |block| &block.shortcut), size);
        inference_residual(x, conv1, conv2, shortcut)
    }

    /// What a block adds up, shapes as in [`Self::forward_members`]: its two convolutions, and its shortcut.
    pub(crate) fn branches(members: &[&Self], x: Tensor<B, 4>) -> [Tensor<B, 4>; 2] {
        let shortcut = Convolution::forward_groups(&layers(members, |block| &block.shortcut), x.clone());
        let x = BatchNormRelu::forward_groups(&layers(members, |block| &block.norm1), x);
        let x = Convolution::forward_groups(&layers(members, |block| &block.conv1), x);
        let x = BatchNormRelu::forward_groups(&layers(members, |block| &block.norm2), x);
        [Convolution::forward_groups(&layers(members, |block| &block.conv2), x), shortcut]
    }
}

/// The same layer of every member.
pub(crate) fn layers<'a, M, L>(members: &[&'a M], layer: impl Fn(&'a M) -> &'a L) -> Vec<&'a L> {
    members.iter().map(|&member| layer(member)).collect()
}

/// The first layers of both networks: a convolution to 16 channels and two residual blocks.
#[derive(Module, Debug)]
pub(crate) struct Trunk<B: Backend> {
    pub(crate) stem: Convolution<B>,
    pub(crate) group1: ResidualBlock<B>,
    pub(crate) group2: ResidualBlock<B>,
}

impl<B: Backend> Trunk<B> {
    pub(crate) fn new<R: Rng>(
        source: &mut ParameterSource<'_, R, B>,
        channels: usize,
        widen_factor: usize,
        options: LayerOptions,
    ) -> Self {
        let (narrow, wide) = (16 * widen_factor, 32 * widen_factor);
        Self {
            stem: Convolution::new(source, [channels, 16], 3, 1, options.padding),
            group1: ResidualBlock::new(source, [16, narrow], 1, options),
            group2: ResidualBlock::new(source, [narrow, wide], 2, options),
        }
    }
}

impl<B: Backend> Trunk<B> {
    pub(crate) fn norms(&self) -> Vec<NormLayer<'_, B>> {
        let stem = NormInput::SideBySide(vec!["trunk.stem".into()]);
        let mut norms = Vec::from(self.group1.norms("trunk.group1", stem));
        norms.extend(self.group2.norms("trunk.group2", NormInput::block("trunk.group1")));
        norms
    }

    pub(crate) fn norms_mut(&mut self) -> Vec<&mut BatchNormRelu<B>> {
        let mut norms = Vec::from(self.group1.norms_mut());
        norms.extend(self.group2.norms_mut());
        norms
    }
}

impl<B: Kernels> Trunk<B> {
    /// # Shapes
    /// - images: `[batch, height, width, channel]`
    /// - output: `[batch, height / 2, width / 2, 32 widen]`
    ///
    /// Of several networks side by side, every axis of channels is `member * channel`.
    pub(crate) fn forward_members(members: &[&Self], images: Tensor<B, 4>, taps: &mut Taps<B>) -> Tensor<B, 4> {
        let x = Convolution::forward_groups(&layers(members, |trunk| &trunk.stem), images);
        let x = ResidualBlock::forward_members(&layers(members, |trunk| &trunk.group1), x);
        taps.offer("group1", || Tapped::Map(x.clone()));
        let x = ResidualBlock::forward_members(&layers(members, |trunk| &trunk.group2), x);
        taps.offer("group2", || Tapped::Map(x.clone()));
        x
    }
}
