use std::collections::BTreeMap;

use patchdoor_record::{Content, DefenseKind, MetricInfo, PointResult, SeedResult, in_group};

use super::entry::Entry;
use super::settings::apart;
use super::table::Cell;

/// A defense as runs tried it, the same in each of them: it has one column.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Defense {
    /// Its title, with what tells it from others of this title.
    pub(crate) heading: String,
    title: String,
    /// What it acts on; `None` where it failed wherever it was tried.
    kind: Option<DefenseKind>,
    /// Its part of the configuration.
    settings: BTreeMap<String, String>,
}

impl Defense {
    fn is_same(&self, other: &Self) -> bool {
        self.title == other.title && self.settings == other.settings
    }
}

/// Every defense that one of several runs tried, kind by kind, in the order in which they tried them.
pub(crate) fn defenses(runs: &[Vec<Defense>]) -> Vec<Defense> {
    let mut found: Vec<Defense> = Vec::new();
    for tried in runs.iter().flatten() {
        match found.iter_mut().find(|known| known.is_same(tried)) {
            Some(known) => known.kind = known.kind.or(tried.kind),
            None => found.push(tried.clone()),
        }
    }
    let place = |kind: Option<DefenseKind>| DefenseKind::ALL.iter().position(|other| Some(*other) == kind);
    found.sort_by_key(|defense| place(defense.kind).unwrap_or(DefenseKind::ALL.len()));
    let headings = found.iter().map(|defense| {
        let like = found.iter().filter(|other| other.title == defense.title).collect::<Vec<_>>();
        let own = like.iter().position(|other| other.settings == defense.settings).unwrap_or(0);
        let settings = like.iter().map(|other| &other.settings).collect::<Vec<_>>();
        match apart(&settings, |_| true)[own].as_str() {
            "" => defense.title.clone(),
            settings => format!("{} ({settings})", defense.title),
        }
    });
    let headings = headings.collect::<Vec<_>>();
    found.into_iter().zip(headings).map(|(defense, heading)| Defense { heading, ..defense }).collect()
}

/// The defenses that a run tried.
pub(crate) fn tried(entry: &Entry) -> Vec<Defense> {
    let Content::Run(run) = &entry.listed.content else { return Vec::new() };
    let of_seeds = run.seeds.iter().filter_map(SeedResult::measurements).map(|seed| seed.titled_defenses());
    let of_seeds = of_seeds.collect::<Vec<_>>();
    let longest = of_seeds.iter().max_by_key(|defenses| defenses.len());
    let of = |(index, (title, _)): (usize, &(String, _))| {
        let mut kinds =
            of_seeds.iter().flatten().filter(|(other, _)| other == title).filter_map(|(_, result)| result.kind());
        Defense { heading: title.clone(), title: title.clone(), kind: kinds.next(), settings: settings(entry, index) }
    };
    longest.into_iter().flatten().enumerate().map(of).collect()
}

/// What a run's configuration says of the defense of that index, save what it is called and whether its twin is measured.
fn settings(entry: &Entry, index: usize) -> BTreeMap<String, String> {
    let table = format!("defenses[{index}].");
    let own = entry.config.iter().filter_map(|(key, value)| Some((key.strip_prefix(&table)?, value)));
    let own = own.filter(|(key, _)| !["label", "twin"].contains(key));
    own.map(|(key, value)| (key.to_owned(), value.clone())).collect()
}

/// The numbers that a cell shows of a defense of a kind, as many as there are; rows are sorted by the first.
fn headline(kind: DefenseKind) -> &'static [&'static str] {
    match kind {
        DefenseKind::Repair | DefenseKind::Training => &["asr", "clean-accuracy"],
        DefenseKind::Detector => &["detection-auc"],
        // Accuracy and ASR are those of a classifier trained on what is left, where one was.
        DefenseKind::Filter => &["detection-auc", "true-positive-rate", "false-positive-rate", "asr", "clean-accuracy"],
        DefenseKind::Inspector => &["targets-flagged", "wrongly-flagged"],
    }
}

/// Where a run stands without any defense.
pub(crate) fn undefended(entry: &Entry) -> Cell {
    let Some(point) = entry.points().first() else { return Cell::reason(entry.listed.state.name()) };
    let cell = numbers(point, "", headline(DefenseKind::Repair));
    cell.unwrap_or_else(|| Cell::reason("no seed finished")).linked(entry.link("#numbers"))
}

/// What a defense came to in a run that tried these, or why there is nothing.
pub(crate) fn defended(entry: &Entry, tried: &[Defense], defense: &Defense) -> Cell {
    let Some(point) = entry.points().first() else { return Cell::reason(entry.listed.state.name()) };
    if point.finished() == 0 {
        return Cell::reason("no seed finished");
    }
    let Some(tried) = tried.iter().find(|tried| tried.is_same(defense)) else {
        return Cell::reason("not run");
    };
    let failed = point.failed_defenses.get(&tried.title).map(|seeds| {
        let reasons = seeds.iter().map(|(seed, reason)| format!("seed {seed}: {reason}"));
        reasons.collect::<Vec<_>>().join("; ")
    });
    let cell = tried.kind.and_then(|kind| numbers(point, &tried.title, headline(kind)));
    match (cell, failed) {
        (Some(cell), failed) => cell.linked(entry.link("#defenses")).explained(failed),
        (None, Some(reason)) => Cell::reason("failed").explained(Some(reason)),
        (None, None) if point.metric("asr").is_none() => Cell::reason("no trigger"),
        (None, None) => Cell::reason("not measured"),
    }
}

/// Those of the numbers of a group that there are, each with its number of seeds where that is not all that finished; `None` if
/// there are none.
fn numbers(point: &PointResult, group: &str, names: &[&str]) -> Option<Cell> {
    let measured = names.iter().filter_map(|name| point.metric(&in_group(group, name))).collect::<Vec<_>>();
    let first = measured.first()?;
    if let Some(collapse) = measured.iter().find_map(|metric| point.collapse_in_words(&metric.name)) {
        return Some(Cell::text(collapse));
    }
    let words = measured.iter().map(|metric| {
        let mean = metric.text_beside(point.finished(), metric.mean_text());
        format!("{} {mean}", MetricInfo::heading_of(&metric.name))
    });
    Some(Cell::number(words.collect::<Vec<_>>().join(", "), first.mean))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::entry::tests::{CONFIG, damaged, entry_of};
    use super::*;
    use crate::run_table::tests::{run, seed};
    use patchdoor_metrics::Estimate;
    use patchdoor_record::{
        DefenseOutcome, DefenseResult, DefenseStanding, DetectionMeasurements, DetectorStanding,
        InspectionMeasurements, InspectorFindings, RunSummary, SCHEMA, SeedOutcome,
    };
    use serde_json::json;

    pub(crate) fn result(title: &str, outcome: DefenseOutcome) -> DefenseResult {
        DefenseResult {
            schema: SCHEMA,
            name: "a".into(),
            title: title.into(),
            data: "clean".into(),
            clean_images: 100,
            contaminated_images: 0,
            validation_images: 100,
            peak_memory: None,
            outcome,
        }
    }

    /// A repair after which the classifier stands there; it takes `share` of untouched images for one class.
    pub(crate) fn repaired(clean_accuracy: f64, asr: f64, share: f64) -> DefenseOutcome {
        let standing =
            DefenseStanding { clean_accuracy, asr: Some(asr), robust_accuracy: None, largest_class_share: Some(share) };
        let measured = json!({ "before": standing, "after": standing, "seconds": 1.0, "epochs": 1, "details": {} });
        DefenseOutcome::Finished(serde_json::from_value(measured).expect("a repair"))
    }

    pub(crate) fn detected(auc: Option<f64>) -> DefenseOutcome {
        let auc = auc.map(|value| Estimate { value, low: None, high: None, images: 9 });
        let victim =
            DetectorStanding { auc, at_rates: Vec::new(), ..DetectorStanding::of([&[], &[], &[]], 0.0, |_| 0.0) };
        DefenseOutcome::Detected(Box::new(DetectionMeasurements {
            victim,
            clean_twin: None,
            judged_images: 9,
            seconds: 1.0,
        }))
    }

    fn inspected() -> DefenseOutcome {
        let victim = InspectorFindings::of(vec![1.0, 0.0, 2.0], &[true, false, true]);
        DefenseOutcome::Inspected(Box::new(InspectionMeasurements {
            targets: vec![0],
            victim,
            clean_twin: None,
            seconds: 1.0,
        }))
    }

    pub(crate) fn failed(reason: &str) -> DefenseOutcome {
        DefenseOutcome::Failed { reason: reason.into() }
    }

    /// A run whose seeds came to that with these defenses.
    pub(crate) fn run_of(seeds: Vec<Vec<DefenseResult>>) -> RunSummary {
        let seeds = seeds.into_iter().zip(0..).map(|(defenses, number)| {
            let mut seed = seed(number, 0.7, 0.9);
            if let SeedOutcome::Finished(measured) = &mut seed.outcome {
                measured.defenses = defenses;
            }
            seed
        });
        run("badnets", seeds.collect())
    }

    fn texts(entry: &Entry) -> Vec<String> {
        let tried = tried(entry);
        let defenses = defenses(std::slice::from_ref(&tried));
        defenses.iter().map(|defense| defended(entry, &tried, defense).text).collect()
    }

    #[test]
    fn every_kind_has_its_own_numbers_and_a_mean_of_fewer_seeds_says_so() {
        let first = vec![
            result("inspector", inspected()),
            result("detector", detected(Some(0.75))),
            result("repair", repaired(0.5, 0.25, 0.1)),
            result("half", repaired(0.5, 0.25, 0.1)),
            result("collapsing", repaired(0.1, 1.0, 0.9)),
        ];
        let mut second = first.clone();
        second[3].outcome = failed("loss became NaN");
        let entry = entry_of("a", CONFIG, run_of(vec![first, second]));
        assert_eq!(
            texts(&entry),
            [
                "ASR 25.00 ± 0.00, CA 50.00 ± 0.00",
                "ASR 25.00 (n = 1), CA 50.00 (n = 1)",
                "collapse (2 of 2)",
                "AUC 0.7500 ± 0.0000",
                "targets flagged 100.00 ± 0.00, others flagged 1.0 ± 0.0",
            ]
        );
        assert_eq!(undefended(&entry).text, "ASR 90.00 ± 0.00, CA 70.00 ± 0.00");
    }

    #[test]
    fn what_has_no_number_says_why() {
        let with = |outcome| entry_of("a", CONFIG, run_of(vec![vec![result("detector", outcome)]]));
        assert_eq!(texts(&with(failed("loss became NaN"))), ["failed"]);
        assert_eq!(texts(&with(detected(None))), ["not measured"]);
        let mut unattacked = with(detected(None));
        let point = &mut unattacked.table.as_mut().expect("it has one").points[0];
        point.metrics.retain(|metric| metric.name != "asr");
        assert_eq!(texts(&unattacked), ["no trigger"]);
        let detector = tried(&unattacked).remove(0);
        assert_eq!(defended(&unattacked, &[], &detector).text, "not run");
        assert_eq!(defended(&damaged(), &[], &detector).text, "damaged");
        assert_eq!(undefended(&damaged()).text, "damaged");
    }

    #[test]
    fn a_defense_of_other_settings_is_another_whatever_its_name() {
        let of = |epochs: usize, label: &str| {
            let config = format!("{CONFIG}[[defenses]]\nlabel = \"{label}\"\nfine-tuning.training.epochs = {epochs}\n");
            tried(&entry_of("a", &config, run_of(vec![vec![result("repair", repaired(0.5, 0.25, 0.1))]])))
        };
        let headings =
            |runs: &[Vec<Defense>]| defenses(runs).into_iter().map(|defense| defense.heading).collect::<Vec<_>>();
        assert_eq!(headings(&[of(5, "x"), of(5, "y")]), ["repair"]);
        assert_eq!(
            headings(&[of(5, "x"), of(9, "x")]),
            ["repair (fine-tuning.training.epochs = 5)", "repair (fine-tuning.training.epochs = 9)"]
        );
    }
}
