//! What CUDA runs, on a Vulkan driver that needs no GPU, against flex: values and gradients of every operation.

use burn::backend::Autodiff;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::Flex;
use patchdoor_kernels::{
    ConvOptions, TrainingBackend, Vulkan, add, average_positions, batch_norm_relu, differentiate, gather_weighted,
    grouped_conv2d, scale_shift_relu, weighted_batch_norm_relu, weighted_scale_shift_relu,
};

mod support;
use support::values;

/// Largest distance from flex's numbers in the Euclidean norm of a tensor, over their norm. Both sum in single precision
/// in orders of their own; the largest seen is 1e-6.
const TOLERANCE: f64 = 5e-6;

/// Names and numbers, in the order in which they were noted.
type Found = Vec<(String, Vec<f64>)>;

fn random<B: AutodiffBackend, const D: usize>(shape: [usize; D], seed: u64) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values(seed, shape.iter().product()), shape), &B::Device::default())
}

fn leaf<B: AutodiffBackend, const D: usize>(shape: [usize; D], seed: u64) -> Tensor<B, D> {
    random(shape, seed).require_grad()
}

fn numbers(data: TensorData) -> Vec<f64> {
    data.iter::<f64>().collect()
}

/// An operation's output, and the gradients of its product with a fixed tensor.
struct Trace<B: AutodiffBackend> {
    found: Found,
    gradients: B::Gradients,
}

impl<B: AutodiffBackend> Trace<B> {
    fn of<const D: usize>(output: Tensor<B, D>) -> Self {
        let upstream = random(output.dims(), 99);
        let gradients = (output.clone() * upstream).sum().backward();
        Self { found: vec![("output".into(), numbers(output.into_data()))], gradients }
    }

    fn gradient<const D: usize>(mut self, name: &str, of: &Tensor<B, D>) -> Self {
        let gradient = of.grad(&self.gradients).expect("it takes part");
        self.found.push((format!("gradient of {name}"), numbers(gradient.into_data())));
        self
    }
}

#[track_caller]
fn assert_agree(name: &str, vulkan: impl FnOnce() -> Found, flex: impl FnOnce() -> Found) {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let (found, expected) = differentiate(|| (vulkan(), flex()));
    assert_eq!(found.len(), expected.len());
    for ((what, found), (_, expected)) in found.iter().zip(&expected) {
        assert_eq!(found.len(), expected.len(), "{name}, {what}");
        let size = norm(&mut expected.iter().copied());
        assert!(size > 0.0, "{name}, {what}: nothing to compare");
        let distance = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / size;
        assert!(distance <= TOLERANCE, "{name}, {what}: {distance:.1e} from flex's");
        // Shown by `cargo test -- --nocapture`.
        #[allow(clippy::print_stdout, reason = "a test reports the distance it found")]
        {
            println!("{name}, {what}: {distance:.1e}");
        }
    }
}

/// Calls a generic function on both backends.
macro_rules! assert_same {
    ($name:expr, $function:ident($($argument:expr),*)) => {
        assert_agree(
            $name,
            || $function::<Autodiff<Vulkan>>($($argument),*),
            || $function::<Autodiff<Flex>>($($argument),*),
        )
    };
}

fn convolution<B: TrainingBackend>(
    size: [usize; 2],
    [channels, out]: [usize; 2],
    groups: usize,
    kernel: usize,
    options: ConvOptions,
) -> Found {
    let x = leaf::<B, 4>([3, size[0], size[1], channels], 1);
    let weight = leaf::<B, 4>([out, channels / groups, kernel, kernel], 2);
    let bias = leaf::<B, 1>([out], 3);
    let output = grouped_conv2d(x.clone(), weight.clone(), bias.clone(), groups, options);
    Trace::of(output).gradient("x", &x).gradient("weight", &weight).gradient("bias", &bias).found
}

#[test]
fn convolutions_agree_on_vulkan() {
    let symmetric = |kernel: usize, stride| ConvOptions::symmetric([kernel; 2], stride);
    let same = |size, kernel: usize, stride| ConvOptions::same(size, [kernel; 2], stride);
    for (name, size, channels, groups, kernel, options) in [
        ("3x3 of an image", [32, 32], [3, 16], 1, 3, symmetric(3, 1)),
        ("3x3 with stride 2, padded below and right", [32, 32], [16, 32], 1, 3, same([32, 32], 3, 2)),
        ("3x3 with stride 2, padded all around", [32, 32], [16, 32], 1, 3, symmetric(3, 2)),
        ("3x3 with stride 2, odd size", [9, 7], [5, 6], 1, 3, same([9, 7], 3, 2)),
        // burn-cubecl's direct transposed convolution gives zeros where the kernel is smaller than the stride.
        ("1x1 with stride 2", [16, 16], [32, 64], 1, 1, symmetric(1, 2)),
        ("1x1 with stride 2, odd size", [9, 7], [5, 6], 1, 1, symmetric(1, 2)),
        ("1x1 with stride 2, a shortcut", [32, 32], [16, 32], 1, 1, symmetric(1, 2)),
        ("3x3 of 64 channels", [8, 8], [64, 64], 1, 3, symmetric(3, 1)),
        ("1x1 in 4 groups", [8, 8], [256, 64], 4, 1, symmetric(1, 1)),
        ("3x3 in 4 groups", [8, 8], [32, 16], 4, 3, symmetric(3, 1)),
        ("3x3 in 3 groups, odd size", [7, 5], [9, 15], 3, 3, symmetric(3, 1)),
    ] {
        assert_same!(name, convolution(size, channels, groups, kernel, options));
    }
}

fn normalization<B: TrainingBackend>(shape: [usize; 4]) -> Found {
    let x = leaf::<B, 4>(shape, 1);
    let [gamma, beta] = [2, 3].map(|seed| leaf::<B, 1>([shape[3]], seed));
    let normalized = batch_norm_relu(x.clone(), gamma.clone(), beta.clone(), 1e-3);
    let statistics = [("mean", normalized.mean), ("variance", normalized.variance)];
    let trace = Trace::of(normalized.output).gradient("x", &x).gradient("gamma", &gamma).gradient("beta", &beta);
    let mut found = trace.found;
    found.extend(statistics.map(|(name, statistic)| (name.into(), numbers(statistic.into_data()))));
    let trace = Trace::of(scale_shift_relu(x.clone(), gamma.clone(), beta.clone()));
    found.extend(trace.gradient("x in inference", &x).gradient("scale", &gamma).gradient("shift", &beta).found);
    found
}

#[test]
fn normalizations_agree_on_vulkan() {
    for shape in [[3, 8, 8, 20], [4, 32, 32, 16], [5, 3, 1, 7], [16, 16, 1, 256]] {
        assert_same!(&format!("{shape:?}"), normalization(shape));
    }
}

fn weighted<B: TrainingBackend>() -> Found {
    let (map, weights) = (leaf::<B, 4>([3, 8, 8, 20], 1), leaf::<B, 3>([3, 4, 64], 4));
    let [gamma, beta] = [2, 3].map(|seed| leaf::<B, 1>([80], seed));
    let normalized = weighted_batch_norm_relu(map.clone(), weights.clone(), gamma.clone(), beta.clone(), 1e-3);
    let trace = Trace::of(normalized.output).gradient("map", &map).gradient("weights", &weights);
    let mut found = trace.gradient("gamma", &gamma).gradient("beta", &beta).found;
    let output = weighted_scale_shift_relu(map.clone(), weights.clone(), gamma.clone(), beta);
    found.extend(Trace::of(output).gradient("map", &map).gradient("weights", &weights).gradient("scale", &gamma).found);
    found
}

#[test]
fn weighted_normalizations_agree_on_vulkan() {
    assert_same!("weighted", weighted());
}

fn gathering<B: TrainingBackend>(positions: usize) -> Found {
    let (patches, weights) = (leaf::<B, 4>([3, 16, positions, 12], 1), leaf::<B, 3>([3, 4, 16], 4));
    // Five patches for each of twelve rows; in steps of three no number up to 16 comes twice.
    let chosen: Vec<i32> = (0..12).flat_map(|row| (0..5).map(move |k| (row + 3 * k) % 16)).collect();
    let chosen = Tensor::<B, 3, Int>::from_data(TensorData::new(chosen, [3, 4, 5]), &B::Device::default());
    let output = gather_weighted(patches.clone(), weights.clone(), chosen);
    Trace::of(output).gradient("patches", &patches).gradient("weights", &weights).found
}

#[test]
fn gathering_agrees_on_vulkan() {
    for positions in [1, 4] {
        assert_same!(&format!("{positions} positions"), gathering(positions));
    }
}

/// Burn's own operations that a network needs beside those of this crate.
fn ends<B: TrainingBackend>() -> Found {
    let [left, right] = [1, 2].map(|seed| leaf::<B, 4>([3, 8, 8, 20], seed));
    let mean = average_positions(add(left.clone(), right.clone()));
    let mut found = Trace::of(mean).gradient("left", &left).gradient("right", &right).found;
    let scores = leaf::<B, 3>([3, 4, 64], 6);
    let dropped = random::<B, 3>([3, 4, 64], 7).lower_elem(0.3);
    let weights = softmax(scores.clone().mask_fill(dropped, f32::MIN), 2);
    found.extend(Trace::of(weights).gradient("scores", &scores).found);
    let logits = leaf::<B, 2>([7, 10], 8);
    let labels = Tensor::<B, 1, Int>::from_data([3, 1, 9, 0, 0, 5, 2], &B::Device::default());
    let likelihoods = log_softmax(logits.clone(), 1).gather(1, labels.unsqueeze_dim(1));
    found.extend(Trace::of(likelihoods).gradient("logits", &logits).found);
    found
}

#[test]
fn a_networks_ends_agree_on_vulkan() {
    assert_same!("ends", ends());
}
