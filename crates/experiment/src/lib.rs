//! What runs: images, surrogate, attack, clean twin, victim, routing, defenses, record.
//!
//! [`execute`] trains a backdoored classifier and its clean twin for each seed of a plan, measures
//! both, tries the defenses, and leaves a folder that explains itself. Concrete backends are named in
//! one place, behind [`Backend`]; everything else is generic.
//!
//! This crate composes: it holds no layer, no trigger, no metric and no table of its own. What an
//! experiment file says is `patchdoor-plan`'s, what a run leaves `patchdoor-record`'s, what people
//! look at `patchdoor-report`'s, which hears of it as a [`Reporter`].
//!
//! ```no_run
//! use std::path::Path;
//! use std::sync::atomic::AtomicBool;
//!
//! use patchdoor_experiment::{BackendChoice, Console, Execution, RunSettings, execute};
//! use patchdoor_plan::{Plan, PlanOptions};
//! use patchdoor_record::{Again, Build};
//!
//! let plan = Plan::read(Path::new("experiments/badnets.toml"), &PlanOptions::default())?;
//! let settings = RunSettings {
//!     out: Path::new("runs"),
//!     roots: &["data".into()],
//!     offline: true,
//!     again: Again::No,
//!     stop: &AtomicBool::new(false),
//!     console: Console::plain(),
//!     build: &Build::default(),
//!     reporter: &(),
//! };
//! if let Execution::Done { summary, .. } = execute(&plan, &BackendChoice::Auto.resolve()?, &settings)? {
//!     assert!(summary.metrics["asr"].mean > 0.9);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attack;
mod backend;
mod certification;
mod clean_models;
mod config_text;
mod console;
mod contact;
mod controlled;
mod crafting;
mod curves;
mod defense;
mod describe;
mod detection;
mod doctor;
mod download;
mod epoch_lines;
mod epochs;
mod error;
mod evasion;
mod exam;
mod examples;
mod filtering;
#[cfg(feature = "cuda")]
mod gpu;
mod halt;
mod history;
mod images;
mod memory;
mod operations;
mod own_weights;
mod peak_memory;
mod placement;
mod poisoned;
mod preview;
mod progress;
mod reach;
mod routing;
mod run;
mod selection;
mod sources;
mod speed;
mod stealth;
mod sweep;
#[cfg(test)]
mod testing;
mod toolkit;
mod training;
mod weights_error;

pub use backend::{Backend, BackendChoice, BackendError, built_in};
pub use console::Console;
pub use contact::{Sheet, SheetRequest, SheetRow, draw_triggers};
pub use describe::describe;
pub use doctor::{Diagnosis, Finding, diagnose};
pub use download::fetch;
pub use error::RunError;
pub use images::ImagesError;
pub use memory::MemoryForecast;
pub use operations::{OperationCheck, check_operations};
pub use own_weights::{OwnWeights, OwnWeightsOutcome};
pub use poisoned::{ExportRequest, Exported, export_poisoned};
pub use preview::preview;
pub use run::{Execution, Reporter, RunSettings, execute};
pub use sources::OtherSources;
pub use speed::{Speed, SpeedRequest, measure_speed};
pub use sweep::{Forecast, SweepExecution, SweepFailure, SweepOptions, UnitState, execute_sweep};
pub use weights_error::WeightsError;
