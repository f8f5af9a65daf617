//! Operations on many small tensors, one after another.

use burn::tensor::activation::log_softmax;
use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Slice, Tensor, TensorMetadata};

use crate::SgdStep;
use crate::primitives::{primitive, tensor};

pub(crate) fn average_statistics<B: Backend>(
    means: Vec<FloatTensor<B>>,
    variances: Vec<FloatTensor<B>>,
    mean: FloatTensor<B>,
    variance: FloatTensor<B>,
    momentum: f64,
) -> (Vec<FloatTensor<B>>, Vec<FloatTensor<B>>) {
    let average = |running: Vec<FloatTensor<B>>, batch: FloatTensor<B>| {
        let batch = tensor::<B, 1>(batch);
        let each = batch.dims()[0] / running.len().max(1);
        let groups = running.into_iter().enumerate();
        let averaged = groups.map(|(group, running)| {
            let kept = tensor::<B, 1>(running).mul_scalar(1.0 - momentum);
            primitive(kept + batch.clone().narrow(0, group * each, each).mul_scalar(momentum))
        });
        averaged.collect()
    };
    (average(means, mean), average(variances, variance))
}

/// Scale and shift of every group, side by side; takes gammas, betas, means and variances.
pub(crate) fn fold_statistics<B: Backend>(
    [gammas, betas, means, variances]: [Vec<FloatTensor<B>>; 4],
    epsilon: f64,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let groups = gammas.into_iter().zip(betas).zip(means).zip(variances);
    let folded = groups.map(|(((gamma, beta), mean), variance)| {
        let scale = tensor::<B, 1>(gamma) / tensor::<B, 1>(variance).add_scalar(epsilon).sqrt();
        let shift = tensor::<B, 1>(beta) - tensor::<B, 1>(mean) * scale.clone();
        (scale, shift)
    });
    let (scales, shifts): (Vec<_>, Vec<_>) = folded.unzip();
    (primitive(Tensor::cat(scales, 0)), primitive(Tensor::cat(shifts, 0)))
}

pub(crate) fn sgd_step<B: Backend>(
    parameters: Vec<FloatTensor<B>>,
    gradients: Vec<FloatTensor<B>>,
    velocities: Vec<FloatTensor<B>>,
    step: SgdStep,
) -> (Vec<FloatTensor<B>>, Vec<FloatTensor<B>>) {
    let scaled = |value: FloatTensor<B>, factor: f64| B::float_mul_scalar(value, factor.into());
    let mut velocities = velocities.into_iter();
    let (mut new_parameters, mut new_velocities) = (Vec::new(), Vec::new());
    for (parameter, gradient) in parameters.into_iter().zip(gradients) {
        let mut change = gradient;
        if step.weight_decay > 0.0 {
            change = B::float_add(change, scaled(parameter.clone(), step.weight_decay));
        }
        if step.momentum > 0.0 {
            let velocity = match velocities.next() {
                Some(velocity) => B::float_add(scaled(velocity, step.momentum), change.clone()),
                None => change.clone(),
            };
            new_velocities.push(velocity.clone());
            change = if step.nesterov { B::float_add(change, scaled(velocity, step.momentum)) } else { velocity };
        }
        new_parameters.push(B::float_sub(parameter, scaled(change, step.rate)));
    }
    (new_parameters, new_velocities)
}

pub(crate) fn join<B: Backend>(parts: Vec<FloatTensor<B>>) -> FloatTensor<B> {
    B::float_cat(parts, 0)
}

pub(crate) fn split<B: Backend>(joined: &FloatTensor<B>, parts: usize) -> Vec<FloatTensor<B>> {
    let length = joined.shape()[0] / parts;
    let part = |index: usize| B::float_slice(joined.clone(), &[Slice::from(index * length..(index + 1) * length)]);
    (0..parts).map(part).collect()
}

/// Mean cross-entropy, its sum with the number of hits, and its gradient.
pub(crate) fn cross_entropy<B: Backend>(
    logits: FloatTensor<B>,
    labels: IntTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let logits = tensor::<B, 2>(logits);
    let labels = Tensor::<B, 1, Int>::from_primitive(labels).unsqueeze_dim::<2>(1);
    let [batch, classes] = logits.dims();
    let log = log_softmax(logits.clone(), 1);
    let loss = log.clone().gather(1, labels.clone()).neg().sum();
    let numbers = Tensor::<B, 1, Int>::arange(0..classes as i64, &logits.device()).unsqueeze::<2>();
    let wanted = numbers.expand([batch, classes]).equal(labels.clone().expand([batch, classes])).float();
    let gradient = (log.exp() - wanted) / batch as f64;
    let hits = logits.argmax(1).equal(labels).float().sum();
    let totals = Tensor::cat(vec![loss.clone(), hits], 0);
    (primitive(loss / batch as f64), primitive(totals), primitive(gradient))
}
