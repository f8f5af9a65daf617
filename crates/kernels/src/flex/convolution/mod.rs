//! Direct convolution, channels last.
//!
//! In a channels-last map the values that the pixels of one kernel row meet lie side by side, so a convolution is a few
//! matrix products that read the (zero-padded) map where it stands; nothing is unfolded. The input gradient is the
//! same computation on the output's gradient, one for every remainder of the input's row and column by the stride.

mod correlation;
mod forward;
mod geometry;
mod images;
mod input_gradient;
mod padded;
mod paired_pixels;
mod scratch;
mod weight;
mod winograd;

pub(in crate::flex) use forward::{Around, Layer, add_inferred, forward, infer, residual};
pub(in crate::flex) use geometry::{Geometry, Operands};
pub(in crate::flex) use input_gradient::input_gradient;
pub(in crate::flex) use weight::weight_gradients;
