use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use patchdoor_record::{MetricInfo, PointResult, RecordError, ResultTable, RunSummary, read_summary};

use crate::experiments::all_experiments;
use crate::output::{Stop, print};

/// What is listed.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cargo xtask list --name paper\n  cargo xtask list --runs --dataset gtsrb --state failed"
)]
pub struct ListArguments {
    /// Where results are
    #[arg(long, value_name = "DIR", default_value = "runs")]
    pub out: PathBuf,

    /// Runs and sweeps alone, not the experiments that there are
    #[arg(long)]
    pub runs: bool,

    /// Only what has this in its name
    #[arg(long, value_name = "TEXT")]
    pub name: Option<String>,

    /// Only runs and sweeps on this data set
    #[arg(long, value_name = "NAME")]
    pub dataset: Option<String>,

    /// Only runs and sweeps in this state
    #[arg(long, value_enum)]
    pub state: Option<RunState>,
}

/// What became of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RunState {
    /// Everything was computed
    Finished,
    /// Some of it is missing: it was interrupted, or goes on
    Unfinished,
    /// A seed or a defense failed
    Failed,
    /// It cannot be read
    Damaged,
}

impl ListArguments {
    /// Whether a run is asked for.
    fn wants(&self, run: &Listed) -> bool {
        let is_of = |name: &String| run.datasets.iter().any(|dataset| dataset.eq_ignore_ascii_case(name));
        self.wants_name(&run.path)
            && self.dataset.as_ref().is_none_or(is_of)
            && self.state.is_none_or(|state| state == run.state)
    }

    fn wants_name(&self, path: &Path) -> bool {
        self.name.as_ref().is_none_or(|name| path.to_string_lossy().contains(name.as_str()))
    }

    /// Whether experiments, which were not run, can be what is asked for.
    fn wants_experiments(&self) -> bool {
        !self.runs && self.dataset.is_none() && self.state.is_none()
    }
}

/// A run or a sweep.
#[derive(Debug)]
struct Listed {
    path: PathBuf,
    state: RunState,
    datasets: Vec<String>,
    /// What it came to.
    what: String,
}

/// Lists the experiments there are, with the first line of each, and the runs of them, with their main numbers.
///
/// # Errors
/// If there is no folder of experiments, or nobody reads the list.
pub fn list(arguments: &ListArguments) -> Result<(), Stop> {
    let experiments = if arguments.wants_experiments() { all_experiments()? } else { Vec::new() };
    let experiments = experiments.into_iter().filter(|file| arguments.wants_name(file)).map(|file| {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let what = first_comment(&text).to_owned();
        (file, what)
    });
    let runs = runs(&arguments.out).into_iter().filter(|run| arguments.wants(run)).map(|run| (run.path, run.what));
    let lines = experiments.chain(runs).collect::<Vec<_>>();
    let shown = |path: &Path| path.display().to_string();
    let width = lines.iter().map(|(path, _)| shown(path).chars().count()).max().unwrap_or(0);
    for (path, what) in &lines {
        print(format!("{:width$}  {what}", shown(path)).trim_end())?;
        print("\n")?;
    }
    Ok(())
}

/// The runs below a folder, sorted, and what they came to.
fn runs(out: &Path) -> Vec<Listed> {
    let entries = fs::read_dir(out).into_iter().flatten().flatten();
    let mut runs = entries.filter_map(|entry| listed(entry.path())).collect::<Vec<_>>();
    runs.sort_by(|a, b| a.path.cmp(&b.path));
    runs
}

/// What a folder is, if it is a run or a sweep.
fn listed(path: PathBuf) -> Option<Listed> {
    let ends_in = |ending: &str| path.extension().is_some_and(|extension| extension == ending);
    let unreadable = |what: String| (RunState::Damaged, Vec::new(), what);
    let (state, datasets, what) = if ends_in("partial") {
        (RunState::Unfinished, Vec::new(), "unfinished; the command that began it goes on from there".to_owned())
    } else if path.join("summary.json").is_file() {
        match read_summary(&path) {
            Ok(run) => {
                let state = if run.is_complete() { RunState::Finished } else { RunState::Failed };
                (state, vec![run.images.dataset.clone()], outcome(&run))
            }
            Err(error) => unreadable(problem(&error)),
        }
    } else if let Some(table) = ResultTable::read(&path).transpose() {
        match table {
            Ok(table) => (state_of(&table), table.datasets.clone(), progress(&table)),
            Err(error) => unreadable(problem(&error)),
        }
    } else if path.join("environment.json").exists() {
        let what = "damaged: it has no summary.json; remove it, or run the experiment again, which moves it aside";
        unreadable(what.to_owned())
    } else if ends_in("sweep") {
        unreadable("damaged: it has no table.json; the command of the sweep writes it anew from its runs".to_owned())
    } else {
        return None;
    };
    Some(Listed { path, state, datasets, what })
}

/// What became of a sweep.
fn state_of(table: &ResultTable) -> RunState {
    let has_failed = |point: &PointResult| !point.failed.is_empty() || !point.failed_defenses.is_empty();
    if table.points.iter().any(has_failed) {
        RunState::Failed
    } else if table.finished() < table.points.len() * table.seeds.len() {
        RunState::Unfinished
    } else {
        RunState::Finished
    }
}

/// Why nothing can be said of a run.
fn problem(error: &RecordError) -> String {
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

    #[test]
    fn runs_are_picked_by_name_data_set_and_state() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["badnets-1.partial", "warp-2", "notes"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("warp-2/environment.json"), "{}").unwrap();
        let picked = |name: Option<&str>, dataset: Option<&str>, state: Option<RunState>| {
            let arguments = ListArguments {
                out: folder.path().to_owned(),
                runs: true,
                name: name.map(str::to_owned),
                dataset: dataset.map(str::to_owned),
                state,
            };
            let picked = runs(folder.path()).into_iter().filter(|run| arguments.wants(run));
            picked.map(|run| run.path.file_name().unwrap().to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(picked(None, None, None), ["badnets-1.partial", "warp-2"]);
        assert_eq!(picked(Some("warp"), None, None), ["warp-2"]);
        assert_eq!(picked(None, None, Some(RunState::Unfinished)), ["badnets-1.partial"]);
        assert_eq!(picked(None, None, Some(RunState::Damaged)), ["warp-2"]);
        assert!(picked(None, Some("cifar10"), None).is_empty(), "of neither is it known");
        let run = Listed {
            path: "a".into(),
            state: RunState::Finished,
            datasets: vec!["cifar10".into()],
            what: String::new(),
        };
        let of = |dataset: &str| ListArguments {
            out: "runs".into(),
            runs: false,
            name: None,
            dataset: Some(dataset.into()),
            state: None,
        };
        assert!(of("CIFAR10").wants(&run) && !of("gtsrb").wants(&run) && !of("gtsrb").wants_experiments());
    }
}
