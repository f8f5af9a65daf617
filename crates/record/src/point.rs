use std::collections::{BTreeMap, BTreeSet};

use patchdoor_metrics::Summary;
use serde::{Deserialize, Serialize};

use crate::numbers::LARGEST_CLASS;
use crate::{COLLAPSE, MetricInfo, SeedOutcome, SeedResult, Unit, group_of, in_group, named_numbers};

/// The number of poisoned images among the metrics of a point.
pub(crate) const POISONED: &str = "poisoned-images";

/// Whether a number says where the classifier of its group stands.
fn is_rate_of_classifier(name: &str) -> bool {
    let rates = ["clean-accuracy", "clean-accuracy-drop", "asr", "asr-all-classes", "robust-accuracy"];
    let ratings = ["defense-effectiveness", "robust-improvement"];
    rates.contains(&name) || ratings.contains(&name)
}

/// What one point of a sweep came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PointResult {
    /// What it is called.
    pub label: String,
    /// Its label on each axis.
    pub coordinates: Vec<String>,
    /// Folder of each seed's results.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub runs: BTreeMap<u64, String>,
    /// Seeds that failed, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failed: BTreeMap<u64, String>,
    /// Defenses that failed with some seeds, by title, and why; what was measured besides them counts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failed_defenses: BTreeMap<String, BTreeMap<u64, String>>,
    /// The cells that a surrogate chose for each seed, as a placement names them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub chosen_cells: BTreeMap<u64, serde_json::Value>,
    /// Every number, over the seeds that finished.
    pub metrics: Vec<MetricResult>,
}

/// One number of a point over seeds. Shares in [0, 1].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MetricResult {
    /// The number's name.
    pub name: String,
    /// Seeds that have it.
    pub count: usize,
    /// Mean over them.
    pub mean: f64,
    /// Sample standard deviation; `None` for one seed.
    pub standard_deviation: Option<f64>,
    /// 95 % confidence interval of the mean by Student's t distribution, ended where such a number must end
    /// ([`Unit::bounded`]); `None` for one seed.
    pub interval_95: Option<[f64; 2]>,
    /// The value of each seed.
    pub values: BTreeMap<u64, f64>,
}

impl PointResult {
    /// Takes in the seeds that another table has of the same point and this one has not.
    pub(crate) fn take_seeds_of(&mut self, other: &Self) {
        let own = self.seeds();
        let is_new = |seed: &u64| !own.contains(seed);
        let mut metrics = other.metrics.iter().map(|metric| metric.name.as_str()).collect::<Vec<_>>();
        metrics.extend(self.metrics.iter().map(|metric| metric.name.as_str()));
        let mut names: Vec<&str> = Vec::new();
        for name in metrics {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let of = |name: &str| {
            let theirs = other.metric(name).into_iter().flat_map(|metric| &metric.values);
            let ours = self.metric(name).into_iter().flat_map(|metric| &metric.values);
            let values = theirs.filter(|(seed, _)| is_new(seed)).chain(ours);
            MetricResult::of(name, values.map(|(&seed, &value)| (seed, value)).collect())
        };
        let metrics = names.into_iter().filter_map(of).collect();
        let new = |all: &BTreeMap<u64, String>| {
            all.iter().filter(|(seed, _)| is_new(seed)).map(|(&seed, text)| (seed, text.clone())).collect::<Vec<_>>()
        };
        self.runs.extend(new(&other.runs));
        self.failed.extend(new(&other.failed));
        for (defense, seeds) in &other.failed_defenses {
            self.failed_defenses.entry(defense.clone()).or_default().extend(new(seeds));
        }
        self.failed_defenses.retain(|_, seeds| !seeds.is_empty());
        let cells = other.chosen_cells.iter().filter(|(seed, _)| is_new(seed));
        self.chosen_cells.extend(cells.map(|(&seed, cells)| (seed, cells.clone())));
        self.metrics = metrics;
    }

    /// The seeds that ended, be it without numbers.
    fn seeds(&self) -> BTreeSet<u64> {
        let measured = self.metrics.iter().flat_map(|metric| metric.values.keys());
        measured.chain(self.failed.keys()).copied().collect()
    }
}

impl MetricResult {
    /// Summarizes the values of a number; `None` without any.
    pub fn of(name: &str, values: BTreeMap<u64, f64>) -> Option<Self> {
        let unit = MetricInfo::unit_of(name);
        let summary = Summary::of(&values.values().copied().collect::<Vec<_>>())?;
        Some(Self {
            name: name.to_owned(),
            count: summary.count,
            mean: summary.mean,
            standard_deviation: summary.standard_deviation,
            interval_95: summary.interval_95().map(|(low, high)| [low, high].map(|end| unit.bounded(end))),
            values,
        })
    }

    /// In what it is counted.
    pub fn unit(&self) -> Unit {
        MetricInfo::unit_of(&self.name)
    }

    /// `mean ± standard deviation`, shares in percent without the sign.
    pub fn mean_text(&self) -> String {
        let number = |value| self.unit().text(value);
        match self.standard_deviation {
            // A count that is the same for every seed needs no spread.
            Some(deviation) if deviation == 0.0 && self.unit() == Unit::Images => number(self.mean),
            Some(deviation) => format!("{} ± {}", number(self.mean), number(deviation)),
            None => number(self.mean),
        }
    }

    /// `text` of this number in a row of `count` seeds, with the number of its own seeds if that is another.
    pub fn text_beside(&self, count: usize, text: String) -> String {
        if self.count == count || text.is_empty() { text } else { format!("{text} (n = {})", self.count) }
    }

    /// The confidence interval, as every output shows it; `None` for one seed.
    ///
    /// Results of earlier versions have intervals that reach beyond what the number can be; these end here too.
    pub fn interval(&self) -> Option<[f64; 2]> {
        self.interval_95.map(|ends| ends.map(|end| self.unit().bounded(end)))
    }

    /// The confidence interval in brackets; empty for one seed.
    pub fn interval_text(&self) -> String {
        let number = |value: f64| self.unit().text(value);
        self.interval().map_or_else(String::new, |[low, high]| format!("[{}, {}]", number(low), number(high)))
    }
}

impl PointResult {
    /// The number of that name.
    pub fn metric(&self, name: &str) -> Option<&MetricResult> {
        self.metrics.iter().find(|metric| metric.name == name)
    }

    /// Seeds behind a row that shows these numbers: the most that one of them has. A number with fewer says so itself,
    /// see [`MetricResult::text_beside`].
    pub fn count(&self, names: &[&str]) -> usize {
        names.iter().filter_map(|name| self.metric(name)).map(|metric| metric.count).max().unwrap_or(0)
    }

    /// Seeds with which the classifier of a group has collapsed to one class, by [`COLLAPSE`]; none in results that do not
    /// have the share.
    pub fn collapsed(&self, group: &str) -> Vec<u64> {
        let share = self.metric(&in_group(group, LARGEST_CLASS));
        let above = share.iter().flat_map(|share| &share.values).filter(|(_, share)| **share > COLLAPSE);
        above.map(|(&seed, _)| seed).collect()
    }

    /// What tables say instead of the mean of a number, if the classifier that it is of has collapsed to one class with some
    /// seeds: a mean over such classifiers says nothing.
    pub fn collapse_in_words(&self, name: &str) -> Option<String> {
        let is_of_collapse = MetricInfo::of(name).is_some_and(|metric| is_rate_of_classifier(metric.name));
        let collapsed = if is_of_collapse { self.collapsed(group_of(name)) } else { Vec::new() };
        let count = self.metric(name).map_or(0, |metric| metric.count);
        (!collapsed.is_empty()).then(|| format!("collapse ({} of {count})", collapsed.len()))
    }

    /// Seeds that finished.
    pub fn finished(&self) -> usize {
        self.metrics.iter().map(|metric| metric.count).max().unwrap_or(0)
    }

    /// Puts together what the seeds of a point gave; with each its run.
    pub fn of(label: String, coordinates: Vec<String>, results: &[(String, SeedResult)]) -> Self {
        let mut names: Vec<String> = Vec::new();
        let mut values: BTreeMap<String, BTreeMap<u64, f64>> = BTreeMap::new();
        let mut failed = BTreeMap::new();
        let mut chosen_cells = BTreeMap::new();
        let mut failed_defenses: BTreeMap<String, BTreeMap<u64, String>> = BTreeMap::new();
        for (_, result) in results {
            let measurements = match &result.outcome {
                SeedOutcome::Finished(measurements) => measurements,
                SeedOutcome::Failed { reason } => {
                    failed.insert(result.seed, reason.clone());
                    continue;
                }
            };
            if let Some(chosen) = &measurements.chosen_cells {
                chosen_cells.insert(result.seed, chosen.cells.clone());
            }
            for (title, reason) in result.failures() {
                failed_defenses.entry(title).or_default().insert(result.seed, reason.to_owned());
            }
            let poisoned = (POISONED.to_owned(), result.poisoned_images as f64);
            for (name, value) in std::iter::once(poisoned).chain(named_numbers(measurements)) {
                if !names.contains(&name) {
                    names.push(name.clone());
                }
                values.entry(name).or_default().insert(result.seed, value);
            }
        }
        let metrics = names.iter().filter_map(|name| MetricResult::of(name, values.remove(name)?));
        Self {
            label,
            coordinates,
            metrics: metrics.collect(),
            failed,
            failed_defenses,
            chosen_cells,
            runs: results.iter().map(|(run, result)| (result.seed, run.clone())).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, values: [f64; 2]) -> MetricResult {
        let values = values.into_iter().enumerate().map(|(seed, value)| (seed as u64, value)).collect();
        MetricResult::of(name, values).unwrap()
    }

    #[test]
    fn a_number_has_its_mean_spread_and_interval() {
        let asr = of("asr", [0.9, 1.0]);
        assert_eq!((asr.count, asr.mean), (2, 0.95));
        // s = 0.1 / sqrt(2) = 0.0707; 12.7062 * 0.0707 / sqrt(2) = 0.6353.
        let [low, high] = asr.interval_95.unwrap();
        // 0.95 + 0.6353 is more than a share can be.
        assert!((low - 0.314_69).abs() < 1e-5 && (high - 1.0).abs() < 1e-12, "{low} {high}");
        assert_eq!(MetricResult::of("asr", [(0, 0.5)].into()).unwrap().interval_95, None);
    }

    #[test]
    fn where_one_class_takes_more_than_half_of_the_images_it_is_a_collapse() {
        let metric = |name: &str, values: [f64; 3]| {
            MetricResult::of(name, (0..).zip(values).collect()).expect("there are values")
        };
        let point = PointResult {
            label: "-".into(),
            coordinates: Vec::new(),
            runs: BTreeMap::new(),
            failed: BTreeMap::new(),
            failed_defenses: BTreeMap::new(),
            chosen_cells: BTreeMap::new(),
            metrics: vec![
                metric("asr", [0.9, 0.9, 0.9]),
                metric("largest-class-share", [0.12, 0.5, 0.11]),
                metric("series, 14 of 16 filters/asr", [0.0, 0.97, 0.0]),
                metric("series, 14 of 16 filters/clean-twin-asr", [0.0, 0.97, 0.0]),
                metric("series, 14 of 16 filters/largest-class-share", [0.98, 0.97, 0.3]),
            ],
        };
        assert_eq!((point.collapsed(""), point.collapsed("series, 14 of 16 filters")), (vec![], vec![0, 1]));
        assert_eq!(point.collapse_in_words("asr"), None);
        let words = point.collapse_in_words("series, 14 of 16 filters/asr");
        assert_eq!(words.as_deref(), Some("collapse (2 of 3)"));
        assert_eq!(point.collapse_in_words("series, 14 of 16 filters/clean-twin-asr"), None);
    }

    #[test]
    fn no_interval_reaches_where_its_number_cannot_be() {
        let interval = |name: &str, values: [f64; 2]| of(name, values).interval_text();
        // s = 0.1 / sqrt(2), 12.7062 s / sqrt(2) = 0.6353; of 10 and 20: 15 -+ 63.5.
        assert_eq!(interval("asr", [0.9, 1.0]), "[31.47, 100.00]");
        assert_eq!(interval("routing/trigger-capture", [0.0, 0.1]), "[0.0000, 0.6853]");
        assert_eq!(interval("clean-accuracy-drop", [0.0, 0.1]), "[-58.53, 68.53]");
        assert_eq!(interval("routing/correlation-intensity", [0.0, 0.1]), "[-0.5853, 0.6853]");
        assert_eq!(interval("fine-tuning/seconds", [10.0, 20.0]), "[0, 79]");
    }
}
