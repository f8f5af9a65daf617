use std::path::{Path, PathBuf};

use crate::{OwnWeightsResult, PointResult, RecordError, ResultTable, RunSummary, read_summary, set_aside};

/// What became of a run or a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Everything was computed.
    Finished,
    /// Some of it is missing: it was interrupted, or goes on.
    Unfinished,
    /// A seed or a defense failed.
    Failed,
    /// It cannot be read.
    Damaged,
}

impl RunState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Finished, Self::Unfinished, Self::Failed, Self::Damaged];

    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Unfinished => "unfinished",
            Self::Failed => "failed",
            Self::Damaged => "damaged",
        }
    }

    /// In a sentence.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Finished => "Everything was computed",
            Self::Unfinished => "Some of it is missing: it was interrupted, or goes on",
            Self::Failed => "A seed or a defense failed",
            Self::Damaged => "It cannot be read",
        }
    }
}

/// A run or a sweep in a folder of results.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its folder.
    pub path: PathBuf,
    /// What became of it.
    pub state: RunState,
    /// What it came to.
    pub content: Content,
}

/// What a run or a sweep came to.
#[derive(Clone, Debug)]
pub enum Content {
    /// The results of a run.
    Run(Box<RunSummary>),
    /// The table of a sweep.
    Sweep(Box<ResultTable>),
    /// Nothing that could be shown, and why.
    Nothing(String),
}

impl Listed {
    /// What a folder is, if it is a run or a sweep. Records are checked as they are read.
    pub fn of(path: PathBuf) -> Option<Self> {
        let ends_in = |ending: &str| path.extension().is_some_and(|extension| extension == ending);
        let damaged = |why: &str| (RunState::Damaged, Content::Nothing(why.to_owned()));
        if path.join(OwnWeightsResult::FILE).is_file() {
            return None;
        }
        let (state, content) = if ends_in("partial") {
            let why = "unfinished; the command that began it goes on from there";
            (RunState::Unfinished, Content::Nothing(why.to_owned()))
        } else if path.join("summary.json").is_file() {
            match read_summary(&path) {
                Ok(run) if run.is_complete() => (RunState::Finished, Content::Run(Box::new(run))),
                Ok(run) => (RunState::Failed, Content::Run(Box::new(run))),
                Err(error) => damaged(&problem(&error)),
            }
        } else if let Some(table) = ResultTable::read(&path).transpose() {
            match table {
                Ok(table) => (state_of(&table), Content::Sweep(Box::new(table))),
                Err(error) => damaged(&problem(&error)),
            }
        } else if path.join("environment.json").exists() {
            damaged("damaged: it has no summary.json; remove it, or run the experiment again, which moves it aside")
        } else if ends_in("sweep") {
            damaged("damaged: it has no table.json; the command of the sweep writes it anew from its runs")
        } else {
            return None;
        };
        Some(Self { path, state, content })
    }

    /// Every run and sweep in a folder, sorted by path; none where there is no folder.
    pub fn below(out: &Path) -> Vec<Self> {
        let entries = std::fs::read_dir(out).into_iter().flatten().flatten();
        let mut listed = entries.filter_map(|entry| Self::of(entry.path())).collect::<Vec<_>>();
        listed.sort_by(|a, b| a.path.cmp(&b.path));
        listed
    }

    /// The same without the results that have turned out to be unreadable.
    #[must_use]
    pub fn damaged(self, error: &RecordError) -> Self {
        Self { state: RunState::Damaged, content: Content::Nothing(problem(error)), ..self }
    }

    /// The name of its folder.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Whether something newer was put in its place.
    pub fn is_set_aside(&self) -> bool {
        set_aside(&self.name()).is_some()
    }
}

/// What became of a sweep.
fn state_of(table: &ResultTable) -> RunState {
    let has_failed = |point: &PointResult| !point.failed.is_empty() || !point.failed_defenses.is_empty();
    if table.points.iter().any(has_failed) {
        RunState::Failed
    } else if table.finished() < table.points.len() * table.seeds.len() {
        RunState::Unfinished
    } else {
        RunState::Finished
    }
}

/// Why nothing can be said of a run.
fn problem(error: &RecordError) -> String {
    match error {
        RecordError::OtherSchema { .. } => format!("of another version: {error}"),
        error => format!("damaged: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write_sealed;

    #[test]
    fn every_state_has_a_name_of_its_own() {
        for (at, state) in RunState::ALL.iter().enumerate() {
            assert_eq!(RunState::ALL.iter().position(|other| other.name() == state.name()), Some(at));
        }
    }

    #[test]
    fn folders_are_known_by_what_is_in_them() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path();
        for name in ["a-1", "b-2.partial", "c-3", "d-4.sweep", "e-5", "notes"] {
            std::fs::create_dir(out.join(name)).unwrap();
        }
        let run = RunSummary { schema: crate::SCHEMA, run: "a-1".into(), ..RunSummary::default() };
        write_sealed(&out.join("a-1/summary.json"), &serde_json::to_vec(&run).unwrap()).unwrap();
        std::fs::write(out.join("c-3/environment.json"), "{}").unwrap();
        std::fs::write(out.join("e-5/summary.json"), "{}").unwrap();
        let listed = Listed::below(out);
        let states = listed.iter().map(|listed| (listed.name(), listed.state)).collect::<Vec<_>>();
        let expected = [
            ("a-1", RunState::Finished),
            ("b-2.partial", RunState::Unfinished),
            ("c-3", RunState::Damaged),
            ("d-4.sweep", RunState::Damaged),
            ("e-5", RunState::Damaged),
        ];
        assert_eq!(states, expected.map(|(name, state)| (name.to_owned(), state)));
        assert!(matches!(&listed[0].content, Content::Run(run) if run.run == "a-1"));
        assert!(matches!(&listed[2].content, Content::Nothing(why) if why.contains("no summary.json")));
        assert!(Listed::below(&out.join("none")).is_empty());
    }

    #[test]
    fn a_summary_that_was_changed_is_damaged_and_says_by_what() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("a-1");
        std::fs::create_dir(&run).unwrap();
        write_sealed(&run.join("summary.json"), b"{}").unwrap();
        std::fs::write(run.join("summary.json"), "[]").unwrap();
        let listed = Listed::of(run).unwrap();
        assert_eq!(listed.state, RunState::Damaged);
        assert!(matches!(&listed.content, Content::Nothing(why) if why.contains("SHA-256")), "{listed:?}");
    }
}
