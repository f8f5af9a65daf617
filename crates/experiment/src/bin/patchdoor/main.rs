//! Runs experiments and shows their results.
//!
//! Results go to standard output, everything else to standard error. Exit codes: 0, done; 1, a run
//! failed; 2, an unusable command line, configuration, machine or folder; 130, interrupted.

mod arguments;
mod check;
mod data;
mod list;
mod output;
mod results;
mod run;
mod triggers;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::arguments::{Arguments, Command};
use crate::output::Stop;

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
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();

    let outcome = match &arguments.command {
        Command::Run(run) => run::run(run),
        Command::Check(check) => check::check(check),
        Command::List(list) => list::list(list),
        Command::Data(data) => data::data(data),
        Command::Results(results) => results::results(results),
        Command::Triggers(triggers) => triggers::triggers(triggers),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(stop) => {
            output::complain(&stop);
            ExitCode::from(Stop::code(&stop))
        }
    }
}
