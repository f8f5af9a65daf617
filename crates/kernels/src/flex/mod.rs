//! The operations on burn's CPU backend.

mod buffer;
mod convolution;
mod panels;
mod simd;
mod tile;

use burn::tensor::{DType, TensorMetadata};
use burn_flex::{Flex, FlexTensor};

use crate::convolution::stock;
use crate::{ConvOptions, Kernels};
use convolution::Geometry;

/// The tensor's values in order; the tensor must be contiguous.
fn slice(tensor: &FlexTensor) -> &[f32] {
    assert_eq!(tensor.dtype(), DType::F32, "the fast operations take f32");
    tensor.as_slice().expect("the tensor is contiguous")
}

fn geometry(x: [usize; 4], out: usize, kernel: [usize; 2], options: ConvOptions) -> Geometry {
    let [batch, height, width, channels] = x;
    Geometry { batch, size: [height, width], channels, out, kernel, options }
}

fn dims<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    tensor.shape().dims()
}

#[allow(unsafe_code, reason = "results are made in memory that the kernels fill")]
impl Kernels for Flex {
    fn conv2d_bias(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, options: ConvOptions) -> FlexTensor {
        if x.dtype() != DType::F32 {
            return stock::forward::<Self>(x, weight, bias, options);
        }
        let [out, _, rows, columns] = dims(&weight);
        let geometry = geometry(dims(&x), out, [rows, columns], options);
        let [x, weight, bias] = [x, weight, bias].map(|tensor| tensor.to_contiguous());
        let output = convolution::forward(slice(&x), slice(&weight), slice(&bias), &geometry);
        let [height, width] = geometry.output_size();
        // SAFETY: the convolution writes every output.
        unsafe { output.into_tensor([geometry.batch, height, width, out].into()) }
    }

    fn conv2d_input_gradient(
        weight: FlexTensor,
        gradient: FlexTensor,
        size: [usize; 2],
        options: ConvOptions,
    ) -> FlexTensor {
        if gradient.dtype() != DType::F32 {
            return stock::input_gradient::<Self>(weight, gradient, size, options);
        }
        let [out, channels, rows, columns] = dims(&weight);
        let shape = [dims::<4>(&gradient)[0], size[0], size[1], channels];
        let geometry = geometry(shape, out, [rows, columns], options);
        let [weight, gradient] = [weight, gradient].map(|tensor| tensor.to_contiguous());
        let output = convolution::input_gradient(slice(&weight), slice(&gradient), &geometry);
        // SAFETY: every input belongs to one class of the gradient, whose pixels are all written.
        unsafe { output.into_tensor(shape.into()) }
    }

    fn conv2d_weight_gradients(
        x: FlexTensor,
        gradient: FlexTensor,
        kernel: [usize; 2],
        options: ConvOptions,
    ) -> (FlexTensor, FlexTensor) {
        if x.dtype() != DType::F32 {
            return stock::weight_gradients::<Self>(x, gradient, kernel, options);
        }
        let [_, _, _, out] = dims(&gradient);
        let geometry = geometry(dims(&x), out, kernel, options);
        let [x, gradient] = [x, gradient].map(|tensor| tensor.to_contiguous());
        let (weight, bias) = convolution::weight_gradients(slice(&x), slice(&gradient), &geometry);
        // SAFETY: both are written in full.
        unsafe {
            (weight.into_tensor([out, geometry.channels, kernel[0], kernel[1]].into()), bias.into_tensor([out].into()))
        }
    }
}
