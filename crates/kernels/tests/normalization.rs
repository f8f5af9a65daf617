//! Batch normalization and the inference form against burn's elementwise operations, values and gradients.

mod support;

use burn::backend::Autodiff;
use burn::tensor::activation::relu;
use burn::tensor::{Tensor, backend::Backend};
use burn_flex::Flex;
use burn_ndarray::NdArray;
use patchdoor_kernels::{batch_norm_relu, differentiate, scale_shift_relu};
use support::{Diff, assert_close, leaf, numbers, on_threads, random};

const EPSILON: f64 = 1e-3;

fn plain<B: Backend>(x: Tensor<B, 2>, gamma: Tensor<B, 1>, beta: Tensor<B, 1>) -> Tensor<B, 2> {
    relu(normalized(x, gamma, beta))
}

fn normalized<B: Backend>(x: Tensor<B, 2>, gamma: Tensor<B, 1>, beta: Tensor<B, 1>) -> Tensor<B, 2> {
    let mean = x.clone().mean_dim(0);
    let variance = (x.clone() - mean.clone()).powi_scalar(2).mean_dim(0);
    (x - mean) / (variance + EPSILON).sqrt() * gamma.unsqueeze() + beta.unsqueeze()
}

/// The same values in f64 on the backend of reference.
fn exact<const D: usize>(tensor: Tensor<Diff, D>) -> Tensor<Autodiff<NdArray<f64>>, D> {
    Tensor::from_data(tensor.inner().into_data().convert::<f64>(), &burn_ndarray::NdArrayDevice::default())
}

fn single<const D: usize>(tensor: Tensor<NdArray<f64>, D>) -> Tensor<Flex, D> {
    Tensor::from_data(tensor.into_data().convert::<f32>(), &burn_flex::FlexDevice)
}

/// No gradient where rounding decides whether the rectifier is open.
fn away_from_corner(upstream: Tensor<Diff, 2>, before: Tensor<Diff, 2>) -> Tensor<Diff, 2> {
    upstream.mask_fill(before.detach().abs().lower_elem(1e-4), 0.0)
}

const SHAPES: [[usize; 2]; 8] = [[1, 1], [2, 3], [64, 16], [77, 160], [1000, 5], [513, 33], [4099, 16], [130, 640]];

#[test]
fn batch_norm_relu_agrees_with_burn_on_values_and_gradients() {
    differentiate(|| {
        for shape in SHAPES {
            let [rows, channels] = shape;
            // Means far from zero show whether the variance is computed safely.
            let x = (random::<2>(1, shape) * 0.5 + random::<2>(5, [1, channels]) * 3.0).detach().require_grad();
            let [gamma, beta] = [leaf(2, [channels]), leaf(3, [channels])];
            let upstream = away_from_corner(random(4, shape), normalized(x.clone(), gamma.clone(), beta.clone()));

            let found = batch_norm_relu(x.clone(), gamma.clone(), beta.clone(), EPSILON);
            let gradients = (found.output.clone() * upstream.clone()).sum().backward();
            let found_gradient = x.grad(&gradients).unwrap();
            let [found_gamma, found_beta] = [gamma.grad(&gradients).unwrap(), beta.grad(&gradients).unwrap()];

            // In f64, since burn's own sums in f32 are off by more than ours where means are far from zero.
            let x = exact(x).require_grad();
            let [gamma, beta] = [exact(gamma).require_grad(), exact(beta).require_grad()];
            let expected = plain(x.clone(), gamma.clone(), beta.clone());
            let gradients = (expected.clone() * exact(upstream)).sum().backward();

            let name = |part: &str| format!("{part} of {rows} rows of {channels}");
            assert_close(&name("output"), found.output.inner(), single(expected.inner()), 1e-5);
            let mean = x.clone().inner().mean_dim(0);
            assert_close(&name("mean"), found.mean.inner(), single(mean.clone().squeeze_dim(0)), 1e-6);
            let variance = (x.clone().inner() - mean).powi_scalar(2).mean_dim(0);
            assert_close(&name("variance"), found.variance.inner(), single(variance.squeeze_dim(0)), 1e-6);
            // With one row all of these are zero but for rounding.
            if rows > 1 {
                assert_close(&name("x gradient"), found_gradient, single(x.grad(&gradients).unwrap()), 1e-5);
                assert_close(&name("gamma gradient"), found_gamma, single(gamma.grad(&gradients).unwrap()), 1e-5);
            }
            assert_close(&name("beta gradient"), found_beta, single(beta.grad(&gradients).unwrap()), 1e-5);
        }
    });
}

#[test]
fn scale_shift_relu_agrees_with_burn_on_values_and_gradients() {
    differentiate(|| {
        for shape in SHAPES {
            let [rows, channels] = shape;
            let x = leaf(1, shape);
            let [scale, shift] = [leaf(2, [channels]), leaf(3, [channels])];
            let before = x.clone() * scale.clone().unsqueeze() + shift.clone().unsqueeze();
            let upstream = away_from_corner(random(4, shape), before);

            let found = scale_shift_relu(x.clone(), scale.clone(), shift.clone());
            let gradients = (found.clone() * upstream.clone()).sum().backward();
            let found_gradient = x.grad(&gradients).unwrap();
            let [found_scale, found_shift] = [scale.grad(&gradients).unwrap(), shift.grad(&gradients).unwrap()];

            let expected = relu(x.clone() * scale.clone().unsqueeze() + shift.clone().unsqueeze());
            let gradients = (expected.clone() * upstream).sum().backward();

            let name = |part: &str| format!("{part} of {rows} rows of {channels}");
            assert_close(&name("output"), found.inner(), expected.inner(), 1e-5);
            assert_close(&name("x gradient"), found_gradient, x.grad(&gradients).unwrap(), 1e-5);
            assert_close(&name("scale gradient"), found_scale, scale.grad(&gradients).unwrap(), 1e-5);
            assert_close(&name("shift gradient"), found_shift, shift.grad(&gradients).unwrap(), 1e-5);
        }
    });
}

#[test]
fn feature_maps_and_their_rows_are_normalized_alike() {
    differentiate(|| {
        let x = random::<4>(1, [2, 5, 3, 7]);
        let [gamma, beta] = [random(2, [7]), random(3, [7])];
        let map = batch_norm_relu(x.clone(), gamma.clone(), beta.clone(), EPSILON);
        let rows = batch_norm_relu(x.clone().reshape([30, 7]), gamma.clone(), beta.clone(), EPSILON);
        assert_eq!(numbers(map.output.inner()), numbers(rows.output.inner()));
        let transposed = x.clone().permute([1, 2, 0, 3]);
        let transposed = batch_norm_relu(transposed, gamma, beta, EPSILON).output.permute([2, 0, 1, 3]);
        let x = batch_norm_relu(x, random(2, [7]), random(3, [7]), EPSILON).output;
        assert_close("of a transposed map", transposed.inner(), x.inner(), 1e-5);
    });
}

#[test]
fn gives_the_same_bits_on_one_thread_and_on_two() {
    let run = || {
        differentiate(|| {
            let x = leaf::<2>(1, [9001, 24]);
            let [gamma, beta] = [leaf(2, [24]), leaf(3, [24])];
            let normalized = batch_norm_relu(x.clone(), gamma.clone(), beta.clone(), EPSILON);
            let scaled = scale_shift_relu(normalized.output.clone(), gamma.clone(), beta.clone());
            let gradients = (scaled * normalized.output.clone()).sum().backward();
            [
                numbers(normalized.output.inner()),
                numbers(normalized.mean.inner()),
                numbers(normalized.variance.inner()),
                numbers(x.grad(&gradients).unwrap()),
                numbers(gamma.grad(&gradients).unwrap()),
                numbers(beta.grad(&gradients).unwrap()),
            ]
        })
    };
    assert_eq!(on_threads(1, run), on_threads(2, run));
}

#[test]
fn statistics_carry_no_gradient() {
    differentiate(|| {
        let x = leaf::<2>(1, [8, 3]);
        let normalized = batch_norm_relu::<Diff, 2>(x, random(2, [3]), random(3, [3]), EPSILON);
        assert!(normalized.output.is_require_grad() || !normalized.mean.is_require_grad());
        assert!(!normalized.mean.is_require_grad());
        assert!(!normalized.variance.is_require_grad());
    });
}
