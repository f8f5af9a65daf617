use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::{FloatTensor, IntTensor};

use crate::{ConvOptions, stock};

/// A backend to train on: it keeps gradients, and has the operations of this crate with them and without.
pub trait TrainingBackend: AutodiffBackend<InnerBackend: Kernels> + Kernels {}

impl<B: AutodiffBackend<InnerBackend: Kernels> + Kernels> TrainingBackend for B {}

/// A backend with the operations of this crate.
///
/// Every method has a default body of ordinary burn operations; an implementation overrides those it does better.
/// The methods take and give primitives. The functions of this crate wrap them in tensors, and they, not the methods,
/// check shapes: call those.
///
/// On `Autodiff<B>` the forward methods record a step of the backward pass, which calls `B`'s gradient methods; the
/// gradient methods themselves are differentiable through their default bodies.
pub trait Kernels: Backend {
    /// Convolves feature maps; see [`conv2d`](crate::conv2d) and [`grouped_conv2d`](crate::grouped_conv2d).
    ///
    /// # Shapes
    /// - x: `[batch, height, width, channel]`
    /// - weight: `[out, channel / groups, kernel height, kernel width]`
    /// - bias: `[out]`
    /// - output: `[batch, height', width', out]`
    fn conv2d_bias(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        groups: usize,
        options: ConvOptions,
    ) -> FloatTensor<Self> {
        stock::convolution::forward::<Self>(x, weight, bias, groups, options)
    }

    /// Gradient of [`conv2d_bias`](Self::conv2d_bias) for its input, of shape `[batch, height, width, channel]`.
    ///
    /// `size` is the input's height and width, which a strided output does not determine.
    fn conv2d_input_gradient(
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        size: [usize; 2],
        groups: usize,
        options: ConvOptions,
    ) -> FloatTensor<Self> {
        stock::convolution::input_gradient::<Self>(weight, gradient, size, groups, options)
    }

    /// Gradients of [`conv2d_bias`](Self::conv2d_bias) for its weight and bias.
    ///
    /// `kernel` is the weight's height and width.
    fn conv2d_weight_gradients(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        kernel: [usize; 2],
        groups: usize,
        options: ConvOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        stock::convolution::weight_gradients::<Self>(x, gradient, kernel, groups, options)
    }

    /// Normalizes over all axes but the last by the batch's own statistics, scales, shifts and rectifies; gives output,
    /// mean and biased variance. See [`batch_norm_relu`](crate::batch_norm_relu).
    ///
    /// # Shapes
    /// - x, output: `[.., channel]`
    /// - gamma, beta, mean, variance: `[channel]`
    fn batch_norm_relu(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        stock::normalization::batch_norm_relu::<Self>(x, gamma, beta, epsilon)
    }

    /// Gradients of [`batch_norm_relu`](Self::batch_norm_relu)'s output for `x`, `gamma` and `beta`, given the batch's
    /// mean and variance.
    fn batch_norm_relu_gradients(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        stock::normalization::batch_norm_relu_gradients::<Self>(x, gamma, beta, mean, variance, gradient, epsilon)
    }

    /// Computes `max(x * scale + shift, 0)` with one scale and shift per channel; see
    /// [`scale_shift_relu`](crate::scale_shift_relu).
    ///
    /// # Shapes
    /// - x, output: `[.., channel]`
    /// - scale, shift: `[channel]`
    fn scale_shift_relu(x: FloatTensor<Self>, scale: FloatTensor<Self>, shift: FloatTensor<Self>) -> FloatTensor<Self> {
        stock::normalization::scale_shift_relu::<Self>(x, scale, shift)
    }

    /// Gradients of [`scale_shift_relu`](Self::scale_shift_relu) for `x`, `scale` and `shift`.
    fn scale_shift_relu_gradients(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        stock::normalization::scale_shift_relu_gradients::<Self>(x, scale, shift, gradient)
    }

    /// [`batch_norm_relu`](Self::batch_norm_relu) of what every expert sees; see
    /// [`weighted_batch_norm_relu`](crate::weighted_batch_norm_relu).
    fn weighted_batch_norm_relu(
        map: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        Self::batch_norm_relu(stock::experts::weigh::<Self>(map, weights), gamma, beta, epsilon)
    }

    /// Gradients of [`weighted_batch_norm_relu`](Self::weighted_batch_norm_relu)'s output for map, weights, gamma and
    /// beta.
    #[allow(clippy::too_many_arguments, reason = "all that the forward pass took and gave")]
    fn weighted_batch_norm_relu_gradients(
        map: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let seen = stock::experts::weigh::<Self>(map.clone(), weights.clone());
        let (gradient, gamma, beta) =
            Self::batch_norm_relu_gradients(seen, gamma, beta, mean, variance, gradient, epsilon);
        let (map, weights) = stock::experts::weigh_gradients::<Self>(map, weights, gradient);
        (map, weights, gamma, beta)
    }

    /// [`scale_shift_relu`](Self::scale_shift_relu) of what every expert sees; see
    /// [`weighted_scale_shift_relu`](crate::weighted_scale_shift_relu). Differentiable through its default body.
    fn weighted_scale_shift_relu(
        map: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::scale_shift_relu(stock::experts::weigh::<Self>(map, weights), scale, shift)
    }

    /// Takes and weighs every expert's patches; see [`gather_weighted`](crate::gather_weighted).
    ///
    /// # Shapes
    /// - patches: `[batch, patch, position, channel]`
    /// - weights: `[batch, expert, patch]`
    /// - indices: `[batch, expert, selected]`
    /// - output: `[batch, selected, position, expert * channel]`
    fn gather_weighted(
        patches: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        indices: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        stock::gathering::gather_weighted::<Self>(patches, weights, indices)
    }

    /// Gradients of [`gather_weighted`](Self::gather_weighted) for patches and weights.
    fn gather_weighted_gradients(
        patches: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        indices: IntTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        stock::gathering::gather_weighted_gradients::<Self>(patches, weights, indices, gradient)
    }

    /// Adds two tensors of one shape; see [`add`](crate::add).
    fn add(left: FloatTensor<Self>, right: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_add(left, right)
    }

    /// Averages `[batch, height, width, channel]` to `[batch, channel]`; see
    /// [`average_positions`](crate::average_positions).
    fn average_positions(map: FloatTensor<Self>) -> FloatTensor<Self> {
        stock::elementwise::average_positions::<Self>(map)
    }

    /// Gradient of [`average_positions`](Self::average_positions) for a map of this height and width.
    fn average_positions_gradient(gradient: FloatTensor<Self>, size: [usize; 2]) -> FloatTensor<Self> {
        stock::elementwise::average_positions_gradient::<Self>(gradient, size)
    }
}

#[cfg(feature = "ndarray")]
impl Kernels for burn_ndarray::NdArray {}

#[cfg(feature = "cuda")]
impl Kernels for burn_cuda::Cuda {}

#[cfg(feature = "vulkan")]
impl Kernels for crate::Vulkan {}
