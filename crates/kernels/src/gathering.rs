use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor};

use crate::Kernels;
use crate::convolution::{primitive, tensor};
use crate::normalization::{Recorded, register};

/// Takes every expert's selected patches, each scaled by its weight for that expert.
///
/// `output[b, k, p, e * channels + c] = weights[b, e, n] * patches[b, n, p, c]` where `n = indices[b, e, k]`. Gradients flow
/// into patches and weights; the weight of a patch that was not selected has none.
///
/// # Shapes
/// - patches: `[batch, patch, position, channel]`
/// - weights: `[batch, expert, patch]`
/// - indices: `[batch, expert, selected]`, each below the number of patches
/// - output: `[batch, selected, position, expert * channel]`
///
/// # Panics
/// If shapes disagree.
pub fn gather_weighted<B: Kernels>(
    patches: Tensor<B, 4>,
    weights: Tensor<B, 3>,
    indices: Tensor<B, 3, Int>,
) -> Tensor<B, 4> {
    let [batch, count, _, _] = patches.dims();
    let [_, experts, selected] = indices.dims();
    assert_eq!([batch, experts, count], weights.dims(), "every expert needs one weight per patch");
    assert_eq!([batch, experts, selected], indices.dims(), "every image needs its selection");
    tensor(B::gather_weighted(primitive(patches), primitive(weights), indices.into_primitive()))
}

/// The operations of this file in ordinary burn operations.
pub(crate) mod stock {
    use burn::tensor::IndexingUpdateOp;

    use super::{Backend, FloatTensor, Int, IntTensor, Tensor, primitive, tensor};

    /// An expert's selection as `[batch, selected]` and, numbered through the batch, `[batch * selected]`.
    fn selection<B: Backend>(
        indices: &Tensor<B, 3, Int>,
        expert: usize,
        count: usize,
    ) -> (Tensor<B, 2, Int>, Tensor<B, 1, Int>) {
        let [batch, _, selected] = indices.dims();
        let within = indices.clone().narrow(1, expert, 1).reshape([batch, selected]);
        let first = Tensor::<B, 1, Int>::arange(0..batch as i64, &indices.device()).mul_scalar(count as i64);
        let through = (within.clone() + first.reshape([batch, 1])).reshape([batch * selected]);
        (within, through)
    }

    pub(crate) fn gather_weighted<B: Backend>(
        patches: FloatTensor<B>,
        weights: FloatTensor<B>,
        indices: IntTensor<B>,
    ) -> FloatTensor<B> {
        let (patches, weights) = (tensor::<B, 4>(patches), tensor::<B, 3>(weights));
        let indices = Tensor::<B, 3, Int>::from_primitive(indices);
        let [batch, count, positions, channels] = patches.dims();
        let [_, experts, selected] = indices.dims();
        let patches = patches.reshape([batch * count, positions * channels]);
        let parts = (0..experts).map(|expert| {
            let (within, through) = selection(&indices, expert, count);
            let weights = weights.clone().narrow(1, expert, 1).reshape([batch, count]).gather(1, within);
            let taken = patches.clone().select(0, through) * weights.reshape([batch * selected, 1]);
            taken.reshape([batch, selected, positions, channels])
        });
        primitive(Tensor::cat(parts.collect(), 3))
    }

    pub(crate) fn gather_weighted_gradients<B: Backend>(
        patches: FloatTensor<B>,
        weights: FloatTensor<B>,
        indices: IntTensor<B>,
        gradient: FloatTensor<B>,
    ) -> (FloatTensor<B>, FloatTensor<B>) {
        let (patches, weights, gradient) = (tensor::<B, 4>(patches), tensor::<B, 3>(weights), tensor::<B, 4>(gradient));
        let indices = Tensor::<B, 3, Int>::from_primitive(indices);
        let [batch, count, positions, channels] = patches.dims();
        let [_, experts, selected] = indices.dims();
        let patches = patches.reshape([batch * count, positions * channels]);
        let mut patches_gradient = patches.zeros_like();
        let mut weights_gradients = Vec::with_capacity(experts);
        for expert in 0..experts {
            let (within, through) = selection(&indices, expert, count);
            let weights = weights.clone().narrow(1, expert, 1).reshape([batch, count]);
            let kept = weights.clone().gather(1, within.clone()).reshape([batch * selected, 1]);
            let gradient = gradient.clone().narrow(3, expert * channels, channels);
            let gradient = gradient.reshape([batch * selected, positions * channels]);
            let products = gradient.clone() * patches.clone().select(0, through.clone());
            let products = products.sum_dim(1).reshape([batch, selected]);
            let spread = weights.zeros_like().scatter(1, within, products, IndexingUpdateOp::Add);
            weights_gradients.push(spread.reshape([batch, 1, count]));
            patches_gradient = patches_gradient.select_assign(0, through, gradient * kept, IndexingUpdateOp::Add);
        }
        let patches_gradient = patches_gradient.reshape([batch, count, positions, channels]);
        (primitive(patches_gradient), primitive(Tensor::cat(weights_gradients, 1)))
    }
}

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
pub(crate) fn recorded<B: Kernels, C: CheckpointStrategy>(
    patches: Recorded<B, C>,
    weights: Recorded<B, C>,
    indices: IntTensor<Autodiff<B, C>>,
) -> Recorded<B, C> {
    let nodes = [patches.node.clone(), weights.node.clone()];
    let (patches, weights) = (patches.primitive, weights.primitive);
    let output = B::gather_weighted(patches.clone(), weights.clone(), indices.clone());
    match Backward::<B, 2>::prepare::<C>(GatherWeightedBackward, nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((patches, weights, indices), output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    }
}
