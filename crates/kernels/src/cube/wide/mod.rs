//! Convolutions of many channels, as products of matrices in tiles of 128 rows.
//!
//! Operands are read four channels at a time into registers, two steps ahead: what was read a step before is put into the one half of
//! shared memory, while what was put into the other is multiplied. Eight planes multiply on tensor cores, or 256 units without.

mod map;
mod product;
mod tile;
mod weight;

use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use self::map::convolve;
use self::tile::{ROWS, Shape, Tile, UNITS};
use self::weight::correlate;
use super::shares::join_shares;
use super::sizes::Sizes;
use super::tensors::{array, empty};
use super::tile::Form;

/// Cubes that a weight's gradient is spread over, about: three for every processor of a large device.
const CUBES: usize = 396;
/// Chunks of positions that a weight's gradient is cut into, at most: their sums are added up one after another.
const MOST_CHUNKS: usize = 132;

/// Puts a weight's numbers in the order in which they are read: `[out, tap, channel]`, or, going back, `[channel, tap, out]`
/// within each group.
#[cube(launch_unchecked)]
fn arrange(
    weight: &Array<f32>,
    arranged: &mut Array<f32>,
    out_group: u32,
    in_group: u32,
    area: u32,
    #[comptime] back: bool,
) {
    let at = ABSOLUTE_POS as u32;
    if (at as usize) < arranged.len() {
        if comptime!(back) {
            let filter = at % out_group;
            let rest = at / out_group;
            let tap = rest % area;
            let channel = rest / area % in_group;
            let group = rest / area / in_group;
            arranged[at as usize] = weight[(((group * out_group + filter) * in_group + channel) * area + tap) as usize];
        } else {
            let channel = at % in_group;
            let rest = at / in_group;
            let tap = rest % area;
            arranged[at as usize] = weight[((rest / area * in_group + channel) * area + tap) as usize];
        }
    }
}

/// A weight in the order in which it is read.
fn arranged<R: CubeRuntime>(weight: &CubeTensor<R>, sizes: &Sizes, back: bool) -> CubeTensor<R> {
    let count = weight.meta.shape().num_elements();
    let arranged = empty(weight, [count]);
    let [out_group, in_group] = [sizes.out / sizes.groups, sizes.channels / sizes.groups];
    unsafe {
        arrange::launch_unchecked::<R>(
            &weight.client,
            CubeCount::Static(count.div_ceil(UNITS) as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            array(weight),
            array(&arranged),
            out_group as u32,
            in_group as u32,
            (sizes.kernel[0] * sizes.kernel[1]) as u32,
            back,
        );
    }
    arranged
}

/// A convolution with its bias, if its channels fill tiles.
pub(super) fn forward<R: CubeRuntime>(
    x: &CubeTensor<R>,
    weight: &CubeTensor<R>,
    bias: &CubeTensor<R>,
    sizes: &Sizes,
    form: Form,
) -> Option<CubeTensor<R>> {
    let [in_group, out_group] = [sizes.channels / sizes.groups, sizes.out / sizes.groups];
    let tile = Tile::of(&x.client, out_group, in_group, sizes.kernel, form)?;
    let output = empty(x, [sizes.batch, sizes.out_size[0], sizes.out_size[1], sizes.out]);
    let weight = arranged(weight, sizes, false);
    let down = (sizes.batch * sizes.out_size[0] * sizes.out_size[1]).div_ceil(ROWS);
    unsafe {
        convolve::launch_unchecked::<R>(
            &x.client,
            CubeCount::Static(down as u32, out_group.div_ceil(tile.columns) as u32, sizes.groups as u32),
            CubeDim::new_1d(UNITS as u32),
            array(x),
            array(&weight),
            array(bias),
            array(&output),
            Shape::launch(sizes, false, 0),
            tile,
            false,
            form.operand(),
        );
    }
    Some(output)
}

/// The gradient of a convolution's input, if its channels fill tiles.
pub(super) fn input_gradient<R: CubeRuntime>(
    weight: &CubeTensor<R>,
    gradient: &CubeTensor<R>,
    sizes: &Sizes,
    form: Form,
) -> Option<CubeTensor<R>> {
    let [in_group, out_group] = [sizes.channels / sizes.groups, sizes.out / sizes.groups];
    let tile = Tile::of(&gradient.client, in_group, out_group, sizes.kernel, form)?;
    let stride = sizes.options.stride;
    let output = empty(gradient, [sizes.batch, sizes.size[0], sizes.size[1], sizes.channels]);
    let weight = arranged(weight, sizes, true);
    let most = sizes.batch * sizes.size[0].div_ceil(stride) * sizes.size[1].div_ceil(stride);
    unsafe {
        convolve::launch_unchecked::<R>(
            &gradient.client,
            CubeCount::Static(
                most.div_ceil(ROWS) as u32,
                in_group.div_ceil(tile.columns) as u32,
                (sizes.groups * stride * stride) as u32,
            ),
            CubeDim::new_1d(UNITS as u32),
            array(gradient),
            array(&weight),
            // Not read.
            array(&weight),
            array(&output),
            Shape::launch(sizes, true, 0),
            tile,
            true,
            form.operand(),
        );
    }
    Some(output)
}

/// The gradients of a convolution's weight and bias, if its channels fill tiles.
pub(super) fn weight_gradients<R: CubeRuntime>(
    x: &CubeTensor<R>,
    gradient: &CubeTensor<R>,
    sizes: &Sizes,
    form: Form,
) -> Option<(CubeTensor<R>, CubeTensor<R>)> {
    let [in_group, out_group] = [sizes.channels / sizes.groups, sizes.out / sizes.groups];
    // As many terms as leave a unit's registers room.
    let tile = Tile { depth: 16, ..Tile::of(&x.client, out_group, in_group, sizes.kernel, form)? };
    let wide = sizes.kernel[0] * sizes.kernel[1] * in_group + 1;
    let (down, across) = (wide.div_ceil(ROWS), out_group.div_ceil(tile.columns));
    let positions = sizes.batch * sizes.out_size[0] * sizes.out_size[1];
    let chunks = (CUBES / (down * across * sizes.groups)).clamp(1, positions.div_ceil(ROWS).clamp(1, MOST_CHUNKS));
    let chunk = positions.div_ceil(chunks).next_multiple_of(tile.depth);
    let chunks = positions.div_ceil(chunk).max(1);
    let shares = empty(x, [chunks, sizes.out, wide]);
    unsafe {
        correlate::launch_unchecked::<R>(
            &x.client,
            CubeCount::Static(down as u32, across as u32, (sizes.groups * chunks) as u32),
            CubeDim::new_1d(UNITS as u32),
            array(x),
            array(gradient),
            array(&shares),
            Shape::launch(sizes, false, chunk),
            tile,
            form.operand(),
        );
    }
    Some(join_shares(&shares, sizes, chunks))
}
