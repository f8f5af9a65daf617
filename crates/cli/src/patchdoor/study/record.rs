use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, anyhow};
use fs_err as fs;
use serde_json::{Value, json};

/// What became of a step.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StepRecord {
    /// `done`, `failed`, `timed out`, `skipped` or `interrupted`.
    pub(super) outcome: String,
    /// Why, or what it came to, in one line.
    pub(super) what: String,
    pub(super) seconds: f64,
    /// What was measured, by name.
    pub(super) numbers: BTreeMap<String, f64>,
}

impl StepRecord {
    pub(super) fn is_done(&self) -> bool {
        self.outcome == "done"
    }
}

/// What a study knows of itself, kept in `study.json`.
#[derive(Clone, Debug)]
pub(super) struct StudyRecord {
    /// What must be the same for steps to be taken as done.
    pub(super) settings: BTreeMap<String, String>,
    /// Epochs of the trainings, once they are settled: a training goes on only with as many as it began with.
    pub(super) epochs: Option<usize>,
    pub(super) steps: BTreeMap<String, StepRecord>,
}

/// Version of the file.
const SCHEMA: u64 = 1;

impl StudyRecord {
    /// What an earlier call left, or nothing yet.
    ///
    /// # Errors
    /// If there is a study of other settings, or one that cannot be read.
    pub(super) fn open(path: &Path, settings: BTreeMap<String, String>) -> anyhow::Result<Self> {
        if !path.exists() {
            return Ok(Self { settings, epochs: None, steps: BTreeMap::new() });
        }
        let text = fs::read_to_string(path)?;
        let record = Self::read(&text).with_context(|| format!("{} is no record of a study", path.display()))?;
        for (name, value) in &settings {
            let found = record.settings.get(name).map_or("unknown", String::as_str);
            if found != value {
                return Err(anyhow!(
                    "{} is of another study: {name} is {found} there, {value} now; --out takes another folder",
                    path.display()
                ));
            }
        }
        Ok(record)
    }

    fn read(text: &str) -> Option<Self> {
        let document: Value = serde_json::from_str(text).ok()?;
        if document["schema"] != SCHEMA {
            return None;
        }
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let settings = document["settings"].as_object()?.iter();
        let settings = settings.map(|(name, value)| Some((name.clone(), text(value)?))).collect::<Option<_>>()?;
        let steps = document["steps"].as_object()?.iter().map(|(name, step)| {
            let numbers = step["numbers"].as_object()?.iter();
            let numbers = numbers.map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect::<Option<_>>()?;
            let record = StepRecord {
                outcome: text(&step["outcome"])?,
                what: text(&step["what"])?,
                seconds: step["seconds"].as_f64()?,
                numbers,
            };
            Some((name.clone(), record))
        });
        let epochs = document["epochs"].as_u64().map(|epochs| epochs as usize);
        Some(Self { settings, epochs, steps: steps.collect::<Option<_>>()? })
    }

    /// Writes it, under its name only when it is complete.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let steps = self.steps.iter().map(|(name, step)| {
            let StepRecord { outcome, what, seconds, numbers } = step;
            (name.clone(), json!({ "outcome": outcome, "what": what, "seconds": seconds, "numbers": numbers }))
        });
        let steps = steps.collect::<serde_json::Map<_, _>>();
        let document = json!({ "schema": SCHEMA, "settings": self.settings, "epochs": self.epochs, "steps": steps });
        let partial = path.with_extension("json.partial");
        fs::write(&partial, format!("{}\n", serde_json::to_string_pretty(&document)?))?;
        fs::rename(partial, path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_other_settings_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("study.json");
        let settings = |backend: &str| BTreeMap::from([("backend".to_owned(), backend.to_owned())]);
        let mut record = StudyRecord::open(&path, settings("flex")).expect("a new one");
        let numbers = BTreeMap::from([("images/s".to_owned(), 812.5)]);
        let step = StepRecord { outcome: "done".into(), what: "agrees".into(), seconds: 1.25, numbers };
        record.steps.insert("operations".into(), step.clone());
        record.epochs = Some(7);
        record.write(&path).expect("written");
        let read = StudyRecord::open(&path, settings("flex")).expect("the same");
        assert_eq!((read.steps["operations"].clone(), read.epochs), (step, Some(7)));
        let error = StudyRecord::open(&path, settings("cuda")).expect_err("another backend").to_string();
        assert!(error.contains("backend is flex there, cuda now"), "{error}");
        fs::write(&path, "{}").expect("written");
        assert!(StudyRecord::open(&path, settings("flex")).is_err());
    }
}
