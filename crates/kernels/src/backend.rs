use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::{FloatTensor, IntTensor};

use crate::{ConvOptions, InferenceConv, SgdStep, stock};

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
    /// Whether the backend computes on a device of its own, which a number that is read back would stop.
    ///
    /// Then gates, losses and hits stay there during a step of training, and many small tensors are worked on at once.
    const ON_DEVICE: bool = false;

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

    /// A dense layer, never rounded; see [`dense`](crate::dense).
    fn dense(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        stock::elementwise::dense::<Self>(x, weight, bias)
    }

    /// Convolves with normalizations of constants before and after; see [`inference_conv2d`](crate::inference_conv2d).
    fn inference_conv2d(x: FloatTensor<Self>, conv: InferenceConv<Self>) -> FloatTensor<Self> {
        stock::convolution::inference::<Self>(x, conv)
    }

    /// A residual block; see [`inference_residual`](crate::inference_residual).
    fn inference_residual(x: FloatTensor<Self>, layers: [InferenceConv<Self>; 3]) -> FloatTensor<Self> {
        stock::convolution::residual::<Self>(x, layers)
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
        let members = stock::experts::members::<Self>(&map, &weights, &gamma);
        Self::batch_norm_relu(stock::experts::weigh::<Self>(map, weights, members), gamma, beta, epsilon)
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
        let members = stock::experts::members::<Self>(&map, &weights, &gamma);
        let seen = stock::experts::weigh::<Self>(map.clone(), weights.clone(), members);
        let (gradient, gamma, beta) =
            Self::batch_norm_relu_gradients(seen, gamma, beta, mean, variance, gradient, epsilon);
        let (map, weights) = stock::experts::weigh_gradients::<Self>(map, weights, gradient, members);
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
        let members = stock::experts::members::<Self>(&map, &weights, &scale);
        Self::scale_shift_relu(stock::experts::weigh::<Self>(map, weights, members), scale, shift)
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

    /// Weighs every expert's best patches; see [`choose_patches`](crate::choose_patches).
    ///
    /// # Shapes
    /// - scores, weights: `[batch, expert, patch]`
    /// - indices: `[batch, expert, selected]`
    fn choose_patches(
        scores: FloatTensor<Self>,
        selected: usize,
        softmax_first: bool,
    ) -> (FloatTensor<Self>, IntTensor<Self>) {
        stock::gate::choose_patches::<Self>(scores, selected, softmax_first)
    }

    /// Gradient of [`choose_patches`](Self::choose_patches)'s weights for the scores.
    fn choose_patches_gradient(
        scores: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        softmax_first: bool,
    ) -> FloatTensor<Self> {
        stock::gate::choose_patches_gradient::<Self>(scores, weights, gradient, softmax_first)
    }

    /// Joins tensors of one shape along their first axis; see [`join`](crate::join).
    fn join(parts: Vec<FloatTensor<Self>>) -> FloatTensor<Self> {
        stock::lists::join::<Self>(parts)
    }

    /// Cuts a tensor into equal parts along its first axis: the gradients of [`join`](Self::join).
    fn split(joined: FloatTensor<Self>, parts: usize) -> Vec<FloatTensor<Self>> {
        stock::lists::split::<Self>(&joined, parts)
    }

    /// Mean cross-entropy of `[batch, class]` logits as `[1]`; its sum and the number of hits as `[2]`; the gradient of
    /// the mean for the logits. See [`cross_entropy`](crate::cross_entropy).
    fn cross_entropy(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        stock::lists::cross_entropy::<Self>(logits, labels)
    }

    /// Moves running statistics towards a batch's; see [`average_statistics`](crate::average_statistics).
    fn average_statistics(
        means: Vec<FloatTensor<Self>>,
        variances: Vec<FloatTensor<Self>>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        momentum: f64,
    ) -> (Vec<FloatTensor<Self>>, Vec<FloatTensor<Self>>) {
        stock::lists::average_statistics::<Self>(means, variances, mean, variance, momentum)
    }

    /// Folds gammas, betas, means and variances into a scale and a shift; see [`fold_statistics`](crate::fold_statistics).
    fn fold_statistics(lists: [Vec<FloatTensor<Self>>; 4], epsilon: f64) -> (FloatTensor<Self>, FloatTensor<Self>) {
        stock::lists::fold_statistics::<Self>(lists, epsilon)
    }

    /// Makes a batch of images that live on the device; see [`take_images`](crate::take_images).
    fn take_images(
        pixels: IntTensor<Self>,
        draws: IntTensor<Self>,
        shape: [usize; 3],
        padding: usize,
    ) -> FloatTensor<Self> {
        stock::images::take_images::<Self>(pixels, draws, shape, padding)
    }

    /// Steps all parameters down their gradients; see [`SgdStep`].
    ///
    /// `velocities` is empty before the first step and without momentum; new parameters and new velocities come back.
    fn sgd_step(
        parameters: Vec<FloatTensor<Self>>,
        gradients: Vec<FloatTensor<Self>>,
        velocities: Vec<FloatTensor<Self>>,
        step: SgdStep,
    ) -> (Vec<FloatTensor<Self>>, Vec<FloatTensor<Self>>) {
        stock::lists::sgd_step::<Self>(parameters, gradients, velocities, step)
    }
}

#[cfg(feature = "ndarray")]
impl Kernels for burn_ndarray::NdArray {}
