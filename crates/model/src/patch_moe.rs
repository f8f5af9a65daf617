use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};
use patchdoor_kernels::{Kernels, average_positions, gather_weighted};
use rand::Rng;

use crate::batch_norm::BatchNormRelu;
use crate::convolution::Convolution;
use crate::dense::Dense;
use crate::init::ParameterSource;
use crate::router::{PatchRouter, Routing};
use crate::trunk::{LayerOptions, Trunk};
use crate::{ExpertForm, InputShape, Padding, PatchMoeConfig};

/// A wide residual network whose last group is a mixture of experts over patches of its feature map
/// (Chowdhury et al. 2023, arXiv:2306.04073).
#[derive(Module, Debug)]
pub struct PatchMoe<B: Backend> {
    pub(crate) trunk: Trunk<B>,
    pub(crate) patch_norm: BatchNormRelu<B>,
    pub(crate) patch_conv: Convolution<B>,
    pub(crate) router: PatchRouter<B>,
    pub(crate) experts: Vec<Expert<B>>,
    pub(crate) norm: BatchNormRelu<B>,
    pub(crate) head: Dense<B>,
    patch_size: usize,
    #[module(skip)]
    form: ExpertForm,
}

/// One expert: normalize, rectify, convolve.
#[derive(Module, Debug)]
pub(crate) struct Expert<B: Backend> {
    pub(crate) norm: BatchNormRelu<B>,
    pub(crate) conv: Convolution<B>,
}

impl<B: Backend> PatchMoe<B> {
    pub(crate) fn new<R: Rng>(
        config: &PatchMoeConfig,
        input: InputShape,
        classes: usize,
        rng: &mut R,
        device: &B::Device,
    ) -> Self {
        let options = LayerOptions { padding: config.padding, batch_norm: config.batch_norm };
        let source = &mut ParameterSource::new(rng, device, config.initializer);
        let wide = 32 * config.widen_factor;
        let (patch_channels, expert_channels) = (config.resolved_patch_channels(), config.resolved_expert_channels());
        let trunk = Trunk::new(source, input.channels, config.widen_factor, options);
        let patch_norm = BatchNormRelu::new(source, wide, config.batch_norm);
        let patch_conv = Convolution::new(source, [wide, patch_channels], 3, 2, config.padding);
        let router = PatchRouter::new(source, config);
        let experts = (0..config.experts)
            .map(|_| Expert {
                norm: BatchNormRelu::new(source, patch_channels, config.batch_norm),
                // Stride 1: both conventions pad alike.
                conv: Convolution::new(
                    source,
                    [patch_channels, expert_channels],
                    config.expert_kernel,
                    1,
                    Padding::Symmetric,
                ),
            })
            .collect();
        let features = config.experts * expert_channels;
        Self {
            trunk,
            patch_norm,
            patch_conv,
            router,
            experts,
            norm: BatchNormRelu::new(source, features, config.batch_norm),
            head: Dense::new(source, features, classes),
            patch_size: config.patch_size,
            form: config.expert_form,
        }
    }
}

impl<B: Kernels> PatchMoe<B> {
    /// What decides which patches go to which expert.
    pub fn router(&self) -> &PatchRouter<B> {
        &self.router
    }

    /// Returns logits and the routing that led to them.
    ///
    /// # Shapes
    /// - images: `[batch, height, width, channel]`, pixels in [0, 1]
    /// - logits: `[batch, class]`
    pub fn forward(&self, images: Tensor<B, 4>) -> (Tensor<B, 2>, Routing<B>) {
        self.forward_map(self.map_of(images))
    }

    /// Goes on from the map whose patches the experts choose from: router, experts and head.
    ///
    /// # Shapes
    /// - map: `[batch, row, column, channel]`, the channels those of the configuration's
    ///   [`resolved_patch_channels`](PatchMoeConfig::resolved_patch_channels)
    /// - logits: `[batch, class]`
    pub fn forward_map(&self, map: Tensor<B, 4>) -> (Tensor<B, 2>, Routing<B>) {
        let (outputs, routing) = self.expert_outputs(map);
        let features = average_positions(self.norm.forward(outputs));
        (self.head.forward(features), routing)
    }

    /// The map whose patches the experts choose from, `[batch, row, column, channel]`.
    pub(crate) fn map_of(&self, images: Tensor<B, 4>) -> Tensor<B, 4> {
        self.patch_conv.forward(self.patch_norm.forward(self.trunk.forward(images)))
    }

    /// What the experts' convolutions make of a map, expert by expert along the last axis, and the routing.
    ///
    /// # Shapes
    /// - map: `[batch, row, column, channel]`
    /// - outputs: `[batch, row, column, expert * channel]`; of gathered experts `[batch, patches_per_expert, patch
    ///   position, expert * channel]`
    pub(crate) fn expert_outputs(&self, map: Tensor<B, 4>) -> (Tensor<B, 4>, Routing<B>) {
        let patches = into_patches(map.clone(), self.patch_size);
        let routing = self.router.route(patches.clone());
        let outputs = match self.form {
            ExpertForm::Masked => self.experts_on_map(map, &routing),
            ExpertForm::Gathered => self.experts_on_patches(patches, &routing),
        };
        (outputs, routing)
    }

    /// Every expert over the whole map, each patch scaled by its weight, zero where not selected;
    /// `[batch, row, column, expert * channel]`.
    fn experts_on_map(&self, map: Tensor<B, 4>, routing: &Routing<B>) -> Tensor<B, 4> {
        let [_, rows, columns, _] = map.dims();
        let weights = spread(routing.weights.clone(), [rows, columns], self.patch_size);
        let norms: Vec<_> = self.experts.iter().map(|expert| &expert.norm).collect();
        let convolutions: Vec<_> = self.experts.iter().map(|expert| &expert.conv).collect();
        Convolution::forward_groups(&convolutions, BatchNormRelu::forward_weighted(&norms, map, weights))
    }

    /// Every expert over its selected patches only; `[batch, patches_per_expert, patch position, expert * channel]`.
    fn experts_on_patches(&self, patches: Tensor<B, 3>, routing: &Routing<B>) -> Tensor<B, 4> {
        let [batch, count, length] = patches.dims();
        let [_, _, selected] = routing.indices.dims();
        let side = self.patch_size;
        let channels = length / (side * side);
        let norms: Vec<_> = self.experts.iter().map(|expert| &expert.norm).collect();
        let convolutions: Vec<_> = self.experts.iter().map(|expert| &expert.conv).collect();
        let patches = patches.reshape([batch, count, side * side, channels]);
        let taken = gather_weighted(patches, routing.weights.clone(), routing.indices.clone());
        let seen = BatchNormRelu::forward_groups(&norms, taken);
        let wide = seen.dims()[3];
        let output = if convolutions[0].is_pointwise() {
            // Neighbours do not matter, so all of an image lies in one row, of which many pixels are done at a time.
            Convolution::forward_groups(&convolutions, seen.reshape([batch, 1, selected * side * side, wide]))
        } else {
            Convolution::forward_groups(&convolutions, seen.reshape([batch * selected, side, side, wide]))
        };
        let features = output.dims()[3];
        output.reshape([batch, selected, side * side, features])
    }
}

/// Cuts a map into square patches, row by row.
///
/// # Shapes
/// - map: `[batch, row, column, channel]`
/// - output: `[batch, patch, row in patch * column in patch * channel]`
pub(crate) fn into_patches<B: Backend>(map: Tensor<B, 4>, side: usize) -> Tensor<B, 3> {
    let [batch, rows, columns, channels] = map.dims();
    if side == 1 {
        return map.reshape([batch, rows * columns, channels]);
    }
    let (down, across) = (rows / side, columns / side);
    map.reshape([batch, down, side, across, side, channels]).permute([0, 1, 3, 2, 4, 5]).reshape([
        batch,
        down * across,
        side * side * channels,
    ])
}

/// Repeats every patch's weight over the positions of that patch.
///
/// # Shapes
/// - weights: `[batch, expert, patch]`
/// - output: `[batch, expert, row * column]`
pub(crate) fn spread<B: Backend>(weights: Tensor<B, 3>, [rows, columns]: [usize; 2], side: usize) -> Tensor<B, 3> {
    if side == 1 {
        return weights;
    }
    let [batch, experts, _] = weights.dims();
    let (down, across) = (rows / side, columns / side);
    weights
        .reshape([batch * experts, down, 1, across, 1])
        .expand([batch * experts, down, side, across, side])
        .reshape([batch, experts, rows * columns])
}
