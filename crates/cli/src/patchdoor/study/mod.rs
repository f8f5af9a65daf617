//! Measuring at the authors' scale in little time.

mod child;
mod keep;
mod paper;
mod record;
mod report;
mod steps;

use std::time::Duration;

use anyhow::anyhow;
use patchdoor_cli::{Stop, print};
use patchdoor_experiment::{BackendChoice, SpeedRequest, check_operations, measure_speed};
use patchdoor_plan::Precision;

use crate::arguments::{StudyArguments, StudyCommand};
use crate::run::stop_for;

/// Carries out a study or one of its measurements.
pub(crate) fn study(arguments: &StudyArguments) -> Result<(), Stop> {
    match &arguments.command {
        StudyCommand::Paper(arguments) => paper::paper(arguments),
        StudyCommand::Operations { backend, precision, tolerance, json } => {
            let tolerance = tolerance.unwrap_or(match precision {
                Precision::F32 => 1e-5,
                Precision::Tf32 => 3e-3,
                Precision::Bf16 => 3e-2,
            });
            operations(*backend, *precision, tolerance, *json)
        }
        StudyCommand::Speed { backend, widen, precision, batch, seeds, steps, seconds, json } => {
            let request = SpeedRequest {
                widen_factor: *widen,
                precision: *precision,
                batch_size: *batch,
                seeds: *seeds,
                steps: *steps,
                time: Duration::from_secs_f64(*seconds),
            };
            speed(*backend, &request, *json)
        }
    }
}

/// Compares every operation with the CPU's.
fn operations(backend: BackendChoice, precision: Precision, tolerance: f64, json: bool) -> Result<(), Stop> {
    let backend = backend.resolve().map_err(Stop::unusable)?;
    let checks = check_operations(&backend, precision, tolerance).map_err(Stop::unusable)?;
    if json {
        let document = serde_json::json!({
            "backend": backend.name(), "precision": precision, "tolerance": tolerance, "operations": checks,
        });
        print(&format!("{}\n", serde_json::to_string_pretty(&document).map_err(Stop::failed)?))?;
    } else {
        for check in &checks {
            let word = if check.agrees { "agrees " } else { "DIFFERS" };
            print(&format!("{word} {:.1e}  {} ({})\n", check.distance, check.operation, check.at))?;
        }
    }
    match checks.iter().filter(|check| !check.agrees).count() {
        0 => Ok(()),
        differing => Err(Stop::failed(anyhow!(
            "{differing} of {} operations differ from the CPU's by more than {tolerance} on {}",
            checks.len(),
            backend.name()
        ))),
    }
}

/// Times training steps.
fn speed(backend: BackendChoice, request: &SpeedRequest, json: bool) -> Result<(), Stop> {
    let backend = backend.resolve().map_err(Stop::unusable)?;
    backend.check_precision(request.precision).map_err(Stop::unusable)?;
    let speed = measure_speed(&backend, request).map_err(stop_for)?;
    if json {
        let mut document = serde_json::to_value(&speed).map_err(Stop::failed)?;
        document["backend"] = backend.name().into();
        document["device"] = backend.device().into();
        return print(&format!("{}\n", serde_json::to_string_pretty(&document).map_err(Stop::failed)?));
    }
    print(&format!(
        "widen {}, {}, batch {}, seeds {}, {}: {:.1} images/s ({:.1} to {:.1} in {} stretches); the first stretch took {:.1} s\n",
        speed.widen_factor,
        speed.precision.name(),
        speed.batch_size,
        speed.seeds,
        backend.name(),
        speed.images_per_second,
        speed.range[0],
        speed.range[1],
        speed.stretches,
        speed.first_seconds,
    ))
}
