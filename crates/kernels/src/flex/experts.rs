//! A map weighed by every expert's gate, without the weighed maps ever in memory.

#![allow(unsafe_code, reason = "rows are read and written through pointers")]
#![allow(clippy::inline_always, reason = "see Kernel::run")]

use rayon::prelude::*;

use super::buffer::Buffer;
use super::normalization::{Normalization, batch_norm_constants};
use super::rows::{Place, Read, Rows, load, store};
use super::simd::Simd;

/// A map and the weight of every position for every expert; each expert is a group of channels.
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

impl Rows<1> for Weighted<'_> {
    type Weight<S: Simd> = S::Vector;
    /// Gradients of the map, `[row, channel]`, and of the weights, `[row, expert]`.
    type Gradients = (*mut f32, *mut f32);

    fn count(&self) -> usize {
        self.map.len() / self.channels.max(1)
    }

    fn channels(&self) -> usize {
        self.channels
    }

    #[inline(always)]
    fn groups(&self) -> usize {
        self.experts
    }

    fn part(&self, first: usize, count: usize) -> Self {
        let end = self.count().min(first + count);
        Self {
            map: &self.map[first * self.channels..end * self.channels],
            weights: &self.weights[first * self.experts..end * self.experts],
            ..*self
        }
    }

    #[inline(always)]
    fn values(&self, row: usize, channel: usize) -> *const f32 {
        self.map.as_ptr().wrapping_add(row * self.channels + channel)
    }

    #[inline(always)]
    unsafe fn weight<S: Simd>(&self, row: usize, expert: usize) -> S::Vector {
        // SAFETY: row and expert are among these.
        unsafe { S::splat(*self.weights.as_ptr().add(row * self.experts + expert)) }
    }

    #[inline(always)]
    unsafe fn seen<S: Simd>(values: S::Vector, weight: S::Vector) -> S::Vector {
        // SAFETY: the machine has the instructions.
        unsafe { S::multiply(values, weight) }
    }

    #[inline(always)]
    unsafe fn add_seen<S: Simd>(values: S::Vector, weight: S::Vector, sum: S::Vector) -> S::Vector {
        // SAFETY: the machine has the instructions.
        unsafe { S::multiply_add(values, weight, sum) }
    }

    #[inline(always)]
    unsafe fn take<S: Simd>(
        &self,
        (map, _): Self::Gradients,
        Place { row, group, channel, valid }: Place,
        Read { values, weight }: Read<S, S::Vector>,
        gradient: S::Vector,
        products: &mut S::Vector,
    ) {
        // SAFETY: the place is in the map's gradient, and the experts before this one have written it.
        unsafe {
            *products = S::multiply_add(values, gradient, *products);
            let to = map.add(row * self.channels + channel);
            let before = if group == 0 { S::splat(0.0) } else { load::<S>(to, valid) };
            store::<S>(to, S::multiply_add(weight, gradient, before), valid);
        }
    }

    #[inline(always)]
    unsafe fn take_products<S: Simd>(
        &self,
        (_, weights): Self::Gradients,
        row: usize,
        expert: usize,
        products: S::Vector,
    ) {
        let mut lanes = [0.0_f32; 16];
        // SAFETY: no vector has more lanes, and row and expert are in the weights' gradient.
        unsafe {
            S::store(lanes.as_mut_ptr(), products);
            weights.add(row * self.experts + expert).write(lanes.iter().sum());
        }
    }
}

impl Weighted<'_> {
    /// Gradients of the map, written in full, of the weights (`[row, expert]`), and of gamma and beta of a normalization
    /// of what every expert sees.
    pub(super) fn batch_norm_relu_gradients(
        &self,
        gradient: &[f32],
        normalization: Normalization,
    ) -> (Buffer, Vec<f32>, [Vec<f32>; 2]) {
        let (constants, parameters) = batch_norm_constants(self, gradient, normalization);
        let mut map = Buffer::new(self.map.len());
        let mut weights = vec![0.0; self.weights.len()];
        let (per_task, wide) = (self.per_task(), self.wide());
        if wide > 0 {
            let parts = map.values().par_chunks_mut(per_task * self.channels);
            let parts = parts.zip(weights.par_chunks_mut(per_task * self.experts));
            parts.zip(gradient.par_chunks(per_task * wide)).enumerate().for_each(
                |(task, ((map, weights), gradient))| {
                    let rows = self.part(task * per_task, per_task);
                    // SAFETY: all three have the part's rows.
                    unsafe { constants.give(rows, gradient.as_ptr(), (map.as_mut_ptr().cast(), weights.as_mut_ptr())) };
                },
            );
        }
        (map, weights, parameters)
    }
}
