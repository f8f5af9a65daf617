//! The choice of patches: a cube ranks all patches of one image for one expert.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::sums::total;
use super::tensors::{array, contiguous, cubes, empty, empty_of};

const UNITS: usize = 64;

/// A number whose order as an integer is the total order of floats, in which -0 lies below 0.
#[cube]
fn total_order(value: f32) -> i32 {
    let bits = i32::reinterpret(value);
    let mut key = bits;
    if bits < 0 {
        key = bits ^ 2_147_483_647i32;
    }
    key
}

#[cube]
fn largest(shared: &mut SharedMemory<f32>, value: f32) -> f32 {
    sync_cube();
    shared[UNIT_POS as usize] = value;
    sync_cube();
    let mut found = shared[0];
    for unit in 1..CUBE_DIM_X {
        found = max(found, shared[unit as usize]);
    }
    found
}

#[cube(launch_unchecked)]
fn choose(
    scores: &Array<f32>,
    weights: &mut Array<f32>,
    indices: &mut Array<i32>,
    rows: u32,
    selected: u32,
    #[comptime] patches: usize,
    #[comptime] softmax_first: bool,
) {
    let mut values = SharedMemory::<f32>::new(patches);
    let mut kept = SharedMemory::<u32>::new(patches);
    let mut shared = SharedMemory::<f32>::new(64usize);
    let row = CUBE_POS as u32;
    if row < rows {
        let patches = comptime!(patches as u32);
        let mut patch = UNIT_POS;
        let mut found = f32::min_value();
        while patch < patches {
            let score = scores[(row * patches + patch) as usize];
            values[patch as usize] = score;
            found = max(found, score);
            patch += CUBE_DIM_X;
        }
        let highest = largest(&mut shared, found);
        let mut patch = UNIT_POS;
        let mut sum = 0.0f32;
        while patch < patches {
            let own = total_order(values[patch as usize]);
            let mut before = 0u32;
            for other in 0..patches {
                let key = total_order(values[other as usize]);
                if key > own || (key == own && other < patch) {
                    before += 1u32;
                }
            }
            let mut keeps = 0u32;
            if before < selected {
                keeps = 1u32;
            }
            kept[patch as usize] = keeps;
            if comptime!(softmax_first) || keeps == 1u32 {
                sum += (values[patch as usize] - highest).exp();
            }
            patch += CUBE_DIM_X;
        }
        let sum = total(&mut shared, sum);
        let mut patch = UNIT_POS;
        while patch < patches {
            let mut weight = 0.0f32;
            if kept[patch as usize] == 1u32 {
                weight = (values[patch as usize] - highest).exp() / sum;
                let mut place = 0u32;
                for other in 0..patch {
                    place += kept[other as usize];
                }
                indices[(row * selected + place) as usize] = i32::cast_from(patch);
            }
            weights[(row * patches + patch) as usize] = weight;
            patch += CUBE_DIM_X;
        }
    }
}

#[cube(launch_unchecked)]
fn choice_gradient(
    scores: &Array<f32>,
    weights: &Array<f32>,
    gradient: &Array<f32>,
    output: &mut Array<f32>,
    rows: u32,
    patches: u32,
    #[comptime] softmax_first: bool,
) {
    let mut shared = SharedMemory::<f32>::new(64usize);
    let row = CUBE_POS as u32;
    if row < rows {
        let mut highest = 0.0f32;
        let mut sum = 1.0f32;
        if comptime!(softmax_first) {
            let mut found = f32::min_value();
            let mut patch = UNIT_POS;
            while patch < patches {
                found = max(found, scores[(row * patches + patch) as usize]);
                patch += CUBE_DIM_X;
            }
            highest = largest(&mut shared, found);
            let mut own = 0.0f32;
            let mut patch = UNIT_POS;
            while patch < patches {
                own += (scores[(row * patches + patch) as usize] - highest).exp();
                patch += CUBE_DIM_X;
            }
            sum = total(&mut shared, own);
        }
        let mut own = 0.0f32;
        let mut patch = UNIT_POS;
        while patch < patches {
            let at = (row * patches + patch) as usize;
            own += gradient[at] * weights[at];
            patch += CUBE_DIM_X;
        }
        let dot = total(&mut shared, own);
        let mut patch = UNIT_POS;
        while patch < patches {
            let at = (row * patches + patch) as usize;
            // A selected weight that has become zero passes on no gradient either way.
            let mut probability = weights[at];
            if comptime!(softmax_first) {
                probability = (scores[at] - highest).exp() / sum;
            }
            let mut of_weight = 0.0f32;
            if weights[at] > 0.0f32 {
                of_weight = gradient[at];
            }
            output[at] = probability * (of_weight - dot);
            patch += CUBE_DIM_X;
        }
    }
}

/// Weights and rising indices of each row's best patches.
pub(super) fn choose_patches<R: CubeRuntime>(
    scores: CubeTensor<R>,
    selected: usize,
    softmax_first: bool,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let scores = contiguous(scores);
    let [batch, experts, patches] = scores.meta.shape().dims();
    let weights = empty(&scores, [batch, experts, patches]);
    let indices = empty_of(&scores, [batch, experts, selected], DType::I32);
    unsafe {
        choose::launch_unchecked::<R>(
            &scores.client,
            cubes(batch * experts),
            CubeDim::new_1d(UNITS as u32),
            array(&scores),
            array(&weights),
            array(&indices),
            (batch * experts) as u32,
            selected as u32,
            patches,
            softmax_first,
        );
    }
    (weights, indices)
}

/// Gradient of [`choose_patches`]'s weights for the scores.
pub(super) fn choose_patches_gradient<R: CubeRuntime>(
    scores: CubeTensor<R>,
    weights: CubeTensor<R>,
    gradient: CubeTensor<R>,
    softmax_first: bool,
) -> CubeTensor<R> {
    let [scores, weights, gradient] = [scores, weights, gradient].map(contiguous);
    let [batch, experts, patches] = scores.meta.shape().dims();
    let output = empty(&scores, [batch, experts, patches]);
    unsafe {
        choice_gradient::launch_unchecked::<R>(
            &scores.client,
            cubes(batch * experts),
            CubeDim::new_1d(UNITS as u32),
            array(&scores),
            array(&weights),
            array(&gradient),
            array(&output),
            (batch * experts) as u32,
            patches as u32,
            softmax_first,
        );
    }
    output
}
