//! The operations a patch-level mixture of experts spends its time in, fused and channels last.
//!
//! Feature maps are `[batch, height, width, channel]`, patches `[batch, patch, channel]`: the channel is always the
//! last axis. Every operation is a method of the backend extension [`Kernels`] with a default body of ordinary burn
//! operations, so it runs on any backend, and a gradient of its own on burn's autodiff backend. The feature `flex`
//! replaces the bodies by fast ones for burn's CPU backend, `burn_flex::Flex`: vector instructions chosen at run time,
//! rayon's global pool, and sums in an order that does not depend on the number of threads, so results are the same
//! bits on one thread and on many.
//!
//! A pass that keeps gradients runs in [`differentiate`], one at a time in the whole process.
//!
//! This crate knows shapes and numbers, not models, images or training. It is the only one with `unsafe`.
//!
//! ```
//! use burn::tensor::{Tensor, TensorData};
//! use patchdoor_kernels::{ConvOptions, batch_norm_relu, conv2d};
//!
//! # fn main() {
//! type B = burn_flex::Flex;
//! let device = Default::default();
//! let images = Tensor::<B, 4>::ones([2, 8, 8, 3], &device);
//! let weight = Tensor::ones([16, 3, 3, 3], &device);
//! let bias = Tensor::zeros([16], &device);
//! let features = conv2d(images, weight, bias, ConvOptions::same([8, 8], [3, 3], 2));
//! assert_eq!(features.dims(), [2, 4, 4, 16]);
//! let normalized = batch_norm_relu(features, Tensor::ones([16], &device), Tensor::zeros([16], &device), 1e-3);
//! assert_eq!(normalized.variance.dims(), [16]);
//! # }
//! ```

mod backend;
mod conv_options;
mod convolution;
#[cfg(feature = "cube")]
mod cube;
mod differentiation;
mod elementwise;
mod experts;
#[cfg(feature = "flex")]
mod flex;
mod gate;
mod gathering;
mod images;
mod inference;
mod inference_conv;
mod loss;
mod normalization;
mod precision;
mod primitives;
mod recorded;
mod statistics;
mod step;
mod stock;

pub use backend::{Kernels, TrainingBackend};
pub use conv_options::ConvOptions;
pub use convolution::{conv2d, grouped_conv2d};
pub use differentiation::differentiate;
pub use elementwise::{add, average_positions, dense};
pub use experts::{weighted_batch_norm_relu, weighted_scale_shift_relu};
pub use gate::{choose_patches, join};
pub use gathering::gather_weighted;
pub use images::{pack_pixels, take_images};
pub use inference::{inference_conv2d, inference_residual};
pub use inference_conv::InferenceConv;
pub use loss::{Loss, cross_entropy};
pub use normalization::{Normalized, batch_norm_relu, scale_shift_relu};
pub use precision::Precision;
#[cfg(feature = "flex")]
pub use precision::multiplies_bf16;
pub use statistics::{average_statistics, fold_statistics};
pub use step::SgdStep;

/// The backend for tests of what CUDA runs, on a Vulkan driver that needs no GPU (`docs/backends.md`).
#[cfg(feature = "vulkan")]
pub type Vulkan = burn_wgpu::Wgpu;

/// A device of [`Vulkan`].
#[cfg(feature = "vulkan")]
pub type VulkanDevice = burn_wgpu::WgpuDevice;
