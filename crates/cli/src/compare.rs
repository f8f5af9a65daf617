use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use patchdoor_record::{Content, Listed};
use patchdoor_report::{Comparison, SweepComparison};

use crate::output::{Stop, print, terminal_width};

/// What is compared.
#[derive(Debug, Args)]
#[command(after_help = "Points of sweeps are compared where they have the same labels on axes of the same names.\n\n\
                  Examples:\n  cargo xtask compare runs/badnets-0e18207e runs/blended-5f3c1a90\n  \
                  cargo xtask compare runs/rates-ac261b75.sweep runs/rates-77f0c2d1.sweep --json")]
pub struct CompareArguments {
    /// Folders of finished runs, or of sweeps, at least two; all are compared with the first
    #[arg(value_name = "FOLDER", required = true, num_args = 2..)]
    pub folders: Vec<PathBuf>,

    /// Print one JSON document instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Shows how runs or sweeps differ: in their configurations, and in their numbers, seed by seed.
///
/// # Errors
/// If a folder has no results, records are not as they were written, or runs shall be compared with sweeps.
pub fn compare(arguments: &CompareArguments) -> Result<(), Stop> {
    let mut sweeps = Vec::new();
    for folder in &arguments.folders {
        match Listed::of(folder.clone()).map(|listed| listed.content) {
            Some(Content::Run(_)) => {}
            Some(Content::Sweep(table)) => sweeps.push((folder.clone(), *table)),
            Some(Content::Nothing(reason)) => {
                return Err(Stop::unusable(anyhow!("{}: {reason}", folder.display())));
            }
            None => return Err(Stop::unusable(anyhow!("{} is no run or sweep", folder.display()))),
        }
    }
    if !sweeps.is_empty() && sweeps.len() < arguments.folders.len() {
        return Err(Stop::unusable(anyhow!("a run cannot be compared with a sweep; give runs alone, or sweeps alone")));
    }
    let width = terminal_width();
    let (json, text) = if sweeps.is_empty() {
        let comparison = Comparison::of(&arguments.folders).map_err(Stop::unusable)?;
        (serde_json::to_string_pretty(&comparison), comparison.text(width))
    } else {
        let comparison = SweepComparison::of(sweeps).map_err(Stop::unusable)?;
        (serde_json::to_string_pretty(&comparison), comparison.text(width))
    };
    if arguments.json { print(&format!("{}\n", json.map_err(Stop::failed)?)) } else { print(&text) }
}
