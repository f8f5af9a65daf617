//! Maps computed from others by sums over kernel and channels.

#![allow(unsafe_code, reason = "tiles read and write through pointers")]
#![allow(clippy::inline_always, reason = "see Kernel::run")]

use super::images::Prepared;
use super::padded::Padded;
use crate::flex::buffer::Buffer;
use crate::flex::panels::{Panel, Panels};
use crate::flex::simd::{Kernel, Simd, dispatch};
use crate::flex::tile::{Pairs, Products, Run, Start, Target, Values, line};

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

/// A correlation and how it is divided.
pub(super) struct Divided<'a> {
    correlation: Correlation<'a>,
    /// The runs of every class in blocks.
    blocks: Vec<Vec<Vec<Run>>>,
    /// Images that share one sweep over the weights.
    group: usize,
}

impl<'a> Divided<'a> {
    pub(super) fn of(correlation: Correlation<'a>) -> Self {
        let limit = BLOCK_BYTES / size_of::<f32>() / correlation.panels.width();
        let blocks = correlation.classes.iter().map(|class| class.blocks(limit)).collect();
        // Maps of few pixels share one sweep over the weights.
        let pixels: usize = correlation.classes.iter().map(|class| class.rows * class.columns).sum();
        let group = (512 / pixels.max(1)).clamp(1, correlation.batch.div_ceil(16).max(1));
        Self { correlation, blocks, group }
    }
}

impl Prepared for Divided<'_> {
    fn batch(&self) -> usize {
        self.correlation.batch
    }

    fn source_image(&self) -> usize {
        self.correlation.source.image()
    }

    fn target_image(&self) -> usize {
        self.correlation.target_image
    }

    fn group(&self) -> usize {
        self.group
    }

    /// Places of the images within their zeros.
    fn scratch(&self, images: usize) -> usize {
        let Correlation { source, normalization, .. } = &self.correlation;
        if source.is_needed() || normalization.is_some() { images * source.length() } else { 0 }
    }

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
                        let step = class.source.column;
                        line::<S, O, C>(source, step, class.columns, runs, weights, start, target);
                    }
                }
                weights = weights.add(runs.iter().map(|run| run.length).sum::<usize>() * C * S::LANES);
            }
        }
    }
}
