use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use patchdoor_metrics::{PairedDifferences, Summary};
use patchdoor_record::{
    Environment, MetricInfo, MetricResult, PointResult, RecordError, RunSummary, Unit, commit_in_words, group_of,
    read_sealed_json, read_summary, run_builds,
};
use serde::Serialize;

use crate::config::flat_config;
use crate::text::{Row, align, fold};

/// Version of the layout of a comparison as JSON.
const COMPARE_SCHEMA: u32 = 1;

/// How several runs differ: in their configurations, and in their numbers, seed by seed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Comparison {
    /// Layout of this document.
    pub schema: u32,
    /// The runs; all others are compared with the first.
    pub runs: Vec<ComparedRun>,
    /// What makes these runs hard to compare.
    pub warnings: Vec<String>,
    /// Keys of the configurations that are not the same in all runs.
    pub config: Vec<ConfigDifference>,
    /// Every number that one of the runs has.
    pub metrics: Vec<MetricComparison>,
}

/// One of the runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ComparedRun {
    /// What the comparison calls it: `A`, `B` and so on.
    pub label: String,
    /// Its name.
    pub run: String,
    /// The data set that was used.
    pub dataset: String,
    /// Seeds that finished.
    pub seeds: Vec<u64>,
}

/// A key of the configuration that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ConfigDifference {
    /// The key with those of its tables, such as `training.epochs` or `defenses[0].data`.
    pub key: String,
    /// Its value in each run as TOML has it; `None` where a run does not have it.
    pub values: Vec<Option<String>>,
}

/// One number of all runs. Shares in [0, 1].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MetricComparison {
    /// The number's name.
    pub name: String,
    /// What it is in each run; `None` where a run does not have it.
    pub values: Vec<Option<MetricResult>>,
    /// What tables say instead of it where classifiers have collapsed to one class.
    pub collapse: Vec<Option<String>>,
    /// Each further run minus the first; `None` without a seed that both have.
    pub differences: Vec<Option<Difference>>,
}

/// Differences of one number between two runs, taken seed by seed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Difference {
    /// Seeds that both runs have.
    pub count: usize,
    /// Mean over them.
    pub mean: f64,
    /// 95 % confidence interval of the mean by Student's t distribution, ended where such a difference must end; `None` for one
    /// seed.
    pub interval_95: Option<[f64; 2]>,
    /// The difference of each seed.
    pub differences: BTreeMap<u64, f64>,
    /// Seeds that only the first run has.
    pub only_first: Vec<u64>,
    /// Seeds that only the other run has.
    pub only_other: Vec<u64>,
}

/// What of a run is compared.
struct Read {
    summary: RunSummary,
    config: BTreeMap<String, String>,
    fingerprint: String,
    commits: BTreeSet<Option<String>>,
    point: PointResult,
}

impl Comparison {
    /// Compares finished runs with the first of them.
    ///
    /// # Errors
    /// If a folder has no finished run, or a record is not as it was written.
    pub fn of(folders: &[PathBuf]) -> Result<Self, RecordError> {
        let runs = folders.iter().map(|folder| read(folder)).collect::<Result<Vec<_>, _>>()?;
        let labelled = runs.iter().enumerate().map(|(index, run)| ComparedRun {
            label: label(index),
            run: run.summary.run.clone(),
            dataset: run.summary.images.dataset.clone(),
            seeds: finished(&run.summary).into_iter().collect(),
        });
        Ok(Self {
            schema: COMPARE_SCHEMA,
            runs: labelled.collect(),
            warnings: warnings(&runs),
            config: config_differences(&configs(&runs)),
            metrics: metric_comparisons(&points(&runs)),
        })
    }

    /// The comparison for a terminal of so many columns: what differs, then the numbers, shares in percent.
    pub fn text(&self, width: usize) -> String {
        let mut text = String::new();
        for run in &self.runs {
            let line = format!("{}  {} on {}, n = {}", run.label, run.run, run.dataset, run.seeds.len());
            text = text + &fold(&line, width) + "\n";
        }
        for warning in &self.warnings {
            text = text + &fold(&format!("NOTE: {warning}"), width) + "\n";
        }
        let labels = self.runs.iter().map(|run| run.label.clone());
        if self.config.is_empty() {
            text.push_str("\nThe configurations do not differ.\n");
        } else {
            let header = std::iter::once("what differs".to_owned()).chain(labels.clone()).collect::<Vec<_>>();
            text = text + "\n" + &align(&header, &self.config_rows(), width);
        }
        let header = numbers_header(&labels.collect::<Vec<_>>());
        let shown = self.metrics.iter().filter(|metric| metric.is_shown());
        let (of_several, of_one): (Vec<_>, Vec<_>) = shown.partition(|metric| metric.is_of_several());
        let rows =
            of_several.into_iter().map(|metric| Row::Cells(metric.cells(title_of(&metric.name)))).collect::<Vec<_>>();
        let mut end = "Differences are taken seed by seed; n counts the seeds that both runs have.".to_owned();
        if !of_one.is_empty() {
            let _ = write!(end, " {} numbers that only one run has are left out; --json has them.", of_one.len());
        }
        text + "\n" + &align(&header, &rows, width) + "\n" + &fold(&end, width) + "\n"
    }

    /// A row for each key that differs.
    fn config_rows(&self) -> Vec<Row> {
        config_rows(&self.config, self.runs.len())
    }
}

/// A row for each key that differs between so many configurations. What one does not have at all, such as a defense, is one
/// row for all keys in it.
pub(crate) fn config_rows(differences: &[ConfigDifference], count: usize) -> Vec<Row> {
    let mut rows: Vec<(&str, Vec<Vec<&str>>)> = Vec::new();
    for difference in differences {
        let key = difference.key.as_str();
        let tables = key.match_indices(['.', '[']).map(|(end, _)| &key[..end]).filter(|table| !table.is_empty());
        let name = tables.into_iter().find(|table| is_absent(differences, count, table)).unwrap_or(key);
        if rows.last().is_none_or(|(last, _)| *last != name) {
            rows.push((name, vec![Vec::new(); count]));
        }
        if let Some((_, values)) = rows.last_mut() {
            values.iter_mut().zip(&difference.values).for_each(|(all, value)| all.extend(value.as_deref()));
        }
    }
    let cell = |values: &Vec<&str>| match values.as_slice() {
        [] => "-".to_owned(),
        [only] => (*only).to_owned(),
        several => format!("{} keys", several.len()),
    };
    let cells = rows
        .iter()
        .map(|(name, values)| Row::Cells(std::iter::once((*name).to_owned()).chain(values.iter().map(cell)).collect()));
    cells.collect()
}

/// Whether one of the configurations has none of several keys of a table.
fn is_absent(differences: &[ConfigDifference], count: usize, table: &str) -> bool {
    let is_in = |key: &str| key.strip_prefix(table).is_some_and(|rest| rest.starts_with(['.', '[']));
    let within = differences.iter().filter(|other| is_in(&other.key)).collect::<Vec<_>>();
    within.len() > 1 && (0..count).any(|run| within.iter().all(|other| other.values[run].is_none()))
}

/// What people call a number; indented where it belongs to the one above it.
pub(crate) fn title_of(name: &str) -> String {
    match (group_of(name), MetricInfo::of(name)) {
        ("", Some(info)) => info.label.to_owned(),
        ("", None) => name.to_owned(),
        (group, _) => format!("{group}: {}", MetricInfo::heading_of(name)),
    }
}

/// The head of a table of numbers: a column for each of those compared, then the differences from the first.
pub(crate) fn numbers_header(labels: &[String]) -> Vec<String> {
    let mut header = vec!["mean over seeds, in percent".to_owned()];
    header.extend(labels.iter().cloned());
    for label in &labels[1..] {
        header.extend([format!("{label} - {} [95 %]", labels[0]), "n".into()]);
    }
    header
}

impl MetricComparison {
    /// Whether tables for people have it.
    pub(crate) fn is_shown(&self) -> bool {
        MetricInfo::of(&self.name).is_none_or(|info| info.is_shown)
    }

    /// Whether more than one has it.
    pub(crate) fn is_of_several(&self) -> bool {
        self.values.iter().flatten().count() > 1
    }

    /// The row of a table under this label.
    pub(crate) fn cells(&self, label: String) -> Vec<String> {
        let unit = MetricInfo::unit_of(&self.name);
        let value = |(value, collapse): (&Option<MetricResult>, &Option<String>)| match (value, collapse) {
            (_, Some(collapse)) => collapse.clone(),
            (Some(value), None) => unit.text(value.mean),
            (None, None) => "-".into(),
        };
        let mut cells = vec![label];
        cells.extend(self.values.iter().zip(&self.collapse).map(value));
        for (difference, collapse) in self.differences.iter().zip(&self.collapse[1..]) {
            // A difference from a classifier of one class says nothing.
            let is_collapsed = collapse.is_some() || self.collapse[0].is_some();
            cells.extend(match difference.as_ref().filter(|_| !is_collapsed) {
                Some(difference) => [difference.text(unit.of_difference()), difference.count.to_string()],
                None => ["-".into(), String::new()],
            });
        }
        cells
    }
}

impl Difference {
    fn of(unit: Unit, other: &MetricResult, first: &MetricResult) -> Option<Self> {
        let paired = PairedDifferences::of(&other.values, &first.values);
        let summary = Summary::of(&paired.differences.values().copied().collect::<Vec<_>>())?;
        let bounded = |(low, high): (f64, f64)| [low, high].map(|end| unit.of_difference().bounded(end));
        Some(Self {
            count: summary.count,
            mean: summary.mean,
            interval_95: summary.interval_95().map(bounded),
            differences: paired.differences,
            only_first: paired.only_control,
            only_other: paired.only_treatment,
        })
    }

    fn text(&self, unit: Unit) -> String {
        let signed = |value: f64| {
            let text = unit.text(value);
            if value > 0.0 { format!("+{text}") } else { text }
        };
        match self.interval_95 {
            Some([low, high]) => format!("{} [{}, {}]", signed(self.mean), signed(low), signed(high)),
            None => signed(self.mean),
        }
    }
}

fn read(folder: &Path) -> Result<Read, RecordError> {
    let summary = read_summary(folder)?;
    let environment: Environment = read_sealed_json(&folder.join("environment.json"))?;
    let results = summary.seeds.iter().map(|seed| (summary.run.clone(), seed.clone())).collect::<Vec<_>>();
    Ok(Read {
        point: PointResult::of(summary.experiment.clone(), Vec::new(), &results),
        config: flat_config(folder)?,
        fingerprint: environment.fingerprint,
        commits: run_builds(folder)?.iter().map(commit_in_words).collect(),
        summary,
    })
}

/// `A`, `B` and so on.
pub(crate) fn label(index: usize) -> String {
    u8::try_from(index)
        .ok()
        .filter(|index| *index < 26)
        .map_or_else(|| format!("#{}", index + 1), |index| char::from(b'A' + index).to_string())
}

fn finished(run: &RunSummary) -> BTreeSet<u64> {
    run.seeds.iter().filter(|seed| seed.measurements().is_some()).map(|seed| seed.seed).collect()
}

/// What makes runs hard to compare.
fn warnings(runs: &[Read]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let label = label(index);
        if run.summary.quick {
            warnings.push(format!("{label} is a quick run, whose numbers mean nothing"));
        }
        warnings.extend(run.summary.images.substitution.iter().map(|reason| format!("{label}: {reason}")));
        if index > 0 && run.fingerprint != runs[0].fingerprint {
            warnings.push(format!("{label} has other images than A"));
        }
        if index > 0 && run.commits != runs[0].commits {
            warnings.push(format!("{label} was computed by another build than A"));
        }
        if index > 0 && finished(&run.summary).is_disjoint(&finished(&runs[0].summary)) {
            warnings.push(format!("{label} and A have no seed in common, so nothing can be paired"));
        }
    }
    warnings
}

fn configs(runs: &[Read]) -> Vec<&BTreeMap<String, String>> {
    runs.iter().map(|run| &run.config).collect()
}

fn points(runs: &[Read]) -> Vec<Option<&PointResult>> {
    runs.iter().map(|run| Some(&run.point)).collect()
}

/// The keys that have not the same value in all configurations.
pub(crate) fn config_differences(configs: &[&BTreeMap<String, String>]) -> Vec<ConfigDifference> {
    let keys = configs.iter().flat_map(|config| config.keys()).collect::<BTreeSet<_>>();
    let of = |key: &String| {
        let values = configs.iter().map(|config| config.get(key).cloned()).collect::<Vec<_>>();
        let differs = values.iter().any(|value| value != &values[0]);
        differs.then(|| ConfigDifference { key: key.clone(), values })
    };
    keys.into_iter().filter_map(of).collect()
}

/// Every number of the points, each further one compared with the first.
pub(crate) fn metric_comparisons(points: &[Option<&PointResult>]) -> Vec<MetricComparison> {
    let mut names: Vec<&str> = Vec::new();
    for metric in points.iter().flatten().flat_map(|point| &point.metrics) {
        if !names.contains(&metric.name.as_str()) {
            names.push(&metric.name);
        }
    }
    let of = |name: &str| {
        let values = points.iter().map(|point| point.and_then(|point| point.metric(name)).cloned()).collect::<Vec<_>>();
        let unit = MetricInfo::unit_of(name);
        let differences = values[1..].iter().map(|other| Difference::of(unit, other.as_ref()?, values[0].as_ref()?));
        MetricComparison {
            name: name.to_owned(),
            collapse: points.iter().map(|point| point.and_then(|point| point.collapse_in_words(name))).collect(),
            differences: differences.collect(),
            values,
        }
    };
    names.into_iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::flattened;
    use crate::run_table::tests::{run, seed};

    fn read_of(config: &str, seeds: Vec<patchdoor_record::SeedResult>, commit: &str) -> Read {
        let summary = if seeds.is_empty() { RunSummary::default() } else { run("badnets", seeds) };
        let results = summary.seeds.iter().map(|seed| (summary.run.clone(), seed.clone())).collect::<Vec<_>>();
        Read {
            point: PointResult::of(String::new(), Vec::new(), &results),
            config: flattened(&config.parse().expect("TOML")),
            fingerprint: "same".into(),
            commits: [Some(commit.to_owned())].into(),
            summary,
        }
    }

    fn example() -> Vec<Read> {
        let first = "seeds = [0, 1]\n[training]\nepochs = 3\n[[defenses]]\ndata = \"clean\"\n";
        let second = "seeds = [0, 1]\n[training]\nepochs = 5\n[[defenses]]\ndata = \"clean\"\nfine-tuning = {}\n";
        vec![
            read_of(first, vec![seed(0, 0.69, 0.90), seed(1, 0.70, 0.80), seed(2, 0.70, 0.10)], "abc"),
            read_of(second, vec![seed(0, 0.69, 0.95), seed(1, 0.71, 0.95)], "def"),
        ]
    }

    #[test]
    fn only_what_differs_is_named_by_its_whole_key() {
        let found = config_differences(&configs(&example()));
        let found = found.iter().map(|found| (found.key.as_str(), found.values.clone())).collect::<Vec<_>>();
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            found,
            [("defenses[0].fine-tuning", vec![None, some("{}")]), ("training.epochs", vec![some("3"), some("5")])]
        );
    }

    #[test]
    fn what_a_run_does_not_have_at_all_is_one_row() {
        let with = "[training]\nepochs = 3\n[[defenses]]\ndata = \"clean\"\nfine-tuning.epochs = 2\n";
        let runs = [read_of(with, vec![seed(0, 0.69, 0.9)], "abc"), read_of("[training]\nepochs = 5\n", vec![], "abc")];
        let labelled =
            |label: &str| ComparedRun { label: label.into(), run: label.into(), dataset: String::new(), seeds: vec![] };
        let comparison = Comparison {
            schema: COMPARE_SCHEMA,
            runs: vec![labelled("A"), labelled("B")],
            warnings: vec![],
            config: config_differences(&configs(&runs)),
            metrics: metric_comparisons(&points(&runs)),
        };
        let cells = |cells: [&str; 3]| Row::Cells(cells.map(str::to_owned).into());
        assert_eq!(
            comparison.config_rows(),
            [cells(["defenses", "2 keys", "-"]), cells(["training.epochs", "3", "5"])]
        );
        assert!(comparison.text(80).contains("numbers that only one run has are left out"));
    }

    #[test]
    fn differences_are_paired_by_seed() {
        let metrics = metric_comparisons(&points(&example()));
        let asr = metrics.iter().find(|metric| metric.name == "asr").expect("a number of both");
        let difference = asr.differences[0].as_ref().expect("two seeds in common");
        // 0.05 and 0.15: mean 0.1, s = 0.0707, 12.7062 * 0.0707 / sqrt(2) = 0.6353.
        assert_eq!((difference.count, &difference.only_first), (2, &vec![2]));
        assert!((difference.mean - 0.1).abs() < 1e-12);
        let [low, high] = difference.interval_95.expect("two seeds");
        assert!((low + 0.5353).abs() < 1e-4 && (high - 0.7353).abs() < 1e-4, "{low} {high}");
        assert_eq!(difference.text(Unit::Points), "+10.00 [-53.53, +73.53]");
    }

    #[test]
    fn other_builds_and_images_are_warned_of() {
        let mut runs = example();
        runs[1].fingerprint = "other".into();
        assert_eq!(warnings(&runs), ["B has other images than A", "B was computed by another build than A"]);
    }
}
