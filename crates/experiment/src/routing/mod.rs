//! What routers look at: which patches the experts select in clean and in triggered test images, and what that depends on.
//!
//! The numbers themselves are defined in `patchdoor_metrics`; `docs/routing.md` says how to read them.

mod analysis;
mod cells;
mod epochs;
mod look;

pub(crate) use epochs::EpochRouting;
pub(crate) use look::look_at_routing;
