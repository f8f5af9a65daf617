#![allow(unsafe_code, reason = "rows are read and written through pointers")]
#![allow(clippy::inline_always, reason = "see Kernel::run")]

use super::geometry::Geometry;
use crate::flex::rows::{load, store};
use crate::flex::simd::{Kernel, Simd, dispatch};

/// Images as pairs of the pixels that neighbours of the output meet.
///
/// Outputs `2 i` and `2 i + 1` of a row meet, through column `s` of the kernel, the padded columns `2 i stride + s` and
/// `2 i stride + s + stride`. What column `s + 2 stride` meets is what column `s` meets one pair of outputs further. So
/// there are pairs for the first `2 stride` columns of the kernel alone, `[row, pair of outputs, column, channel]`, and
/// what a row of the kernel meets lies side by side, as it does in a map of single pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct PairedPixels {
    size: [usize; 2],
    channels: usize,
    /// Zero rows above and zero columns left of the image.
    offset: [usize; 2],
    /// Rows with the zeros.
    rows: usize,
    stride: usize,
    kernel: [usize; 2],
    /// Pairs of outputs that a row has places for: its own, and those that the last columns of the kernel reach.
    pairs: usize,
}

impl PairedPixels {
    pub(super) fn of(geometry: &Geometry) -> Self {
        let Geometry { size, groups, channels, kernel, options, .. } = *geometry;
        let [top, left, bottom, _] = options.padding;
        let beyond = kernel[1].saturating_sub(1) / (2 * options.stride);
        Self {
            size,
            channels: groups * channels,
            offset: [top, left],
            rows: size[0] + top + bottom,
            stride: options.stride,
            kernel,
            pairs: geometry.output_size()[1].div_ceil(2) + beyond,
        }
    }

    /// Places of a pair of outputs.
    pub(super) fn pair(&self) -> usize {
        self.kernel[1].min(2 * self.stride) * self.channels
    }

    /// Places of a row.
    pub(super) fn row(&self) -> usize {
        self.pairs * self.pair()
    }

    /// Places of an image.
    pub(super) fn length(&self) -> usize {
        self.rows * self.row()
    }

    /// Writes as many images of pairs as the target has room for.
    pub(super) fn fill(&self, images: &[f32], target: &mut [f32]) {
        // SAFETY: the machine has the instructions that are chosen.
        unsafe { dispatch(Fill { paired: self, images, target }) }
    }
}

struct Fill<'a> {
    paired: &'a PairedPixels,
    images: &'a [f32],
    target: &'a mut [f32],
}

impl Kernel for Fill<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let PairedPixels { size, channels, offset, stride, kernel, pairs, .. } = *self.paired;
        let row = size[1] * channels;
        let (across, pair) = (2 * stride * channels, self.paired.pair());
        let left = offset[1] * channels;
        let mut padded = vec![0.0; (pairs * across + stride * channels).max(left + row)];
        let images = self.images.chunks_exact((size[0] * row).max(1));
        for (image, target) in images.zip(self.target.chunks_exact_mut(self.paired.length().max(1))) {
            for (index, target) in target.chunks_exact_mut(self.paired.row()).enumerate() {
                if index % stride >= kernel[0] {
                    continue; // No row of the kernel meets it.
                }
                if !(offset[0]..offset[0] + size[0]).contains(&index) {
                    target.fill(0.0);
                    continue;
                }
                padded[left..left + row].copy_from_slice(&image[(index - offset[0]) * row..][..row]);
                let (from, to) = (padded.as_ptr(), target.as_mut_ptr());
                // SAFETY: the padded row holds what all pairs of outputs meet, and the target their places.
                unsafe {
                    if pair == across {
                        pair_apart::<S>(from, stride * channels, to, pairs * pair);
                    } else {
                        for index in 0..pairs {
                            pair_apart::<S>(from.add(index * across), stride * channels, to.add(index * pair), pair);
                        }
                    }
                }
            }
        }
    }
}

/// Pairs of values that are `apart`.
#[inline(always)]
unsafe fn pair_apart<S: Simd>(from: *const f32, apart: usize, to: *mut f32, count: usize) {
    let mut done = 0;
    while done < count {
        let valid = (count - done).min(S::LANES);
        // SAFETY: the caller promises the values and the places.
        unsafe {
            let low = load::<S>(from.add(done), valid);
            let high = load::<S>(from.add(apart + done), valid);
            store::<S>(to.add(done), S::pair(low, high), valid);
        }
        done += S::LANES;
    }
}
