//! Convolutions worked through a few images at a time.

#![allow(unsafe_code, reason = "parts of the output are written through pointers")]

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::scratch::with_scratch;
use crate::flex::buffer::Buffer;

/// A convolution with its weights as its products read them.
pub(super) trait Prepared: Sync {
    /// Images of the input.
    fn batch(&self) -> usize;
    /// Values of an image of the input.
    fn source_image(&self) -> usize;
    /// Values of an image of the output.
    fn target_image(&self) -> usize;
    /// Images that share one sweep over the weights.
    fn group(&self) -> usize;
    /// Values of the scratch that some images take.
    fn scratch(&self, images: usize) -> usize;
    /// Computes the sums of some images.
    ///
    /// # Safety
    /// There is room for the images at the target, which have been written if they are added to, and in the scratch.
    unsafe fn images(&self, source: &[f32], scratch: &mut [f32], target: *mut f32, added: bool);
}

/// The sums of all images.
pub(super) fn run(prepared: &dyn Prepared, source: &[f32]) -> Buffer {
    let mut output = Buffer::new(prepared.batch() * prepared.target_image());
    // SAFETY: nothing reads what is not written yet.
    unsafe { run_into(prepared, source, output.values(), false) };
    output
}

/// Adds the sums to what the output holds.
pub(super) fn add_to(prepared: &dyn Prepared, source: &[f32], output: &mut [f32]) {
    assert_eq!(output.len(), prepared.batch() * prepared.target_image(), "what is added has the output's shape");
    // SAFETY: values that are written are values, and nothing is made unwritten.
    let output = unsafe { std::slice::from_raw_parts_mut(output.as_mut_ptr().cast(), output.len()) };
    // SAFETY: the output has been written.
    unsafe { run_into(prepared, source, output, true) };
}

/// # Safety
/// The output has been written if it is added to.
unsafe fn run_into(prepared: &dyn Prepared, source: &[f32], output: &mut [MaybeUninit<f32>], added: bool) {
    let (group, image, target_image) = (prepared.group(), prepared.source_image(), prepared.target_image());
    if output.is_empty() {
        return;
    }
    output.par_chunks_mut(group * target_image).enumerate().for_each(|(index, target)| {
        let images = target.len() / target_image;
        let source = &source[index * group * image..][..images * image];
        with_scratch(prepared.scratch(images), |scratch| {
            // SAFETY: the chunk and the scratch have room for the images.
            unsafe { prepared.images(source, scratch, target.as_mut_ptr().cast(), added) };
        });
    });
}

/// Two convolutions in a row beside a third one, whose sums are added up: a residual block, worked through image by
/// image, so that what is between them stays in cache.
pub(super) fn residual(x: &[f32], [first, second, shortcut]: [&dyn Prepared; 3]) -> Buffer {
    let mut output = Buffer::new(second.batch() * second.target_image());
    let (target_image, inner_image) = (second.target_image(), first.target_image());
    assert_eq!(target_image, shortcut.target_image(), "both branches have one shape");
    assert_eq!(inner_image, second.source_image(), "the second convolution takes what the first one gives");
    let group = [first, second, shortcut].into_iter().map(Prepared::group).max().unwrap_or(1);
    let image = first.source_image();
    if second.batch() * target_image == 0 {
        return output;
    }
    output.values().par_chunks_mut(group * target_image).enumerate().for_each(|(index, target)| {
        let images = target.len() / target_image;
        let x = &x[index * group * image..][..images * image];
        let target = target.as_mut_ptr().cast();
        let own = [first, second, shortcut].map(|prepared| prepared.scratch(images)).into_iter().max();
        let own = own.unwrap_or(0);
        with_scratch(own + images * inner_image, |scratch| {
            let (own, inner) = scratch.split_at_mut(own);
            // SAFETY: the chunk and the scratch have room for the images; the second convolution adds to what the
            // shortcut has written.
            unsafe {
                first.images(x, own, inner.as_mut_ptr(), false);
                shortcut.images(x, own, target, false);
                second.images(inner, own, target, true);
            }
        });
    });
    output
}
