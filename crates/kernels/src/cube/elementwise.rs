//! Averages over positions.

use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::tensors::{array, contiguous, cubes, empty};

const UNITS: usize = 256;

#[cube(launch_unchecked)]
fn average(map: &Array<f32>, output: &mut Array<f32>, count: u32, positions: u32, channels: u32) {
    let at = ABSOLUTE_POS as u32;
    if at < count {
        let image = at / channels;
        let channel = at - image * channels;
        let mut sum = 0.0f32;
        for position in 0..positions {
            sum += map[((image * positions + position) * channels + channel) as usize];
        }
        output[at as usize] = sum / f32::cast_from(positions);
    }
}

#[cube(launch_unchecked)]
fn spread(gradient: &Array<f32>, output: &mut Array<f32>, count: u32, positions: u32, channels: u32) {
    let at = ABSOLUTE_POS as u32;
    if at < count {
        let image = at / (channels * positions);
        output[at as usize] = gradient[(image * channels + at % channels) as usize] / f32::cast_from(positions);
    }
}

/// `[batch, height, width, channel]` averaged to `[batch, channel]`.
pub(super) fn average_positions<R: CubeRuntime>(map: CubeTensor<R>) -> CubeTensor<R> {
    let map = contiguous(map);
    let [batch, height, width, channels] = map.meta.shape().dims();
    let output = empty(&map, [batch, channels]);
    let count = batch * channels;
    unsafe {
        average::launch_unchecked::<R>(
            &map.client,
            cubes(count.div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            array(&map),
            array(&output),
            count as u32,
            (height * width) as u32,
            channels as u32,
        );
    }
    output
}

/// Gradient of [`average_positions`].
pub(super) fn average_positions_gradient<R: CubeRuntime>(
    gradient: CubeTensor<R>,
    [height, width]: [usize; 2],
) -> CubeTensor<R> {
    let gradient = contiguous(gradient);
    let [batch, channels] = gradient.meta.shape().dims();
    let output = empty(&gradient, [batch, height, width, channels]);
    let count = batch * height * width * channels;
    unsafe {
        spread::launch_unchecked::<R>(
            &gradient.client,
            cubes(count.div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            array(&gradient),
            array(&output),
            count as u32,
            (height * width) as u32,
            channels as u32,
        );
    }
    output
}
