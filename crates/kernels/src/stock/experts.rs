//! What experts see of a map, in burn's operations.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use crate::primitives::{primitive, tensor};

/// What every expert sees, `[batch, height, width, expert * channel]`.
pub(crate) fn weigh<B: Backend>(map: FloatTensor<B>, weights: FloatTensor<B>) -> FloatTensor<B> {
    let map = tensor::<B, 4>(map);
    let [batch, height, width, channels] = map.dims();
    let weights = tensor::<B, 3>(weights);
    let [_, experts, positions] = weights.dims();
    let seen = map.reshape([batch, positions, 1, channels]) * weights.swap_dims(1, 2).unsqueeze_dim::<4>(3);
    primitive(seen.reshape([batch, height, width, experts * channels]))
}

/// Gradients of [`weigh`] for map and weights.
pub(crate) fn weigh_gradients<B: Backend>(
    map: FloatTensor<B>,
    weights: FloatTensor<B>,
    gradient: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let map = tensor::<B, 4>(map);
    let [batch, height, width, channels] = map.dims();
    let weights = tensor::<B, 3>(weights);
    let [_, experts, positions] = weights.dims();
    let gradient = tensor::<B, 4>(gradient).reshape([batch, positions, experts, channels]);
    let map_gradient = (gradient.clone() * weights.swap_dims(1, 2).unsqueeze_dim::<4>(3)).sum_dim(2);
    let weights_gradient = (gradient * map.reshape([batch, positions, 1, channels])).sum_dim(3);
    (
        primitive(map_gradient.reshape([batch, height, width, channels])),
        primitive(weights_gradient.reshape([batch, positions, experts]).swap_dims(1, 2)),
    )
}
