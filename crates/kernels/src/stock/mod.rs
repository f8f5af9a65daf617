//! The default bodies: every operation in ordinary burn operations, for any backend.

pub(crate) mod convolution;
pub(crate) mod elementwise;
pub(crate) mod experts;
pub(crate) mod gate;
pub(crate) mod gathering;
pub(crate) mod images;
pub(crate) mod lists;
pub(crate) mod normalization;
mod sum_rows;
