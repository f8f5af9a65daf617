//! Gathering in burn's operations.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{IndexingUpdateOp, Int, Tensor};

use crate::primitives::{primitive, tensor};

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
