//! The operations on burn's CPU backend.

mod buffer;
mod convolution;
mod normalization;
mod panels;
mod simd;
mod tile;

use burn::tensor::{DType, TensorData, TensorMetadata};
use burn_flex::{Flex, FlexTensor};

use crate::convolution::stock as stock_convolution;
use crate::normalization::stock as stock_normalization;
use crate::{ConvOptions, Kernels};
use buffer::Buffer;
use convolution::Geometry;
use normalization::{Gradient, Normalization, Statistics};

/// The tensor's values in order; the tensor must be contiguous.
fn slice(tensor: &FlexTensor) -> &[f32] {
    assert_eq!(tensor.dtype(), DType::F32, "the fast operations take f32");
    tensor.as_slice().expect("the tensor is contiguous")
}

/// The tensor with its values in order; the only holder of its memory if it was before.
#[allow(clippy::needless_pass_by_value, reason = "the tensor must be let go for its copy to be the only holder")]
fn contiguous(tensor: FlexTensor) -> FlexTensor {
    tensor.to_contiguous()
}

fn geometry(x: [usize; 4], out: usize, kernel: [usize; 2], options: ConvOptions) -> Geometry {
    let [batch, height, width, channels] = x;
    Geometry { batch, size: [height, width], channels, out, kernel, options }
}

fn dims<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    tensor.shape().dims()
}

fn vector(values: Vec<f32>) -> FlexTensor {
    let length = values.len();
    FlexTensor::from_data(TensorData::new(values, [length]))
}

/// Runs work that turns an output's gradient into an input's of the same shape, in place if nobody else holds it.
#[allow(unsafe_code, reason = "the result is made in memory that the work fills")]
fn over<T>(gradient: FlexTensor, work: impl FnOnce(Gradient) -> T) -> (FlexTensor, T) {
    let mut gradient = contiguous(gradient);
    assert_eq!(gradient.dtype(), DType::F32, "the fast operations take f32");
    if let Some(values) = gradient.try_storage_mut() {
        let result = work(Gradient::Owned(values));
        (gradient, result)
    } else {
        let mut output = Buffer::new(gradient.shape().num_elements());
        let result = work(Gradient::Shared(slice(&gradient), output.values()));
        // SAFETY: the work writes all of the gradient.
        (unsafe { output.into_tensor(gradient.shape()) }, result)
    }
}

#[allow(unsafe_code, reason = "results are made in memory that the kernels fill")]
impl Kernels for Flex {
    fn conv2d_bias(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, options: ConvOptions) -> FlexTensor {
        if x.dtype() != DType::F32 {
            return stock_convolution::forward::<Self>(x, weight, bias, options);
        }
        let [out, _, rows, columns] = dims(&weight);
        let geometry = geometry(dims(&x), out, [rows, columns], options);
        let [x, weight, bias] = [x, weight, bias].map(contiguous);
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
            return stock_convolution::input_gradient::<Self>(weight, gradient, size, options);
        }
        let [out, channels, rows, columns] = dims(&weight);
        let shape = [dims::<4>(&gradient)[0], size[0], size[1], channels];
        let geometry = geometry(shape, out, [rows, columns], options);
        let [weight, gradient] = [weight, gradient].map(contiguous);
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
            return stock_convolution::weight_gradients::<Self>(x, gradient, kernel, options);
        }
        let [_, _, _, out] = dims(&gradient);
        let geometry = geometry(dims(&x), out, kernel, options);
        let [x, gradient] = [x, gradient].map(contiguous);
        let (weight, bias) = convolution::weight_gradients(slice(&x), slice(&gradient), &geometry);
        // SAFETY: both are written in full.
        unsafe {
            (weight.into_tensor([out, geometry.channels, kernel[0], kernel[1]].into()), bias.into_tensor([out].into()))
        }
    }

    fn batch_norm_relu(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        epsilon: f64,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        if x.dtype() != DType::F32 {
            return stock_normalization::batch_norm_relu::<Self>(x, gamma, beta, epsilon);
        }
        let [x, gamma, beta] = [x, gamma, beta].map(contiguous);
        let statistics = normalization::statistics(slice(&x), slice(&gamma).len());
        let (scale, shift) = normalization::scale_and_shift(&statistics, slice(&gamma), slice(&beta), epsilon);
        let output = normalization::scale_shift_relu(slice(&x), &scale, &shift);
        // SAFETY: every row was written.
        let output = unsafe { output.into_tensor(x.shape()) };
        (output, vector(statistics.mean), vector(statistics.variance))
    }

    fn batch_norm_relu_gradients(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        mean: FlexTensor,
        variance: FlexTensor,
        gradient: FlexTensor,
        epsilon: f64,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        if x.dtype() != DType::F32 {
            return stock_normalization::batch_norm_relu_gradients::<Self>(
                x, gamma, beta, mean, variance, gradient, epsilon,
            );
        }
        let [x, gamma, beta, mean, variance] = [x, gamma, beta, mean, variance].map(contiguous);
        let normalization = Normalization {
            gamma: slice(&gamma),
            beta: slice(&beta),
            statistics: Statistics { mean: slice(&mean).to_vec(), variance: slice(&variance).to_vec() },
            epsilon,
        };
        let (output, (gamma, beta)) =
            over(gradient, |gradient| normalization::batch_norm_relu_gradients(slice(&x), &normalization, gradient));
        (output, vector(gamma), vector(beta))
    }

    fn scale_shift_relu(x: FlexTensor, scale: FlexTensor, shift: FlexTensor) -> FlexTensor {
        if x.dtype() != DType::F32 {
            return stock_normalization::scale_shift_relu::<Self>(x, scale, shift);
        }
        let [x, scale, shift] = [x, scale, shift].map(contiguous);
        let output = normalization::scale_shift_relu(slice(&x), slice(&scale), slice(&shift));
        // SAFETY: every row was written.
        unsafe { output.into_tensor(x.shape()) }
    }

    fn scale_shift_relu_gradients(
        x: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        gradient: FlexTensor,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        if x.dtype() != DType::F32 {
            return stock_normalization::scale_shift_relu_gradients::<Self>(x, scale, shift, gradient);
        }
        let [x, scale, shift] = [x, scale, shift].map(contiguous);
        let (output, (scale, shift)) = over(gradient, |gradient| {
            normalization::scale_shift_relu_gradients(slice(&x), slice(&scale), slice(&shift), gradient)
        });
        (output, vector(scale), vector(shift))
    }
}
