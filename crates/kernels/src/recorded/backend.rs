use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::{FloatTensor, IntTensor};

use super::{convolution, elementwise, experts, gate, gathering, lists, normalization};
use crate::{ConvOptions, Kernels, stock};

impl<B: Kernels, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    const ON_DEVICE: bool = B::ON_DEVICE;

    fn conv2d_bias(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        groups: usize,
        options: ConvOptions,
    ) -> FloatTensor<Self> {
        convolution::conv2d_bias::<B, C>(x, weight, bias, groups, options)
    }

    fn batch_norm_relu(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        normalization::batch_norm_relu::<B, C>(x, gamma, beta, epsilon)
    }

    fn scale_shift_relu(x: FloatTensor<Self>, scale: FloatTensor<Self>, shift: FloatTensor<Self>) -> FloatTensor<Self> {
        normalization::scale_shift_relu::<B, C>(x, scale, shift)
    }

    fn weighted_batch_norm_relu(
        map: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        experts::weighted_batch_norm_relu::<B, C>(map, weights, gamma, beta, epsilon)
    }

    fn gather_weighted(
        patches: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        indices: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        gathering::gather_weighted::<B, C>(patches, weights, indices)
    }

    fn add(left: FloatTensor<Self>, right: FloatTensor<Self>) -> FloatTensor<Self> {
        elementwise::add::<B, C>(left, right)
    }

    fn average_positions(map: FloatTensor<Self>) -> FloatTensor<Self> {
        elementwise::average_positions::<B, C>(map)
    }

    fn choose_patches(
        scores: FloatTensor<Self>,
        selected: usize,
        softmax_first: bool,
    ) -> (FloatTensor<Self>, IntTensor<Self>) {
        gate::choose_patches::<B, C>(scores, selected, softmax_first)
    }

    fn join(parts: Vec<FloatTensor<Self>>) -> FloatTensor<Self> {
        if B::ON_DEVICE { lists::join::<B, C>(parts) } else { stock::lists::join::<Self>(parts) }
    }

    fn cross_entropy(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        lists::cross_entropy::<B, C>(logits, labels)
    }

    fn average_statistics(
        means: Vec<FloatTensor<Self>>,
        variances: Vec<FloatTensor<Self>>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        momentum: f64,
    ) -> (Vec<FloatTensor<Self>>, Vec<FloatTensor<Self>>) {
        let inner = |list: Vec<FloatTensor<Self>>| list.into_iter().map(|recorded| recorded.primitive).collect();
        let outer = |list: Vec<FloatTensor<B>>| list.into_iter().map(Self::from_inner).collect();
        let (means, variances) =
            B::average_statistics(inner(means), inner(variances), mean.primitive, variance.primitive, momentum);
        (outer(means), outer(variances))
    }

    fn take_images(
        pixels: IntTensor<Self>,
        draws: IntTensor<Self>,
        shape: [usize; 3],
        padding: usize,
    ) -> FloatTensor<Self> {
        Self::from_inner(B::take_images(pixels, draws, shape, padding))
    }
}
