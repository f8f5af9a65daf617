use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::Path;

use patchdoor_record::{Content, Listed, PointResult, RecordError, ResultTable, RunState};

use super::frame::PAGE;
use super::table::Cell;
use crate::config::{Choice, Setup, flattened, read_config};
use crate::sweep_table::failures;

/// A run or a sweep with all that pages about many of them say of it.
pub(crate) struct Entry {
    pub(crate) listed: Listed,
    /// Its numbers, of a run as a table of one point; `None` if there are none.
    pub(crate) table: Option<ResultTable>,
    /// What was chosen, of a sweep in its runs; empty if nobody knows.
    pub(crate) attacks: Vec<Choice>,
    pub(crate) models: Vec<Choice>,
    pub(crate) datasets: Vec<String>,
    /// Every value of a run's configuration by its whole key; empty of a sweep, and if nobody knows.
    pub(crate) config: BTreeMap<String, String>,
}

/// Reads what is listed, sorted by path; what cannot be read comes back as damaged.
pub(crate) fn entries(listed: &[Listed]) -> Vec<Entry> {
    let mut setups: BTreeMap<String, Setup> = BTreeMap::new();
    let entry = |listed: &Listed| match read(listed, &mut setups) {
        Ok(entry) => entry,
        Err(error) => Entry::without_numbers(listed.clone().damaged(&error), &toml::Table::new()),
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
            Ok(Entry::without_numbers(listed.clone(), &read_config(&listed.path).unwrap_or_default()))
        }
        Content::Run(run) => {
            let config = read_config(&listed.path)?;
            let table = ResultTable::of_runs(vec![(listed.path.clone(), run.as_ref().clone())])?;
            setups.insert(listed.name(), Setup::of(&config));
            let datasets = vec![run.images.dataset.clone()];
            Ok(Entry { table, datasets, ..Entry::without_numbers(listed.clone(), &config) })
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
                config: BTreeMap::new(),
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
    /// What is known of a run by its configuration alone, which is empty if it cannot be read.
    pub(crate) fn without_numbers(listed: Listed, config: &toml::Table) -> Self {
        let setup = Setup::of(config);
        let datasets = Some(setup.dataset.clone()).filter(|dataset| !dataset.is_empty());
        Self {
            listed,
            table: None,
            attacks: distinct(std::iter::once(&setup.attack)),
            models: distinct(std::iter::once(&setup.model)),
            datasets: datasets.into_iter().collect(),
            config: flattened(config),
        }
    }

    /// Whether it is a sweep.
    pub(crate) fn is_sweep(&self) -> bool {
        // One that is damaged is known by its name.
        let is_called_so = self.listed.path.extension().is_some_and(|extension| extension == "sweep");
        is_called_so || matches!(self.listed.content, Content::Sweep(_))
    }

    /// What each of its points came to; a run has one.
    pub(crate) fn points(&self) -> &[PointResult] {
        self.table.as_ref().map_or(&[], |table| &table.points)
    }

    /// A part of its page, which only what has numbers has.
    pub(crate) fn link(&self, part: &str) -> Option<String> {
        self.table.as_ref()?;
        let folder = encoded(self.listed.path.file_name().unwrap_or_default());
        // Without the dot a folder may look like the name of a protocol.
        Some(format!("./{folder}/{PAGE}{part}"))
    }

    /// How many seeds were asked for, and how many of them finished where that is another number.
    pub(crate) fn seeds(&self) -> Cell {
        let Some(table) = &self.table else { return Cell::reason("none yet") };
        let asked = table.seeds.len();
        let finished = table.points.iter().map(PointResult::finished).min().unwrap_or(0);
        let text = if finished == asked { asked.to_string() } else { format!("{finished} of {asked}") };
        Cell::number(text, finished as f64).linked(self.link("#provenance"))
    }

    /// What became of it.
    pub(crate) fn state(&self, out: &Path) -> Cell {
        Cell::text(self.state_in_words(out)).linked(self.link("")).of_kind(self.listed.state.name())
    }

    /// What became of it, with what failed and why.
    pub(crate) fn state_in_words(&self, out: &Path) -> String {
        let state = self.listed.state;
        let quick = self.table.as_ref().is_some_and(|table| table.quick);
        let quick = if quick { ", quick: its numbers mean nothing" } else { "" };
        match (&self.listed.content, &self.table) {
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
        }
    }
}

/// What nobody may miss about several of them.
pub(crate) fn warnings(entries: &[Entry]) -> Vec<String> {
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
pub(crate) mod tests {
    use super::*;
    use crate::run_table::tests::{run, seed};
    use crate::sweep_table::example_table;
    use patchdoor_record::RunSummary;

    pub(crate) fn listed(name: &str, state: RunState, content: Content) -> Listed {
        Listed { path: Path::new("/secret/runs").join(name), state, content }
    }

    pub(crate) fn table_of(run: &RunSummary) -> ResultTable {
        let results = run.seeds.iter().map(|seed| (run.run.clone(), seed.clone())).collect::<Vec<_>>();
        let point = PointResult::of(run.experiment.clone(), Vec::new(), &results);
        ResultTable { axes: Vec::new(), seeds: vec![0, 1], points: vec![point], ..example_table() }
    }

    pub(crate) const CONFIG: &str =
        "dataset = \"cifar10\"\n[poisoning]\nrate = 0.02\n[trigger.square]\n[model.patch-moe]\nexperts = 4\n";

    /// A run in a folder of that name.
    pub(crate) fn entry_of(name: &str, config: &str, run: RunSummary) -> Entry {
        let table = Some(table_of(&run));
        let state = if run.is_complete() { RunState::Finished } else { RunState::Failed };
        let listed = listed(name, state, Content::Run(Box::new(run)));
        Entry { table, ..Entry::without_numbers(listed, &config.parse().expect("TOML")) }
    }

    pub(crate) fn finished(name: &str) -> Entry {
        entry_of(name, CONFIG, run("badnets", vec![seed(0, 0.69, 0.96), seed(1, 0.71, 0.94)]))
    }

    pub(crate) fn sweep() -> Entry {
        let table = example_table();
        let listed = listed(&table.result, RunState::Failed, Content::Sweep(Box::new(table.clone())));
        let datasets = table.datasets.clone();
        Entry { table: Some(table), datasets, ..Entry::without_numbers(listed, &toml::Table::new()) }
    }

    pub(crate) fn damaged() -> Entry {
        let why = "damaged: /secret/runs/a-1/summary.json has the SHA-256 1".to_owned();
        Entry::without_numbers(listed("a-1", RunState::Damaged, Content::Nothing(why)), &toml::Table::new())
    }
}
