//! What an experiment file says, checked.
//!
//! [`ExperimentConfig`] is what a TOML file says, [`Plan`] what is left of it after every check; only
//! a plan can run. A file with `[sweep]` is a [`Sweep`] of plans. All problems of a file are found at
//! once, before any image is read, and say where they stand.
//!
//! This crate knows the configuration types of the other crates and computes nothing with them.
//!
//! ```
//! use patchdoor_plan::{Plan, PlanOptions};
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
//! # Ok::<(), patchdoor_plan::ConfigErrors>(())
//! ```

mod amount;
mod axes;
mod certification;
mod checks;
mod class_names;
mod classes;
mod config;
mod controlled_checks;
mod counts;
mod curves;
mod defender;
mod defense_checks;
mod defense_plan;
mod diagnostics;
mod document;
mod evasion;
mod facts;
mod hash;
mod plan;
mod points;
mod precision;
mod problem;
mod quick;
mod reading;
mod routing;
mod training_checks;
mod trigger_checks;
mod victim;

pub use amount::{CleanAmount, share_of};
pub use certification::CertificationConfig;
pub use config::{DataConfig, ExpectedConfig, ExperimentConfig, WhenMissing};
pub use counts::{ImageCounts, split_sizes};
pub use curves::CurvesConfig;
pub use defender::{DefenderConfig, DefenderSet};
pub use defense_plan::{DefensePlan, model_of};
pub use diagnostics::{ConfigErrors, Diagnostic, Position};
pub use evasion::EvasionConfig;
pub use facts::{DatasetFacts, choice_name};
pub use patchdoor_defenses::ActionKind;
pub use plan::{Plan, PlanOptions};
pub use points::{Experiment, Point, Sweep, merged};
pub use precision::Precision;
pub use routing::RoutingConfig;
pub use victim::{Start, VictimConfig};
