//! Batch normalization with its rectifier, in two passes over memory forward and two backward.

#![allow(unsafe_code, reason = "rows are read and written through pointers")]
#![allow(clippy::inline_always, reason = "see Kernel::run")]

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::buffer::Buffer;
use super::simd::{Kernel, Simd, dispatch};

/// Values in a block of rows: two maps' blocks stay in the first-level cache.
const BLOCK_VALUES: usize = 4096;

/// Blocks that one thread does at a time.
const BLOCKS_PER_TASK: usize = 16;

/// Rows in a block; depends on the sizes alone, so that sums are the same on any number of threads.
pub(super) fn block_rows(channels: usize) -> usize {
    (BLOCK_VALUES / channels.max(1)).max(8)
}

/// Mean and biased variance of every channel.
#[derive(Clone, Debug)]
pub(super) struct Statistics {
    pub(super) mean: Vec<f32>,
    pub(super) variance: Vec<f32>,
}

/// Statistics over the rows of `x`, `[row, channel]`.
///
/// Every block's mean and squared deviations are exact to `f32`; blocks are combined in `f64` (Chan, Golub and `LeVeque`
/// 1983), so means far from zero cost no digits.
pub(super) fn statistics(x: &[f32], channels: usize) -> Statistics {
    let blocks = block_sums(&[x], channels, |[x], sums| MomentsKernel { x, channels, sums });
    combine_moments(&blocks, channels, x.len() / channels.max(1), block_rows(channels))
}

/// Statistics from every block's means and squared deviations, for blocks of `per_block` of the `rows` rows.
pub(super) fn combine_moments(blocks: &[f32], channels: usize, rows: usize, per_block: usize) -> Statistics {
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

/// Runs a kernel that gives two sums per channel on every block of rows of some maps, `[row, channel]`.
fn block_sums<'a, const N: usize, K: Kernel<Output = ()>>(
    maps: &[&'a [f32]; N],
    channels: usize,
    kernel: impl Fn([&'a [f32]; N], *mut f32) -> K + Sync,
) -> Vec<f32> {
    let rows = maps[0].len() / channels.max(1);
    let per_block = block_rows(channels);
    let mut sums = vec![0.0; rows.div_ceil(per_block) * 2 * channels];
    if channels == 0 {
        return sums;
    }
    sums.par_chunks_mut(2 * channels * BLOCKS_PER_TASK).enumerate().for_each(|(task, sums)| {
        for (index, sums) in sums.chunks_exact_mut(2 * channels).enumerate() {
            let first = (task * BLOCKS_PER_TASK + index) * per_block * channels;
            let block = maps.map(|map| &map[first..map.len().min(first + per_block * channels)]);
            // SAFETY: the kernels read whole rows of the block and write two values per channel.
            unsafe { dispatch(kernel(block, sums.as_mut_ptr())) };
        }
    });
    sums
}

/// Adds up the blocks' sums: the first sum of every channel, then the second.
pub(super) fn total(blocks: &[f32], channels: usize) -> Vec<f64> {
    let mut total = vec![0.0; 2 * channels];
    for sums in blocks.chunks_exact((2 * channels).max(1)) {
        for (total, sum) in total.iter_mut().zip(sums) {
            *total += f64::from(*sum);
        }
    }
    total
}

/// Calls `$body` for every vector of channels with its first channel and its number of valid lanes.
macro_rules! for_vectors {
    ($simd:ident, $channels:expr, |$channel:ident, $valid:ident| $body:expr) => {{
        let mut $channel = 0;
        while $channel < $channels {
            let $valid = ($channels - $channel).min($simd::LANES);
            $body;
            $channel += $simd::LANES;
        }
    }};
}

pub(super) use for_vectors;

/// Reads `valid` lanes; the whole vector if all are.
#[inline(always)]
pub(super) unsafe fn load<S: Simd>(from: *const f32, valid: usize) -> S::Vector {
    // SAFETY: passed on.
    unsafe { if valid == S::LANES { S::load(from) } else { S::load_some(from, valid) } }
}

/// Writes `valid` lanes; the whole vector if all are.
#[inline(always)]
pub(super) unsafe fn store<S: Simd>(to: *mut f32, vector: S::Vector, valid: usize) {
    // SAFETY: passed on.
    unsafe { if valid == S::LANES { S::store(to, vector) } else { S::store_some(to, vector, valid) } }
}

/// Mean and squared deviations from it of one block.
struct MomentsKernel<'a> {
    x: &'a [f32],
    channels: usize,
    sums: *mut f32,
}

impl Kernel for MomentsKernel<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let channels = self.channels;
        let rows = self.x.len() / channels;
        let x = self.x.as_ptr();
        // SAFETY: rows and channels are those of the block.
        unsafe {
            for_vectors!(S, channels, |channel, valid| {
                let mut sums = [S::splat(0.0); 4];
                for row in 0..rows / 4 {
                    for (index, sum) in sums.iter_mut().enumerate() {
                        *sum = S::add(*sum, load::<S>(x.add((4 * row + index) * channels + channel), valid));
                    }
                }
                for row in rows / 4 * 4..rows {
                    sums[0] = S::add(sums[0], load::<S>(x.add(row * channels + channel), valid));
                }
                let sum = S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3]));
                let mean = S::multiply(sum, S::splat(1.0 / rows as f32));
                let mut sums = [S::splat(0.0); 4];
                for row in 0..rows / 4 {
                    for (index, sum) in sums.iter_mut().enumerate() {
                        let value = load::<S>(x.add((4 * row + index) * channels + channel), valid);
                        let distance = S::subtract(value, mean);
                        *sum = S::multiply_add(distance, distance, *sum);
                    }
                }
                for row in rows / 4 * 4..rows {
                    let distance = S::subtract(load::<S>(x.add(row * channels + channel), valid), mean);
                    sums[0] = S::multiply_add(distance, distance, sums[0]);
                }
                let sum = S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3]));
                store::<S>(self.sums.add(channel), mean, valid);
                store::<S>(self.sums.add(channels + channel), sum, valid);
            });
        }
    }
}

/// `max(x * scale + shift, 0)`.
pub(super) fn scale_shift_relu(x: &[f32], scale: &[f32], shift: &[f32]) -> Buffer {
    let channels = scale.len();
    let mut output = Buffer::new(x.len());
    if x.is_empty() {
        return output;
    }
    let block = block_rows(channels) * BLOCKS_PER_TASK * channels;
    output.values().par_chunks_mut(block).zip(x.par_chunks(block)).for_each(|(output, x)| {
        // SAFETY: input and output have the same whole rows, and one scale and shift per channel.
        unsafe { dispatch(ScaleShiftRelu { x, scale, shift, output: output.as_mut_ptr().cast() }) };
    });
    output
}

struct ScaleShiftRelu<'a> {
    x: &'a [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    output: *mut f32,
}

impl Kernel for ScaleShiftRelu<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let channels = self.scale.len();
        let rows = self.x.len() / channels;
        let zero = f32::default();
        // SAFETY: the caller promises the rows and the channels.
        unsafe {
            for row in 0..rows {
                let x = self.x.as_ptr().add(row * channels);
                let output = self.output.add(row * channels);
                for_vectors!(S, channels, |channel, valid| {
                    let scale = load::<S>(self.scale.as_ptr().add(channel), valid);
                    let shift = load::<S>(self.shift.as_ptr().add(channel), valid);
                    let value = S::multiply_add(load::<S>(x.add(channel), valid), scale, shift);
                    store::<S>(output.add(channel), S::max(value, S::splat(zero)), valid);
                });
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

/// A gradient through `max(x * scale + shift, 0)`: `sum of g` and `sum of g * (x - centre)` of every channel, where `g`
/// is the gradient where the rectifier is open.
fn gradient_sums(x: &[f32], gradient: &[f32], scale: &[f32], shift: &[f32], centre: &[f32]) -> Vec<f64> {
    let channels = scale.len();
    let blocks = block_sums(&[x, gradient], channels, |[x, gradient], sums| GradientSums {
        x,
        gradient,
        scale,
        shift,
        centre,
        sums,
    });
    total(&blocks, channels)
}

struct GradientSums<'a> {
    x: &'a [f32],
    gradient: &'a [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    centre: &'a [f32],
    sums: *mut f32,
}

impl Kernel for GradientSums<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let channels = self.scale.len();
        let rows = self.x.len() / channels;
        // SAFETY: rows and channels are those of the block.
        unsafe {
            for_vectors!(S, channels, |channel, valid| {
                let x = self.x.as_ptr().add(channel);
                let gradient = self.gradient.as_ptr().add(channel);
                let scale = load::<S>(self.scale.as_ptr().add(channel), valid);
                let shift = load::<S>(self.shift.as_ptr().add(channel), valid);
                let centre = load::<S>(self.centre.as_ptr().add(channel), valid);
                let mut plain = [S::splat(0.0); 4];
                let mut weighted = [S::splat(0.0); 4];
                let mut row = 0;
                while row < rows {
                    let together = (rows - row).min(4);
                    for index in 0..together {
                        let x = load::<S>(x.add((row + index) * channels), valid);
                        let open = S::multiply_add(x, scale, shift);
                        let g = S::where_positive(open, load::<S>(gradient.add((row + index) * channels), valid));
                        plain[index] = S::add(plain[index], g);
                        weighted[index] = S::multiply_add(g, S::subtract(x, centre), weighted[index]);
                    }
                    row += together;
                }
                let plain = S::add(S::add(plain[0], plain[1]), S::add(plain[2], plain[3]));
                let weighted = S::add(S::add(weighted[0], weighted[1]), S::add(weighted[2], weighted[3]));
                store::<S>(self.sums.add(channel), plain, valid);
                store::<S>(self.sums.add(channels + channel), weighted, valid);
            });
        }
    }
}

/// The input's gradient `a * g + b * (x - centre) + c`, written over the output's gradient.
struct InputGradient<'a> {
    x: &'a [f32],
    gradient: *const f32,
    output: *mut f32,
    scale: &'a [f32],
    shift: &'a [f32],
    centre: &'a [f32],
    b: &'a [f32],
    c: &'a [f32],
}

impl Kernel for InputGradient<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let channels = self.scale.len();
        let rows = self.x.len() / channels;
        // SAFETY: the caller promises the rows and the channels.
        unsafe {
            for row in 0..rows {
                let x = self.x.as_ptr().add(row * channels);
                let gradient = self.gradient.add(row * channels);
                let output = self.output.add(row * channels);
                for_vectors!(S, channels, |channel, valid| {
                    let scale = load::<S>(self.scale.as_ptr().add(channel), valid);
                    let shift = load::<S>(self.shift.as_ptr().add(channel), valid);
                    let x = load::<S>(x.add(channel), valid);
                    let open = S::multiply_add(x, scale, shift);
                    let g = S::where_positive(open, load::<S>(gradient.add(channel), valid));
                    let distance = S::subtract(x, load::<S>(self.centre.as_ptr().add(channel), valid));
                    let b = load::<S>(self.b.as_ptr().add(channel), valid);
                    let c = load::<S>(self.c.as_ptr().add(channel), valid);
                    let value = S::multiply_add(scale, g, S::multiply_add(b, distance, c));
                    store::<S>(output.add(channel), value, valid);
                });
            }
        }
    }
}

/// Where an input's gradient goes: over the output's gradient if nobody else holds that, else into memory of its own.
pub(super) enum Gradient<'a> {
    /// The output's gradient, to be overwritten.
    Owned(&'a mut [f32]),
    /// The output's gradient, and where to write.
    Shared(&'a [f32], &'a mut [MaybeUninit<f32>]),
}

impl Gradient<'_> {
    fn read(&self) -> &[f32] {
        match self {
            Self::Owned(gradient) => gradient,
            Self::Shared(gradient, _) => gradient,
        }
    }
}

/// Constants of a batch normalization's gradient.
pub(super) struct Normalization<'a> {
    pub(super) gamma: &'a [f32],
    pub(super) beta: &'a [f32],
    pub(super) statistics: Statistics,
    pub(super) epsilon: f64,
}

/// Writes the gradient of `x` and gives those of gamma and beta.
pub(super) fn batch_norm_relu_gradients(
    x: &[f32],
    normalization: &Normalization,
    gradient: Gradient,
) -> (Vec<f32>, Vec<f32>) {
    let Normalization { gamma, beta, statistics, epsilon } = normalization;
    let (scale, shift) = scale_and_shift(statistics, gamma, beta, *epsilon);
    let sums = gradient_sums(x, gradient.read(), &scale, &shift, &statistics.mean);
    let rows = x.len() / scale.len().max(1);
    let InputConstants { b, c, gamma_gradient, beta_gradient } =
        input_constants(&sums, &scale, statistics, *epsilon, rows);
    input_gradient(x, gradient, &scale, &shift, &statistics.mean, &b, &c);
    (gamma_gradient, beta_gradient)
}

/// What the sums over a batch contribute to gradients.
pub(super) struct InputConstants {
    pub(super) b: Vec<f32>,
    pub(super) c: Vec<f32>,
    pub(super) gamma_gradient: Vec<f32>,
    pub(super) beta_gradient: Vec<f32>,
}

/// Constants of `dx = scale * g + b * (x - mean) + c`, from the sums of `g` and `g * (x - mean)`.
///
/// The gradient of a normalization is `dx = scale * (g - mean(g) - normal * mean(g * normal))` with
/// `normal = (x - mean) / sqrt(variance + epsilon)`.
pub(super) fn input_constants(
    sums: &[f64],
    scale: &[f32],
    statistics: &Statistics,
    epsilon: f64,
    rows: usize,
) -> InputConstants {
    let (plain, weighted) = sums.split_at(scale.len());
    let rows = rows as f64;
    let reciprocal: Vec<f64> =
        statistics.variance.iter().map(|variance| 1.0 / (f64::from(*variance) + epsilon).sqrt()).collect();
    let b = weighted
        .iter()
        .zip(&reciprocal)
        .zip(scale)
        .map(|((sum, r), scale)| (-f64::from(*scale) * r * r * sum / rows) as f32)
        .collect();
    InputConstants {
        b,
        c: plain.iter().zip(scale).map(|(sum, scale)| (-f64::from(*scale) * sum / rows) as f32).collect(),
        gamma_gradient: weighted.iter().zip(&reciprocal).map(|(sum, r)| (sum * r) as f32).collect(),
        beta_gradient: plain.iter().map(|sum| *sum as f32).collect(),
    }
}

/// Writes the gradient of `x` and gives those of scale and shift.
pub(super) fn scale_shift_relu_gradients(
    x: &[f32],
    scale: &[f32],
    shift: &[f32],
    gradient: Gradient,
) -> (Vec<f32>, Vec<f32>) {
    let channels = scale.len();
    let zeros = vec![0.0; channels];
    let sums = gradient_sums(x, gradient.read(), scale, shift, &zeros);
    let (plain, weighted) = sums.split_at(channels);
    input_gradient(x, gradient, scale, shift, &zeros, &zeros, &zeros);
    let single = |sums: &[f64]| sums.iter().map(|sum| *sum as f32).collect();
    (single(weighted), single(plain))
}

fn input_gradient(x: &[f32], gradient: Gradient, scale: &[f32], shift: &[f32], centre: &[f32], b: &[f32], c: &[f32]) {
    if x.is_empty() {
        return;
    }
    let block = block_rows(scale.len()) * BLOCKS_PER_TASK * scale.len();
    let run = |x, gradient, output| {
        // SAFETY: all three have the same whole rows; output may be the gradient itself, as every value is read before
        // it is written.
        unsafe { dispatch(InputGradient { x, gradient, output, scale, shift, centre, b, c }) };
    };
    match gradient {
        Gradient::Owned(gradient) => {
            gradient.par_chunks_mut(block).zip(x.par_chunks(block)).for_each(|(gradient, x)| {
                let pointer = gradient.as_mut_ptr();
                run(x, pointer, pointer);
            });
        }
        Gradient::Shared(gradient, output) => {
            let chunks = output.par_chunks_mut(block).zip(gradient.par_chunks(block)).zip(x.par_chunks(block));
            chunks.for_each(|((output, gradient), x)| run(x, gradient.as_ptr(), output.as_mut_ptr().cast()));
        }
    }
}
