use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::primitives::{primitive, tensor};
use crate::{Kernels, Normalized};

/// Weighs a map by every expert's gate and normalizes and rectifies what each expert sees.
///
/// With `z[b, p, e, c] = weights[b, e, p] * map[b, p, c]` this is [`batch_norm_relu`](crate::batch_norm_relu) of `z`
/// with experts times channels as channels: every expert has its own statistics, taken over all positions of the batch,
/// those of weight zero included. Gradients flow into map, weights, gamma and beta.
///
/// A map may hold those of several networks side by side, `[batch, height, width, member * channel]`, each seen by its own
/// share of the experts, which stand member by member.
///
/// # Shapes
/// - map: `[batch, height, width, channel]`
/// - weights: `[batch, expert, height * width]`
/// - gamma, beta, mean, variance: `[expert * channel]`, expert by expert
/// - output: `[batch, height, width, expert * channel]`, the input of a
///   [`grouped_conv2d`](crate::grouped_conv2d) with one group per expert
///
/// # Panics
/// If shapes disagree.
pub fn weighted_batch_norm_relu<B: Kernels>(
    map: Tensor<B, 4>,
    weights: Tensor<B, 3>,
    gamma: Tensor<B, 1>,
    beta: Tensor<B, 1>,
    epsilon: f64,
) -> Normalized<B, 4> {
    check(&map, &weights, [&gamma, &beta]);
    let (map, weights, gamma, beta) = (primitive(map), primitive(weights), primitive(gamma), primitive(beta));
    let (output, mean, variance) = B::weighted_batch_norm_relu(map, weights, gamma, beta, epsilon);
    Normalized { output: tensor(output), mean: tensor(mean), variance: tensor(variance) }
}

/// Weighs a map by every expert's gate, then scales, shifts and rectifies: [`weighted_batch_norm_relu`] in inference
/// mode.
///
/// # Shapes
/// - map: `[batch, height, width, channel]`
/// - weights: `[batch, expert, height * width]`
/// - scale, shift: `[expert * channel]`, expert by expert
/// - output: `[batch, height, width, expert * channel]`
///
/// # Panics
/// If shapes disagree.
pub fn weighted_scale_shift_relu<B: Kernels>(
    map: Tensor<B, 4>,
    weights: Tensor<B, 3>,
    scale: Tensor<B, 1>,
    shift: Tensor<B, 1>,
) -> Tensor<B, 4> {
    check(&map, &weights, [&scale, &shift]);
    let (map, weights, scale, shift) = (primitive(map), primitive(weights), primitive(scale), primitive(shift));
    tensor(B::weighted_scale_shift_relu(map, weights, scale, shift))
}

fn check<B: Backend>(map: &Tensor<B, 4>, weights: &Tensor<B, 3>, parameters: [&Tensor<B, 1>; 2]) {
    let [batch, height, width, wide] = map.dims();
    let [_, experts, _] = weights.dims();
    assert_eq!([batch, experts, height * width], weights.dims(), "every expert needs one weight per position");
    let [count, other] = parameters.map(|parameter| parameter.dims()[0]);
    assert_eq!(count, other, "a normalization needs as many of both parameters");
    assert!(experts > 0 && count % experts == 0, "a normalization needs one parameter per channel of every expert");
    let channels = (count / experts).max(1);
    let members = wide / channels;
    assert_eq!(wide, members * channels, "a normalization needs one parameter per channel");
    assert!(members > 0 && experts % members == 0, "every member of a map needs as many experts");
}
