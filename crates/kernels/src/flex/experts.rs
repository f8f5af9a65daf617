//! A map weighed by every expert's gate and normalized, without the weighed maps ever in memory.

#![allow(unsafe_code, reason = "rows are read and written through pointers")]
#![allow(clippy::inline_always, reason = "see Kernel::run")]

use rayon::prelude::*;

use super::buffer::Buffer;
use super::normalization::{Statistics, block_rows, combine_moments, for_vectors, input_constants, load, store, total};
use super::simd::{Kernel, Simd, dispatch};

/// Blocks of rows that one thread does at a time.
const BLOCKS_PER_TASK: usize = 4;

/// A map and the weight of every position for every expert.
#[derive(Clone, Copy)]
pub(super) struct Weighted<'a> {
    /// `[row, channel]`, where a row is a position of an image.
    pub(super) map: &'a [f32],
    pub(super) channels: usize,
    /// `[row, expert]`.
    pub(super) weights: &'a [f32],
    pub(super) experts: usize,
}

/// Reorders weights from `[batch, expert, position]` to `[batch, position, expert]`.
pub(super) fn by_position(weights: &[f32], experts: usize, positions: usize) -> Vec<f32> {
    let mut rows = vec![0.0; weights.len()];
    let image = (experts * positions).max(1);
    for (weights, rows) in weights.chunks_exact(image).zip(rows.chunks_exact_mut(image)) {
        for (expert, weights) in weights.chunks_exact(positions).enumerate() {
            for (weight, row) in weights.iter().zip(rows.chunks_exact_mut(experts)) {
                row[expert] = *weight;
            }
        }
    }
    rows
}

impl<'a> Weighted<'a> {
    fn rows(&self) -> usize {
        self.map.len() / self.channels.max(1)
    }

    /// Channels of all experts together.
    fn wide(&self) -> usize {
        self.experts * self.channels
    }

    /// The rows from `first`, at most `count`.
    fn part(&self, first: usize, count: usize) -> Weighted<'a> {
        let end = self.rows().min(first + count);
        Weighted {
            map: &self.map[first * self.channels..end * self.channels],
            weights: &self.weights[first * self.experts..end * self.experts],
            ..*self
        }
    }

    /// Two sums per channel and expert of every block of rows.
    fn block_sums<K: Kernel<Output = ()>>(
        &self,
        kernel: impl Fn(Weighted<'a>, usize, *mut f32) -> K + Sync,
    ) -> Vec<f32> {
        let per_block = block_rows(self.channels);
        let width = 2 * self.wide();
        let mut sums = vec![0.0; self.rows().div_ceil(per_block) * width];
        if width > 0 {
            sums.par_chunks_mut(width * BLOCKS_PER_TASK).enumerate().for_each(|(task, sums)| {
                for (index, sums) in sums.chunks_exact_mut(width).enumerate() {
                    let first = (task * BLOCKS_PER_TASK + index) * per_block;
                    // SAFETY: the kernels read whole rows of the block and write two values per channel and expert.
                    unsafe { dispatch(kernel(self.part(first, per_block), first, sums.as_mut_ptr())) };
                }
            });
        }
        sums
    }

    /// Mean and variance of every expert's weighed channels.
    pub(super) fn statistics(&self) -> Statistics {
        let blocks = self.block_sums(|of, _, sums| Moments { of, sums });
        combine_moments(&blocks, self.wide(), self.rows(), block_rows(self.channels))
    }

    /// `max(weight * map * scale + shift, 0)` for every expert.
    pub(super) fn scale_shift_relu(&self, scale: &[f32], shift: &[f32]) -> Buffer {
        let mut output = Buffer::new(self.rows() * self.wide());
        let rows = block_rows(self.channels) * BLOCKS_PER_TASK;
        if self.wide() > 0 {
            output.values().par_chunks_mut(rows * self.wide()).enumerate().for_each(|(task, output)| {
                let of = self.part(task * rows, rows);
                // SAFETY: the output has as many rows as the part.
                unsafe { dispatch(Forward { of, scale, shift, output: output.as_mut_ptr().cast() }) };
            });
        }
        output
    }

    /// Gradients of map, weights (`[row, expert]`), gamma and beta.
    pub(super) fn gradients(
        &self,
        gradient: &[f32],
        statistics: &Statistics,
        [gamma, beta]: [&[f32]; 2],
        epsilon: f64,
    ) -> (Buffer, Vec<f32>, Vec<f32>, Vec<f32>) {
        let (scale, shift) = super::normalization::scale_and_shift(statistics, gamma, beta, epsilon);
        let (scale, shift, centre) = (scale.as_slice(), shift.as_slice(), statistics.mean.as_slice());
        let wide = self.wide();
        let blocks = self.block_sums(|of, first, sums| GradientSums {
            of,
            gradient: &gradient[first * wide..],
            scale,
            shift,
            centre,
            sums,
        });
        let constants = input_constants(&total(&blocks, wide), scale, statistics, epsilon, self.rows());
        let mut map = Buffer::new(self.map.len());
        let mut weights = vec![0.0; self.weights.len()];
        let rows = block_rows(self.channels) * BLOCKS_PER_TASK;
        if wide > 0 {
            let parts = map.values().par_chunks_mut(rows * self.channels);
            parts.zip(weights.par_chunks_mut(rows * self.experts)).enumerate().for_each(|(task, (map, weights))| {
                let kernel = Backward {
                    of: self.part(task * rows, rows),
                    gradient: &gradient[task * rows * wide..],
                    scale,
                    shift,
                    centre,
                    b: &constants.b,
                    c: &constants.c,
                    map: map.as_mut_ptr().cast(),
                    weights: weights.as_mut_ptr(),
                };
                // SAFETY: gradients and outputs have as many rows as the part.
                unsafe { dispatch(kernel) };
            });
        }
        (map, weights, constants.gamma_gradient, constants.beta_gradient)
    }
}

struct Moments<'a> {
    of: Weighted<'a>,
    sums: *mut f32,
}

impl Kernel for Moments<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Weighted { map, channels, weights, experts } = self.of;
        let rows = self.of.rows();
        // SAFETY: rows, channels and experts are those of the block.
        unsafe {
            for expert in 0..experts {
                let weights = weights.as_ptr().add(expert);
                for_vectors!(S, channels, |channel, valid| {
                    let map = map.as_ptr().add(channel);
                    let at = expert * channels + channel;
                    let mut sum = S::splat(0.0);
                    for row in 0..rows {
                        let weight = S::splat(*weights.add(row * experts));
                        sum = S::multiply_add(load::<S>(map.add(row * channels), valid), weight, sum);
                    }
                    let mean = S::multiply(sum, S::splat(1.0 / rows as f32));
                    let mut sum = S::splat(0.0);
                    for row in 0..rows {
                        let weight = S::splat(*weights.add(row * experts));
                        let seen = S::multiply(load::<S>(map.add(row * channels), valid), weight);
                        let distance = S::subtract(seen, mean);
                        sum = S::multiply_add(distance, distance, sum);
                    }
                    store::<S>(self.sums.add(at), mean, valid);
                    store::<S>(self.sums.add(experts * channels + at), sum, valid);
                });
            }
        }
    }
}

struct Forward<'a> {
    of: Weighted<'a>,
    scale: &'a [f32],
    shift: &'a [f32],
    output: *mut f32,
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Weighted { map, channels, weights, experts } = self.of;
        // SAFETY: rows, channels and experts are those of the part.
        unsafe {
            for row in 0..self.of.rows() {
                let map = map.as_ptr().add(row * channels);
                let output = self.output.add(row * experts * channels);
                for expert in 0..experts {
                    let weight = S::splat(*weights.as_ptr().add(row * experts + expert));
                    for_vectors!(S, channels, |channel, valid| {
                        let at = expert * channels + channel;
                        let scale = load::<S>(self.scale.as_ptr().add(at), valid);
                        let shift = load::<S>(self.shift.as_ptr().add(at), valid);
                        let seen = S::multiply(load::<S>(map.add(channel), valid), weight);
                        let value = S::max(S::multiply_add(seen, scale, shift), S::splat(0.0));
                        store::<S>(output.add(at), value, valid);
                    });
                }
            }
        }
    }
}

struct GradientSums<'a> {
    of: Weighted<'a>,
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
        let Weighted { map, channels, weights, experts } = self.of;
        let wide = experts * channels;
        let rows = self.of.rows();
        // SAFETY: rows, channels and experts are those of the block.
        unsafe {
            for expert in 0..experts {
                let weights = weights.as_ptr().add(expert);
                for_vectors!(S, channels, |channel, valid| {
                    let map = map.as_ptr().add(channel);
                    let at = expert * channels + channel;
                    let gradient = self.gradient.as_ptr().add(at);
                    let scale = load::<S>(self.scale.as_ptr().add(at), valid);
                    let shift = load::<S>(self.shift.as_ptr().add(at), valid);
                    let centre = load::<S>(self.centre.as_ptr().add(at), valid);
                    let mut plain = S::splat(0.0);
                    let mut weighted = S::splat(0.0);
                    for row in 0..rows {
                        let weight = S::splat(*weights.add(row * experts));
                        let seen = S::multiply(load::<S>(map.add(row * channels), valid), weight);
                        let open = S::multiply_add(seen, scale, shift);
                        let g = S::where_positive(open, load::<S>(gradient.add(row * wide), valid));
                        plain = S::add(plain, g);
                        weighted = S::multiply_add(g, S::subtract(seen, centre), weighted);
                    }
                    store::<S>(self.sums.add(at), plain, valid);
                    store::<S>(self.sums.add(wide + at), weighted, valid);
                });
            }
        }
    }
}

struct Backward<'a> {
    of: Weighted<'a>,
    gradient: &'a [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    centre: &'a [f32],
    b: &'a [f32],
    c: &'a [f32],
    map: *mut f32,
    weights: *mut f32,
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Weighted { map, channels, weights, experts } = self.of;
        // SAFETY: rows, channels and experts are those of the part.
        unsafe {
            for row in 0..self.of.rows() {
                let map = map.as_ptr().add(row * channels);
                let map_gradient = self.map.add(row * channels);
                for expert in 0..experts {
                    let weight = S::splat(*weights.as_ptr().add(row * experts + expert));
                    let mut products = S::splat(0.0);
                    for_vectors!(S, channels, |channel, valid| {
                        let at = expert * channels + channel;
                        let gradient = self.gradient.as_ptr().add(row * experts * channels + at);
                        let scale = load::<S>(self.scale.as_ptr().add(at), valid);
                        let shift = load::<S>(self.shift.as_ptr().add(at), valid);
                        let value = load::<S>(map.add(channel), valid);
                        let seen = S::multiply(value, weight);
                        let g = S::where_positive(S::multiply_add(seen, scale, shift), load::<S>(gradient, valid));
                        let distance = S::subtract(seen, load::<S>(self.centre.as_ptr().add(at), valid));
                        let b = load::<S>(self.b.as_ptr().add(at), valid);
                        let c = load::<S>(self.c.as_ptr().add(at), valid);
                        let g = S::multiply_add(scale, g, S::multiply_add(b, distance, c));
                        // Lanes beyond the channels are zero in `value`.
                        products = S::multiply_add(value, g, products);
                        let to = map_gradient.add(channel);
                        let before = if expert == 0 { S::splat(0.0) } else { load::<S>(to, valid) };
                        store::<S>(to, S::multiply_add(weight, g, before), valid);
                    });
                    let mut lanes = [0.0_f32; 16];
                    S::store(lanes.as_mut_ptr(), products);
                    self.weights.add(row * experts + expert).write(lanes.iter().sum());
                }
            }
        }
    }
}
