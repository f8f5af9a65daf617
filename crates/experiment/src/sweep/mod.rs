//! Several experiments in one file: `[sweep]`, its points, its runs, its table.

mod axes;
mod execution;
mod forecast;
mod points;
mod table;

pub(crate) use axes::{Axes, Outline};
pub use execution::{SweepExecution, SweepFailure, SweepOptions, execute_sweep};
pub use forecast::{Forecast, UnitState};
pub use points::{Experiment, Point, Sweep};
#[cfg(test)]
pub(crate) use table::example_table;
pub use table::{MetricResult, PointResult, ResultTable};
pub(crate) use table::{group_of, in_group};
