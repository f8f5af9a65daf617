//! The operations on burn's autodiff backend, each with a step of the backward pass.

mod backend;
mod convolution;
mod elementwise;
mod experts;
mod gate;
mod gathering;
mod lists;
mod normalization;
mod step;
