//! Whether a backend computes what the CPU does: every operation of the networks with its gradients, on one batch.

use burn::tensor::backend::{AutodiffBackend, Backend as TensorBackend};
use burn::tensor::{Int, Tensor, TensorData};
use patchdoor_data::stream;
use patchdoor_kernels::{
    ConvOptions, TrainingBackend, add, average_positions, batch_norm_relu, differentiate, gather_weighted,
    grouped_conv2d, scale_shift_relu, weighted_batch_norm_relu, weighted_scale_shift_relu,
};
use patchdoor_plan::Precision;
use rand::RngExt;
use serde::Serialize;

use crate::backend::{Backend, BackendChoice, BackendError, OnBackend};

/// How far an operation is from the same one on the CPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct OperationCheck {
    /// The operation.
    pub operation: String,
    /// Largest distance of an output or a gradient, relative to its Euclidean length.
    pub distance: f64,
    /// The output or gradient that is so far.
    pub at: String,
    /// Whether that is at most the tolerance.
    pub agrees: bool,
}

/// Compares every operation with the CPU's fast backend.
///
/// In full precision all agree to 1e-5. With operands rounded to TF32, whose mantissa has 10 bits, products differ by about
/// 1e-3, and to bf16 by about 1e-2.
///
/// # Errors
/// If this build has no CPU backend to compare with, or `backend` rounds nothing.
pub fn check_operations(
    backend: &Backend,
    precision: Precision,
    tolerance: f64,
) -> Result<Vec<OperationCheck>, BackendError> {
    backend.check_precision(precision)?;
    let host = BackendChoice::Flex.resolve()?;
    let (found, expected) = (backend.run_in(precision, AllOperations), host.run(AllOperations));
    let checks = found.into_iter().zip(expected).map(|((operation, found), (_, expected))| {
        let (distance, at) = worst(&found, &expected);
        // Not a number agrees with nothing.
        OperationCheck { operation, distance, at, agrees: distance <= tolerance }
    });
    Ok(checks.collect())
}

/// Outputs and gradients by name.
type Values = Vec<(&'static str, Vec<f64>)>;

struct AllOperations;

impl OnBackend for AllOperations {
    type Output = Vec<(String, Values)>;

    fn run<B: TrainingBackend>(self, device: &B::Device) -> Self::Output {
        let symmetric = |kernel: usize, stride| ConvOptions::symmetric([kernel; 2], stride);
        let convolutions = [
            ("convolution 3x3 of 3 channels", [32, 32], [3, 16], 1, 3, symmetric(3, 1)),
            (
                "convolution 3x3, stride 2, as TensorFlow pads",
                [32, 32],
                [16, 32],
                1,
                3,
                ConvOptions::same([32, 32], [3, 3], 2),
            ),
            ("convolution 3x3, stride 2, symmetric", [32, 32], [16, 32], 1, 3, symmetric(3, 2)),
            ("convolution 3x3, stride 2, odd size", [9, 7], [5, 6], 1, 3, ConvOptions::same([9, 7], [3, 3], 2)),
            ("convolution 1x1, stride 2", [16, 16], [32, 64], 1, 1, symmetric(1, 2)),
            ("convolution 3x3 of 64 channels", [8, 8], [64, 64], 1, 3, symmetric(3, 1)),
            ("convolution 1x1 in 4 groups", [8, 8], [256, 64], 4, 1, symmetric(1, 1)),
            ("convolution 3x3 in 4 groups", [8, 8], [32, 16], 4, 3, symmetric(3, 1)),
        ];
        let mut all: Self::Output = Vec::new();
        for (name, size, channels, groups, kernel, options) in convolutions {
            all.push((name.to_owned(), convolution::<B>(size, channels, groups, kernel, options, device)));
        }
        for shape in [[4, 32, 32, 16], [3, 8, 8, 20], [16, 16, 1, 256]] {
            all.push((format!("batch normalization and rectifier of {shape:?}"), normalization::<B>(shape, device)));
        }
        all.push(("weighted batch normalization and rectifier".into(), weighted::<B>(device)));
        for positions in [1, 4] {
            let name = format!("gathering of patches of {positions} positions");
            all.push((name, gathering::<B>(positions, device)));
        }
        all.push(("sum and average over positions".into(), sums::<B>(device)));
        all
    }
}

fn uniform(shape: &[usize], seed: u64) -> TensorData {
    let mut rng = stream(seed, "operations");
    let count = shape.iter().product();
    TensorData::new((0..count).map(|_| rng.random_range(-1.0f32..1.0)).collect::<Vec<_>>(), shape.to_vec())
}

fn input<B: AutodiffBackend, const D: usize>(shape: [usize; D], seed: u64, device: &B::Device) -> Tensor<B, D> {
    Tensor::from_data(uniform(&shape, seed), device).require_grad()
}

fn numbers<B: TensorBackend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// An output, and the gradients of its product with a fixed tensor.
struct Trace<B: AutodiffBackend> {
    values: Values,
    gradients: B::Gradients,
}

impl<B: AutodiffBackend> Trace<B> {
    fn of<const D: usize>(output: Tensor<B, D>, device: &B::Device) -> Self {
        let upstream = Tensor::<B, D>::from_data(uniform(&output.dims(), 99), device);
        let loss = (output.clone() * upstream).sum();
        Self { values: vec![("output", numbers(output))], gradients: loss.backward() }
    }

    fn gradient<const D: usize>(mut self, name: &'static str, of: &Tensor<B, D>) -> Self {
        let gradient = of.grad(&self.gradients).expect("every input takes a gradient");
        self.values.push((name, numbers(gradient)));
        self
    }
}

fn convolution<B: TrainingBackend>(
    [height, width]: [usize; 2],
    [of, to]: [usize; 2],
    groups: usize,
    kernel: usize,
    options: ConvOptions,
    device: &B::Device,
) -> Values {
    differentiate(|| {
        let x = input::<B, 4>([3, height, width, of], 1, device);
        let weight = input::<B, 4>([to, of / groups, kernel, kernel], 2, device);
        let bias = input::<B, 1>([to], 3, device);
        let output = grouped_conv2d(x.clone(), weight.clone(), bias.clone(), groups, options);
        let trace = Trace::of(output, device).gradient("gradient of the map", &x);
        trace.gradient("gradient of the weight", &weight).gradient("gradient of the bias", &bias).values
    })
}

fn normalization<B: TrainingBackend>(shape: [usize; 4], device: &B::Device) -> Values {
    differentiate(|| {
        let x = input::<B, 4>(shape, 1, device);
        let (gamma, beta) = (input::<B, 1>([shape[3]], 2, device), input::<B, 1>([shape[3]], 3, device));
        let normalized = batch_norm_relu(x.clone(), gamma.clone(), beta.clone(), 1e-3);
        let statistics = [("mean", numbers(normalized.mean)), ("variance", numbers(normalized.variance))];
        let trace = Trace::of(normalized.output, device).gradient("gradient of the map", &x);
        let mut values = trace.gradient("gradient of gamma", &gamma).gradient("gradient of beta", &beta).values;
        values.extend(statistics);
        let output = scale_shift_relu(x.clone(), gamma.clone(), beta.clone());
        let trace = Trace::of(output, device).gradient("gradient of the scaled map", &x);
        values.extend(trace.gradient("gradient of the scale", &gamma).values);
        values
    })
}

fn weighted<B: TrainingBackend>(device: &B::Device) -> Values {
    differentiate(|| {
        let (map, weights) = (input::<B, 4>([3, 8, 8, 20], 1, device), input::<B, 3>([3, 4, 64], 4, device));
        let (gamma, beta) = (input::<B, 1>([80], 2, device), input::<B, 1>([80], 3, device));
        let normalized = weighted_batch_norm_relu(map.clone(), weights.clone(), gamma.clone(), beta.clone(), 1e-3);
        let trace = Trace::of(normalized.output, device).gradient("gradient of the map", &map);
        let mut values =
            trace.gradient("gradient of the weights", &weights).gradient("gradient of gamma", &gamma).values;
        let output = weighted_scale_shift_relu(map.clone(), weights.clone(), gamma.clone(), beta.clone());
        values.extend(Trace::of(output, device).gradient("gradient of the scaled map", &map).values);
        values
    })
}

fn gathering<B: TrainingBackend>(positions: usize, device: &B::Device) -> Values {
    differentiate(|| {
        let (patches, weights) =
            (input::<B, 4>([3, 16, positions, 12], 1, device), input::<B, 3>([3, 4, 16], 4, device));
        // Every expert takes five patches, another row of them each.
        let chosen = (0..12).flat_map(|row| (0..5).map(move |index| (row % 4 + index * 3) % 16)).collect::<Vec<i32>>();
        let mut chosen = chosen;
        chosen.chunks_mut(5).for_each(<[i32]>::sort_unstable);
        let chosen = Tensor::<B, 3, Int>::from_data(TensorData::new(chosen, [3, 4, 5]), device);
        let output = gather_weighted(patches.clone(), weights.clone(), chosen);
        let trace = Trace::of(output, device).gradient("gradient of the patches", &patches);
        trace.gradient("gradient of the weights", &weights).values
    })
}

fn sums<B: TrainingBackend>(device: &B::Device) -> Values {
    differentiate(|| {
        let (left, right) = (input::<B, 4>([3, 8, 8, 20], 1, device), input::<B, 4>([3, 8, 8, 20], 2, device));
        let output = average_positions(add(left.clone(), right.clone()));
        let trace = Trace::of(output, device).gradient("gradient of the left", &left);
        trace.gradient("gradient of the right", &right).values
    })
}

/// The largest relative Euclidean distance, and of what; infinite if something is not a number.
fn worst(found: &Values, expected: &Values) -> (f64, String) {
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let mut worst = (0.0, "output".to_owned());
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        let difference = length(&mut found.iter().zip(expected).map(|(found, expected)| found - expected));
        let distance = difference / length(&mut expected.iter().copied()).max(1e-9);
        let distance = if distance.is_nan() { f64::INFINITY } else { distance };
        if distance > worst.0 {
            worst = (distance, (*name).to_owned());
        }
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_agrees_with_itself_to_the_bit() {
        let _alone = crate::testing::alone();
        let checks = check_operations(&BackendChoice::Flex.resolve().expect("built"), Precision::F32, 0.0)
            .expect("flex is built");
        assert_eq!(checks.len(), 15);
        assert!(checks.iter().all(|check| check.agrees && check.distance == 0.0), "{checks:?}");
    }

    #[test]
    fn what_differs_is_named() {
        let expected = vec![("output", vec![3.0, 4.0]), ("gradient", vec![0.0, 1.0])];
        let found = vec![("output", vec![3.0, 4.5]), ("gradient", vec![0.5, 1.0])];
        assert_eq!(worst(&found, &expected), (0.5, "gradient".to_owned()));
        let broken = vec![("output", vec![f64::NAN, 4.0]), ("gradient", vec![0.0, 1.0])];
        assert_eq!(worst(&broken, &expected), (f64::INFINITY, "output".to_owned()));
    }
}
