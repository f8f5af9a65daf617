//! Products of rounded operands on a Vulkan driver that needs no GPU, against f32 products of operands rounded by hand.
//!
//! In a file of its own: a precision holds for the whole process.

mod support;

use burn::backend::Autodiff;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Tensor, TensorData};
use burn_flex::Flex;
use patchdoor_kernels::{ConvOptions, Precision, TrainingBackend, Vulkan, conv2d, differentiate};
use support::values;

/// To the nearest number with so many bits fewer, ties to even.
fn rounded(value: f32, dropped: u32) -> f32 {
    if dropped == 0 {
        return value;
    }
    let bits = value.to_bits();
    let half = (1 << (dropped - 1)) - 1 + ((bits >> dropped) & 1);
    f32::from_bits((bits + half) >> dropped << dropped)
}

fn input<B: AutodiffBackend, const D: usize>(seed: u64, shape: [usize; D], dropped: u32) -> Tensor<B, D> {
    let values: Vec<f32> = values(seed, shape.iter().product()).iter().map(|&value| rounded(value, dropped)).collect();
    Tensor::from_data(TensorData::new(values, shape), &B::Device::default()).require_grad()
}

/// Output and gradients of a convolution whose operands are rounded here.
fn convolution<B: TrainingBackend>([channels, out]: [usize; 2], dropped: u32) -> Vec<Vec<f32>> {
    differentiate(|| {
        let x = input::<B, 4>(1, [2, 9, 7, channels], dropped);
        let weight = input::<B, 4>(2, [out, channels, 3, 3], dropped);
        let bias = input::<B, 1>(3, [out], 0);
        let y = conv2d(x.clone(), weight.clone(), bias.clone(), ConvOptions::same([9, 7], [3, 3], 2));
        let upstream = input::<B, 4>(4, y.dims(), dropped).detach();
        let gradients = (y.clone() * upstream).sum().backward();
        let numbers = |data: TensorData| data.to_vec::<f32>().expect("it holds f32");
        vec![
            numbers(y.into_data()),
            numbers(x.grad(&gradients).expect("x has one").into_data()),
            numbers(weight.grad(&gradients).expect("the weight has one").into_data()),
            numbers(bias.grad(&gradients).expect("the bias has one").into_data()),
        ]
    })
}

fn worst(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    let pairs = found.iter().zip(expected).map(|(found, expected)| {
        let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        found.iter().zip(expected).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
    });
    pairs.fold(0.0, f32::max)
}

#[test]
fn operands_are_rounded_and_sums_are_not() {
    for (precision, dropped, apart) in
        [(Precision::F32, 0, 0.0), (Precision::Tf32, 13, 1e-5), (Precision::Bf16, 16, 5e-4)]
    {
        precision.choose();
        for channels in [[20, 24], [48, 64]] {
            let device = convolution::<Autodiff<Vulkan>>(channels, 0);
            let exact = worst(&device, &convolution::<Autodiff<Flex>>(channels, dropped));
            assert!(exact < 2e-6, "{precision:?}: {exact:e} from products of rounded operands");
            let plain = worst(&device, &convolution::<Autodiff<Flex>>(channels, 0));
            assert!(plain >= apart, "{precision:?}: only {plain:e} from unrounded products");
        }
    }
    Precision::F32.choose();
}
