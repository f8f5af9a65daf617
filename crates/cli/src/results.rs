use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use patchdoor_record::write_whole;
use patchdoor_report::{Collected, collect_results, render_results};

use crate::output::{Stop, print, say};

/// What is collected and written.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 done, 1 RESULTS.md is not up to date (--check), 2 the claims do not fit the results.\n\n\
                  Examples:\n  cargo xtask results --collect runs\n  cargo xtask results --check"
)]
pub struct ResultsArguments {
    /// First copy the tables of finished sweeps and runs from here to the results
    #[arg(long, value_name = "RUNS")]
    pub collect: Option<PathBuf>,

    /// Replace results that have more seeds than those collected
    #[arg(long, requires = "collect")]
    pub force: bool,

    /// Write nothing; fail if RESULTS.md is not what would be written
    #[arg(long, conflicts_with = "collect")]
    pub check: bool,

    /// The claims and their verdicts
    #[arg(long, value_name = "FILE", default_value = "experiments/claims.toml")]
    pub claims: PathBuf,

    /// Results to be committed
    #[arg(long, value_name = "DIR", default_value = "experiments/results")]
    pub results: PathBuf,

    /// What is written
    #[arg(long, value_name = "FILE", default_value = "RESULTS.md")]
    pub page: PathBuf,
}

/// Collects results if asked to, then writes the page about them, or checks that it is written.
///
/// # Errors
/// If the claims do not fit the results, a file cannot be read or written, or the page is not up to date.
pub fn results(arguments: &ResultsArguments) -> Result<(), Stop> {
    if let Some(runs) = &arguments.collect {
        for collected in collect_results(runs, &arguments.results, arguments.force).map_err(Stop::unusable)? {
            match collected {
                Collected::Written { path, seeds } => print(&format!("{}: {seeds} seeds\n", path.display()))?,
                Collected::Skipped { result, reason } => say(&format!("not taken: {result}: {reason}")),
            }
        }
    }
    let text = render_results(&arguments.claims, &arguments.results).map_err(Stop::unusable)?;
    if std::fs::read_to_string(&arguments.page).is_ok_and(|page| page == text) {
        return print(&format!("{} is up to date\n", arguments.page.display()));
    }
    if arguments.check {
        let page = arguments.page.display();
        return Err(Stop::failed(anyhow!("{page} is not up to date; cargo xtask results writes it")));
    }
    write_whole(&arguments.page, text.as_bytes()).map_err(Stop::failed)?;
    print(&format!("{} written\n", arguments.page.display()))
}
