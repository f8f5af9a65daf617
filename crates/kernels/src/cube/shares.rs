//! Gradients of weights that cubes computed for some positions each.

use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::sizes::Sizes;
use super::tensors::{array, empty};

/// Units of a cube.
const UNITS: usize = 256;

/// Adds up the chunks' shares, `[chunk, out, tap * channel + 1]`.
#[cube(launch_unchecked)]
fn add_shares(
    shares: &Array<f32>,
    weight: &mut Array<f32>,
    bias: &mut Array<f32>,
    chunks: u32,
    out: u32,
    in_group: u32,
    area: u32,
) {
    let taps = area * in_group;
    let wide = taps + 1u32;
    let at = ABSOLUTE_POS as u32;
    if at < out * wide {
        let mut sum = 0.0f32;
        for chunk in 0..chunks {
            sum += shares[(chunk * out * wide + at) as usize];
        }
        let filter = at / wide;
        let tap = at % wide;
        if tap == taps {
            bias[filter as usize] = sum;
        } else {
            let channel = tap % in_group;
            weight[((filter * in_group + channel) * area + tap / in_group) as usize] = sum;
        }
    }
}

/// The gradients of weight and bias: the sums of all chunks' shares.
pub(super) fn join_shares<R: CubeRuntime>(
    shares: &CubeTensor<R>,
    sizes: &Sizes,
    chunks: usize,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let (in_group, area) = (sizes.channels / sizes.groups, sizes.kernel[0] * sizes.kernel[1]);
    let weight = empty(shares, [sizes.out, in_group, sizes.kernel[0], sizes.kernel[1]]);
    let bias = empty(shares, [sizes.out]);
    unsafe {
        add_shares::launch_unchecked::<R>(
            &shares.client,
            CubeCount::Static((sizes.out * (area * in_group + 1)).div_ceil(UNITS) as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            array(shares),
            array(&weight),
            array(&bias),
            chunks as u32,
            sizes.out as u32,
            in_group as u32,
            area as u32,
        );
    }
    (weight, bias)
}
