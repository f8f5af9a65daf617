//! What the precision in use changes, which is one of the whole process: so this file has one test.

mod support;

use burn::tensor::Tensor;
use burn_flex::Flex;
use patchdoor_kernels::{
    ConvOptions, InferenceConv, Precision, batch_norm_relu, conv2d, differentiate, inference_conv2d, inference_residual,
};
use support::{Diff, leaf, numbers, on_threads, random};

/// Output and gradients of a convolution.
fn convolved(channels: usize) -> Vec<Vec<f32>> {
    differentiate(|| {
        let (x, weight, bias) = (leaf(1, [4, 9, 11, channels]), leaf(2, [34, channels, 3, 3]), leaf(3, [34]));
        let output = conv2d(x.clone(), weight.clone(), bias.clone(), ConvOptions::same([9, 11], [3, 3], 2));
        let gradients = (output.clone() * random::<4>(4, output.dims())).sum().backward();
        vec![
            numbers(output.inner()),
            numbers(x.grad(&gradients).expect("a leaf")),
            numbers(weight.grad(&gradients).expect("a leaf")),
            numbers(bias.grad(&gradients).expect("a leaf")),
        ]
    })
}

/// Layers of inference, one by one and as a block; of an even number of rows by tiles of 2x2.
fn inferred(size: [usize; 2]) -> Vec<Vec<f32>> {
    let tensor = |seed, shape: [usize; 4]| -> Tensor<Flex, 4> { random(seed, shape).inner() };
    let vector = |seed, length: usize| -> Tensor<Flex, 1> { random::<1>(seed, [length]).inner() };
    let options = ConvOptions::same(size, [3, 3], 1);
    let conv = |seed, channels, out| InferenceConv {
        before: None,
        weight: tensor(seed, [out, channels, 3, 3]),
        bias: vector(seed + 1, out),
        added: None,
        after: None,
        groups: 1,
        options,
    };
    let x = tensor(1, [3, size[0], size[1], 36]);
    let first = InferenceConv {
        before: Some([vector(2, 36), vector(3, 36)]),
        after: Some([vector(4, 38), vector(5, 38)]),
        ..conv(6, 36, 38)
    };
    let (second, shortcut) = (conv(8, 38, 34), conv(10, 36, 34));
    let inner = inference_conv2d(x.clone(), first.clone());
    let added = Some(inference_conv2d(x.clone(), shortcut.clone()));
    let output = inference_conv2d(inner.clone(), InferenceConv { added, ..second.clone() });
    vec![numbers(inner), numbers(output), numbers(inference_residual(x, first, second, shortcut))]
}

fn distance(found: &[f32], expected: &[f32]) -> f32 {
    let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    found.iter().zip(expected).map(|(found, expected)| (found - expected).abs()).fold(0.0, f32::max) / largest
}

/// A convolution in inference, by tiles, and in training, which knows none; of rectified inputs, as a network has.
fn both_ways() -> [Vec<f32>; 2] {
    let x: Tensor<Diff, 4> = random(1, [2, 8, 12, 64]).clamp_min(0.0);
    let (weight, bias) = (random::<4>(2, [64, 64, 3, 3]), random::<1>(3, [64]));
    let options = ConvOptions::same([8, 12], [3, 3], 1);
    let conv = InferenceConv {
        before: None,
        weight: weight.clone().inner(),
        bias: bias.clone().inner(),
        added: None,
        after: None,
        groups: 1,
        options,
    };
    let by_tiles = inference_conv2d(x.clone().inner(), conv);
    [by_tiles, differentiate(|| conv2d(x, weight, bias, options)).inner()].map(numbers)
}

/// Root of the mean squared difference, in shares of the root mean square of what is expected.
fn error(found: &[f32], expected: &[f32]) -> f32 {
    let squares: f32 = found.iter().zip(expected).map(|(found, expected)| (found - expected).powi(2)).sum();
    (squares / expected.iter().map(|value| value * value).sum::<f32>()).sqrt()
}

#[test]
fn convolutions_round_their_operands_and_nothing_else_is_rounded() {
    let normalized = || {
        let x: Tensor<Diff, 4> = random(1, [3, 5, 5, 20]);
        numbers(batch_norm_relu(x, random(2, [20]), random(3, [20]), 1e-3).output.inner())
    };
    let [_, exact_map] = both_ways();
    let exact = [convolved(20), convolved(3), inferred([9, 11]), inferred([8, 12])];
    let exactly_normalized = normalized();
    Precision::Bf16.choose();
    let rounded = [convolved(20), convolved(3), inferred([9, 11]), inferred([8, 12])];
    assert_eq!(Precision::chosen(), Precision::Bf16);
    let [by_tiles, direct] = both_ways().map(|map| error(&map, &exact_map));
    assert_eq!(normalized(), exactly_normalized);
    let threads = [1, 2].map(|threads| on_threads(threads, || (convolved(20), inferred([9, 11]), inferred([8, 12]))));
    Precision::Tf32.choose();
    assert_eq!(convolved(20), exact[0], "the CPU has no TF32");
    Precision::F32.choose();
    assert_eq!(convolved(20), exact[0]);
    assert_eq!(threads[0], threads[1], "bits depend on the threads");

    // Tiles of rectified inputs add up four values before they are rounded.
    assert!(
        direct > 1e-4 && by_tiles < 5e-3 && by_tiles < 2.5 * direct,
        "tiles lose {by_tiles}, a direct sum {direct}"
    );
    for (index, (found, expected)) in rounded.iter().flatten().zip(exact.iter().flatten()).enumerate() {
        let distance = distance(found, expected);
        // The gradient of a bias is a sum without products. Of three channels the output is not rounded, but from its 34
        // channels the gradient of the input is, as that of the weight is from pairs of pixels.
        if [3, 4, 7].contains(&index) {
            assert_eq!(found, expected, "result {index} is not rounded");
        } else {
            // Operands lose 2^-9 of their value at most, hundreds of products of either sign.
            assert!((1e-5..1e-2).contains(&distance), "result {index} is {distance} off");
        }
    }
    for layers in &rounded[2..] {
        let [_, layers, block] = &layers[..] else { panic!("three results") };
        assert!(distance(block, layers) < 1e-6, "a block rounds what its layers round");
    }
}
