//! Gathering with its step of the backward pass.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::ops::{FloatTensor, IntTensor};

use super::step::{Recorded, record, register};
use crate::Kernels;

#[derive(Debug)]
struct GatherWeightedBackward;

impl<B: Kernels> Backward<B, 2> for GatherWeightedBackward {
    type State = (FloatTensor<B>, FloatTensor<B>, IntTensor<B>);

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let (patches, weights, indices) = ops.state;
        let (patches, weights) = B::gather_weighted_gradients(patches, weights, indices, gradient);
        register::<B, 2>(gradients, ops.parents.map(|parent| parent.map(|node| node.id)), [patches, weights]);
    }
}

/// [`Kernels::gather_weighted`] with its step of the backward pass.
pub(super) fn gather_weighted<B: Kernels, C: CheckpointStrategy>(
    patches: Recorded<B, C>,
    weights: Recorded<B, C>,
    indices: IntTensor<B>,
) -> Recorded<B, C> {
    let nodes = [patches.node.clone(), weights.node.clone()];
    let (patches, weights) = (patches.primitive, weights.primitive);
    let output = B::gather_weighted(patches.clone(), weights.clone(), indices.clone());
    record(Backward::<B, 2>::prepare::<C>(GatherWeightedBackward, nodes), (patches, weights, indices), output)
}
