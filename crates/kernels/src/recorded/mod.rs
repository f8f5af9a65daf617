//! The operations on burn's autodiff backend, each with a step of the backward pass.

mod backend;
mod convolution;
mod elementwise;
mod experts;
mod gathering;
mod normalization;
mod step;
