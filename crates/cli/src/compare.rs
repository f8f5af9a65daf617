use std::path::PathBuf;

use clap::Args;
use patchdoor_report::Comparison;

use crate::output::{Stop, print, terminal_width};

/// What is compared.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cargo xtask compare runs/badnets-0e18207e runs/blended-5f3c1a90\n  \
                  cargo xtask compare runs/badnets-0e18207e runs/blended-5f3c1a90 --json")]
pub struct CompareArguments {
    /// Folders of finished runs, at least two; all are compared with the first
    #[arg(value_name = "RUN", required = true, num_args = 2..)]
    pub folders: Vec<PathBuf>,

    /// Print one JSON document instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Shows how runs differ: in their configurations, and in their numbers, seed by seed.
///
/// # Errors
/// If a folder has no finished run, or its records are not as they were written.
pub fn compare(arguments: &CompareArguments) -> Result<(), Stop> {
    for folder in &arguments.folders {
        if !folder.join("summary.json").is_file() {
            let folder = folder.display();
            return Err(Stop::unusable(anyhow::anyhow!("{folder} has no summary.json: no finished run")));
        }
    }
    let comparison = Comparison::of(&arguments.folders).map_err(Stop::unusable)?;
    if arguments.json {
        let text = serde_json::to_string_pretty(&comparison).map_err(Stop::failed)?;
        return print(&format!("{text}\n"));
    }
    print(&comparison.text(terminal_width()))
}
