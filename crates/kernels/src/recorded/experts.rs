//! What experts see of a map, normalized, with its step of the backward pass.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::FloatTensor;

use super::step::{Recorded, record, register};
use crate::Kernels;

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
pub(super) fn weighted_batch_norm_relu<B: Kernels, C: CheckpointStrategy>(
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
    let output = record(Backward::<B, 4>::prepare::<C>(WeightedBatchNormReluBackward, nodes), state, output);
    (output, Autodiff::<B, C>::from_inner(mean), Autodiff::<B, C>::from_inner(variance))
}
