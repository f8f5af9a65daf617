use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::path::Path;

use fs_err as fs;
use patchdoor_metrics::Summary;
use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::defense::DefenseOutcome;
use crate::environment::Environment;
use crate::files::{write_json, write_whole};
use crate::report::{Row, align, percent};
use crate::result::{RunSummary, SCHEMA, SeedOutcome, SeedResult, named_numbers};
use crate::run::{read_summary, run_name};
use crate::run_directory::RunDirectory;
use crate::sweep::Sweep;

/// The number of poisoned images among the metrics of a point.
const POISONED: &str = "poisoned-images";

/// Numbers every attack has, and their headings in tables for people.
const HEADINGS: [(&str, &str); 7] = [
    (POISONED, "poisoned"),
    ("clean-accuracy", "CA"),
    ("clean-twin-accuracy", "twin's CA"),
    ("clean-accuracy-drop", "CAD"),
    ("asr", "ASR"),
    ("clean-twin-asr", "twin's ASR"),
    ("robust-accuracy", "RA"),
];

/// Headings of numbers that groups have.
const GROUP_HEADINGS: [(&str, &str); 2] = [("defense-effectiveness", "DER"), ("robust-improvement", "RIR")];

/// Numbers in [0, 1] that are shown as they are, not in percent; their names begin so.
const UNIT_NUMBERS: [&str; 7] = [
    "defense-effectiveness",
    "robust-improvement",
    "trigger-capture",
    "auc-",
    "overlap",
    "load-entropy",
    "expert-similarity",
];

/// Numbers that only files for programs have.
const UNSHOWN: [&str; 2] = ["clean-twin-accuracy", "asr-all-classes"];

/// What a sweep or a run came to, a row for each point; `table.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ResultTable {
    /// Layout of this file.
    pub schema: u32,
    /// Name of the experiment.
    pub experiment: String,
    /// Its file, from `experiments/` on if it lies there.
    pub file: String,
    /// Folder of the results.
    pub result: String,
    /// Whether this is the quick version, whose numbers mean nothing.
    pub quick: bool,
    /// Data sets that were used.
    pub datasets: Vec<String>,
    /// Why they are not those that the experiment names, if they are not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub substitutions: Vec<String>,
    /// What is to be known about these copies of the images.
    pub notes: Vec<String>,
    /// What it was computed with.
    pub backend: String,
    /// On which devices.
    pub devices: Vec<String>,
    /// Commits of the source; with ` (changed)` if it differed from the commit.
    pub commits: Vec<String>,
    /// Names of the axes.
    pub axes: Vec<String>,
    /// Seeds asked for so far.
    pub seeds: Vec<u64>,
    /// The points, in their order.
    pub points: Vec<PointResult>,
}

/// What one point of a sweep came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PointResult {
    /// What it is called.
    pub label: String,
    /// Its label on each axis.
    pub coordinates: Vec<String>,
    /// Folder of each seed's results.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub runs: BTreeMap<u64, String>,
    /// Seeds that failed, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failed: BTreeMap<u64, String>,
    /// Defenses that failed with some seeds, by title, and why; what was measured besides them counts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failed_defenses: BTreeMap<String, BTreeMap<u64, String>>,
    /// Every number, over the seeds that finished.
    pub metrics: Vec<MetricResult>,
}

/// One number of a point over seeds. Shares in [0, 1].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MetricResult {
    /// The number's name.
    pub name: String,
    /// Seeds that have it.
    pub count: usize,
    /// Mean over them.
    pub mean: f64,
    /// Sample standard deviation; `None` for one seed.
    pub standard_deviation: Option<f64>,
    /// 95 % confidence interval of the mean by Student's t distribution; `None` for one seed.
    pub interval_95: Option<[f64; 2]>,
    /// The value of each seed.
    pub values: BTreeMap<u64, f64>,
}

impl MetricResult {
    /// Summarizes the values of a number; `None` without any.
    pub fn of(name: &str, values: BTreeMap<u64, f64>) -> Option<Self> {
        let summary = Summary::of(&values.values().copied().collect::<Vec<_>>())?;
        Some(Self {
            name: name.to_owned(),
            count: summary.count,
            mean: summary.mean,
            standard_deviation: summary.standard_deviation,
            interval_95: summary.interval_95().map(|(low, high)| [low, high]),
            values,
        })
    }

    /// `mean ± standard deviation`, shares in percent without the sign.
    pub fn mean_text(&self) -> String {
        let number = |value| number_text(&self.name, value);
        match self.standard_deviation {
            // A count that is the same for every seed needs no spread.
            Some(deviation) if deviation == 0.0 && self.name == POISONED => number(self.mean),
            Some(deviation) => format!("{} ± {}", number(self.mean), number(deviation)),
            None => number(self.mean),
        }
    }

    /// Whether it is a share in [0, 1], or a difference of shares.
    pub fn is_share(&self) -> bool {
        is_share(&self.name)
    }

    /// The confidence interval in brackets, that of a number in [0, 1] cut off there, that of a time at 0; empty for one seed.
    pub fn interval_text(&self) -> String {
        // A share cannot be where the interval of its mean may reach; only differences of shares may be negative.
        let bounded = (is_share(&self.name) && !self.name.ends_with("accuracy-drop"))
            || UNIT_NUMBERS.iter().any(|start| last_part(&self.name).starts_with(start));
        let number = |value: f64| {
            let value = if bounded { value.clamp(0.0, 1.0) } else { value };
            number_text(&self.name, if is_time(&self.name) { value.max(0.0) } else { value })
        };
        self.interval_95.map_or_else(String::new, |[low, high]| format!("[{}, {}]", number(low), number(high)))
    }
}

impl PointResult {
    /// The number of that name.
    pub fn metric(&self, name: &str) -> Option<&MetricResult> {
        self.metrics.iter().find(|metric| metric.name == name)
    }

    /// Seeds that finished.
    pub fn finished(&self) -> usize {
        self.metrics.iter().map(|metric| metric.count).max().unwrap_or(0)
    }

    fn of(label: String, coordinates: Vec<String>, results: &[(String, SeedResult)]) -> Self {
        let mut names: Vec<String> = Vec::new();
        let mut values: BTreeMap<String, BTreeMap<u64, f64>> = BTreeMap::new();
        let mut failed = BTreeMap::new();
        let mut failed_defenses: BTreeMap<String, BTreeMap<u64, String>> = BTreeMap::new();
        for (_, result) in results {
            let measurements = match &result.outcome {
                SeedOutcome::Finished(measurements) => measurements,
                SeedOutcome::Failed { reason } => {
                    failed.insert(result.seed, reason.clone());
                    continue;
                }
            };
            for defense in &measurements.defenses {
                if let DefenseOutcome::Failed { reason } = &defense.outcome {
                    failed_defenses.entry(defense.title.clone()).or_default().insert(result.seed, reason.clone());
                }
            }
            let poisoned = (POISONED.to_owned(), result.poisoned_images as f64);
            for (name, value) in std::iter::once(poisoned).chain(named_numbers(measurements)) {
                if !names.contains(&name) {
                    names.push(name.clone());
                }
                values.entry(name).or_default().insert(result.seed, value);
            }
        }
        let metrics = names.iter().filter_map(|name| MetricResult::of(name, values.remove(name)?));
        Self {
            label,
            coordinates,
            metrics: metrics.collect(),
            failed,
            failed_defenses,
            runs: results.iter().map(|(run, result)| (result.seed, run.clone())).collect(),
        }
    }
}

impl ResultTable {
    /// What is there of a sweep below `out`, for these seeds; `failures` says why runs left no result, by their names.
    pub(crate) fn of_sweep(
        sweep: &Sweep,
        seeds: &[u64],
        backend: &Backend,
        out: &Path,
        failures: &BTreeMap<String, String>,
    ) -> Self {
        let mut facts = Facts::default();
        let points = sweep.points().iter().map(|point| {
            let results = seeds.iter().filter_map(|&seed| {
                let run = run_name(&point.plan().with_seed(seed), backend);
                let folder = RunDirectory::finished(out, &run)?;
                let summary = read_summary(&folder).ok()?;
                facts.add(&summary, &folder);
                let result = summary.seeds.into_iter().find(|result| result.seed == seed)?;
                Some((run, result))
            });
            let results = results.collect::<Vec<_>>();
            let mut result = PointResult::of(point.label(), point.labels().to_vec(), &results);
            for &seed in seeds {
                if let Some(reason) = failures.get(&run_name(&point.plan().with_seed(seed), backend)) {
                    result.failed.insert(seed, reason.clone());
                }
            }
            result
        });
        let points = points.collect();
        if facts.datasets.is_empty() {
            for point in sweep.points() {
                add(&mut facts.datasets, point.plan().config().dataset.name());
            }
        }
        Self {
            schema: SCHEMA,
            experiment: sweep.name(),
            file: published_path(sweep.path()),
            result: sweep_name(sweep, backend),
            quick: sweep.is_quick(),
            datasets: facts.datasets,
            substitutions: facts.substitutions,
            notes: facts.notes,
            backend: backend.name().into(),
            devices: facts.devices,
            commits: facts.commits,
            axes: sweep.axes().map(str::to_owned).collect(),
            seeds: seeds.to_vec(),
            points,
        }
    }

    /// What runs of one experiment that differ only in their seeds came to, as a table of one point; `None` without any. Of a
    /// seed that several of them have, the first counts.
    pub(crate) fn of_runs<'a>(runs: impl IntoIterator<Item = (&'a Path, &'a RunSummary)>) -> Option<Self> {
        let runs = runs.into_iter().collect::<Vec<_>>();
        let (folder, first) = *runs.first()?;
        let mut facts = Facts::default();
        let mut results: BTreeMap<u64, (String, SeedResult)> = BTreeMap::new();
        for (folder, summary) in &runs {
            facts.add(summary, folder);
            for result in &summary.seeds {
                results.entry(result.seed).or_insert_with(|| (summary.run.clone(), result.clone()));
            }
        }
        let seeds = results.keys().copied().collect();
        let results = results.into_values().collect::<Vec<_>>();
        let file = Environment::read(&folder.join("environment.json")).map(|found| found.experiment_file);
        Some(Self {
            schema: SCHEMA,
            experiment: first.experiment.clone(),
            file: file.map_or_else(String::new, |file| published_path(Path::new(&file))),
            result: first.run.clone(),
            quick: first.quick,
            datasets: facts.datasets,
            substitutions: facts.substitutions,
            notes: facts.notes,
            backend: first.backend.clone(),
            devices: facts.devices,
            commits: facts.commits,
            axes: Vec::new(),
            seeds,
            points: vec![PointResult::of(first.experiment.clone(), Vec::new(), &results)],
        })
    }

    /// The point of that label.
    pub fn point(&self, label: &str) -> Option<&PointResult> {
        self.points.iter().find(|point| point.label == label)
    }

    /// Finished runs, counted once for each point.
    pub fn finished(&self) -> usize {
        self.points.iter().map(PointResult::finished).sum()
    }

    /// Names of all numbers, in the order in which they are shown.
    pub fn metric_names(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for metric in self.points.iter().flat_map(|point| &point.metrics) {
            if !names.contains(&metric.name.as_str()) {
                names.push(metric.name.as_str());
            }
        }
        names
    }

    /// Names of the numbers that tables for people show, one group after the other; the first is the attack's.
    fn groups(&self) -> Vec<(&str, Vec<&str>)> {
        let names = self.metric_names();
        let attack =
            HEADINGS.iter().map(|(name, _)| *name).filter(|name| names.contains(name) && !UNSHOWN.contains(name));
        let attack = attack.collect();
        let mut groups: Vec<(&str, Vec<&str>)> = vec![("", attack)];
        for name in names {
            if HEADINGS.iter().any(|(known, _)| *known == name) || UNSHOWN.contains(&name) {
                continue;
            }
            let group = group_of(name);
            match groups.iter_mut().find(|(known, _)| *known == group) {
                Some((_, members)) => members.push(name),
                None => groups.push((group, vec![name])),
            }
        }
        groups
    }

    /// Aligned tables for a terminal: means, then their confidence intervals, shares in percent.
    pub fn to_text(&self) -> String {
        let mut text = self.title();
        for (group, names) in self.groups() {
            let has_shares = names.iter().any(|name| is_share(name));
            let corner = match (self.axes.as_slice(), has_shares) {
                ([], true) => "in percent".into(),
                ([], false) => String::new(),
                (axes, _) => axes.join(", "),
            };
            let block = |names: &[&str], cell: &dyn Fn(&MetricResult) -> String| {
                let mut header = vec![corner.clone(), "n".to_owned()];
                header.extend(names.iter().map(|name| heading(name)));
                let rows = self.points.iter().map(|point| {
                    let cells = names.iter().map(|name| point.metric(name).map_or_else(|| "-".into(), cell));
                    let front = [point.label.clone(), point.finished().to_string()];
                    Row::Cells(front.into_iter().chain(cells).collect())
                });
                align(&header, &rows.collect::<Vec<_>>())
            };
            let title = if group.is_empty() { String::new() } else { format!("{group}: ") };
            let _ = write!(
                text,
                "\n{title}mean ± standard deviation{}\n\n{}",
                if has_shares { ", shares in percent" } else { "" },
                block(&names, &MetricResult::mean_text)
            );
            if self.points.iter().any(|point| point.finished() > 1) {
                // How many images are poisoned is no estimate.
                let names = names.iter().copied().filter(|name| *name != POISONED).collect::<Vec<_>>();
                let intervals = block(&names, &MetricResult::interval_text);
                let _ = write!(text, "\n{title}95 % confidence interval of the mean (t distribution)\n\n{intervals}");
            }
        }
        for failure in self.failures() {
            let _ = write!(text, "\n{failure}");
        }
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text
    }

    /// The same for a document.
    pub fn to_markdown(&self) -> String {
        let mut text = format!("# {}\n\n{}\n", self.experiment, self.title().replace('\n', "\n\n").trim_end());
        for (group, names) in self.groups() {
            if !group.is_empty() {
                let _ = write!(text, "\n## {group}\n");
            }
            let points = self.points.iter().collect::<Vec<_>>();
            let _ = write!(text, "\n{}", self.markdown_rows(&points, &names));
        }
        text.push_str(
            "\nMean ± standard deviation [95 % confidence interval of the mean, t distribution], shares in percent.\n",
        );
        for failure in self.failures() {
            let _ = write!(text, "\n- {failure}");
        }
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text
    }

    /// A Markdown table of some points and numbers.
    pub(crate) fn markdown_rows(&self, points: &[&PointResult], names: &[&str]) -> String {
        let mut header = if self.axes.is_empty() { vec!["experiment".to_owned()] } else { self.axes.clone() };
        let labels = header.len();
        header.push("n".into());
        // Where numbers of several groups stand side by side, they have their group's name.
        let mixed = names.iter().any(|name| group_of(name) != group_of(names[0]));
        header.extend(names.iter().map(|name| match group_of(name) {
            group if mixed && !group.is_empty() => format!("{}, {group}", heading(name)),
            _ => heading(name),
        }));
        let mut text = markdown_head(&header, labels);
        for point in points {
            let mut cells = if self.axes.is_empty() { vec![point.label.clone()] } else { point.coordinates.clone() };
            cells.push(point.finished().to_string());
            cells.extend(names.iter().map(|name| markdown_cell(point.metric(name))));
            text.push_str(&markdown_row(&cells));
        }
        text
    }

    /// A Markdown table with a row for each group, such as a defense, of each point; numbers are named without their group.
    /// The group `""` is the attack itself.
    pub(crate) fn markdown_groups(&self, points: &[&PointResult], groups: &[&str], names: &[&str]) -> String {
        // One point needs no column to say which.
        let axes = match (points, self.axes.as_slice()) {
            ([_], _) => Vec::new(),
            (_, []) => vec!["experiment".to_owned()],
            (_, axes) => axes.to_vec(),
        };
        let labels = axes.len() + 1;
        let mut header = axes.clone();
        header.extend([String::new(), "n".into()]);
        header.extend(names.iter().map(|name| heading(name)));
        let mut text = markdown_head(&header, labels);
        for point in points {
            for group in groups {
                let metrics = names.iter().map(|name| point.metric(&in_group(group, name))).collect::<Vec<_>>();
                let mut cells = if axes.is_empty() {
                    Vec::new()
                } else if self.axes.is_empty() {
                    vec![point.label.clone()]
                } else {
                    point.coordinates.clone()
                };
                let count = metrics.iter().flatten().map(|metric| metric.count).max().unwrap_or(0);
                cells.extend([if group.is_empty() { "before" } else { group }.to_owned(), count.to_string()]);
                cells.extend(metrics.into_iter().map(markdown_cell));
                text.push_str(&markdown_row(&cells));
            }
        }
        text
    }

    /// A line for each number of each point; shares in [0, 1].
    ///
    /// # Errors
    /// Never in memory; the writer's errors are passed on.
    pub fn to_csv(&self) -> Result<Vec<u8>, csv::Error> {
        let mut table = csv::Writer::from_writer(Vec::new());
        let columns = ["metric", "n", "mean", "standard-deviation", "interval-low", "interval-high"];
        let header = std::iter::once("point").chain(self.axes.iter().map(String::as_str)).chain(columns);
        table.write_record(header)?;
        let optional = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
        for point in &self.points {
            for metric in &point.metrics {
                let mut record = vec![point.label.clone()];
                record.extend(point.coordinates.iter().cloned());
                record.extend([
                    metric.name.clone(),
                    metric.count.to_string(),
                    metric.mean.to_string(),
                    optional(metric.standard_deviation),
                    optional(metric.interval_95.map(|[low, _]| low)),
                    optional(metric.interval_95.map(|[_, high]| high)),
                ]);
                table.write_record(&record)?;
            }
        }
        table.into_inner().map_err(|error| csv::Error::from(error.into_error()))
    }

    /// Writes all four forms to a folder, each whole or not at all.
    pub(crate) fn write(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let csv = self.to_csv().map_err(io::Error::other)?;
        write_whole(&folder.join("table.txt"), self.to_text().as_bytes())?;
        write_whole(&folder.join("table.md"), self.to_markdown().as_bytes())?;
        write_whole(&folder.join("table.csv"), &csv)?;
        write_json(&folder.join("table.json"), self)
    }

    /// Reads `table.json`, if there is one.
    pub(crate) fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join("table.json")).ok()?).ok()
    }

    /// What the numbers are about; one line or more.
    pub(crate) fn title(&self) -> String {
        let runs = self.points.len() * self.seeds.len();
        let mut title = format!(
            "{} on {}: {} points, {} of {runs} runs finished, {}",
            self.result,
            self.datasets.join(" and "),
            self.points.len(),
            self.finished(),
            self.backend
        );
        if self.quick {
            title.push_str(", QUICK: these numbers mean nothing");
        }
        title.push('\n');
        for substitution in &self.substitutions {
            let _ = writeln!(title, "NOTE: {substitution}");
        }
        for note in &self.notes {
            let _ = writeln!(title, "note: {note}");
        }
        title
    }

    /// A line for each run and for each defense that failed.
    fn failures(&self) -> Vec<String> {
        let lines = |point: &PointResult| {
            let runs = point.failed.iter();
            let runs = runs.map(|(seed, reason)| format!("{} failed with seed {seed}: {reason}", point.label));
            let defenses = point.failed_defenses.iter().flat_map(|(title, seeds)| {
                let line = |(seed, reason)| format!("{}: {title} failed with seed {seed}: {reason}", point.label);
                seeds.iter().map(line).collect::<Vec<_>>()
            });
            runs.chain(defenses).collect::<Vec<_>>()
        };
        self.points.iter().flat_map(lines).collect()
    }
}

/// Name of the folder of a sweep's tables.
pub(crate) fn sweep_name(sweep: &Sweep, backend: &Backend) -> String {
    format!("{}-{}.sweep", sweep.name(), sweep.hash(backend.name()))
}

/// What several runs were computed with, each thing once.
#[derive(Default)]
struct Facts {
    datasets: Vec<String>,
    substitutions: Vec<String>,
    notes: Vec<String>,
    devices: Vec<String>,
    commits: Vec<String>,
}

impl Facts {
    fn add(&mut self, summary: &RunSummary, folder: &Path) {
        add(&mut self.datasets, &summary.images.dataset);
        if let Some(substitution) = &summary.images.substitution {
            add(&mut self.substitutions, substitution);
        }
        for note in &summary.notes {
            add(&mut self.notes, note);
        }
        add(&mut self.devices, &summary.device);
        if let Some(environment) = Environment::read(&folder.join("environment.json"))
            && let Some(commit) = environment.commit
        {
            let changed = if environment.dirty == Some(true) { " (changed)" } else { "" };
            add(&mut self.commits, &format!("{commit}{changed}"));
        }
    }
}

fn add(list: &mut Vec<String>, word: &str) {
    if !list.iter().any(|known| known == word) {
        list.push(word.to_owned());
    }
}

/// A file's path from `experiments/` on, or its name alone: where it lay on some machine is nobody's business.
fn published_path(path: &Path) -> String {
    let parts = path.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect::<Vec<_>>();
    let first = parts.iter().rposition(|part| part == "experiments").unwrap_or(parts.len().saturating_sub(1));
    parts[first..].join("/")
}

/// The name of a number within its group.
fn last_part(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// The group of a number, such as the title of a defense; `""` for the attack's own.
pub(crate) fn group_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(group, _)| group)
}

/// The whole name of a number of a group.
pub(crate) fn in_group(group: &str, name: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{group}/{name}") }
}

/// What a number is called at the head of a column.
fn heading(name: &str) -> String {
    let last = last_part(name);
    let short = HEADINGS.iter().chain(&GROUP_HEADINGS).find(|(known, _)| *known == last);
    // `auc-intensity-adjusted` is "AUC intensity adjusted".
    short.map_or_else(|| last.replacen("auc-", "AUC ", 1).replace('-', " "), |(_, heading)| (*heading).to_owned())
}

fn markdown_row(cells: &[String]) -> String {
    let cells = cells.iter().map(|cell| cell.replace('|', "\\|")).collect::<Vec<_>>();
    format!("| {} |\n", cells.join(" | "))
}

/// The head of a table whose first columns are labels.
fn markdown_head(header: &[String], labels: usize) -> String {
    let rule = (0..header.len()).map(|column| if column < labels { "---" } else { "---:" });
    format!("{}| {} |\n", markdown_row(header), rule.collect::<Vec<_>>().join(" | "))
}

/// Mean, spread and interval of a number, if it is there.
fn markdown_cell(metric: Option<&MetricResult>) -> String {
    metric.map_or_else(
        || "-".into(),
        |metric| format!("{} {}", metric.mean_text(), interval_unless_constant(metric)).trim_end().to_owned(),
    )
}

fn interval_unless_constant(metric: &MetricResult) -> String {
    if metric.name == POISONED { String::new() } else { metric.interval_text() }
}

/// A share in percent, a count as it is, anything else with four digits.
fn number_text(name: &str, value: f64) -> String {
    if is_share(name) {
        percent(value)
    } else if name == POISONED {
        if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") }
    } else if is_time(name) {
        format!("{value:.0}")
    } else {
        format!("{:.4}", value + 0.0)
    }
}

/// Whether a number of that name is a time in seconds.
fn is_time(name: &str) -> bool {
    last_part(name) == "seconds"
}

/// Whether a number of that name is a share in [0, 1], or a difference of shares.
fn is_share(name: &str) -> bool {
    let last = last_part(name);
    let endings = ["asr", "accuracy", "accuracy-drop", "asr-all-classes", "share"];
    endings.iter().any(|ending| last == *ending || last.ends_with(&format!("-{ending}")))
}

/// A table of two points, the second with one seed that finished and one that failed.
#[cfg(test)]
pub(crate) fn example_table() -> ResultTable {
    let metric = |name: &str, values: &[(u64, f64)]| {
        MetricResult::of(name, values.iter().copied().collect()).expect("there are values")
    };
    let first = PointResult {
        label: "0.001, four cells".into(),
        coordinates: vec!["0.001".into(), "four cells".into()],
        runs: [(0, "rates-00000001".to_owned()), (1, "rates-00000002".to_owned())].into(),
        failed: BTreeMap::new(),
        failed_defenses: [("fine-tuning".to_owned(), [(1, "loss became inf".to_owned())].into())].into(),
        metrics: vec![
            metric(POISONED, &[(0, 20.0), (1, 20.0)]),
            metric("clean-accuracy", &[(0, 0.7), (1, 0.72)]),
            metric("clean-twin-accuracy", &[(0, 0.71), (1, 0.72)]),
            metric("asr", &[(0, 0.9), (1, 1.0)]),
            metric("fine-pruning/asr", &[(0, 0.5), (1, 0.25)]),
            metric("fine-pruning/robust-improvement", &[(0, 0.5), (1, 0.75)]),
            metric("fine-pruning/seconds", &[(0, 61.2), (1, 60.0)]),
        ],
    };
    let second = PointResult {
        label: "0.01, a | b".into(),
        coordinates: vec!["0.01".into(), "a | b".into()],
        runs: [(0, "rates-00000003".to_owned()), (1, "rates-00000004".to_owned())].into(),
        failed: [(1, "loss became NaN".to_owned())].into(),
        failed_defenses: BTreeMap::new(),
        metrics: vec![metric(POISONED, &[(0, 200.0)]), metric("asr", &[(0, 0.125)])],
    };
    ResultTable {
        schema: SCHEMA,
        experiment: "rates".into(),
        file: "experiments/rates.toml".into(),
        result: "rates-12345678.sweep".into(),
        quick: false,
        datasets: vec!["cifar10".into()],
        substitutions: Vec::new(),
        notes: vec!["CIFAR-10 (reconstructed; 104 images JPEG-decoded)".into()],
        backend: "flex".into(),
        devices: vec!["a processor, 2 threads".into()],
        commits: vec!["0123456789abcdef".into()],
        axes: vec!["rate".into(), "placement".into()],
        seeds: vec![0, 1],
        points: vec![first, second],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_its_mean_spread_and_interval() {
        let table = example_table();
        let asr = table.points[0].metric("asr").unwrap();
        assert_eq!((asr.count, asr.mean), (2, 0.95));
        // s = 0.1 / sqrt(2) = 0.0707; 12.7062 * 0.0707 / sqrt(2) = 0.6353.
        let [low, high] = asr.interval_95.unwrap();
        assert!((low - 0.314_69).abs() < 1e-5 && (high - 1.585_31).abs() < 1e-5, "{low} {high}");
        assert_eq!(table.points[1].metric("asr").unwrap().interval_95, None);
    }

    #[test]
    fn no_interval_reaches_where_its_number_cannot_be() {
        let interval = |name: &str, values: [f64; 2]| {
            let values = values.into_iter().enumerate().map(|(seed, value)| (seed as u64, value)).collect();
            MetricResult::of(name, values).unwrap().interval_text()
        };
        // s = 0.1 / sqrt(2), 12.7062 s / sqrt(2) = 0.6353; of 10 and 20: 15 -+ 63.5.
        assert_eq!(interval("asr", [0.9, 1.0]), "[31.47, 100.00]");
        assert_eq!(interval("routing/trigger-capture", [0.0, 0.1]), "[0.0000, 0.6853]");
        assert_eq!(interval("clean-accuracy-drop", [0.0, 0.1]), "[-58.53, 68.53]");
        assert_eq!(interval("routing/correlation-intensity", [0.0, 0.1]), "[-0.5853, 0.6853]");
        assert_eq!(interval("fine-tuning/seconds", [10.0, 20.0]), "[0, 79]");
    }

    #[test]
    fn a_table_for_a_terminal() {
        insta::assert_snapshot!(example_table().to_text());
    }

    #[test]
    fn a_table_for_a_document() {
        insta::assert_snapshot!(example_table().to_markdown());
    }

    #[test]
    fn a_table_for_a_spreadsheet() {
        insta::assert_snapshot!(String::from_utf8(example_table().to_csv().unwrap()).unwrap());
    }

    #[test]
    fn a_table_is_written_in_all_forms_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let into = folder.path().join("rates-12345678.sweep");
        example_table().write(&into).unwrap();
        // To the last digit of every number.
        assert_eq!(ResultTable::read(&into).unwrap(), example_table());
        let mut names = fs::read_dir(&into).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        names.sort();
        assert_eq!(names, ["table.csv", "table.json", "table.md", "table.txt"]);
    }

    #[test]
    fn a_path_is_published_without_the_machine_it_lay_on() {
        assert_eq!(published_path(Path::new("/home/me/p/experiments/cpu/c5.toml")), "experiments/cpu/c5.toml");
        assert_eq!(published_path(Path::new("experiments/c5.toml")), "experiments/c5.toml");
        assert_eq!(published_path(Path::new("/tmp/c5.toml")), "c5.toml");
    }
}
