//! What experts see of a map, in burn's operations.

use burn::tensor::TensorMetadata;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use crate::primitives::{primitive, tensor};

/// What every expert sees, `[batch, height, width, expert * channel]`.
///
/// The map's channels are those of `members` side by side, each with as many of the experts.
pub(crate) fn weigh<B: Backend>(map: FloatTensor<B>, weights: FloatTensor<B>, members: usize) -> FloatTensor<B> {
    let map = tensor::<B, 4>(map);
    let [batch, height, width, wide] = map.dims();
    let weights = tensor::<B, 3>(weights);
    let [_, experts, positions] = weights.dims();
    let channels = wide / members;
    let map = map.reshape([batch, positions, members, 1, channels]);
    let weights = weights.swap_dims(1, 2).reshape([batch, positions, members, experts / members, 1]);
    primitive((map * weights).reshape([batch, height, width, experts * channels]))
}

/// Gradients of [`weigh`] for map and weights.
pub(crate) fn weigh_gradients<B: Backend>(
    map: FloatTensor<B>,
    weights: FloatTensor<B>,
    gradient: FloatTensor<B>,
    members: usize,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let map = tensor::<B, 4>(map);
    let shape = map.dims();
    let [batch, _, _, wide] = shape;
    let weights = tensor::<B, 3>(weights);
    let [_, experts, positions] = weights.dims();
    let (each, channels) = (experts / members, wide / members);
    let map = map.reshape([batch, positions, members, 1, channels]);
    let weights = weights.swap_dims(1, 2).reshape([batch, positions, members, each, 1]);
    let gradient = tensor::<B, 4>(gradient).reshape([batch, positions, members, each, channels]);
    let map_gradient = (gradient.clone() * weights).sum_dim(3);
    let weights_gradient = (gradient * map).sum_dim(4);
    (
        primitive(map_gradient.reshape(shape)),
        primitive(weights_gradient.reshape([batch, positions, experts]).swap_dims(1, 2)),
    )
}

/// How many members lie side by side in a map that is weighed for experts with so many parameters in all.
pub(crate) fn members<B: Backend>(
    map: &FloatTensor<B>,
    weights: &FloatTensor<B>,
    parameters: &FloatTensor<B>,
) -> usize {
    let wide = map.shape()[3];
    (wide * weights.shape()[1] / parameters.shape()[0].max(1)).max(1)
}
