use burn::backend::Autodiff;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;

use crate::Kernels;
use crate::convolution::{primitive, tensor};

/// What [`batch_norm_relu`] gives.
#[derive(Clone, Debug)]
pub struct Normalized<B: Backend, const D: usize> {
    /// Normalized, scaled, shifted and rectified, `[.., channel]`.
    pub output: Tensor<B, D>,
    /// Mean of the batch, `[channel]`, without gradient.
    pub mean: Tensor<B, 1>,
    /// Biased variance of the batch, `[channel]`, without gradient.
    pub variance: Tensor<B, 1>,
}

/// Batch normalization by the batch's own statistics, followed by a rectifier.
///
/// `output = max(gamma * (x - mean) / sqrt(variance + epsilon) + beta, 0)`, where mean and (biased) variance are taken
/// over all axes but the last. Gradients flow into `x` (through the statistics too), `gamma` and `beta`; at zero the
/// rectifier's slope is zero.
///
/// # Shapes
/// - x, output: `[.., channel]`
/// - gamma, beta: `[channel]`
///
/// # Panics
/// If `gamma` or `beta` do not have one value per channel.
pub fn batch_norm_relu<B: Kernels, const D: usize>(
    x: Tensor<B, D>,
    gamma: Tensor<B, 1>,
    beta: Tensor<B, 1>,
    epsilon: f64,
) -> Normalized<B, D> {
    check_channels(&x, [&gamma, &beta]);
    let (output, mean, variance) = B::batch_norm_relu(primitive(x), primitive(gamma), primitive(beta), epsilon);
    Normalized { output: tensor(output), mean: tensor(mean), variance: tensor(variance) }
}

/// Multiplies every channel by its scale, adds its shift, and rectifies: a batch normalization in inference mode.
///
/// With running statistics, `scale = gamma / sqrt(variance + epsilon)` and `shift = beta - mean * scale`.
///
/// # Shapes
/// - x, output: `[.., channel]`
/// - scale, shift: `[channel]`
///
/// # Panics
/// If `scale` or `shift` do not have one value per channel.
pub fn scale_shift_relu<B: Kernels, const D: usize>(
    x: Tensor<B, D>,
    scale: Tensor<B, 1>,
    shift: Tensor<B, 1>,
) -> Tensor<B, D> {
    check_channels(&x, [&scale, &shift]);
    tensor(B::scale_shift_relu(primitive(x), primitive(scale), primitive(shift)))
}

fn check_channels<B: Backend, const D: usize>(x: &Tensor<B, D>, parameters: [&Tensor<B, 1>; 2]) {
    for parameter in parameters {
        assert_eq!(parameter.dims()[0], x.dims()[D - 1], "a normalization needs one parameter per channel");
    }
}

/// The operations of this file in ordinary burn operations.
pub(crate) mod stock {
    use burn::tensor::TensorMetadata;

    use super::{Backend, FloatTensor, Tensor, primitive, tensor};

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

    /// Sums over rows in two levels, so that rounding grows with the root of their number only.
    ///
    /// # Shapes
    /// - x: `[row, channel]`
    /// - output: `[1, channel]`
    pub(crate) fn sum_rows<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
        let [rows, channels] = x.dims();
        let mut group = 1;
        while 4 * group * group <= rows && rows % (2 * group) == 0 {
            group *= 2;
        }
        x.reshape([rows / group, group, channels]).sum_dim(1).reshape([rows / group, channels]).sum_dim(0)
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
        let x_gradient = (gradient - beta_gradient.clone() / count - normal * (gamma_gradient.clone() / count))
            * (gamma * reciprocal);
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
}

/// A tensor of the recording backend.
pub(crate) type Recorded<B, C> = FloatTensor<Autodiff<B, C>>;

#[derive(Debug)]
struct BatchNormReluBackward;

#[derive(Clone, Debug)]
struct BatchNormReluState<T> {
    x: T,
    gamma: T,
    beta: T,
    mean: T,
    variance: T,
    epsilon: f64,
}

impl<B: Kernels> Backward<B, 3> for BatchNormReluBackward {
    type State = BatchNormReluState<FloatTensor<B>>;

    fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let BatchNormReluState { x, gamma, beta, mean, variance, epsilon } = ops.state;
        let (x, gamma, beta) = B::batch_norm_relu_gradients(x, gamma, beta, mean, variance, gradient, epsilon);
        register::<B, 3>(gradients, ops.parents.map(|parent| parent.map(|node| node.id)), [x, gamma, beta]);
    }
}

#[derive(Debug)]
struct ScaleShiftReluBackward;

impl<B: Kernels> Backward<B, 3> for ScaleShiftReluBackward {
    type State = [FloatTensor<B>; 3];

    fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let [x, scale, shift] = ops.state;
        let (x, scale, shift) = B::scale_shift_relu_gradients(x, scale, shift, gradient);
        register::<B, 3>(gradients, ops.parents.map(|parent| parent.map(|node| node.id)), [x, scale, shift]);
    }
}

/// Hands each parent that wants one its gradient.
pub(crate) fn register<B: Backend, const N: usize>(
    gradients: &mut Gradients,
    parents: [Option<NodeId>; N],
    values: [FloatTensor<B>; N],
) {
    for (parent, value) in parents.into_iter().zip(values) {
        if let Some(node) = parent {
            gradients.register::<B>(node, value);
        }
    }
}

/// [`Kernels::batch_norm_relu`] with its step of the backward pass.
pub(crate) fn recorded_batch_norm_relu<B: Kernels, C: CheckpointStrategy>(
    x: Recorded<B, C>,
    gamma: Recorded<B, C>,
    beta: Recorded<B, C>,
    epsilon: f64,
) -> (Recorded<B, C>, Recorded<B, C>, Recorded<B, C>) {
    let nodes = [x.node.clone(), gamma.node.clone(), beta.node.clone()];
    let (x, gamma, beta) = (x.primitive, gamma.primitive, beta.primitive);
    let prep = Backward::<B, 3>::prepare::<C>(BatchNormReluBackward, nodes).compute_bound().stateful();
    let (output, mean, variance) = B::batch_norm_relu(x.clone(), gamma.clone(), beta.clone(), epsilon);
    let state = BatchNormReluState { x, gamma, beta, mean: mean.clone(), variance: variance.clone(), epsilon };
    let output = match prep {
        OpsKind::Tracked(prep) => prep.finish(state, output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    };
    (output, Autodiff::<B, C>::from_inner(mean), Autodiff::<B, C>::from_inner(variance))
}

/// [`Kernels::scale_shift_relu`] with its step of the backward pass.
pub(crate) fn recorded_scale_shift_relu<B: Kernels, C: CheckpointStrategy>(
    x: Recorded<B, C>,
    scale: Recorded<B, C>,
    shift: Recorded<B, C>,
) -> Recorded<B, C> {
    let nodes = [x.node.clone(), scale.node.clone(), shift.node.clone()];
    let state = [x.primitive, scale.primitive, shift.primitive];
    let [x, scale, shift] = state.clone();
    let output = B::scale_shift_relu(x, scale, shift);
    match Backward::<B, 3>::prepare::<C>(ScaleShiftReluBackward, nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(state, output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    }
}
