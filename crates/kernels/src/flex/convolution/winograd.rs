//! Winograd's convolution F(2x2, 3x3) (Lavin, Gray 2015, arXiv:1509.09308): four outputs for 16 products of each pair of
//! channels instead of 36.
//!
//! A tile of 4x4 input pixels `d` and a kernel `g` give 2x2 output pixels, `A' ((G g G') * (B' d B)) A`, where `*` goes
//! value by value and is summed over channels:
//!
//! ```text
//! B' = 1  0 -1  0     G =  1    0    0     A' = 1  1  1  0
//!      0  1  1  0         1/2  1/2  1/2         0  1 -1 -1
//!      0 -1  1  0         1/2 -1/2  1/2
//!      0  1  0 -1          0    0    1
//! ```
//!
//! An output depends on the pixels of its tile alone, so it is the same to the bit in any batch and on any number of
//! threads.

#![allow(unsafe_code, reason = "tiles are read and written through pointers")]
#![allow(clippy::inline_always, reason = "see Kernel::run")]

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::geometry::{Geometry, Operands};
use super::images::Prepared;
use super::padded::Padded;
use crate::flex::buffer::Buffer;
use crate::flex::pairs;
use crate::flex::panels::{Panel, Panels, Unpacked};
use crate::flex::rows::{for_vectors, load, store};
use crate::flex::simd::{Kernel, Simd, dispatch};
use crate::flex::tile::{Pairs, Products, Run, Start, Target, Values, line};

/// Values of a transformed tile.
const PLACES: usize = 16;

/// Lanes of the widest panel.
const WIDEST: usize = 32;

/// Sums start from zero.
static ZEROS: [f32; WIDEST] = [0.0; WIDEST];

/// Tiles that are transformed and multiplied at a time: they and their sums stay in the caches next to a core.
const BLOCK: usize = 16;

/// A convolution by tiles.
pub(super) struct Winograd<'a> {
    pub(super) batch: usize,
    pub(super) groups: usize,
    /// Output channels of a group.
    pub(super) out: usize,
    /// The input in f32, within its zeros.
    pub(super) source: Padded,
    /// Rows and columns of the output.
    pub(super) size: [usize; 2],
    /// Channels of the input in one place of a transformed tile.
    pub(super) together: usize,
    pub(super) panels: Panels,
    /// Of every group: `[panel][place of the tile][channel][lane]`.
    pub(super) weights: Vec<Buffer>,
    /// `[group][padded channel]`
    pub(super) biases: Vec<f32>,
    /// Scale and shift of every channel of the source, which normalize it.
    pub(super) normalization: Option<[&'a [f32]; 2]>,
    /// Whether the sums are rectified.
    pub(super) rectified: bool,
}

/// Whether a convolution can be done by tiles, and is faster so.
///
/// From 16 channels on fewer products pay for the transforms, in bf16, where products cost half as much, from 32 on
/// (measured on Zen 5).
pub(super) fn is_faster(geometry: &Geometry, operands: Operands) -> bool {
    let [rows, columns] = geometry.output_size();
    let fewest = match operands {
        Operands::F32 => 16,
        Operands::Bf16 => 32,
    };
    geometry.kernel == [3, 3]
        && geometry.options.stride == 1
        && rows.is_multiple_of(2)
        && columns.is_multiple_of(2)
        && geometry.channels.min(geometry.out) >= fewest
}

impl Winograd<'_> {
    /// Rows and columns of tiles.
    fn tiles(&self) -> [usize; 2] {
        self.size.map(|size| size / 2)
    }

    fn per_image(&self) -> usize {
        self.tiles().iter().product()
    }

    /// Places of the channels of a pixel.
    fn channels(&self) -> usize {
        self.source.channels / self.together
    }
}

impl Prepared for Winograd<'_> {
    fn batch(&self) -> usize {
        self.batch
    }

    fn source_image(&self) -> usize {
        self.source.image()
    }

    fn target_image(&self) -> usize {
        self.size[0] * self.size[1] * self.groups * self.out
    }

    fn group(&self) -> usize {
        (128 / self.per_image().max(1)).clamp(1, self.batch.div_ceil(16).max(1))
    }

    fn scratch(&self, images: usize) -> usize {
        images * self.source.length() + BLOCK * PLACES * (self.channels() + self.panels.width())
    }

    unsafe fn images(&self, source: &[f32], scratch: &mut [f32], target: *mut f32, added: bool) {
        let images = source.len() / self.source.image().max(1);
        let (padded, rest) = scratch.split_at_mut(images * self.source.length());
        self.source.fill(source, padded, self.normalization);
        let (inputs, sums) = rest.split_at_mut(BLOCK * PLACES * self.channels());
        let [inputs, sums] = [inputs, sums].map(<[f32]>::as_mut_ptr);
        // SAFETY: source and target hold the images, the scratch a block of tiles and of their sums.
        unsafe { dispatch(Blocks { of: self, source: padded.as_ptr(), inputs, sums, target, images, added }) };
    }
}

/// The weights of a group's channels, transformed and packed.
pub(super) fn transformed_weights(panels: Panels, weights: Unpacked, [channels, together]: [usize; 2]) -> Buffer {
    let places = channels / together;
    let mut packed = Buffer::new(PLACES * places * panels.padded());
    packed.values().par_chunks_mut((PLACES * places * panels.width()).max(1)).enumerate().for_each(
        |(index, values)| {
            let panel = panels.get(index);
            let lanes = panels.lanes_of(panel);
            for place in 0..places {
                let transformed =
                    |channel| transformed_kernels(&weights, channel, panel.channel, panels.channels_of(panel));
                let mut kernels = transformed(place * together);
                if together == 2 {
                    let seconds = transformed(place * together + 1);
                    for (first, second) in kernels.as_flattened_mut().iter_mut().zip(seconds.as_flattened()) {
                        *first = pairs::pair(*first, *second);
                    }
                }
                for (index, kernels) in kernels.iter().enumerate() {
                    let row = &mut values[(index * places + place) * lanes..][..lanes];
                    for (value, kernel) in row.iter_mut().zip(kernels) {
                        *value = MaybeUninit::new(*kernel);
                    }
                }
            }
        },
    );
    packed
}

/// `G g G'` of one input channel and some output channels, `[place][channel]`.
fn transformed_kernels(weights: &Unpacked, channel: usize, first: usize, count: usize) -> [[f32; WIDEST]; PLACES] {
    let mut taps = [[0.0; WIDEST]; 9];
    for (tap, row) in taps.iter_mut().enumerate() {
        for (out, value) in (first..first + count).zip(row) {
            *value = weights.value(out, channel * 9 + tap);
        }
    }
    let mut kernels = [[0.0; WIDEST]; PLACES];
    for lane in 0..WIDEST {
        let expand = |a: f32, b: f32, c: f32| [a, (a + b + c) * 0.5, (a - b + c) * 0.5, c];
        let rows = [0, 1, 2].map(|row| expand(taps[row * 3][lane], taps[row * 3 + 1][lane], taps[row * 3 + 2][lane]));
        for column in 0..4 {
            let values = expand(rows[0][column], rows[1][column], rows[2][column]);
            for (row, value) in values.into_iter().enumerate() {
                kernels[row * 4 + column][lane] = value;
            }
        }
    }
    kernels
}

/// All tiles of some images, block after block.
struct Blocks<'a> {
    of: &'a Winograd<'a>,
    source: *const f32,
    /// `[place][tile][channel]`
    inputs: *mut f32,
    /// `[place][tile][lane of a panel]`
    sums: *mut f32,
    target: *mut f32,
    images: usize,
    added: bool,
}

impl Kernel for Blocks<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Winograd { groups, panels, together, .. } = *self.of;
        let tiles = self.images * self.of.per_image();
        for first in (0..tiles).step_by(BLOCK) {
            let count = BLOCK.min(tiles - first);
            // SAFETY: tiles, groups and panels are there.
            unsafe {
                self.transform::<S>(first, count);
                for group in 0..groups {
                    for index in 0..panels.count() {
                        let panel = panels.get(index);
                        match (together, panel.vectors) {
                            (1, 1) => self.panel::<S, Values, 1>(first, count, group, panel),
                            (1, _) => self.panel::<S, Values, 2>(first, count, group, panel),
                            (_, 1) => self.panel::<S, Pairs, 1>(first, count, group, panel),
                            _ => self.panel::<S, Pairs, 2>(first, count, group, panel),
                        }
                    }
                }
            }
        }
    }
}

impl Blocks<'_> {
    /// Image, row and column of a tile.
    #[inline(always)]
    fn place(&self, tile: usize) -> [usize; 3] {
        let [rows, columns] = self.of.tiles();
        [tile / (rows * columns), tile / columns % rows, tile % columns]
    }

    /// `B' d B` of some tiles.
    #[inline(always)]
    unsafe fn transform<S: Simd>(&self, first: usize, count: usize) {
        let Winograd { source, together, .. } = self.of;
        let row = source.within[1] * source.channels;
        let places = self.of.channels();
        let stride = BLOCK * places;
        for tile in 0..count {
            let [image, tile_row, tile_column] = self.place(first + tile);
            // SAFETY: the tile's 4x4 pixels are in the image with its zeros, its channels in the block.
            unsafe {
                let pixel =
                    self.source.add(image * source.length() + 2 * tile_row * row + 2 * tile_column * source.channels);
                let to = self.inputs.add(tile * places);
                let read = |channel, valid| transformed_pixels::<S>(pixel.add(channel), [row, source.channels], valid);
                if *together == 1 {
                    for_vectors!(S, places, |channel, valid| {
                        for (index, value) in read(channel, valid).into_iter().enumerate() {
                            store::<S>(to.add(index * stride + channel), value, valid);
                        }
                    });
                } else {
                    for_vectors!(S, places, |place, valid| {
                        let (channel, all) = (2 * place, 2 * valid);
                        let low = read(channel, all.min(S::LANES));
                        let high = if all > S::LANES {
                            read(channel + S::LANES, all - S::LANES)
                        } else {
                            [S::splat(0.0); PLACES]
                        };
                        for (index, (low, high)) in low.into_iter().zip(high).enumerate() {
                            store::<S>(to.add(index * stride + place), S::pair_neighbours(low, high), valid);
                        }
                    });
                }
            }
        }
    }

    /// Products and outputs of some tiles, for one panel of a group's channels.
    #[inline(always)]
    unsafe fn panel<S: Simd, O: Products, const C: usize>(
        &self,
        first: usize,
        count: usize,
        group: usize,
        panel: Panel,
    ) {
        let places = self.of.channels();
        let depth = places / self.of.groups;
        let block = BLOCK;
        let lanes = C * S::LANES;
        let runs = [Run { offset: 0, length: depth }];
        // SAFETY: inputs, weights and sums of the group and the panel are there.
        unsafe {
            let weights = self.of.weights[group].as_ptr().add(PLACES * depth * panel.channel);
            for place in 0..PLACES {
                let inputs = self.inputs.add(place * block * places + group * depth);
                let pointer = self.sums.add(place * block * lanes);
                let target = Target { pointer, stride: lanes, last: S::LANES, rectified: false };
                let weights = weights.add(place * depth * lanes);
                line::<S, O, C>(inputs, places, count, &runs, weights, Start::Bias(ZEROS.as_ptr()), target);
            }
            for tile in 0..count {
                self.output::<S, C>(tile, first + tile, group, panel);
            }
        }
    }

    /// `A' m A` of a tile.
    #[inline(always)]
    unsafe fn output<S: Simd, const C: usize>(&self, tile: usize, of: usize, group: usize, panel: Panel) {
        let Winograd { groups, out, size, panels, rectified, .. } = *self.of;
        let [image, tile_row, tile_column] = self.place(of);
        let lanes = C * S::LANES;
        let step = BLOCK * lanes;
        let pixel = (2 * tile_row * size[1] + 2 * tile_column) * groups * out + group * out + panel.channel;
        for vector in 0..C {
            let valid = if vector + 1 < C { S::LANES } else { panel.last };
            // SAFETY: the tile's sums have been written; its 2x2 pixels are in the output.
            unsafe {
                let bias =
                    S::load(self.of.biases.as_ptr().add(group * panels.padded() + panel.channel + vector * S::LANES));
                let sums = self.sums.add(tile * lanes + vector * S::LANES);
                let [mut upper, mut lower] = [[S::splat(0.0); 4]; 2];
                for (column, (upper, lower)) in upper.iter_mut().zip(&mut lower).enumerate() {
                    let at = |row: usize| sums.add((row * 4 + column) * step);
                    let (a, b, c, d) = (S::load(at(0)), S::load(at(1)), S::load(at(2)), S::load(at(3)));
                    *upper = S::add(S::add(a, b), c);
                    *lower = S::subtract(S::subtract(b, c), d);
                }
                for (index, [a, b, c, d]) in [upper, lower].into_iter().enumerate() {
                    let to = self.target.add(image * self.of.target_image() + pixel + index * size[1] * groups * out);
                    let values = [S::add(S::add(a, b), c), S::subtract(S::subtract(b, c), d)];
                    for (column, value) in values.into_iter().enumerate() {
                        let to = to.add(column * groups * out + vector * S::LANES);
                        let mut value = S::add(value, bias);
                        if self.added {
                            value = S::add(load::<S>(to, valid), value);
                        }
                        if rectified {
                            value = S::max(value, S::splat(0.0));
                        }
                        store::<S>(to, value, valid);
                    }
                }
            }
        }
    }
}

/// `B' d` of one column.
#[inline(always)]
unsafe fn changed<S: Simd>([a, b, c, d]: [S::Vector; 4]) -> [S::Vector; 4] {
    // SAFETY: the caller promises the instructions.
    unsafe { [S::subtract(a, c), S::add(b, c), S::subtract(c, b), S::subtract(b, d)] }
}

/// `B' d B` of some channels of the 4x4 pixels from `pixel` on.
///
/// # Safety
/// The pixels have that many channels, and the machine has the instructions.
#[inline(always)]
unsafe fn transformed_pixels<S: Simd>(
    pixel: *const f32,
    [row, column]: [usize; 2],
    valid: usize,
) -> [S::Vector; PLACES] {
    // SAFETY: passed on.
    unsafe {
        // Functions, not closures handed to the library's own: those would not be compiled with the instructions.
        let mut columns = [[S::splat(0.0); 4]; 4];
        for (index, column_of) in columns.iter_mut().enumerate() {
            for (down, value) in column_of.iter_mut().enumerate() {
                *value = load::<S>(pixel.add(down * row + index * column), valid);
            }
            *column_of = changed::<S>(*column_of);
        }
        let mut places = [S::splat(0.0); PLACES];
        for index in 0..4 {
            let [a, b, c, d] = columns;
            places[4 * index..4 * index + 4].copy_from_slice(&changed::<S>([a[index], b[index], c[index], d[index]]));
        }
        places
    }
}
