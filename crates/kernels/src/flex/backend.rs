use burn::tensor::ops::FloatTensorOps;
use burn::tensor::{DType, Shape, Tensor, TensorData, TensorMetadata};
use burn_flex::{Flex, FlexTensor};

use super::buffer::Buffer;
use super::convolution::{self, Around, Geometry, Layer, Operands};
use super::elementwise;
use super::experts::{self, Weighted};
use super::gathering::Gathering;
use super::normalization::{self, Gradient, InputConstants, Normalization, Statistics};
use super::rows::{Plain, Rows};
use crate::primitives::primitive;
use crate::{ConvOptions, InferenceConv, Kernels, Precision, stock};

/// The tensor's values in order; the tensor must be contiguous.
fn slice(tensor: &FlexTensor) -> &[f32] {
    assert_eq!(tensor.dtype(), DType::F32, "the fast operations take f32");
    tensor.as_slice().expect("the tensor is contiguous")
}

/// The tensor with its values in order, without a copy if they are.
fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.layout().contiguous_offsets().is_some() { tensor } else { tensor.to_contiguous() }
}

fn geometry(x: [usize; 4], out: usize, kernel: [usize; 2], groups: usize, options: ConvOptions) -> Geometry {
    let [batch, height, width, channels] = x;
    Geometry { batch, size: [height, width], groups, channels: channels / groups, out: out / groups, kernel, options }
}

/// A convolution in inference whose tensors are contiguous.
struct Held {
    weight: FlexTensor,
    bias: FlexTensor,
    before: Option<[FlexTensor; 2]>,
    after: Option<[FlexTensor; 2]>,
    groups: usize,
    options: ConvOptions,
}

impl Held {
    fn of(conv: InferenceConv<Flex>) -> Self {
        let InferenceConv { before, weight, bias, after, groups, options, .. } = conv;
        let normalization =
            |both: Option<[Tensor<Flex, 1>; 2]>| both.map(|both| both.map(|values| contiguous(primitive(values))));
        let (before, after) = (normalization(before), normalization(after));
        Self {
            weight: contiguous(primitive(weight)),
            bias: contiguous(primitive(bias)),
            before,
            after,
            groups,
            options,
        }
    }

    /// The convolution of an input of this shape.
    fn layer(&self, x: [usize; 4]) -> Layer<'_> {
        let [out, _, rows, columns] = dims(&self.weight);
        let geometry = geometry(x, out, [rows, columns], self.groups, self.options);
        let [before, after] =
            [&self.before, &self.after].map(|both| both.as_ref().map(|both| [slice(&both[0]), slice(&both[1])]));
        let around = Around { before, after };
        Layer { weight: slice(&self.weight), bias: slice(&self.bias), geometry, around }
    }
}

fn output_shape(geometry: &Geometry) -> [usize; 4] {
    let [height, width] = geometry.output_size();
    [geometry.batch, height, width, geometry.groups * geometry.out]
}

/// What convolutions multiply in the precision in use; TF32 is a GPU's alone.
fn operands() -> Operands {
    match Precision::chosen() {
        Precision::F32 | Precision::Tf32 => Operands::F32,
        Precision::Bf16 => Operands::Bf16,
    }
}

fn dims<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    tensor.shape().dims()
}

/// The rows of a contiguous tensor `[.., channel]`.
fn plain(x: &FlexTensor) -> Plain<'_> {
    let shape = x.shape();
    Plain { map: slice(x), channels: shape[shape.num_dims() - 1] }
}

/// What a batch normalization was done with, from contiguous tensors.
fn normalization_of<'a>(
    [gamma, beta]: [&'a FlexTensor; 2],
    [mean, variance]: [&FlexTensor; 2],
    epsilon: f64,
) -> Normalization<'a> {
    let statistics = Statistics { mean: slice(mean).to_vec(), variance: slice(variance).to_vec() };
    Normalization { gamma: slice(gamma), beta: slice(beta), statistics, epsilon }
}

/// Rows normalized by their own statistics, as a tensor of this shape, and the statistics.
#[allow(unsafe_code, reason = "the result is made in memory that the kernel fills")]
fn batch_norm_relu<const SUMS: usize>(
    rows: &impl Rows<SUMS>,
    shape: Shape,
    gamma: &FlexTensor,
    beta: &FlexTensor,
    epsilon: f64,
) -> (FlexTensor, FlexTensor, FlexTensor) {
    let statistics = normalization::statistics(rows);
    let (scale, shift) = normalization::scale_and_shift(&statistics, slice(gamma), slice(beta), epsilon);
    let output = normalization::scale_shift_relu(rows, &scale, &shift);
    // SAFETY: every row was written.
    let output = unsafe { output.into_tensor(shape) };
    (output, vector(statistics.mean), vector(statistics.variance))
}

/// Gradients of a map's rows, of the constants' making, and of two parameters.
fn rows_gradients(
    x: &FlexTensor,
    gradient: FlexTensor,
    constants: impl FnOnce(&Plain, &[f32]) -> (InputConstants, [Vec<f32>; 2]),
) -> (FlexTensor, FlexTensor, FlexTensor) {
    let rows = plain(x);
    let (output, [first, second]) = over(gradient, |gradient| {
        let (constants, parameters) = constants(&rows, gradient.read());
        normalization::input_gradient(rows, gradient, &constants);
        parameters
    });
    (output, vector(first), vector(second))
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
    let (start, end) = gradient.layout().contiguous_offsets().expect("the gradient is contiguous");
    if let Some(values) = gradient.try_storage_mut() {
        let result = work(Gradient::Owned(&mut values[start..end]));
        (gradient, result)
    } else {
        let mut output = Buffer::new(gradient.shape().num_elements());
        let result = work(Gradient::Shared(slice(&gradient), output.values()));
        // SAFETY: the work writes all of the gradient.
        (unsafe { output.into_tensor(gradient.shape()) }, result)
    }
}

/// Runs work on a contiguous map `[batch, height, width, channel]` and weights `[batch, expert, position]`.
fn with_weighted<T>(map: &FlexTensor, weights: &FlexTensor, work: impl FnOnce(Weighted) -> T) -> T {
    let [_, _, _, channels] = dims(map);
    let [_, experts, positions] = dims(weights);
    let weights = experts::by_position(slice(weights), experts, positions);
    work(Weighted { map: slice(map), channels, weights: &weights, experts })
}

fn weighted_shape(map: &FlexTensor, weights: &FlexTensor) -> Shape {
    let [batch, height, width, channels] = dims(map);
    let [_, experts, _] = dims(weights);
    [batch, height, width, experts * channels].into()
}

/// Runs work on contiguous patches `[batch, patch, position, channel]`, weights `[batch, expert, patch]` and a selection
/// `[batch, expert, selected]`.
fn with_gathering<T>(
    patches: &FlexTensor,
    weights: &FlexTensor,
    indices: FlexTensor,
    work: impl FnOnce(Gathering) -> T,
) -> T {
    let [_, count, positions, channels] = dims(patches);
    let [_, experts, selected] = dims(&indices);
    let indices: Vec<usize> = indices.into_data().iter::<i64>().map(|index| index as usize).collect();
    let (patches, weights, indices) = (slice(patches), slice(weights), indices.as_slice());
    work(Gathering { patches, weights, indices, count, positions, channels, experts, selected })
}

#[allow(unsafe_code, reason = "results are made in memory that the kernels fill")]
impl Kernels for Flex {
    fn conv2d_bias(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        groups: usize,
        options: ConvOptions,
    ) -> FlexTensor {
        if x.dtype() != DType::F32 {
            return stock::convolution::forward::<Self>(x, weight, bias, groups, options);
        }
        let [out, _, rows, columns] = dims(&weight);
        let geometry = geometry(dims(&x), out, [rows, columns], groups, options);
        let [x, weight, bias] = [x, weight, bias].map(contiguous);
        let output = convolution::forward(slice(&x), slice(&weight), slice(&bias), &geometry, operands());
        let [height, width] = geometry.output_size();
        // SAFETY: the convolution writes every output.
        unsafe { output.into_tensor([geometry.batch, height, width, out].into()) }
    }

    fn dense(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        if x.dtype() != DType::F32 {
            return stock::elementwise::dense::<Self>(x, weight, bias);
        }
        let ([rows, input], [out, _]) = (dims(&x), dims(&weight));
        // As a convolution of single pixels, of which an image is what one thread does at a time.
        let images = if rows.is_multiple_of(64) { rows / 64 } else { 1 };
        let shape = [images, 1, rows / images.max(1), input];
        let geometry = geometry(shape, out, [1, 1], 1, ConvOptions::symmetric([1, 1], 1));
        let [x, weight, bias] = [x, weight, bias].map(contiguous);
        let output = convolution::forward(slice(&x), slice(&weight), slice(&bias), &geometry, Operands::F32);
        // SAFETY: the convolution writes every output.
        unsafe { output.into_tensor([rows, out].into()) }
    }

    fn inference_conv2d(x: FlexTensor, conv: InferenceConv<Self>) -> FlexTensor {
        // What is added to an output that is normalized afterwards cannot wait there already.
        if x.dtype() != DType::F32 || (conv.added.is_some() && conv.after.is_some()) {
            return stock::convolution::inference::<Self>(x, conv);
        }
        let x = contiguous(x);
        let added = conv.added.clone();
        let held = Held::of(conv);
        let layer = held.layer(dims(&x));
        let shape = output_shape(&layer.geometry);
        let Some(added) = added else {
            let output = convolution::infer(slice(&x), layer, operands());
            // SAFETY: the convolution writes every output.
            return unsafe { output.into_tensor(shape.into()) };
        };
        let mut output = contiguous(primitive(added));
        if output.try_storage_mut::<f32>().is_none() {
            // Somebody else still reads it.
            output = FlexTensor::from_data(TensorData::new(slice(&output).to_vec(), output.shape()));
        }
        let (start, end) = output.layout().contiguous_offsets().expect("the tensor is contiguous");
        let values = output.try_storage_mut().expect("nobody else holds the copy");
        convolution::add_inferred(slice(&x), layer, operands(), &mut values[start..end]);
        output
    }

    fn inference_residual(x: FlexTensor, layers: [InferenceConv<Self>; 3]) -> FlexTensor {
        // The second branch is added to what the shortcut has written.
        if x.dtype() != DType::F32 || layers[1].after.is_some() {
            return stock::convolution::residual::<Self>(x, layers);
        }
        let x = contiguous(x);
        let [first, second, shortcut] = layers.map(Held::of);
        let first = first.layer(dims(&x));
        let second = second.layer(output_shape(&first.geometry));
        let shape = output_shape(&second.geometry);
        let output = convolution::residual(slice(&x), [first, second, shortcut.layer(dims(&x))], operands());
        // SAFETY: the shortcut writes every output.
        unsafe { output.into_tensor(shape.into()) }
    }

    fn conv2d_input_gradient(
        weight: FlexTensor,
        gradient: FlexTensor,
        size: [usize; 2],
        groups: usize,
        options: ConvOptions,
    ) -> FlexTensor {
        if gradient.dtype() != DType::F32 {
            return stock::convolution::input_gradient::<Self>(weight, gradient, size, groups, options);
        }
        let [out, channels, rows, columns] = dims(&weight);
        let shape = [dims::<4>(&gradient)[0], size[0], size[1], groups * channels];
        let geometry = geometry(shape, out, [rows, columns], groups, options);
        let [weight, gradient] = [weight, gradient].map(contiguous);
        let output = convolution::input_gradient(slice(&weight), slice(&gradient), &geometry, operands());
        // SAFETY: every input belongs to one class of the gradient, whose pixels are all written.
        unsafe { output.into_tensor(shape.into()) }
    }

    fn conv2d_weight_gradients(
        x: FlexTensor,
        gradient: FlexTensor,
        kernel: [usize; 2],
        groups: usize,
        options: ConvOptions,
    ) -> (FlexTensor, FlexTensor) {
        if x.dtype() != DType::F32 {
            return stock::convolution::weight_gradients::<Self>(x, gradient, kernel, groups, options);
        }
        let [_, _, _, out] = dims(&gradient);
        let geometry = geometry(dims(&x), out, kernel, groups, options);
        let [x, gradient] = [x, gradient].map(contiguous);
        let (weight, bias) = convolution::weight_gradients(slice(&x), slice(&gradient), &geometry, operands());
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
            return stock::normalization::batch_norm_relu::<Self>(x, gamma, beta, epsilon);
        }
        let [x, gamma, beta] = [x, gamma, beta].map(contiguous);
        batch_norm_relu(&plain(&x), x.shape(), &gamma, &beta, epsilon)
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
            return stock::normalization::batch_norm_relu_gradients::<Self>(
                x, gamma, beta, mean, variance, gradient, epsilon,
            );
        }
        let [x, gamma, beta, mean, variance] = [x, gamma, beta, mean, variance].map(contiguous);
        rows_gradients(&x, gradient, |rows, gradient| {
            normalization::batch_norm_constants(
                rows,
                gradient,
                normalization_of([&gamma, &beta], [&mean, &variance], epsilon),
            )
        })
    }

    fn scale_shift_relu(x: FlexTensor, scale: FlexTensor, shift: FlexTensor) -> FlexTensor {
        if x.dtype() != DType::F32 {
            return stock::normalization::scale_shift_relu::<Self>(x, scale, shift);
        }
        let [x, scale, shift] = [x, scale, shift].map(contiguous);
        let output = normalization::scale_shift_relu(&plain(&x), slice(&scale), slice(&shift));
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
            return stock::normalization::scale_shift_relu_gradients::<Self>(x, scale, shift, gradient);
        }
        let [x, scale, shift] = [x, scale, shift].map(contiguous);
        rows_gradients(&x, gradient, |rows, gradient| {
            normalization::scale_shift_constants(rows, gradient, [slice(&scale), slice(&shift)])
        })
    }

    fn weighted_batch_norm_relu(
        map: FlexTensor,
        weights: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        epsilon: f64,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let members = stock::experts::members::<Self>(&map, &weights, &gamma);
        if map.dtype() != DType::F32 || members > 1 {
            let seen = stock::experts::weigh::<Self>(map, weights, members);
            return Self::batch_norm_relu(seen, gamma, beta, epsilon);
        }
        let [map, weights, gamma, beta] = [map, weights, gamma, beta].map(contiguous);
        let shape = weighted_shape(&map, &weights);
        with_weighted(&map, &weights, |weighted| batch_norm_relu(&weighted, shape, &gamma, &beta, epsilon))
    }

    fn weighted_batch_norm_relu_gradients(
        map: FlexTensor,
        weights: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        mean: FlexTensor,
        variance: FlexTensor,
        gradient: FlexTensor,
        epsilon: f64,
    ) -> (FlexTensor, FlexTensor, FlexTensor, FlexTensor) {
        let members = stock::experts::members::<Self>(&map, &weights, &gamma);
        if map.dtype() != DType::F32 || members > 1 {
            let seen = stock::experts::weigh::<Self>(map.clone(), weights.clone(), members);
            let (gradient, gamma, beta) =
                Self::batch_norm_relu_gradients(seen, gamma, beta, mean, variance, gradient, epsilon);
            let (map, weights) = stock::experts::weigh_gradients::<Self>(map, weights, gradient, members);
            return (map, weights, gamma, beta);
        }
        let [map, weights, gamma, beta] = [map, weights, gamma, beta].map(contiguous);
        let [mean, variance, gradient] = [mean, variance, gradient].map(contiguous);
        let [batch, experts, positions] = dims(&weights);
        with_weighted(&map, &weights, |weighted| {
            let normalization = normalization_of([&gamma, &beta], [&mean, &variance], epsilon);
            let (map_gradient, weights_gradient, [gamma, beta]) =
                weighted.batch_norm_relu_gradients(slice(&gradient), normalization);
            // SAFETY: every row was written.
            let map_gradient = unsafe { map_gradient.into_tensor(map.shape()) };
            let weights_gradient = experts::by_position(&weights_gradient, positions, experts);
            let weights_gradient =
                FlexTensor::from_data(TensorData::new(weights_gradient, [batch, experts, positions]));
            (map_gradient, weights_gradient, vector(gamma), vector(beta))
        })
    }

    fn weighted_scale_shift_relu(
        map: FlexTensor,
        weights: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
    ) -> FlexTensor {
        let members = stock::experts::members::<Self>(&map, &weights, &scale);
        if map.dtype() != DType::F32 || members > 1 {
            let seen = stock::experts::weigh::<Self>(map, weights, members);
            return Self::scale_shift_relu(seen, scale, shift);
        }
        let [map, weights, scale, shift] = [map, weights, scale, shift].map(contiguous);
        with_weighted(&map, &weights, |weighted| {
            let output = normalization::scale_shift_relu(&weighted, slice(&scale), slice(&shift));
            // SAFETY: every row was written.
            unsafe { output.into_tensor(weighted_shape(&map, &weights)) }
        })
    }

    fn gather_weighted(patches: FlexTensor, weights: FlexTensor, indices: FlexTensor) -> FlexTensor {
        if patches.dtype() != DType::F32 {
            return stock::gathering::gather_weighted::<Self>(patches, weights, indices);
        }
        let [patches, weights] = [patches, weights].map(contiguous);
        let [batch, _, positions, channels] = dims(&patches);
        let [_, experts, selected] = dims(&indices);
        let output = with_gathering(&patches, &weights, indices, |gathering| gathering.forward());
        // SAFETY: every place of the selection was written.
        unsafe { output.into_tensor([batch, selected, positions, experts * channels].into()) }
    }

    fn gather_weighted_gradients(
        patches: FlexTensor,
        weights: FlexTensor,
        indices: FlexTensor,
        gradient: FlexTensor,
    ) -> (FlexTensor, FlexTensor) {
        if patches.dtype() != DType::F32 {
            return stock::gathering::gather_weighted_gradients::<Self>(patches, weights, indices, gradient);
        }
        let [patches, weights, gradient] = [patches, weights, gradient].map(contiguous);
        let (patches_gradient, weights_gradient) =
            with_gathering(&patches, &weights, indices, |gathering| gathering.gradients(slice(&gradient)));
        let weights_gradient = FlexTensor::from_data(TensorData::new(weights_gradient, dims::<3>(&weights)));
        // SAFETY: every image's gradient was set to zero first.
        (unsafe { patches_gradient.into_tensor(patches.shape()) }, weights_gradient)
    }

    fn add(left: FlexTensor, right: FlexTensor) -> FlexTensor {
        if left.dtype() != DType::F32 {
            return Self::float_add(left, right);
        }
        let [mut left, mut right] = [left, right].map(contiguous);
        if left.try_storage_mut::<f32>().is_none() {
            std::mem::swap(&mut left, &mut right);
        }
        let (start, end) = left.layout().contiguous_offsets().expect("the tensor is contiguous");
        if let Some(values) = left.try_storage_mut() {
            elementwise::add_assign(&mut values[start..end], slice(&right));
            return left;
        }
        let output = elementwise::add(slice(&left), slice(&right));
        // SAFETY: every sum was written.
        unsafe { output.into_tensor(left.shape()) }
    }

    fn average_positions(map: FlexTensor) -> FlexTensor {
        if map.dtype() != DType::F32 {
            return stock::elementwise::average_positions::<Self>(map);
        }
        let map = contiguous(map);
        let [batch, height, width, channels] = dims(&map);
        let output = elementwise::average_positions(slice(&map), height * width, channels);
        // SAFETY: every average was written.
        unsafe { output.into_tensor([batch, channels].into()) }
    }

    fn average_positions_gradient(gradient: FlexTensor, [height, width]: [usize; 2]) -> FlexTensor {
        if gradient.dtype() != DType::F32 {
            return stock::elementwise::average_positions_gradient::<Self>(gradient, [height, width]);
        }
        let gradient = contiguous(gradient);
        let [batch, channels] = dims(&gradient);
        let output = elementwise::average_positions_gradient(slice(&gradient), height * width, channels);
        // SAFETY: every position was written.
        unsafe { output.into_tensor([batch, height, width, channels].into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{pairs, simd};
    use super::*;

    fn values(seed: u32, shape: &[usize]) -> FlexTensor {
        let count = shape.iter().product::<usize>() as u32;
        let value =
            |index: u32| (index.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 8) as f32 / 8_388_608.0 - 1.0;
        FlexTensor::from_data(TensorData::new((0..count).map(value).collect::<Vec<_>>(), shape.to_vec()))
    }

    /// Everything a set of instructions could do differently, for odd and even channels.
    fn everything() -> Vec<Vec<f32>> {
        let mut results = Vec::new();
        let mut keep = |tensors: &[FlexTensor]| {
            results.extend(tensors.iter().map(|tensor| slice(&contiguous(tensor.clone())).to_vec()));
        };
        for (channels, out, groups) in [(16, 32, 1), (5, 23, 1), (12, 9, 3), (64, 16, 1)] {
            let options = ConvOptions::same([9, 17], [3, 3], 1 + out % 2);
            let [height, width] = options.output_size([9, 17], [3, 3]);
            let x = values(1, &[3, 9, 17, channels]);
            let weight = values(2, &[out, channels / groups, 3, 3]);
            let gradient = values(3, &[3, height, width, out]);
            let output = Flex::conv2d_bias(x.clone(), weight.clone(), values(4, &[out]), groups, options);
            let input = Flex::conv2d_input_gradient(weight, gradient.clone(), [9, 17], groups, options);
            let (weight, bias) = Flex::conv2d_weight_gradients(x, gradient, [3, 3], groups, options);
            keep(&[output, input, weight, bias]);
        }
        for channels in [3, 16, 37] {
            let x = values(5, &[2, 7, 11, channels]);
            let [gamma, beta] = [values(6, &[channels]), values(7, &[channels])];
            let gradient = values(8, &[2, 7, 11, channels]);
            let (output, mean, variance) = Flex::batch_norm_relu(x.clone(), gamma.clone(), beta.clone(), 1e-3);
            let (dx, dgamma, dbeta) = Flex::batch_norm_relu_gradients(
                x.clone(),
                gamma.clone(),
                beta.clone(),
                mean.clone(),
                variance.clone(),
                gradient,
                1e-3,
            );
            keep(&[output, mean, variance, dx, dgamma, dbeta]);
            let weights = values(9, &[2, 2, 77]);
            let [gamma, beta] = [values(10, &[2 * channels]), values(11, &[2 * channels])];
            let (output, mean, variance) =
                Flex::weighted_batch_norm_relu(x.clone(), weights.clone(), gamma.clone(), beta.clone(), 1e-3);
            let gradient = values(12, &[2, 7, 11, 2 * channels]);
            let (map, weights, gamma, beta) =
                Flex::weighted_batch_norm_relu_gradients(x, weights, gamma, beta, mean, variance, gradient, 1e-3);
            keep(&[output, map, weights, gamma, beta]);
        }
        results.extend(by_tiles(Operands::F32));
        results
    }

    #[allow(unsafe_code, reason = "what is written in full is read")]
    /// Outputs and gradients of convolutions with strides, groups, odd sides and channels of any number.
    fn convolved(operands: Operands, round: impl Fn(&FlexTensor) -> FlexTensor) -> Vec<Vec<f32>> {
        let mut results = Vec::new();
        let shapes = [
            (16, 32, 1, 3, 1),
            (16, 32, 1, 3, 2),
            (6, 22, 1, 3, 1),
            (12, 18, 3, 1, 2),
            (8, 4, 2, 5, 2),
            (64, 48, 1, 1, 1),
            (3, 5, 1, 3, 1),
        ];
        for (channels, out, groups, kernel, stride) in shapes {
            let size = [9, 17];
            let options = ConvOptions::same(size, [kernel; 2], stride);
            let [height, width] = options.output_size(size, [kernel; 2]);
            let x = round(&values(1, &[3, 9, 17, channels]));
            let weight = round(&values(2, &[out, channels / groups, kernel, kernel]));
            let gradient = round(&values(3, &[3, height, width, out]));
            let geometry = geometry(dims(&x), out, [kernel; 2], groups, options);
            let bias = values(4, &[out]);
            let output = convolution::forward(slice(&x), slice(&weight), slice(&bias), &geometry, operands);
            let input = convolution::input_gradient(slice(&weight), slice(&gradient), &geometry, operands);
            let (weight, bias) = convolution::weight_gradients(slice(&x), slice(&gradient), &geometry, operands);
            // SAFETY: convolutions and gradients are written in full.
            results.extend([output, input, weight, bias].map(|buffer| unsafe { buffer.written().to_vec() }));
        }
        results
    }

    #[allow(unsafe_code, reason = "what is written in full is read")]
    /// A convolution in inference by tiles, for whole and for partial vectors.
    fn by_tiles(operands: Operands) -> Vec<Vec<f32>> {
        [(32, 64), (38, 45)]
            .map(|(channels, out)| {
                let x = values(1, &[3, 8, 12, channels]);
                let weight = values(2, &[out, channels, 3, 3]);
                let geometry = geometry(dims(&x), out, [3, 3], 1, ConvOptions::same([8, 12], [3, 3], 1));
                let bias = values(3, &[out]);
                let around = Around { before: None, after: None };
                let layer = Layer { weight: slice(&weight), bias: slice(&bias), geometry, around };
                let output = convolution::infer(slice(&x), layer, operands);
                // SAFETY: convolutions are written in full.
                unsafe { output.written().to_vec() }
            })
            .to_vec()
    }

    fn rounded(tensor: &FlexTensor) -> FlexTensor {
        let values = slice(tensor).iter().map(|value| f32::from_bits(pairs::pair(0.0, *value).to_bits())).collect();
        FlexTensor::from_data(TensorData::new::<f32, _>(values, tensor.shape()))
    }

    #[test]
    fn products_of_bf16_are_those_of_rounded_values() {
        let _turn = simd::alone();
        let found = convolved(Operands::Bf16, FlexTensor::clone);
        let expected = convolved(Operands::F32, rounded);
        let unrounded = convolved(Operands::F32, FlexTensor::clone);
        for (index, ((found, expected), unrounded)) in found.iter().zip(&expected).zip(&unrounded).enumerate() {
            // Sums of what is not paired, of three channels or of the bias, take values as they are.
            let (odd, bias) = (index / 4 == 6, index % 4 == 3);
            let pairs = !(bias || odd && index % 4 < 2);
            let expected = if pairs { expected } else { unrounded };
            let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            let mut differs = false;
            for ((found, expected), unrounded) in found.iter().zip(expected).zip(unrounded) {
                assert!((found - expected).abs() <= 2e-6 * largest, "result {index}: {found}, expected {expected}");
                differs |= (found - unrounded).abs() > 1e-5 * largest;
            }
            assert_eq!(differs, pairs, "result {index}");
        }
    }

    #[test]
    fn every_set_of_instructions_multiplies_bf16_to_the_bit() {
        let results = simd::with_every_set(|| {
            let mut results = by_tiles(Operands::Bf16);
            results.extend(convolved(Operands::Bf16, FlexTensor::clone));
            results
        });
        for other in &results[1..] {
            // The last shape has an odd number of channels, whose values are multiplied as they are.
            for (index, (found, expected)) in other.iter().zip(&results[0]).enumerate().take(2 + 6 * 4) {
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                assert!(bits(found) == bits(expected), "result {index}");
            }
        }
    }

    #[test]
    fn every_set_of_instructions_computes_the_same() {
        let results = simd::with_every_set(everything);
        for other in &results[1..] {
            for (index, (found, expected)) in other.iter().zip(&results[0]).enumerate() {
                let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
                for (found, expected) in found.iter().zip(expected) {
                    assert!((found - expected).abs() <= 1e-5 * largest, "result {index}: {found}, expected {expected}");
                }
            }
        }
    }
}
