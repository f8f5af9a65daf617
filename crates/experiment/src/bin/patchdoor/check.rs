use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};

use crate::arguments::CheckArguments;
use crate::output::{Stop, print};
use crate::run::read_plans;

/// Checks experiment files without running them.
pub(crate) fn check(arguments: &CheckArguments) -> Result<(), Stop> {
    let files = if arguments.files.is_empty() { all_experiments()? } else { arguments.files.clone() };
    let plans = read_plans(&files, &arguments.changes)?;
    for plan in plans {
        print(&format!("ok {}\n", plan.path().display()))?;
    }
    Ok(())
}

/// Lists the experiments there are, with the first line of each.
pub(crate) fn list() -> Result<(), Stop> {
    let files = all_experiments()?;
    let width = files.iter().map(|file| file.display().to_string().chars().count()).max().unwrap_or(0);
    for file in files {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let path = file.display().to_string();
        print(&format!("{path:width$}  {}\n", first_comment(&text)))?;
    }
    Ok(())
}

/// The first line of a file's opening comment.
fn first_comment(text: &str) -> &str {
    text.lines().next().and_then(|line| line.strip_prefix('#')).map_or("", str::trim)
}

/// Every experiment file, sorted: in `experiments/` here, or else of the source this program was built from.
fn all_experiments() -> Result<Vec<PathBuf>, Stop> {
    let here = PathBuf::from("experiments");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments");
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
        } else if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_experiment_is_listed_with_its_first_line() {
        let text = "# BadNets (Gu et al. 2017): a white square.\n# More.\n\ndataset = \"cifar10\"\n";
        assert_eq!(first_comment(text), "BadNets (Gu et al. 2017): a white square.");
        assert_eq!(first_comment("dataset = 1\n"), "");
    }
}
