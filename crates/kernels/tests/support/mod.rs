//! Inputs and comparisons the tests of this crate share.
#![allow(dead_code, reason = "every test file compiles its own copy and none uses all of it")]

use burn::backend::Autodiff;
use burn::tensor::{Tensor, TensorData};
use burn_flex::Flex;

/// The backend under test.
pub(crate) type Diff = Autodiff<Flex>;

/// Values in [-1, 1) that depend on the seed and the index alone.
pub(crate) fn values(seed: u64, count: usize) -> Vec<f32> {
    (0..count as u64)
        .map(|index| {
            // SplitMix64 (Steele, Lea and Flood 2014).
            let mut z = (seed << 32).wrapping_add(index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

pub(crate) fn random<const D: usize>(seed: u64, shape: [usize; D]) -> Tensor<Diff, D> {
    let data = TensorData::new(values(seed, shape.iter().product()), shape);
    Tensor::from_data(data, &burn_flex::FlexDevice)
}

/// A leaf whose gradient can be asked for.
pub(crate) fn leaf<const D: usize>(seed: u64, shape: [usize; D]) -> Tensor<Diff, D> {
    random(seed, shape).require_grad()
}

pub(crate) fn numbers<const D: usize>(tensor: Tensor<Flex, D>) -> Vec<f32> {
    tensor.into_data().to_vec().expect("the tensor holds f32")
}

/// Asserts that two tensors agree within `tolerance` of the largest magnitude in `expected`.
///
/// Sums of hundreds of terms lose digits relative to their terms, not to themselves, so single values near zero are not
/// held to their own magnitude.
#[track_caller]
pub(crate) fn assert_close<const D: usize>(
    name: &str,
    found: Tensor<Flex, D>,
    expected: Tensor<Flex, D>,
    tolerance: f32,
) {
    assert_eq!(found.dims(), expected.dims(), "{name}: shapes differ");
    let (found, expected) = (numbers(found), numbers(expected));
    let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let difference = (found - expected).abs();
        assert!(
            difference <= tolerance * largest.max(1e-30),
            "{name}[{index}]: found {found}, expected {expected}, largest {largest}"
        );
    }
}

/// Runs the work on a pool of so many threads.
pub(crate) fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("the pool starts").install(work)
}
