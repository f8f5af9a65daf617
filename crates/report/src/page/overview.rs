use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use maud::html;
use patchdoor_record::{
    Content, Listed, MetricInfo, MetricResult, PointResult, RecordError, ResultTable, RunState, group_of, in_group,
};

use super::frame::{PAGE, Page, Section};
use super::table::{Cell, Table};
use crate::config::{Choice, Setup, read_config};
use crate::sweep_table::failures;

/// Name of the page about all runs and sweeps in their folder.
pub const OVERVIEW: &str = "overview.html";

/// The numbers that have a column, each with the part of a run's page where it stands, and why it may be absent.
const NUMBERS: [(&str, &str, &str); 5] = [
    ("clean-accuracy", "numbers", "not measured"),
    ("asr", "numbers", "no attack measured"),
    ("clean-twin-accuracy", "numbers", "no twin"),
    ("clean-twin-asr", "numbers", "no twin"),
    ("routing/trigger-capture", "routing", "routing not measured"),
];

/// Letters of a commit that are shown.
const COMMIT: usize = 10;

/// Writes the page about all runs and sweeps of a folder into it and returns its path: one file that needs nothing else, with
/// links to their pages, which must have been written.
///
/// # Errors
/// If the page cannot be written. What cannot be read of a run stands in its row.
pub fn write_overview(out: &Path, listed: &[Listed]) -> Result<PathBuf, RecordError> {
    let path = out.join(OVERVIEW);
    page(out, &entries(listed)).write_to(&path)?;
    Ok(path)
}

/// A run or a sweep with all that its row says.
struct Entry {
    listed: Listed,
    /// Its numbers, of a run as a table of one point; `None` if there are none.
    table: Option<ResultTable>,
    /// What was chosen, of a sweep in its runs; empty if nobody knows.
    attacks: Vec<Choice>,
    models: Vec<Choice>,
    datasets: Vec<String>,
}

fn entries(listed: &[Listed]) -> Vec<Entry> {
    let mut setups: BTreeMap<String, Setup> = BTreeMap::new();
    let entry = |listed: &Listed| match read(listed, &mut setups) {
        Ok(entry) => entry,
        Err(error) => Entry::without_numbers(listed.clone().damaged(&error), &Setup::default()),
    };
    // Sweeps come last: theirs is what their runs say.
    let (sweeps, runs): (Vec<_>, Vec<_>) =
        listed.iter().partition(|listed| matches!(listed.content, Content::Sweep(_)));
    let mut entries = runs.into_iter().chain(sweeps).map(entry).collect::<Vec<_>>();
    entries.sort_by(|a, b| a.listed.path.cmp(&b.listed.path));
    entries
}

fn read(listed: &Listed, setups: &mut BTreeMap<String, Setup>) -> Result<Entry, RecordError> {
    match &listed.content {
        // An unfinished run has its configuration, a damaged one perhaps.
        Content::Nothing(_) => {
            let setup = read_config(&listed.path).map(|config| Setup::of(&config)).unwrap_or_default();
            Ok(Entry::without_numbers(listed.clone(), &setup))
        }
        Content::Run(run) => {
            let setup = Setup::of(&read_config(&listed.path)?);
            let table = ResultTable::of_runs(vec![(listed.path.clone(), run.as_ref().clone())])?;
            setups.insert(listed.name(), setup.clone());
            let datasets = vec![run.images.dataset.clone()];
            Ok(Entry { table, datasets, ..Entry::without_numbers(listed.clone(), &setup) })
        }
        Content::Sweep(table) => {
            let runs = table.points.iter().flat_map(|point| point.runs.values());
            let found = runs.filter_map(|run| setups.get(run)).collect::<Vec<_>>();
            Ok(Entry {
                listed: listed.clone(),
                attacks: distinct(found.iter().map(|setup| &setup.attack)),
                models: distinct(found.iter().map(|setup| &setup.model)),
                datasets: table.datasets.clone(),
                table: Some(table.as_ref().clone()),
            })
        }
    }
}

/// Each choice once; what no configuration says is none.
fn distinct<'a>(choices: impl Iterator<Item = &'a Choice>) -> Vec<Choice> {
    let choices = choices.filter(|choice| !choice.kind.is_empty()).collect::<BTreeSet<_>>();
    choices.into_iter().cloned().collect()
}

impl Entry {
    fn without_numbers(listed: Listed, setup: &Setup) -> Self {
        let datasets = Some(setup.dataset.clone()).filter(|dataset| !dataset.is_empty());
        Self {
            listed,
            table: None,
            attacks: distinct(std::iter::once(&setup.attack)),
            models: distinct(std::iter::once(&setup.model)),
            datasets: datasets.into_iter().collect(),
        }
    }

    fn is_sweep(&self) -> bool {
        // One that is damaged is known by its name.
        let is_called_so = self.listed.path.extension().is_some_and(|extension| extension == "sweep");
        is_called_so || matches!(self.listed.content, Content::Sweep(_))
    }

    fn points(&self) -> &[PointResult] {
        self.table.as_ref().map_or(&[], |table| &table.points)
    }

    /// A part of its page, which only what has numbers has.
    fn link(&self, part: &str) -> Option<String> {
        self.table.as_ref()?;
        let folder = encoded(self.listed.path.file_name().unwrap_or_default());
        // Without the dot a folder may look like the name of a protocol.
        Some(format!("./{folder}/{PAGE}{part}"))
    }

    fn row(&self, out: &Path) -> Vec<Cell> {
        let what = match (self.is_sweep(), self.points().len()) {
            (true, 0) => "sweep".to_owned(),
            (true, points) => format!("sweep of {points} points"),
            (false, _) => "run".to_owned(),
        };
        let mut row = vec![
            Cell::text(self.listed.name()).linked(self.link("")),
            Cell::text(what).linked(self.link("")).of_kind(if self.is_sweep() { "sweep" } else { "run" }),
            self.datasets(),
            self.chosen(&self.attacks),
            self.chosen(&self.models),
            self.seeds(),
        ];
        row.extend(NUMBERS.iter().map(|(name, part, absent)| self.number(name, part, absent)));
        row.extend([self.best_defense(), self.state(out), self.commits()]);
        row
    }

    fn datasets(&self) -> Cell {
        let datasets = self.datasets.join(", ");
        match datasets.as_str() {
            "" => Cell::reason("not known").of_kind("not known"),
            _ => Cell::text(&datasets).linked(self.link("#provenance")).of_kind(&datasets),
        }
    }

    fn chosen(&self, choices: &[Choice]) -> Cell {
        let kinds = choices.iter().map(|choice| choice.kind.as_str()).collect::<BTreeSet<_>>();
        let kinds = kinds.into_iter().collect::<Vec<_>>().join(", ");
        let words = match choices {
            [] if self.is_sweep() => return Cell::reason("its runs are not here").of_kind("not known"),
            [] => return Cell::reason("not known").of_kind("not known"),
            [only] => only.words.clone(),
            several => format!("{kinds} in {} settings", several.len()),
        };
        Cell::text(words).linked(self.link("#provenance")).of_kind(kinds)
    }

    /// How many seeds were asked for, and how many of them finished where that is another number.
    fn seeds(&self) -> Cell {
        let Some(table) = &self.table else { return Cell::reason("none yet") };
        let asked = table.seeds.len();
        let finished = table.points.iter().map(PointResult::finished).min().unwrap_or(0);
        let text = if finished == asked { asked.to_string() } else { format!("{finished} of {asked}") };
        Cell::number(text, finished as f64).linked(self.link("#provenance"))
    }

    /// A mean over seeds, or the least and the largest of those of several points.
    fn number(&self, name: &str, part: &str, absent: &str) -> Cell {
        let measured = self.points().iter().filter_map(|point| Some((point, point.metric(name)?))).collect::<Vec<_>>();
        let (collapsed, sound): (Vec<_>, Vec<_>) =
            measured.into_iter().partition(|(point, _)| point.collapse_in_words(name).is_some());
        let part = if self.is_sweep() { "#table".to_owned() } else { format!("#{part}") };
        let link = self.link(&part);
        let sound = sound.into_iter().map(|(_, metric)| metric).collect::<Vec<&MetricResult>>();
        let mut means = sound.iter().map(|metric| metric.mean).collect::<Vec<_>>();
        means.sort_by(f64::total_cmp);
        let text = match (sound.as_slice(), means.as_slice(), collapsed.first()) {
            ([only], _, None) => only.mean_text(),
            (_, [least, .., largest], _) => {
                let text = |mean: f64| MetricInfo::unit_of(name).text(mean);
                format!("{} to {}", text(*least), text(*largest))
            }
            ([only], ..) => only.mean_text(),
            (_, _, Some((point, _))) => point.collapse_in_words(name).unwrap_or_default(),
            _ if self.table.is_none() => return Cell::reason(self.listed.state.name()),
            _ if self.points().iter().all(|point| point.finished() == 0) => return Cell::reason("no seed finished"),
            _ => return Cell::reason(absent),
        };
        match means.last() {
            Some(&largest) => Cell::number(text, largest).linked(link),
            None => Cell::text(text).linked(link),
        }
    }

    /// The defense after which the attack succeeds least, where it lowers its success.
    fn best_defense(&self) -> Cell {
        let mut left = Vec::new();
        let mut is_tried = false;
        for point in self.points() {
            // What has a rating is a defense; changes of the routing have none.
            let rated = point.metrics.iter().filter(|metric| metric.name.ends_with("/defense-effectiveness"));
            for group in rated.map(|metric| group_of(&metric.name)) {
                is_tried = true;
                let name = in_group(group, "asr");
                let Some(after) = point.metric(&name) else { continue };
                let before = point.metric("asr").map_or(f64::NAN, |metric| metric.mean);
                if point.collapse_in_words(&name).is_none() && after.mean < before {
                    left.push((after.mean, group, point));
                }
            }
        }
        let part = if self.is_sweep() { "#table" } else { "#defenses" };
        match left.into_iter().min_by(|(a, ..), (b, ..)| a.total_cmp(b)) {
            Some((asr, group, point)) => {
                let at = if self.is_sweep() { format!(" at {}", point.label) } else { String::new() };
                let text = format!("{group}: {} %{at}", MetricInfo::unit_of("asr").text(asr));
                Cell::number(text, asr).linked(self.link(part))
            }
            None if is_tried => Cell::text("none lowers ASR without collapse").linked(self.link(part)),
            None if self.table.is_none() => Cell::reason(self.listed.state.name()),
            None => Cell::reason("none tried"),
        }
    }

    fn state(&self, out: &Path) -> Cell {
        let state = self.listed.state;
        let quick = self.table.as_ref().is_some_and(|table| table.quick);
        let quick = if quick { ", quick: its numbers mean nothing" } else { "" };
        let text = match (&self.listed.content, &self.table) {
            // Where it lay on this machine is nobody's business.
            (Content::Nothing(why), _) => why.replace(&format!("{}/", out.display()), ""),
            (Content::Run(run), _) if state == RunState::Failed => {
                format!("failed{quick}: {}", run.failures().join("; "))
            }
            (_, Some(table)) if state == RunState::Failed => format!("failed{quick}: {}", failures(table).join("; ")),
            (_, Some(table)) if state == RunState::Unfinished => {
                let runs = table.points.len() * table.seeds.len();
                format!("unfinished{quick}: {} of {runs} runs finished", table.finished())
            }
            _ => format!("{}{quick}", state.name()),
        };
        Cell::text(text).linked(self.link("")).of_kind(state.name())
    }

    fn commits(&self) -> Cell {
        let Some(table) = &self.table else { return Cell::reason(self.listed.state.name()) };
        let short = table.commits.iter().map(|commit| match commit.split_once(' ') {
            Some((hash, rest)) => format!("{} {rest}", hash.chars().take(COMMIT).collect::<String>()),
            None => commit.chars().take(COMMIT).collect(),
        });
        let text = short.collect::<Vec<_>>().join(", ");
        if text.is_empty() { Cell::reason("not on record") } else { Cell::text(text).linked(self.link("#provenance")) }
    }
}

fn page(out: &Path, entries: &[Entry]) -> Page {
    let mut header = ["name", "what", "data set", "attack", "model", "seeds"].map(str::to_owned).to_vec();
    header.extend(NUMBERS.iter().map(|(name, ..)| {
        let unit = if MetricInfo::unit_of(name).is_percent() { ", %" } else { "" };
        format!("{}{unit}", MetricInfo::heading_of(name))
    }));
    header.extend(["best defense, ASR left", "state", "commit"].map(str::to_owned));
    let caption = "All runs and sweeps: mean ± standard deviation over seeds".into();
    let table = Table { caption, header, rows: entries.iter().map(|entry| entry.row(out)).collect() };
    let content = html! {
        (table.markup())
        p.note {
            "What a cell says leads to the place in the page of its run or sweep where it comes from; where there is nothing, it says "
            "why. Of a sweep stand the least and the largest mean of its points; means over classifiers that have collapsed to one "
            "class are left out."
        }
    };
    Page {
        title: format!("Runs in {}", out.file_name().map_or_else(|| "this folder".into(), OsStr::to_string_lossy)),
        answer: html! { (answer(entries)) },
        warnings: warnings(entries),
        sections: vec![Section { anchor: "runs", heading: "Runs and sweeps", content }],
    }
}

/// How much there is, and what became of it.
fn answer(entries: &[Entry]) -> String {
    let counted = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let sweeps = entries.iter().filter(|entry| entry.is_sweep()).count();
    let of = |state: RunState| entries.iter().filter(|entry| entry.listed.state == state).count();
    let states = RunState::ALL.map(|state| (of(state), state.name())).into_iter().filter(|(count, _)| *count > 0);
    let states = states.map(|(count, name)| format!("{count} {name}")).collect::<Vec<_>>().join(", ");
    format!("{} and {}: {states}.", counted(entries.len() - sweeps, "run"), counted(sweeps, "sweep"))
}

/// What nobody may miss about several of them.
fn warnings(entries: &[Entry]) -> Vec<String> {
    let with = |what: &dyn Fn(&ResultTable) -> bool| {
        entries.iter().filter_map(|entry| entry.table.as_ref()).filter(|table| what(table)).count()
    };
    let damaged = entries.iter().filter(|entry| entry.listed.state == RunState::Damaged).count();
    let counts = [
        (with(&|table| table.quick), "quick, and their numbers mean nothing"),
        (with(&|table| !table.substitutions.is_empty()), "on stand-in images, not on those that the experiment names"),
        (
            with(&|table| table.clean_build().is_err()),
            "not of one clean build: several commits, changed or unknown source",
        ),
        (damaged, "damaged, and nothing is shown of them"),
    ];
    let counts = counts.into_iter().filter(|(count, _)| *count > 0);
    counts.map(|(count, what)| format!("{count} of {}: {what}.", entries.len())).collect()
}

/// A name as a part of an address: whatever could mean something there stands as `%` and its bytes.
fn encoded(name: &OsStr) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
    let bytes = name.as_encoded_bytes().iter();
    bytes.map(|&byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_table::tests::{run, seed};
    use crate::sweep_table::example_table;
    use patchdoor_record::RunSummary;

    fn listed(name: &str, state: RunState, content: Content) -> Listed {
        Listed { path: Path::new("/secret/runs").join(name), state, content }
    }

    fn table_of(run: &RunSummary) -> ResultTable {
        let results = run.seeds.iter().map(|seed| (run.run.clone(), seed.clone())).collect::<Vec<_>>();
        let point = PointResult::of(run.experiment.clone(), Vec::new(), &results);
        ResultTable { axes: Vec::new(), seeds: vec![0, 1], points: vec![point], ..example_table() }
    }

    fn finished(name: &str) -> Entry {
        let run = run("badnets", vec![seed(0, 0.69, 0.96), seed(1, 0.71, 0.94)]);
        let config =
            "dataset = \"cifar10\"\n[poisoning]\nrate = 0.02\n[trigger.square]\n[model.patch-moe]\nexperts = 4\n";
        let setup = Setup::of(&config.parse().expect("TOML"));
        let table = Some(table_of(&run));
        let listed = listed(name, RunState::Finished, Content::Run(Box::new(run)));
        Entry { table, ..Entry::without_numbers(listed, &setup) }
    }

    fn sweep() -> Entry {
        let table = example_table();
        let listed = listed(&table.result, RunState::Failed, Content::Sweep(Box::new(table.clone())));
        let datasets = table.datasets.clone();
        Entry { table: Some(table), datasets, ..Entry::without_numbers(listed, &Setup::default()) }
    }

    fn damaged() -> Entry {
        let why = "damaged: /secret/runs/a-1/summary.json has the SHA-256 1".to_owned();
        Entry::without_numbers(listed("a-1", RunState::Damaged, Content::Nothing(why)), &Setup::default())
    }

    fn texts(entry: &Entry) -> Vec<String> {
        entry.row(Path::new("/secret/runs")).into_iter().map(|cell| cell.text).collect()
    }

    #[test]
    fn a_row_has_what_was_chosen_what_it_came_to_and_what_became_of_it() {
        assert_eq!(
            texts(&finished("badnets-12345678")),
            [
                "badnets-12345678",
                "run",
                "cifar10",
                "square, rate 0.02",
                "patch-moe, 4 experts",
                "2",
                "70.00 ± 1.41",
                "95.00 ± 1.41",
                "70.00 ± 0.00",
                "2.00 ± 0.00",
                "routing not measured",
                "none tried",
                "finished",
                "0123456789",
            ]
        );
    }

    #[test]
    fn a_sweep_has_the_range_of_its_points_and_its_best_defense_says_where() {
        let mut entry = sweep();
        let rating = MetricResult::of("fine-pruning/defense-effectiveness", [(0, 0.7)].into()).expect("a value");
        entry.table.as_mut().expect("it has one").points[0].metrics.push(rating);
        let texts = texts(&entry);
        assert_eq!(
            &texts[1..6],
            ["sweep of 2 points", "cifar10", "its runs are not here", "its runs are not here", "1 of 2"]
        );
        // ASR: 0.95 and 0.125; clean accuracy stands at one point alone.
        assert_eq!(&texts[6..9], ["71.00 ± 1.41", "12.50 to 95.00", "71.50 ± 0.71"]);
        assert_eq!(texts[11], "fine-pruning: 37.50 % at 0.001, four cells");
        assert!(texts[12].starts_with("failed: 0.001, four cells: fine-tuning failed with seed 1"), "{}", texts[12]);
    }

    #[test]
    fn what_is_not_there_has_a_reason_and_no_link() {
        let entry = damaged();
        let texts = texts(&entry);
        assert!(texts.iter().all(|text| !text.is_empty()), "{texts:?}");
        assert_eq!(texts[12], "damaged: a-1/summary.json has the SHA-256 1");
        let markup = page(Path::new("/secret/runs"), &[entry]).markup().into_string();
        assert!(!markup.contains("href=\"./") && !markup.contains("secret"), "{markup}");
        assert!(markup.contains("1 of 1: damaged"), "{markup}");
    }

    #[test]
    fn a_collapse_is_no_number() {
        let mut entry = finished("a");
        let table = entry.table.as_mut().expect("it has one");
        let share = table.points[0].metrics.iter_mut().find(|metric| metric.name == "largest-class-share");
        share.expect("it is measured").values.insert(1, 0.9);
        let cell = entry.number("asr", "numbers", "-");
        assert_eq!((cell.text.as_str(), cell.number), ("collapse (1 of 2)", None));
    }

    #[test]
    fn hostile_names_are_text_and_lead_nowhere_else() {
        let name = "javascript:alert(1)\"><script>alert(2)#?a&b%41";
        let markup = page(Path::new("<i>"), &[finished(name)]).markup().into_string();
        assert!(!markup.contains("<script>alert") && !markup.contains("<i>"), "{markup}");
        let link = "href=\"./javascript%3Aalert%281%29%22%3E%3Cscript%3Ealert%282%29%23%3Fa%26b%2541/page.html";
        assert!(markup.contains(link), "{markup}");
    }

    #[test]
    fn two_hundred_runs_are_a_page_of_less_than_ten_megabytes() {
        let entries = (0..200).map(|number| finished(&format!("badnets-{number:08}"))).collect::<Vec<_>>();
        let markup = page(Path::new("runs"), &entries).markup().into_string();
        assert_eq!(markup.matches("<th scope=\"row\">").count(), 200);
        assert!(markup.len() < 10_000_000, "{} bytes", markup.len());
        assert!(markup.contains("200 runs and 0 sweeps: 200 finished."), "{markup}");
    }

    #[test]
    fn every_column_has_a_cell_in_every_row() {
        for entry in [finished("a"), sweep(), damaged()] {
            let page = page(Path::new("runs"), std::slice::from_ref(&entry)).markup().into_string();
            assert_eq!(page.matches("scope=\"col\"").count(), entry.row(Path::new("runs")).len());
        }
    }
}
