use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};
use patchdoor_kernels::{
    Kernels, Normalized, average_statistics, batch_norm_relu, fold_statistics, join, scale_shift_relu,
    weighted_batch_norm_relu, weighted_scale_shift_relu,
};
use rand::Rng;

use crate::BatchNormConfig;
use crate::init::ParameterSource;
use crate::statistic::Statistic;

/// Batch normalization over the last axis followed by a rectifier, as every normalization of these
/// networks is.
///
/// Under autodiff, and where it collects statistics, it normalizes with the batch's and updates the
/// running ones; else, or where the batch has no share in them (momentum 0: frozen), it uses the
/// running ones.
#[derive(Module, Debug)]
pub(crate) struct BatchNormRelu<B: Backend> {
    pub(crate) gamma: Param<Tensor<B, 1>>,
    pub(crate) beta: Param<Tensor<B, 1>>,
    pub(crate) running_mean: Statistic<B>,
    pub(crate) running_variance: Statistic<B>,
    pub(crate) epsilon: f64,
    pub(crate) momentum: f64,
    /// Whether it works as in training even without autodiff.
    pub(crate) collects: bool,
}

impl<B: Backend> BatchNormRelu<B> {
    pub(crate) fn new<R: Rng>(source: &ParameterSource<'_, R, B>, channels: usize, config: BatchNormConfig) -> Self {
        Self {
            gamma: source.constant(1.0, channels),
            beta: source.constant(0.0, channels),
            running_mean: Statistic::new(Tensor::zeros([channels], source.device())),
            running_variance: Statistic::new(Tensor::ones([channels], source.device())),
            epsilon: config.epsilon,
            momentum: config.momentum,
            collects: false,
        }
    }
}

impl<B: Kernels> BatchNormRelu<B> {
    fn uses_batch(&self, device: &B::Device) -> bool {
        self.momentum > 0.0 && (self.collects || B::ad_enabled(device))
    }

    /// Normalizations of one shape side by side, each over the map weighed for it; or over its member's map, where the map
    /// holds those of several members.
    ///
    /// # Shapes
    /// - map: `[batch, row, column, channel]`
    /// - weights: `[batch, group, row * column]`
    /// - output: `[batch, row, column, group * channel]`
    pub(crate) fn forward_weighted(groups: &[&Self], map: Tensor<B, 4>, weights: Tensor<B, 3>) -> Tensor<B, 4> {
        if groups[0].uses_batch(&map.device()) {
            let [gamma, beta] = Self::joined_parameters(groups);
            let normalized = weighted_batch_norm_relu(map, weights, gamma, beta, groups[0].epsilon);
            Self::update_groups(groups, &normalized);
            normalized.output
        } else {
            let (scale, shift) = Self::scales_and_shifts(groups);
            weighted_scale_shift_relu(map, weights, scale, shift)
        }
    }

    /// Normalizations of one shape side by side, each over its own group of channels.
    ///
    /// # Shapes
    /// - input and output: `[.., group * channel]`
    pub(crate) fn forward_groups<const D: usize>(groups: &[&Self], x: Tensor<B, D>) -> Tensor<B, D> {
        if groups[0].uses_batch(&x.device()) {
            let [gamma, beta] = Self::joined_parameters(groups);
            let normalized = batch_norm_relu(x, gamma, beta, groups[0].epsilon);
            Self::update_groups(groups, &normalized);
            normalized.output
        } else {
            let (scale, shift) = Self::scales_and_shifts(groups);
            scale_shift_relu(x, scale, shift)
        }
    }

    /// Scale and shift of every group's channels, where a pass learns nothing and they are all it takes: then it may be
    /// computed together with convolutions before and after it.
    ///
    /// A device has kernels for one operation after the other, and none for several together.
    pub(crate) fn constants(groups: &[&Self]) -> Option<[Tensor<B, 1>; 2]> {
        let device = groups[0].gamma.device();
        let learns = B::ad_enabled(&device) || groups[0].uses_batch(&device);
        (!learns && !B::ON_DEVICE).then(|| Self::scales_and_shifts(groups).into())
    }

    /// All groups' gammas, and all their betas.
    fn joined_parameters(groups: &[&Self]) -> [Tensor<B, 1>; 2] {
        let (gammas, betas) = groups.iter().map(|group| (group.gamma.val(), group.beta.val())).unzip();
        [join(gammas), join(betas)]
    }

    /// What the running statistics make of the normalizations: all groups' scales, and all their shifts.
    fn scales_and_shifts(groups: &[&Self]) -> (Tensor<B, 1>, Tensor<B, 1>) {
        let list = |value: fn(&Self) -> Tensor<B, 1>| groups.iter().map(|group| value(group)).collect();
        fold_statistics(
            list(|group| group.gamma.val()),
            list(|group| group.beta.val()),
            // A loaded running state asks for gradients, and no optimiser may step on it.
            list(|group| group.running_mean.value().detach()),
            list(|group| group.running_variance.value().detach()),
            groups[0].epsilon,
        )
    }

    /// Gives every group its part of a batch's statistics.
    fn update_groups<const D: usize>(groups: &[&Self], normalized: &Normalized<B, D>) {
        let (means, variances) = average_statistics(
            groups.iter().map(|group| group.running_mean.value().detach()).collect(),
            groups.iter().map(|group| group.running_variance.value().detach()).collect(),
            normalized.mean.clone().detach(),
            normalized.variance.clone().detach(),
            groups[0].momentum,
        );
        for ((group, mean), variance) in groups.iter().zip(means).zip(variances) {
            for (state, value) in [(&group.running_mean, mean), (&group.running_variance, variance)] {
                state.set(value.detach());
            }
        }
    }
}
