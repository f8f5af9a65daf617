//! The choice of patches with its step of the backward pass.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::ops::{FloatTensor, IntTensor};

use super::step::{Recorded, record, register};
use crate::Kernels;

#[derive(Debug)]
struct ChoosePatchesBackward;

impl<B: Kernels> Backward<B, 1> for ChoosePatchesBackward {
    type State = (FloatTensor<B>, FloatTensor<B>, bool);

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let (scores, weights, softmax_first) = ops.state;
        let gradient = B::choose_patches_gradient(scores, weights, gradient, softmax_first);
        register::<B, 1>(gradients, ops.parents.map(|parent| parent.map(|node| node.id)), [gradient]);
    }
}

/// [`Kernels::choose_patches`] with its step of the backward pass.
pub(super) fn choose_patches<B: Kernels, C: CheckpointStrategy>(
    scores: Recorded<B, C>,
    selected: usize,
    softmax_first: bool,
) -> (Recorded<B, C>, IntTensor<B>) {
    let nodes = [scores.node.clone()];
    let (weights, indices) = B::choose_patches(scores.primitive.clone(), selected, softmax_first);
    let state = (scores.primitive, weights.clone(), softmax_first);
    (record(Backward::<B, 1>::prepare::<C>(ChoosePatchesBackward, nodes), state, weights), indices)
}
