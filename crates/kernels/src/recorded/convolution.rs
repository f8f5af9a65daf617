//! Convolutions with their step of the backward pass.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::TensorMetadata;
use burn::tensor::ops::FloatTensor;

use super::step::{Recorded, record, register};
use crate::{ConvOptions, Kernels};

#[derive(Debug)]
struct ConvolutionBackward;

#[derive(Clone, Debug)]
struct ConvolutionState<T> {
    x: T,
    weight: T,
    groups: usize,
    options: ConvOptions,
}

impl<B: Kernels> Backward<B, 3> for ConvolutionBackward {
    type State = ConvolutionState<FloatTensor<B>>;

    fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let [x_node, weight_node, bias_node] = ops.parents.map(|parent| parent.map(|node| node.id));
        let gradient = gradients.consume::<B>(&ops.node);
        let ConvolutionState { x, weight, groups, options } = ops.state;
        let x_shape = x.shape();
        let weight_shape = weight.shape();
        if weight_node.is_some() || bias_node.is_some() {
            let kernel = [weight_shape[2], weight_shape[3]];
            let (weight, bias) = B::conv2d_weight_gradients(x, gradient.clone(), kernel, groups, options);
            register::<B, 2>(gradients, [weight_node, bias_node], [weight, bias]);
        }
        if x_node.is_some() {
            let size = [x_shape[1], x_shape[2]];
            let x = B::conv2d_input_gradient(weight, gradient, size, groups, options);
            register::<B, 1>(gradients, [x_node], [x]);
        }
    }
}

/// [`Kernels::conv2d_bias`] with its step of the backward pass.
pub(super) fn conv2d_bias<B: Kernels, C: CheckpointStrategy>(
    x: Recorded<B, C>,
    weight: Recorded<B, C>,
    bias: Recorded<B, C>,
    groups: usize,
    options: ConvOptions,
) -> Recorded<B, C> {
    let nodes = [x.node.clone(), weight.node.clone(), bias.node.clone()];
    let state = ConvolutionState { x: x.primitive.clone(), weight: weight.primitive.clone(), groups, options };
    let output = B::conv2d_bias(x.primitive, weight.primitive, bias.primitive, groups, options);
    record(Backward::<B, 3>::prepare::<C>(ConvolutionBackward, nodes), state, output)
}
