use std::collections::BTreeMap;
use std::path::Path;

use fs_err as fs;
use patchdoor_record::{MetricResult, PointResult, ResultTable};

use crate::result_file::{ResultsError, read_result};

/// The collected results, by the names of their files without the ending.
pub(crate) struct Results {
    pub(crate) tables: BTreeMap<String, ResultTable>,
}

/// A number of a result, and where it stands.
#[derive(Clone, Copy)]
pub(crate) struct Found<'a> {
    pub(crate) table: &'a ResultTable,
    pub(crate) point: &'a PointResult,
    pub(crate) metric: &'a MetricResult,
}

/// Why a number is not found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// There is no such result, and these are there.
    Result(String),
    /// The result has no such number; what it has instead.
    Number(String),
}

impl Missing {
    /// What is missing.
    pub(crate) fn reason(self) -> String {
        match self {
            Self::Result(reason) | Self::Number(reason) => reason,
        }
    }
}

impl Results {
    /// Reads all results of a folder.
    ///
    /// # Errors
    /// If a file cannot be read or is no result.
    pub(crate) fn read(folder: &Path) -> Result<Self, ResultsError> {
        let mut tables = BTreeMap::new();
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry?.path();
            if let Some(name) = path.file_stem()
                && path.extension().is_some_and(|extension| extension == "json")
            {
                tables.insert(name.to_string_lossy().into_owned(), read_result(&path)?);
            }
        }
        Ok(Self { tables })
    }

    /// The result of that name.
    pub(crate) fn table(&self, result: &str) -> Result<&ResultTable, Missing> {
        let known = self.tables.keys().map(String::as_str).collect::<Vec<_>>();
        let missing = || Missing::Result(format!("there is no result {result:?}{}", instead(result, &known)));
        self.tables.get(result).ok_or_else(missing)
    }

    /// What `result/point/number` stands for; the point may be left out of a result that has only one.
    pub(crate) fn find(&self, path: &str) -> Result<Found<'_>, Missing> {
        let (result, rest) = path.split_once('/').unwrap_or((path, ""));
        let table = self.table(result)?;
        // Labels and numbers may have slashes themselves.
        let mut splits = rest.match_indices('/').map(|(slash, _)| (&rest[..slash], &rest[slash + 1..]));
        let found = splits.find_map(|(label, number)| Some((table.point(label)?, number)));
        let alone = if let [point] = table.points.as_slice() { Some((point, rest)) } else { None };
        // An experiment may be called like one of its defenses.
        let is_there =
            |of: Option<(&PointResult, &str)>| of.is_some_and(|(point, number)| point.metric(number).is_some());
        if is_there(found) && is_there(alone) {
            let reason = format!("{{{path}}} can be two numbers; write {result}/POINT/NUMBER");
            return Err(Missing::Number(reason));
        }
        let Some((point, number)) = found.or(alone) else {
            let label = rest.split_once('/').map_or(rest, |(label, _)| label);
            return Err(Missing::Number(no_point(result, label, table)));
        };
        let Some(metric) = point.metric(number) else {
            let known = point.metrics.iter().map(|metric| metric.name.as_str()).collect::<Vec<_>>();
            return Err(Missing::Number(no_number(&format!("{result}/{}", point.label), number, &known)));
        };
        Ok(Found { table, point, metric })
    }
}

pub(crate) fn no_point(result: &str, label: &str, table: &ResultTable) -> String {
    let known = table.points.iter().map(|point| point.label.as_str()).collect::<Vec<_>>();
    format!("{result} has no point {label:?}{}", instead(label, &known))
}

pub(crate) fn no_number(of: &str, number: &str, known: &[&str]) -> String {
    format!("{of} has no number {number:?}{}", instead(number, known))
}

/// The word that was meant, or the words there are.
pub(crate) fn instead(word: &str, known: &[&str]) -> String {
    let near = known.iter().map(|known| (strsim::osa_distance(word, known), known)).min();
    match near {
        Some((distance, near)) if distance <= 1 + word.len().max(near.len()) / 4 => {
            format!("; did you mean {near:?}?")
        }
        Some(_) => format!(", expected one of {}", known.join("; ")),
        None => "; there are none".into(),
    }
}
