use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use patchdoor_experiment::Experiment;

use crate::arguments::CheckArguments;
use crate::output::{Stop, print};
use crate::run::read_experiments;

/// Checks experiment files without running them.
pub(crate) fn check(arguments: &CheckArguments) -> Result<(), Stop> {
    let files = if arguments.files.is_empty() { all_experiments()? } else { arguments.files.clone() };
    for experiment in read_experiments(&files, &arguments.changes)? {
        let points = match &experiment {
            Experiment::Single(_) => String::new(),
            Experiment::Sweep(sweep) => format!(": {} points of {}", sweep.points().len(), sweep.shape()),
        };
        print(&format!("ok {}{points}\n", experiment.path().display()))?;
    }
    Ok(())
}

/// Every experiment file, sorted: in `experiments/` here, or else of the source this program was built from.
pub(crate) fn all_experiments() -> Result<Vec<PathBuf>, Stop> {
    let here = PathBuf::from("experiments");
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new("."));
    let source = workspace.join("experiments");
    let folder = [here, source].into_iter().find(|folder| folder.is_dir());
    let folder = folder.ok_or_else(|| Stop::unusable(anyhow!("there is no folder experiments/ here")))?;
    let mut files = Vec::new();
    collect(&folder, &mut files)
        .with_context(|| format!("cannot list {}", folder.display()))
        .map_err(Stop::unusable)?;
    files.sort();
    Ok(files)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "toml") && !path.ends_with("claims.toml") {
            files.push(path);
        }
    }
    Ok(())
}
