//! Batch normalization with its rectifier, in two passes over memory forward and two backward.

#![allow(unsafe_code, reason = "rows are read and written through pointers")]
#![allow(clippy::inline_always, reason = "see Kernel::run")]

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::buffer::Buffer;
use super::rows::{Place, Plain, Read, Rows, for_vectors, load, store};
use super::simd::{Kernel, Simd, dispatch};

/// Mean and biased variance of every channel.
#[derive(Clone, Debug)]
pub(super) struct Statistics {
    pub(super) mean: Vec<f32>,
    pub(super) variance: Vec<f32>,
}

/// Statistics of every group's channels over the rows.
///
/// Every block's mean and squared deviations are exact to `f32`; blocks are combined in `f64` (Chan, Golub and `LeVeque`
/// 1983), so means far from zero cost no digits.
pub(super) fn statistics<const SUMS: usize>(rows: &impl Rows<SUMS>) -> Statistics {
    let blocks = block_sums(rows, |rows, _, sums| Moments::<_, SUMS> { rows, sums });
    combine_moments(&blocks, rows.wide(), rows.count(), rows.per_block())
}

/// Statistics from every block's means and squared deviations, for blocks of `per_block` of the `rows` rows.
fn combine_moments(blocks: &[f32], channels: usize, rows: usize, per_block: usize) -> Statistics {
    let count = |block: usize| per_block.min(rows - block * per_block) as f64;
    let mut mean = vec![0.0_f64; channels];
    for (block, sums) in blocks.chunks_exact((2 * channels).max(1)).enumerate() {
        for (mean, block_mean) in mean.iter_mut().zip(sums) {
            *mean += count(block) * f64::from(*block_mean);
        }
    }
    for mean in &mut mean {
        *mean /= rows as f64;
    }
    let mut squares = vec![0.0_f64; channels];
    for (block, sums) in blocks.chunks_exact((2 * channels).max(1)).enumerate() {
        let (means, deviations) = sums.split_at(channels);
        for (((square, mean), block_mean), deviation) in squares.iter_mut().zip(&mean).zip(means).zip(deviations) {
            let distance = f64::from(*block_mean) - mean;
            *square += f64::from(*deviation) + count(block) * distance * distance;
        }
    }
    let variance = squares.iter().map(|square| (square / rows as f64) as f32).collect();
    Statistics { mean: mean.iter().map(|mean| *mean as f32).collect(), variance }
}

/// Runs a kernel that gives two sums per channel and group on every block of rows; it also takes the first row's number.
fn block_sums<R: Rows<SUMS>, const SUMS: usize, K: Kernel<Output = ()>>(
    rows: &R,
    kernel: impl Fn(R, usize, *mut f32) -> K + Sync,
) -> Vec<f32> {
    let (per_block, width) = (rows.per_block(), 2 * rows.wide());
    let blocks_per_task = rows.per_task() / per_block;
    let mut sums = vec![0.0; rows.count().div_ceil(per_block) * width];
    if width == 0 {
        return sums;
    }
    sums.par_chunks_mut(width * blocks_per_task).enumerate().for_each(|(task, sums)| {
        for (index, sums) in sums.chunks_exact_mut(width).enumerate() {
            let first = (task * blocks_per_task + index) * per_block;
            // SAFETY: the kernels read whole rows of the block and write two values per channel and group.
            unsafe { dispatch(kernel(rows.part(first, per_block), first, sums.as_mut_ptr())) };
        }
    });
    sums
}

/// Adds up the blocks' sums: the first sum of every channel, then the second.
fn total(blocks: &[f32], channels: usize) -> Vec<f64> {
    let mut total = vec![0.0; 2 * channels];
    for sums in blocks.chunks_exact((2 * channels).max(1)) {
        for (total, sum) in total.iter_mut().zip(sums) {
            *total += f64::from(*sum);
        }
    }
    total
}

/// Adds up partial sums, pair by pair.
#[inline(always)]
unsafe fn joined<S: Simd, const SUMS: usize>(mut sums: [S::Vector; SUMS]) -> S::Vector {
    let mut width = SUMS;
    while width > 1 {
        width /= 2;
        for index in 0..width {
            // SAFETY: the machine has the instructions.
            sums[index] = unsafe { S::add(sums[2 * index], sums[2 * index + 1]) };
        }
    }
    sums[0]
}

/// Mean and squared deviations from it of one block.
struct Moments<R, const SUMS: usize> {
    rows: R,
    sums: *mut f32,
}

impl<R: Rows<SUMS>, const SUMS: usize> Kernel for Moments<R, SUMS> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let rows = &self.rows;
        let (count, channels, wide) = (rows.count(), rows.channels(), rows.wide());
        let whole = count / SUMS * SUMS;
        // SAFETY: rows, groups and channels are those of the block.
        unsafe {
            for group in 0..rows.groups() {
                for_vectors!(S, channels, |channel, valid| {
                    let add = |row: usize, sum: S::Vector| {
                        let values = load::<S>(rows.values(row, channel), valid);
                        R::add_seen::<S>(values, rows.weight::<S>(row, group), sum)
                    };
                    let mut sums = [S::splat(0.0); SUMS];
                    let mut row = 0;
                    while row < whole {
                        for (index, sum) in sums.iter_mut().enumerate() {
                            *sum = add(row + index, *sum);
                        }
                        row += SUMS;
                    }
                    for row in whole..count {
                        sums[0] = add(row, sums[0]);
                    }
                    let mean = S::multiply(joined::<S, SUMS>(sums), S::splat(1.0 / count as f32));
                    let add = |row: usize, sum: S::Vector| {
                        let values = load::<S>(rows.values(row, channel), valid);
                        let distance = S::subtract(R::seen::<S>(values, rows.weight::<S>(row, group)), mean);
                        S::multiply_add(distance, distance, sum)
                    };
                    let mut sums = [S::splat(0.0); SUMS];
                    let mut row = 0;
                    while row < whole {
                        for (index, sum) in sums.iter_mut().enumerate() {
                            *sum = add(row + index, *sum);
                        }
                        row += SUMS;
                    }
                    for row in whole..count {
                        sums[0] = add(row, sums[0]);
                    }
                    let at = group * channels + channel;
                    store::<S>(self.sums.add(at), mean, valid);
                    store::<S>(self.sums.add(wide + at), joined::<S, SUMS>(sums), valid);
                });
            }
        }
    }
}

/// `max(seen * scale + shift, 0)` for every group, `[row, group, channel]`.
pub(super) fn scale_shift_relu<const SUMS: usize>(rows: &impl Rows<SUMS>, scale: &[f32], shift: &[f32]) -> Buffer {
    let mut output = Buffer::new(rows.count() * rows.wide());
    let (per_task, wide) = (rows.per_task(), rows.wide());
    if wide > 0 {
        output.values().par_chunks_mut(per_task * wide).enumerate().for_each(|(task, output)| {
            let rows = rows.part(task * per_task, per_task);
            // SAFETY: the output has as many rows as the part, and every channel its scale and shift.
            unsafe { dispatch(ScaleShiftRelu { rows, scale, shift, output: output.as_mut_ptr().cast() }) };
        });
    }
    output
}

struct ScaleShiftRelu<'a, R, const SUMS: usize> {
    rows: R,
    scale: &'a [f32],
    shift: &'a [f32],
    output: *mut f32,
}

impl<R: Rows<SUMS>, const SUMS: usize> Kernel for ScaleShiftRelu<'_, R, SUMS> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let rows = &self.rows;
        let (channels, groups) = (rows.channels(), rows.groups());
        // SAFETY: rows, groups and channels are those of the part.
        unsafe {
            for row in 0..rows.count() {
                for group in 0..groups {
                    let weight = rows.weight::<S>(row, group);
                    let first = group * channels;
                    let output = self.output.add(row * groups * channels + first);
                    for_vectors!(S, channels, |channel, valid| {
                        let scale = load::<S>(self.scale.as_ptr().add(first + channel), valid);
                        let shift = load::<S>(self.shift.as_ptr().add(first + channel), valid);
                        let seen = R::seen::<S>(load::<S>(rows.values(row, channel), valid), weight);
                        let value = S::max(S::multiply_add(seen, scale, shift), S::splat(0.0));
                        store::<S>(output.add(channel), value, valid);
                    });
                }
            }
        }
    }
}

/// Scale and shift that normalize by these statistics.
pub(super) fn scale_and_shift(
    statistics: &Statistics,
    gamma: &[f32],
    beta: &[f32],
    epsilon: f64,
) -> (Vec<f32>, Vec<f32>) {
    let scale: Vec<f32> = gamma
        .iter()
        .zip(&statistics.variance)
        .map(|(gamma, variance)| (f64::from(*gamma) / (f64::from(*variance) + epsilon).sqrt()) as f32)
        .collect();
    let shift = beta
        .iter()
        .zip(&statistics.mean)
        .zip(&scale)
        .map(|((beta, mean), scale)| (f64::from(*beta) - f64::from(*mean) * f64::from(*scale)) as f32)
        .collect();
    (scale, shift)
}

/// `max(seen * scale + shift, 0)`, seen from the back.
#[derive(Clone, Copy)]
struct Rectified<'a> {
    scale: &'a [f32],
    shift: &'a [f32],
    /// What is subtracted from what is seen before it is multiplied by gradients.
    centre: &'a [f32],
}

/// Sums of `g` and of `g * (seen - centre)` of every channel and group, where `g` is the gradient where the rectifier is
/// open.
fn gradient_sums<R: Rows<SUMS>, const SUMS: usize>(rows: &R, gradient: &[f32], rectified: Rectified) -> Vec<f64> {
    let wide = rows.wide();
    let blocks = block_sums(rows, |rows, first, sums| GradientSums::<_, SUMS> {
        rows,
        gradient: &gradient[first * wide..],
        rectified,
        sums,
    });
    total(&blocks, wide)
}

struct GradientSums<'a, R, const SUMS: usize> {
    rows: R,
    gradient: &'a [f32],
    rectified: Rectified<'a>,
    sums: *mut f32,
}

impl<R: Rows<SUMS>, const SUMS: usize> Kernel for GradientSums<'_, R, SUMS> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let rows = &self.rows;
        let (count, channels, wide) = (rows.count(), rows.channels(), rows.wide());
        let Rectified { scale, shift, centre } = self.rectified;
        // SAFETY: rows, groups and channels are those of the block.
        unsafe {
            for group in 0..rows.groups() {
                for_vectors!(S, channels, |channel, valid| {
                    let at = group * channels + channel;
                    let gradient = self.gradient.as_ptr().add(at);
                    let scale = load::<S>(scale.as_ptr().add(at), valid);
                    let shift = load::<S>(shift.as_ptr().add(at), valid);
                    let centre = load::<S>(centre.as_ptr().add(at), valid);
                    let mut plain = [S::splat(0.0); SUMS];
                    let mut weighted = [S::splat(0.0); SUMS];
                    let mut row = 0;
                    while row < count {
                        let together = (count - row).min(SUMS);
                        for index in 0..together {
                            let weight = rows.weight::<S>(row + index, group);
                            let seen = R::seen::<S>(load::<S>(rows.values(row + index, channel), valid), weight);
                            let open = S::multiply_add(seen, scale, shift);
                            let g = S::where_positive(open, load::<S>(gradient.add((row + index) * wide), valid));
                            plain[index] = S::add(plain[index], g);
                            weighted[index] = S::multiply_add(g, S::subtract(seen, centre), weighted[index]);
                        }
                        row += together;
                    }
                    store::<S>(self.sums.add(at), joined::<S, SUMS>(plain), valid);
                    store::<S>(self.sums.add(wide + at), joined::<S, SUMS>(weighted), valid);
                });
            }
        }
    }
}

/// The gradient of what is seen, `scale * g + b * (seen - centre) + c`, given to the rows.
struct InputGradient<'a, R: Rows<SUMS>, const SUMS: usize> {
    rows: R,
    gradient: *const f32,
    rectified: Rectified<'a>,
    b: &'a [f32],
    c: &'a [f32],
    to: R::Gradients,
}

impl<R: Rows<SUMS>, const SUMS: usize> Kernel for InputGradient<'_, R, SUMS> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let rows = &self.rows;
        let (channels, groups) = (rows.channels(), rows.groups());
        let Rectified { scale, shift, centre } = self.rectified;
        // SAFETY: the caller promises the rows, groups and channels.
        unsafe {
            for row in 0..rows.count() {
                for group in 0..groups {
                    let weight = rows.weight::<S>(row, group);
                    let first = group * channels;
                    let gradient = self.gradient.add(row * groups * channels + first);
                    let mut products = S::splat(0.0);
                    for_vectors!(S, channels, |channel, valid| {
                        let at = first + channel;
                        let scale = load::<S>(scale.as_ptr().add(at), valid);
                        let shift = load::<S>(shift.as_ptr().add(at), valid);
                        let values = load::<S>(rows.values(row, channel), valid);
                        let seen = R::seen::<S>(values, weight);
                        let open = S::multiply_add(seen, scale, shift);
                        let g = S::where_positive(open, load::<S>(gradient.add(channel), valid));
                        let distance = S::subtract(seen, load::<S>(centre.as_ptr().add(at), valid));
                        let b = load::<S>(self.b.as_ptr().add(at), valid);
                        let c = load::<S>(self.c.as_ptr().add(at), valid);
                        let g = S::multiply_add(scale, g, S::multiply_add(b, distance, c));
                        let place = Place { row, group, channel, valid };
                        rows.take::<S>(self.to, place, Read { values, weight }, g, &mut products);
                    });
                    rows.take_products::<S>(self.to, row, group, products);
                }
            }
        }
    }
}

/// A batch normalization as it was done.
pub(super) struct Normalization<'a> {
    pub(super) gamma: &'a [f32],
    pub(super) beta: &'a [f32],
    pub(super) statistics: Statistics,
    pub(super) epsilon: f64,
}

/// Constants of every channel and group with which an input's gradient is `scale * g + b * (seen - centre) + c`.
pub(super) struct InputConstants {
    scale: Vec<f32>,
    shift: Vec<f32>,
    centre: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

impl InputConstants {
    /// Gives the rows their gradient.
    ///
    /// # Safety
    /// The output's gradient and where the rows' goes have as many rows. They may be the same memory, as every value is
    /// read before it is written.
    pub(super) unsafe fn give<R: Rows<SUMS>, const SUMS: usize>(
        &self,
        rows: R,
        gradient: *const f32,
        to: R::Gradients,
    ) {
        let Self { scale, shift, centre, b, c } = self;
        let rectified = Rectified { scale, shift, centre };
        // SAFETY: passed on.
        unsafe { dispatch(InputGradient::<_, SUMS> { rows, gradient, rectified, b, c, to }) };
    }
}

/// Constants of a batch normalization's gradient, and the gradients of gamma and beta.
///
/// The gradient of a normalization is `dx = scale * (g - mean(g) - normal * mean(g * normal))` with
/// `normal = (x - mean) / sqrt(variance + epsilon)`.
pub(super) fn batch_norm_constants<const SUMS: usize>(
    rows: &impl Rows<SUMS>,
    gradient: &[f32],
    normalization: Normalization,
) -> (InputConstants, [Vec<f32>; 2]) {
    let Normalization { gamma, beta, statistics, epsilon } = normalization;
    let (scale, shift) = scale_and_shift(&statistics, gamma, beta, epsilon);
    let Statistics { mean: centre, variance } = statistics;
    let sums = gradient_sums(rows, gradient, Rectified { scale: &scale, shift: &shift, centre: &centre });
    let (plain, weighted) = sums.split_at(scale.len());
    let count = rows.count() as f64;
    let reciprocal: Vec<f64> = variance.iter().map(|variance| 1.0 / (f64::from(*variance) + epsilon).sqrt()).collect();
    let b = weighted
        .iter()
        .zip(&reciprocal)
        .zip(&scale)
        .map(|((sum, r), scale)| (-f64::from(*scale) * r * r * sum / count) as f32)
        .collect();
    let c = plain.iter().zip(&scale).map(|(sum, scale)| (-f64::from(*scale) * sum / count) as f32).collect();
    let gamma_gradient = weighted.iter().zip(&reciprocal).map(|(sum, r)| (sum * r) as f32).collect();
    let beta_gradient = plain.iter().map(|sum| *sum as f32).collect();
    (InputConstants { scale, shift, centre, b, c }, [gamma_gradient, beta_gradient])
}

/// Constants of the gradient of [`scale_shift_relu`], and the gradients of scale and shift.
pub(super) fn scale_shift_constants<const SUMS: usize>(
    rows: &impl Rows<SUMS>,
    gradient: &[f32],
    [scale, shift]: [&[f32]; 2],
) -> (InputConstants, [Vec<f32>; 2]) {
    let zeros = vec![0.0; scale.len()];
    let sums = gradient_sums(rows, gradient, Rectified { scale, shift, centre: &zeros });
    let (plain, weighted) = sums.split_at(scale.len());
    let single = |sums: &[f64]| sums.iter().map(|sum| *sum as f32).collect();
    let (scale, shift) = (scale.to_vec(), shift.to_vec());
    let constants = InputConstants { scale, shift, centre: zeros.clone(), b: zeros.clone(), c: zeros };
    (constants, [single(weighted), single(plain)])
}

/// Where an input's gradient goes: over the output's gradient if nobody else holds that, else into memory of its own.
pub(super) enum Gradient<'a> {
    /// The output's gradient, to be overwritten.
    Owned(&'a mut [f32]),
    /// The output's gradient, and where to write.
    Shared(&'a [f32], &'a mut [MaybeUninit<f32>]),
}

impl Gradient<'_> {
    pub(super) fn read(&self) -> &[f32] {
        match self {
            Self::Owned(gradient) => gradient,
            Self::Shared(gradient, _) => gradient,
        }
    }
}

/// Writes the gradient of a map's rows.
pub(super) fn input_gradient(rows: Plain, gradient: Gradient, constants: &InputConstants) {
    let (per_task, task) = (rows.per_task(), rows.per_task() * rows.channels);
    if task == 0 {
        return;
    }
    match gradient {
        Gradient::Owned(gradient) => gradient.par_chunks_mut(task).enumerate().for_each(|(index, gradient)| {
            let gradient = gradient.as_mut_ptr();
            // SAFETY: the chunk has the part's rows.
            unsafe { constants.give(rows.part(index * per_task, per_task), gradient, gradient) };
        }),
        Gradient::Shared(gradient, output) => {
            let chunks = output.par_chunks_mut(task).zip(gradient.par_chunks(task)).enumerate();
            chunks.for_each(|(index, (output, gradient))| {
                let rows = rows.part(index * per_task, per_task);
                // SAFETY: both chunks have the part's rows.
                unsafe { constants.give(rows, gradient.as_ptr(), output.as_mut_ptr().cast()) };
            });
        }
    }
}
