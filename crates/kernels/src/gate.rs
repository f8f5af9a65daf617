use burn::tensor::{Int, Tensor};

use crate::Kernels;
use crate::primitives::{primitive, tensor};

/// Weighs each expert's best patches, on the device of the scores.
///
/// The weights are a softmax over all patches that is zero where a patch was not selected, or, without
/// `softmax_first`, a softmax over the selected ones. Ties go to the lower index. Gradients flow through the weights
/// into the scores.
///
/// # Shapes
/// - scores, weights: `[batch, expert, patch]`
/// - indices: `[batch, expert, selected]`, rising
///
/// # Panics
/// If more patches are to be selected than there are, or none.
pub fn choose_patches<B: Kernels>(
    scores: Tensor<B, 3>,
    selected: usize,
    softmax_first: bool,
) -> (Tensor<B, 3>, Tensor<B, 3, Int>) {
    let [_, _, patches] = scores.dims();
    assert!((1..=patches).contains(&selected), "{selected} of {patches} patches cannot be selected");
    let (weights, indices) = B::choose_patches(primitive(scores), selected, softmax_first);
    (tensor(weights), Tensor::from_primitive(indices))
}

/// Joins tensors of one shape along their first axis; gradients flow into each.
///
/// # Panics
/// If there is none, or the shapes differ.
pub fn join<B: Kernels, const D: usize>(parts: Vec<Tensor<B, D>>) -> Tensor<B, D> {
    let shape = parts.first().expect("there is something to join").dims();
    assert!(parts.iter().all(|part| part.dims() == shape), "tensors to join must have one shape");
    let mut parts = parts;
    if parts.len() == 1 {
        return parts.remove(0);
    }
    tensor(B::join(parts.into_iter().map(primitive).collect()))
}
