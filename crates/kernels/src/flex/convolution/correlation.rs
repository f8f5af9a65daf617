//! Maps computed from others by sums over kernel and channels.

#![allow(unsafe_code, reason = "tiles read and write through pointers")]
#![allow(clippy::inline_always, reason = "see Kernel::run")]

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::padded::Padded;
use super::scratch::with_scratch;
use crate::flex::buffer::Buffer;
use crate::flex::panels::{Panel, Panels};
use crate::flex::simd::{Kernel, Simd, dispatch};
use crate::flex::tile::{Pairs, Products, Run, Start, Target, Values, multiply};

/// Bytes of packed weights that a sweep over the pixels keeps in the first-level cache.
const BLOCK_BYTES: usize = 24 << 10;

/// Output pixels that meet the same rows and columns of the kernel at a fixed distance.
pub(super) struct Class {
    pub(super) runs: Vec<Run>,
    /// Rows of the packed weights.
    pub(super) depth: usize,
    pub(super) weights: Buffer,
    /// First of the packed biases.
    pub(super) bias: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) source: Steps,
    pub(super) target: Steps,
}

/// First value of the first pixel, and the values from pixel to pixel.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    pub(super) start: usize,
    pub(super) row: usize,
    pub(super) column: usize,
}

/// A map computed from another by a sum over kernel and channels.
pub(super) struct Correlation<'a> {
    pub(super) batch: usize,
    pub(super) source: Padded,
    pub(super) target_image: usize,
    pub(super) panels: Panels,
    pub(super) biases: Vec<f32>,
    pub(super) classes: Vec<Class>,
    /// Scale and shift of every channel of the source, which normalize it.
    pub(super) normalization: Option<[&'a [f32]; 2]>,
    /// Whether the sums are rectified.
    pub(super) rectified: bool,
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

impl Correlation<'_> {
    pub(super) fn run(self, source: &[f32]) -> Buffer {
        let mut output = Buffer::new(self.batch * self.target_image);
        // SAFETY: nothing reads what is not written yet.
        unsafe { self.run_into(source, output.values(), false) };
        output
    }

    /// Adds the sums to what the output holds.
    pub(super) fn add_to(self, source: &[f32], output: &mut [f32]) {
        assert_eq!(output.len(), self.batch * self.target_image, "what is added has the output's shape");
        // SAFETY: values that are written are values, and nothing is made unwritten.
        let output = unsafe { std::slice::from_raw_parts_mut(output.as_mut_ptr().cast(), output.len()) };
        // SAFETY: the output has been written.
        unsafe { self.run_into(source, output, true) };
    }

    /// # Safety
    /// The output has been written if it is added to.
    unsafe fn run_into(self, source: &[f32], output: &mut [MaybeUninit<f32>], added: bool) {
        let prepared = Prepared::of(self);
        let Prepared { correlation, group, .. } = &prepared;
        let target_image = correlation.target_image;
        if output.is_empty() {
            return;
        }
        output.par_chunks_mut(group * target_image).enumerate().for_each(|(index, target)| {
            let images = target.len() / target_image;
            let image = correlation.source.image();
            let source = &source[index * group * image..][..images * image];
            with_scratch(prepared.scratch(images), |scratch| {
                // SAFETY: the chunk has room for the images.
                unsafe { prepared.images(source, scratch, target.as_mut_ptr().cast(), added) };
            });
        });
    }
}

/// Two correlations in a row beside a third one, whose sums are added up: a residual block, worked through image by
/// image, so that what is between them stays in cache.
pub(super) fn residual(x: &[f32], [first, second, shortcut]: [Correlation; 3]) -> Buffer {
    let mut output = Buffer::new(second.batch * second.target_image);
    let (target_image, inner_image) = (second.target_image, first.target_image);
    assert_eq!(target_image, shortcut.target_image, "both branches have one shape");
    assert_eq!(inner_image, second.source.image(), "the second convolution takes what the first one gives");
    let [first, second, shortcut] = [first, second, shortcut].map(Prepared::of);
    let group = [&first, &second, &shortcut].into_iter().map(|prepared| prepared.group).max().unwrap_or(1);
    let image = first.correlation.source.image();
    if second.correlation.batch * target_image == 0 {
        return output;
    }
    output.values().par_chunks_mut(group * target_image).enumerate().for_each(|(index, target)| {
        let images = target.len() / target_image;
        let x = &x[index * group * image..][..images * image];
        let target = target.as_mut_ptr().cast();
        let padded = [&first, &second, &shortcut].map(|prepared| prepared.scratch(images)).into_iter().max();
        let padded = padded.unwrap_or(0);
        with_scratch(padded + images * inner_image, |scratch| {
            let (padded, inner) = scratch.split_at_mut(padded);
            // SAFETY: the chunk and the scratch have room for the images; the second convolution adds to what the
            // shortcut has written.
            unsafe {
                first.images(x, padded, inner.as_mut_ptr(), false);
                shortcut.images(x, padded, target, false);
                second.images(inner, padded, target, true);
            }
        });
    });
    output
}

/// A correlation and how it is divided.
struct Prepared<'a> {
    correlation: Correlation<'a>,
    /// The runs of every class in blocks.
    blocks: Vec<Vec<Vec<Run>>>,
    /// Images that share one sweep over the weights.
    group: usize,
}

impl<'a> Prepared<'a> {
    fn of(correlation: Correlation<'a>) -> Self {
        let limit = BLOCK_BYTES / size_of::<f32>() / correlation.panels.width();
        let blocks = correlation.classes.iter().map(|class| class.blocks(limit)).collect();
        // Maps of few pixels share one sweep over the weights.
        let pixels: usize = correlation.classes.iter().map(|class| class.rows * class.columns).sum();
        let group = (512 / pixels.max(1)).clamp(1, correlation.batch.div_ceil(16).max(1));
        Self { correlation, blocks, group }
    }

    /// Places that some images take within their zeros.
    fn scratch(&self, images: usize) -> usize {
        let Correlation { source, normalization, .. } = &self.correlation;
        if source.is_needed() || normalization.is_some() { images * source.length() } else { 0 }
    }

    /// Computes the sums of some images.
    ///
    /// # Safety
    /// There is room for the images at the target, which have been written if they are added to, and in the scratch.
    unsafe fn images(&self, source: &[f32], scratch: &mut [f32], target: *mut f32, added: bool) {
        let Correlation { source: padded, normalization, .. } = &self.correlation;
        let images = source.len() / padded.image().max(1);
        let length = self.scratch(images);
        let source = if length > 0 {
            let scratch = &mut scratch[..length];
            padded.fill(source, scratch, *normalization);
            &*scratch
        } else {
            source
        };
        // SAFETY: `source` holds that many padded images and `target` that many output images; classes, runs and panels
        // stay within them, see `forward` and `input_gradient`.
        unsafe {
            dispatch(Sweep {
                of: &self.correlation,
                blocks: &self.blocks,
                source: source.as_ptr(),
                target,
                images,
                added,
            });
        }
    }
}

/// All classes, panels and blocks of some images.
struct Sweep<'a> {
    of: &'a Correlation<'a>,
    blocks: &'a [Vec<Vec<Run>>],
    source: *const f32,
    target: *mut f32,
    images: usize,
    /// Whether the target holds what the sums are added to.
    added: bool,
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
                    match (self.of.source.together, panel.vectors) {
                        (1, 1) => self.panel::<S, Values, 1>(class, blocks, panel),
                        (1, _) => self.panel::<S, Values, 2>(class, blocks, panel),
                        (_, 1) => self.panel::<S, Pairs, 1>(class, blocks, panel),
                        _ => self.panel::<S, Pairs, 2>(class, blocks, panel),
                    }
                }
            }
        }
    }
}

impl Sweep<'_> {
    #[inline(always)]
    unsafe fn panel<S: Simd, O: Products, const C: usize>(&self, class: &Class, blocks: &[Vec<Run>], panel: Panel) {
        let weights = class.weights.as_ptr();
        // SAFETY: the panel's weights begin there; the pixels and channels are the class's and the panel's.
        unsafe {
            let mut weights = weights.add(class.depth * panel.channel);
            for (index, runs) in blocks.iter().enumerate() {
                let bias = self.of.biases.as_ptr().add(class.bias + panel.channel);
                let start = match (index, self.added) {
                    (0, false) => Start::Bias(bias),
                    (0, true) => Start::Added(bias),
                    _ => Start::Output,
                };
                let rectified = self.of.rectified && index + 1 == blocks.len();
                for image in 0..self.images {
                    for row in 0..class.rows {
                        let source = self.source.add(image * self.of.source.length() + class.source.start);
                        let source = source.add(row * class.source.row);
                        let target = self.target.add(image * self.of.target_image + class.target.start);
                        let pointer = target.add(row * class.target.row + panel.channel);
                        let target = Target { pointer, stride: class.target.column, last: panel.last, rectified };
                        line::<S, O, C>(source, class, runs, weights, start, target);
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
unsafe fn line<S: Simd, O: Products, const C: usize>(
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
                        multiply::<S, O, $pixels, C>(source.add(column * stride), stride, runs, weights, start, target);
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
