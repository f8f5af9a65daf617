use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata, TensorPrimitive};

use crate::Kernels;

/// Stride and zero padding of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvOptions {
    /// Step of the kernel along both axes, at least 1.
    pub stride: usize,
    /// Zero rows and columns around the input: top, left, bottom, right.
    pub padding: [usize; 4],
}

impl ConvOptions {
    /// Padding with which the output has `ceil(size / stride)` rows and columns, the odd zero row below and the odd
    /// zero column to the right (TensorFlow's `SAME`).
    ///
    /// # Panics
    /// If `stride` is 0.
    pub fn same(size: [usize; 2], kernel: [usize; 2], stride: usize) -> Self {
        let total =
            |axis: usize| ((size[axis].div_ceil(stride).max(1) - 1) * stride + kernel[axis]).saturating_sub(size[axis]);
        let (rows, columns) = (total(0), total(1));
        Self { stride, padding: [rows / 2, columns / 2, rows - rows / 2, columns - columns / 2] }
    }

    /// Padding with the same number of zeros, `kernel / 2`, on either side (`PyTorch`'s usual choice for odd kernels).
    pub fn symmetric(kernel: [usize; 2], stride: usize) -> Self {
        let [rows, columns] = [kernel[0] / 2, kernel[1] / 2];
        Self { stride, padding: [rows, columns, rows, columns] }
    }

    /// Rows and columns of the output for an input of `size`.
    ///
    /// # Panics
    /// If the stride is 0 or the padded input is smaller than the kernel.
    pub fn output_size(&self, size: [usize; 2], kernel: [usize; 2]) -> [usize; 2] {
        let [top, left, bottom, right] = self.padding;
        let padded = [size[0] + top + bottom, size[1] + left + right];
        assert!(
            padded[0] >= kernel[0] && padded[1] >= kernel[1] && self.stride > 0,
            "a kernel of {kernel:?} with {self:?} does not fit an input of {size:?}"
        );
        [(padded[0] - kernel[0]) / self.stride + 1, (padded[1] - kernel[1]) / self.stride + 1]
    }
}

/// Convolves channels-last feature maps and adds a bias.
///
/// As everywhere in deep learning this is a cross-correlation: `output[b, i, j, o] = bias[o] + sum over (r, s, c) of
/// x[b, i * stride + r - top, j * stride + s - left, c] * weight[o, c, r, s]`, with zeros outside of `x`.
///
/// # Shapes
/// - x: `[batch, height, width, channel]`
/// - weight: `[out, channel, kernel height, kernel width]`, as `PyTorch` has it
/// - bias: `[out]`
/// - output: `[batch, height', width', out]`, see [`ConvOptions::output_size`]
///
/// # Panics
/// If shapes disagree or the kernel does not fit into the padded input.
pub fn conv2d<B: Kernels>(
    x: Tensor<B, 4>,
    weight: Tensor<B, 4>,
    bias: Tensor<B, 1>,
    options: ConvOptions,
) -> Tensor<B, 4> {
    grouped_conv2d(x, weight, bias, 1, options)
}

/// Convolves every group of channels by weights of its own and adds a bias.
///
/// The channels of input and output are divided into `groups` consecutive groups; output group `g` is
/// [`conv2d`] of input group `g` by the `g`-th part of the weight.
///
/// # Shapes
/// - x: `[batch, height, width, groups * channel]`
/// - weight: `[groups * out, channel, kernel height, kernel width]`
/// - bias: `[groups * out]`
/// - output: `[batch, height', width', groups * out]`
///
/// # Panics
/// If shapes disagree or the kernel does not fit into the padded input.
pub fn grouped_conv2d<B: Kernels>(
    x: Tensor<B, 4>,
    weight: Tensor<B, 4>,
    bias: Tensor<B, 1>,
    groups: usize,
    options: ConvOptions,
) -> Tensor<B, 4> {
    let [_, height, width, channels] = x.dims();
    let [out, weight_channels, rows, columns] = weight.dims();
    assert_eq!(
        channels,
        groups * weight_channels,
        "the input and the convolution's weight must have the same channels"
    );
    assert!(groups > 0 && out % groups == 0, "{groups} groups must divide {out} output channels");
    assert_eq!([out], bias.dims(), "a convolution's bias must have one value per output channel");
    options.output_size([height, width], [rows, columns]);
    let output = B::conv2d_bias(primitive(x), primitive(weight), primitive(bias), groups, options);
    Tensor::from_primitive(TensorPrimitive::Float(output))
}

pub(crate) fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

pub(crate) fn tensor<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// The operations of this file in ordinary burn operations.
pub(crate) mod stock {
    use burn::tensor::module::conv2d;
    use burn::tensor::ops::ConvOptions as BurnOptions;

    use super::{Backend, ConvOptions, FloatTensor, Tensor, primitive, tensor};
    use crate::normalization::stock::sum_rows;

    pub(crate) fn forward<B: Backend>(
        x: FloatTensor<B>,
        weight: FloatTensor<B>,
        bias: FloatTensor<B>,
        groups: usize,
        options: ConvOptions,
    ) -> FloatTensor<B> {
        let x = pad(tensor::<B, 4>(x).permute([0, 3, 1, 2]), options);
        let output = conv2d(x, tensor(weight), Some(tensor(bias)), unpadded(groups, options));
        primitive(output.permute([0, 2, 3, 1]))
    }

    pub(crate) fn input_gradient<B: Backend>(
        weight: FloatTensor<B>,
        gradient: FloatTensor<B>,
        [height, width]: [usize; 2],
        groups: usize,
        options: ConvOptions,
    ) -> FloatTensor<B> {
        let gradient = tensor::<B, 4>(gradient).permute([0, 3, 1, 2]);
        let channels = groups * tensor::<B, 4>(weight.clone()).dims()[1];
        let [top, left, bottom, right] = options.padding;
        let padded = [gradient.dims()[0], channels, top + height + bottom, left + width + right];
        // Burn reads only the shape of this input.
        let x = Tensor::<B, 4>::zeros(padded, (&gradient.device(), gradient.dtype()));
        let x = B::conv2d_x_backward(primitive(x), weight, primitive(gradient), unpadded(groups, options));
        let x = tensor::<B, 4>(x).slice([0..padded[0], 0..channels, top..top + height, left..left + width]);
        primitive(x.permute([0, 2, 3, 1]))
    }

    pub(crate) fn weight_gradients<B: Backend>(
        x: FloatTensor<B>,
        gradient: FloatTensor<B>,
        kernel: [usize; 2],
        groups: usize,
        options: ConvOptions,
    ) -> (FloatTensor<B>, FloatTensor<B>) {
        let x = pad(tensor::<B, 4>(x).permute([0, 3, 1, 2]), options);
        let gradient = tensor::<B, 4>(gradient);
        let [batch, height, width, out] = gradient.dims();
        let bias = sum_rows(gradient.clone().reshape([batch * height * width, out])).reshape([out]);
        // Burn reads only the shape of this weight.
        let weight = Tensor::<B, 4>::zeros([out, x.dims()[1] / groups, kernel[0], kernel[1]], (&x.device(), x.dtype()));
        let gradient = primitive(gradient.permute([0, 3, 1, 2]));
        let weight = B::conv2d_weight_backward(primitive(x), primitive(weight), gradient, unpadded(groups, options));
        (weight, primitive(bias))
    }

    /// Adds the zeros around `[batch, channel, height, width]`; burn's convolution pads only symmetrically, and
    /// `Tensor::pad` does not keep the element type.
    fn pad<B: Backend>(x: Tensor<B, 4>, options: ConvOptions) -> Tensor<B, 4> {
        if options.padding == [0; 4] {
            return x;
        }
        let [top, left, bottom, right] = options.padding;
        let [batch, channels, height, width] = x.dims();
        let padded = [batch, channels, top + height + bottom, left + width + right];
        let inside = [0..batch, 0..channels, top..top + height, left..left + width];
        Tensor::zeros(padded, (&x.device(), x.dtype())).slice_assign(inside, x)
    }

    fn unpadded(groups: usize, options: ConvOptions) -> BurnOptions<2> {
        BurnOptions::new([options.stride; 2], [0, 0], [1, 1], groups)
    }
}

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
        let [x_node, weight_node, bias_node] = ops.parents;
        let gradient = gradients.consume::<B>(&ops.node);
        let ConvolutionState { x, weight, groups, options } = ops.state;
        let x_shape = x.shape();
        let weight_shape = weight.shape();
        if weight_node.is_some() || bias_node.is_some() {
            let kernel = [weight_shape[2], weight_shape[3]];
            let (weight, bias) = B::conv2d_weight_gradients(x, gradient.clone(), kernel, groups, options);
            if let Some(node) = weight_node {
                gradients.register::<B>(node.id, weight);
            }
            if let Some(node) = bias_node {
                gradients.register::<B>(node.id, bias);
            }
        }
        if let Some(node) = x_node {
            let size = [x_shape[1], x_shape[2]];
            gradients.register::<B>(node.id, B::conv2d_input_gradient(weight, gradient, size, groups, options));
        }
    }
}

/// [`Kernels::conv2d_bias`] with its step of the backward pass.
pub(crate) fn recorded<B: Kernels, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
    bias: FloatTensor<Autodiff<B, C>>,
    groups: usize,
    options: ConvOptions,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = [x.node.clone(), weight.node.clone(), bias.node.clone()];
    let state = ConvolutionState { x: x.primitive.clone(), weight: weight.primitive.clone(), groups, options };
    let output = B::conv2d_bias(x.primitive, weight.primitive, bias.primitive, groups, options);
    match Backward::<B, 3>::prepare::<C>(ConvolutionBackward, nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(state, output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    }
}
