//! Threads that differentiate at once, each with parameters of its own that last, as in trainings side by side.

mod support;

use std::thread;

use burn::tensor::Tensor;
use patchdoor_kernels::{ConvOptions, average_positions, conv2d, differentiate};
use support::{Diff, leaf, numbers, random};

/// The bits of all gradients of some passes over the same leaves.
///
/// Leaves that outlive a pass and a concatenation of what comes of them are what burn 0.21 loses: in a second pass the
/// operation on a leaf begins a graph of one step, which nothing holds while the concatenation copies.
fn gradients([seed, rows, passes]: [usize; 3]) -> Vec<Vec<u32>> {
    let leaves = [leaf::<2>(seed as u64, [rows, 64]), leaf::<2>(seed as u64 + 1, [rows, 64])];
    let passes = (0..passes).map(|_| {
        differentiate(|| {
            let joined = Tensor::cat(leaves.iter().map(|leaf| leaf.clone().mul_scalar(2.0)).collect(), 0);
            let gradients = (joined.clone() * joined).sum().backward();
            let of = |leaf: &Tensor<Diff, 2>| numbers(leaf.grad(&gradients).expect("the leaf takes part"));
            leaves.iter().flat_map(of).map(f32::to_bits).collect()
        })
    });
    passes.collect()
}

#[test]
fn four_threads_find_the_gradients_that_one_finds() {
    // Passes that take long beside many short ones, which end while the others copy.
    let works = [[10, 1000, 150], [20, 1000, 150], [30, 2, 5000], [40, 2, 5000]];
    let expected = works.map(gradients);
    let found = thread::scope(|scope| {
        let threads = works.map(|work| scope.spawn(move || gradients(work)));
        threads.map(|thread| thread.join().expect("no gradient is lost"))
    });
    assert!(found == expected, "gradients differ from those of one thread");
}

#[test]
#[should_panic(expected = "must run in patchdoor_kernels::differentiate")]
fn a_pass_outside_of_its_turn_panics() {
    let weight = leaf::<4>(1, [3, 2, 1, 1]);
    let _ = conv2d(random(2, [1, 4, 4, 2]), weight, random(3, [3]), ConvOptions::same([4, 4], [1, 1], 1));
}

#[test]
#[should_panic(expected = "must run in patchdoor_kernels::differentiate")]
fn a_backward_pass_outside_of_its_turn_panics() {
    let map = leaf::<4>(1, [1, 4, 4, 2]);
    let loss = differentiate(|| average_positions(map).sum());
    let _ = loss.backward();
}
