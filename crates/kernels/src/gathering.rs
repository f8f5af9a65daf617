use burn::tensor::{Int, Tensor};

use crate::Kernels;
use crate::primitives::{primitive, tensor};

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
