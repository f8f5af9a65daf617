use burn::tensor::ops::{FloatTensor, IntTensor};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime};

use super::normalization::{Passed, Seen};
use super::{convolution, elementwise, gate, images, lists, loss, normalization};
use crate::{ConvOptions, Kernels, SgdStep};

impl<R: CubeRuntime, BT: BoolElement> Kernels for CubeBackend<R, f32, i32, BT> {
    const ON_DEVICE: bool = true;

    fn conv2d_bias(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        groups: usize,
        options: ConvOptions,
    ) -> FloatTensor<Self> {
        convolution::conv2d_bias(x, weight, bias, groups, options)
    }

    fn conv2d_input_gradient(
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        size: [usize; 2],
        groups: usize,
        options: ConvOptions,
    ) -> FloatTensor<Self> {
        convolution::conv2d_input_gradient(weight, gradient, size, groups, options)
    }

    fn conv2d_weight_gradients(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        kernel: [usize; 2],
        groups: usize,
        options: ConvOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        convolution::conv2d_weight_gradients(x, gradient, kernel, groups, options)
    }

    fn batch_norm_relu(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        normalization::batch_norm_relu(&Seen::map(x), gamma, beta, epsilon)
    }

    fn batch_norm_relu_gradients(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let passed = Passed { gamma, beta, mean, variance, epsilon };
        let gradients = normalization::batch_norm_relu_gradients(&Seen::map(x), passed, gradient);
        (gradients.map, gradients.gamma, gradients.beta)
    }

    fn scale_shift_relu(x: FloatTensor<Self>, scale: FloatTensor<Self>, shift: FloatTensor<Self>) -> FloatTensor<Self> {
        normalization::scale_shift_relu(&Seen::map(x), scale, shift)
    }

    fn weighted_batch_norm_relu(
        map: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        normalization::batch_norm_relu(&Seen::weighed(map, weights, &gamma), gamma, beta, epsilon)
    }

    fn weighted_batch_norm_relu_gradients(
        map: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let seen = Seen::weighed(map, weights, &gamma);
        let passed = Passed { gamma, beta, mean, variance, epsilon };
        let gradients = normalization::batch_norm_relu_gradients(&seen, passed, gradient);
        let weights = gradients.weights.expect("a weighed map has weights");
        (gradients.map, weights, gradients.gamma, gradients.beta)
    }

    fn weighted_scale_shift_relu(
        map: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        normalization::scale_shift_relu(&Seen::weighed(map, weights, &scale), scale, shift)
    }

    fn average_positions(map: FloatTensor<Self>) -> FloatTensor<Self> {
        elementwise::average_positions(map)
    }

    fn average_positions_gradient(gradient: FloatTensor<Self>, size: [usize; 2]) -> FloatTensor<Self> {
        elementwise::average_positions_gradient(gradient, size)
    }

    fn choose_patches(
        scores: FloatTensor<Self>,
        selected: usize,
        softmax_first: bool,
    ) -> (FloatTensor<Self>, IntTensor<Self>) {
        gate::choose_patches(scores, selected, softmax_first)
    }

    fn choose_patches_gradient(
        scores: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        softmax_first: bool,
    ) -> FloatTensor<Self> {
        gate::choose_patches_gradient(scores, weights, gradient, softmax_first)
    }

    fn join(parts: Vec<FloatTensor<Self>>) -> FloatTensor<Self> {
        lists::join(parts)
    }

    fn split(joined: FloatTensor<Self>, parts: usize) -> Vec<FloatTensor<Self>> {
        lists::split(joined, parts)
    }

    fn cross_entropy(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        loss::cross_entropy(logits, labels)
    }

    fn average_statistics(
        means: Vec<FloatTensor<Self>>,
        variances: Vec<FloatTensor<Self>>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        momentum: f64,
    ) -> (Vec<FloatTensor<Self>>, Vec<FloatTensor<Self>>) {
        lists::average_statistics(means, variances, mean, variance, momentum)
    }

    fn fold_statistics(lists: [Vec<FloatTensor<Self>>; 4], epsilon: f64) -> (FloatTensor<Self>, FloatTensor<Self>) {
        lists::fold_statistics(lists, epsilon)
    }

    fn take_images(
        pixels: IntTensor<Self>,
        draws: IntTensor<Self>,
        shape: [usize; 3],
        padding: usize,
    ) -> FloatTensor<Self> {
        images::take_images(pixels, draws, shape, padding)
    }

    fn sgd_step(
        parameters: Vec<FloatTensor<Self>>,
        gradients: Vec<FloatTensor<Self>>,
        velocities: Vec<FloatTensor<Self>>,
        step: SgdStep,
    ) -> (Vec<FloatTensor<Self>>, Vec<FloatTensor<Self>>) {
        lists::sgd_step(parameters, gradients, velocities, step)
    }
}
