//! Convolutions as products of matrices whose operands are gathered on the way into shared memory, in f32 throughout.
//!
//! A cube computes a tile of the product: 64 rows, and 16, 32 or 64 columns, of which every unit holds 4 by 4 in
//! registers. Any stride, padding and number of groups; a bias is added as the tile is written, and the gradient of the
//! bias is one more column of the weight's gradient.

use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::shares::join_shares;
use super::sizes::Sizes;
use super::tensors::{array, contiguous, empty};
use super::tile::{DEPTH, Form, ROWS, collect, columns, multiply, no_fragments, no_sums, operand, units};
use super::wide;
use crate::{ConvOptions, Precision};

/// Cubes that a weight's gradient is spread over, about.
const CUBES: usize = 1024;
/// Positions that one of them adds up, at least.
const POSITIONS: usize = 256;

#[derive(CubeLaunch, CubeType, Clone, Copy)]
struct Shape {
    batch: u32,
    height: u32,
    width: u32,
    /// Input channels of all groups.
    channels: u32,
    out_height: u32,
    out_width: u32,
    /// Output channels of all groups.
    out: u32,
    groups: u32,
    kernel_height: u32,
    kernel_width: u32,
    stride: u32,
    top: u32,
    left: u32,
    /// Positions that one cube of a weight's gradient adds up.
    chunk: u32,
}

impl Sizes {
    fn launch<R: CubeRuntime>(&self, chunk: usize) -> ShapeLaunch<R> {
        let [top, left, _, _] = self.options.padding;
        let numbers = [
            self.batch,
            self.size[0],
            self.size[1],
            self.channels,
            self.out_size[0],
            self.out_size[1],
            self.out,
            self.groups,
            self.kernel[0],
            self.kernel[1],
            self.options.stride,
            top,
            left,
            chunk,
        ];
        let [
            batch,
            height,
            width,
            channels,
            out_height,
            out_width,
            out,
            groups,
            rows,
            columns,
            stride,
            top,
            left,
            chunk,
        ] = numbers.map(|number| u32::try_from(number).expect("a convolution's sizes fit 32 bits"));
        ShapeLaunch::new(
            batch, height, width, channels, out_height, out_width, out, groups, rows, columns, stride, top, left, chunk,
        )
    }
}

#[cube(launch_unchecked)]
fn forward<E: Numeric>(
    x: &Array<f32>,
    weight: &Array<f32>,
    bias: &Array<f32>,
    output: &mut Array<f32>,
    shape: Shape,
    #[comptime] columns: usize,
    #[comptime] form: Form,
    #[define(E)] _operand: StorageType,
) {
    let rows_of_unit = comptime!(256 / columns);
    let step = comptime!((columns / 4) as u32);
    let left_stride = comptime!(form.stride(64));
    let right_stride = comptime!(form.stride(columns));
    let mut left = SharedMemory::<E>::new(comptime!(16 * left_stride));
    let mut right = SharedMemory::<E>::new(comptime!(16 * right_stride));
    let mut sums = no_sums();
    let fragments = no_fragments(form);
    let group = CUBE_POS_Z;
    let in_group = shape.channels / shape.groups;
    let out_group = shape.out / shape.groups;
    let positions = shape.batch * shape.out_height * shape.out_width;
    let first_row = CUBE_POS_X * 64u32;
    let first_column = CUBE_POS_Y * comptime!(columns as u32);
    let lane = UNIT_POS % 16u32;
    let line = UNIT_POS / 16u32;

    let mut images = Array::<u32>::new(rows_of_unit);
    let mut from_rows = Array::<i32>::new(rows_of_unit);
    let mut from_columns = Array::<i32>::new(rows_of_unit);
    #[unroll]
    for i in 0..rows_of_unit {
        let position = first_row + line + comptime!(i as u32) * step;
        let column = position % shape.out_width;
        let rest = position / shape.out_width;
        let row = rest % shape.out_height;
        images[i] = rest / shape.out_height;
        from_rows[i] = i32::cast_from(row * shape.stride) - i32::cast_from(shape.top);
        from_columns[i] = i32::cast_from(column * shape.stride) - i32::cast_from(shape.left);
    }

    let terms = shape.kernel_height * shape.kernel_width * in_group;
    let mut first = 0u32;
    while first < terms {
        let term = first + lane;
        let channel = term % in_group;
        let tap = term / in_group;
        let tap_row = tap / shape.kernel_width;
        let tap_column = tap % shape.kernel_width;
        #[unroll]
        for i in 0..rows_of_unit {
            let at = line + comptime!(i as u32) * step;
            let row = from_rows[i] + i32::cast_from(tap_row);
            let column = from_columns[i] + i32::cast_from(tap_column);
            let mut value = 0.0f32;
            if term < terms
                && first_row + at < positions
                && row >= 0
                && column >= 0
                && u32::cast_from(row) < shape.height
                && u32::cast_from(column) < shape.width
            {
                let pixel = (images[i] * shape.height + u32::cast_from(row)) * shape.width + u32::cast_from(column);
                value = x[(pixel * shape.channels + group * in_group + channel) as usize];
            }
            left[lane as usize * left_stride + at as usize] = operand::<E>(value, form);
        }
        #[unroll]
        for i in 0..4usize {
            let at = line + comptime!(i as u32) * step;
            let filter = first_column + at;
            let mut value = 0.0f32;
            if term < terms && filter < out_group {
                let kernel = (group * out_group + filter) * in_group + channel;
                value = weight[((kernel * shape.kernel_height + tap_row) * shape.kernel_width + tap_column) as usize];
            }
            right[lane as usize * right_stride + at as usize] = operand::<E>(value, form);
        }
        sync_cube();
        multiply::<E>(&left, &right, &mut sums, &fragments, columns, form);
        sync_cube();
        first += 16u32;
    }
    collect(&mut sums, &fragments, columns, form);

    #[unroll]
    for i in 0..4usize {
        let position = first_row + UNIT_POS / step * 4u32 + comptime!(i as u32);
        #[unroll]
        for j in 0..4usize {
            let filter = first_column + UNIT_POS % step * 4u32 + comptime!(j as u32);
            if position < positions && filter < out_group {
                let channel = group * out_group + filter;
                output[(position * shape.out + channel) as usize] = sums[comptime!(i * 4 + j)] + bias[channel as usize];
            }
        }
    }
}

#[cube(launch_unchecked)]
fn backward<E: Numeric>(
    gradient: &Array<f32>,
    weight: &Array<f32>,
    output: &mut Array<f32>,
    shape: Shape,
    #[comptime] columns: usize,
    #[comptime] form: Form,
    #[define(E)] _operand: StorageType,
) {
    let rows_of_unit = comptime!(256 / columns);
    let step = comptime!((columns / 4) as u32);
    let left_stride = comptime!(form.stride(64));
    let right_stride = comptime!(form.stride(columns));
    let mut left = SharedMemory::<E>::new(comptime!(16 * left_stride));
    let mut right = SharedMemory::<E>::new(comptime!(16 * right_stride));
    let mut sums = no_sums();
    let fragments = no_fragments(form);
    let group = CUBE_POS_Z;
    let in_group = shape.channels / shape.groups;
    let out_group = shape.out / shape.groups;
    let positions = shape.batch * shape.height * shape.width;
    let first_row = CUBE_POS_X * 64u32;
    let first_column = CUBE_POS_Y * comptime!(columns as u32);
    let lane = UNIT_POS % 16u32;
    let line = UNIT_POS / 16u32;

    let mut images = Array::<u32>::new(rows_of_unit);
    let mut to_rows = Array::<u32>::new(rows_of_unit);
    let mut to_columns = Array::<u32>::new(rows_of_unit);
    #[unroll]
    for i in 0..rows_of_unit {
        let position = first_row + line + comptime!(i as u32) * step;
        let rest = position / shape.width;
        images[i] = rest / shape.height;
        to_rows[i] = rest % shape.height + shape.top;
        to_columns[i] = position % shape.width + shape.left;
    }

    let terms = shape.kernel_height * shape.kernel_width * out_group;
    let mut first = 0u32;
    while first < terms {
        let term = first + lane;
        let filter = term % out_group;
        let tap = term / out_group;
        let tap_row = tap / shape.kernel_width;
        let tap_column = tap % shape.kernel_width;
        #[unroll]
        for i in 0..rows_of_unit {
            let at = line + comptime!(i as u32) * step;
            let mut value = 0.0f32;
            if term < terms && first_row + at < positions && to_rows[i] >= tap_row && to_columns[i] >= tap_column {
                let strided_row = to_rows[i] - tap_row;
                let strided_column = to_columns[i] - tap_column;
                let row = strided_row / shape.stride;
                let column = strided_column / shape.stride;
                if row * shape.stride == strided_row
                    && column * shape.stride == strided_column
                    && row < shape.out_height
                    && column < shape.out_width
                {
                    let pixel = (images[i] * shape.out_height + row) * shape.out_width + column;
                    value = gradient[(pixel * shape.out + group * out_group + filter) as usize];
                }
            }
            left[lane as usize * left_stride + at as usize] = operand::<E>(value, form);
        }
        #[unroll]
        for i in 0..4usize {
            let at = line + comptime!(i as u32) * step;
            let channel = first_column + at;
            let mut value = 0.0f32;
            if term < terms && channel < in_group {
                let kernel = (group * out_group + filter) * in_group + channel;
                value = weight[((kernel * shape.kernel_height + tap_row) * shape.kernel_width + tap_column) as usize];
            }
            right[lane as usize * right_stride + at as usize] = operand::<E>(value, form);
        }
        sync_cube();
        multiply::<E>(&left, &right, &mut sums, &fragments, columns, form);
        sync_cube();
        first += 16u32;
    }
    collect(&mut sums, &fragments, columns, form);

    #[unroll]
    for i in 0..4usize {
        let position = first_row + UNIT_POS / step * 4u32 + comptime!(i as u32);
        #[unroll]
        for j in 0..4usize {
            let channel = first_column + UNIT_POS % step * 4u32 + comptime!(j as u32);
            if position < positions && channel < in_group {
                output[(position * shape.channels + group * in_group + channel) as usize] = sums[comptime!(i * 4 + j)];
            }
        }
    }
}

/// A chunk of positions' share of the gradients of weight and bias, `[chunk, out, tap * channel + 1]`.
///
/// The rows of the product are taps and channels, and one row of ones for the bias; its columns are filters.
#[cube(launch_unchecked)]
fn weight_shares<E: Numeric>(
    x: &Array<f32>,
    gradient: &Array<f32>,
    shares: &mut Array<f32>,
    shape: Shape,
    #[comptime] columns: usize,
    #[comptime] form: Form,
    #[define(E)] _operand: StorageType,
) {
    let units = comptime!((columns * 4) as u32);
    let step = comptime!((columns / 4) as u32);
    let lines = comptime!((columns * 4 / 64) as u32);
    let left_stride = comptime!(form.stride(64));
    let right_stride = comptime!(form.stride(columns));
    let mut left = SharedMemory::<E>::new(comptime!(16 * left_stride));
    let mut right = SharedMemory::<E>::new(comptime!(16 * right_stride));
    let mut from_images = SharedMemory::<u32>::new(16usize);
    let mut from_rows = SharedMemory::<i32>::new(16usize);
    let mut from_columns = SharedMemory::<i32>::new(16usize);
    let mut sums = no_sums();
    let fragments = no_fragments(form);
    let group = CUBE_POS_Z % shape.groups;
    let chunk = CUBE_POS_Z / shape.groups;
    let in_group = shape.channels / shape.groups;
    let out_group = shape.out / shape.groups;
    let positions = shape.batch * shape.out_height * shape.out_width;
    let taps = shape.kernel_height * shape.kernel_width * in_group;
    let first_row = CUBE_POS_X * 64u32;
    let first_column = CUBE_POS_Y * comptime!(columns as u32);

    let lane = UNIT_POS % 64u32;
    let tap = first_row + lane;
    let channel = tap % in_group;
    let place = tap / in_group;
    let tap_row = i32::cast_from(place / shape.kernel_width);
    let tap_column = i32::cast_from(place % shape.kernel_width);

    let mut first = chunk * shape.chunk;
    let last = min(first + shape.chunk, positions);
    while first < last {
        if UNIT_POS < 16u32 {
            let position = first + UNIT_POS;
            let column = position % shape.out_width;
            let rest = position / shape.out_width;
            from_images[UNIT_POS as usize] = rest / shape.out_height;
            from_rows[UNIT_POS as usize] =
                i32::cast_from(rest % shape.out_height * shape.stride) - i32::cast_from(shape.top);
            from_columns[UNIT_POS as usize] = i32::cast_from(column * shape.stride) - i32::cast_from(shape.left);
        }
        sync_cube();
        #[unroll]
        for i in 0..comptime!(1024 / (columns * 4)) {
            let at = UNIT_POS / 64u32 + comptime!(i as u32) * lines;
            let row = from_rows[at as usize] + tap_row;
            let column = from_columns[at as usize] + tap_column;
            let mut value = 0.0f32;
            if first + at < last {
                if tap == taps {
                    value = 1.0f32;
                } else if tap < taps
                    && row >= 0
                    && column >= 0
                    && u32::cast_from(row) < shape.height
                    && u32::cast_from(column) < shape.width
                {
                    let pixel = (from_images[at as usize] * shape.height + u32::cast_from(row)) * shape.width
                        + u32::cast_from(column);
                    value = x[(pixel * shape.channels + group * in_group + channel) as usize];
                }
            }
            left[at as usize * left_stride + lane as usize] = operand::<E>(value, form);
        }
        #[unroll]
        for i in 0..4usize {
            let index = UNIT_POS + comptime!(i as u32) * units;
            let filter = index % comptime!(columns as u32);
            let at = index / comptime!(columns as u32);
            let mut value = 0.0f32;
            if first + at < last && first_column + filter < out_group {
                value = gradient[((first + at) * shape.out + group * out_group + first_column + filter) as usize];
            }
            right[at as usize * right_stride + filter as usize] = operand::<E>(value, form);
        }
        sync_cube();
        multiply::<E>(&left, &right, &mut sums, &fragments, columns, form);
        sync_cube();
        first += 16u32;
    }
    collect(&mut sums, &fragments, columns, form);

    #[unroll]
    for i in 0..4usize {
        let tap = first_row + UNIT_POS / step * 4u32 + comptime!(i as u32);
        #[unroll]
        for j in 0..4usize {
            let filter = first_column + UNIT_POS % step * 4u32 + comptime!(j as u32);
            if tap <= taps && filter < out_group {
                let row = chunk * shape.out + group * out_group + filter;
                shares[(row * (taps + 1u32) + tap) as usize] = sums[comptime!(i * 4 + j)];
            }
        }
    }
}

/// Convolves `[batch, height, width, channel]` by `[out, channel / groups, height, width]` and adds a bias.
pub(super) fn conv2d_bias<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    bias: CubeTensor<R>,
    groups: usize,
    options: ConvOptions,
) -> CubeTensor<R> {
    let [x, weight, bias] = [x, weight, bias].map(contiguous);
    let [batch, height, width, channels] = x.meta.shape().dims();
    let [out, _, rows, columns_of_kernel] = weight.meta.shape().dims();
    let (size, kernel) = ([height, width], [rows, columns_of_kernel]);
    let out_size = options.output_size(size, kernel);
    let sizes = Sizes { batch, size, channels, out_size, out, groups, kernel, options };
    let form = Form::of(&x.client, Precision::chosen());
    if let Some(output) = wide::forward(&x, &weight, &bias, &sizes, form) {
        return output;
    }
    let output = empty(&x, [batch, out_size[0], out_size[1], out]);
    let columns = columns(out / groups);
    let tiles = (batch * out_size[0] * out_size[1]).div_ceil(ROWS);
    unsafe {
        forward::launch_unchecked::<R>(
            &x.client,
            CubeCount::Static(tiles as u32, (out / groups).div_ceil(columns) as u32, groups as u32),
            units(columns),
            array(&x),
            array(&weight),
            array(&bias),
            array(&output),
            sizes.launch(0),
            columns,
            form,
            form.operand(),
        );
    }
    output
}

/// Gradient of [`conv2d_bias`] for its input.
pub(super) fn conv2d_input_gradient<R: CubeRuntime>(
    weight: CubeTensor<R>,
    gradient: CubeTensor<R>,
    size: [usize; 2],
    groups: usize,
    options: ConvOptions,
) -> CubeTensor<R> {
    let [weight, gradient] = [weight, gradient].map(contiguous);
    let [batch, out_height, out_width, out] = gradient.meta.shape().dims();
    let [_, in_group, rows, columns_of_kernel] = weight.meta.shape().dims();
    let channels = in_group * groups;
    let (kernel, out_size) = ([rows, columns_of_kernel], [out_height, out_width]);
    let sizes = Sizes { batch, size, channels, out_size, out, groups, kernel, options };
    let form = Form::of(&gradient.client, Precision::chosen());
    if let Some(output) = wide::input_gradient(&weight, &gradient, &sizes, form) {
        return output;
    }
    let output = empty(&gradient, [batch, size[0], size[1], channels]);
    let columns = columns(in_group);
    let tiles = (batch * size[0] * size[1]).div_ceil(ROWS);
    unsafe {
        backward::launch_unchecked::<R>(
            &gradient.client,
            CubeCount::Static(tiles as u32, in_group.div_ceil(columns) as u32, groups as u32),
            units(columns),
            array(&gradient),
            array(&weight),
            array(&output),
            sizes.launch(0),
            columns,
            form,
            form.operand(),
        );
    }
    output
}

/// Gradients of [`conv2d_bias`] for its weight and bias.
pub(super) fn conv2d_weight_gradients<R: CubeRuntime>(
    x: CubeTensor<R>,
    gradient: CubeTensor<R>,
    kernel: [usize; 2],
    groups: usize,
    options: ConvOptions,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let [x, gradient] = [x, gradient].map(contiguous);
    let [batch, height, width, channels] = x.meta.shape().dims();
    let [_, out_height, out_width, out] = gradient.meta.shape().dims();
    let (size, out_size) = ([height, width], [out_height, out_width]);
    let sizes = Sizes { batch, size, channels, out_size, out, groups, kernel, options };
    let form = Form::of(&x.client, Precision::chosen());
    if let Some(gradients) = wide::weight_gradients(&x, &gradient, &sizes, form) {
        return gradients;
    }
    let (in_group, out_group) = (channels / groups, out / groups);
    let wide = kernel[0] * kernel[1] * in_group + 1;
    let columns = columns(out_group);
    let (down, across) = (wide.div_ceil(ROWS), out_group.div_ceil(columns));
    let positions = batch * out_height * out_width;
    let most = positions.div_ceil(POSITIONS).max(1);
    let chunk = positions.div_ceil((CUBES / (down * across * groups)).clamp(1, most)).next_multiple_of(DEPTH);
    let chunks = positions.div_ceil(chunk).max(1);
    let shares = empty(&x, [chunks, out, wide]);
    unsafe {
        weight_shares::launch_unchecked::<R>(
            &x.client,
            CubeCount::Static(down as u32, across as u32, (groups * chunks) as u32),
            units(columns),
            array(&x),
            array(&gradient),
            array(&shares),
            sizes.launch(chunk),
            columns,
            form,
            form.operand(),
        );
    }
    join_shares(&shares, &sizes, chunks)
}
