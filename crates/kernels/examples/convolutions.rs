//! Times every convolution of the network: `cargo run --release -p patchdoor-kernels --example convolutions -- 1 2`.
//!
//! With `--features cuda` on the GPU, in every precision; `--stock` times burn's own convolutions beside them.
#![allow(clippy::print_stdout, reason = "an example prints what it measures")]

use std::time::Instant;

use burn::tensor::backend::BackendTypes;
use burn::tensor::ops::{ConvOptions as StockOptions, FloatTensor};
use burn::tensor::{Distribution, Tensor, TensorPrimitive};
use patchdoor_kernels::{ConvOptions, Kernels, Precision};

#[cfg(feature = "cuda")]
type Timed = burn_cuda::Cuda;
#[cfg(not(feature = "cuda"))]
type Timed = burn_flex::Flex;

/// Images of a batch.
const BATCH: usize = 128;

/// One convolution's operands.
struct Case<B: Kernels> {
    name: &'static str,
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: FloatTensor<B>,
    gradient: FloatTensor<B>,
    size: [usize; 2],
    kernel: [usize; 2],
    options: ConvOptions,
    operations: f64,
}

fn primitive<B: Kernels, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    match tensor.into_primitive() {
        TensorPrimitive::Float(tensor) => tensor,
        TensorPrimitive::QFloat(_) => unreachable!("drawn as floats"),
    }
}

fn random<B: Kernels, const D: usize>(shape: [usize; D], device: &B::Device) -> FloatTensor<B> {
    primitive(Tensor::<B, D>::random(shape, Distribution::Uniform(-1.0, 1.0), device))
}

fn cases<B: Kernels>(k: usize, device: &B::Device) -> Vec<Case<B>> {
    let shapes = [
        ("stem", 32, 3, 16, 3, 1),
        ("group 1 first", 32, 16, 16 * k, 3, 1),
        ("group 1 second", 32, 16 * k, 16 * k, 3, 1),
        ("group 1 shortcut", 32, 16, 16 * k, 1, 1),
        ("group 2 first", 32, 16 * k, 32 * k, 3, 2),
        ("group 2 second", 16, 32 * k, 32 * k, 3, 1),
        ("group 2 shortcut", 32, 16 * k, 32 * k, 1, 2),
        ("before experts", 16, 32 * k, 64 * k, 3, 2),
        ("experts", 8, 64 * k, 64 * k, 1, 1),
    ];
    let case = |(name, size, channels, out, kernel, stride)| {
        let options = ConvOptions::same([size, size], [kernel, kernel], stride);
        let [height, width] = options.output_size([size, size], [kernel, kernel]);
        Case {
            name,
            x: random::<B, 4>([BATCH, size, size, channels], device),
            weight: random::<B, 4>([out, channels, kernel, kernel], device),
            bias: random::<B, 1>([out], device),
            gradient: random::<B, 4>([BATCH, height, width, out], device),
            size: [size, size],
            kernel: [kernel, kernel],
            options,
            operations: 2.0 * (BATCH * height * width * out * channels * kernel * kernel) as f64,
        }
    };
    shapes.map(case).into()
}

/// Least of the seconds that some runs take, ten at a time on a GPU, which works behind the program's back.
fn time<B: Kernels>(device: &B::Device, mut work: impl FnMut()) -> f64 {
    let at_once = if B::ON_DEVICE { 10 } else { 1 };
    let wait = || B::sync(device).expect("the device answers");
    work();
    wait();
    let begin = Instant::now();
    let mut least = f64::INFINITY;
    let mut runs = 0;
    while runs < 5 || begin.elapsed().as_secs_f64() < 0.6 && runs < 200 {
        let start = Instant::now();
        for _ in 0..at_once {
            work();
        }
        wait();
        least = least.min(start.elapsed().as_secs_f64() / f64::from(at_once));
        runs += 1;
        if B::ON_DEVICE && runs == 5 {
            break;
        }
    }
    least
}

/// Seconds of forward, gradient of the input, gradients of the weight.
fn ours<B: Kernels>(case: &Case<B>, device: &B::Device) -> [f64; 3] {
    let Case { x, weight, bias, gradient, size, kernel, options, .. } = case;
    [
        time::<B>(device, || drop(B::conv2d_bias(x.clone(), weight.clone(), bias.clone(), 1, *options))),
        if case.name == "stem" {
            0.0
        } else {
            time::<B>(device, || {
                drop(B::conv2d_input_gradient(weight.clone(), gradient.clone(), *size, 1, *options));
            })
        },
        time::<B>(device, || drop(B::conv2d_weight_gradients(x.clone(), gradient.clone(), *kernel, 1, *options))),
    ]
}

/// The same of burn's own convolutions, where they take the padding.
fn stock<B: Kernels>(case: &Case<B>, device: &B::Device) -> Option<[f64; 3]> {
    let [top, left, bottom, right] = case.options.padding;
    if top != bottom || left != right {
        return None;
    }
    let stride = case.options.stride;
    let options = || StockOptions::new([stride, stride], [top, left], [1, 1], 1);
    let channels_first = |tensor: &FloatTensor<B>| B::float_permute(tensor.clone(), &[0, 3, 1, 2]);
    let (x, gradient) = (channels_first(&case.x), channels_first(&case.gradient));
    let (weight, bias) = (&case.weight, &case.bias);
    Some([
        time::<B>(device, || drop(B::conv2d(x.clone(), weight.clone(), Some(bias.clone()), options()))),
        time::<B>(device, || drop(B::conv2d_x_backward(x.clone(), weight.clone(), gradient.clone(), options()))),
        time::<B>(device, || drop(B::conv2d_weight_backward(x.clone(), weight.clone(), gradient.clone(), options()))),
    ])
}

fn show(label: &str, operations: f64, times: [f64; 3]) {
    print!("{label:34}");
    for (part, time) in ["forward", "input", "weight"].iter().zip(times) {
        print!("  {part} {:8.3} ms {:8.1} GFLOP/s", time * 1e3, operations / time / 1e9);
    }
    println!();
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let with_stock = arguments.iter().any(|argument| argument == "--stock");
    let only = arguments.iter().find_map(|argument| argument.strip_prefix("--only="));
    let widens: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    let precisions: &[_] =
        if Timed::ON_DEVICE { &[Precision::F32, Precision::Tf32, Precision::Bf16] } else { &[Precision::F32] };
    let device = <Timed as BackendTypes>::Device::default();
    for k in if widens.is_empty() { vec![1, 2, 4] } else { widens } {
        for &precision in precisions {
            precision.choose();
            let mut total = [0.0; 3];
            for case in cases::<Timed>(k, &device) {
                if only.is_some_and(|only| only != case.name) {
                    continue;
                }
                let times = ours(&case, &device);
                show(&format!("k={k} {:18} {precision:?}", case.name), case.operations, times);
                total.iter_mut().zip(times).for_each(|(total, time)| *total += time);
                if with_stock
                    && precision == Precision::F32
                    && let Some(times) = stock(&case, &device)
                {
                    show(&format!("k={k} {:18} stock", case.name), case.operations, times);
                }
            }
            let sum = total.iter().sum::<f64>() * 1e3;
            println!("k={k} {precision:?} total ms {:.1?} sum {sum:.1}", total.map(|t| t * 1e3));
        }
    }
}
