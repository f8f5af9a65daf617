//! Runs experiments and shows their results.
//!
//! Results go to standard output, everything else to standard error. Exit codes: 0, done; 1, a run
//! failed; 2, an unusable command line, configuration, machine or folder; 130, interrupted.

mod arguments;
mod build_facts;
mod check;
mod data;
mod defend;
mod doctor;
mod manual;
mod pages;
mod roots;
mod run;
mod signals;
mod study;
mod tie;
mod triggers;

use std::process::ExitCode;

use clap::Parser;
use patchdoor_cli::{clean, compare, exit_code, has_colours, list, networks, report, results};
use tracing_subscriber::EnvFilter;

use crate::arguments::{Arguments, Command};

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Asking for help is no mistake, and nobody needs to read it to its end.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let level = ["warn", "warn,patchdoor=info", "warn,patchdoor=debug", "warn,patchdoor=trace"];
    let level = level[usize::from(arguments.verbose).min(level.len() - 1)];
    let filter = EnvFilter::try_from_env("PATCHDOOR_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(has_colours())
        .init();

    tie::set(arguments.tied);
    exit_code(match &arguments.command {
        Command::Run(arguments) => run::run(arguments),
        Command::Check(arguments) => check::check(arguments),
        Command::Defend(arguments) => defend::defend(arguments),
        Command::Detect(arguments) => defend::detect(arguments),
        Command::Inspect(arguments) => defend::inspect(arguments),
        Command::List(arguments) => list(arguments),
        Command::Data(arguments) => data::data(arguments),
        Command::Clean(arguments) => clean(arguments),
        Command::Compare(arguments) => compare(arguments),
        Command::Networks(arguments) => networks(arguments),
        Command::Report(arguments) => report(arguments),
        Command::Results(arguments) => results(arguments),
        Command::Triggers(arguments) => triggers::triggers(arguments),
        Command::Doctor(arguments) => doctor::doctor(arguments),
        Command::Study(arguments) => study::study(arguments),
        Command::Completions { shell } => manual::completions(*shell),
        Command::Manual => manual::manual(),
    })
}
