//! Fused operations for burn's GPU backends, in CubeCL: one source for CUDA and for the software Vulkan that tests it.
#![allow(
    unsafe_code,
    reason = "kernels read and write device memory unchecked; every launch fits its grid to its tensors"
)]

mod backend;
mod convolution;
mod elementwise;
mod gate;
mod images;
mod lists;
mod loss;
mod normalization;
mod shares;
mod sizes;
mod sums;
mod tensors;
mod tile;
mod wide;
