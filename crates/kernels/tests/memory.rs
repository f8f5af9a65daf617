//! Every fast operation once or twice on small and odd shapes, few enough to run where each access to memory is checked.
//!
//! `cargo +nightly miri test --package patchdoor-kernels --test memory` interprets the portable instructions (Miri shows
//! the program a machine without AVX), an address sanitizer runs this machine's own; `docs/performance.md` has the
//! commands. The values are held against burn's operations by the other tests; here each result must be finite and, as
//! the second time memory is used again, the same twice.

mod support;

use burn::backend::Autodiff;
use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::{Flex, FlexDevice};
use patchdoor_kernels::{
    ConvOptions, InferenceConv, add, average_positions, batch_norm_relu, conv2d, differentiate, gather_weighted,
    grouped_conv2d, inference_conv2d, inference_residual, scale_shift_relu, weighted_batch_norm_relu,
    weighted_scale_shift_relu,
};
use support::{Diff, leaf, numbers, random};

/// Takes a leaf's gradient out of all.
type Leaf<'a> = &'a dyn Fn(&<Diff as burn::tensor::backend::AutodiffBackend>::Gradients) -> Vec<f32>;

/// The work's numbers, which must be finite and the same twice.
#[track_caller]
fn twice(work: impl Fn() -> Vec<Vec<f32>>) {
    let first = differentiate(&work);
    assert!(first.iter().all(|numbers| !numbers.is_empty()), "a result is missing");
    assert!(first.iter().flatten().all(|number| number.is_finite()), "a result is not finite");
    assert_eq!(first, differentiate(&work));
}

/// Output and gradients of leaves.
fn with_gradients<const N: usize, const D: usize>(
    output: &Tensor<Diff, N>,
    leaves: &[Leaf<'_>],
    upstream: Tensor<Diff, D>,
) -> Vec<Vec<f32>> {
    let upstream = upstream.reshape(output.dims());
    let gradients = (output.clone() * upstream).sum().backward();
    let mut all = vec![numbers(output.clone().inner())];
    all.extend(leaves.iter().map(|leaf| leaf(&gradients)));
    all
}

#[test]
fn convolutions_stay_in_their_memory() {
    for (size, channels, out, kernel, stride, groups) in
        [([5, 7], 3, 5, 3, 1, 1), ([6, 5], 9, 17, 3, 2, 1), ([4, 3], 6, 10, 1, 1, 2), ([5, 4], 2, 3, 1, 2, 1)]
    {
        let options = ConvOptions::same(size, [kernel, kernel], stride);
        twice(|| {
            let x = leaf(1, [2, size[0], size[1], channels]);
            let weight = leaf(2, [out, channels / groups, kernel, kernel]);
            let bias = leaf(3, [out]);
            let output = if groups == 1 {
                conv2d(x.clone(), weight.clone(), bias.clone(), options)
            } else {
                grouped_conv2d(x.clone(), weight.clone(), bias.clone(), groups, options)
            };
            let upstream = random::<4>(4, output.dims());
            with_gradients(
                &output,
                &[
                    &|gradients| numbers(x.grad(gradients).unwrap()),
                    &|gradients| numbers(weight.grad(gradients).unwrap()),
                    &|gradients| numbers(bias.grad(gradients).unwrap()),
                ],
                upstream,
            )
        });
    }
}

#[test]
fn convolutions_in_inference_stay_in_their_memory() {
    for (size, channels, inner, out, stride) in [([5, 7], 3, 5, 18, 1), ([6, 5], 34, 17, 3, 2), ([4, 6], 19, 35, 16, 1)]
    {
        let tensor = |seed, shape: [usize; 4]| random(seed, shape).inner();
        let vector = |seed, length| random::<1>(seed, [length]).inner();
        let conv = |seed, size, [channels, out]: [usize; 2], kernel: usize, stride| InferenceConv::<Flex> {
            before: None,
            weight: tensor(seed, [out, channels, kernel, kernel]),
            bias: vector(seed, out),
            added: None,
            after: None,
            groups: 1,
            options: ConvOptions::same(size, [kernel; 2], stride),
        };
        twice(|| {
            let x = tensor(1, [2, size[0], size[1], channels]);
            let first = InferenceConv {
                before: Some([vector(2, channels), vector(3, channels)]),
                after: Some([vector(4, inner), vector(5, inner)]),
                ..conv(6, size, [channels, inner], 3, stride)
            };
            let second = conv(7, first.output_size(size), [inner, out], 3, 1);
            let shortcut = conv(8, size, [channels, out], 1, stride);
            let layer = inference_conv2d(x.clone(), first.clone());
            vec![numbers(layer), numbers(inference_residual(x, first, second, shortcut))]
        });
    }
}

#[test]
fn normalizations_stay_in_their_memory() {
    // The last is large enough for its memory to be kept for the next call.
    for shape in [[1, 2, 3, 1], [2, 3, 5, 7], [1, 5, 3, 17], [2, 13, 16, 21]] {
        let channels = shape[3];
        twice(|| {
            let (x, gamma, beta) = (leaf(1, shape), leaf(2, [channels]), leaf(3, [channels]));
            let output = batch_norm_relu(x.clone(), gamma.clone(), beta.clone(), 1e-3).output;
            let mut all = with_gradients(
                &output,
                &[
                    &|gradients| numbers(x.grad(gradients).unwrap()),
                    &|gradients| numbers(gamma.grad(gradients).unwrap()),
                    &|gradients| numbers(beta.grad(gradients).unwrap()),
                ],
                random(4, shape),
            );
            let output = scale_shift_relu(x.clone(), gamma.clone(), beta.clone());
            let leaves: &[&dyn Fn(&_) -> Vec<f32>] = &[&|gradients| numbers(x.grad(gradients).unwrap())];
            all.extend(with_gradients(&output, leaves, random(4, shape)));
            all
        });
    }
}

#[test]
fn experts_stay_in_their_memory() {
    for ([batch, height, width, channels], experts, selected) in [([2, 3, 2, 5], 3, 2), ([1, 2, 2, 17], 2, 4)] {
        twice(|| {
            let map = leaf(1, [batch, height, width, channels]);
            let weights = leaf(2, [batch, experts, height * width]);
            let (gamma, beta) = (leaf(3, [experts * channels]), leaf(4, [experts * channels]));
            let seen = weighted_batch_norm_relu(map.clone(), weights.clone(), gamma.clone(), beta.clone(), 1e-3).output;
            let pooled = average_positions(add(seen.clone(), seen));
            let leaves: &[&dyn Fn(&_) -> Vec<f32>] = &[
                &|gradients| numbers(map.grad(gradients).unwrap()),
                &|gradients| numbers(weights.grad(gradients).unwrap()),
                &|gradients| numbers(gamma.grad(gradients).unwrap()),
            ];
            let mut all = with_gradients(&pooled, leaves, random(5, pooled.dims()));
            let (map, weights) = (map.inner(), weights.inner());
            all.push(numbers(weighted_scale_shift_relu(map, weights, gamma.inner(), beta.inner())));

            let patches = leaf(6, [batch, height * width, 1, channels]);
            let weights = leaf(2, [batch, experts, height * width]);
            let chosen: Vec<i64> =
                (0..batch * experts * selected).map(|place| ((3 * place) % (height * width)) as i64).collect();
            let chosen = TensorData::new(chosen, [batch, experts, selected]);
            let chosen = Tensor::<Autodiff<Flex>, 3, Int>::from_data(chosen, &FlexDevice);
            let gathered = gather_weighted(patches.clone(), weights.clone(), chosen);
            let leaves: &[&dyn Fn(&_) -> Vec<f32>] =
                &[&|gradients| numbers(patches.grad(gradients).unwrap()), &|gradients| {
                    numbers(weights.grad(gradients).unwrap())
                }];
            all.extend(with_gradients(&gathered, leaves, random(7, gathered.dims())));
            all
        });
    }
}
