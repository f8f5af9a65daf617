#![allow(unsafe_code, reason = "rows are read and written through pointers")]
#![allow(clippy::inline_always, reason = "see Kernel::run")]

use super::geometry::Geometry;
use crate::flex::rows::{for_vectors, load, store};
use crate::flex::simd::{Kernel, Simd, dispatch};

/// Where an image lies within zeros.
#[derive(Clone, Copy, Debug)]
pub(super) struct Padded {
    pub(super) size: [usize; 2],
    /// Places of a pixel, each of one channel or of two.
    pub(super) channels: usize,
    /// Channels in one place: 1, or 2 as a pair of bf16.
    pub(super) together: usize,
    /// Zero rows above and zero columns left of the image.
    pub(super) offset: [usize; 2],
    /// Rows and columns with the zeros.
    pub(super) within: [usize; 2],
}

impl Padded {
    /// A convolution's input within its zeros, `together` channels in one place.
    pub(super) fn input_of(geometry: &Geometry, together: usize) -> Self {
        let [top, left, bottom, right] = geometry.options.padding;
        let size = geometry.size;
        Self {
            size,
            channels: geometry.groups * geometry.channels / together,
            together,
            offset: [top, left],
            within: [size[0] + top + bottom, size[1] + left + right],
        }
    }

    /// Values of an image.
    pub(super) fn image(&self) -> usize {
        self.size[0] * self.size[1] * self.channels * self.together
    }

    /// Places of an image within its zeros.
    pub(super) fn length(&self) -> usize {
        self.within[0] * self.within[1] * self.channels
    }

    /// Whether the image's values are not yet what products take.
    pub(super) fn is_needed(&self) -> bool {
        self.size != self.within || self.together > 1
    }

    /// Writes as many padded images as the target has room for, normalized by a scale and a shift of every channel if
    /// there are any.
    pub(super) fn fill(&self, images: &[f32], target: &mut [f32], normalization: Option<[&[f32]; 2]>) {
        // SAFETY: the machine has the instructions that are chosen.
        unsafe { dispatch(Fill { padded: self, images, target, normalization }) }
    }
}

struct Fill<'a> {
    padded: &'a Padded,
    images: &'a [f32],
    target: &'a mut [f32],
    normalization: Option<[&'a [f32]; 2]>,
}

impl Kernel for Fill<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Padded { size, channels, together, offset, within } = *self.padded;
        let row = size[1] * channels;
        let left = offset[1] * channels;
        let inner = offset[0]..offset[0] + size[0];
        let images = self.images.chunks_exact(self.padded.image().max(1));
        for (image, target) in images.zip(self.target.chunks_exact_mut(self.padded.length().max(1))) {
            for (index, target) in target.chunks_exact_mut(within[1] * channels).enumerate() {
                if !inner.contains(&index) {
                    target.fill(0.0);
                    continue;
                }
                let image = &image[(index - offset[0]) * row * together..][..row * together];
                target[..left].fill(0.0);
                let places = &mut target[left..left + row];
                // SAFETY: the machine has the instructions.
                unsafe {
                    match (self.normalization, together) {
                        (None, 1) => places.copy_from_slice(image),
                        (None, _) => pair_row::<S>(image, places),
                        (Some(normalization), 1) => normalize_row::<S>(image, places, normalization),
                        (Some(normalization), _) => normalize_and_pair_row::<S>(image, places, normalization),
                    }
                }
                target[left + row..].fill(0.0);
            }
        }
    }
}

/// Pairs of neighbouring values.
#[inline(always)]
unsafe fn pair_row<S: Simd>(values: &[f32], pairs: &mut [f32]) {
    for (values, pairs) in values.chunks(2 * S::LANES).zip(pairs.chunks_mut(S::LANES)) {
        // SAFETY: as many values are read and pairs written as there are.
        unsafe {
            let from = values.as_ptr();
            if pairs.len() == S::LANES {
                S::store(pairs.as_mut_ptr(), S::pair_neighbours(S::load(from), S::load(from.add(S::LANES))));
            } else {
                let first = values.len().min(S::LANES);
                let second = S::load_some(from.add(first), values.len() - first);
                let paired = S::pair_neighbours(S::load_some(from, first), second);
                S::store_some(pairs.as_mut_ptr(), paired, pairs.len());
            }
        }
    }
}

/// Some channels of a pixel, normalized.
#[inline(always)]
unsafe fn normalized<S: Simd>(
    pixel: *const f32,
    channel: usize,
    valid: usize,
    normalization: [&[f32]; 2],
) -> S::Vector {
    // SAFETY: the caller promises the channels, of which each has its scale and its shift.
    unsafe {
        let [scale, shift] = normalization;
        let scale = load::<S>(scale.as_ptr().add(channel), valid);
        let shift = load::<S>(shift.as_ptr().add(channel), valid);
        S::max(S::multiply_add(load::<S>(pixel.add(channel), valid), scale, shift), S::splat(0.0))
    }
}

#[inline(always)]
unsafe fn normalize_row<S: Simd>(values: &[f32], places: &mut [f32], normalization: [&[f32]; 2]) {
    let channels = normalization[0].len();
    for (pixel, places) in values.chunks_exact(channels).zip(places.chunks_exact_mut(channels)) {
        let (pixel, to) = (pixel.as_ptr(), places.as_mut_ptr());
        // SAFETY: the vectors are within the channels.
        unsafe {
            for_vectors!(S, channels, |channel, valid| {
                store::<S>(to.add(channel), normalized::<S>(pixel, channel, valid, normalization), valid);
            });
        }
    }
}

/// Pairs of neighbouring channels, normalized.
#[inline(always)]
unsafe fn normalize_and_pair_row<S: Simd>(values: &[f32], places: &mut [f32], normalization: [&[f32]; 2]) {
    let channels = normalization[0].len();
    for (pixel, places) in values.chunks_exact(channels).zip(places.chunks_exact_mut(channels / 2)) {
        let (pixel, to) = (pixel.as_ptr(), places.as_mut_ptr());
        // SAFETY: the vectors are within the channels.
        unsafe {
            let mut channel = 0;
            while channel < channels {
                let valid = (channels - channel).min(S::LANES);
                let first = normalized::<S>(pixel, channel, valid, normalization);
                let rest = (channels - channel - valid).min(S::LANES);
                let second = if rest == 0 {
                    S::splat(0.0)
                } else {
                    normalized::<S>(pixel, channel + S::LANES, rest, normalization)
                };
                let pairs = ((channels - channel) / 2).min(S::LANES);
                store::<S>(to.add(channel / 2), S::pair_neighbours(first, second), pairs);
                channel += 2 * S::LANES;
            }
        }
    }
}
