use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use patchdoor_record::write_whole;
use patchdoor_report::{Collected, collect_results, render_results};

use crate::output::{Stop, print, say};

/// What is collected and written.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 done, 1 RESULTS.md or a picture of it is not up to date (--check), 2 the claims do not fit the results.\n\n\
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

    /// Where its pictures are written
    #[arg(long, value_name = "DIR", default_value = "experiments/figures")]
    pub figures: PathBuf,
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
    let rendered = render_results(&arguments.claims, &arguments.results, &arguments.figures).map_err(Stop::unusable)?;
    let pictures = rendered.pictures.iter().map(|(name, picture)| (arguments.figures.join(name), picture));
    let files = pictures.chain([(arguments.page.clone(), &rendered.page)]);
    for (path, text) in files {
        if std::fs::read_to_string(&path).is_ok_and(|written| written == *text) {
            print(&format!("{} is up to date\n", path.display()))?;
            continue;
        }
        if arguments.check {
            let path = path.display();
            return Err(Stop::failed(anyhow!("{path} is not up to date; cargo xtask results writes it")));
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Stop::failed)?;
        }
        write_whole(&path, text.as_bytes()).map_err(Stop::failed)?;
        print(&format!("{} written\n", path.display()))?;
    }
    Ok(())
}
