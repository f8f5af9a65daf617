//! Gradients of weights: sums over the pixels of all images, of the input's values by those of the output's gradient.

#![allow(unsafe_code, reason = "tiles read and write through pointers")]
#![allow(clippy::inline_always, reason = "see Kernel::run")]

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::geometry::{Geometry, Operands, runs};
use super::padded::Padded;
use super::paired_pixels::PairedPixels;
use super::scratch::with_scratch;
use crate::flex::buffer::Buffer;
use crate::flex::panels::{Panel, Panels};
use crate::flex::simd::{Kernel, Simd, dispatch};
use crate::flex::tile::{Pairs, Pixels, Products, Run, Values, outer};

/// Parts of the batch whose weight gradients are summed separately: fixed by the sizes alone, so that the result does
/// not depend on the number of threads.
fn parts(geometry: &Geometry) -> usize {
    geometry.batch.clamp(1, 8)
}

/// Pixels in a block of the weight gradient; its output gradients stay in the first-level cache.
const BLOCK_PIXELS: usize = 128;

/// The input as the products read it.
enum Source {
    Values(Padded),
    Pairs(PairedPixels),
}

impl Source {
    fn new(geometry: &Geometry, operands: Operands) -> Self {
        match operands {
            Operands::F32 => Self::Values(Padded::input_of(geometry, 1)),
            Operands::Bf16 => Self::Pairs(PairedPixels::of(geometry)),
        }
    }

    /// Places of an image.
    fn length(&self) -> usize {
        match self {
            Self::Values(padded) => padded.length(),
            Self::Pairs(paired) => paired.length(),
        }
    }

    /// Pixels in one place.
    fn together(&self) -> usize {
        match self {
            Self::Values(_) => 1,
            Self::Pairs(_) => 2,
        }
    }

    fn is_needed(&self) -> bool {
        match self {
            Self::Values(padded) => padded.is_needed(),
            Self::Pairs(_) => true,
        }
    }

    fn fill(&self, images: &[f32], target: &mut [f32]) {
        match self {
            Self::Values(padded) => padded.fill(images, target, None),
            Self::Pairs(paired) => paired.fill(images, target),
        }
    }

    /// Places in a row.
    fn row(&self) -> usize {
        match self {
            Self::Values(padded) => padded.within[1] * padded.channels,
            Self::Pairs(paired) => paired.row(),
        }
    }

    /// What one pixel of the gradient meets, or a pair of them, by rows and columns of the kernel.
    fn runs(&self, geometry: &Geometry) -> Vec<Run> {
        let Geometry { groups, channels, kernel, .. } = *geometry;
        runs(kernel[0], kernel[1], self.row(), [channels, groups * channels])
    }
}

pub(in crate::flex) fn weight_gradients(
    x: &[f32],
    gradient: &[f32],
    geometry: &Geometry,
    operands: Operands,
) -> (Buffer, Buffer) {
    let Geometry { batch, groups, channels, out, kernel, .. } = *geometry;
    let source = Source::new(geometry, operands);
    let panels = Panels::new(out);
    let area = kernel[0] * kernel[1];
    let depth = area * channels;
    let parts = parts(geometry);
    // One more row for the bias.
    let group_length = (depth + 1) * panels.padded();
    let length = groups * group_length;
    let mut sums = Buffer::new(parts * length);
    if length > 0 {
        sums.values().par_chunks_mut(length).enumerate().for_each(|(part, sums)| {
            sums.fill(MaybeUninit::new(0.0));
            let images = part * batch / parts..(part + 1) * batch / parts;
            let runs = source.runs(geometry);
            let sums = sums.as_mut_ptr().cast();
            WeightSums { geometry, source: &source, panels, x, gradient, sums, images, runs }.run();
        });
    }
    // SAFETY: every part was filled with zeros at least.
    let sums = unsafe { sums.written() };
    let mut weight = Buffer::new(groups * out * depth);
    let mut bias = Buffer::new(groups * out);
    if depth > 0 && out > 0 {
        let values = weight.values().par_chunks_mut(depth * out).zip(bias.values().par_chunks_mut(out));
        values.enumerate().for_each(|(group, (weight, bias))| {
            let values = weight.par_chunks_mut(depth * panels.width()).zip(bias.par_chunks_mut(panels.width()));
            values.enumerate().for_each(|(index, (weight, bias))| {
                let panel = panels.get(index);
                let total = |row: usize, lane: usize| {
                    let at = (depth + 1) * panel.channel + row * panels.lanes_of(panel) + lane;
                    (0..parts).map(|part| sums[part * length + group * group_length + at]).sum::<f32>()
                };
                for tap in 0..area {
                    for channel in 0..channels {
                        for lane in 0..bias.len() {
                            weight[lane * depth + channel * area + tap].write(total(tap * channels + channel, lane));
                        }
                    }
                }
                for (lane, bias) in bias.iter_mut().enumerate() {
                    bias.write(total(depth, lane));
                }
            });
        });
    }
    (weight, bias)
}

/// The products of one part of the batch.
struct WeightSums<'a> {
    geometry: &'a Geometry,
    source: &'a Source,
    panels: Panels,
    x: &'a [f32],
    gradient: &'a [f32],
    sums: *mut f32,
    images: std::ops::Range<usize>,
    /// The values of `x` that one pixel of the gradient meets.
    runs: Vec<Run>,
}

impl WeightSums<'_> {
    /// Whether the gradient is as good as packed: one panel of whole vectors, and no pairs.
    fn is_packed(&self) -> bool {
        self.source.together() == 1 && self.geometry.groups == 1 && self.panels.is_one_exactly()
    }

    /// Places in a row of the gradient.
    fn columns(&self) -> usize {
        self.geometry.output_size()[1].div_ceil(self.source.together())
    }

    /// Places from one place of the gradient to the next.
    fn column(&self) -> usize {
        let Geometry { groups, channels, options, .. } = self.geometry;
        match self.source {
            Source::Values(_) => options.stride * groups * channels,
            Source::Pairs(paired) => paired.pair(),
        }
    }

    /// Values of an image of the input.
    fn image(&self) -> usize {
        let Geometry { size, groups, channels, .. } = self.geometry;
        size[0] * size[1] * groups * channels
    }

    fn run(self) {
        let [rows, columns] = self.geometry.output_size();
        let pixels = rows * columns;
        let group = (BLOCK_PIXELS / pixels.max(1)).max(1);
        let block_rows = if group > 1 { rows } else { BLOCK_PIXELS.div_ceil(columns).min(rows) };
        let padded = if self.source.is_needed() { group * self.source.length() } else { 0 };
        let packed = if self.is_packed() { 0 } else { group * block_rows * self.columns() * self.panels.width() };
        with_scratch(padded + packed, |scratch| {
            let (padded, packed) = scratch.split_at_mut(padded);
            let mut image = self.images.start;
            while image < self.images.end {
                let count = group.min(self.images.end - image);
                let x = &self.x[image * self.image()..][..count * self.image()];
                if self.source.is_needed() {
                    self.source.fill(x, padded);
                }
                let x = if self.source.is_needed() { padded.as_ptr() } else { x.as_ptr() };
                let mut row = 0;
                while row < rows {
                    let block = Block {
                        of: &self,
                        x,
                        image,
                        images: count,
                        row,
                        rows: block_rows.min(rows - row),
                        packed: packed.as_mut_ptr(),
                    };
                    // SAFETY: the block lies within the padded images at `x` and within the gradient.
                    unsafe { dispatch(block) };
                    row += block_rows;
                }
                image += count;
            }
        });
    }
}

/// Some rows of some images, either all rows or one image.
struct Block<'a> {
    of: &'a WeightSums<'a>,
    x: *const f32,
    image: usize,
    images: usize,
    row: usize,
    rows: usize,
    packed: *mut f32,
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for group in 0..self.of.geometry.groups {
            for index in 0..self.of.panels.count() {
                let panel = self.of.panels.get(index);
                // SAFETY: passed on.
                unsafe {
                    match (self.of.source.together(), panel.vectors) {
                        (1, 1) => self.panel::<S, Values, 1>(group, panel),
                        (1, _) => self.panel::<S, Values, 2>(group, panel),
                        (_, 1) => self.panel::<S, Pairs, 1>(group, panel),
                        _ => self.panel::<S, Pairs, 2>(group, panel),
                    }
                }
            }
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    unsafe fn panel<S: Simd, O: Products, const C: usize>(&self, group: usize, panel: Panel) {
        let Geometry { groups, channels, out, kernel, options, .. } = *self.of.geometry;
        let [all_rows, columns] = self.of.geometry.output_size();
        let lanes = C * S::LANES;
        // SAFETY: the gradient has these images, rows, columns and channels; `packed` has room for a block of a panel;
        // the sums of a panel are its depth and one row for the bias.
        unsafe {
            let all_out = groups * out;
            let first = (self.image * all_rows + self.row) * columns * all_out + group * out + panel.channel;
            let gradient = self.of.gradient.as_ptr().add(first);
            let depth = kernel[0] * kernel[1] * channels;
            let sums = self.of.sums.add((depth + 1) * (group * self.of.panels.padded() + panel.channel));
            let bias = sums.add(depth * lanes);
            // Several images are always whole, so their rows follow each other as one image's do.
            let rows = self.images * self.rows;
            let (y, stride) = if self.of.is_packed() {
                bias_sums::<S, C>(gradient, rows * columns, out, bias);
                (gradient, out)
            } else if self.of.source.together() == 1 {
                for pixel in 0..rows * columns {
                    let (from, to) = (gradient.add(pixel * all_out), self.packed.add(pixel * lanes));
                    for vector in 0..C {
                        S::store(to.add(vector * S::LANES), load_panel::<S, C>(from, vector, panel));
                    }
                }
                bias_sums::<S, C>(self.packed, rows * columns, lanes, bias);
                (self.packed.cast_const(), lanes)
            } else {
                pair_pixels::<S, C>(gradient, [rows, columns], all_out, panel, self.packed, bias);
                (self.packed.cast_const(), lanes)
            };
            let places = self.of.columns();
            let (row, length) = (self.of.source.row(), self.of.source.length());
            for image in 0..self.images {
                let shape = Pixels {
                    rows: self.rows,
                    columns: places,
                    x_row: options.stride * row,
                    x_column: self.of.column(),
                    y_row: places * stride,
                    y_column: stride,
                };
                let y = y.add(image * self.rows * places * stride);
                let x = self.x.add(image * length + self.row * options.stride * row);
                let x = x.add(group * channels);
                let mut sums = sums;
                for run in &self.of.runs {
                    products::<S, O, C>(x.add(run.offset), y, shape, run.length, sums);
                    sums = sums.add(run.length * lanes);
                }
            }
        }
    }
}

/// A vector of a panel's channels, zero beyond them.
#[inline(always)]
unsafe fn load_panel<S: Simd, const C: usize>(from: *const f32, vector: usize, panel: Panel) -> S::Vector {
    let valid = if vector + 1 < C { S::LANES } else { panel.last };
    // SAFETY: the caller promises a pixel of the panel.
    unsafe { S::load_some(from.add(vector * S::LANES), valid) }
}

/// Packs a panel's channels as pairs of a row's pixels, the last one with zero if there is no other, and adds them up.
#[inline(always)]
unsafe fn pair_pixels<S: Simd, const C: usize>(
    y: *const f32,
    [rows, columns]: [usize; 2],
    stride: usize,
    panel: Panel,
    packed: *mut f32,
    sums: *mut f32,
) {
    // SAFETY: the caller promises the rows, room for their pairs, and one row of sums.
    unsafe {
        let zero = S::splat(0.0);
        let mut totals = [[zero; 2]; C];
        let mut to = packed;
        for row in 0..rows {
            let y = y.add(row * columns * stride);
            for column in (0..columns).step_by(2) {
                let (low, high) = (y.add(column * stride), y.add((column + 1) * stride));
                for (vector, [even, odd]) in totals.iter_mut().enumerate() {
                    let low = load_panel::<S, C>(low, vector, panel);
                    let high = if column + 1 < columns { load_panel::<S, C>(high, vector, panel) } else { zero };
                    *even = S::add(*even, low);
                    *odd = S::add(*odd, high);
                    S::store(to.add(vector * S::LANES), S::pair(low, high));
                }
                to = to.add(C * S::LANES);
            }
        }
        for (vector, [even, odd]) in totals.into_iter().enumerate() {
            let to = sums.add(vector * S::LANES);
            S::store(to, S::add(S::load(to), S::add(even, odd)));
        }
    }
}

/// Adds up the panel's channels over the pixels.
#[inline(always)]
unsafe fn bias_sums<S: Simd, const C: usize>(y: *const f32, pixels: usize, stride: usize, sums: *mut f32) {
    // SAFETY: the caller promises the pixels and one row of sums.
    unsafe {
        for vector in 0..C {
            let mut even = S::splat(0.0);
            let mut odd = S::splat(0.0);
            let y = y.add(vector * S::LANES);
            for pair in 0..pixels / 2 {
                even = S::add(even, S::load(y.add(2 * pair * stride)));
                odd = S::add(odd, S::load(y.add((2 * pair + 1) * stride)));
            }
            if pixels % 2 == 1 {
                even = S::add(even, S::load(y.add((pixels - 1) * stride)));
            }
            let to = sums.add(vector * S::LANES);
            S::store(to, S::add(S::load(to), S::add(even, odd)));
        }
    }
}

/// `count` values of every pixel of `x` by the panel's channels.
#[inline(always)]
unsafe fn products<S: Simd, O: Products, const C: usize>(
    x: *const f32,
    y: *const f32,
    shape: Pixels,
    count: usize,
    sums: *mut f32,
) {
    let mut index = 0;
    let lanes = C * S::LANES;
    macro_rules! tiles {
        ($values:literal) => {
            if $values * C <= S::SUMS {
                while count - index >= $values {
                    // SAFETY: the values end within `count`.
                    unsafe { outer::<S, O, $values, C>(x.add(index), y, shape, sums.add(index * lanes), lanes) };
                    index += $values;
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
