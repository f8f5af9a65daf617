use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use patchdoor_record::{Environment, MetricInfo, PointResult, RecordError, ResultTable, read_sealed_json};
use serde::Serialize;

use crate::compare::{
    ConfigDifference, MetricComparison, config_differences, config_rows, label, metric_comparisons, numbers_header,
    title_of,
};
use crate::config::flat_config;
use crate::text::{Row, align, fold};

/// Version of the layout of a comparison of sweeps as JSON.
const COMPARE_SWEEPS_SCHEMA: u32 = 1;

/// How several sweeps differ: in what their points share of configuration, and point by point in their numbers, seed by seed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SweepComparison {
    /// Layout of this document.
    pub schema: u32,
    /// The sweeps; all others are compared with the first.
    pub sweeps: Vec<ComparedSweep>,
    /// What makes these sweeps hard to compare.
    pub warnings: Vec<String>,
    /// Keys of the configurations that differ in the same way at every point compared.
    pub config: Vec<ConfigDifference>,
    /// Points that the first sweep and another have, in the order of the first.
    pub points: Vec<ComparedPoint>,
    /// Points that are compared with nothing.
    pub alone: Vec<LonePoint>,
}

/// One of the sweeps.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ComparedSweep {
    /// What the comparison calls it: `A`, `B` and so on.
    pub label: String,
    /// Its folder's name.
    pub sweep: String,
    /// Data sets that were used.
    pub datasets: Vec<String>,
    /// Names of its axes.
    pub axes: Vec<String>,
    /// Seeds asked for.
    pub seeds: Vec<u64>,
    /// Its points.
    pub points: usize,
}

/// A point of several sweeps.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ComparedPoint {
    /// Its label on each axis.
    pub settings: BTreeMap<String, String>,
    /// Keys of the configurations that differ at this point otherwise than at others.
    pub config: Vec<ConfigDifference>,
    /// Every number that one of the sweeps has there.
    pub metrics: Vec<MetricComparison>,
}

/// A point that is compared with nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LonePoint {
    /// Its label on each axis.
    pub settings: BTreeMap<String, String>,
    /// Labels of the sweeps that have it.
    pub sweeps: Vec<String>,
}

/// What of a sweep is compared.
struct Read {
    table: ResultTable,
    /// The configuration of each point, without seeds; `None` where none of its runs is there.
    configs: Vec<Option<BTreeMap<String, String>>>,
    /// Of the images of its runs.
    fingerprints: BTreeSet<String>,
}

impl SweepComparison {
    /// Compares sweeps with the first of them. Points are the same where they have the same labels on axes of the same names;
    /// what else differs between them is found in the configurations of their runs, which lie beside a sweep.
    ///
    /// # Errors
    /// If a record of one of their runs is not as it was written.
    pub fn of(sweeps: Vec<(PathBuf, ResultTable)>) -> Result<Self, RecordError> {
        let sweeps = sweeps.into_iter().map(|(folder, table)| read(&folder, table)).collect::<Result<Vec<_>, _>>()?;
        Ok(compare(&sweeps))
    }

    /// The comparison for a terminal of so many columns: what differs, then the numbers of each point, shares in percent.
    pub fn text(&self, width: usize) -> String {
        let mut text = String::new();
        for sweep in &self.sweeps {
            let datasets = sweep.datasets.join(" and ");
            let line = format!("{}  {} on {datasets}, {} points", sweep.label, sweep.sweep, sweep.points);
            text = text + &fold(&line, width) + "\n";
        }
        for warning in &self.warnings {
            text = text + &fold(&format!("NOTE: {warning}"), width) + "\n";
        }
        for lone in &self.alone {
            let line = format!("only in {}: {}", lone.sweeps.join(" and "), in_words(&lone.settings));
            text = text + &fold(&line, width) + "\n";
        }
        if self.points.is_empty() {
            return text + "\nNo point of the first is in another.\n";
        }
        let labels = self.sweeps.iter().map(|sweep| sweep.label.clone()).collect::<Vec<_>>();
        let mut rows = config_rows(&self.config, labels.len());
        for point in self.points.iter().filter(|point| !point.config.is_empty()) {
            rows.push(Row::Title(format!("at {}", in_words(&point.settings))));
            rows.extend(config_rows(&point.config, labels.len()));
        }
        if rows.is_empty() {
            text.push_str("\nWhat is known of the configurations does not differ.\n");
        } else {
            let header = std::iter::once("what differs".to_owned()).chain(labels.clone()).collect::<Vec<_>>();
            text = text + "\n" + &align(&header, &rows, width);
        }
        text = text + "\n" + &align(&numbers_header(&labels), &self.number_rows(), width);
        let end = "Differences are taken seed by seed at each point; n counts the seeds that both have. Numbers that only one \
                   sweep has are left out; --json has them.";
        text + "\n" + &fold(end, width) + "\n"
    }

    /// Under the name of each number a row for each point.
    fn number_rows(&self) -> Vec<Row> {
        let mut names: Vec<&str> = Vec::new();
        for metric in self.points.iter().flat_map(|point| &point.metrics) {
            if metric.is_shown() && metric.is_of_several() && !names.contains(&metric.name.as_str()) {
                names.push(&metric.name);
            }
        }
        let mut rows = Vec::new();
        for name in names {
            let of = |point: &ComparedPoint| {
                let metric = point.metrics.iter().find(|metric| metric.name == name && metric.is_of_several())?;
                Some(metric.cells(format!("  {}", in_words(&point.settings))))
            };
            rows.push(Row::Title(title(name)));
            rows.extend(self.points.iter().filter_map(of).map(Row::Cells));
        }
        rows
    }
}

/// What people call a number, where no other stands above it to which it belongs.
fn title(name: &str) -> String {
    let title = title_of(name);
    if title.starts_with(' ') { MetricInfo::heading_of(name).to_owned() } else { title }
}

fn read(folder: &Path, table: ResultTable) -> Result<Read, RecordError> {
    let mut configs = Vec::new();
    let mut fingerprints = BTreeSet::new();
    for point in &table.points {
        let beside = point.runs.values().map(|run| folder.with_file_name(run));
        let Some(run) = beside.into_iter().find(|run| run.join("config.toml").is_file()) else {
            configs.push(None);
            continue;
        };
        let mut config = flat_config(&run)?;
        // Points are compared seed by seed.
        config.remove("seeds");
        configs.push(Some(config));
        fingerprints.insert(read_sealed_json::<Environment>(&run.join("environment.json"))?.fingerprint);
    }
    Ok(Read { table, configs, fingerprints })
}

fn compare(sweeps: &[Read]) -> SweepComparison {
    let settings = sweeps.iter().map(|sweep| {
        let of = |point: &PointResult| {
            let labels = sweep.table.axes.iter().cloned().zip(point.coordinates.iter().cloned());
            labels.collect::<BTreeMap<_, _>>()
        };
        sweep.table.points.iter().map(of).collect::<Vec<_>>()
    });
    let settings = settings.collect::<Vec<_>>();
    let mut seen: Vec<&BTreeMap<String, String>> = Vec::new();
    let mut points = Vec::new();
    let mut alone = Vec::new();
    for wanted in settings.iter().flatten() {
        if seen.contains(&wanted) {
            continue;
        }
        seen.push(wanted);
        let places = settings.iter().map(|of| of.iter().position(|other| other == wanted)).collect::<Vec<_>>();
        if places[0].is_none() || places.iter().flatten().count() < 2 {
            let of = places.iter().enumerate().filter_map(|(index, place)| place.map(|_| label(index)));
            alone.push(LonePoint { settings: wanted.clone(), sweeps: of.collect() });
            continue;
        }
        let there = sweeps.iter().zip(&places);
        let results = there.clone().map(|(sweep, place)| place.map(|place| &sweep.table.points[place]));
        // A configuration that nobody knows differs in nothing that is known.
        let configs = there.map(|(sweep, place)| sweep.configs[(*place)?].as_ref()).collect::<Option<Vec<_>>>();
        points.push(ComparedPoint {
            settings: wanted.clone(),
            config: configs.map(|configs| config_differences(&configs)).unwrap_or_default(),
            metrics: metric_comparisons(&results.collect::<Vec<_>>()),
        });
    }
    let config = common(&points);
    for point in &mut points {
        point.config.retain(|difference| !config.contains(difference));
    }
    let compared = sweeps.iter().enumerate().map(|(index, Read { table, .. })| ComparedSweep {
        label: label(index),
        sweep: table.result.clone(),
        datasets: table.datasets.clone(),
        axes: table.axes.clone(),
        seeds: table.seeds.clone(),
        points: table.points.len(),
    });
    SweepComparison {
        schema: COMPARE_SWEEPS_SCHEMA,
        sweeps: compared.collect(),
        warnings: warnings(sweeps, &points),
        config,
        points,
        alone,
    }
}

/// The differences that all points have.
fn common(points: &[ComparedPoint]) -> Vec<ConfigDifference> {
    let Some((first, others)) = points.split_first() else { return Vec::new() };
    let is_common = |difference: &&ConfigDifference| others.iter().all(|point| point.config.contains(difference));
    first.config.iter().filter(is_common).cloned().collect()
}

/// What makes sweeps hard to compare.
fn warnings(sweeps: &[Read], points: &[ComparedPoint]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (index, sweep) in sweeps.iter().enumerate() {
        let label = label(index);
        let table = &sweep.table;
        if table.quick {
            warnings.push(format!("{label} is of quick runs, whose numbers mean nothing"));
        }
        warnings.extend(table.substitutions.iter().map(|reason| format!("{label}: {reason}")));
        let expected = table.points.len() * table.seeds.len();
        if table.finished() < expected {
            warnings.push(format!("{label} is incomplete: {} of {expected} runs are finished", table.finished()));
        }
        if sweep.configs.iter().any(Option::is_none) {
            let what = "runs of some points are not beside it, so their configurations are not compared";
            warnings.push(format!("{label}: {what}"));
        }
        if index == 0 {
            continue;
        }
        let is_known = !sweep.fingerprints.is_empty() && !sweeps[0].fingerprints.is_empty();
        if is_known && sweep.fingerprints != sweeps[0].fingerprints {
            warnings.push(format!("{label} has other images than A"));
        }
        let builds = [table, &sweeps[0].table].map(|table| table.commits.iter().collect::<BTreeSet<_>>());
        if builds[0] != builds[1] {
            warnings.push(format!("{label} was computed by another build than A"));
        }
        let has_pairs =
            |point: &ComparedPoint| point.metrics.iter().any(|metric| metric.differences[index - 1].is_some());
        if !points.is_empty() && !points.iter().any(has_pairs) {
            warnings.push(format!("{label} and A have no seed in common at any point, so nothing can be paired"));
        }
    }
    warnings
}

/// `rate = 0.01, placement = corner`.
fn in_words(settings: &BTreeMap<String, String>) -> String {
    let mut words = String::new();
    for (axis, label) in settings {
        let comma = if words.is_empty() { "" } else { ", " };
        let _ = write!(words, "{comma}{axis} = {label}");
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep_table::example_table;
    use patchdoor_record::MetricResult;

    fn sweep(axes: &[&str], points: &[(&[&str], [f64; 2])], config: &[(&str, &str)]) -> Read {
        let point = |(labels, asr): &(&[&str], [f64; 2])| PointResult {
            label: labels.join(", "),
            coordinates: labels.iter().map(|&label| label.to_owned()).collect(),
            metrics: vec![MetricResult::of("asr", (0..).zip(*asr).collect()).expect("two values")],
            ..example_table().points[1].clone()
        };
        let own = config.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect::<BTreeMap<_, _>>();
        let of_point = |(labels, _): &(&[&str], [f64; 2])| {
            let mut config = own.clone();
            config.insert("poisoning.rate".into(), labels[0].to_owned());
            Some(config)
        };
        Read {
            configs: points.iter().map(of_point).collect(),
            fingerprints: ["same".to_owned()].into(),
            table: ResultTable {
                axes: axes.iter().map(|&axis| axis.to_owned()).collect(),
                points: points.iter().map(point).collect(),
                ..example_table()
            },
        }
    }

    fn example() -> [Read; 2] {
        let first = sweep(&["rate"], &[(&["0.01"], [0.5, 0.6]), (&["0.1"], [0.9, 0.9])], &[("training.epochs", "3")]);
        let second = sweep(&["rate"], &[(&["0.1"], [0.9, 1.0]), (&["0.2"], [1.0, 1.0])], &[("training.epochs", "5")]);
        [first, second]
    }

    #[test]
    fn points_of_the_same_labels_are_paired_by_seed_and_the_others_are_named() {
        let found = compare(&example());
        let settings = found.points.iter().map(|point| in_words(&point.settings)).collect::<Vec<_>>();
        assert_eq!(settings, ["rate = 0.1"]);
        let difference = found.points[0].metrics[0].differences[0].as_ref().expect("two seeds in common");
        // 0 and 0.1: mean 0.05, s = 0.0707, 12.7062 * 0.0707 / sqrt(2) = 0.6353.
        assert!((difference.mean - 0.05).abs() < 1e-12 && difference.count == 2, "{difference:?}");
        let [low, high] = difference.interval_95.expect("two seeds");
        assert!((low + 0.5853).abs() < 1e-4 && (high - 0.6853).abs() < 1e-4, "{low} {high}");
        let alone = found.alone.iter().map(|lone| (in_words(&lone.settings), lone.sweeps.clone())).collect::<Vec<_>>();
        assert_eq!(
            alone,
            [("rate = 0.01".to_owned(), vec!["A".to_owned()]), ("rate = 0.2".to_owned(), vec!["B".to_owned()])]
        );
        let text = found.text(80);
        for part in
            ["only in A: rate = 0.01", "only in B: rate = 0.2", "training.epochs  3  5", "+5.00 [-58.53, +68.53]"]
        {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
    }

    #[test]
    fn axes_may_stand_in_another_order_and_the_same_label_on_another_axis_is_no_match() {
        let first = sweep(&["rate", "size"], &[(&["0.1", "4"], [0.5, 0.6])], &[]);
        let turned = sweep(&["size", "rate"], &[(&["4", "0.1"], [0.5, 0.6])], &[]);
        let other = sweep(&["size", "rate"], &[(&["0.1", "4"], [0.5, 0.6])], &[]);
        assert_eq!(compare(&[first, turned]).points.len(), 1);
        let first = sweep(&["rate", "size"], &[(&["0.1", "4"], [0.5, 0.6])], &[]);
        let found = compare(&[first, other]);
        assert_eq!((found.points.len(), found.alone.len()), (0, 2));
        assert!(found.text(80).contains("No point of the first is in another."));
    }

    #[test]
    fn what_differs_at_one_point_alone_stands_with_that_point() {
        let [first, mut second] = example();
        second.table.points.insert(0, example()[0].table.points[0].clone());
        let mut config = second.configs[0].clone().expect("it is known");
        config.insert("poisoning.rate".into(), "0.01".into());
        config.insert("trigger.square.size".into(), "8".into());
        second.configs.insert(0, Some(config));
        let found = compare(&[first, second]);
        let keys = |differences: &[ConfigDifference]| differences.iter().map(|d| d.key.clone()).collect::<Vec<_>>();
        assert_eq!(keys(&found.config), ["training.epochs"]);
        assert_eq!(keys(&found.points[0].config), ["trigger.square.size"]);
        assert!(found.points[1].config.is_empty());
    }

    #[test]
    fn a_number_that_belongs_to_another_is_named_in_full() {
        assert_eq!(title("asr"), "attack success rate (ASR)");
        assert_eq!(title("clean-twin-asr"), "twin's ASR");
        assert_eq!(title("fine-tuning/asr"), "fine-tuning: ASR");
    }

    #[test]
    fn other_images_missing_runs_and_seeds_without_a_pair_are_warned_of() {
        let [first, mut second] = example();
        second.fingerprints = ["other".to_owned()].into();
        second.configs[0] = None;
        second.table.commits = vec!["fedcba".into()];
        second.table.points[0].metrics = vec![MetricResult::of("asr", [(7, 0.5)].into()).expect("a value")];
        let found = compare(&[first, second]);
        let begin = [
            "B is incomplete",
            "B: runs of some points",
            "B has other images",
            "B was computed by another",
            "B and A have no seed",
        ];
        assert_eq!(found.warnings.len(), begin.len(), "{:?}", found.warnings);
        for (warning, begin) in found.warnings.iter().zip(begin) {
            assert!(warning.starts_with(begin), "{warning}");
        }
        assert!(found.config.is_empty(), "nothing is known of one side");
    }
}
