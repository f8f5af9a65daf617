//! Normalizations in burn's operations.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use super::sum_rows::sum_rows;
use crate::primitives::{primitive, tensor};

/// `[.., channel]` as `[row, channel]`.
fn rows<B: Backend>(x: FloatTensor<B>) -> Tensor<B, 2> {
    let shape = x.shape();
    let channels = shape[shape.num_dims() - 1];
    tensor(B::float_reshape(x, [shape.num_elements() / channels.max(1), channels].into()))
}

fn row<B: Backend>(parameter: FloatTensor<B>) -> Tensor<B, 2> {
    tensor::<B, 1>(parameter).unsqueeze_dim(0)
}

fn channels<B: Backend>(row: Tensor<B, 2>) -> FloatTensor<B> {
    primitive(row.squeeze_dim::<1>(0))
}

pub(crate) fn batch_norm_relu<B: Backend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    epsilon: f64,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let shape = x.shape();
    let x = rows::<B>(x);
    let count = x.dims()[0] as f64;
    let mean = sum_rows(x.clone()) / count;
    let centred = x - mean.clone();
    let variance = sum_rows(centred.clone() * centred.clone()) / count;
    let scale = row::<B>(gamma) / (variance.clone() + epsilon).sqrt();
    let output = burn::tensor::activation::relu(centred * scale + row::<B>(beta));
    (B::float_reshape(primitive(output), shape), channels(mean), channels(variance))
}

pub(crate) fn batch_norm_relu_gradients<B: Backend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    mean: FloatTensor<B>,
    variance: FloatTensor<B>,
    gradient: FloatTensor<B>,
    epsilon: f64,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let shape = x.shape();
    let reciprocal = (row::<B>(variance) + epsilon).sqrt().recip();
    let normal = (rows::<B>(x) - row::<B>(mean)) * reciprocal.clone();
    let gamma = row::<B>(gamma);
    let dead = (normal.clone() * gamma.clone() + row::<B>(beta)).lower_equal_elem(0.0);
    let gradient = rows::<B>(gradient).mask_fill(dead, 0.0);
    let count = normal.dims()[0] as f64;
    let beta_gradient = sum_rows(gradient.clone());
    let gamma_gradient = sum_rows(gradient.clone() * normal.clone());
    let x_gradient =
        (gradient - beta_gradient.clone() / count - normal * (gamma_gradient.clone() / count)) * (gamma * reciprocal);
    (B::float_reshape(primitive(x_gradient), shape), channels(gamma_gradient), channels(beta_gradient))
}

pub(crate) fn scale_shift_relu<B: Backend>(
    x: FloatTensor<B>,
    scale: FloatTensor<B>,
    shift: FloatTensor<B>,
) -> FloatTensor<B> {
    let shape = x.shape();
    let output = burn::tensor::activation::relu(rows::<B>(x) * row::<B>(scale) + row::<B>(shift));
    B::float_reshape(primitive(output), shape)
}

pub(crate) fn scale_shift_relu_gradients<B: Backend>(
    x: FloatTensor<B>,
    scale: FloatTensor<B>,
    shift: FloatTensor<B>,
    gradient: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let shape = x.shape();
    let x = rows::<B>(x);
    let scale = row::<B>(scale);
    let dead = (x.clone() * scale.clone() + row::<B>(shift)).lower_equal_elem(0.0);
    let gradient = rows::<B>(gradient).mask_fill(dead, 0.0);
    let scale_gradient = sum_rows(gradient.clone() * x);
    let shift_gradient = sum_rows(gradient.clone());
    (B::float_reshape(primitive(gradient * scale), shape), channels(scale_gradient), channels(shift_gradient))
}
