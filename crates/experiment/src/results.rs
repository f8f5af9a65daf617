use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Deserialize;

use crate::diagnostics::nearest;
use crate::files::write_json;
use crate::result::RunSummary;
use crate::sweep::{MetricResult, PointResult, ResultTable, group_of, in_group};

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
    /// Groups of numbers, such as the titles of defenses; if given, each is a row, and columns are named without their group.
    /// The group `""` is the attack itself.
    rows: Option<Vec<String>>,
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
            singles.push((folder, summary));
        }
    }
    let of_sweeps = tables.iter().flat_map(|table| &table.points).flat_map(|point| point.runs.values());
    let of_sweeps = of_sweeps.cloned().collect::<BTreeSet<_>>();
    // Runs of one experiment with some of its seeds each belong together.
    let mut experiments: BTreeMap<String, Vec<(&Path, &RunSummary)>> = BTreeMap::new();
    for (folder, summary) in singles.iter().filter(|(_, summary)| !of_sweeps.contains(&summary.run)) {
        experiments.entry(identity_without_seeds(folder, summary)).or_default().push((folder, summary));
    }
    tables.extend(experiments.into_values().filter_map(ResultTable::of_runs));

    let mut collected = Vec::new();
    let mut best: BTreeMap<String, ResultTable> = BTreeMap::new();
    for table in tables {
        let result = table.result.clone();
        let mut skip = |result: &str, reason: &str| {
            collected.push(Collected::Skipped { result: result.to_owned(), reason: reason.to_owned() });
        };
        match compact(table) {
            Err(reason) => skip(&result, reason),
            Ok(table) => match best.get(&file_name(&table)) {
                Some(other) if other.finished() >= table.finished() => {
                    skip(&result, &format!("{} of the same experiment has as many runs or more", other.result));
                }
                other => {
                    if let Some(other) = other {
                        let reason = format!("{result} of the same experiment has more runs");
                        skip(&other.result, &reason);
                    }
                    best.insert(file_name(&table), table);
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

/// What runs of one experiment have in common: all that decides on their numbers except their seeds.
fn identity_without_seeds(folder: &Path, summary: &RunSummary) -> String {
    let config = fs::read_to_string(folder.join("config.toml")).ok().and_then(|text| text.parse::<toml::Table>().ok());
    let Some(mut config) = config else { return summary.run.clone() };
    config.remove("seeds");
    config.remove("expected");
    format!("{} {} {} {:?} {config}", summary.experiment, summary.backend, summary.quick, summary.images)
}

/// What a result is called: its experiment's path below `experiments/`, with dashes.
fn file_name(table: &ResultTable) -> String {
    let path = table.file.strip_prefix("experiments/").unwrap_or(&table.file);
    match path.strip_suffix(".toml").unwrap_or(path) {
        "" => table.experiment.clone(),
        name => name.replace('/', "-"),
    }
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
        for seeds in point.failed_defenses.values_mut() {
            seeds.retain(|seed, _| complete.contains(seed));
        }
        point.failed_defenses.retain(|_, seeds| !seeds.is_empty());
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
        let columns = shown.columns.iter().map(String::as_str).collect::<Vec<_>>();
        let groups = shown.rows.as_ref().map(|rows| rows.iter().map(String::as_str).collect::<Vec<_>>());
        match &groups {
            None => {
                for column in columns.iter().filter(|column| !known.contains(*column)) {
                    problems.push(no_number(claim, &shown.result, column, &known));
                }
            }
            Some(groups) => {
                let known_groups = known.iter().map(|name| group_of(name)).collect::<BTreeSet<_>>();
                for group in groups.iter().filter(|group| !known_groups.contains(*group)) {
                    let known = known_groups.iter().copied().collect::<Vec<_>>();
                    problems.push(format!("{claim}: {} has no row {group:?}{}", shown.result, instead(group, &known)));
                }
                // The attack itself has no ratings, a defense no drop: one row with that number is enough.
                let has = |column: &str| groups.iter().any(|group| known.contains(&in_group(group, column).as_str()));
                if groups.iter().all(|group| known_groups.contains(*group)) {
                    for column in columns.iter().filter(|column| !has(column)) {
                        problems.push(no_number(claim, &shown.result, column, &known));
                    }
                }
            }
        }
        let mut text = String::from("\n");
        if !shown.title.is_empty() {
            let _ = writeln!(text, "{}\n", shown.title.trim());
        }
        text.push_str(&match &groups {
            None => table.markdown_rows(&points, &columns),
            Some(groups) => table.markdown_groups(&points, groups, &columns),
        });
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
        // An experiment may be called like one of its defenses.
        let is_there =
            |of: Option<(&PointResult, &str)>| of.is_some_and(|(point, number)| point.metric(number).is_some());
        if is_there(found) && is_there(alone) {
            return Err(format!("{place}: {{{placeholder}}} can be two numbers; write {result}/POINT/NUMBER"));
        }
        let Some((point, number)) = found.or(alone) else {
            let label = rest.split_once('/').map_or(rest, |(label, _)| label);
            return Err(no_point(place, result, label, table));
        };
        let Some(metric) = point.metric(number) else {
            let known = point.metrics.iter().map(|metric| metric.name.as_str()).collect::<Vec<_>>();
            return Err(no_number(place, &format!("{result}/{}", point.label), number, &known));
        };
        let unit = match metric.name.as_str() {
            name if name.ends_with("accuracy-drop") => " points",
            _ if metric.is_share() => " %",
            _ => "",
        };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::example_table;

    const CLAIMS: &str = r#"
preface = "All of it on one machine."

[[claims]]
id = "C5"
claim = "few images are enough"
paper = "ASR above 80 % at 0.01 %"
verdict = "undecidable"
sentence = "With four cells it is {rates/0.001, four cells/asr}, {rates/0.001, four cells/asr|interval}, after pruning {rates/0.001, four cells/fine-pruning/asr}."

[[claims.tables]]
result = "rates"
title = "Two rates:"
columns = ["poisoned-images", "asr", "fine-pruning/robust-improvement"]

[[claims.tables]]
result = "rates"
points = ["0.01, a | b"]
columns = ["asr"]

[[claims.tables]]
result = "rates"
points = ["0.001, four cells"]
rows = ["", "fine-pruning"]
columns = ["clean-accuracy", "asr", "robust-improvement"]

[[claims]]
id = "C7"
claim = "so do transformers"
paper = "-"
verdict = "open"
sentence = "Nobody has looked."
"#;

    /// A folder with the claims and one result.
    fn folder(claims: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("claims.toml"), claims).unwrap();
        fs::create_dir(folder.path().join("results")).unwrap();
        write_json(&folder.path().join("results/rates.json"), &example_table()).unwrap();
        folder
    }

    fn render(claims: &str) -> Result<String, ResultsError> {
        let folder = folder(claims);
        render_results(&folder.path().join("claims.toml"), &folder.path().join("results"))
    }

    #[test]
    fn every_claim_has_its_verdict_its_sentence_and_its_tables() {
        insta::assert_snapshot!(render(CLAIMS).unwrap());
    }

    #[test]
    fn a_name_that_is_not_there_is_an_error_that_says_what_is() {
        let claims = CLAIMS
            .replace("{rates/0.001, four cells/asr}", "{rats/0.001, four cells/asr}")
            .replace("four cells/asr|interval", "five cells/asr|interval")
            .replace("fine-pruning/asr}", "fine-pruning/ars}")
            .replace("\"asr\", \"fine-pruning/robust-improvement\"", "\"clean\"")
            .replace("\"0.01, a | b\"", "\"0.1\"")
            .replace("rows = [\"\", \"fine-pruning\"]", "rows = [\"fine-prunning\"]")
            .replace("Nobody has looked.", "Nobody {rates/0.01, a | b/asr|range} {has looked.");
        insta::assert_snapshot!(render(&claims).unwrap_err());
    }

    #[test]
    fn a_name_of_two_numbers_is_an_error() {
        // The only point is called like a defense.
        let mut table = example_table();
        table.points.truncate(1);
        table.points[0].label = "fine-pruning".into();
        let claims = |sentence: &str| {
            format!(
                "[[claims]]\nid = \"C3\"\nclaim = \"-\"\npaper = \"-\"\nverdict = \"open\"\nsentence = \"{sentence}\"\n"
            )
        };
        let render = |sentence: &str| {
            let folder = folder(&claims(sentence));
            write_json(&folder.path().join("results/rates.json"), &table).unwrap();
            render_results(&folder.path().join("claims.toml"), &folder.path().join("results"))
        };
        let error = render("{rates/fine-pruning/asr}").unwrap_err().to_string();
        assert!(error.contains("{rates/fine-pruning/asr} can be two numbers; write rates/POINT/NUMBER"), "{error}");
        assert!(render("{rates/fine-pruning/fine-pruning/asr}").unwrap().contains("37.50 ± 17.68 % (n = 2)"));
        assert!(render("{rates/asr}").unwrap().contains("95.00 ± 7.07 % (n = 2)"));
    }

    #[test]
    fn claims_that_cannot_be_read_are_an_error() {
        for (from, to) in [("verdict = \"open\"", "verdict = \"maybe\""), ("paper = \"-\"", "papers = 3")] {
            assert!(matches!(render(&CLAIMS.replace(from, to)), Err(ResultsError::Claims { .. })));
        }
        let folder = folder(CLAIMS);
        let missing = render_results(&folder.path().join("none.toml"), &folder.path().join("results"));
        assert!(missing.unwrap_err().to_string().contains("none.toml"));
    }

    /// A folder of runs with one sweep.
    fn runs(table: &ResultTable) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        table.write(&folder.path().join(&table.result)).unwrap();
        folder
    }

    #[test]
    fn what_is_collected_has_only_seeds_that_every_point_has() {
        let mut table = example_table();
        // Seed 1 of the second point failed, which is an end too; seed 2 is there for the first point only.
        table.seeds.push(2);
        table.points[0].metrics[3].values.insert(2, 0.5);
        let runs = runs(&table);
        let into = runs.path().join("results");
        let collected = collect_results(runs.path(), &into, false).unwrap();
        let path = into.join("rates.json");
        assert_eq!(collected, [Collected::Written { path: path.clone(), seeds: 2 }]);
        let written = read_result(&path).unwrap();
        assert_eq!(written.seeds, [0, 1]);
        assert_eq!(
            written.points[0].metric("asr").unwrap().values,
            example_table().points[0].metric("asr").unwrap().values
        );
        assert_eq!(written.points[1].failed.len(), 1);
        assert!(!fs::read_to_string(&path).unwrap().contains("rates-0000000"), "names of run folders are left out");
    }

    #[test]
    fn runs_of_one_experiment_with_some_of_its_seeds_each_are_one_result() {
        use crate::report::tests::{run, seed};
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, config: &str, seeds: &[(u64, f64)]| {
            let seeds = seeds.iter().map(|&(number, asr)| seed(number, 0.7, asr)).collect();
            let summary = RunSummary { run: name.to_owned(), expected: None, ..run("badnets", seeds) };
            fs::create_dir_all(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("config.toml"), config).unwrap();
            write_json(&folder.path().join(name).join("summary.json"), &summary).unwrap();
        };
        put("badnets-00000000", "seeds = [2]\n[training]\nepochs = 3\n", &[(2, 0.5)]);
        put(
            "badnets-11111111",
            "seeds = [0, 1]\n[training]\nepochs = 3\n[expected]\nasr = 1.0\n",
            &[(0, 1.0), (1, 0.9)],
        );
        // Another training is another experiment; with fewer runs under the same name it is left out.
        put("badnets-22222222", "seeds = [3, 4]\n[training]\nepochs = 4\n", &[(3, 0.1), (4, 0.1)]);
        let into = folder.path().join("results");
        let collected = collect_results(folder.path(), &into, false).unwrap();
        let path = into.join("badnets.json");
        assert!(collected.contains(&Collected::Written { path: path.clone(), seeds: 3 }), "{collected:?}");
        let written = read_result(&path).unwrap();
        let asr = written.points[0].metric("asr").unwrap();
        assert_eq!(asr.values, [(0, 1.0), (1, 0.9), (2, 0.5)].into());
        assert_eq!((written.seeds, asr.count), (vec![0, 1, 2], 3));
    }

    #[test]
    fn quick_results_and_stand_ins_are_not_collected() {
        let quick = ResultTable { quick: true, ..example_table() };
        let shapes = ResultTable { substitutions: vec!["run on shapes instead".into()], ..example_table() };
        for table in [quick, shapes] {
            let runs = runs(&table);
            let collected = collect_results(runs.path(), &runs.path().join("results"), false).unwrap();
            assert!(matches!(&collected[..], [Collected::Skipped { .. }]), "{collected:?}");
            assert!(!runs.path().join("results/rates.json").exists());
        }
    }

    #[test]
    fn a_result_of_more_seeds_is_replaced_only_by_force() {
        let runs = runs(&example_table());
        let into = runs.path().join("results");
        fs::create_dir(&into).unwrap();
        let more = ResultTable { seeds: vec![0, 1, 2], ..example_table() };
        write_json(&into.join("rates.json"), &more).unwrap();
        let collected = collect_results(runs.path(), &into, false).unwrap();
        assert!(matches!(&collected[..], [Collected::Skipped { reason, .. }] if reason.contains("3 seeds")));
        assert_eq!(read_result(&into.join("rates.json")).unwrap().seeds, [0, 1, 2]);
        collect_results(runs.path(), &into, true).unwrap();
        assert_eq!(read_result(&into.join("rates.json")).unwrap().seeds, [0, 1]);
    }

    #[test]
    fn results_of_two_files_of_one_name_are_two() {
        let mut paper = example_table();
        paper.file = "experiments/paper/rates.toml".into();
        paper.result = "rates-00000000.sweep".into();
        let runs = runs(&example_table());
        paper.write(&runs.path().join(&paper.result)).unwrap();
        let into = runs.path().join("results");
        collect_results(runs.path(), &into, false).unwrap();
        assert_eq!(read_result(&into.join("rates.json")).unwrap().file, example_table().file);
        assert_eq!(read_result(&into.join("paper-rates.json")).unwrap().file, paper.file);
    }

    #[test]
    fn of_two_sweeps_of_one_experiment_the_larger_is_collected() {
        let mut smaller = example_table();
        smaller.result = "rates-00000000.sweep".into();
        smaller.points.truncate(1);
        let runs = runs(&example_table());
        smaller.write(&runs.path().join(&smaller.result)).unwrap();
        let into = runs.path().join("results");
        let collected = collect_results(runs.path(), &into, false).unwrap();
        assert!(
            collected.iter().any(|one| matches!(one, Collected::Skipped { result, .. } if *result == smaller.result))
        );
        assert_eq!(read_result(&into.join("rates.json")).unwrap().result, example_table().result);
    }

    #[test]
    fn the_published_page_is_what_the_published_results_say() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let text = render_results(&root.join("experiments/claims.toml"), &root.join("experiments/results"));
        let page = fs::read_to_string(root.join("RESULTS.md")).unwrap();
        assert!(text.unwrap() == page, "RESULTS.md is not up to date; cargo xtask results writes it");
    }
}
