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

/// Joins as many parts as one of the numbers, or none.
macro_rules! join_one_of {
    ($parts:expr, [$($count:literal),*]) => {
        match $parts.len() {
            $($count => Some(join_some::<B, C, $count>($parts.try_into().expect("they were counted"))),)*
            _ => None,
        }
    };
}

/// How many parts one step can join, the most first.
const AT_ONCE: [usize; 10] = [64, 32, 24, 16, 8, 6, 5, 4, 3, 2];

/// [`Kernels::join`] with its step of the backward pass.
///
/// Burn's autodiff knows the number of an operation's inputs when it is compiled: other numbers are joined in equal shares.
pub(super) fn join<B: Kernels, C: CheckpointStrategy>(mut parts: Vec<Recorded<B, C>>) -> Recorded<B, C> {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let Some(&count) = AT_ONCE.iter().find(|&&count| parts.len().is_multiple_of(count)) else {
        return <Autodiff<B, C> as burn::tensor::ops::FloatTensorOps<Autodiff<B, C>>>::float_cat(parts, 0);
    };
    if count < parts.len() {
        return join::<B, C>(parts.chunks(count).map(|share| join::<B, C>(share.to_vec())).collect());
    }
    join_one_of!(parts, [64, 32, 24, 16, 8, 6, 5, 4, 3, 2]).expect("one step joins as many")
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
