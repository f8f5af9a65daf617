use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use patchdoor_experiment::{
    Backend, ConfigErrors, Console, Execution, ImagesError, Plan, PlanOptions, RunDirectory, RunError, RunSettings,
    RunSummary, SCHEMA, describe, execute, run_name, table,
};

use crate::arguments::{Changes, RunArguments};
use crate::output::{Stop, data_roots, print, say};

/// Runs every file, after all of them were checked.
pub(crate) fn run(arguments: &RunArguments) -> Result<(), Stop> {
    let plans = read_plans(&arguments.files, &arguments.changes)?;
    let backend = arguments.backend.resolve().map_err(Stop::unusable)?;
    if arguments.dry_run {
        return dry_run(arguments, &plans, &backend);
    }
    let stop = stop_on_interrupt()?;
    let roots = data_roots(arguments.images.data.as_ref());
    let settings = RunSettings {
        out: &arguments.out,
        roots: &roots,
        offline: arguments.images.offline,
        fresh: arguments.fresh,
        stop: &stop,
        console: Console::new(),
    };
    let mut summaries = Vec::new();
    let mut folders = Vec::new();
    let mut failure = None;
    for plan in &plans {
        match execute(plan, &backend, &settings) {
            Ok(Execution::Done { summary, folder }) => {
                folders.push(folder);
                summaries.push(*summary);
            }
            Ok(Execution::Interrupted { folder }) => {
                say(&format!("\ninterrupted; what is done is saved in {}", folder.display()));
                say(&format!("the same command goes on from there:\n  {}", this_command()));
                failure = Some(Stop::Interrupted);
                break;
            }
            Err(error) => {
                failure = Some(stop_for(error));
                break;
            }
        }
    }
    if arguments.json {
        let document = serde_json::json!({ "schema": SCHEMA, "runs": summaries });
        let text = serde_json::to_string_pretty(&document).map_err(Stop::failed)?;
        print(&format!("{text}\n"))?;
    } else if !summaries.is_empty() {
        say("");
        print(&table(&summaries))?;
    }
    for folder in folders {
        say(&format!("results: {}", folder.display()));
    }
    match failure {
        Some(stop) => Err(stop),
        None if summaries.iter().all(RunSummary::is_complete) => Ok(()),
        None => Err(Stop::FailedQuietly),
    }
}

/// How the program ends when a run cannot go on.
pub(crate) fn stop_for(error: RunError) -> Stop {
    match error {
        RunError::Images(ImagesError::Unfit(errors)) => Stop::Config(vec![errors]),
        RunError::Images(ImagesError::Interrupted) => {
            say("interrupted; the same command goes on from here");
            Stop::Interrupted
        }
        RunError::Images(_)
        | RunError::Directory(_)
        | RunError::OtherImages { .. }
        | RunError::NeedsSurrogate { .. } => Stop::unusable(error),
        _ => Stop::failed(error),
    }
}

/// Reads and checks experiment files; all problems of all files at once.
pub(crate) fn read_plans(files: &[PathBuf], changes: &Changes) -> Result<Vec<Plan>, Stop> {
    let options =
        PlanOptions { overrides: changes.overrides.clone(), seeds: changes.seeds.clone(), quick: changes.quick };
    let mut plans = Vec::new();
    let mut problems: Vec<ConfigErrors> = Vec::new();
    for file in files {
        match Plan::read(file, &options) {
            Ok(plan) => plans.push(plan),
            Err(errors) => problems.push(errors),
        }
    }
    if problems.is_empty() { Ok(plans) } else { Err(Stop::Config(problems)) }
}

/// Prints what would run. The text is a configuration that can be run itself.
fn dry_run(arguments: &RunArguments, plans: &[Plan], backend: &Backend) -> Result<(), Stop> {
    if arguments.json {
        let plans = plans.iter().map(|plan| {
            let name = run_name(plan, backend);
            let finished = RunDirectory::finished(&arguments.out, &name).is_some();
            serde_json::json!({ "run": name, "finished": finished, "config": plan.config() })
        });
        let document = serde_json::json!({ "schema": SCHEMA, "plans": plans.collect::<Vec<_>>() });
        return print(&format!("{}\n", serde_json::to_string_pretty(&document).map_err(Stop::failed)?));
    }
    for plan in plans {
        let name = run_name(plan, backend);
        let folder = arguments.out.join(&name);
        for line in describe(plan, None, backend, &folder) {
            print(&format!("# {line}\n"))?;
        }
        if RunDirectory::finished(&arguments.out, &name).is_some() {
            print("#   finished earlier: running it shows its results\n")?;
        }
        print(&format!("\n{}\n", plan.to_toml()))?;
    }
    Ok(())
}

/// The first Ctrl-C ends the epoch, the second the program.
pub(crate) fn stop_on_interrupt() -> Result<Arc<AtomicBool>, Stop> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let handler = move || {
        if flag.swap(true, Ordering::Relaxed) {
            say("\ninterrupted again: the unfinished epoch is lost, earlier ones are saved");
            std::process::exit(130);
        }
        say("\ninterrupted: ending this epoch and saving it (once more to stop at once)");
    };
    ctrlc::set_handler(handler).map_err(Stop::failed)?;
    Ok(stop)
}

/// The command line to repeat, as the user typed it or nearly so.
fn this_command() -> String {
    let quoted = |argument: String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@".contains(c);
        if argument.chars().all(plain) { argument } else { format!("'{}'", argument.replace('\'', r"'\''")) }
    };
    let arguments = std::env::args().skip(1).map(quoted);
    std::iter::once("cargo xtask".to_owned()).chain(arguments).collect::<Vec<_>>().join(" ")
}
