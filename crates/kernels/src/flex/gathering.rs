//! Experts' selected patches, taken and weighed in one pass, and given back in one.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::buffer::Buffer;

/// Partial sums of a dot product, so that additions do not wait for each other.
const LANES: usize = 16;

/// Patches of a batch of images and what every expert selected of them.
#[derive(Clone, Copy)]
pub(super) struct Gathering<'a> {
    /// `[batch, patch, position, channel]`
    pub(super) patches: &'a [f32],
    /// `[batch, expert, patch]`
    pub(super) weights: &'a [f32],
    /// `[batch, expert, selected]`
    pub(super) indices: &'a [usize],
    pub(super) count: usize,
    pub(super) positions: usize,
    pub(super) channels: usize,
    pub(super) experts: usize,
    pub(super) selected: usize,
}

impl Gathering<'_> {
    /// Values of one patch.
    fn patch(&self) -> usize {
        self.positions * self.channels
    }

    /// Values of one image's output.
    fn image(&self) -> usize {
        self.selected * self.experts * self.patch()
    }

    /// Calls `work` with expert, place in the selection and patch of everything selected of an image.
    fn for_selected(&self, image: usize, mut work: impl FnMut(usize, usize, usize)) {
        let indices = &self.indices[image * self.experts * self.selected..][..self.experts * self.selected];
        for place in 0..self.selected {
            for expert in 0..self.experts {
                work(expert, place, indices[expert * self.selected + place]);
            }
        }
    }

    /// The weighed patches, `[batch, selected, position, expert * channel]`; written in full.
    pub(super) fn forward(&self) -> Buffer {
        let (patch, image, channels) = (self.patch(), self.image(), self.channels);
        let mut output = Buffer::new(self.indices.len() * patch);
        if image == 0 {
            return output;
        }
        output.values().par_chunks_mut(image).enumerate().for_each(|(index, output)| {
            let patches = &self.patches[index * self.count * patch..][..self.count * patch];
            let weights = &self.weights[index * self.experts * self.count..][..self.experts * self.count];
            self.for_selected(index, |expert, place, chosen| {
                let weight = weights[expert * self.count + chosen];
                for (position, from) in patches[chosen * patch..][..patch].chunks_exact(channels).enumerate() {
                    let at = ((place * self.positions + position) * self.experts + expert) * channels;
                    for (output, value) in output[at..][..channels].iter_mut().zip(from) {
                        output.write(weight * value);
                    }
                }
            });
        });
        output
    }

    /// Gradients of patches, written in full, and weights.
    pub(super) fn gradients(&self, gradient: &[f32]) -> (Buffer, Vec<f32>) {
        let (patch, image, channels) = (self.patch(), self.image(), self.channels);
        let mut patches_gradient = Buffer::new(self.patches.len());
        let mut weights_gradient = vec![0.0; self.weights.len()];
        let (all, wide) = (self.count * patch, self.experts * self.count);
        if all == 0 || wide == 0 {
            patches_gradient.values().fill(MaybeUninit::new(0.0));
            return (patches_gradient, weights_gradient);
        }
        let images = patches_gradient.values().par_chunks_mut(all).zip(weights_gradient.par_chunks_mut(wide));
        images.enumerate().for_each(|(index, (patches_gradient, weights_gradient))| {
            let patches = &self.patches[index * all..][..all];
            let weights = &self.weights[index * wide..][..wide];
            let gradient = &gradient[index * image..][..image];
            let patches_gradient = zeroed(patches_gradient);
            self.for_selected(index, |expert, place, chosen| {
                let weight = weights[expert * self.count + chosen];
                let mut product = 0.0;
                for position in 0..self.positions {
                    let at = ((place * self.positions + position) * self.experts + expert) * channels;
                    let gradient = &gradient[at..][..channels];
                    let own = chosen * patch + position * channels;
                    product += dot(gradient, &patches[own..][..channels]);
                    for (sum, gradient) in patches_gradient[own..][..channels].iter_mut().zip(gradient) {
                        *sum += weight * gradient;
                    }
                }
                weights_gradient[expert * self.count + chosen] += product;
            });
        });
        (patches_gradient, weights_gradient)
    }
}

/// The values, all set to zero.
#[allow(unsafe_code, reason = "memory is taken as written after it was written")]
fn zeroed(values: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    values.fill(MaybeUninit::new(0.0));
    // SAFETY: every value was written above.
    unsafe { values.assume_init_mut() }
}

fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (left, right) = (left.chunks_exact(LANES), right.chunks_exact(LANES));
    let rest: f32 = left.remainder().iter().zip(right.remainder()).map(|(left, right)| left * right).sum();
    for (left, right) in left.zip(right) {
        for (sum, (left, right)) in sums.iter_mut().zip(left.iter().zip(right)) {
            *sum += left * right;
        }
    }
    sums.iter().sum::<f32>() + rest
}
