use std::collections::BTreeMap;
use std::path::Path;

use patchdoor_metrics::Summary;
use serde::{Deserialize, Serialize};

use crate::numbers::{INTERVENTION_NUMBERS, ROUTING_NUMBERS, SEED_NUMBERS, of_repair, of_result};
use crate::{
    DefenseKind, DefenseMeasurements, DefenseResult, ImagesUsed, Measurements, RecordError, SCHEMA, SeedResult,
    SeriesRow, read_sealed,
};

/// What a whole run gave; `summary.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RunSummary {
    /// Layout of this file.
    pub schema: u32,
    /// Name of the experiment.
    pub experiment: String,
    /// The run's folder, named for the experiment and what it depends on.
    pub run: String,
    /// Which images.
    #[serde(flatten)]
    pub images: ImagesUsed,
    /// What is to be known about these copies of the images.
    pub notes: Vec<String>,
    /// The class that triggered images shall be taken for, by number and name, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Whether this is the quick version, whose numbers mean nothing.
    pub quick: bool,
    /// What it was computed with.
    pub backend: String,
    /// On which device.
    pub device: String,
    /// Mean and spread over the finished seeds of each number that one of them has, by its name in
    /// [`METRICS`](crate::METRICS).
    pub metrics: BTreeMap<String, Summary>,
    /// Mean and spread over the finished seeds of what routers select, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub routing: BTreeMap<String, RoutingSummary>,
    /// The numbers the experiment expects, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub expected: BTreeMap<String, f64>,
    /// Mean and spread of what each defense came to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub defenses: Vec<DefenseSummary>,
    /// Mean and spread of where the classifier stands with each change of its routing or experts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interventions: Vec<InterventionSummary>,
    /// What each seed gave.
    pub seeds: Vec<SeedResult>,
}

impl RunSummary {
    /// The same run with everything that follows from its seeds computed from them.
    #[must_use]
    pub fn summarized(self) -> Self {
        Self {
            metrics: metrics(&self.seeds),
            routing: RoutingSummary::of(&self.seeds),
            defenses: DefenseSummary::of(&self.seeds),
            interventions: InterventionSummary::of(&self.seeds),
            ..self
        }
    }

    /// Whether every seed finished, and every defense of it.
    pub fn is_complete(&self) -> bool {
        self.seeds.iter().all(|seed| seed.failures().is_empty())
    }

    /// Seeds that finished.
    pub fn finished(&self) -> usize {
        self.seeds.iter().filter(|seed| seed.measurements().is_some()).count()
    }

    /// What failed, a line each: `seed 1 failed: ..`, `fine-tuning of seed 1 failed: ..`.
    pub fn failures(&self) -> Vec<String> {
        let lines = self.seeds.iter().flat_map(|seed| {
            let line = |(what, reason): (String, &str)| match what.as_str() {
                "" => format!("seed {} failed: {reason}", seed.seed),
                defense => format!("{defense} of seed {} failed: {reason}", seed.seed),
            };
            seed.failures().into_iter().map(line).collect::<Vec<_>>()
        });
        lines.collect()
    }
}

/// The one field that every layout of `summary.json` has.
#[derive(Deserialize)]
struct Schema {
    schema: u32,
}

/// The results in a finished run's folder.
///
/// # Errors
/// If the file is not there, is not as it was written, or has the layout of another version.
pub fn read_summary(folder: &Path) -> Result<RunSummary, RecordError> {
    let path = folder.join("summary.json");
    let malformed = |source| RecordError::Malformed { path: path.clone(), source };
    let bytes = match read_sealed(&path) {
        // A run of an earlier version has no checksums; its layout says more.
        Err(RecordError::Unsealed { .. }) => {
            let bytes = fs_err::read(&path)?;
            match serde_json::from_slice::<Schema>(&bytes) {
                Ok(Schema { schema }) if schema != SCHEMA => bytes,
                _ => return Err(RecordError::Unsealed { path }),
            }
        }
        bytes => bytes?,
    };
    let Schema { schema } = serde_json::from_slice(&bytes).map_err(malformed)?;
    if schema != SCHEMA {
        return Err(RecordError::OtherSchema { path, found: schema, expected: SCHEMA });
    }
    serde_json::from_slice(&bytes).map_err(malformed)
}

fn metrics(seeds: &[SeedResult]) -> BTreeMap<String, Summary> {
    let measured = seeds.iter().filter_map(SeedResult::measurements).collect::<Vec<_>>();
    let of = |(name, of): &(&str, fn(&crate::Measurements) -> Option<f64>)| {
        let values = measured.iter().filter_map(|seed| of(seed)).collect::<Vec<_>>();
        Some(((*name).to_owned(), Summary::of(&values)?))
    };
    SEED_NUMBERS.iter().filter_map(of).collect()
}

/// Mean and spread over seeds of where the backdoored classifier stands with one change of its routing or experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct InterventionSummary {
    /// What the report calls it.
    pub title: String,
    /// Each number that one of the seeds has, by its name in [`METRICS`](crate::METRICS).
    pub metrics: BTreeMap<String, Summary>,
}

impl InterventionSummary {
    /// Summarizes every change over the seeds that finished, in the order of tables.
    pub fn of(seeds: &[SeedResult]) -> Vec<Self> {
        let routings = seeds.iter().filter_map(SeedResult::measurements).filter_map(|seed| seed.routing.as_ref());
        let all = routings.map(|routing| routing.interventions()).collect::<Vec<_>>();
        let longest = all.iter().max_by_key(|changes| changes.len());
        let of = |title: &String| {
            let standings = all.iter().flatten().filter(|(other, _)| other == title).map(|(_, standing)| standing);
            let standings = standings.collect::<Vec<_>>();
            let metrics = INTERVENTION_NUMBERS.iter().filter_map(|(name, of)| {
                let values = standings.iter().filter_map(|standing| of(standing)).collect::<Vec<_>>();
                Some(((*name).to_owned(), Summary::of(&values)?))
            });
            Self { title: title.clone(), metrics: metrics.collect() }
        };
        longest.into_iter().flatten().map(|(title, _)| of(title)).collect()
    }
}

/// Mean and spread over seeds of what one defense came to, or of one strength of a series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DefenseSummary {
    /// The defense, such as `fine-pruning`.
    pub name: String,
    /// What the report calls it.
    pub title: String,
    /// What it acts on.
    #[serde(default, skip_serializing_if = "DefenseKind::is_repair")]
    pub kind: DefenseKind,
    /// Which images the defender had, `clean` or `contaminated`.
    pub data: String,
    /// The strength, if this is one of a series.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned_fraction: Option<f64>,
    /// What was really pruned, `4 of 64 filters` or, where seeds differ, `3 to 4 of 64 filters`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned: Option<String>,
    /// Seeds in which the classifier has collapsed to one class, by [`COLLAPSE`](crate::COLLAPSE).
    #[serde(default)]
    pub collapsed: usize,
    /// Each number that one of the seeds has, by its name in [`METRICS`](crate::METRICS); a series has its time as a whole.
    pub metrics: BTreeMap<String, Summary>,
}

impl DefenseSummary {
    /// Summarizes every defense over the seeds that finished, in the order of the experiment; each strength of a series
    /// after the defense it belongs to.
    pub fn of(seeds: &[SeedResult]) -> Vec<Self> {
        let all: Vec<Vec<(String, &DefenseResult)>> =
            seeds.iter().filter_map(SeedResult::measurements).map(Measurements::titled_defenses).collect();
        let count = all.iter().map(Vec::len).max().unwrap_or(0);
        let mut summaries = Vec::new();
        for index in 0..count {
            let results: Vec<&(String, &DefenseResult)> =
                all.iter().filter_map(|defenses| defenses.get(index)).collect();
            let measured: Vec<&DefenseMeasurements> =
                results.iter().filter_map(|(_, result)| result.measurements()).collect();
            let numbers = results.iter().map(|(_, result)| of_result(result)).collect::<Vec<_>>();
            let mut whole = Self::row(results[0], &numbers);
            whole.kind = results.iter().find_map(|(_, result)| result.kind()).unwrap_or_default();
            whole.pruned = pruned_in_words(measured.iter().filter_map(|m| m.pruned_filters()));
            whole.collapsed = results.iter().filter(|(_, result)| result.is_collapsed()).count();
            summaries.push(whole);
            let strengths = measured.iter().map(|m| m.series.len()).max().unwrap_or(0);
            for strength in 0..strengths {
                let rows: Vec<&SeriesRow> = measured.iter().filter_map(|m| m.series.get(strength)).collect();
                let after = rows.iter().map(|row| row.defended()).collect::<Vec<_>>();
                let numbers = after.iter().map(of_repair).collect::<Vec<_>>();
                summaries.push(Self {
                    pruned_fraction: Some(rows[0].pruned_fraction),
                    pruned: Some(rows[0].pruned_in_words()),
                    collapsed: after.iter().filter(|defended| defended.is_collapsed()).count(),
                    ..Self::row(results[0], &numbers)
                });
            }
        }
        summaries
    }

    /// Of one result and the numbers of all seeds.
    fn row((title, result): &(String, &DefenseResult), numbers: &[Vec<(&'static str, f64)>]) -> Self {
        let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for &(name, value) in numbers.iter().flatten() {
            values.entry(name).or_default().push(value);
        }
        let metrics = values.into_iter().filter_map(|(name, values)| Some((name.to_owned(), Summary::of(&values)?)));
        Self {
            name: result.name.clone(),
            title: title.clone(),
            kind: DefenseKind::default(),
            data: result.data.clone(),
            pruned_fraction: None,
            pruned: None,
            collapsed: 0,
            metrics: metrics.collect(),
        }
    }
}

/// What was pruned with each seed, in words.
fn pruned_in_words(pruned: impl Iterator<Item = (usize, usize)>) -> Option<String> {
    let pruned = pruned.collect::<Vec<_>>();
    let least = pruned.iter().min()?;
    let most = pruned.iter().max()?;
    let range = if least == most { String::new() } else { format!("{} to ", least.0) };
    Some(format!("{range}{} of {} filters", most.0, most.1))
}

/// Mean and spread of one routing number over seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RoutingSummary {
    /// Of the backdoored classifiers.
    pub victim: Option<Summary>,
    /// Of their clean twins.
    pub clean_twin: Option<Summary>,
    /// What it would be without any relation.
    pub chance: Option<f64>,
}

impl RoutingSummary {
    /// Over the seeds that looked at their routers, by the name of the number; empty if none did.
    pub fn of(seeds: &[SeedResult]) -> BTreeMap<String, Self> {
        let measured = seeds.iter().filter_map(SeedResult::measurements).filter_map(|m| m.routing.as_deref());
        let measured = measured.collect::<Vec<_>>();
        let Some(first) = measured.first() else { return BTreeMap::new() };
        let summary = |(name, of, chance): &crate::numbers::RoutingNumber| {
            let victim: Vec<f64> = measured.iter().filter_map(|seed| of(&seed.victim)).collect();
            let twins = measured.iter().filter_map(|seed| seed.clean_twin.as_ref());
            let clean_twin: Vec<f64> = twins.filter_map(of).collect();
            let summary =
                Self { victim: Summary::of(&victim), clean_twin: Summary::of(&clean_twin), chance: chance(first) };
            ((*name).to_owned(), summary)
        };
        ROUTING_NUMBERS.iter().map(summary).collect()
    }
}
