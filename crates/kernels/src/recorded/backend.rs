use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::ops::{FloatTensor, IntTensor};

use super::{convolution, elementwise, experts, gathering, normalization};
use crate::{ConvOptions, Kernels};

impl<B: Kernels, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
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
}
