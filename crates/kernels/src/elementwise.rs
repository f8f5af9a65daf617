use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use crate::Kernels;
use crate::convolution::{primitive, tensor};
use crate::normalization::{Recorded, register};

/// Adds two tensors of one shape, as a residual connection does.
///
/// # Panics
/// If the shapes differ.
pub fn add<B: Kernels, const D: usize>(left: Tensor<B, D>, right: Tensor<B, D>) -> Tensor<B, D> {
    assert_eq!(left.dims(), right.dims(), "both sides of a residual connection must have one shape");
    tensor(B::add(primitive(left), primitive(right)))
}

/// Averages a map over its positions.
///
/// # Shapes
/// - map: `[batch, height, width, channel]`
/// - output: `[batch, channel]`
pub fn average_positions<B: Kernels>(map: Tensor<B, 4>) -> Tensor<B, 2> {
    tensor(B::average_positions(primitive(map)))
}

/// The operations of this file in ordinary burn operations.
pub(crate) mod stock {
    use super::{FloatTensor, Kernels, primitive, tensor};

    pub(crate) fn average_positions<B: Kernels>(map: FloatTensor<B>) -> FloatTensor<B> {
        let map = tensor::<B, 4>(map);
        let [batch, height, width, channels] = map.dims();
        primitive(map.reshape([batch, height * width, channels]).mean_dim(1).reshape([batch, channels]))
    }

    pub(crate) fn average_positions_gradient<B: Kernels>(
        gradient: FloatTensor<B>,
        [height, width]: [usize; 2],
    ) -> FloatTensor<B> {
        let gradient = tensor::<B, 2>(gradient) / (height * width) as f64;
        let [batch, channels] = gradient.dims();
        primitive(gradient.reshape([batch, 1, 1, channels]).expand([batch, height, width, channels]))
    }
}

#[derive(Debug)]
struct AddBackward;

impl<B: Kernels> Backward<B, 2> for AddBackward {
    type State = ();

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        register::<B, 2>(gradients, parents, [gradient.clone(), gradient]);
    }
}

/// [`Kernels::add`] with its step of the backward pass.
pub(crate) fn recorded_add<B: Kernels, C: CheckpointStrategy>(
    left: Recorded<B, C>,
    right: Recorded<B, C>,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = [left.node.clone(), right.node.clone()];
    let output = B::add(left.primitive, right.primitive);
    match Backward::<B, 2>::prepare::<C>(AddBackward, nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((), output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    }
}

#[derive(Debug)]
struct AveragePositionsBackward;

impl<B: Kernels> Backward<B, 1> for AveragePositionsBackward {
    type State = [usize; 2];

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let gradient = B::average_positions_gradient(gradient, ops.state);
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        register::<B, 1>(gradients, parents, [gradient]);
    }
}

/// [`Kernels::average_positions`] with its step of the backward pass.
pub(crate) fn recorded_average_positions<B: Kernels, C: CheckpointStrategy>(
    map: Recorded<B, C>,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = [map.node.clone()];
    let shape = map.primitive.shape();
    let size = [shape[1], shape[2]];
    let output = B::average_positions(map.primitive);
    match Backward::<B, 1>::prepare::<C>(AveragePositionsBackward, nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(size, output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    }
}
