use std::collections::BTreeMap;
use std::fmt::Write;

use patchdoor_metrics::Summary;
use patchdoor_record::{
    COLLAPSE, DefenseKind, INTERVENTION_NUMBERS, Measurements, MetricInfo, RunSummary, SEED_NUMBERS, SeedOutcome, Unit,
};

use crate::routing_table::routing_table;
use crate::text::{Row, align};

/// Seeds beyond this number have no column of their own.
const SEED_COLUMNS: usize = 5;

/// The results of several runs as one aligned table, in percent, beside the numbers they expect.
///
/// No line is wider than `width`, the columns of the terminal.
pub fn run_table(runs: &[RunSummary], width: usize) -> String {
    let seeds = runs.iter().flat_map(|run| run.seeds.iter().map(|seed| seed.seed));
    let mut columns = seeds.collect::<Vec<_>>();
    columns.sort_unstable();
    columns.dedup();
    let wide = columns.len() > SEED_COLUMNS || columns.len() == 1;
    if wide {
        columns.clear();
    }
    let expects = runs.iter().any(|run| !run.expected.is_empty());

    let mut header = vec!["in percent".to_owned()];
    header.extend(columns.iter().map(|seed| format!("seed {seed}")));
    header.push("mean ± sd".into());
    if expects {
        header.push("expected".into());
    }
    let mut rows = Vec::new();
    for (number, run) in runs.iter().enumerate() {
        let gap = if number == 0 { "" } else { "\n" };
        rows.push(Row::Title(format!("{gap}{}", title(run))));
        for (name, of) in SEED_NUMBERS {
            let (Some(summary), Some(metric)) = (run.metrics.get(name), MetricInfo::of(name)) else { continue };
            // Worth a line only where it is a collapse.
            if name == "largest-class-share" && summary.mean <= COLLAPSE {
                continue;
            }
            let mut cells = vec![metric.label.to_owned()];
            cells.extend(columns.iter().map(|&seed| seed_cell(run, seed, metric, of)));
            cells.push(spread(Some(summary), metric, run.finished()));
            if expects {
                let expected = run.expected.get(name);
                cells.push(expected.map(|&expected| metric.unit.text(expected)).unwrap_or_default());
            }
            rows.push(Row::Cells(cells));
        }
        for seed in &run.seeds {
            if let SeedOutcome::Failed { reason } = &seed.outcome {
                rows.push(Row::Title(format!("seed {} failed: {reason}", seed.seed)));
            }
        }
    }
    let mut text = align(&header, &rows, width);
    for kind in DefenseKind::ALL {
        if runs.iter().any(|run| run.defenses.iter().any(|defense| defense.kind == kind)) {
            text.push('\n');
            text.push_str(&defense_table(runs, kind, width));
        }
    }
    if runs.iter().any(|run| !run.interventions.is_empty()) {
        text.push('\n');
        text.push_str(&intervention_table(runs, width));
    }
    text + &routing_table(runs, width)
}

/// Where the classifiers of several runs stand with their routing or experts changed, in percent.
fn intervention_table(runs: &[RunSummary], width: usize) -> String {
    let numbers = INTERVENTION_NUMBERS.map(|(name, _)| MetricInfo::of(name).expect("the columns are known numbers"));
    let header = ["routing and experts changed, in percent", "n"].into_iter();
    let header = header.chain(numbers.iter().map(|number| number.heading)).map(str::to_owned).collect::<Vec<_>>();
    let mut rows = Vec::new();
    for (number, run) in runs.iter().filter(|run| !run.interventions.is_empty()).enumerate() {
        let gap = if number == 0 { "" } else { "\n" };
        rows.push(Row::Title(format!("{gap}{}", run.run)));
        let own = std::iter::once(("none", &run.metrics));
        let changed = run.interventions.iter().map(|change| (change.title.as_str(), &change.metrics));
        rows.extend(own.chain(changed).map(|(title, metrics)| {
            let count = numbers.iter().filter_map(|number| metrics.get(number.name)).map(|found| found.count).max();
            let count = count.unwrap_or(0);
            let cells = numbers.iter().map(|number| spread(metrics.get(number.name), number, count));
            Row::Cells([title.to_owned(), count.to_string()].into_iter().chain(cells).collect())
        }));
    }
    align(&header, &rows, width)
}

/// What the defenses of one kind came to in several runs, as one aligned table; rates in percent, ratings and areas as they are.
fn defense_table(runs: &[RunSummary], kind: DefenseKind, width: usize) -> String {
    let numbers = kind.columns().iter().map(|name| MetricInfo::of(name).expect("the columns are known numbers"));
    let numbers = numbers.collect::<Vec<_>>();
    let header = [format!("{}, in percent", kind.heading()), "n".to_owned()].into_iter();
    let header = header.chain(numbers.iter().map(|number| number.heading.to_owned())).collect::<Vec<_>>();
    let mut rows = Vec::new();
    let defended = runs.iter().filter(|run| run.defenses.iter().any(|defense| defense.kind == kind));
    for (number, run) in defended.enumerate() {
        let gap = if number == 0 { "" } else { "\n" };
        rows.push(Row::Title(format!("{gap}{}", run.run)));
        let cells = |name: String, metrics: &BTreeMap<String, Summary>, collapsed: usize| {
            let shown = numbers.iter().filter_map(|number| metrics.get(number.name));
            let count = shown.map(|summary| summary.count).max().unwrap_or(0);
            let cells = numbers.iter().map(|number| {
                // Where a classifier of one class stands says nothing, least of all as a mean.
                if collapsed > 0 && !number.unit.is_cost() {
                    return format!("collapse ({collapsed} of {count})");
                }
                spread(metrics.get(number.name), number, count)
            });
            Row::Cells([name, count.to_string()].into_iter().chain(cells).collect())
        };
        if kind.gives_classifier() {
            rows.push(cells("none".to_owned(), &run.metrics, 0));
        }
        for defense in run.defenses.iter().filter(|defense| defense.kind == kind) {
            let name = match (&defense.pruned, defense.pruned_fraction) {
                (Some(pruned), Some(_)) => format!("  {pruned}"),
                (None, Some(share)) => format!("  {} pruned", Unit::Share.text(share)),
                (Some(pruned), None) => format!("{} ({pruned})", defense.title),
                (None, None) => defense.title.clone(),
            };
            rows.push(cells(name, &defense.metrics, defense.collapsed));
        }
        let is_here = |title: &str| run.defenses.iter().any(|defense| defense.kind == kind && defense.title == title);
        for seed in &run.seeds {
            for (title, reason) in seed.failures().into_iter().filter(|(title, _)| is_here(title)) {
                rows.push(Row::Title(format!("{title} of seed {} failed: {reason}", seed.seed)));
            }
        }
    }
    align(&header, &rows, width)
}

/// A mean with its spread in a row of `count` seeds, with the number of its own seeds if that is another; nothing where
/// there is none.
fn spread(summary: Option<&Summary>, metric: &MetricInfo, count: usize) -> String {
    summary.map_or_else(String::new, |summary| {
        let own = if summary.count == count { String::new() } else { format!(" (n = {})", summary.count) };
        match summary.standard_deviation {
            Some(deviation) => format!("{} ± {}{own}", metric.unit.text(summary.mean), metric.unit.text(deviation)),
            None => format!("{}{own}", metric.unit.text(summary.mean)),
        }
    })
}

/// One line about a run: what, on what, how much of it poisoned.
fn title(run: &RunSummary) -> String {
    let mut title = format!("{} on {}", run.run, run.images.dataset);
    if let Some(seed) = run.seeds.first() {
        let share = 100.0 * seed.poisoned_images as f64 / (seed.training_images as f64).max(1.0);
        let finished = run.finished();
        let _ = write!(
            title,
            ": {} of {} training images poisoned ({share:.2} %), n = {finished} {}",
            seed.poisoned_images,
            seed.training_images,
            if finished == 1 { "seed" } else { "seeds" },
        );
    }
    if let Some(target) = &run.target {
        let _ = write!(title, ", target class {target}");
    }
    let _ = write!(title, ", {}", run.backend);
    if run.quick {
        title.push_str(", QUICK: these numbers mean nothing");
    }
    if let Some(substitution) = &run.images.substitution {
        let _ = write!(title, "\nNOTE: {substitution}");
    }
    for note in &run.notes {
        let _ = write!(title, "\nnote: {note}");
    }
    title
}

fn seed_cell(run: &RunSummary, seed: u64, metric: &MetricInfo, of: fn(&Measurements) -> Option<f64>) -> String {
    match run.seeds.iter().find(|result| result.seed == seed) {
        None => String::new(),
        Some(result) => match result.measurements() {
            None => "failed".into(),
            Some(measurements) => of(measurements).map_or_else(|| "-".into(), |value| metric.unit.text(value)),
        },
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use patchdoor_record::{ImagesUsed, SCHEMA, SeedResult, TwinMeasurements};

    use crate::text::DEFAULT_WIDTH;

    pub(crate) fn seed(seed: u64, clean: f64, asr: f64) -> SeedResult {
        let outcome = SeedOutcome::Finished(Box::new(Measurements {
            test_images: 10_000,
            triggered_images: 9_000,
            clean_accuracy: clean,
            asr: Some(asr),
            asr_all_classes: Some(asr),
            robust_accuracy: Some(0.01),
            trigger_false_positive_rate: None,
            largest_class_share: Some(0.12),
            chosen_cells: None,
            crafted: None,
            clean_accuracy_drop: Some(0.7 - clean),
            clean_twin: Some(TwinMeasurements {
                folder: "twins/12345678/seed-0".into(),
                commit: Some("0123456789abcdef".into()),
                clean_accuracy: 0.7,
                asr: Some(0.02),
            }),
            reach: None,
            stealth: None,
            classes: Vec::new(),
            confusion: None,
            routing: None,
            evasion: None,
            certification: None,
            training_seconds: 1.0,
            images_per_second: 400.0,
            defenses: Vec::new(),
        }));
        SeedResult { seed, outcome, ..failed(seed, "") }
    }

    fn failed(seed: u64, reason: &str) -> SeedResult {
        SeedResult {
            schema: SCHEMA,
            seed,
            images: ImagesUsed { dataset: "cifar10".into(), substitution: None },
            training_images: 8_000,
            validation_images: 800,
            poisoned_images: 160,
            outcome: SeedOutcome::Failed { reason: reason.into() },
        }
    }

    pub(crate) fn run(experiment: &str, seeds: Vec<SeedResult>) -> RunSummary {
        RunSummary {
            schema: SCHEMA,
            experiment: experiment.into(),
            run: format!("{experiment}-12345678"),
            images: seeds[0].images.clone(),
            notes: vec!["CIFAR-10 (reconstructed; 104 images JPEG-decoded)".into()],
            quick: false,
            backend: "flex".into(),
            device: "a processor".into(),
            expected: [("clean-accuracy".to_owned(), 0.92), ("asr".to_owned(), 1.0)].into(),
            seeds,
            ..RunSummary::default()
        }
        .summarized()
    }

    #[test]
    fn one_table_holds_several_runs_their_seeds_and_what_they_expect() {
        let first = run("badnets", vec![seed(0, 0.69, 0.991), seed(1, 0.701, 0.985)]);
        let mut second = run("blended", vec![seed(0, 0.5, 0.1), failed(1, "loss became NaN in epoch 0, step 3")]);
        second.images.substitution = Some("cifar10 was not found; run on shapes instead".into());
        second.images.dataset = "shapes".into();
        insta::assert_snapshot!(run_table(&[first, second], DEFAULT_WIDTH));
    }

    #[test]
    fn a_run_without_a_finished_seed_says_why() {
        insta::assert_snapshot!(run_table(
            &[run("badnets", vec![failed(0, "loss became NaN in epoch 0, step 3")])],
            DEFAULT_WIDTH
        ));
    }
}
