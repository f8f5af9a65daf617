//! What routers look at: which patches the experts select in clean and in triggered test images, and what that depends on; and
//! what the classifier makes of images that are routed otherwise.
//!
//! The numbers themselves are defined in `patchdoor_metrics`; `docs/routing.md` says how to read them.

mod analysis;
mod audit;
mod blocking;
mod cells;
mod epochs;
mod look;
mod swap;

pub(crate) use cells::{Area, cells, triggered_patches};
pub(crate) use epochs::EpochRouting;
pub(crate) use look::{Looked, look_at_routing};
