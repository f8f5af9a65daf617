use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};

use crate::output::Stop;

/// Every experiment file, sorted: in `experiments/` here, or else of the source this program was built from.
///
/// # Errors
/// If there is no such folder or it cannot be listed.
pub fn all_experiments() -> Result<Vec<PathBuf>, Stop> {
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
