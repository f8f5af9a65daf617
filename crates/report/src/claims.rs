use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use fs_err as fs;
use patchdoor_record::{PointResult, ResultTable, group_of, in_group};
use serde::Deserialize;

use crate::result_file::{ResultsError, read_result};
use crate::sweep_table::{markdown_groups, markdown_rows};

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
            None => markdown_rows(table, &points, &columns),
            Some(groups) => markdown_groups(table, &points, groups, &columns),
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
        let unit = metric.unit().suffix();
        match (interval, metric.interval()) {
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
    let near = known.iter().map(|known| (strsim::osa_distance(word, known), known)).min();
    match near {
        Some((distance, near)) if distance <= 1 + word.len().max(near.len()) / 4 => {
            format!("; did you mean {near:?}?")
        }
        Some(_) => format!(", expected one of {}", known.join("; ")),
        None => "; there are none".into(),
    }
}

/// What a table rests on, in small print.
fn provenance(table: &ResultTable) -> String {
    // Seeds that were asked for and of which nothing finished stand behind no number.
    let finished = |seed: &u64| {
        table.points.iter().flat_map(|point| &point.metrics).any(|metric| metric.values.contains_key(seed))
    };
    let seeds = table.seeds.iter().filter(|seed| finished(seed)).count();
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
    use crate::result_file::write_result;
    use crate::sweep_table::example_table;

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
        write_result(&folder.path().join("results/rates.json"), &example_table()).unwrap();
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
            write_result(&folder.path().join("results/rates.json"), &table).unwrap();
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

    #[test]
    fn the_published_page_is_what_the_published_results_say() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let text = render_results(&root.join("experiments/claims.toml"), &root.join("experiments/results"));
        let page = fs::read_to_string(root.join("RESULTS.md")).unwrap();
        assert!(text.unwrap() == page, "RESULTS.md is not up to date; cargo xtask results writes it");
    }
}
