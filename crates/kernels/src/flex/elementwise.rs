//! Sums and averages that burn's CPU backend does on one thread.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::buffer::Buffer;

/// Values that one thread does at a time.
const TASK_VALUES: usize = 1 << 16;

pub(super) fn add(left: &[f32], right: &[f32]) -> Buffer {
    let mut output = Buffer::new(left.len());
    let parts = output.values().par_chunks_mut(TASK_VALUES);
    parts.zip(left.par_chunks(TASK_VALUES)).zip(right.par_chunks(TASK_VALUES)).for_each(|((output, left), right)| {
        for ((output, left), right) in output.iter_mut().zip(left).zip(right) {
            output.write(left + right);
        }
    });
    output
}

/// Adds `right` to `left` in place.
pub(super) fn add_assign(left: &mut [f32], right: &[f32]) {
    left.par_chunks_mut(TASK_VALUES).zip(right.par_chunks(TASK_VALUES)).for_each(|(left, right)| {
        for (left, right) in left.iter_mut().zip(right) {
            *left += right;
        }
    });
}

/// Averages `[batch, position, channel]` over positions.
pub(super) fn average_positions(map: &[f32], positions: usize, channels: usize) -> Buffer {
    let image = positions * channels;
    let mut output = Buffer::new(if image == 0 { 0 } else { map.len() / positions });
    if image > 0 {
        output.values().par_chunks_mut(channels).zip(map.par_chunks(image)).for_each(|(output, map)| {
            output.fill(MaybeUninit::new(0.0));
            let mut sums = vec![0.0_f32; channels];
            for row in map.chunks_exact(channels) {
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += value;
                }
            }
            for (output, sum) in output.iter_mut().zip(sums) {
                output.write(sum / positions as f32);
            }
        });
    }
    output
}

pub(super) fn average_positions_gradient(gradient: &[f32], positions: usize, channels: usize) -> Buffer {
    let image = positions * channels;
    let mut output = Buffer::new(gradient.len() * positions);
    if image > 0 {
        output.values().par_chunks_mut(image).zip(gradient.par_chunks(channels)).for_each(|(output, gradient)| {
            for row in output.chunks_exact_mut(channels) {
                for (output, gradient) in row.iter_mut().zip(gradient) {
                    output.write(gradient / positions as f32);
                }
            }
        });
    }
    output
}
