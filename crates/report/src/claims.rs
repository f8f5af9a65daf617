use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use fs_err as fs;
use patchdoor_record::{ResultTable, Unit, group_of, in_group, published_path};
use serde::Deserialize;

use crate::claim_figure::ClaimFigure;
use crate::lookup::{Found, Results, instead, no_number, no_point};
use crate::result_file::ResultsError;
use crate::sweep_table::{markdown_groups, markdown_rows};
use crate::verdict::{Beyond, Measured, Outcome, Standing, Test, Verdict};

/// What the project claims to know about each claim of the paper; `claims.toml`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Claims {
    /// Markdown before the claims.
    #[serde(default)]
    preface: String,
    claims: Vec<Claim>,
}

/// One claim, the tests that decide on it and what is to be said of them.
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
    /// What would change our mind.
    changes_our_mind: String,
    /// What is said of it. `{result/point/number}` stands for a number of a result, `{result/point/number|interval}` for its
    /// interval, `{result/point/number|seeds}` for the value of each seed.
    sentence: String,
    /// The hypotheses from which the verdict follows, the first its headline.
    #[serde(default)]
    tests: Vec<Test>,
    /// Pictures of numbers.
    #[serde(default)]
    figures: Vec<ClaimFigure>,
    /// Results to show.
    #[serde(default)]
    tables: Vec<ShownTable>,
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
    /// What rows are called, where not like their group.
    #[serde(default)]
    names: BTreeMap<String, String>,
}

/// What is published of the claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedResults {
    /// The page, Markdown.
    pub page: String,
    /// Its pictures, SVG, by the names of their files.
    pub pictures: BTreeMap<String, String>,
}

/// Writes down what became of each claim, as Markdown, from the claims file and the collected results; `pictures` is the folder
/// in which the page will find its pictures.
///
/// # Errors
/// If a file is missing or cannot be understood, or the claims name a result, point or number that is not there.
pub fn render_results(claims: &Path, results: &Path, pictures: &Path) -> Result<RenderedResults, ResultsError> {
    let text = fs::read_to_string(claims)?;
    let claims: Claims = toml::from_str(&text)
        .map_err(|source| ResultsError::Claims { path: claims.to_owned(), source: Box::new(source) })?;
    let folder = published_path(results);
    let mut page = Page {
        results: Results::read(results)?,
        folder,
        picture_folder: published_path(pictures),
        pictures: BTreeMap::new(),
        problems: Vec::new(),
    };
    let text = page.write(&claims);
    if page.problems.is_empty() {
        Ok(RenderedResults { page: text, pictures: page.pictures })
    } else {
        Err(ResultsError::Unknown { problems: page.problems })
    }
}

struct Page {
    results: Results,
    /// Where readers find the results.
    folder: String,
    /// Where readers find pictures, and what they are.
    picture_folder: String,
    pictures: BTreeMap<String, String>,
    problems: Vec<String>,
}

/// How verdicts come about, for readers of the page.
const RULE: &str = "\
A verdict follows from its tests by one rule, and nobody writes it. A test was written down before its runs: a number, or a
difference paired by seed, a margin, and how many seeds it needs. It holds if the whole 95 % interval (Student's t) keeps the
margin, is contradicted if none of it does, and else is undecided; equivalence is two one-sided tests. A claim is confirmed if all its
deciding tests hold, refuted if one of them is contradicted, undecided otherwise, and open if nothing is measured. Too few seeds, mixed
builds or changed source decide nothing. [docs/study.md](docs/study.md) has the hypotheses and what deviated from them.";

impl Page {
    fn write(&mut self, claims: &Claims) -> String {
        let mut text = String::from(
            "# Results\n\n<!-- Written by `cargo xtask results` from experiments/claims.toml and experiments/results; edit those. -->\n\n",
        );
        if !claims.preface.is_empty() {
            let preface = self.filled("the preface", claims.preface.trim());
            let _ = writeln!(text, "{preface}\n");
        }
        let outcomes = claims.claims.iter().map(|claim| self.outcomes(claim)).collect::<Vec<_>>();
        let verdicts = claims.claims.iter().zip(&outcomes).map(|(claim, outcomes)| {
            // Where a test is wrong the page is not shown anyway.
            Verdict::of(claim.tests.iter().zip(outcomes))
        });
        let verdicts = verdicts.collect::<Vec<_>>();
        text.push_str(
            "| | claim | verdict | the number | what would change our mind |\n| --- | --- | --- | --- | --- |\n",
        );
        for ((claim, outcomes), verdict) in claims.claims.iter().zip(&outcomes).zip(&verdicts) {
            let number = headline(claim, outcomes);
            let mind = one_line(&self.filled(&claim.id, claim.changes_our_mind.trim()));
            let _ = writeln!(
                text,
                "| {} | {} | **{}** | {number} | {mind} |",
                claim.id,
                cell(claim.statement.trim()),
                verdict.word()
            );
        }
        let _ = writeln!(text, "\n{RULE}");
        for ((claim, outcomes), verdict) in claims.claims.iter().zip(&outcomes).zip(&verdicts) {
            let sentence = self.filled(&claim.id, claim.sentence.trim());
            let _ = write!(
                text,
                "\n## {}: {}\n\nPaper: {}\n\n**{}.** {sentence}\n",
                claim.id,
                claim.statement.trim(),
                claim.paper.trim(),
                capitalized(verdict.word()),
            );
            if !claim.tests.is_empty() {
                text.push_str(&self.tests(claim, outcomes));
            }
            for figure in &claim.figures {
                let figure = self.figure(&claim.id, figure);
                text.push_str(&figure);
            }
            for shown in &claim.tables {
                let table = self.table(&claim.id, shown);
                text.push_str(&table);
            }
        }
        text
    }

    /// What became of each test of a claim.
    fn outcomes(&mut self, claim: &Claim) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for test in &claim.tests {
            match test.judge(&self.results) {
                Ok(outcome) => outcomes.push(outcome),
                Err(problem) => self.problems.push(format!("{}: {problem}", claim.id)),
            }
        }
        outcomes
    }

    /// The tests of a claim with their numbers.
    fn tests(&self, claim: &Claim, outcomes: &[Outcome]) -> String {
        let mut text = String::from(
            "\n| test | holds if | measured | n | each seed | outcome |\n| --- | --- | --- | ---: | --- | --- |\n",
        );
        for (test, outcome) in claim.tests.iter().zip(outcomes) {
            let what = match &test.control {
                None => self.linked(&test.treatment),
                Some(control) => format!("{} minus {}", self.linked(&test.treatment), self.linked(control)),
            };
            let what = match &test.beyond {
                None => what,
                Some(Beyond { treatment, control }) => {
                    format!("({what}) minus ({} minus {})", self.linked(treatment), self.linked(control))
                }
            };
            let beside = if test.decides { "" } else { " (does not decide)" };
            let measured = outcome.measured.as_ref();
            let condition = test.condition(measured.map(|measured| measured.unit));
            let number = measured.map_or_else(|| "-".into(), |measured| measured.text(test.control.is_some()));
            let count = measured.map_or(0, |measured| measured.summary.count);
            let seeds = measured.map_or_else(|| "-".into(), Measured::per_seed);
            let unpaired = measured.map_or_else(String::new, unpaired);
            let _ = writeln!(
                text,
                "| {}{beside}<br><sub>{what}</sub> | {condition} | {number} | {count} of {} | {seeds}{unpaired} | {} |",
                cell(test.says.trim()),
                test.seeds,
                outcome.standing.words(test.seeds),
            );
        }
        text
    }

    /// A number's path with a link to the file that has the value of each seed.
    fn linked(&self, path: &str) -> String {
        let result = path.split('/').next().unwrap_or(path);
        let path = cell(path);
        if self.results.tables.contains_key(result) {
            format!("[`{path}`]({}/{result}.json)", self.folder)
        } else {
            format!("`{path}`")
        }
    }

    /// One picture of a claim, with its caption.
    fn figure(&mut self, claim: &str, figure: &ClaimFigure) -> String {
        let name = format!("{}.svg", figure.file);
        let caption = self.filled(claim, figure.caption.trim());
        let twice = self.pictures.contains_key(&name).then(|| format!("there are two figures {:?}", figure.file));
        let drawn = match figure.problem().or(twice) {
            Some(problem) => Err(vec![problem]),
            None => figure.draw(&self.results),
        };
        match drawn {
            Ok((picture, words)) => {
                let text = format!("\n![{}]({}/{name})\n\n{caption}\n", cell(&words), self.picture_folder);
                self.pictures.insert(name, picture);
                text
            }
            Err(problems) => {
                self.problems.extend(problems.into_iter().map(|problem| format!("{claim}: {problem}")));
                String::new()
            }
        }
    }

    /// One table of a claim, with what it rests on.
    fn table(&mut self, claim: &str, shown: &ShownTable) -> String {
        let table = match self.results.table(&shown.result) {
            Ok(table) => table,
            Err(missing) => {
                let problem = format!("{claim}: {}", missing.reason());
                self.problems.push(problem);
                return String::new();
            }
        };
        let mut problems = Vec::new();
        let mut points = Vec::new();
        match &shown.points {
            None => points.extend(&table.points),
            Some(labels) => {
                for label in labels {
                    match table.point(label) {
                        Some(point) => points.push(point),
                        None => problems.push(format!("{claim}: {}", no_point(&shown.result, label, table))),
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
                    problems.push(format!("{claim}: {}", no_number(&shown.result, column, &known)));
                }
            }
            Some(groups) => {
                for name in shown.names.keys().filter(|name| !groups.contains(&name.as_str())) {
                    problems.push(format!("{claim}: {name:?} is named and is no row{}", instead(name, groups)));
                }
                let known_groups = known.iter().map(|name| group_of(name)).collect::<BTreeSet<_>>();
                for group in groups.iter().filter(|group| !known_groups.contains(*group)) {
                    let known = known_groups.iter().copied().collect::<Vec<_>>();
                    problems.push(format!("{claim}: {} has no row {group:?}{}", shown.result, instead(group, &known)));
                }
                // The attack itself has no ratings, a defense no drop: one row with that number is enough.
                let has = |column: &str| groups.iter().any(|group| known.contains(&in_group(group, column).as_str()));
                if groups.iter().all(|group| known_groups.contains(*group)) {
                    for column in columns.iter().filter(|column| !has(column)) {
                        problems.push(format!("{claim}: {}", no_number(&shown.result, column, &known)));
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
            Some(groups) => markdown_groups(table, &points, groups, &columns, &shown.names),
        });
        let _ = writeln!(text, "\n{}", provenance(table, &self.folder, &shown.result));
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

    /// What `result/point/number`, `result/point/number|interval` or `result/point/number|seeds` stands for.
    fn number(&self, place: &str, placeholder: &str) -> Result<String, String> {
        let (path, form) = placeholder.rsplit_once('|').unwrap_or((placeholder, ""));
        if !["", "interval", "seeds"].contains(&form) {
            return Err(format!("{place}: {{{placeholder}}} ends in {form:?}, expected interval or seeds"));
        }
        let Found { point, metric, .. } =
            self.results.find(path).map_err(|missing| format!("{place}: {}", missing.reason()))?;
        let unit = metric.unit().suffix();
        match (form, metric.interval()) {
            ("" | "interval", _) if point.collapse_in_words(&metric.name).is_some() => {
                Ok(point.collapse_in_words(&metric.name).unwrap_or_default())
            }
            ("seeds", _) => Ok(format!("{}{unit}", in_a_row(&metric.values, metric.unit()))),
            ("", _) => Ok(format!("{}{unit} (n = {})", metric.mean_text(), metric.count)),
            (_, Some(_)) => Ok(format!("{}{unit}", metric.interval_text())),
            (_, None) => Err(format!("{place}: {{{placeholder}}} has one seed and no interval")),
        }
    }
}

/// The number that a claim rests on: that of its first test that has one.
fn headline(claim: &Claim, outcomes: &[Outcome]) -> String {
    let mut measured = claim.tests.iter().zip(outcomes);
    let first = measured.find_map(|(test, outcome)| Some((test, outcome, outcome.measured.as_ref()?)));
    let Some((test, outcome, measured)) = first else { return "not yet measured".into() };
    let caveat = match outcome.standing {
        Standing::Unclean(why) => format!(", {why}"),
        Standing::TooFewSeeds => format!(" of {}", test.seeds),
        Standing::Judged(_) | Standing::NotMeasured => String::new(),
    };
    let number = measured.text(test.control.is_some());
    format!("{}: {number}, n = {}{caveat}", cell(test.says.trim()), measured.summary.count)
}

/// Values as a sentence has them: `0.20, 96.80 and 0.01`.
fn in_a_row(values: &BTreeMap<u64, f64>, unit: Unit) -> String {
    let mut texts = values.values().map(|&value| unit.text(value)).collect::<Vec<_>>();
    let last = texts.pop().unwrap_or_default();
    if texts.is_empty() { last } else { format!("{} and {last}", texts.join(", ")) }
}

/// Which seeds have no partner, if there are such.
fn unpaired(measured: &Measured) -> String {
    let list = |seeds: &[u64]| seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    let [treatment, control] = &measured.unpaired;
    match (treatment.is_empty(), control.is_empty()) {
        (true, true) => String::new(),
        (false, true) => format!(" (left out, without a control: {})", list(treatment)),
        (true, false) => format!(" (left out, only in the control: {})", list(control)),
        (false, false) => {
            format!(" (left out, without a control: {}; only in the control: {})", list(treatment), list(control))
        }
    }
}

/// A text that may stand in a cell of a table.
fn cell(text: &str) -> String {
    one_line(text).replace('|', "\\|")
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a table rests on, in small print.
fn provenance(table: &ResultTable, folder: &str, result: &str) -> String {
    // Seeds that were asked for and of which nothing finished stand behind no number.
    let finished = |seed: &u64| {
        table.points.iter().flat_map(|point| &point.metrics).any(|metric| metric.values.contains_key(seed))
    };
    let seeds = table.seeds.iter().filter(|seed| finished(seed)).count();
    let commits = table.commits.iter().map(|commit| {
        let (hash, changed) = commit.split_once(' ').map_or((commit.as_str(), ""), |(hash, _)| (hash, " and changes"));
        format!("{}{changed}", hash.get(..10).unwrap_or(hash))
    });
    let unclean = table.clean_build().err().map_or_else(String::new, |why| format!(" (**{}**)", why.name()));
    let mut text = format!(
        "<sub>`{}` on {}, {} {}, {} ({}), commit {}{unclean}; [values of each seed]({folder}/{result}.json). Mean ± standard deviation [95 % confidence interval of the mean], shares in percent.",
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
changes-our-mind = "Less than {rates/0.001, four cells/asr|seeds}."
sentence = "With four cells it is {rates/0.001, four cells/asr}, {rates/0.001, four cells/asr|interval}, after pruning {rates/0.001, four cells/fine-pruning/asr}."

[[claims.tests]]
says = "a later run | says so"
treatment = "later/asr"
control = "later/b/asr"
holds-if.at-least = 0.2
seeds = 5

[[claims.tests]]
says = "four cells give 80 %"
treatment = "rates/0.001, four cells/asr"
holds-if.at-least = 0.8
seeds = 2

[[claims.tests]]
says = "pruning takes ten points"
treatment = "rates/0.001, four cells/fine-pruning/asr"
control = "rates/0.001, four cells/asr"
holds-if.at-most = -0.1
seeds = 3
decides = false

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
changes-our-mind = "A transformer."
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
        render_in(folder.path()).map(|rendered| rendered.page)
    }

    fn render_in(folder: &Path) -> Result<RenderedResults, ResultsError> {
        render_results(&folder.join("claims.toml"), &folder.join("results"), &folder.join("figures"))
    }

    /// What a placeholder becomes.
    fn in_the_sentence_of(placeholder: &str) -> String {
        let claim = "[[claims]]\nid = \"C\"\nclaim = \"-\"\npaper = \"-\"\nchanges-our-mind = \"-\"\n";
        let page = render(&format!("{claim}sentence = \"@{placeholder}@\"\n")).unwrap();
        let (_, rest) = page.split_once('@').unwrap();
        rest.split_once('@').unwrap().0.to_owned()
    }

    #[test]
    fn a_figure_is_drawn_and_shown_with_its_caption() {
        let figure = "[[claims.figures]]\nfile = \"rates\"\ncaption = \"At {rates/0.001, four cells/asr}.\"\nlabel = \"ASR\"\n\
                      numbers = [{ name = \"four\", path = \"rates/0.001, four cells/asr\" }]\n";
        let claim = |more: &str| {
            format!(
                "[[claims]]\nid = \"C5\"\nclaim = \"-\"\npaper = \"-\"\nchanges-our-mind = \"-\"\nsentence = \"-\"\n{more}"
            )
        };
        let with = folder(&claim(figure));
        let rendered = render_in(with.path()).unwrap();
        assert_eq!(rendered.pictures.keys().collect::<Vec<_>>(), ["rates.svg"]);
        assert!(rendered.pictures["rates.svg"].starts_with("<svg "));
        let number = in_the_sentence_of("{rates/0.001, four cells/asr}");
        assert!(rendered.page.contains(&format!("figures/rates.svg)\n\nAt {number}.\n")), "{}", rendered.page);
        let twice = folder(&claim(&format!("{figure}{figure}")));
        assert!(render_in(twice.path()).unwrap_err().to_string().contains("two figures \"rates\""));
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
            .replace("treatment = \"rates/0.001, four cells/asr\"", "treatment = \"rates/0.001, four cells/assr\"")
            .replace("holds-if.at-most = -0.1", "holds-if.equivalent-within = -0.1")
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
                "[[claims]]\nid = \"C3\"\nclaim = \"-\"\npaper = \"-\"\nchanges-our-mind = \"-\"\nsentence = \"{sentence}\"\n"
            )
        };
        let render = |sentence: &str| {
            let folder = folder(&claims(sentence));
            write_result(&folder.path().join("results/rates.json"), &table).unwrap();
            render_in(folder.path()).map(|rendered| rendered.page)
        };
        let error = render("{rates/fine-pruning/asr}").unwrap_err().to_string();
        assert!(error.contains("{rates/fine-pruning/asr} can be two numbers; write rates/POINT/NUMBER"), "{error}");
        assert!(render("{rates/fine-pruning/fine-pruning/asr}").unwrap().contains("37.50 ± 17.68 % (n = 2)"));
        assert!(render("{rates/asr}").unwrap().contains("95.00 ± 7.07 % (n = 2)"));
    }

    #[test]
    fn claims_that_cannot_be_read_are_an_error() {
        for (from, to) in [
            // Nobody writes a verdict.
            ("paper = \"-\"", "paper = \"-\"\nverdict = \"confirmed\""),
            ("paper = \"-\"", "papers = 3"),
            ("at-most", "below"),
            ("seeds = 5", ""),
        ] {
            assert!(matches!(render(&CLAIMS.replace(from, to)), Err(ResultsError::Claims { .. })));
        }
        let folder = folder(CLAIMS);
        let missing = render_results(
            &folder.path().join("none.toml"),
            &folder.path().join("results"),
            &folder.path().join("figures"),
        );
        assert!(missing.unwrap_err().to_string().contains("none.toml"));
    }

    #[test]
    fn the_published_page_is_what_the_published_results_say() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let pictures = root.join("experiments/figures");
        let rendered =
            render_results(&root.join("experiments/claims.toml"), &root.join("experiments/results"), &pictures);
        let rendered = rendered.unwrap();
        let page = fs::read_to_string(root.join("RESULTS.md")).unwrap();
        assert!(rendered.page == page, "RESULTS.md is not up to date; cargo xtask results writes it");
        for (name, picture) in rendered.pictures {
            let drawn = fs::read_to_string(pictures.join(&name)).unwrap();
            assert!(picture == drawn, "{name} is not up to date; cargo xtask results draws it");
        }
    }
}
