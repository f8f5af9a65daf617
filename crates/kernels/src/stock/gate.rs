//! The choice of patches in burn's operations.

use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor};

use crate::primitives::{primitive, tensor};

/// One where a patch is among the `selected` best of its row, ties to the lower index, else zero; `[batch, expert, patch]`.
fn kept<B: Backend>(scores: &Tensor<B, 3>, selected: usize) -> Tensor<B, 3, Int> {
    let [_, _, patches] = scores.dims();
    let (own, other) = (scores.clone().unsqueeze_dim::<4>(3), scores.clone().unsqueeze_dim::<4>(2));
    let numbers = Tensor::<B, 1, Int>::arange(0..patches as i64, &scores.device());
    let earlier = numbers.clone().unsqueeze_dim::<2>(0).lower(numbers.unsqueeze_dim::<2>(1)).unsqueeze::<4>();
    let before = other.clone().greater(own.clone()).int() + other.equal(own).int() * earlier.int();
    before.sum_dim(3).squeeze_dim::<3>(3).lower_elem(selected as i64).int()
}

pub(crate) fn choose_patches<B: Backend>(
    scores: FloatTensor<B>,
    selected: usize,
    softmax_first: bool,
) -> (FloatTensor<B>, IntTensor<B>) {
    let scores = tensor::<B, 3>(scores);
    let kept = kept(&scores, selected);
    let [_, _, patches] = scores.dims();
    let numbers = Tensor::<B, 1, Int>::arange(0..patches as i64, &scores.device()).unsqueeze::<3>();
    let numbers = numbers + kept.clone().equal_elem(0).int() * patches as i64;
    let indices = numbers.sort(2).narrow(2, 0, selected);
    let weights = if softmax_first {
        softmax(scores, 2) * kept.float()
    } else {
        softmax(scores.mask_fill(kept.equal_elem(0), f32::MIN), 2)
    };
    (primitive(weights), indices.into_primitive())
}

pub(crate) fn choose_patches_gradient<B: Backend>(
    scores: FloatTensor<B>,
    weights: FloatTensor<B>,
    gradient: FloatTensor<B>,
    softmax_first: bool,
) -> FloatTensor<B> {
    let (weights, gradient) = (tensor::<B, 3>(weights), tensor::<B, 3>(gradient));
    let dot = (gradient.clone() * weights.clone()).sum_dim(2);
    let kept = weights.clone().greater_elem(0.0).float();
    let probability = if softmax_first { softmax(tensor::<B, 3>(scores), 2) } else { weights };
    primitive(probability * (gradient * kept - dot))
}
