use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use patchdoor_record::{Content, Listed, MetricInfo, ResultTable, RunState, RunSummary};

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
    #[arg(long, value_name = "STATE", value_parser = state_parser())]
    pub state: Option<RunState>,
}

/// Reads a state by its name.
fn state_parser() -> impl TypedValueParser<Value = RunState> {
    let values = RunState::ALL.map(|state| PossibleValue::new(state.name()).help(state.meaning()));
    PossibleValuesParser::new(values).map(|name| {
        let state = RunState::ALL.into_iter().find(|state| state.name() == name);
        state.expect("only names of states are possible")
    })
}

impl ListArguments {
    /// Whether a run is asked for.
    fn wants(&self, run: &Listed) -> bool {
        let is_of = |name: &String| datasets(run).iter().any(|dataset| dataset.eq_ignore_ascii_case(name));
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
    let runs = Listed::below(&arguments.out).into_iter().filter(|run| arguments.wants(run));
    let runs = runs.map(|run| (run.path.clone(), what(&run)));
    let lines = experiments.chain(runs).collect::<Vec<_>>();
    let shown = |path: &Path| path.display().to_string();
    let width = lines.iter().map(|(path, _)| shown(path).chars().count()).max().unwrap_or(0);
    for (path, what) in &lines {
        print(format!("{:width$}  {what}", shown(path)).trim_end())?;
        print("\n")?;
    }
    Ok(())
}

/// What a run or a sweep came to, in a line.
fn what(listed: &Listed) -> String {
    match &listed.content {
        Content::Run(run) => outcome(run),
        Content::Sweep(table) => progress(table),
        Content::Nothing(reason) => reason.clone(),
    }
}

/// The data sets that it is known to be on.
fn datasets(listed: &Listed) -> &[String] {
    match &listed.content {
        Content::Run(run) => std::slice::from_ref(&run.images.dataset),
        Content::Sweep(table) => &table.datasets,
        Content::Nothing(_) => &[],
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
    use patchdoor_record::ImagesUsed;

    #[test]
    fn an_experiment_is_listed_with_its_first_line() {
        let text = "# BadNets (Gu et al. 2017): a white square.\n# More.\n\ndataset = \"cifar10\"\n";
        assert_eq!(first_comment(text), "BadNets (Gu et al. 2017): a white square.");
        assert_eq!(first_comment("dataset = 1\n"), "");
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
            let picked = Listed::below(folder.path()).into_iter().filter(|run| arguments.wants(run));
            picked.map(|run| run.name()).collect::<Vec<_>>()
        };
        assert_eq!(picked(None, None, None), ["badnets-1.partial", "warp-2"]);
        assert_eq!(picked(Some("warp"), None, None), ["warp-2"]);
        assert_eq!(picked(None, None, Some(RunState::Unfinished)), ["badnets-1.partial"]);
        assert_eq!(picked(None, None, Some(RunState::Damaged)), ["warp-2"]);
        assert!(picked(None, Some("cifar10"), None).is_empty(), "of neither is it known");
        let images = ImagesUsed { dataset: "cifar10".into(), substitution: None };
        let summary = RunSummary { images, ..RunSummary::default() };
        let run = Listed { path: "a".into(), state: RunState::Finished, content: Content::Run(Box::new(summary)) };
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
