use std::path::PathBuf;

use patchdoor_cli::{Stop, is_smart_terminal, print, say, terminal_width};
use patchdoor_experiment::{
    Backend, Console, Execution, Forecast, ImagesError, MemoryForecast, RunError, RunSettings, SweepExecution,
    SweepOptions, UnitState, execute, execute_sweep, preview,
};
use patchdoor_plan::{ConfigErrors, Experiment, PlanOptions, Sweep};
use patchdoor_record::{Again, RecordError, RunDirectory, RunSummary, SCHEMA};
use patchdoor_report::{PAGE, run_table, table_text};

use crate::arguments::{Changes, RunArguments};
use crate::build_facts::build_facts;
use crate::pages::Pages;
use crate::roots::data_roots;
use crate::signals::stop_on_interrupt;

/// Runs every file, after all of them were checked.
pub(crate) fn run(arguments: &RunArguments) -> Result<(), Stop> {
    let experiments = read_experiments(&arguments.files, &arguments.changes)?;
    let backend = arguments.backend.resolve().map_err(Stop::unusable)?.emulating(arguments.emulate_bf16);
    if let Some(reason) = backend.fallback() {
        say(reason);
    }
    let roots = data_roots(arguments.images.data.as_ref());
    if arguments.dry_run {
        return dry_run(arguments, &experiments, &backend, &roots);
    }
    let stop = stop_on_interrupt()?;
    let settings = RunSettings {
        out: &arguments.out,
        roots: &roots,
        offline: arguments.images.offline,
        again: match (arguments.fresh, arguments.retry_failed) {
            (true, _) => Again::Fresh,
            (false, true) => Again::Failed,
            (false, false) => Again::No,
        },
        stop: &stop,
        console: console(),
        build: &build_facts(),
        reporter: &Pages,
    };
    let mut summaries = Vec::new();
    let mut sweeps = Vec::new();
    let mut folders = Vec::new();
    let mut failure = None;
    for experiment in &experiments {
        let unfinished = match experiment {
            Experiment::Single(plan) => match execute(plan, &backend, &settings) {
                Ok(Execution::Done { summary, folder }) => {
                    folders.push(folder);
                    summaries.push(*summary);
                    None
                }
                Ok(Execution::Interrupted { folder }) => Some(folder),
                Err(error) => {
                    failure = Some(stop_for(error));
                    break;
                }
            },
            Experiment::Sweep(sweep) => match execute_sweep(sweep, &backend, &settings, sweep_options(arguments)) {
                Ok(execution) => {
                    let folder = execution.folder.clone();
                    let interrupted = execution.interrupted;
                    folders.push(folder.clone());
                    sweeps.push(execution);
                    interrupted.then_some(folder)
                }
                Err(error) => {
                    failure = Some(stop_for(error));
                    break;
                }
            },
        };
        if let Some(folder) = unfinished {
            say(&format!("\ninterrupted; what is done is saved in {}", folder.display()));
            say(&format!("the same command goes on from there:\n  {}", this_command()));
            failure = Some(Stop::Interrupted);
            break;
        }
    }
    let shown = show(arguments, &summaries, &sweeps);
    for folder in &folders {
        say(&format!("results: {}", folder.display()));
    }
    for line in sweeps.iter().flat_map(leftovers) {
        say(&line);
    }
    if summaries.iter().any(|summary| !summary.is_complete()) {
        for summary in &summaries {
            summary.failures().iter().for_each(|line| say(&format!("failed: {}: {line}", summary.run)));
        }
        say(RETRY);
    }
    // Runs of earlier versions have none until `report` makes it.
    for page in folders.iter().map(|folder| folder.join(PAGE)).filter(|page| page.is_file()) {
        say(&format!("page: {}", page.display()));
    }
    shown?;
    match failure {
        Some(stop) => Err(stop),
        None if summaries.iter().all(RunSummary::is_complete) && sweeps.iter().all(|s| s.failures.is_empty()) => Ok(()),
        None => Err(Stop::FailedQuietly),
    }
}

/// How to try again what failed.
const RETRY: &str = "--retry-failed computes anew what failed, and nothing else";

/// Prints the results of all runs and sweeps.
fn show(arguments: &RunArguments, summaries: &[RunSummary], sweeps: &[SweepExecution]) -> Result<(), Stop> {
    if arguments.json {
        let mut document = serde_json::json!({ "schema": SCHEMA, "runs": summaries });
        if !sweeps.is_empty() {
            let tables = sweeps.iter().map(|sweep| &sweep.table).collect::<Vec<_>>();
            document["sweeps"] = serde_json::to_value(tables).map_err(Stop::failed)?;
        }
        let text = serde_json::to_string_pretty(&document).map_err(Stop::failed)?;
        print(&format!("{text}\n"))?;
    } else {
        if !summaries.is_empty() {
            say("");
            print(&run_table(summaries, terminal_width()))?;
        }
        for sweep in sweeps {
            say("");
            print(&table_text(&sweep.table, terminal_width()))?;
        }
    }
    Ok(())
}

fn sweep_options(arguments: &RunArguments) -> SweepOptions {
    SweepOptions { fresh: arguments.fresh, retry_failed: arguments.retry_failed }
}

/// What a sweep could not compute, a line each, and how to try again.
fn leftovers(sweep: &SweepExecution) -> Vec<String> {
    let mut lines = Vec::new();
    for failure in &sweep.failures {
        lines.push(format!("failed: {}, seed {} ({}): {}", failure.point, failure.seed, failure.run, failure.reason));
    }
    if !sweep.failures.is_empty() {
        lines.push(RETRY.into());
    }
    if sweep.elsewhere > 0 {
        lines.push(format!(
            "left to another process: {}; the same command tabulates them when they are done",
            sweep.elsewhere
        ));
    }
    lines
}

/// How the program ends when a run cannot go on.
pub(crate) fn stop_for(error: RunError) -> Stop {
    match error {
        RunError::Images(ImagesError::Unfit(errors)) => unusable(&[errors]),
        RunError::Images(ImagesError::Interrupted) => {
            say("interrupted; the same command goes on from here");
            Stop::Interrupted
        }
        RunError::Images(_)
        | RunError::Weights(_)
        | RunError::Directory(_)
        | RunError::OtherSources(_)
        | RunError::Record(RecordError::MixedImages { .. })
        | RunError::NeedsSurrogate { .. }
        | RunError::NeedsModel { .. } => Stop::unusable(error),
        _ => Stop::failed(error),
    }
}

/// How the program ends where experiment files have problems.
pub(crate) fn unusable(files: &[ConfigErrors]) -> Stop {
    Stop::Config {
        files: files.iter().map(ToString::to_string).collect(),
        problems: files.iter().map(|errors| errors.diagnostics.len()).sum(),
    }
}

/// Reads and checks experiment files; all problems of all files at once.
pub(crate) fn read_experiments(files: &[PathBuf], changes: &Changes) -> Result<Vec<Experiment>, Stop> {
    let options =
        PlanOptions { overrides: changes.overrides.clone(), seeds: changes.seeds.clone(), quick: changes.quick };
    let mut experiments = Vec::new();
    let mut problems: Vec<ConfigErrors> = Vec::new();
    for file in files {
        match Experiment::read(file, &options) {
            Ok(experiment) => experiments.push(experiment),
            Err(errors) => problems.push(errors),
        }
    }
    if problems.is_empty() { Ok(experiments) } else { Err(unusable(&problems)) }
}

/// Prints what would run; images that are there are read. For a single experiment the text is a configuration that can be run itself.
fn dry_run(
    arguments: &RunArguments,
    experiments: &[Experiment],
    backend: &Backend,
    roots: &[PathBuf],
) -> Result<(), Stop> {
    let out = &arguments.out;
    let mut plans = Vec::new();
    let mut sweeps = Vec::new();
    for experiment in experiments {
        match experiment {
            Experiment::Single(plan) => plans.push(plan),
            Experiment::Sweep(sweep) => {
                let forecast = Forecast::of(sweep, backend, out, roots, sweep_options(arguments));
                sweeps.push((sweep, forecast.map_err(|errors| unusable(&[errors]))?));
            }
        }
    }
    if arguments.json {
        let plans = plans.iter().map(|plan| {
            let name = plan.run_name(backend.name());
            let finished = RunDirectory::finished(out, &name).is_some();
            let memory = MemoryForecast::of(plan);
            serde_json::json!({ "run": name, "finished": finished, "memory": memory, "config": plan.config() })
        });
        let mut document = serde_json::json!({ "schema": SCHEMA, "plans": plans.collect::<Vec<_>>() });
        if !sweeps.is_empty() {
            let sweeps = sweeps.iter().map(|(sweep, forecast)| sweep_json(sweep, forecast, backend));
            document["sweeps"] = sweeps.collect::<Vec<_>>().into();
        }
        return print(&format!("{}\n", serde_json::to_string_pretty(&document).map_err(Stop::failed)?));
    }
    for plan in plans {
        let name = plan.run_name(backend.name());
        let folder = out.join(&name);
        for line in preview(plan, roots, backend, &folder).map_err(stop_for)? {
            print(&format!("# {line}\n"))?;
        }
        print(&format!("# {}\n", MemoryForecast::of(plan).line()))?;
        if RunDirectory::finished(out, &name).is_some() {
            print("#   finished earlier: running it shows its results\n")?;
        }
        print(&format!("\n{}\n", plan.to_toml()))?;
    }
    for (sweep, forecast) in sweeps {
        for line in forecast.describe(sweep, backend, out).into_iter().chain(forecast.points(sweep, backend)) {
            print(&format!("{line}\n"))?;
        }
        // Its points are computed one after another.
        let memory = sweep.points().iter().map(|point| MemoryForecast::of(point.plan()));
        if let Some(largest) = memory.max_by_key(|memory| memory.device) {
            print(&format!("{}\n", largest.line()))?;
        }
    }
    Ok(())
}

/// What a sweep would do, as a document.
fn sweep_json(sweep: &Sweep, forecast: &Forecast, backend: &Backend) -> serde_json::Value {
    let points = sweep.points().iter().map(|point| {
        let runs = sweep.seeds().iter().map(|&seed| {
            let name = point.plan().with_seed(seed).run_name(backend.name());
            let finished = forecast.runs().any(|(run, state)| run == name && state == UnitState::Finished);
            serde_json::json!({ "seed": seed, "run": name, "finished": finished })
        });
        let runs = runs.collect::<Vec<_>>();
        serde_json::json!({ "label": point.label(), "runs": runs, "config": point.plan().config() })
    });
    serde_json::json!({
        "sweep": sweep.name(),
        "to-compute": forecast.pending,
        "clean-twins-to-train": forecast.twins_to_train,
        "seconds": forecast.seconds,
        "points": points.collect::<Vec<_>>(),
    })
}

/// Bars where standard error can show them.
pub(crate) fn console() -> Console {
    if is_smart_terminal() { Console::with_bars() } else { Console::plain() }
}

/// The command line to repeat, as the user typed it or nearly so.
pub(crate) fn this_command() -> String {
    let quoted = |argument: String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@".contains(c);
        if argument.chars().all(plain) { argument } else { format!("'{}'", argument.replace('\'', r"'\''")) }
    };
    let arguments = std::env::args().skip(1).map(quoted);
    std::iter::once("cargo xtask".to_owned()).chain(arguments).collect::<Vec<_>>().join(" ")
}
