use std::path::PathBuf;

use clap::Args;
use clap::builder::RangedU64ValueParser;
use patchdoor_report::{NetworkSeparation, NetworksError};

use crate::output::{Stop, print, terminal_width};

/// Which networks are told apart.
#[derive(Debug, Args)]
#[command(
    after_help = "The victims and clean twins of the runs are the networks; a run without poisoned images has clean ones. At least \
                  three attacks are needed, and all must have been looked at with a [routing] table (docs/routing.md).\n\n\
                  Examples:\n  cargo xtask networks runs/mediation-* runs/clean-networks-*\n  \
                  cargo xtask networks runs/mediation-* runs/clean-networks-* --json"
)]
pub struct NetworksArguments {
    /// Folders of finished runs that differ in attack and seeds alone
    #[arg(value_name = "RUN", required = true)]
    pub runs: Vec<PathBuf>,

    /// Parts into which the seeds are divided; each is held out once
    #[arg(long, value_name = "NUMBER", default_value_t = 5, value_parser = RangedU64ValueParser::<usize>::new().range(3..=20))]
    pub folds: usize,

    /// Print one JSON document instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Shows how well backdoored networks are told from clean ones by what their routers select in untouched images.
///
/// # Errors
/// If a folder has no results, records are not as they were written, or the networks cannot be compared or are too few.
pub fn networks(arguments: &NetworksArguments) -> Result<(), Stop> {
    // A pattern such as runs/rates-* also finds the folders of sweeps and of what is unfinished, which hold no network of their own.
    let runs = arguments.runs.iter().filter(|run| run.extension().is_none_or(|end| end != "sweep" && end != "partial"));
    let separation = NetworkSeparation::of(&runs.cloned().collect::<Vec<_>>(), arguments.folds);
    let separation = separation.map_err(|error: NetworksError| Stop::unusable(error))?;
    if arguments.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&separation).map_err(Stop::failed)?))
    } else {
        print(&separation.text(terminal_width()))
    }
}
