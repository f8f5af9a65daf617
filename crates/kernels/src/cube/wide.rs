//! Convolutions of many channels, as products of matrices in tiles of 128 rows.
//!
//! Operands are read four channels at a time into registers, while what was read before them is multiplied from the one
//! half of shared memory; then they are put into the other half. Eight planes multiply on tensor cores, or 256 units without.

use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::prelude::*;

use super::convolution::{Sizes, join_shares};
use super::tensors::{array, empty};
use super::tile::{Form, operand};

/// Rows of a tile.
const ROWS: usize = 128;
/// Planes of a cube, and how many of them lie below each other; the others lie side by side.
const PLANES: usize = 8;
const DOWN: usize = 4;
/// Units of a cube.
const UNITS: usize = PLANES * 32;
/// Cubes that a weight's gradient is spread over, about: three for every processor of a large device.
const CUBES: usize = 396;

/// Chunks of positions that a weight's gradient is cut into, at most: their sums are added up one after another.
const MOST_CHUNKS: usize = 132;
/// Rows of taps, and columns, at most: which of them lie inside an image are bits of one number.
const MOST_TAPS: usize = 16;

type Four<E> = Vector<E, Const<4>>;
type Pair = Vector<f32, Const<2>>;

/// A tile of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tile {
    /// Columns.
    columns: usize,
    /// Terms that are in a half of shared memory at once.
    depth: usize,
    form: Form,
}

impl Tile {
    /// The tile for a product of so many columns whose sums have so many terms for each tap; none if those do not fit.
    fn of<R: Runtime>(
        client: &cubecl::client::ComputeClient<R>,
        columns: usize,
        terms: usize,
        kernel: [usize; 2],
        form: Form,
    ) -> Option<Self> {
        let fits =
            columns.is_multiple_of(4) && terms.is_multiple_of(16) && kernel.iter().all(|&side| side <= MOST_TAPS);
        // Units have tiles of 64 columns only: with fewer of them filled, narrower tiles cost less.
        if !fits || !form.uses_cores() && columns < 48 {
            return None;
        }
        let depth = if form == Form::CoresBf16 && terms.is_multiple_of(32) { 32 } else { 16 };
        let shared = client.properties().hardware.max_shared_memory_size;
        let choices: &[usize] = if form.uses_cores() { &[32, 64, 96, 128, 160] } else { &[64] };
        let tiles = choices.iter().map(|&columns| Self { columns, depth, form });
        // Padding costs most; of the tiles with as little of it the widest reads least.
        tiles
            .filter(|tile| tile.shared_bytes() <= shared)
            .min_by_key(|tile| (columns.next_multiple_of(tile.columns), usize::MAX - tile.columns))
    }

    /// Bytes of shared memory, whichever way operands lie.
    fn shared_bytes(self) -> usize {
        let number = if self.form == Form::CoresBf16 { 2 } else { 4 };
        let terms_last = (ROWS + self.columns) * self.row();
        let terms_first = self.depth * (line(ROWS) + line(self.columns));
        2 * terms_last.max(terms_first) * number
    }

    /// Numbers from one row to the next where the terms of a row lie side by side: rows begin in different banks.
    fn row(self) -> usize {
        if self.form == Form::CoresBf16 { self.depth + 8 } else { self.depth + 4 }
    }

    /// Rows that a plane has.
    fn plane_rows(self) -> usize {
        ROWS / DOWN
    }

    /// Columns that a plane has.
    fn plane_columns(self) -> usize {
        self.columns * DOWN / PLANES
    }

    /// Fragments of 16 rows that a plane has.
    fn along(self) -> usize {
        self.plane_rows() / 16
    }

    /// Fragments of 8 columns that a plane has.
    fn across(self) -> usize {
        self.plane_columns() / 8
    }

    /// Four columns that a unit has, where units multiply.
    fn fours(self) -> usize {
        self.columns / 64
    }
}

/// Numbers from one term to the next where the rows of a term lie side by side.
fn line(length: usize) -> usize {
    length + 8
}

/// Sizes of a convolution: of what is read, and of what is written.
#[derive(CubeLaunch, CubeType, Clone, Copy)]
struct Shape {
    batch: u32,
    height: u32,
    width: u32,
    /// Channels that are read, of all groups, in fours.
    channels: u32,
    out_height: u32,
    out_width: u32,
    /// Channels that are written, of all groups.
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

/// Four numbers as they are put into shared memory.
#[cube]
fn operands<E: Numeric>(values: Four<f32>, #[comptime] form: Form) -> Four<E> {
    if comptime!(form.rounds()) {
        let mut rounded = Four::<E>::empty();
        #[unroll]
        for i in 0..4usize {
            rounded[i] = operand::<E>(values[i], form);
        }
        rounded
    } else {
        Four::<E>::cast_from(values)
    }
}

/// What a unit has summed up: in pairs where its plane multiplies on tensor cores, in fours where it multiplies itself.
#[derive(CubeType)]
struct Sums {
    pairs: Array<Pair>,
    fours: Array<Four<f32>>,
}

#[cube]
fn no_sums(#[comptime] tile: Tile) -> Sums {
    let pair_count = comptime!(if tile.form.uses_cores() { 2 * tile.along() * tile.across() } else { 1 });
    let mut pairs = Array::<Pair>::new(pair_count);
    #[unroll]
    for i in 0..pair_count {
        pairs[i] = Pair::new(0.0f32);
    }
    let four_count = comptime!(if tile.form.uses_cores() { 1 } else { 8 * tile.fours() });
    let mut fours = Array::<Four<f32>>::new(four_count);
    #[unroll]
    for i in 0..four_count {
        fours[i] = Four::<f32>::new(0.0f32);
    }
    Sums { pairs, fours }
}

/// Adds the products of one half of shared memory on tensor cores; `terms_last`: the terms of a row lie side by side.
///
/// Operands of two bytes are read 16 by 16 at once (`ldmatrix`), those of four one by one.
#[cube]
fn multiply_on_cores<E: Numeric>(
    left: &SharedMemory<Four<E>>,
    right: &SharedMemory<Four<E>>,
    half: usize,
    sums: &mut Sums,
    #[comptime] tile: Tile,
    #[comptime] terms_last: bool,
) {
    let across = comptime!(tile.across());
    let terms = comptime!(tile.form.terms());
    let in_twos = comptime!(tile.form == Form::CoresBf16);
    let left_stride = comptime!(if terms_last { tile.row() } else { line(ROWS) });
    let right_stride = comptime!(if terms_last { tile.row() } else { line(tile.columns) });
    let left_half = half * comptime!(left_stride * if terms_last { ROWS } else { tile.depth });
    let right_half = half * comptime!(right_stride * if terms_last { tile.columns } else { tile.depth });
    let plane = (UNIT_POS / 32u32) as usize;
    let unit = (UNIT_POS % 32u32) as usize;
    let first_row = plane % comptime!(DOWN) * comptime!(tile.plane_rows());
    let first_column = plane / comptime!(DOWN) * comptime!(tile.plane_columns());

    let product = MmaDefinition::<E, E, f32>::new(16usize, 8usize, terms);
    let left_count = product.vectors_per_lane(MatrixIdent::A);
    let right_count = product.vectors_per_lane(MatrixIdent::B);
    let size!(LeftSize) = product.vector_size(MatrixIdent::A);
    let size!(RightSize) = product.vector_size(MatrixIdent::B);
    #[unroll]
    for part in 0..comptime!(tile.depth / terms) {
        let mut lefts = Sequence::<Array<Vector<E, LeftSize>>>::new();
        #[unroll]
        for i in 0..comptime!(tile.along()) {
            let row = first_row + comptime!(i * 16);
            if comptime!(in_twos) {
                // Four matrices of 8 by 8: the second has the next rows, the third the next terms. A unit names a row of one.
                let (across_row, along_term) = (unit / 8 % 2 * 8, unit / 16 * 8);
                let at = if comptime!(terms_last) {
                    (row + across_row + unit % 8) * left_stride + comptime!(part * terms) + along_term
                } else {
                    (along_term + unit % 8 + comptime!(part * terms)) * left_stride + row + across_row
                };
                let begin = (left_half + at) / 4;
                let row = left.slice(begin, begin + 2);
                lefts.push(product.load_matrix::<Four<E>, LeftSize>(&row, MatrixIdent::A, 4usize, !terms_last));
            } else {
                let numbers = left.to_slice().with_vector_size::<LeftSize>();
                let mut values = Array::<Vector<E, LeftSize>>::new(left_count);
                #[unroll]
                for n in 0..left_count {
                    let (within, term) = product.position_of_nth(unit as u32, n as u32, MatrixIdent::A);
                    let term = comptime!(part * terms) + term as usize;
                    let at = if comptime!(terms_last) {
                        (row + within as usize) * left_stride + term
                    } else {
                        term * left_stride + row + within as usize
                    };
                    values[n] = numbers[left_half + at];
                }
                lefts.push(values);
            }
        }
        #[unroll]
        for jj in 0..comptime!(across / 2) {
            let column = first_column + comptime!(jj * 16);
            let mut rights = Sequence::<Array<Vector<E, RightSize>>>::new();
            if comptime!(in_twos) {
                // The second matrix has the next terms, the third the next columns.
                let (along_term, across_column) = (unit / 8 % 2 * 8, unit / 16 * 8);
                let at = if comptime!(terms_last) {
                    (column + across_column + unit % 8) * right_stride + comptime!(part * terms) + along_term
                } else {
                    (along_term + unit % 8 + comptime!(part * terms)) * right_stride + column + across_column
                };
                let begin = (right_half + at) / 4;
                let row = right.slice(begin, begin + 2);
                let both = product.load_matrix::<Four<E>, RightSize>(&row, MatrixIdent::B, 4usize, !terms_last);
                #[unroll]
                for j in 0..2usize {
                    let mut values = Array::<Vector<E, RightSize>>::new(right_count);
                    #[unroll]
                    for n in 0..right_count {
                        values[n] = both[comptime!(j * 2 + n)];
                    }
                    rights.push(values);
                }
            } else {
                let numbers = right.to_slice().with_vector_size::<RightSize>();
                #[unroll]
                for j in 0..2usize {
                    let mut values = Array::<Vector<E, RightSize>>::new(right_count);
                    #[unroll]
                    for n in 0..right_count {
                        let (term, within) = product.position_of_nth(unit as u32, n as u32, MatrixIdent::B);
                        let term = comptime!(part * terms) + term as usize;
                        let within = column + comptime!(j * 8) + within as usize;
                        let at = if comptime!(terms_last) {
                            within * right_stride + term
                        } else {
                            term * right_stride + within
                        };
                        values[n] = numbers[right_half + at];
                    }
                    rights.push(values);
                }
            }
            #[unroll]
            for i in 0..comptime!(tile.along()) {
                #[unroll]
                for j in 0..2usize {
                    let at = comptime!(2 * (i * across + jj * 2 + j));
                    let mut sum = Array::<Pair>::new(2usize);
                    sum[0] = sums.pairs[at];
                    sum[1] = sums.pairs[comptime!(at + 1)];
                    let sum = product.execute(lefts.index(i), rights.index(j), &sum);
                    sums.pairs[at] = sum[0];
                    sums.pairs[comptime!(at + 1)] = sum[1];
                }
            }
        }
    }
}

/// The same in the units: each has 8 rows, 16 apart or four by four, and fours of columns that lie 64 apart.
#[cube]
fn multiply_in_units<E: Numeric>(
    left: &SharedMemory<Four<E>>,
    right: &SharedMemory<Four<E>>,
    half: usize,
    sums: &mut Sums,
    #[comptime] tile: Tile,
    #[comptime] terms_last: bool,
) {
    let fours = comptime!(tile.fours());
    let across = (UNIT_POS % 16u32) as usize;
    let down = (UNIT_POS / 16u32) as usize;
    if comptime!(terms_last) {
        let row = comptime!(tile.row() / 4);
        let left_half = half * comptime!(ROWS * row);
        let right_half = half * comptime!(tile.columns * row);
        for four in 0..comptime!(tile.depth / 4) {
            let mut rights = Array::<Four<f32>>::new(comptime!(4 * fours));
            #[unroll]
            for j in 0..comptime!(4 * fours) {
                let column = across * 4 + comptime!(j / 4 * 64 + j % 4);
                rights[j] = Four::<f32>::cast_from(right[right_half + column * row + four]);
            }
            #[unroll]
            for i in 0..8usize {
                let values = Four::<f32>::cast_from(left[left_half + (down * 8 + i) * row + four]);
                #[unroll]
                for jj in 0..fours {
                    let mut sum = sums.fours[comptime!(i * fours + jj)];
                    #[unroll]
                    for j in 0..4usize {
                        let other = rights[comptime!(jj * 4 + j)];
                        #[unroll]
                        for k in 0..4usize {
                            sum[j] += values[k] * other[k];
                        }
                    }
                    sums.fours[comptime!(i * fours + jj)] = sum;
                }
            }
        }
    } else {
        let left_line = comptime!(line(ROWS) / 4);
        let right_line = comptime!(line(tile.columns) / 4);
        let left_half = half * comptime!(tile.depth * left_line);
        let right_half = half * comptime!(tile.depth * right_line);
        for term in 0..comptime!(tile.depth) {
            #[unroll]
            for ii in 0..2usize {
                let values = Four::<f32>::cast_from(left[left_half + term * left_line + down * 2 + ii]);
                #[unroll]
                for jj in 0..fours {
                    let other =
                        Four::<f32>::cast_from(right[right_half + term * right_line + across + comptime!(jj * 16)]);
                    #[unroll]
                    for i in 0..4usize {
                        let at = comptime!((ii * 4 + i) * fours + jj);
                        sums.fours[at] += Four::<f32>::new(values[i]) * other;
                    }
                }
            }
        }
    }
}

#[cube]
fn multiply<E: Numeric>(
    left: &SharedMemory<Four<E>>,
    right: &SharedMemory<Four<E>>,
    half: usize,
    sums: &mut Sums,
    #[comptime] tile: Tile,
    #[comptime] terms_last: bool,
) {
    if comptime!(tile.form.uses_cores()) {
        multiply_on_cores::<E>(left, right, half, sums, tile, terms_last);
    } else {
        multiply_in_units::<E>(left, right, half, sums, tile, terms_last);
    }
}

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
fn convolve<E: Numeric>(
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

/// A chunk of positions' share of the gradients of weight and bias, `[chunk, out, tap * channel + 1]`.
///
/// The rows of the product are taps and channels, and one row of ones for the bias; its columns are filters. Channels that
/// are read are those of the convolution's input, channels that are written its filters.
#[cube(launch_unchecked)]
fn correlate<E: Numeric>(
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

impl Shape {
    /// Of a convolution, or of its way back, in which what was written is read.
    fn launch<R: CubeRuntime>(sizes: &Sizes, back: bool, chunk: usize) -> ShapeLaunch<R> {
        let (mut read, mut written) = ((sizes.size, sizes.channels), (sizes.out_size, sizes.out));
        if back {
            std::mem::swap(&mut read, &mut written);
        }
        let [top, left, _, _] = sizes.options.padding;
        let number = |number: usize| u32::try_from(number).expect("a convolution's sizes fit 32 bits");
        ShapeLaunch::new(
            number(sizes.batch),
            number(read.0[0]),
            number(read.0[1]),
            number(read.1 / 4),
            number(written.0[0]),
            number(written.0[1]),
            number(written.1),
            number(sizes.groups),
            number(sizes.kernel[0]),
            number(sizes.kernel[1]),
            number(sizes.options.stride),
            number(top),
            number(left),
            number(chunk),
        )
    }
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
