//! What is multiplied from shared memory, on tensor cores or in the units.

use burn_cubecl::cubecl;
use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::prelude::*;

use super::tile::{DOWN, Four, Pair, ROWS, Tile, line};
use crate::cube::tile::{Form, operand};

/// Four numbers as they are put into shared memory.
#[cube]
pub(super) fn operands<E: Numeric>(values: Four<f32>, #[comptime] form: Form) -> Four<E> {
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
pub(super) struct Sums {
    pub(super) pairs: Array<Pair>,
    pub(super) fours: Array<Four<f32>>,
}

#[cube]
pub(super) fn no_sums(#[comptime] tile: Tile) -> Sums {
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

/// The same in the units: each has 8 rows, one below the other, and fours of columns that lie 64 apart.
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
pub(super) fn multiply<E: Numeric>(
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
