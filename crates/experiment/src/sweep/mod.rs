//! Sweeps: what runs of one are there and what they would take, and running what is missing.

mod execution;
mod forecast;
mod units;

pub use execution::{SweepExecution, SweepFailure, execute_sweep};
pub use forecast::Forecast;
pub use units::{SweepOptions, UnitState};
