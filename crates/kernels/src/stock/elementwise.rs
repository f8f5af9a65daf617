//! Averages over positions and dense layers in burn's operations.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use crate::primitives::{primitive, tensor};

pub(crate) fn average_positions<B: Backend>(map: FloatTensor<B>) -> FloatTensor<B> {
    let map = tensor::<B, 4>(map);
    let [batch, height, width, channels] = map.dims();
    primitive(map.reshape([batch, height * width, channels]).mean_dim(1).reshape([batch, channels]))
}

pub(crate) fn average_positions_gradient<B: Backend>(
    gradient: FloatTensor<B>,
    [height, width]: [usize; 2],
) -> FloatTensor<B> {
    let gradient = tensor::<B, 2>(gradient) / (height * width) as f64;
    let [batch, channels] = gradient.dims();
    primitive(gradient.reshape([batch, 1, 1, channels]).expand([batch, height, width, channels]))
}

pub(crate) fn dense<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>, bias: FloatTensor<B>) -> FloatTensor<B> {
    let (x, weight, bias) = (tensor::<B, 2>(x), tensor::<B, 2>(weight), tensor::<B, 1>(bias));
    primitive(x.matmul(weight.transpose()) + bias.unsqueeze())
}
