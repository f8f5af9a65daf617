//! Convolutions in inference against the operations they consist of.

mod support;

use burn::tensor::Tensor;
use burn_flex::{Flex, FlexDevice};
use patchdoor_kernels::{
    ConvOptions, InferenceConv, add, grouped_conv2d, inference_conv2d, inference_residual, scale_shift_relu,
};
use support::{assert_close, numbers, on_threads, random};

/// Channels, groups, outputs, kernel, stride: what a network has, and what fits no vector.
const SHAPES: [([usize; 2], usize, usize, usize, usize, usize); 10] = [
    ([32, 32], 16, 1, 16, 3, 1),
    ([16, 16], 32, 1, 64, 3, 2),
    ([8, 8], 64, 1, 128, 1, 2),
    ([7, 9], 3, 1, 5, 3, 1),
    ([5, 11], 22, 1, 37, 3, 2),
    ([9, 17], 12, 3, 9, 3, 1),
    ([4, 3], 300, 1, 40, 3, 1),
    ([8, 12], 37, 1, 45, 3, 1),
    ([32, 32], 32, 1, 32, 3, 1),
    ([4, 6], 80, 2, 140, 3, 1),
];

fn tensor<const D: usize>(seed: u64, shape: [usize; D]) -> Tensor<Flex, D> {
    random(seed, shape).inner()
}

fn conv(
    seed: u64,
    size: [usize; 2],
    [channels, groups, out]: [usize; 3],
    kernel: usize,
    stride: usize,
) -> InferenceConv<Flex> {
    InferenceConv {
        before: None,
        weight: tensor(seed, [out, channels / groups, kernel, kernel]),
        bias: tensor(seed + 1, [out]),
        added: None,
        after: None,
        groups,
        options: ConvOptions::same(size, [kernel; 2], stride),
    }
}

fn constants(seed: u64, channels: usize) -> [Tensor<Flex, 1>; 2] {
    [tensor(seed, [channels]), tensor(seed + 1, [channels])]
}

/// One operation after the other.
fn expected(x: Tensor<Flex, 4>, conv: InferenceConv<Flex>) -> Tensor<Flex, 4> {
    let InferenceConv { before, weight, bias, added, after, groups, options } = conv;
    let normalized = |x: Tensor<Flex, 4>, constants: Option<[Tensor<Flex, 1>; 2]>| match constants {
        Some([scale, shift]) => scale_shift_relu(x, scale, shift),
        None => x,
    };
    let output = grouped_conv2d(normalized(x, before), weight, bias, groups, options);
    let output = match added {
        Some(added) => add(output, added),
        None => output,
    };
    normalized(output, after)
}

#[test]
fn every_combination_agrees_with_its_operations() {
    for (index, (size, channels, groups, out, kernel, stride)) in SHAPES.into_iter().enumerate() {
        for combination in 0..8 {
            let plain = conv(1, size, [channels, groups, out], kernel, stride);
            let [height, width] = plain.output_size(size);
            let has = |bit: usize| combination & bit > 0;
            let conv = InferenceConv {
                before: has(1).then(|| constants(3, channels)),
                added: has(2).then(|| tensor(5, [3, height, width, out])),
                after: has(4).then(|| constants(6, out)),
                ..plain
            };
            let x = tensor(8, [3, size[0], size[1], channels]);
            let found = inference_conv2d(x.clone(), conv.clone());
            // Sums of up to 2,700 products, which f32 rounds in either form.
            assert_close(&format!("shape {index}, {combination:03b}"), found, expected(x, conv), 2e-6);
        }
    }
}

/// Root of the mean squared difference, in shares of the root mean square of what is expected.
fn error(found: &[f32], expected: &[f64]) -> f64 {
    let squares: f64 = found.iter().zip(expected).map(|(found, expected)| (f64::from(*found) - expected).powi(2)).sum();
    (squares / expected.iter().map(|value| value * value).sum::<f64>()).sqrt()
}

/// A convolution of one group, 3x3 within one row and column of zeros, in f64.
fn exactly(x: &Tensor<Flex, 4>, conv: &InferenceConv<Flex>) -> Vec<f64> {
    let [batch, height, width, channels] = x.dims();
    let out = conv.weight.dims()[0];
    let [x, weight, bias] = [numbers(x.clone()), numbers(conv.weight.clone()), numbers(conv.bias.clone())]
        .map(|values| values.into_iter().map(f64::from).collect::<Vec<_>>());
    let mut output = Vec::new();
    for pixel in 0..batch * height * width {
        let [image, row, column] = [pixel / width / height, pixel / width % height, pixel % width];
        for target in 0..out {
            let mut sum = bias[target];
            for (tap, (down, right)) in (0..3).flat_map(|down| (0..3).map(move |right| (down, right))).enumerate() {
                if (1..=height).contains(&(row + down)) && (1..=width).contains(&(column + right)) {
                    let from = (image * height + row + down - 1) * width + column + right - 1;
                    for channel in 0..channels {
                        sum += x[from * channels + channel] * weight[(target * channels + channel) * 9 + tap];
                    }
                }
            }
            output.push(sum);
        }
    }
    output
}

#[test]
fn convolutions_by_tiles_are_as_exact_as_direct_ones() {
    // Rectified inputs, as a network has, of which a tile's sums do not cancel.
    for [channels, out] in [[16, 16], [64, 64], [128, 40]] {
        let conv = conv(1, [8, 12], [channels, 1, out], 3, 1);
        let x = tensor(3, [2, 8, 12, channels]).clamp_min(0.0);
        let expected = exactly(&x, &conv);
        let by_tiles = error(&numbers(inference_conv2d(x.clone(), conv.clone())), &expected);
        let direct = error(&numbers(grouped_conv2d(x, conv.weight, conv.bias, 1, conv.options)), &expected);
        assert!(by_tiles > 0.0 && by_tiles < 4e-7 && by_tiles < 1.2 * direct, "{by_tiles}, direct {direct}");
    }
}

#[test]
fn a_residual_block_agrees_with_its_operations() {
    // Sizes that tiles of 2x2 fit, and odd ones.
    for (size, channels, inner, out, stride) in [
        ([9, 12], 16, 16, 32, 1),
        ([8, 12], 16, 16, 32, 1),
        ([9, 12], 16, 32, 32, 2),
        ([16, 12], 16, 32, 32, 2),
        ([9, 12], 5, 7, 18, 2),
        ([8, 12], 64, 6, 3, 1),
        ([8, 12], 20, 40, 37, 1),
    ] {
        let first = InferenceConv {
            before: Some(constants(1, channels)),
            after: Some(constants(3, inner)),
            ..conv(5, size, [channels, 1, inner], 3, stride)
        };
        let second = conv(7, first.output_size(size), [inner, 1, out], 3, 1);
        let shortcut = conv(9, size, [channels, 1, out], 1, stride);
        let x = tensor(11, [5, size[0], size[1], channels]);
        let block = || inference_residual(x.clone(), first.clone(), second.clone(), shortcut.clone());
        let branch = expected(expected(x.clone(), first.clone()), second.clone());
        let sum = add(branch, expected(x.clone(), shortcut.clone()));
        assert_close("block", block(), sum, 1e-6);
        assert_eq!(numbers(on_threads(1, block)), numbers(on_threads(2, block)), "bits depend on the threads");
    }
}

#[test]
fn what_is_added_stays_what_it_was() {
    let conv = conv(1, [6, 6], [4, 1, 8], 3, 1);
    let added = tensor(3, [2, 6, 6, 8]);
    let (before, x) = (numbers(added.clone()), tensor(4, [2, 6, 6, 4]));
    let conv = InferenceConv { added: Some(added.clone()), ..conv };
    let output = inference_conv2d(x, conv);
    assert_ne!(numbers(output), before);
    assert_eq!(numbers(added), before);
}

#[test]
#[should_panic(expected = "one parameter per channel")]
fn a_normalization_of_other_channels_is_refused() {
    let conv = InferenceConv { before: Some(constants(1, 5)), ..conv(3, [4, 4], [4, 1, 4], 3, 1) };
    inference_conv2d(tensor(5, [1, 4, 4, 4]), conv);
}

#[test]
#[should_panic(expected = "the output's shape")]
fn a_summand_of_another_shape_is_refused() {
    let conv = InferenceConv { added: Some(tensor(1, [1, 4, 4, 5])), ..conv(3, [4, 4], [4, 1, 4], 3, 1) };
    inference_conv2d(Tensor::zeros([1, 4, 4, 4], &FlexDevice), conv);
}
