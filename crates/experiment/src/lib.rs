//! Config, plan, run, results: the only crate that sees all the others.
//!
//! [`ExperimentConfig`] is what a TOML file says, [`Plan`] what is left of it after every check; only
//! a plan can run. [`execute`] trains a backdoored classifier and its clean twin for each seed,
//! measures both, and leaves a folder that explains itself. Concrete backends are named in one place,
//! behind [`Backend`]; everything else is generic.
//!
//! This crate composes: it holds no layer, no trigger, no metric of its own.
//!
//! ```
//! use patchdoor_experiment::{Plan, PlanOptions};
//!
//! let text = r#"
//!     dataset = "shapes"
//!     [poisoning]
//!     rate = 0.05
//!     [trigger.square]
//!     [model.patch-moe]
//!     widen-factor = 1
//! "#;
//! let plan = Plan::from_text("example.toml", text, &PlanOptions::default())?;
//! assert_eq!(plan.config().poisoning.rate, 0.05);
//!
//! // Every default is written out, and the file says the same as before.
//! let again = Plan::from_text("example.toml", &plan.to_toml(), &PlanOptions::default())?;
//! assert_eq!(again.config(), plan.config());
//!
//! // Problems are found before anything is read, all at once, and say where they are.
//! let wrong = text.replace("0.05", "1.7").replace("widen-factor", "widen");
//! let problems = Plan::from_text("example.toml", &wrong, &PlanOptions::default()).unwrap_err();
//! assert_eq!(problems.diagnostics.len(), 2);
//! # Ok::<(), patchdoor_experiment::ConfigErrors>(())
//! ```

mod backend;
mod checks;
mod config;
mod contact;
mod defender;
mod defense;
mod diagnostics;
mod document;
mod download;
mod environment;
mod facts;
mod files;
mod images;
mod plan;
mod poisoned;
mod progress;
mod report;
mod result;
mod results;
mod routing;
mod run;
mod run_directory;
mod surrogate;
mod sweep;
mod twin;

pub use backend::{Backend, BackendChoice, BackendError, built_in};
pub use config::{DataConfig, ExpectedConfig, ExperimentConfig, WhenMissing};
pub use contact::{Sheet, SheetRequest, draw_triggers};
pub use defender::{CleanAmount, DefenderConfig, DefenderSet};
pub use defense::{
    DefenseMeasurements, DefenseOutcome, DefenseResult, DefenseStanding, DefenseSummary, Ratings, SeriesRow,
};
pub use diagnostics::{ConfigErrors, Diagnostic, Position};
pub use download::fetch;
pub use environment::Environment;
pub use facts::{DatasetFacts, choice_name};
pub use images::ImagesError;
pub use plan::{ImageCounts, Plan, PlanOptions};
pub use poisoned::{ExportRequest, Exported, export_poisoned};
pub use progress::Console;
pub use report::{describe, table};
pub use result::{
    ClassMeasurements, ImagesUsed, Measurements, MetricSummaries, RunSummary, SCHEMA, SeedOutcome, SeedResult,
    TwinMeasurements,
};
pub use results::{Collected, ResultsError, collect_results, render_results};
pub use routing::{AssociationNumbers, RoutingConfig, RoutingMeasurements, RoutingNumbers, RoutingSummary, SetNumbers};
pub use run::{Execution, RunError, RunSettings, execute, run_name};
pub use run_directory::{Opened, RunDirectory, RunDirectoryError};
pub use surrogate::SurrogateConfig;
pub use sweep::{
    Experiment, Forecast, MetricResult, Point, PointResult, ResultTable, Sweep, SweepExecution, SweepFailure,
    SweepOptions, UnitState, execute_sweep,
};
