//! What routers look at: which patches the experts select in clean and in triggered test images, and what that depends on.
//!
//! The numbers themselves are defined in `patchdoor_metrics`; `docs/routing.md` says how to read them.

mod analysis;
mod cells;
mod config;
mod epochs;
mod figures;
mod files;
mod numbers;
mod seeds;
mod table;

pub use config::RoutingConfig;
pub use numbers::{AssociationNumbers, RoutingMeasurements, RoutingNumbers, RoutingSummary, SetNumbers};

pub(crate) use epochs::EpochRouting;
pub(crate) use files::measure;
pub(crate) use numbers::summarize;
pub(crate) use seeds::draw_seeds;
pub(crate) use table::table;
