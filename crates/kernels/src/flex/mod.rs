//! The operations on burn's CPU backend.

mod backend;
mod buffer;
mod convolution;
mod elementwise;
mod experts;
mod gathering;
mod normalization;
mod pairs;
mod panels;
mod rows;
mod simd;
mod tile;

pub(crate) use simd::multiplies_pairs;
