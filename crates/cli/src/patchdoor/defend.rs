use std::path::Path;

use patchdoor_cli::{Stop, print, say, terminal_width};
use patchdoor_experiment::{OwnWeights, OwnWeightsOutcome, RunSettings};
use patchdoor_plan::{ActionKind, PlanOptions};
use patchdoor_record::{Again, OwnWeightsResult};
use patchdoor_report::own_weights_table;

use crate::arguments::{DetectArguments, OwnWeightsArguments};
use crate::build_facts::build_facts;
use crate::pages::Pages;
use crate::roots::data_roots;
use crate::run::{console, stop_for, this_command};
use crate::signals::stop_on_interrupt;

/// Repairs weights with every defense of a file.
pub(crate) fn defend(arguments: &OwnWeightsArguments) -> Result<(), Stop> {
    execute(arguments, ActionKind::Repair, None)
}

/// Scores images with every detector of a file.
pub(crate) fn detect(arguments: &DetectArguments) -> Result<(), Stop> {
    execute(&arguments.own, ActionKind::Detect, arguments.images.as_deref())
}

/// Lets every inspector of a file look at weights.
pub(crate) fn inspect(arguments: &OwnWeightsArguments) -> Result<(), Stop> {
    execute(arguments, ActionKind::Inspect, None)
}

fn execute(arguments: &OwnWeightsArguments, kind: ActionKind, images: Option<&Path>) -> Result<(), Stop> {
    let backend = arguments.backend.resolve().map_err(Stop::unusable)?;
    if let Some(reason) = backend.fallback() {
        say(reason);
    }
    let stop = stop_on_interrupt()?;
    let settings = RunSettings {
        out: &arguments.out,
        roots: &data_roots(arguments.source.data.as_ref()),
        offline: arguments.source.offline,
        again: if arguments.fresh { Again::Fresh } else { Again::No },
        stop: &stop,
        console: console(),
        build: &build_facts(),
        reporter: &Pages,
    };
    let own = OwnWeights {
        weights: &arguments.weights,
        model: arguments.model.as_deref(),
        defenses: &arguments.defense,
        kind,
        images,
        options: &PlanOptions { overrides: arguments.overrides.clone(), ..PlanOptions::default() },
    };
    match own.execute(&backend, &settings).map_err(stop_for)? {
        OwnWeightsOutcome::Done { result, folder } => show(&result, &folder, arguments.json),
        OwnWeightsOutcome::Interrupted { folder } => {
            say(&format!("\ninterrupted; what is done is saved in {}", folder.display()));
            say(&format!("the same command goes on from there:\n  {}", this_command()));
            Err(Stop::Interrupted)
        }
    }
}

fn show(result: &OwnWeightsResult, folder: &Path, json: bool) -> Result<(), Stop> {
    if json {
        print(&format!("{}\n", serde_json::to_string_pretty(result).map_err(Stop::failed)?))?;
    } else {
        say("");
        print(&own_weights_table(result, terminal_width()))?;
    }
    say(&format!("results: {}", folder.display()));
    if result.is_complete() { Ok(()) } else { Err(Stop::FailedQuietly) }
}
