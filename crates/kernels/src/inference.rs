use burn::tensor::Tensor;

use crate::primitives::{primitive, tensor};
use crate::{InferenceConv, Kernels};

/// Convolves in inference, in as few passes over memory as the backend can.
///
/// The result is that of the operations one by one, up to the rounding of f32: a normalization may be multiplied into
/// the weight.
///
/// # Shapes
/// - x: `[batch, height, width, groups * channel]`
/// - output: `[batch, height', width', groups * out]`
///
/// # Panics
/// If shapes disagree or the kernel does not fit into the padded input.
pub fn inference_conv2d<B: Kernels>(x: Tensor<B, 4>, conv: InferenceConv<B>) -> Tensor<B, 4> {
    conv.output(x.dims());
    tensor(B::inference_conv2d(primitive(x), conv))
}

/// A residual block in inference, `second(first(x)) + shortcut(x)`, of which a backend may keep what is between its
/// convolutions in cache.
///
/// # Shapes
/// - x: `[batch, height, width, groups * channel]`
/// - output: `[batch, height', width', groups * out]`, that of both branches
///
/// # Panics
/// If shapes disagree, a kernel does not fit into its padded input, or a layer adds something of its own.
pub fn inference_residual<B: Kernels>(
    x: Tensor<B, 4>,
    first: InferenceConv<B>,
    second: InferenceConv<B>,
    shortcut: InferenceConv<B>,
) -> Tensor<B, 4> {
    let (output, beside) = (second.output(first.output(x.dims())), shortcut.output(x.dims()));
    assert_eq!(output, beside, "both branches must have one shape");
    let layers = [first, second, shortcut];
    assert!(layers.iter().all(|layer| layer.added.is_none()), "the block alone adds");
    tensor(B::inference_residual(primitive(x), layers))
}
