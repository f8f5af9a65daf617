use burn_cubecl::cubecl;
use cubecl::prelude::*;

use super::product::{multiply, no_sums, operands};
use super::tile::{DOWN, Four, Pair, ROWS, Shape, Tile, UNITS};

/// A row of the output's place among all pixels.
#[cube]
fn pixel(
    position: u32,
    class_row: u32,
    class_column: u32,
    rows: u32,
    columns: u32,
    shape: Shape,
    #[comptime] back: bool,
) -> u32 {
    if comptime!(back) {
        let rest = position / columns;
        let row = class_row + rest % rows * shape.stride;
        (rest / rows * shape.out_height + row) * shape.out_width + class_column + position % columns * shape.stride
    } else {
        position
    }
}

/// The row or column that a tap reads.
#[cube]
fn reached(first: i32, tap: u32, #[comptime] back: bool) -> u32 {
    if comptime!(back) {
        u32::cast_from(first - i32::cast_from(tap))
    } else {
        u32::cast_from(first + i32::cast_from(tap))
    }
}

/// Convolves, or hands a gradient back to where it came from.
///
/// `weight` is `[written channel, tap, read channel of the group]`. Going back, cubes of one depth write the positions that
/// have the same remainders by the stride: all of them are reached by the same taps.
#[cube(launch_unchecked)]
pub(super) fn convolve<E: Numeric>(
    source: &Array<Four<f32>>,
    weight: &Array<Four<f32>>,
    bias: &Array<Pair>,
    output: &mut Array<Pair>,
    shape: Shape,
    #[comptime] tile: Tile,
    #[comptime] back: bool,
    #[define(E)] _operand: StorageType,
) {
    let row_fours = comptime!(tile.row() / 4);
    let left_half = comptime!(ROWS * row_fours);
    let right_half = comptime!(tile.columns * row_fours);
    let mut left = SharedMemory::<Four<E>>::new(comptime!(2 * left_half));
    let mut right = SharedMemory::<Four<E>>::new(comptime!(2 * right_half));
    let mut sums = no_sums(tile);

    let group = CUBE_POS_Z % shape.groups;
    let class = CUBE_POS_Z / shape.groups;
    let in_group = shape.channels / shape.groups;
    let out_group = shape.out / shape.groups;
    let first_row = CUBE_POS_X * comptime!(ROWS as u32);
    let first_column = CUBE_POS_Y * comptime!(tile.columns as u32);

    let mut class_row = 0u32;
    let mut class_column = 0u32;
    let mut rows = shape.out_height;
    let mut columns = shape.out_width;
    let mut first_tap_row = 0u32;
    let mut first_tap_column = 0u32;
    let mut tap_rows = shape.kernel_height;
    let mut tap_columns = shape.kernel_width;
    let mut tap_step = 1u32;
    if comptime!(back) {
        class_row = class / shape.stride;
        class_column = class % shape.stride;
        rows = (max(shape.out_height, class_row) - class_row + shape.stride - 1u32) / shape.stride;
        columns = (max(shape.out_width, class_column) - class_column + shape.stride - 1u32) / shape.stride;
        first_tap_row = (class_row + shape.top) % shape.stride;
        first_tap_column = (class_column + shape.left) % shape.stride;
        tap_rows = (max(shape.kernel_height, first_tap_row) - first_tap_row + shape.stride - 1u32) / shape.stride;
        tap_columns =
            (max(shape.kernel_width, first_tap_column) - first_tap_column + shape.stride - 1u32) / shape.stride;
        tap_step = shape.stride;
    }
    let positions = shape.batch * rows * columns;
    // Nothing is divided by zero where a class has no position.
    let some_rows = max(rows, 1u32);
    let some_columns = max(columns, 1u32);

    let lane = UNIT_POS % comptime!((tile.depth / 4) as u32);
    let first_line = UNIT_POS / comptime!((tile.depth / 4) as u32);
    let lines = comptime!(UNITS * 4 / tile.depth);
    let left_reads = comptime!(ROWS / lines);
    let right_reads = comptime!(tile.columns.div_ceil(lines));

    // Where a position's first tap is read, and which rows (from the lowest bit) and columns (from the 16th) of taps lie inside.
    let mut from = Array::<u32>::new(left_reads);
    let mut inside = Array::<u32>::new(left_reads);
    #[unroll]
    for i in 0..left_reads {
        let position = first_row + first_line + comptime!((i * lines) as u32);
        let rest = position / some_columns;
        let mut row = i32::cast_from(rest % some_rows * shape.stride);
        let mut column = i32::cast_from(position % some_columns * shape.stride);
        if comptime!(back) {
            row = (row + i32::cast_from(class_row + shape.top - first_tap_row)) / i32::cast_from(shape.stride);
            column =
                (column + i32::cast_from(class_column + shape.left - first_tap_column)) / i32::cast_from(shape.stride);
        } else {
            row -= i32::cast_from(shape.top);
            column -= i32::cast_from(shape.left);
        }
        let first_pixel = i32::cast_from(rest / some_rows * shape.height) + row;
        let first_pixel = first_pixel * i32::cast_from(shape.width) + column;
        from[i] = u32::cast_from(first_pixel) * shape.channels + group * in_group + lane;
        let mut bits = 0u32;
        if position < positions {
            for tap in 0..tap_rows {
                let at = reached(row, tap, back);
                if at < shape.height {
                    bits |= 1u32 << tap;
                }
            }
            for tap in 0..tap_columns {
                let at = reached(column, tap, back);
                if at < shape.width {
                    bits |= 65_536u32 << tap;
                }
            }
        }
        inside[i] = bits;
    }
    let taps = shape.kernel_height * shape.kernel_width;
    let mut of_columns = Array::<u32>::new(right_reads);
    #[unroll]
    for i in 0..right_reads {
        let column = first_column + first_line + comptime!((i * lines) as u32);
        of_columns[i] = (group * out_group + column) * taps * in_group + lane;
    }

    let steps = tap_rows * tap_columns * (in_group / comptime!((tile.depth / 4) as u32));
    let mut left_read = Array::<Four<f32>>::new(comptime!(2 * left_reads));
    let mut right_read = Array::<Four<f32>>::new(comptime!(2 * right_reads));
    let mut tap_row = 0u32;
    let mut tap_column = 0u32;
    let mut channel = 0u32;
    // Two turns more than steps: a step is read in its own turn, put into shared memory in the next, and multiplied in the one
    // after that. Turns are taken in twos, so that what is read has a place that the compiler knows.
    for both in 0..(steps + 3u32) / 2u32 {
        #[unroll]
        for turn in 0..2usize {
            let step = both * 2u32 + comptime!(turn as u32);
            if step < steps {
                let offset = (tap_row * shape.width + tap_column) * shape.channels;
                #[unroll]
                for i in 0..left_reads {
                    let mut values = Four::<f32>::new(0.0f32);
                    let bits = inside[i] >> tap_row;
                    if (bits & (inside[i] >> (tap_column + 16u32)) & 1u32) == 1u32 {
                        // Sums of unsigned numbers wrap around, and so come back where a part of them is below zero.
                        let mut at = from[i] + channel;
                        if comptime!(back) {
                            at -= offset;
                        } else {
                            at += offset;
                        }
                        values = source[at as usize];
                    }
                    left_read[comptime!(turn * left_reads + i)] = values;
                }
                let tap = (first_tap_row + tap_row * tap_step) * shape.kernel_width
                    + first_tap_column
                    + tap_column * tap_step;
                let offset = tap * in_group + channel;
                #[unroll]
                for i in 0..right_reads {
                    let mut values = Four::<f32>::new(0.0f32);
                    if first_column + first_line + comptime!((i * lines) as u32) < out_group {
                        values = weight[(of_columns[i] + offset) as usize];
                    }
                    right_read[comptime!(turn * right_reads + i)] = values;
                }
                tap_column += 1u32;
                if tap_column == tap_columns {
                    tap_column = 0u32;
                    tap_row += 1u32;
                    if tap_row == tap_rows {
                        tap_row = 0u32;
                        channel += comptime!((tile.depth / 4) as u32);
                    }
                }
            }
            if step >= 2u32 && step < steps + 2u32 {
                multiply::<E>(&left, &right, turn, &mut sums, tile, true);
            }
            if step >= 1u32 && step <= steps {
                #[unroll]
                for i in 0..left_reads {
                    let at = (first_line as usize + comptime!(i * lines)) * row_fours + lane as usize;
                    left[comptime!((1 - turn) * left_half) + at] =
                        operands::<E>(left_read[comptime!((1 - turn) * left_reads + i)], tile.form);
                }
                #[unroll]
                for i in 0..right_reads {
                    let column = first_line as usize + comptime!(i * lines);
                    if column < comptime!(tile.columns) {
                        right[comptime!((1 - turn) * right_half) + column * row_fours + lane as usize] =
                            operands::<E>(right_read[comptime!((1 - turn) * right_reads + i)], tile.form);
                    }
                }
            }
            sync_cube();
        }
    }

    if comptime!(tile.form.uses_cores()) {
        let across = comptime!(tile.across());
        let plane = UNIT_POS / 32u32;
        let unit = UNIT_POS % 32u32;
        let plane_row = first_row + plane % comptime!(DOWN as u32) * comptime!(tile.plane_rows() as u32) + unit / 4u32;
        let plane_column =
            first_column + plane / comptime!(DOWN as u32) * comptime!(tile.plane_columns() as u32) + unit % 4u32 * 2u32;
        #[unroll]
        for i in 0..comptime!(2 * tile.along()) {
            let position = plane_row + comptime!((i * 8) as u32);
            if position < positions {
                let to = pixel(position, class_row, class_column, some_rows, some_columns, shape, back);
                #[unroll]
                for j in 0..across {
                    let column = plane_column + comptime!((j * 8) as u32);
                    if column < out_group {
                        let channel = (group * out_group + column) / 2u32;
                        let mut values = sums.pairs[comptime!(2 * (i / 2 * across + j) + i % 2)];
                        if comptime!(!back) {
                            values += bias[channel as usize];
                        }
                        output[(to * (shape.out / 2u32) + channel) as usize] = values;
                    }
                }
            }
        }
    } else {
        let fours = comptime!(tile.fours());
        #[unroll]
        for i in 0..8usize {
            let position = first_row + UNIT_POS / 16u32 * 8u32 + comptime!(i as u32);
            if position < positions {
                let to = pixel(position, class_row, class_column, some_rows, some_columns, shape, back);
                #[unroll]
                for jj in 0..fours {
                    let column = first_column + UNIT_POS % 16u32 * 4u32 + comptime!((jj * 64) as u32);
                    if column < out_group {
                        let values = sums.fours[comptime!(i * fours + jj)];
                        #[unroll]
                        for j in 0..2usize {
                            let channel = (group * out_group + column) / 2u32 + comptime!(j as u32);
                            let mut pair = Pair::empty();
                            pair[0] = values[comptime!(2 * j)];
                            pair[1] = values[comptime!(2 * j + 1)];
                            if comptime!(!back) {
                                pair += bias[channel as usize];
                            }
                            output[(to * (shape.out / 2u32) + channel) as usize] = pair;
                        }
                    }
                }
            }
        }
    }
}
