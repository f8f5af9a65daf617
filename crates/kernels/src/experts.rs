use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;

use crate::convolution::{primitive, tensor};
use crate::normalization::{Recorded, register};
use crate::{Kernels, Normalized};

/// Weighs a map by every expert's gate and normalizes and rectifies what each expert sees.
///
/// With `z[b, p, e, c] = weights[b, e, p] * map[b, p, c]` this is [`batch_norm_relu`](crate::batch_norm_relu) of `z`
/// with experts times channels as channels: every expert has its own statistics, taken over all positions of the batch,
/// those of weight zero included. Gradients flow into map, weights, gamma and beta.
///
/// # Shapes
/// - map: `[batch, height, width, channel]`
/// - weights: `[batch, expert, height * width]`
/// - gamma, beta, mean, variance: `[expert * channel]`, expert by expert
/// - output: `[batch, height, width, expert * channel]`, the input of a
///   [`grouped_conv2d`](crate::grouped_conv2d) with one group per expert
///
/// # Panics
/// If shapes disagree.
pub fn weighted_batch_norm_relu<B: Kernels>(
    map: Tensor<B, 4>,
    weights: Tensor<B, 3>,
    gamma: Tensor<B, 1>,
    beta: Tensor<B, 1>,
    epsilon: f64,
) -> Normalized<B, 4> {
    check(&map, &weights, [&gamma, &beta]);
    let (map, weights, gamma, beta) = (primitive(map), primitive(weights), primitive(gamma), primitive(beta));
    let (output, mean, variance) = B::weighted_batch_norm_relu(map, weights, gamma, beta, epsilon);
    Normalized { output: tensor(output), mean: tensor(mean), variance: tensor(variance) }
}

/// Weighs a map by every expert's gate, then scales, shifts and rectifies: [`weighted_batch_norm_relu`] in inference
/// mode.
///
/// # Shapes
/// - map: `[batch, height, width, channel]`
/// - weights: `[batch, expert, height * width]`
/// - scale, shift: `[expert * channel]`, expert by expert
/// - output: `[batch, height, width, expert * channel]`
///
/// # Panics
/// If shapes disagree.
pub fn weighted_scale_shift_relu<B: Kernels>(
    map: Tensor<B, 4>,
    weights: Tensor<B, 3>,
    scale: Tensor<B, 1>,
    shift: Tensor<B, 1>,
) -> Tensor<B, 4> {
    check(&map, &weights, [&scale, &shift]);
    let (map, weights, scale, shift) = (primitive(map), primitive(weights), primitive(scale), primitive(shift));
    tensor(B::weighted_scale_shift_relu(map, weights, scale, shift))
}

fn check<B: Backend>(map: &Tensor<B, 4>, weights: &Tensor<B, 3>, parameters: [&Tensor<B, 1>; 2]) {
    let [batch, height, width, channels] = map.dims();
    let [_, experts, _] = weights.dims();
    assert_eq!([batch, experts, height * width], weights.dims(), "every expert needs one weight per position");
    for parameter in parameters {
        assert_eq!([experts * channels], parameter.dims(), "a normalization needs one parameter per channel");
    }
}

/// The operations of this file in ordinary burn operations.
pub(crate) mod stock {
    use super::{FloatTensor, Kernels, primitive, tensor};

    /// What every expert sees, `[batch, height, width, expert * channel]`.
    pub(crate) fn weigh<B: Kernels>(map: FloatTensor<B>, weights: FloatTensor<B>) -> FloatTensor<B> {
        let map = tensor::<B, 4>(map);
        let [batch, height, width, channels] = map.dims();
        let weights = tensor::<B, 3>(weights);
        let [_, experts, positions] = weights.dims();
        let seen = map.reshape([batch, positions, 1, channels]) * weights.swap_dims(1, 2).unsqueeze_dim::<4>(3);
        primitive(seen.reshape([batch, height, width, experts * channels]))
    }

    /// Gradients of [`weigh`] for map and weights.
    pub(crate) fn weigh_gradients<B: Kernels>(
        map: FloatTensor<B>,
        weights: FloatTensor<B>,
        gradient: FloatTensor<B>,
    ) -> (FloatTensor<B>, FloatTensor<B>) {
        let map = tensor::<B, 4>(map);
        let [batch, height, width, channels] = map.dims();
        let weights = tensor::<B, 3>(weights);
        let [_, experts, positions] = weights.dims();
        let gradient = tensor::<B, 4>(gradient).reshape([batch, positions, experts, channels]);
        let map_gradient = (gradient.clone() * weights.swap_dims(1, 2).unsqueeze_dim::<4>(3)).sum_dim(2);
        let weights_gradient = (gradient * map.reshape([batch, positions, 1, channels])).sum_dim(3);
        (
            primitive(map_gradient.reshape([batch, height, width, channels])),
            primitive(weights_gradient.reshape([batch, positions, experts]).swap_dims(1, 2)),
        )
    }
}

#[derive(Debug)]
struct WeightedBatchNormReluBackward;

#[derive(Clone, Debug)]
struct State<T> {
    map: T,
    weights: T,
    gamma: T,
    beta: T,
    mean: T,
    variance: T,
    epsilon: f64,
}

impl<B: Kernels> Backward<B, 4> for WeightedBatchNormReluBackward {
    type State = State<FloatTensor<B>>;

    fn backward(self, ops: Ops<Self::State, 4>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let State { map, weights, gamma, beta, mean, variance, epsilon } = ops.state;
        let (map, weights, gamma, beta) =
            B::weighted_batch_norm_relu_gradients(map, weights, gamma, beta, mean, variance, gradient, epsilon);
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        register::<B, 4>(gradients, parents, [map, weights, gamma, beta]);
    }
}

/// [`Kernels::weighted_batch_norm_relu`] with its step of the backward pass.
pub(crate) fn recorded<B: Kernels, C: CheckpointStrategy>(
    map: Recorded<B, C>,
    weights: Recorded<B, C>,
    gamma: Recorded<B, C>,
    beta: Recorded<B, C>,
    epsilon: f64,
) -> (Recorded<B, C>, Recorded<B, C>, Recorded<B, C>) {
    let nodes = [map.node.clone(), weights.node.clone(), gamma.node.clone(), beta.node.clone()];
    let (map, weights, gamma, beta) = (map.primitive, weights.primitive, gamma.primitive, beta.primitive);
    let (output, mean, variance) =
        B::weighted_batch_norm_relu(map.clone(), weights.clone(), gamma.clone(), beta.clone(), epsilon);
    let state = State { map, weights, gamma, beta, mean: mean.clone(), variance: variance.clone(), epsilon };
    let output = match Backward::<B, 4>::prepare::<C>(WeightedBatchNormReluBackward, nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(state, output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    };
    (output, Autodiff::<B, C>::from_inner(mean), Autodiff::<B, C>::from_inner(variance))
}
