//! The two inner loops of every convolution: a few pixels by a few vectors of channels, kept in registers.

#![allow(unsafe_code, reason = "the loops read and write through pointers with strides")]
#![allow(clippy::inline_always, reason = "see Kernel::run")]

use super::simd::Simd;

/// What is multiplied.
pub(super) trait Products {
    /// `c` and the product or the products of `a` and `b`.
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn add<S: Simd>(a: S::Vector, b: S::Vector, c: S::Vector) -> S::Vector;
}

/// One f32 by another.
pub(super) struct Values;

impl Products for Values {
    #[inline(always)]
    unsafe fn add<S: Simd>(a: S::Vector, b: S::Vector, c: S::Vector) -> S::Vector {
        // SAFETY: passed on.
        unsafe { S::multiply_add(a, b, c) }
    }
}

/// A [pair](super::pairs) of bf16 by another.
pub(super) struct Pairs;

impl Products for Pairs {
    #[inline(always)]
    unsafe fn add<S: Simd>(a: S::Vector, b: S::Vector, c: S::Vector) -> S::Vector {
        // SAFETY: passed on.
        unsafe { S::add_products(a, b, c) }
    }
}

/// Consecutive input values that meet consecutive rows of the packed weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Distance of the first value from the pixel's start.
    pub(super) offset: usize,
    /// Number of values.
    pub(super) length: usize,
}

/// What the sums of a tile start from.
#[derive(Clone, Copy)]
pub(super) enum Start {
    /// One value per channel, as many as the tile has lanes.
    Bias(*const f32),
    /// One value per channel, and what the output holds already.
    Added(*const f32),
    /// What the output holds already.
    Output,
}

/// Where the tile's results go.
#[derive(Clone, Copy)]
pub(super) struct Target {
    /// First channel of the first pixel.
    pub(super) pointer: *mut f32,
    /// Values between pixels.
    pub(super) stride: usize,
    /// Valid lanes of the last vector.
    pub(super) last: usize,
    /// Whether what is below zero becomes zero.
    pub(super) rectified: bool,
}

impl Target {
    #[inline(always)]
    unsafe fn load<S: Simd, const C: usize>(self, pixel: usize, vector: usize) -> S::Vector {
        // SAFETY: the caller promises room for the tile.
        unsafe {
            let from = self.pointer.add(pixel * self.stride + vector * S::LANES);
            if vector + 1 < C || self.last == S::LANES { S::load(from) } else { S::load_some(from, self.last) }
        }
    }

    #[inline(always)]
    unsafe fn store<S: Simd, const C: usize>(self, pixel: usize, vector: usize, value: S::Vector) {
        // SAFETY: the caller promises room for the tile.
        unsafe {
            let to = self.pointer.add(pixel * self.stride + vector * S::LANES);
            if vector + 1 < C || self.last == S::LANES {
                S::store(to, value);
            } else {
                S::store_some(to, value, self.last);
            }
        }
    }
}

/// `P` pixels by `C` vectors of output channels: `out[p] = start + sum over k of x[p][k] * weights[k]`.
///
/// `weights` holds `C` vectors for every value of the runs, in their order.
///
/// # Safety
/// `S`'s instructions exist; `x + p * stride + offset + 0..length` of every run, the weights and the target are valid.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd, O: Products, const P: usize, const C: usize>(
    x: *const f32,
    stride: usize,
    runs: &[Run],
    weights: *const f32,
    start: Start,
    target: Target,
) {
    // SAFETY: the caller promises all of it.
    unsafe {
        let mut sums = [[S::splat(0.0); C]; P];
        match start {
            Start::Bias(bias) => {
                for sums in &mut sums {
                    for (vector, sum) in sums.iter_mut().enumerate() {
                        *sum = S::load(bias.add(vector * S::LANES));
                    }
                }
            }
            Start::Added(bias) => {
                for (pixel, sums) in sums.iter_mut().enumerate() {
                    for (vector, sum) in sums.iter_mut().enumerate() {
                        let bias = S::load(bias.add(vector * S::LANES));
                        *sum = S::add(target.load::<S, C>(pixel, vector), bias);
                    }
                }
            }
            Start::Output => {
                for (pixel, sums) in sums.iter_mut().enumerate() {
                    for (vector, sum) in sums.iter_mut().enumerate() {
                        *sum = target.load::<S, C>(pixel, vector);
                    }
                }
            }
        }
        let mut weights = weights;
        for run in runs {
            let x = x.add(run.offset);
            for k in 0..run.length {
                let mut row = [S::splat(0.0); C];
                for (vector, value) in row.iter_mut().enumerate() {
                    *value = S::load(weights.add(vector * S::LANES));
                }
                for (pixel, sums) in sums.iter_mut().enumerate() {
                    let value = S::splat(*x.add(pixel * stride + k));
                    for (sum, weight) in sums.iter_mut().zip(row) {
                        *sum = O::add::<S>(value, weight, *sum);
                    }
                }
                weights = weights.add(C * S::LANES);
            }
        }
        if target.rectified {
            for sum in sums.as_flattened_mut() {
                *sum = S::max(*sum, S::splat(0.0));
            }
        }
        for (pixel, sums) in sums.iter().enumerate() {
            for (vector, sum) in sums.iter().enumerate() {
                target.store::<S, C>(pixel, vector, *sum);
            }
        }
    }
}

/// [`multiply`] for any number of pixels in a row, in tiles as large as the registers allow.
///
/// # Safety
/// As of [`multiply`], for all of them.
#[inline(always)]
pub(super) unsafe fn line<S: Simd, O: Products, const C: usize>(
    x: *const f32,
    stride: usize,
    pixels: usize,
    runs: &[Run],
    weights: *const f32,
    start: Start,
    target: Target,
) {
    let mut pixel = 0;
    macro_rules! tiles {
        ($count:literal) => {
            if $count * C <= S::SUMS {
                while pixels - pixel >= $count {
                    // SAFETY: the tile ends within the row.
                    unsafe {
                        let target = Target { pointer: target.pointer.add(pixel * target.stride), ..target };
                        multiply::<S, O, $count, C>(x.add(pixel * stride), stride, runs, weights, start, target);
                    }
                    pixel += $count;
                }
            }
        };
    }
    tiles!(16);
    tiles!(8);
    tiles!(4);
    tiles!(2);
    tiles!(1);
}

/// The pixels two maps are multiplied over: rows of pixels, with the values between neighbours in either map.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pixels {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) x_row: usize,
    pub(super) x_column: usize,
    pub(super) y_row: usize,
    pub(super) y_column: usize,
}

/// `P` values of every pixel of one map by `C` vectors of the other: `out[p] += sum over pixels of x[pixel][p] *
/// y[pixel]`.
///
/// # Safety
/// `S`'s instructions exist; `P` values of every pixel in `x`, `C` whole vectors in `y`, and `C` whole vectors in each
/// of the `P` rows of `out` are valid.
#[inline(always)]
pub(super) unsafe fn outer<S: Simd, O: Products, const P: usize, const C: usize>(
    x: *const f32,
    y: *const f32,
    pixels: Pixels,
    out: *mut f32,
    out_stride: usize,
) {
    // SAFETY: the caller promises all of it.
    unsafe {
        let mut sums = [[S::splat(0.0); C]; P];
        for row in 0..pixels.rows {
            let mut x = x.add(row * pixels.x_row);
            let mut y = y.add(row * pixels.y_row);
            for _ in 0..pixels.columns {
                let mut right = [S::splat(0.0); C];
                for (vector, value) in right.iter_mut().enumerate() {
                    *value = S::load(y.add(vector * S::LANES));
                }
                for (index, sums) in sums.iter_mut().enumerate() {
                    let left = S::splat(*x.add(index));
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum = O::add::<S>(left, right, *sum);
                    }
                }
                x = x.add(pixels.x_column);
                y = y.add(pixels.y_column);
            }
        }
        for (index, sums) in sums.iter().enumerate() {
            for (vector, sum) in sums.iter().enumerate() {
                let to = out.add(index * out_stride + vector * S::LANES);
                S::store(to, S::add(S::load(to), *sum));
            }
        }
    }
}
