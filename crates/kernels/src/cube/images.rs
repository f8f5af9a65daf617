//! Batches made on the device from images that live there.

use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::tensors::{array, contiguous, cubes, empty};

const UNITS: usize = 256;

#[cube(launch_unchecked)]
fn take(
    pixels: &Array<i32>,
    draws: &Array<i32>,
    output: &mut Array<f32>,
    count: u32,
    height: u32,
    width: u32,
    channels: u32,
    padding: u32,
) {
    let at = ABSOLUTE_POS as u32;
    if at < count {
        let channel = at % channels;
        let rest = at / channels;
        let column = rest % width;
        let rest = rest / width;
        let row = rest % height;
        let draw = rest / height * 4u32;
        let image = u32::cast_from(draws[draw as usize]);
        let mirror = draws[(draw + 1u32) as usize];
        let mut from_column = column;
        if mirror != 0 {
            from_column = width - 1u32 - column;
        }
        let from_row = row + u32::cast_from(draws[(draw + 2u32) as usize]);
        let from_column = from_column + u32::cast_from(draws[(draw + 3u32) as usize]);
        let mut value = 0.0f32;
        if from_row >= padding && from_column >= padding && from_row - padding < height && from_column - padding < width
        {
            let pixel = ((image * height + from_row - padding) * width + from_column - padding) * channels + channel;
            let word = u32::reinterpret(pixels[(pixel / 4u32) as usize]);
            value = f32::cast_from((word >> (8u32 * (pixel % 4u32))) & 255u32) / 255.0f32;
        }
        output[at as usize] = value;
    }
}

/// `[batch, height, width, channel]` in [0, 1] of packed pixels, four to a number.
pub(super) fn take_images<R: CubeRuntime>(
    pixels: CubeTensor<R>,
    draws: CubeTensor<R>,
    [height, width, channels]: [usize; 3],
    padding: usize,
) -> CubeTensor<R> {
    let [pixels, draws] = [pixels, draws].map(contiguous);
    let [batch, _] = draws.meta.shape().dims();
    let output = empty(&draws, [batch, height, width, channels]);
    let count = batch * height * width * channels;
    unsafe {
        take::launch_unchecked::<R>(
            &draws.client,
            cubes(count.div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            array(&pixels),
            array(&draws),
            array(&output),
            count as u32,
            height as u32,
            width as u32,
            channels as u32,
            padding as u32,
        );
    }
    output
}
