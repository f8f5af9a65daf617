use burn_cubecl::cubecl;
use cubecl::prelude::*;

use super::product::{multiply, no_sums, operands};
use super::tile::{DOWN, Four, ROWS, Shape, Tile, UNITS, line};

/// A chunk of positions' share of the gradients of weight and bias, `[chunk, out, tap * channel + 1]`.
///
/// The rows of the product are taps and channels, and one row of ones for the bias; its columns are filters. Channels that
/// are read are those of the convolution's input, channels that are written its filters.
#[cube(launch_unchecked)]
pub(super) fn correlate<E: Numeric>(
    source: &Array<Four<f32>>,
    gradient: &Array<Four<f32>>,
    shares: &mut Array<f32>,
    shape: Shape,
    #[comptime] tile: Tile,
    #[define(E)] _operand: StorageType,
) {
    let left_line = comptime!(line(ROWS) / 4);
    let right_line = comptime!(line(tile.columns) / 4);
    let left_half = comptime!(tile.depth * left_line);
    let right_half = comptime!(tile.depth * right_line);
    let mut left = SharedMemory::<Four<E>>::new(comptime!(2 * left_half));
    let mut right = SharedMemory::<Four<E>>::new(comptime!(2 * right_half));
    let mut sums = no_sums(tile);

    let group = CUBE_POS_Z % shape.groups;
    let chunk = CUBE_POS_Z / shape.groups;
    let in_group = shape.channels / shape.groups;
    let out_group = shape.out / shape.groups;
    let taps = shape.kernel_height * shape.kernel_width * in_group * 4u32;
    let first_row = CUBE_POS_X * comptime!(ROWS as u32);
    let first_column = CUBE_POS_Y * comptime!(tile.columns as u32);
    let positions = shape.batch * shape.out_height * shape.out_width;
    let begin = chunk * shape.chunk;
    let end = min(begin + shape.chunk, positions);

    let lane = UNIT_POS % 32u32;
    let first_line = UNIT_POS / 32u32;
    let left_reads = comptime!(tile.depth / 8);
    let right_fours = comptime!(tile.columns / 4);
    let right_count = comptime!(tile.depth * right_fours);
    let right_reads = comptime!(right_count.div_ceil(UNITS));

    let row_of_product = first_row + lane * 4u32;
    let place = row_of_product / 4u32 / in_group;
    let channel = row_of_product / 4u32 % in_group;
    let tap_row = i32::cast_from(place / shape.kernel_width) - i32::cast_from(shape.top);
    let tap_column = i32::cast_from(place % shape.kernel_width) - i32::cast_from(shape.left);
    let mut ones = Four::<f32>::new(0.0f32);
    if row_of_product == taps {
        ones[0] = 1.0f32;
    }

    // Positions of this unit's reads, as image, row and column, and what a step adds to them.
    let mut images = Array::<u32>::new(left_reads);
    let mut rows = Array::<u32>::new(left_reads);
    let mut columns = Array::<u32>::new(left_reads);
    #[unroll]
    for i in 0..left_reads {
        let position = begin + first_line + comptime!((i * 8) as u32);
        let rest = position / shape.out_width;
        images[i] = rest / shape.out_height;
        rows[i] = rest % shape.out_height;
        columns[i] = position % shape.out_width;
    }
    let depth = comptime!(tile.depth as u32);
    let more_columns = depth % shape.out_width;
    let more_rows = depth / shape.out_width % shape.out_height;
    let more_images = depth / shape.out_width / shape.out_height;

    let steps = (max(end, begin) - begin + depth - 1u32) / depth;
    let mut left_read = Array::<Four<f32>>::new(comptime!(2 * left_reads));
    let mut right_read = Array::<Four<f32>>::new(comptime!(2 * right_reads));
    let mut first = begin;
    for both in 0..(steps + 3u32) / 2u32 {
        #[unroll]
        for turn in 0..2usize {
            let step = both * 2u32 + comptime!(turn as u32);
            if step < steps {
                #[unroll]
                for i in 0..left_reads {
                    let mut values = Four::<f32>::new(0.0f32);
                    if first + first_line + comptime!((i * 8) as u32) < end {
                        values = ones;
                        // Below zero is far above as well.
                        let row = u32::cast_from(i32::cast_from(rows[i] * shape.stride) + tap_row);
                        let column = u32::cast_from(i32::cast_from(columns[i] * shape.stride) + tap_column);
                        if row_of_product < taps && row < shape.height && column < shape.width {
                            let at = (images[i] * shape.height + row) * shape.width + column;
                            values = source[(at * shape.channels + group * in_group + channel) as usize];
                        }
                    }
                    left_read[comptime!(turn * left_reads + i)] = values;
                    images[i] += more_images;
                    rows[i] += more_rows;
                    columns[i] += more_columns;
                    if columns[i] >= shape.out_width {
                        columns[i] -= shape.out_width;
                        rows[i] += 1u32;
                    }
                    if rows[i] >= shape.out_height {
                        rows[i] -= shape.out_height;
                        images[i] += 1u32;
                    }
                }
                #[unroll]
                for i in 0..right_reads {
                    let index = UNIT_POS + comptime!((i * UNITS) as u32);
                    let position = first + index / comptime!(right_fours as u32);
                    let column = first_column + index % comptime!(right_fours as u32) * 4u32;
                    let mut values = Four::<f32>::new(0.0f32);
                    if index < comptime!(right_count as u32) && position < end && column < out_group {
                        values = gradient[((position * shape.out + group * out_group + column) / 4u32) as usize];
                    }
                    right_read[comptime!(turn * right_reads + i)] = values;
                }
                first += depth;
            }
            if step >= 2u32 && step < steps + 2u32 {
                multiply::<E>(&left, &right, turn, &mut sums, tile, false);
            }
            if step >= 1u32 && step <= steps {
                #[unroll]
                for i in 0..left_reads {
                    let at = (first_line as usize + comptime!(i * 8)) * left_line + lane as usize;
                    left[comptime!((1 - turn) * left_half) + at] =
                        operands::<E>(left_read[comptime!((1 - turn) * left_reads + i)], tile.form);
                }
                #[unroll]
                for i in 0..right_reads {
                    let index = UNIT_POS + comptime!((i * UNITS) as u32);
                    if index < comptime!(right_count as u32) {
                        let at = index / comptime!(right_fours as u32) * comptime!(right_line as u32)
                            + index % comptime!(right_fours as u32);
                        right[comptime!((1 - turn) * right_half) + at as usize] =
                            operands::<E>(right_read[comptime!((1 - turn) * right_reads + i)], tile.form);
                    }
                }
            }
            sync_cube();
        }
    }

    let wide = taps + 1u32;
    if comptime!(tile.form.uses_cores()) {
        let across = comptime!(tile.across());
        let plane = UNIT_POS / 32u32;
        let unit = UNIT_POS % 32u32;
        let plane_row = first_row + plane % comptime!(DOWN as u32) * comptime!(tile.plane_rows() as u32) + unit / 4u32;
        let plane_column =
            first_column + plane / comptime!(DOWN as u32) * comptime!(tile.plane_columns() as u32) + unit % 4u32 * 2u32;
        #[unroll]
        for i in 0..comptime!(2 * tile.along()) {
            let row = plane_row + comptime!((i * 8) as u32);
            #[unroll]
            for j in 0..across {
                #[unroll]
                for k in 0..2usize {
                    let column = plane_column + comptime!((j * 8 + k) as u32);
                    if row <= taps && column < out_group {
                        let to = (chunk * shape.out + group * out_group + column) * wide + row;
                        shares[to as usize] = sums.pairs[comptime!(2 * (i / 2 * across + j) + i % 2)][k];
                    }
                }
            }
        }
    } else {
        let fours = comptime!(tile.fours());
        #[unroll]
        for i in 0..8usize {
            let row = first_row + UNIT_POS / 16u32 * 8u32 + comptime!(i as u32);
            #[unroll]
            for jj in 0..fours {
                #[unroll]
                for j in 0..4usize {
                    let column = first_column + UNIT_POS % 16u32 * 4u32 + comptime!((jj * 64 + j) as u32);
                    if row <= taps && column < out_group {
                        let to = (chunk * shape.out + group * out_group + column) * wide + row;
                        shares[to as usize] = sums.fours[comptime!(i * fours + jj)][j];
                    }
                }
            }
        }
    }
}
