use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use patchdoor_record::{MetricInfo, RecordError, ResultTable, RunSummary, read_summary};

use crate::experiments::all_experiments;
use crate::output::{Stop, print};

/// What is listed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cargo xtask list\n  cargo xtask list | grep paper")]
pub struct ListArguments {
    /// Where results are
    #[arg(long, value_name = "DIR", default_value = "runs")]
    pub out: PathBuf,
}

/// Lists the experiments there are, with the first line of each, and the runs of them, with their main numbers.
///
/// # Errors
/// If there is no folder of experiments, or nobody reads the list.
pub fn list(arguments: &ListArguments) -> Result<(), Stop> {
    let experiments = all_experiments()?.into_iter().map(|file| {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let what = first_comment(&text).to_owned();
        (file, what)
    });
    let lines = experiments.chain(runs(&arguments.out)).collect::<Vec<_>>();
    let shown = |path: &Path| path.display().to_string();
    let width = lines.iter().map(|(path, _)| shown(path).chars().count()).max().unwrap_or(0);
    for (path, what) in &lines {
        print(format!("{:width$}  {what}", shown(path)).trim_end())?;
        print("\n")?;
    }
    Ok(())
}

/// The runs below a folder, sorted, and what they came to.
fn runs(out: &Path) -> Vec<(PathBuf, String)> {
    let mut runs = Vec::new();
    for entry in fs::read_dir(out).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "partial") {
            runs.push((path, "unfinished; the command that began it goes on from there".to_owned()));
        } else if path.join("summary.json").is_file() {
            runs.push((path.clone(), read_summary(&path).map_or_else(problem, |summary| outcome(&summary))));
        } else if let Some(table) = ResultTable::read(&path).transpose() {
            runs.push((path, table.map_or_else(problem, |table| progress(&table))));
        } else if path.join("environment.json").exists() {
            let what = "damaged: it has no summary.json; remove it, or run the experiment again, which moves it aside";
            runs.push((path, what.to_owned()));
        } else if path.extension().is_some_and(|extension| extension == "sweep") {
            let what = "damaged: it has no table.json; the command of the sweep writes it anew from its runs";
            runs.push((path, what.to_owned()));
        }
    }
    runs.sort();
    runs
}

/// Why nothing can be said of a run.
#[allow(clippy::needless_pass_by_value, reason = "map_or_else hands errors over by value")]
fn problem(error: RecordError) -> String {
    match error {
        RecordError::OtherSchema { .. } => format!("of another version: {error}"),
        error => format!("damaged: {error}"),
    }
}

/// How far a sweep is.
fn progress(table: &ResultTable) -> String {
    let quick = if table.quick { ", quick: its numbers mean nothing" } else { "" };
    let failed = table.points.iter().map(|point| point.failed.len()).sum::<usize>();
    let mut failed = if failed > 0 { format!(", {failed} failed") } else { String::new() };
    let defenses =
        table.points.iter().flat_map(|point| point.failed_defenses.values()).map(BTreeMap::len).sum::<usize>();
    if defenses > 0 {
        let _ = write!(failed, ", {defenses} {} failed", if defenses == 1 { "defense" } else { "defenses" });
    }
    format!(
        "{}, {}{quick}, sweep of {} points: {} of {} runs finished{failed}",
        table.datasets.join(" and "),
        table.backend,
        table.points.len(),
        table.finished(),
        table.points.len() * table.seeds.len(),
    )
}

fn outcome(run: &RunSummary) -> String {
    let quick = if run.quick { ", quick: its numbers mean nothing" } else { "" };
    let mut text = format!("{}, {}{quick}", run.images.dataset, run.backend);
    for name in ["clean-accuracy", "clean-accuracy-drop", "asr", "robust-accuracy"] {
        if let (Some(summary), Some(metric)) = (run.metrics.get(name), MetricInfo::of(name)) {
            let _ = write!(text, ", {} {}{}", metric.heading, metric.unit.text(summary.mean), metric.unit.suffix());
        }
    }
    for failure in run.failures() {
        let _ = write!(text, "; {failure}");
    }
    if !run.is_complete() {
        text.push_str(" (--retry-failed computes that anew)");
    }
    text
}

/// The first line of a file's opening comment.
fn first_comment(text: &str) -> &str {
    text.lines().next().and_then(|line| line.strip_prefix('#')).map_or("", str::trim)
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

    #[test]
    fn a_folder_without_runs_lists_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(runs(&folder.path().join("none")).is_empty());
        fs::create_dir(folder.path().join("badnets-12345678.partial")).unwrap();
        assert_eq!(runs(folder.path()).len(), 1);
    }
}
