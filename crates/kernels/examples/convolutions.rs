//! Times every convolution of the network: `cargo run --release -p patchdoor-kernels --example convolutions -- 1 2`.
#![allow(clippy::print_stdout, reason = "an example prints what it measures")]

use std::time::Instant;

use burn::tensor::{Tensor, TensorPrimitive};
use burn_flex::{Flex, FlexTensor};
use patchdoor_kernels::{ConvOptions, Kernels};

fn random<const D: usize>(shape: [usize; D]) -> FlexTensor {
    let tensor =
        Tensor::<Flex, D>::random(shape, burn::tensor::Distribution::Uniform(-1.0, 1.0), &burn_flex::FlexDevice);
    match tensor.into_primitive() {
        TensorPrimitive::Float(tensor) => tensor,
        TensorPrimitive::QFloat(_) => unreachable!("drawn as floats"),
    }
}

/// Least of the seconds that some runs take.
fn time(mut work: impl FnMut()) -> f64 {
    work();
    let begin = Instant::now();
    let mut least = f64::INFINITY;
    let mut runs = 0;
    while runs < 5 || begin.elapsed().as_secs_f64() < 0.6 && runs < 200 {
        let start = Instant::now();
        work();
        least = least.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    least
}

fn main() {
    let widens: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let batch = 128;
    for k in if widens.is_empty() { vec![1, 2, 4] } else { widens } {
        let mut total = [0.0; 3];
        for (name, size, channels, out, kernel, stride) in [
            ("stem", 32, 3, 16, 3, 1),
            ("group 1 first", 32, 16, 16 * k, 3, 1),
            ("group 1 second", 32, 16 * k, 16 * k, 3, 1),
            ("group 1 shortcut", 32, 16, 16 * k, 1, 1),
            ("group 2 first", 32, 16 * k, 32 * k, 3, 2),
            ("group 2 second", 16, 32 * k, 32 * k, 3, 1),
            ("group 2 shortcut", 32, 16 * k, 32 * k, 1, 2),
            ("before experts", 16, 32 * k, 64 * k, 3, 2),
            ("experts", 8, 64 * k, 64 * k, 1, 1),
        ] {
            let options = ConvOptions::same([size, size], [kernel, kernel], stride);
            let [height, width] = options.output_size([size, size], [kernel, kernel]);
            let x = random([batch, size, size, channels]);
            let weight = random([out, channels, kernel, kernel]);
            let bias = random([out]);
            let gradient = random([batch, height, width, out]);
            let operations = 2.0 * (batch * height * width * out * channels * kernel * kernel) as f64;
            let times = [
                time(|| drop(Flex::conv2d_bias(x.clone(), weight.clone(), bias.clone(), 1, options))),
                if name == "stem" {
                    0.0
                } else {
                    time(|| {
                        drop(Flex::conv2d_input_gradient(weight.clone(), gradient.clone(), [size, size], 1, options));
                    })
                },
                time(|| drop(Flex::conv2d_weight_gradients(x.clone(), gradient.clone(), [kernel, kernel], 1, options))),
            ];
            print!("k={k} {name:18}");
            for (part, time) in ["forward", "input", "weight"].iter().zip(times) {
                print!("  {part} {:7.2} ms {:6.1} GFLOP/s", time * 1e3, operations / time / 1e9);
            }
            println!();
            total.iter_mut().zip(times).for_each(|(total, time)| *total += time);
        }
        println!("k={k} total ms {:.1?} sum {:.1}", total.map(|t| t * 1e3), total.iter().sum::<f64>() * 1e3);
    }
}
