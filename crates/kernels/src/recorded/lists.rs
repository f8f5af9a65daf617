//! Joined tensors and the loss with their steps of the backward pass.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::{FloatTensor, IntTensor};

use super::step::{Recorded, record, register};
use crate::Kernels;

#[derive(Debug)]
struct JoinBackward;

impl<B: Kernels, const N: usize> Backward<B, N> for JoinBackward {
    type State = ();

    fn backward(self, ops: Ops<Self::State, N>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let Ok(parts) = <[_; N]>::try_from(B::split(gradient, N)) else { unreachable!("there are {N} parts") };
        register::<B, N>(gradients, ops.parents.map(|parent| parent.map(|node| node.id)), parts);
    }
}

fn join_some<B: Kernels, C: CheckpointStrategy, const N: usize>(parts: [Recorded<B, C>; N]) -> Recorded<B, C> {
    let nodes = parts.each_ref().map(|part| part.node.clone());
    let output = B::join(parts.into_iter().map(|part| part.primitive).collect());
    record(Backward::<B, N>::prepare::<C>(JoinBackward, nodes), (), output)
}

/// [`Kernels::join`] with its step of the backward pass.
///
/// Burn's autodiff knows the number of an operation's inputs when it is compiled, so one step joins at most four.
pub(super) fn join<B: Kernels, C: CheckpointStrategy>(mut parts: Vec<Recorded<B, C>>) -> Recorded<B, C> {
    while parts.len() > 4 && parts.len().is_multiple_of(4) {
        parts = parts.chunks(4).map(|four| join::<B, C>(four.to_vec())).collect();
    }
    match <[_; 4]>::try_from(parts) {
        Ok(parts) => join_some::<B, C, 4>(parts),
        Err(parts) if parts.len() == 1 => parts.into_iter().next().expect("there is one"),
        Err(parts) if parts.len() == 2 => join_some::<B, C, 2>(parts.try_into().expect("there are two")),
        Err(parts) if parts.len() == 3 => join_some::<B, C, 3>(parts.try_into().expect("there are three")),
        Err(parts) => <Autodiff<B, C> as burn::tensor::ops::FloatTensorOps<Autodiff<B, C>>>::float_cat(parts, 0),
    }
}

#[derive(Debug)]
struct CrossEntropyBackward;

impl<B: Kernels> Backward<B, 1> for CrossEntropyBackward {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let gradient = B::float_reshape(gradient, [1, 1].into());
        let gradient = B::float_mul(ops.state, gradient);
        register::<B, 1>(gradients, ops.parents.map(|parent| parent.map(|node| node.id)), [gradient]);
    }
}

/// [`Kernels::cross_entropy`] with its step of the backward pass.
pub(super) fn cross_entropy<B: Kernels, C: CheckpointStrategy>(
    logits: Recorded<B, C>,
    labels: IntTensor<B>,
) -> (Recorded<B, C>, Recorded<B, C>, Recorded<B, C>) {
    let nodes = [logits.node.clone()];
    let (mean, totals, gradient) = B::cross_entropy(logits.primitive, labels);
    let mean = record(Backward::<B, 1>::prepare::<C>(CrossEntropyBackward, nodes), gradient.clone(), mean);
    (mean, Autodiff::<B, C>::from_inner(totals), Autodiff::<B, C>::from_inner(gradient))
}
