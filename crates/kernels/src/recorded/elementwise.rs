//! Sums and averages with their step of the backward pass.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::TensorMetadata;

use super::step::{Recorded, record, register};
use crate::Kernels;

#[derive(Debug)]
struct AddBackward;

impl<B: Kernels> Backward<B, 2> for AddBackward {
    type State = ();

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        register::<B, 2>(gradients, parents, [gradient.clone(), gradient]);
    }
}

/// [`Kernels::add`] with its step of the backward pass.
pub(super) fn add<B: Kernels, C: CheckpointStrategy>(left: Recorded<B, C>, right: Recorded<B, C>) -> Recorded<B, C> {
    let nodes = [left.node.clone(), right.node.clone()];
    let output = B::add(left.primitive, right.primitive);
    record(Backward::<B, 2>::prepare::<C>(AddBackward, nodes), (), output)
}

#[derive(Debug)]
struct AveragePositionsBackward;

impl<B: Kernels> Backward<B, 1> for AveragePositionsBackward {
    type State = [usize; 2];

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let gradient = B::average_positions_gradient(gradient, ops.state);
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        register::<B, 1>(gradients, parents, [gradient]);
    }
}

/// [`Kernels::average_positions`] with its step of the backward pass.
pub(super) fn average_positions<B: Kernels, C: CheckpointStrategy>(map: Recorded<B, C>) -> Recorded<B, C> {
    let nodes = [map.node.clone()];
    let shape = map.primitive.shape();
    let size = [shape[1], shape[2]];
    let output = B::average_positions(map.primitive);
    record(Backward::<B, 1>::prepare::<C>(AveragePositionsBackward, nodes), size, output)
}
