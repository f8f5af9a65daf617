//! The convolution against burn's own, values and gradients.

mod support;

use burn::tensor::module::conv2d as burn_conv2d;
use burn::tensor::ops::ConvOptions as BurnOptions;
use burn::tensor::{Tensor, backend::Backend};
use burn_flex::Flex;
use patchdoor_kernels::{ConvOptions, conv2d, differentiate, grouped_conv2d};
use support::{Diff, assert_close, leaf, numbers, on_threads, random};

/// The convolution in burn's terms: channels first, zeros added by hand.
fn plain<B: Backend>(x: Tensor<B, 4>, weight: Tensor<B, 4>, bias: Tensor<B, 1>, options: ConvOptions) -> Tensor<B, 4> {
    let [top, left, bottom, right] = options.padding;
    let x = x.permute([0, 3, 1, 2]).pad((left, right, top, bottom), 0.0);
    burn_conv2d(x, weight, Some(bias), BurnOptions::new([options.stride; 2], [0, 0], [1, 1], 1)).permute([0, 2, 3, 1])
}

struct Case {
    batch: usize,
    size: [usize; 2],
    channels: usize,
    out: usize,
    kernel: [usize; 2],
    options: ConvOptions,
}

fn case(
    batch: usize,
    size: [usize; 2],
    channels: usize,
    out: usize,
    kernel: usize,
    stride: usize,
    padding: [usize; 4],
) -> Case {
    Case { batch, size, channels, out, kernel: [kernel; 2], options: ConvOptions { stride, padding } }
}

/// The network's layers at widen factors 1 and 2 on few images, and shapes that fit no block size.
fn cases() -> Vec<Case> {
    let network = [
        case(3, [32, 32], 3, 16, 3, 1, [1; 4]),
        case(2, [32, 32], 16, 16, 3, 1, [1; 4]),
        case(2, [32, 32], 16, 32, 3, 2, [0, 0, 1, 1]),
        case(2, [32, 32], 16, 32, 1, 2, [0; 4]),
        case(2, [16, 16], 32, 32, 3, 1, [1; 4]),
        case(2, [16, 16], 32, 64, 3, 2, [0, 0, 1, 1]),
        case(2, [8, 8], 64, 64, 3, 1, [1; 4]),
        case(2, [8, 8], 64, 16, 1, 1, [0; 4]),
        case(1, [16, 16], 160, 96, 3, 1, [1; 4]),
        case(1, [16, 16], 96, 160, 3, 2, [0, 0, 1, 1]),
    ];
    let odd = [
        case(1, [1, 1], 1, 1, 1, 1, [0; 4]),
        case(2, [5, 7], 3, 5, 3, 1, [1; 4]),
        case(3, [7, 5], 17, 33, 3, 2, [1; 4]),
        case(2, [6, 9], 2, 7, 3, 2, [1, 0, 2, 3]),
        case(2, [9, 11], 5, 19, 5, 1, [2; 4]),
        case(1, [11, 13], 4, 40, 5, 2, [2; 4]),
        case(5, [4, 3], 7, 10, 1, 1, [0; 4]),
        case(2, [7, 9], 6, 21, 1, 2, [0; 4]),
        case(1, [10, 10], 3, 6, 3, 3, [0; 4]),
        case(1, [3, 3], 8, 8, 3, 1, [0; 4]),
        case(1, [9, 37], 13, 50, 3, 1, [1; 4]),
        case(1, [28, 28], 1, 5, 28, 1, [0; 4]),
        case(1, [12, 12], 300, 20, 3, 1, [1; 4]),
        // Stride above the kernel's side: some inputs reach no output, and their gradient is zero.
        case(2, [8, 8], 4, 4, 2, 4, [0; 4]),
        // More zeros than the kernel reaches: whole output rows are the bias alone.
        case(1, [4, 4], 4, 4, 3, 1, [3, 3, 4, 4]),
    ];
    network.into_iter().chain(odd).collect()
}

fn check(case: &Case) {
    let Case { batch, size, channels, out, kernel, options } = *case;
    let x = leaf(1, [batch, size[0], size[1], channels]);
    let weight = leaf(2, [out, channels, kernel[0], kernel[1]]);
    let bias = leaf(3, [out]);
    let [height, width] = options.output_size(size, kernel);
    let upstream = random(4, [batch, height, width, out]);

    let found = conv2d(x.clone(), weight.clone(), bias.clone(), options);
    let gradients = (found.clone() * upstream.clone()).sum().backward();
    let [found_x, found_weight] = [x.grad(&gradients).unwrap(), weight.grad(&gradients).unwrap()];
    let found_bias = bias.grad(&gradients).unwrap();

    let expected = plain(x.clone(), weight.clone(), bias.clone(), options);
    let gradients = (expected.clone() * upstream).sum().backward();

    let name = |part: &str| format!("{part} of {size:?}x{channels} to {out}, kernel {kernel:?}, {options:?}");
    assert_close(&name("output"), found.inner(), expected.inner(), 1e-5);
    assert_close(&name("input gradient"), found_x, x.grad(&gradients).unwrap(), 1e-5);
    assert_close(&name("weight gradient"), found_weight, weight.grad(&gradients).unwrap(), 1e-5);
    assert_close(&name("bias gradient"), found_bias, bias.grad(&gradients).unwrap(), 1e-5);
}

#[test]
fn agrees_with_burn_on_values_and_gradients() {
    differentiate(|| {
        for case in cases() {
            check(&case);
        }
    });
}

#[test]
fn groups_are_convolutions_side_by_side() {
    differentiate(|| {
        for (kernel, stride, channels, out) in [(1, 1, 64, 16), (3, 1, 5, 7), (3, 2, 16, 40), (1, 2, 3, 33)] {
            let groups = 3;
            let options = ConvOptions::same([9, 8], [kernel; 2], stride);
            let x = leaf(1, [3, 9, 8, groups * channels]);
            let weight = leaf::<4>(2, [groups * out, channels, kernel, kernel]);
            let bias = leaf::<1>(3, [groups * out]);
            let [height, width] = options.output_size([9, 8], [kernel; 2]);
            let upstream = random(4, [3, height, width, groups * out]);

            let found = grouped_conv2d(x.clone(), weight.clone(), bias.clone(), groups, options);
            let gradients = (found.clone() * upstream.clone()).sum().backward();
            let [found_x, found_weight] = [x.grad(&gradients).unwrap(), weight.grad(&gradients).unwrap()];
            let found_bias = bias.grad(&gradients).unwrap();

            let parts = (0..groups).map(|group| {
                let x = x.clone().narrow(3, group * channels, channels);
                let weight = weight.clone().narrow(0, group * out, out);
                plain(x, weight, bias.clone().narrow(0, group * out, out), options)
            });
            let expected = Tensor::cat(parts.collect(), 3);
            let gradients = (expected.clone() * upstream).sum().backward();
            assert_close("output", found.inner(), expected.inner(), 1e-5);
            assert_close("input gradient", found_x, x.grad(&gradients).unwrap(), 1e-5);
            assert_close("weight gradient", found_weight, weight.grad(&gradients).unwrap(), 1e-5);
            assert_close("bias gradient", found_bias, bias.grad(&gradients).unwrap(), 1e-5);
        }
    });
}

#[test]
fn takes_inputs_and_gradients_that_are_not_contiguous() {
    differentiate(|| {
        let options = ConvOptions::same([6, 8], [3, 3], 1);
        let stored = leaf(1, [2, 5, 8, 6]); // [batch, channel, width, height]
        let weight = leaf::<4>(2, [3, 3, 5, 7]); // [row, column, channel, out]
        let bias = leaf(3, [7]);
        let run = |convolve: &dyn Fn(Tensor<Diff, 4>, Tensor<Diff, 4>, Tensor<Diff, 1>) -> Tensor<Diff, 4>| {
            let output =
                convolve(stored.clone().permute([0, 3, 2, 1]), weight.clone().permute([3, 2, 0, 1]), bias.clone());
            let gradients = (output.clone().permute([3, 0, 1, 2]) * random(4, [7, 2, 6, 8])).sum().backward();
            (output.inner(), stored.grad(&gradients).unwrap(), weight.grad(&gradients).unwrap())
        };
        let found = run(&|x, weight, bias| conv2d(x, weight, bias, options));
        let expected = run(&|x, weight, bias| plain(x, weight, bias, options));
        assert_close("output", found.0, expected.0, 1e-5);
        assert_close("input gradient", found.1, expected.1, 1e-5);
        assert_close("weight gradient", found.2, expected.2, 1e-5);
    });
}

#[test]
fn gives_the_same_bits_on_one_thread_and_on_two() {
    for (stride, channels, out) in [(1, 16, 16), (2, 16, 32), (1, 40, 24)] {
        let options = ConvOptions::same([16, 16], [3, 3], stride);
        let run = || {
            differentiate(|| {
                let x = leaf(1, [19, 16, 16, channels]);
                let weight = leaf(2, [out, channels, 3, 3]);
                let bias = leaf(3, [out]);
                let output = conv2d(x.clone(), weight.clone(), bias.clone(), options);
                let gradients = (output.clone() * output.clone()).sum().backward();
                [
                    numbers(output.inner()),
                    numbers(x.grad(&gradients).unwrap()),
                    numbers(weight.grad(&gradients).unwrap()),
                    numbers(bias.grad(&gradients).unwrap()),
                ]
            })
        };
        assert_eq!(on_threads(1, run), on_threads(2, run));
    }
}

#[test]
fn runs_without_gradients() {
    let options = ConvOptions::symmetric([3, 3], 1);
    let [x, weight] = [random(1, [1, 4, 4, 2]).inner(), random(2, [3, 2, 3, 3]).inner()];
    let bias = random(3, [3]).inner();
    let found = conv2d::<Flex>(x.clone(), weight.clone(), bias.clone(), options);
    assert_close("output", found, plain(x, weight, bias, options), 1e-5);
}

#[test]
fn same_padding_puts_the_odd_zero_below_and_to_the_right() {
    assert_eq!(ConvOptions::same([32, 32], [3, 3], 2).padding, [0, 0, 1, 1]);
    assert_eq!(ConvOptions::same([32, 32], [3, 3], 1).padding, [1, 1, 1, 1]);
    assert_eq!(ConvOptions::same([33, 33], [3, 3], 2).padding, [1, 1, 1, 1]);
    assert_eq!(ConvOptions::same([32, 32], [1, 1], 2).padding, [0, 0, 0, 0]);
    assert_eq!(ConvOptions::same([32, 31], [3, 3], 2).output_size([32, 31], [3, 3]), [16, 16]);
}

#[test]
#[should_panic(expected = "same channels")]
fn refuses_a_weight_of_other_channels() {
    let [x, weight] = [random(1, [1, 4, 4, 2]), random(2, [3, 4, 3, 3])];
    let _ = conv2d(x, weight, random(3, [3]), ConvOptions::symmetric([3, 3], 1));
}
