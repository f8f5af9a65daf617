//! What experts see of a map, and the sums of the network's ends, against burn's operations.

mod support;

use burn::tensor::{Int, Tensor, TensorData};
use patchdoor_kernels::{
    add, average_positions, batch_norm_relu, differentiate, gather_weighted, join, scale_shift_relu,
    weighted_batch_norm_relu, weighted_scale_shift_relu,
};
use support::{Diff, assert_close, leaf, numbers, on_threads, random};

const EPSILON: f64 = 1e-3;

/// What every expert sees, in burn's operations.
fn seen(map: &Tensor<Diff, 4>, weights: &Tensor<Diff, 3>) -> Tensor<Diff, 4> {
    let [batch, height, width, _] = map.dims();
    let experts = weights.dims()[1];
    let parts = (0..experts).map(|e| map.clone() * weights.clone().narrow(1, e, 1).reshape([batch, height, width, 1]));
    Tensor::cat(parts.collect(), 3)
}

/// Weights of which three in four are zero, as a gate gives them.
fn gate(seed: u64, [batch, experts, positions]: [usize; 3]) -> Tensor<Diff, 3> {
    let weights = random::<3>(seed, [batch, experts, positions]).abs();
    let dropped = random::<3>(seed + 1, [batch, experts, positions]).lower_elem(0.5);
    weights.mask_fill(dropped, 0.0).require_grad()
}

#[test]
fn weighted_batch_norm_relu_agrees_with_burn_on_values_and_gradients() {
    differentiate(|| {
        for ([batch, height, width, channels], experts) in
            [([3, 4, 5, 16], 4), ([2, 3, 3, 5], 3), ([40, 8, 8, 33], 2), ([1, 2, 1, 1], 1)]
        {
            let map = leaf(1, [batch, height, width, channels]);
            let weights = gate(2, [batch, experts, height * width]);
            let [gamma, beta] = [leaf(4, [experts * channels]), leaf(5, [experts * channels])];
            let upstream = random(6, [batch, height, width, experts * channels]);

            let found = weighted_batch_norm_relu(map.clone(), weights.clone(), gamma.clone(), beta.clone(), EPSILON);
            let gradients = (found.output.clone() * upstream.clone()).sum().backward();
            let found_map = map.grad(&gradients).unwrap();
            let found_weights = weights.grad(&gradients).unwrap();
            let [found_gamma, found_beta] = [gamma.grad(&gradients).unwrap(), beta.grad(&gradients).unwrap()];

            let expected = batch_norm_relu(seen(&map, &weights), gamma.clone(), beta.clone(), EPSILON);
            let gradients = (expected.output.clone() * upstream).sum().backward();
            assert_close("output", found.output.inner(), expected.output.inner(), 1e-5);
            assert_close("mean", found.mean.inner(), expected.mean.inner(), 1e-5);
            assert_close("variance", found.variance.inner(), expected.variance.inner(), 1e-5);
            assert_close("map gradient", found_map, map.grad(&gradients).unwrap(), 1e-5);
            assert_close("weights gradient", found_weights, weights.grad(&gradients).unwrap(), 1e-5);
            assert_close("gamma gradient", found_gamma, gamma.grad(&gradients).unwrap(), 1e-5);
            assert_close("beta gradient", found_beta, beta.grad(&gradients).unwrap(), 1e-5);
        }
    });
}

#[test]
fn weighted_scale_shift_relu_agrees_with_burn() {
    differentiate(|| {
        let map = leaf(1, [3, 4, 5, 20]);
        let weights = gate(2, [3, 4, 20]);
        let [scale, shift] = [leaf(4, [80]), leaf(5, [80])];
        let expected = scale_shift_relu(seen(&map, &weights), scale.clone(), shift.clone());
        let found = weighted_scale_shift_relu(map.clone(), weights.clone(), scale.clone(), shift.clone());
        assert_close("recorded", found.inner(), expected.clone().inner(), 1e-5);
        let found = weighted_scale_shift_relu(map.inner(), weights.inner(), scale.inner(), shift.inner());
        assert_close("plain", found, expected.inner(), 1e-5);
    });
}

#[test]
fn maps_of_members_side_by_side_are_normalized_each_by_itself() {
    differentiate(|| {
        for (channels, experts, members) in [(16, 4, 2), (5, 1, 3)] {
            let wide = members * experts * channels;
            let maps = leaf(1, [3, 4, 5, members * channels]);
            let weights = gate(2, [3, members * experts, 20]);
            let [gamma, beta] = [leaf(4, [wide]), leaf(5, [wide])];
            let upstream = random(6, [3, 4, 5, wide]);

            let found = weighted_batch_norm_relu(maps.clone(), weights.clone(), gamma.clone(), beta.clone(), EPSILON);
            let scaled = weighted_scale_shift_relu(maps.clone(), weights.clone(), gamma.clone(), beta.clone());
            let gradients = ((found.output.clone() + scaled.clone()) * upstream.clone()).sum().backward();
            let found_maps = maps.grad(&gradients).unwrap();
            let found_weights = weights.grad(&gradients).unwrap();
            let found_parameters = [gamma.grad(&gradients).unwrap(), beta.grad(&gradients).unwrap()];

            let alone = (0..members).map(|member| {
                let map = maps.clone().narrow(3, member * channels, channels);
                let weights = weights.clone().narrow(1, member * experts, experts);
                let [gamma, beta] =
                    [&gamma, &beta].map(|all| all.clone().narrow(0, member * experts * channels, experts * channels));
                let normalized =
                    weighted_batch_norm_relu(map.clone(), weights.clone(), gamma.clone(), beta.clone(), EPSILON);
                (normalized.output, weighted_scale_shift_relu(map, weights, gamma, beta))
            });
            let (outputs, shifted) = alone.unzip();
            let (outputs, shifted) = (Tensor::cat(outputs, 3), Tensor::cat(shifted, 3));
            let gradients = ((outputs.clone() + shifted.clone()) * upstream).sum().backward();
            assert_close("output", found.output.inner(), outputs.inner(), 1e-5);
            assert_close("scaled", scaled.inner(), shifted.inner(), 1e-5);
            assert_close("map gradient", found_maps, maps.grad(&gradients).unwrap(), 1e-5);
            assert_close("weights gradient", found_weights, weights.grad(&gradients).unwrap(), 1e-5);
            for (found, parameter) in found_parameters.into_iter().zip([&gamma, &beta]) {
                assert_close("parameter gradient", found, parameter.grad(&gradients).unwrap(), 1e-5);
            }
        }
    });
}

#[test]
fn joined_tensors_get_their_own_share_of_the_gradient() {
    differentiate(|| {
        // 9, 35 and 128 are joined in shares, 11 by burn.
        for count in [1, 2, 7, 8, 9, 11, 35, 128] {
            let parts: Vec<_> = (0..count).map(|part| leaf(part as u64, [2, 3])).collect();
            let joined = join(parts.clone());
            let upstream = random::<2>(1000, [2 * count, 3]);
            let gradients = (joined.clone() * upstream.clone()).sum().backward();
            assert_close("joined", joined.inner(), Tensor::cat(parts.clone(), 0).inner(), 0.0);
            for (index, part) in parts.iter().enumerate() {
                let expected = upstream.clone().narrow(0, 2 * index, 2).inner();
                assert_close(&format!("{count} parts"), part.grad(&gradients).unwrap(), expected, 0.0);
            }
        }
    });
}

#[test]
fn add_passes_its_gradient_to_both_sides() {
    differentiate(|| {
        let [left, right] = [leaf::<4>(1, [3, 5, 7, 11]), leaf::<4>(2, [3, 5, 7, 11])];
        let found = add(left.clone(), right.clone());
        assert_eq!(numbers(found.clone().inner()), numbers((left.clone() + right.clone()).inner()));
        let upstream = random::<4>(3, [3, 5, 7, 11]);
        let gradients = (found * upstream.clone()).sum().backward();
        assert_eq!(numbers(left.grad(&gradients).unwrap()), numbers(upstream.clone().inner()));
        assert_eq!(numbers(right.grad(&gradients).unwrap()), numbers(upstream.inner()));
        let transposed = add(left.clone().permute([0, 2, 1, 3]), right.clone().permute([0, 2, 1, 3]));
        assert_eq!(numbers(transposed.inner()), numbers((left + right).permute([0, 2, 1, 3]).inner()));
    });
}

#[test]
fn average_positions_agrees_with_burn_on_values_and_gradients() {
    differentiate(|| {
        let map = leaf(1, [3, 5, 7, 11]);
        let upstream = random(2, [3, 11]);
        let found = average_positions(map.clone());
        let gradients = (found.clone() * upstream.clone()).sum().backward();
        let found_gradient = map.grad(&gradients).unwrap();
        let expected: Tensor<Diff, 2> = map.clone().reshape([3, 35, 11]).mean_dim(1).reshape([3, 11]);
        let gradients = (expected.clone() * upstream).sum().backward();
        assert_close("output", found.inner(), expected.inner(), 1e-5);
        assert_close("gradient", found_gradient, map.grad(&gradients).unwrap(), 1e-5);
    });
}

#[test]
fn gives_the_same_bits_on_one_thread_and_on_two() {
    let run = || {
        differentiate(|| {
            let map = leaf(1, [37, 8, 8, 24]);
            let weights = gate(2, [37, 4, 64]);
            let [gamma, beta] = [leaf(4, [96]), leaf(5, [96])];
            let normalized =
                weighted_batch_norm_relu(map.clone(), weights.clone(), gamma.clone(), beta.clone(), EPSILON);
            let pooled = average_positions(add(normalized.output.clone(), normalized.output));
            let gradients = (pooled.clone() * pooled.clone()).sum().backward();
            [
                numbers(pooled.inner()),
                numbers(map.grad(&gradients).unwrap()),
                numbers(weights.grad(&gradients).unwrap()),
                numbers(gamma.grad(&gradients).unwrap()),
                numbers(beta.grad(&gradients).unwrap()),
            ]
        })
    };
    assert_eq!(on_threads(1, run), on_threads(2, run));
}

/// Every expert's selected patches in burn's operations.
fn gathered(patches: &Tensor<Diff, 4>, weights: &Tensor<Diff, 3>, indices: &Tensor<Diff, 3, Int>) -> Tensor<Diff, 4> {
    let [batch, count, positions, channels] = patches.dims();
    let [_, experts, selected] = indices.dims();
    let parts = (0..experts).map(|expert| {
        let chosen = indices.clone().narrow(1, expert, 1).reshape([batch, selected]);
        let weights = weights.clone().narrow(1, expert, 1).reshape([batch, count]).gather(1, chosen.clone());
        let chosen = chosen.reshape([batch, selected, 1]).repeat(&[1, 1, positions * channels]);
        let taken = patches.clone().reshape([batch, count, positions * channels]).gather(1, chosen);
        (taken * weights.reshape([batch, selected, 1])).reshape([batch, selected, positions, channels])
    });
    Tensor::cat(parts.collect(), 3)
}

/// Numbers of patches, each expert's in no order and without repetition.
fn selection([batch, experts, selected]: [usize; 3], count: usize) -> Tensor<Diff, 3, Int> {
    assert!(!count.is_multiple_of(5), "in steps of five only numbers without that divisor are each visited once");
    let numbers: Vec<i64> =
        (0..batch * experts).flat_map(|row| (0..selected).map(move |k| ((row + 5 * k) % count) as i64)).collect();
    Tensor::from_data(TensorData::new(numbers, [batch, experts, selected]), &burn_flex::FlexDevice)
}

#[test]
fn gathering_agrees_with_burn_on_values_and_gradients() {
    differentiate(|| {
        for ([batch, count, positions, channels], experts, selected) in
            [([3, 16, 1, 32], 4, 5), ([2, 9, 4, 5], 3, 9), ([40, 64, 1, 33], 2, 16), ([1, 2, 1, 1], 1, 1)]
        {
            let patches = leaf(1, [batch, count, positions, channels]);
            let weights = leaf(2, [batch, experts, count]);
            let indices = selection([batch, experts, selected], count);
            let upstream = random(3, [batch, selected, positions, experts * channels]);

            let found = gather_weighted(patches.clone(), weights.clone(), indices.clone());
            let gradients = (found.clone() * upstream.clone()).sum().backward();
            let (found_patches, found_weights) = (patches.grad(&gradients).unwrap(), weights.grad(&gradients).unwrap());

            let expected = gathered(&patches, &weights, &indices);
            let gradients = (expected.clone() * upstream).sum().backward();
            assert_close("output", found.inner(), expected.inner(), 1e-6);
            assert_close("patches gradient", found_patches, patches.grad(&gradients).unwrap(), 1e-5);
            assert_close("weights gradient", found_weights, weights.grad(&gradients).unwrap(), 1e-5);
        }
    });
}
