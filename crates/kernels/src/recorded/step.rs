use burn::backend::Autodiff;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, OpsKind, OpsPrep};
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use crate::differentiation::assert_differentiating;

/// A tensor of the recording backend.
pub(super) type Recorded<B, C> = FloatTensor<Autodiff<B, C>>;

/// The output of an operation, with its step of the backward pass if an input takes a gradient.
pub(super) fn record<O, B, S, C, const N: usize>(
    step: OpsPrep<O, B, S, C, N>,
    state: S,
    output: FloatTensor<B>,
) -> Recorded<B, C>
where
    O: Backward<B, N, State = S>,
    B: Backend,
    S: Clone + Send + std::fmt::Debug + 'static,
    C: CheckpointStrategy,
{
    match step.compute_bound().stateful() {
        OpsKind::Tracked(step) => {
            assert_differentiating();
            step.finish(state, output)
        }
        OpsKind::UnTracked(step) => step.finish(output),
    }
}

/// Hands each parent that wants one its gradient.
pub(super) fn register<B: Backend, const N: usize>(
    gradients: &mut Gradients,
    parents: [Option<NodeId>; N],
    values: [FloatTensor<B>; N],
) {
    assert_differentiating();
    for (parent, value) in parents.into_iter().zip(values) {
        if let Some(node) = parent {
            gradients.register::<B>(node, value);
        }
    }
}
