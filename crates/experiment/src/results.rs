use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Deserialize;

use crate::diagnostics::nearest;
use crate::files::write_json;
use crate::result::RunSummary;
use crate::sweep::{MetricResult, PointResult, ResultTable};

/// What the project claims to know about each claim of the paper; `claims.toml`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Claims {
    /// Markdown before the claims.
    #[serde(default)]
    preface: String,
    claims: Vec<Claim>,
}

/// One claim and what became of it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Claim {
    /// Its short name, as in `C5`.
    id: String,
    /// What is claimed.
    #[serde(rename = "claim")]
    statement: String,
    /// The paper's numbers.
    paper: String,
    verdict: Verdict,
    /// Why. `{result/point/number}` stands for a number of a result, `{result/point/number|interval}` for its interval.
    sentence: String,
    /// Results to show.
    #[serde(default)]
    tables: Vec<ShownTable>,
}

/// Whether a claim holds, as far as the results can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Confirmed,
    Refuted,
    Undecidable,
    Open,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Refuted => "refuted",
            Self::Undecidable => "not decidable at this scale",
            Self::Open => "open",
        }
    }
}

/// Points and numbers of one result.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ShownTable {
    /// Name of the result's file without its ending.
    result: String,
    /// A line above it.
    #[serde(default)]
    title: String,
    /// Labels of the points, all if not given.
    points: Option<Vec<String>>,
    /// Names of the numbers.
    columns: Vec<String>,
}

/// Why results cannot be collected or shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResultsError {
    /// A file cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The claims are not as they have to be.
    #[error("{} cannot be understood", path.display())]
    Claims {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A result file is not as it has to be.
    #[error("{} is not a result of this program", path.display())]
    Result {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The claims speak of something that is not there; all such places.
    #[error("the claims do not fit the results:\n  {}", problems.join("\n  "))]
    Unknown {
        /// What is not there, and what is.
        problems: Vec<String>,
    },
}

/// What became of one result that could be collected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Collected {
    /// Its compact copy is written.
    Written {
        /// The file.
        path: PathBuf,
        /// Seeds of each point.
        seeds: usize,
    },
    /// It is not taken.
    Skipped {
        /// Its folder's name.
        result: String,
        /// Why.
        reason: String,
    },
}

/// Copies the tables of finished sweeps and runs below `runs` to `into`, one compact file for each experiment, ready to be
/// committed.
///
/// Quick versions and runs on stand-in images are left out, and seeds that are not finished at every point. A result that has
/// more seeds than the new one is replaced only with `force`.
///
/// # Errors
/// If a folder cannot be read or a file not be written.
pub fn collect_results(runs: &Path, into: &Path, force: bool) -> Result<Vec<Collected>, ResultsError> {
    let mut tables = Vec::new();
    let mut singles = Vec::new();
    let mut entries =
        fs::read_dir(runs)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    entries.sort();
    // What was moved aside is no result any more.
    entries.retain(|path| !path.to_string_lossy().contains(".old-"));
    for folder in entries {
        if let Some(table) = ResultTable::read(&folder) {
            tables.push(table);
        } else if let Ok(bytes) = fs::read(folder.join("summary.json"))
            && let Ok(summary) = serde_json::from_slice::<RunSummary>(&bytes)
        {
            singles.push(ResultTable::of_run(&folder, &summary));
        }
    }
    let of_sweeps = tables.iter().flat_map(|table| &table.points).flat_map(|point| point.runs.values());
    let of_sweeps = of_sweeps.cloned().collect::<BTreeSet<_>>();
    tables.extend(singles.into_iter().filter(|table| !of_sweeps.contains(&table.result)));

    let mut collected = Vec::new();
    let mut best: BTreeMap<String, ResultTable> = BTreeMap::new();
    for table in tables {
        let result = table.result.clone();
        let mut skip = |result: &str, reason: &str| {
            collected.push(Collected::Skipped { result: result.to_owned(), reason: reason.to_owned() });
        };
        match compact(table) {
            Err(reason) => skip(&result, reason),
            Ok(table) => match best.get(&table.experiment) {
                Some(other) if other.finished() >= table.finished() => {
                    skip(&result, &format!("{} of the same experiment has as many runs or more", other.result));
                }
                other => {
                    if let Some(other) = other {
                        let reason = format!("{result} of the same experiment has more runs");
                        skip(&other.result, &reason);
                    }
                    best.insert(table.experiment.clone(), table);
                }
            },
        }
    }
    fs::create_dir_all(into)?;
    for (name, table) in best {
        let path = into.join(format!("{name}.json"));
        if path.is_file() {
            let known = read_result(&path)?;
            if known.seeds.len() > table.seeds.len() && !force {
                let reason =
                    format!("{} has {} seeds, this has {}", path.display(), known.seeds.len(), table.seeds.len());
                collected.push(Collected::Skipped {
                    result: table.result,
                    reason: format!("{reason} (--force replaces it)"),
                });
                continue;
            }
        }
        write_json(&path, &table)?;
        collected.push(Collected::Written { path, seeds: table.seeds.len() });
    }
    Ok(collected)
}

/// A table without the folders of its runs and without seeds that some point does not have yet, or why it is of no use.
fn compact(mut table: ResultTable) -> Result<ResultTable, &'static str> {
    if table.quick {
        return Err("it is a quick version, whose numbers mean nothing");
    }
    if !table.substitutions.is_empty() {
        return Err("other images stood in for those that it names");
    }
    let has = |point: &PointResult, seed: u64| {
        point.failed.contains_key(&seed) || point.metrics.iter().any(|metric| metric.values.contains_key(&seed))
    };
    let complete = table.seeds.iter().copied().filter(|&seed| table.points.iter().all(|point| has(point, seed)));
    let complete = complete.collect::<Vec<_>>();
    if complete.is_empty() || table.finished() == 0 {
        return Err("no seed is finished at every point");
    }
    for point in &mut table.points {
        point.runs.clear();
        point.failed.retain(|seed, _| complete.contains(seed));
        let metrics = point.metrics.iter().filter_map(|metric| {
            let values = metric.values.iter().filter(|(seed, _)| complete.contains(seed));
            MetricResult::of(&metric.name, values.map(|(&seed, &value)| (seed, value)).collect())
        });
        point.metrics = metrics.collect();
    }
    table.seeds = complete;
    Ok(table)
}

fn read_result(path: &Path) -> Result<ResultTable, ResultsError> {
    serde_json::from_slice(&fs::read(path)?).map_err(|source| ResultsError::Result { path: path.to_owned(), source })
}

/// Writes down what became of each claim, as Markdown, from the claims file and the collected results.
///
/// # Errors
/// If a file is missing or cannot be understood, or the claims name a result, point or number that is not there.
pub fn render_results(claims: &Path, results: &Path) -> Result<String, ResultsError> {
    let text = fs::read_to_string(claims)?;
    let claims: Claims = toml::from_str(&text)
        .map_err(|source| ResultsError::Claims { path: claims.to_owned(), source: Box::new(source) })?;
    let mut tables = BTreeMap::new();
    for entry in fs::read_dir(results).into_iter().flatten() {
        let path = entry?.path();
        if let Some(name) = path.file_stem()
            && path.extension().is_some_and(|extension| extension == "json")
        {
            tables.insert(name.to_string_lossy().into_owned(), read_result(&path)?);
        }
    }
    let mut page = Page { tables, problems: Vec::new() };
    let text = page.write(&claims);
    if page.problems.is_empty() { Ok(text) } else { Err(ResultsError::Unknown { problems: page.problems }) }
}

struct Page {
    tables: BTreeMap<String, ResultTable>,
    problems: Vec<String>,
}

impl Page {
    fn write(&mut self, claims: &Claims) -> String {
        let mut text = String::from(
            "# Results\n\n<!-- Written by `cargo xtask results` from experiments/claims.toml and experiments/results; edit those. -->\n\n",
        );
        if !claims.preface.is_empty() {
            let preface = self.filled("the preface", claims.preface.trim());
            let _ = writeln!(text, "{preface}\n");
        }
        text.push_str("| | claim | verdict |\n| --- | --- | --- |\n");
        for claim in &claims.claims {
            let _ = writeln!(text, "| {} | {} | {} |", claim.id, claim.statement.trim(), claim.verdict.word());
        }
        for claim in &claims.claims {
            let sentence = self.filled(&claim.id, claim.sentence.trim());
            let _ = write!(
                text,
                "\n## {}: {}\n\nPaper: {}\n\n**{}.** {sentence}\n",
                claim.id,
                claim.statement.trim(),
                claim.paper.trim(),
                capitalized(claim.verdict.word()),
            );
            for shown in &claim.tables {
                let table = self.table(&claim.id, shown);
                text.push_str(&table);
            }
        }
        text
    }

    /// One table of a claim, with what it rests on.
    fn table(&mut self, claim: &str, shown: &ShownTable) -> String {
        let Some(table) = self.tables.get(&shown.result) else {
            self.unknown_result(claim, &shown.result);
            return String::new();
        };
        let mut problems = Vec::new();
        let mut points = Vec::new();
        match &shown.points {
            None => points.extend(&table.points),
            Some(labels) => {
                for label in labels {
                    match table.point(label) {
                        Some(point) => points.push(point),
                        None => problems.push(no_point(claim, &shown.result, label, table)),
                    }
                }
            }
        }
        let known = table.metric_names();
        for column in shown.columns.iter().filter(|column| !known.contains(&column.as_str())) {
            problems.push(no_number(claim, &shown.result, column, &known));
        }
        let columns = shown.columns.iter().map(String::as_str).collect::<Vec<_>>();
        let mut text = String::from("\n");
        if !shown.title.is_empty() {
            let _ = writeln!(text, "{}\n", shown.title.trim());
        }
        text.push_str(&table.markdown_rows(&points, &columns));
        let _ = writeln!(text, "\n{}", provenance(table));
        self.problems.extend(problems);
        text
    }

    /// A text with its placeholders replaced.
    fn filled(&mut self, place: &str, text: &str) -> String {
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            filled.push_str(before);
            let Some((placeholder, after)) = after.split_once('}') else {
                self.problems.push(format!("{place}: {{{after} has no closing brace"));
                rest = "";
                break;
            };
            match self.number(place, placeholder) {
                Ok(number) => filled.push_str(&number),
                Err(problem) => self.problems.push(problem),
            }
            rest = after;
        }
        filled.push_str(rest);
        filled
    }

    /// What `result/point/number` or `result/point/number|interval` stands for; the point may be left out of a result that
    /// has only one.
    fn number(&self, place: &str, placeholder: &str) -> Result<String, String> {
        let (path, interval) = match placeholder.rsplit_once('|') {
            None => (placeholder, false),
            Some((path, "interval")) => (path, true),
            Some((_, other)) => return Err(format!("{place}: {{{placeholder}}} ends in {other:?}, expected interval")),
        };
        let (result, rest) = path.split_once('/').unwrap_or((path, ""));
        let Some(table) = self.tables.get(result) else { return Err(self.no_result(place, result)) };
        // Labels and numbers may have slashes themselves.
        let mut splits = rest.match_indices('/').map(|(slash, _)| (&rest[..slash], &rest[slash + 1..]));
        let found = splits.find_map(|(label, number)| Some((table.point(label)?, number)));
        let alone = if let [point] = table.points.as_slice() { Some((point, rest)) } else { None };
        let Some((point, number)) = found.or(alone) else {
            let label = rest.split_once('/').map_or(rest, |(label, _)| label);
            return Err(no_point(place, result, label, table));
        };
        let Some(metric) = point.metric(number) else {
            let known = point.metrics.iter().map(|metric| metric.name.as_str()).collect::<Vec<_>>();
            return Err(no_number(place, &format!("{result}/{}", point.label), number, &known));
        };
        let unit = if metric.is_share() { " %" } else { "" };
        match (interval, metric.interval_95) {
            (false, _) => Ok(format!("{}{unit} (n = {})", metric.mean_text(), metric.count)),
            (true, Some(_)) => Ok(format!("{}{unit}", metric.interval_text())),
            (true, None) => Err(format!("{place}: {{{placeholder}}} has one seed and no interval")),
        }
    }

    fn unknown_result(&mut self, place: &str, result: &str) {
        let problem = self.no_result(place, result);
        self.problems.push(problem);
    }

    fn no_result(&self, place: &str, result: &str) -> String {
        let known = self.tables.keys().map(String::as_str).collect::<Vec<_>>();
        format!("{place}: there is no result {result:?}{}", instead(result, &known))
    }
}

fn no_point(place: &str, result: &str, label: &str, table: &ResultTable) -> String {
    let known = table.points.iter().map(|point| point.label.as_str()).collect::<Vec<_>>();
    format!("{place}: {result} has no point {label:?}{}", instead(label, &known))
}

fn no_number(place: &str, of: &str, number: &str, known: &[&str]) -> String {
    format!("{place}: {of} has no number {number:?}{}", instead(number, known))
}

/// The word that was meant, or the words there are.
fn instead(word: &str, known: &[&str]) -> String {
    match nearest(word, known.iter().copied()) {
        Some(near) => format!("; did you mean {near:?}?"),
        None if known.is_empty() => "; there are none".into(),
        None => format!(", expected one of {}", known.join("; ")),
    }
}

/// What a table rests on, in small print.
fn provenance(table: &ResultTable) -> String {
    let seeds = table.seeds.len();
    let commits = table.commits.iter().map(|commit| {
        let (hash, changed) = commit.split_once(' ').map_or((commit.as_str(), ""), |(hash, _)| (hash, " and changes"));
        format!("{}{changed}", hash.get(..10).unwrap_or(hash))
    });
    let mut text = format!(
        "<sub>`{}` on {}, {} {}, {} ({}), commit {}. Mean ± standard deviation [95 % confidence interval of the mean], shares in percent.",
        table.file,
        table.datasets.join(" and "),
        seeds,
        if seeds == 1 { "seed" } else { "seeds" },
        table.backend,
        table.devices.join("; "),
        commits.collect::<Vec<_>>().join(", "),
    );
    for note in &table.notes {
        let _ = write!(text, " {note}.");
    }
    text.push_str("</sub>");
    text
}

fn capitalized(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
