//! Direct convolution, channels last.
//!
//! In a channels-last map the values that the pixels of one kernel row meet lie side by side, so a convolution is a few
//! matrix products that read the (zero-padded) map where it stands; nothing is unfolded. The input gradient is the
//! same computation on the output's gradient, one for every remainder of the input's row and column by the stride.

#![allow(unsafe_code, reason = "tiles read and write through pointers")]
#![allow(clippy::inline_always, reason = "see Kernel::run")]

use std::cell::RefCell;
use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::buffer::Buffer;
use super::panels::{Panel, Panels};
use super::simd::{Kernel, Simd, dispatch};
use super::tile::{Pixels, Run, Start, Target, multiply, outer};
use crate::ConvOptions;

/// Bytes of packed weights that a sweep over the pixels keeps in the first-level cache.
const BLOCK_BYTES: usize = 24 << 10;

/// Sizes of a convolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) batch: usize,
    pub(super) size: [usize; 2],
    pub(super) groups: usize,
    /// Input channels of one group.
    pub(super) channels: usize,
    /// Output channels of one group.
    pub(super) out: usize,
    pub(super) kernel: [usize; 2],
    pub(super) options: ConvOptions,
}

impl Geometry {
    pub(super) fn output_size(&self) -> [usize; 2] {
        self.options.output_size(self.size, self.kernel)
    }

    /// The input within its zeros.
    fn padded_input(&self) -> Padded {
        let [top, left, bottom, right] = self.options.padding;
        Padded {
            size: self.size,
            channels: self.groups * self.channels,
            offset: [top, left],
            within: [self.size[0] + top + bottom, self.size[1] + left + right],
        }
    }
}

thread_local! {
    /// Zero-padded images and packed maps of the work a thread is at.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

fn with_scratch<T>(length: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < length {
            scratch.resize(length, 0.0);
        }
        work(&mut scratch[..length])
    })
}

/// Where an image lies within zeros.
#[derive(Clone, Copy, Debug)]
struct Padded {
    size: [usize; 2],
    channels: usize,
    /// Zero rows above and zero columns left of the image.
    offset: [usize; 2],
    /// Rows and columns with the zeros.
    within: [usize; 2],
}

impl Padded {
    fn image(&self) -> usize {
        self.size[0] * self.size[1] * self.channels
    }

    fn length(&self) -> usize {
        self.within[0] * self.within[1] * self.channels
    }

    fn is_needed(&self) -> bool {
        self.size != self.within
    }

    fn fill(&self, image: &[f32], target: &mut [f32]) {
        let row = self.size[1] * self.channels;
        let left = self.offset[1] * self.channels;
        let rows = self.offset[0]..self.offset[0] + self.size[0];
        for (index, target) in target.chunks_exact_mut(self.within[1] * self.channels).enumerate() {
            if rows.contains(&index) {
                let from = (index - self.offset[0]) * row;
                target[..left].fill(0.0);
                target[left..left + row].copy_from_slice(&image[from..from + row]);
                target[left + row..].fill(0.0);
            } else {
                target.fill(0.0);
            }
        }
    }
}

/// Output pixels that meet the same rows and columns of the kernel at a fixed distance.
struct Class {
    runs: Vec<Run>,
    /// Rows of the packed weights.
    depth: usize,
    weights: Buffer,
    /// First of the packed biases.
    bias: usize,
    rows: usize,
    columns: usize,
    source: Steps,
    target: Steps,
}

/// First value of the first pixel, and the values from pixel to pixel.
#[derive(Clone, Copy)]
struct Steps {
    start: usize,
    row: usize,
    column: usize,
}

/// A map computed from another by a sum over kernel and channels.
struct Correlation {
    batch: usize,
    source: Padded,
    target_image: usize,
    panels: Panels,
    biases: Vec<f32>,
    classes: Vec<Class>,
}

/// The runs of `rows` rows of `columns` pixels, one pixel after the other if only some channels of each are met.
fn runs(rows: usize, columns: usize, row: usize, [channels, all]: [usize; 2]) -> Vec<Run> {
    let whole = channels == all;
    let (count, length) = if whole { (1, columns * channels) } else { (columns, channels) };
    (0..rows)
        .flat_map(|index| (0..count).map(move |column| Run { offset: index * row + column * all, length }))
        .filter(|run| run.length > 0)
        .collect()
}

pub(super) fn forward(x: &[f32], weight: &[f32], bias: &[f32], geometry: &Geometry) -> Buffer {
    let Geometry { batch, groups, channels, out, kernel, options, .. } = *geometry;
    let [rows, columns] = geometry.output_size();
    let source = geometry.padded_input();
    let row = source.within[1] * source.channels;
    let panels = Panels::new(out);
    let area = kernel[0] * kernel[1];
    let taps = taps((0..kernel[0]).collect(), &(0..kernel[1]).collect::<Vec<_>>(), channels);
    let classes = (0..groups)
        .map(|group| Class {
            runs: runs(kernel[0], kernel[1], row, [channels, source.channels]),
            weights: panels.pack(taps.len(), |index, target| {
                let [row, column, channel] = taps[index];
                weight[((group * out + target) * channels + channel) * area + row * kernel[1] + column]
            }),
            depth: taps.len(),
            bias: group * panels.padded(),
            rows,
            columns,
            source: Steps {
                start: group * channels,
                row: options.stride * row,
                column: options.stride * source.channels,
            },
            target: Steps { start: group * out, row: columns * groups * out, column: groups * out },
        })
        .collect();
    let mut biases = vec![0.0; groups * panels.padded()];
    for (padded, bias) in biases.chunks_exact_mut(panels.padded().max(1)).zip(bias.chunks_exact(out.max(1))) {
        padded[..out].copy_from_slice(bias);
    }
    Correlation { batch, source, target_image: rows * columns * groups * out, panels, biases, classes }.run(x)
}

pub(super) fn input_gradient(weight: &[f32], gradient: &[f32], geometry: &Geometry) -> Buffer {
    let Geometry { batch, size, groups, channels, out, kernel, options } = *geometry;
    let stride = options.stride;
    let output = geometry.output_size();
    // Along an axis, input `i` with `i + padding = stride * u + remainder` gets from output `u - j` through kernel
    // element `remainder + stride * j`.
    let axis = |axis: usize, remainder: usize| {
        let padding = options.padding[axis];
        let taps: Vec<usize> = (remainder..kernel[axis]).step_by(stride).rev().collect();
        let first = padding.saturating_sub(remainder).div_ceil(stride);
        let end = (size[axis] + padding).saturating_sub(remainder).div_ceil(stride);
        (taps, first, end.max(first), first * stride + remainder - padding)
    };
    let reach = kernel.map(|kernel| kernel.div_ceil(stride) - 1);
    let last = |index: usize| (0..stride).map(|remainder| axis(index, remainder).2).max().unwrap_or(0);
    let source = Padded {
        size: output,
        channels: groups * out,
        offset: reach,
        within: [0, 1].map(|index| reach[index] + output[index].max(last(index))),
    };
    let row = source.within[1] * source.channels;
    let area = kernel[0] * kernel[1];
    let panels = Panels::new(channels);
    let mut classes = Vec::new();
    for row_remainder in 0..stride {
        let (row_taps, first_row, end_row, target_row) = axis(0, row_remainder);
        for column_remainder in 0..stride {
            let (column_taps, first_column, end_column, target_column) = axis(1, column_remainder);
            if first_row == end_row || first_column == end_column {
                continue;
            }
            // The first tap in order is the last kernel element, which meets the earliest output.
            let start = |first: usize, reach: usize, taps: &[usize]| first + reach + 1 - taps.len().max(1);
            let start = start(first_row, reach[0], &row_taps) * row
                + start(first_column, reach[1], &column_taps) * source.channels;
            let taps = taps(row_taps.clone(), &column_taps, out);
            for group in 0..groups {
                classes.push(Class {
                    runs: if taps.is_empty() {
                        Vec::new()
                    } else {
                        runs(row_taps.len(), column_taps.len(), row, [out, source.channels])
                    },
                    weights: panels.pack(taps.len(), |index, target| {
                        let [row, column, channel] = taps[index];
                        weight[((group * out + channel) * channels + target) * area + row * kernel[1] + column]
                    }),
                    depth: taps.len(),
                    bias: 0,
                    rows: end_row - first_row,
                    columns: end_column - first_column,
                    source: Steps { start: start + group * out, row, column: source.channels },
                    target: Steps {
                        start: (target_row * size[1] + target_column) * groups * channels + group * channels,
                        row: stride * size[1] * groups * channels,
                        column: stride * groups * channels,
                    },
                });
            }
        }
    }
    let biases = vec![0.0; panels.padded()];
    let target_image = size[0] * size[1] * groups * channels;
    Correlation { batch, source, target_image, panels, biases, classes }.run(gradient)
}

/// Kernel rows, kernel columns and channels in the order in which a map holds them.
fn taps(rows: Vec<usize>, columns: &[usize], channels: usize) -> Vec<[usize; 3]> {
    rows.into_iter()
        .flat_map(|row| {
            columns.iter().flat_map(move |column| (0..channels).map(move |channel| [row, *column, channel]))
        })
        .collect()
}

impl Class {
    /// The runs, cut into blocks of about equal depth, none of them deeper than `limit`.
    fn blocks(&self, limit: usize) -> Vec<Vec<Run>> {
        let depth = self.depth;
        let count = depth.div_ceil(limit).max(1);
        let mut blocks = vec![Vec::new(); count];
        let mut done = 0;
        for run in &self.runs {
            let mut rest = *run;
            while rest.length > 0 {
                let block = (0..count).find(|block| done < (block + 1) * depth / count).expect("a block is open");
                let length = rest.length.min((block + 1) * depth / count - done);
                blocks[block].push(Run { offset: rest.offset, length });
                rest = Run { offset: rest.offset + length, length: rest.length - length };
                done += length;
            }
        }
        blocks
    }
}

impl Correlation {
    fn run(&self, source: &[f32]) -> Buffer {
        let mut output = Buffer::new(self.batch * self.target_image);
        if self.batch * self.target_image == 0 {
            return output;
        }
        // Maps of few pixels share one sweep over the weights.
        let pixels: usize = self.classes.iter().map(|class| class.rows * class.columns).sum();
        let group = (512 / pixels.max(1)).clamp(1, self.batch.div_ceil(16));
        let blocks: Vec<_> = self
            .classes
            .iter()
            .map(|class| class.blocks(BLOCK_BYTES / size_of::<f32>() / self.panels.width()))
            .collect();
        output.values().par_chunks_mut(group * self.target_image).enumerate().for_each(|(index, target)| {
            let images = target.len() / self.target_image;
            let source = &source[index * group * self.source.image()..][..images * self.source.image()];
            let target = target.as_mut_ptr().cast::<f32>();
            let sweep = |source: &[f32]| {
                // SAFETY: `source` holds that many padded images and `target` that many output images; classes, runs
                // and panels stay within them, see `forward` and `input_gradient`.
                unsafe { dispatch(Sweep { of: self, blocks: &blocks, source: source.as_ptr(), target, images }) }
            };
            if self.source.is_needed() {
                with_scratch(images * self.source.length(), |scratch| {
                    let padded = scratch.chunks_exact_mut(self.source.length());
                    for (image, padded) in source.chunks_exact(self.source.image().max(1)).zip(padded) {
                        self.source.fill(image, padded);
                    }
                    sweep(scratch);
                });
            } else {
                sweep(source);
            }
        });
        output
    }
}

/// All classes, panels and blocks of some images.
struct Sweep<'a> {
    of: &'a Correlation,
    blocks: &'a [Vec<Vec<Run>>],
    source: *const f32,
    target: *mut f32,
    images: usize,
}

impl Kernel for Sweep<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (class, blocks) in self.of.classes.iter().zip(self.blocks) {
            for index in 0..self.of.panels.count() {
                let panel = self.of.panels.get(index);
                // SAFETY: passed on.
                unsafe {
                    if panel.vectors == 2 {
                        self.panel::<S, 2>(class, blocks, panel);
                    } else {
                        self.panel::<S, 1>(class, blocks, panel);
                    }
                }
            }
        }
    }
}

impl Sweep<'_> {
    #[inline(always)]
    unsafe fn panel<S: Simd, const C: usize>(&self, class: &Class, blocks: &[Vec<Run>], panel: Panel) {
        let weights = class.weights.as_ptr();
        // SAFETY: the panel's weights begin there; the pixels and channels are the class's and the panel's.
        unsafe {
            let mut weights = weights.add(class.depth * panel.channel);
            for (index, runs) in blocks.iter().enumerate() {
                let start = if index == 0 {
                    Start::Bias(self.of.biases.as_ptr().add(class.bias + panel.channel))
                } else {
                    Start::Output
                };
                for image in 0..self.images {
                    for row in 0..class.rows {
                        let source = self.source.add(image * self.of.source.length() + class.source.start);
                        let source = source.add(row * class.source.row);
                        let target = self.target.add(image * self.of.target_image + class.target.start);
                        let pointer = target.add(row * class.target.row + panel.channel);
                        let target = Target { pointer, stride: class.target.column, last: panel.last };
                        line::<S, C>(source, class, runs, weights, start, target);
                    }
                }
                weights = weights.add(runs.iter().map(|run| run.length).sum::<usize>() * C * S::LANES);
            }
        }
    }
}

/// The pixels of one row, in tiles as large as the registers allow.
///
/// # Safety
/// As of [`multiply`], for all columns of the class.
#[inline(always)]
unsafe fn line<S: Simd, const C: usize>(
    source: *const f32,
    class: &Class,
    runs: &[Run],
    weights: *const f32,
    start: Start,
    target: Target,
) {
    let stride = class.source.column;
    let mut column = 0;
    macro_rules! tiles {
        ($pixels:literal) => {
            if $pixels * C <= S::SUMS {
                while class.columns - column >= $pixels {
                    // SAFETY: the tile ends within the row.
                    unsafe {
                        let target = Target { pointer: target.pointer.add(column * target.stride), ..target };
                        multiply::<S, $pixels, C>(source.add(column * stride), stride, runs, weights, start, target);
                    }
                    column += $pixels;
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

/// Parts of the batch whose weight gradients are summed separately: fixed by the sizes alone, so that the result does
/// not depend on the number of threads.
fn parts(geometry: &Geometry) -> usize {
    geometry.batch.clamp(1, 8)
}

/// Pixels in a block of the weight gradient; its output gradients stay in the first-level cache.
const BLOCK_PIXELS: usize = 128;

pub(super) fn weight_gradients(x: &[f32], gradient: &[f32], geometry: &Geometry) -> (Buffer, Buffer) {
    let Geometry { batch, groups, channels, out, kernel, .. } = *geometry;
    let source = geometry.padded_input();
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
            let runs = runs(kernel[0], kernel[1], source.within[1] * source.channels, [channels, source.channels]);
            let sums = sums.as_mut_ptr().cast();
            WeightSums { geometry, source, panels, x, gradient, sums, images, runs }.run();
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
    source: Padded,
    panels: Panels,
    x: &'a [f32],
    gradient: &'a [f32],
    sums: *mut f32,
    images: std::ops::Range<usize>,
    /// The values of `x` that one pixel of the gradient meets.
    runs: Vec<Run>,
}

impl WeightSums<'_> {
    /// Whether the gradient is as good as packed: one panel of whole vectors.
    fn is_packed(&self) -> bool {
        self.geometry.groups == 1 && self.panels.is_one_exactly()
    }

    fn run(self) {
        let [rows, columns] = self.geometry.output_size();
        let pixels = rows * columns;
        let group = (BLOCK_PIXELS / pixels.max(1)).max(1);
        let block_rows = if group > 1 { rows } else { BLOCK_PIXELS.div_ceil(columns).min(rows) };
        let padded = if self.source.is_needed() { group * self.source.length() } else { 0 };
        let packed = if self.is_packed() { 0 } else { group * block_rows * columns * self.panels.width() };
        with_scratch(padded + packed, |scratch| {
            let (padded, packed) = scratch.split_at_mut(padded);
            let mut image = self.images.start;
            while image < self.images.end {
                let count = group.min(self.images.end - image);
                let x = &self.x[image * self.source.image()..][..count * self.source.image()];
                if self.source.is_needed() {
                    let targets = padded.chunks_exact_mut(self.source.length());
                    for (image, target) in x.chunks_exact(self.source.image()).zip(targets) {
                        self.source.fill(image, target);
                    }
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
                    if panel.vectors == 2 {
                        self.panel::<S, 2>(group, panel);
                    } else {
                        self.panel::<S, 1>(group, panel);
                    }
                }
            }
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    unsafe fn panel<S: Simd, const C: usize>(&self, group: usize, panel: Panel) {
        let Geometry { groups, channels, out, kernel, options, .. } = *self.of.geometry;
        let [all_rows, columns] = self.of.geometry.output_size();
        let lanes = C * S::LANES;
        // SAFETY: the gradient has these images, rows, columns and channels; `packed` has room for a block of a panel;
        // the sums of a panel are its depth and one row for the bias.
        unsafe {
            let all_out = groups * out;
            let first = (self.image * all_rows + self.row) * columns * all_out + group * out + panel.channel;
            let gradient = self.of.gradient.as_ptr().add(first);
            // Several images are always whole, so their pixels follow each other as one image's do.
            let pixels = self.images * self.rows * columns;
            let (y, stride) = if self.of.is_packed() {
                (gradient, out)
            } else {
                for pixel in 0..pixels {
                    let from = gradient.add(pixel * all_out);
                    let to = self.packed.add(pixel * lanes);
                    for vector in 0..C {
                        let valid = if vector + 1 < C { S::LANES } else { panel.last };
                        S::store(to.add(vector * S::LANES), S::load_some(from.add(vector * S::LANES), valid));
                    }
                }
                (self.packed.cast_const(), lanes)
            };
            let depth = kernel[0] * kernel[1] * channels;
            let sums = self.of.sums.add((depth + 1) * (group * self.of.panels.padded() + panel.channel));
            bias_sums::<S, C>(y, pixels, stride, sums.add(depth * lanes));
            let source = self.of.source;
            let source_row = source.within[1] * source.channels;
            for image in 0..self.images {
                let shape = Pixels {
                    rows: self.rows,
                    columns,
                    x_row: options.stride * source_row,
                    x_column: options.stride * source.channels,
                    y_row: columns * stride,
                    y_column: stride,
                };
                let y = y.add(image * self.rows * columns * stride);
                let x = self.x.add(image * source.length() + self.row * options.stride * source_row);
                let x = x.add(group * channels);
                let mut sums = sums;
                for run in &self.of.runs {
                    products::<S, C>(x.add(run.offset), y, shape, run.length, sums);
                    sums = sums.add(run.length * lanes);
                }
            }
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
unsafe fn products<S: Simd, const C: usize>(x: *const f32, y: *const f32, shape: Pixels, count: usize, sums: *mut f32) {
    let mut index = 0;
    let lanes = C * S::LANES;
    macro_rules! tiles {
        ($values:literal) => {
            if $values * C <= S::SUMS {
                while count - index >= $values {
                    // SAFETY: the values end within `count`.
                    unsafe { outer::<S, $values, C>(x.add(index), y, shape, sums.add(index * lanes), lanes) };
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
