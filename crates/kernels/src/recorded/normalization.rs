//! Normalizations with their step of the backward pass.

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
struct BatchNormReluBackward;

#[derive(Clone, Debug)]
struct BatchNormReluState<T> {
    x: T,
    gamma: T,
    beta: T,
    mean: T,
    variance: T,
    epsilon: f64,
}

impl<B: Kernels> Backward<B, 3> for BatchNormReluBackward {
    type State = BatchNormReluState<FloatTensor<B>>;

    fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let BatchNormReluState { x, gamma, beta, mean, variance, epsilon } = ops.state;
        let (x, gamma, beta) = B::batch_norm_relu_gradients(x, gamma, beta, mean, variance, gradient, epsilon);
        register::<B, 3>(gradients, ops.parents.map(|parent| parent.map(|node| node.id)), [x, gamma, beta]);
    }
}

#[derive(Debug)]
struct ScaleShiftReluBackward;

impl<B: Kernels> Backward<B, 3> for ScaleShiftReluBackward {
    type State = [FloatTensor<B>; 3];

    fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let [x, scale, shift] = ops.state;
        let (x, scale, shift) = B::scale_shift_relu_gradients(x, scale, shift, gradient);
        register::<B, 3>(gradients, ops.parents.map(|parent| parent.map(|node| node.id)), [x, scale, shift]);
    }
}

/// [`Kernels::batch_norm_relu`] with its step of the backward pass.
pub(super) fn batch_norm_relu<B: Kernels, C: CheckpointStrategy>(
    x: Recorded<B, C>,
    gamma: Recorded<B, C>,
    beta: Recorded<B, C>,
    epsilon: f64,
) -> (Recorded<B, C>, Recorded<B, C>, Recorded<B, C>) {
    let nodes = [x.node.clone(), gamma.node.clone(), beta.node.clone()];
    let (x, gamma, beta) = (x.primitive, gamma.primitive, beta.primitive);
    let (output, mean, variance) = B::batch_norm_relu(x.clone(), gamma.clone(), beta.clone(), epsilon);
    let state = BatchNormReluState { x, gamma, beta, mean: mean.clone(), variance: variance.clone(), epsilon };
    let output = record(Backward::<B, 3>::prepare::<C>(BatchNormReluBackward, nodes), state, output);
    (output, Autodiff::<B, C>::from_inner(mean), Autodiff::<B, C>::from_inner(variance))
}

/// [`Kernels::scale_shift_relu`] with its step of the backward pass.
pub(super) fn scale_shift_relu<B: Kernels, C: CheckpointStrategy>(
    x: Recorded<B, C>,
    scale: Recorded<B, C>,
    shift: Recorded<B, C>,
) -> Recorded<B, C> {
    let nodes = [x.node.clone(), scale.node.clone(), shift.node.clone()];
    let state = [x.primitive, scale.primitive, shift.primitive];
    let [x, scale, shift] = state.clone();
    let output = B::scale_shift_relu(x, scale, shift);
    record(Backward::<B, 3>::prepare::<C>(ScaleShiftReluBackward, nodes), state, output)
}
