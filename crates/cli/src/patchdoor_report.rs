//! Looks at what runs left: tables, figures, RESULTS.md. Needs no tensor library.
//!
//! Exit codes: 0, done; 1, a page is not up to date or cannot be written; 2, unusable arguments, claims or results.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use patchdoor_cli::{
    CleanArguments, CompareArguments, ListArguments, NetworksArguments, ReportArguments, ResultsArguments, clean,
    compare, exit_code, list, networks, report, results,
};

/// Looks at what runs of experiments left.
#[derive(Debug, Parser)]
#[command(name = "patchdoor-report", bin_name = "cargo xtask", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Remove what no result needs: unfinished runs, what was moved aside, twins that no run refers to
    Clean(CleanArguments),
    /// Show how runs or sweeps differ: configurations, and numbers seed by seed
    Compare(CompareArguments),
    /// List the experiments there are and the runs of them
    List(ListArguments),
    /// Tell backdoored networks from clean ones by what their routers select in untouched images
    Networks(NetworksArguments),
    /// Show the tables of finished runs and sweeps, and draw their figures and pages
    Report(ReportArguments),
    /// Collect results to be committed, and write RESULTS.md from them
    Results(ResultsArguments),
}

fn main() -> ExitCode {
    exit_code(match Arguments::parse().command {
        Command::Clean(arguments) => clean(&arguments),
        Command::Compare(arguments) => compare(&arguments),
        Command::List(arguments) => list(&arguments),
        Command::Networks(arguments) => networks(&arguments),
        Command::Report(arguments) => report(&arguments),
        Command::Results(arguments) => results(&arguments),
    })
}
