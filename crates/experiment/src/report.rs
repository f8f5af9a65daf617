use std::fmt::Write;
use std::path::Path;

use patchdoor_metrics::Summary;
use patchdoor_model::ClassifierConfig;

use crate::backend::Backend;
use crate::config::ExpectedConfig;
use crate::defense::{DefenseOutcome, DefenseSummary};
use crate::facts::{DatasetFacts, choice_name};
use crate::result::{METRICS, Metric, RunSummary, SeedOutcome};
use crate::{Plan, SurrogateConfig};

/// Seeds beyond this number have no column of their own.
const SEED_COLUMNS: usize = 5;

/// Says what a plan will do, before it does it; one line each.
pub fn describe(plan: &Plan, facts: Option<DatasetFacts>, backend: &Backend, folder: &Path) -> Vec<String> {
    let config = plan.config();
    let dataset = config.dataset.name();
    let facts = facts.unwrap_or_else(|| DatasetFacts::published(&config.dataset));
    let counts = plan.counts(facts);
    let known = |count: Option<usize>, all: &str| count.map_or_else(|| all.to_owned(), |count| count.to_string());
    let seeds = config.seeds.len();
    let twins = if config.clean_twin && counts.poisoned != Some(0) { seeds } else { 0 };
    let quick = if plan.is_quick() { ", quick version (its numbers mean nothing)" } else { "" };
    let budget = match &config.placement {
        Some(placement) => config.trigger.placed_pixel_budget(facts.shape, placement),
        None => config.trigger.pixel_budget(facts.shape),
    };
    let pixels = facts.shape.height * facts.shape.width;
    let budget = budget.map_or_else(|_| String::new(), |budget| format!(" ({budget} of {pixels} pixels)"));
    let mut lines = vec![format!(
        "{}: {} (widen {}) on {dataset}, {} trigger{budget}, target class {}{quick}",
        plan.name(),
        choice_name(&config.model),
        config.model.widen_factor(),
        choice_name(&config.trigger),
        config.poisoning.target_class,
    )];
    lines.push(format!(
        "  {} training images, {} of them poisoned (rate {}); {} validation, {} test images",
        known(counts.training, "all"),
        known(counts.poisoned, "a share"),
        config.poisoning.rate,
        known(counts.validation, "a share for"),
        known(counts.test, "all"),
    ));
    let steps = counts
        .training
        .map_or_else(String::new, |images| format!(" of {} steps", images.div_ceil(config.training.batch_size.max(1))));
    lines.push(format!(
        "  {} {}, {} {}: {} trainings of {} {}{steps}",
        seeds,
        if seeds == 1 { "seed" } else { "seeds" },
        if twins == 0 { "no" } else { "each with a" },
        "clean twin",
        seeds + twins,
        config.training.epochs,
        if config.training.epochs == 1 { "epoch" } else { "epochs" },
    ));
    if let Some(placement) = &config.placement {
        let mut line =
            format!("  triggers in {} cells of {}x{}", choice_name(&placement.cells), placement.grid, placement.grid);
        if let Some(surrogate) = SurrogateConfig::of(config) {
            let is_twin =
                surrogate.seed_offset == 0 && ClassifierConfig::from(surrogate.model(&config.model)) == config.model;
            line.push_str(if is_twin {
                ", chosen by the clean twin's routers"
            } else {
                ", chosen by the routers of a surrogate, one more training for each seed"
            });
        }
        lines.push(line);
    }
    for defender in &config.defenses {
        let images = counts
            .training
            .map_or_else(|| "a share of the".to_owned(), |training| defender.amount.count(training).to_string());
        let data = defender.data.name();
        let epochs = match defender.defense.epochs() {
            0 => "no training".to_owned(),
            1 => "1 epoch".to_owned(),
            epochs => format!("{epochs} epochs"),
        };
        lines.push(format!("  then {}: {images} {data} images, {epochs}", defender.title()));
    }
    lines.push(format!("  on {} ({}); results go to {}", backend.name(), backend.device(), folder.display()));
    lines
}

/// The results of several runs as one aligned table, in percent, beside the numbers they expect.
pub fn table(runs: &[RunSummary]) -> String {
    let seeds = runs.iter().flat_map(|run| run.seeds.iter().map(|seed| seed.seed));
    let mut columns = seeds.collect::<Vec<_>>();
    columns.sort_unstable();
    columns.dedup();
    let wide = columns.len() > SEED_COLUMNS || columns.len() == 1;
    if wide {
        columns.clear();
    }
    let expects = runs.iter().any(|run| run.expected.is_some_and(|expected| expected != ExpectedConfig::default()));

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
        for metric in &METRICS {
            let Some(summary) = (metric.summary)(&run.metrics) else { continue };
            let mut cells = vec![metric.label.to_owned()];
            cells.extend(columns.iter().map(|&seed| seed_cell(run, seed, metric)));
            cells.push(mean_cell(summary));
            if expects {
                let expected = run.expected.as_ref().and_then(|expected| (metric.expected)(expected));
                cells.push(expected.map(percent).unwrap_or_default());
            }
            rows.push(Row::Cells(cells));
        }
        for seed in &run.seeds {
            if let SeedOutcome::Failed { reason } = &seed.outcome {
                rows.push(Row::Title(format!("seed {} failed: {reason}", seed.seed)));
            }
        }
    }
    let mut text = align(&header, &rows);
    if runs.iter().any(|run| !run.defenses.is_empty()) {
        text.push('\n');
        text.push_str(&defense_table(runs));
    }
    text + &crate::routing::table(runs)
}

/// What the defenses of several runs came to, as one aligned table; rates in percent, ratings as they are.
fn defense_table(runs: &[RunSummary]) -> String {
    let header = ["defenses, in percent", "CA", "ASR", "RA", "DER", "RIR", "seconds"].map(str::to_owned);
    let mut rows = Vec::new();
    let defended = runs.iter().filter(|run| !run.defenses.is_empty());
    for (number, run) in defended.enumerate() {
        let gap = if number == 0 { "" } else { "\n" };
        rows.push(Row::Title(format!("{gap}{}", run.run)));
        let percents = |summaries: [Option<Summary>; 3]| summaries.map(|summary| spread(summary, percent));
        let metrics = &run.metrics;
        let mut cells = vec!["none".to_owned()];
        cells.extend(percents([metrics.clean_accuracy, metrics.asr, metrics.robust_accuracy]));
        rows.push(Row::Cells(cells));
        for DefenseSummary {
            title,
            pruned_fraction,
            clean_accuracy,
            asr,
            robust_accuracy,
            defense_effectiveness,
            robust_improvement,
            seconds,
            ..
        } in &run.defenses
        {
            let name = pruned_fraction.map_or_else(|| title.clone(), |share| format!("  {} pruned", percent(share)));
            let mut cells = vec![name];
            cells.extend(percents([*clean_accuracy, *asr, *robust_accuracy]));
            cells.extend(
                [*defense_effectiveness, *robust_improvement].map(|rating| spread(rating, |r| format!("{r:.3}"))),
            );
            cells.push(spread(*seconds, |seconds| format!("{seconds:.0}")));
            rows.push(Row::Cells(cells));
        }
        for seed in &run.seeds {
            for defense in seed.measurements().map_or(&[][..], |measured| measured.defenses.as_slice()) {
                if let DefenseOutcome::Failed { reason } = &defense.outcome {
                    rows.push(Row::Title(format!("{} of seed {} failed: {reason}", defense.title, seed.seed)));
                }
            }
        }
    }
    align(&header, &rows)
}

/// A mean with its spread; nothing where there is none.
fn spread(summary: Option<Summary>, shown: impl Fn(f64) -> String) -> String {
    summary.map_or_else(String::new, |summary| match summary.standard_deviation {
        Some(deviation) => format!("{} ± {}", shown(summary.mean), shown(deviation)),
        None => shown(summary.mean),
    })
}

/// One line about a run: what, on what, how much of it poisoned.
fn title(run: &RunSummary) -> String {
    let mut title = format!("{} on {}", run.run, run.images.dataset);
    if let Some(seed) = run.seeds.first() {
        let share = 100.0 * seed.poisoned_images as f64 / (seed.training_images as f64).max(1.0);
        let finished = run.seeds.iter().filter(|seed| seed.measurements().is_some()).count();
        let _ = write!(
            title,
            ": {} of {} training images poisoned ({share:.2} %), n = {finished} {}",
            seed.poisoned_images,
            seed.training_images,
            if finished == 1 { "seed" } else { "seeds" },
        );
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

pub(crate) enum Row {
    /// A line across all columns.
    Title(String),
    Cells(Vec<String>),
}

fn seed_cell(run: &RunSummary, seed: u64, metric: &Metric) -> String {
    match run.seeds.iter().find(|result| result.seed == seed) {
        None => String::new(),
        Some(result) => match result.measurements() {
            None => "failed".into(),
            Some(measurements) => (metric.of)(measurements).map_or_else(|| "-".into(), percent),
        },
    }
}

fn mean_cell(summary: Summary) -> String {
    spread(Some(summary), percent)
}

pub(crate) fn percent(share: f64) -> String {
    // A zero is no minus zero.
    format!("{:.2}", 100.0 * share + 0.0)
}

/// Labels to the left, numbers to the right, two spaces between.
pub(crate) fn align(header: &[String], rows: &[Row]) -> String {
    let lines = || {
        std::iter::once(header).chain(rows.iter().filter_map(|row| match row {
            Row::Cells(cells) => Some(cells.as_slice()),
            Row::Title(_) => None,
        }))
    };
    let width = |column: usize| {
        lines().filter_map(|cells| cells.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths = (0..header.len()).map(width).collect::<Vec<_>>();
    let line = |cells: &[String]| {
        let mut line = String::new();
        for (column, (cell, &width)) in cells.iter().zip(&widths).enumerate() {
            let padding = " ".repeat(width - cell.chars().count());
            match column {
                0 => line.extend([cell, padding.as_str()]),
                _ => line.extend(["  ", &padding, cell]),
            }
        }
        line.trim_end().to_owned()
    };
    let mut text = line(header);
    text.push('\n');
    text.push_str(&"─".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1)));
    for row in rows {
        text.push('\n');
        match row {
            Row::Title(title) => text.push_str(title),
            Row::Cells(cells) => text.push_str(&line(cells)),
        }
    }
    text.push('\n');
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::result::{ImagesUsed, Measurements, MetricSummaries, SCHEMA, SeedResult, TwinMeasurements};

    pub(crate) fn seed(seed: u64, clean: f64, asr: f64) -> SeedResult {
        let outcome = SeedOutcome::Finished(Box::new(Measurements {
            test_images: 10_000,
            triggered_images: 9_000,
            clean_accuracy: clean,
            asr: Some(asr),
            asr_all_classes: Some(asr),
            robust_accuracy: Some(0.01),
            clean_accuracy_drop: Some(0.7 - clean),
            clean_twin: Some(TwinMeasurements {
                folder: "twins/12345678/seed-0".into(),
                clean_accuracy: 0.7,
                asr: Some(0.02),
            }),
            classes: Vec::new(),
            routing: None,
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
            metrics: MetricSummaries::of(&seeds),
            defenses: crate::DefenseSummary::of(&seeds),
            routing: crate::routing::summarize(&seeds),
            expected: Some(ExpectedConfig { clean_accuracy: Some(0.92), asr: Some(1.0), ..ExpectedConfig::default() }),
            seeds,
        }
    }

    #[test]
    fn one_table_holds_several_runs_their_seeds_and_what_they_expect() {
        let first = run("badnets", vec![seed(0, 0.69, 0.991), seed(1, 0.701, 0.985)]);
        let mut second = run("blended", vec![seed(0, 0.5, 0.1), failed(1, "loss became NaN in epoch 0, step 3")]);
        second.images.substitution = Some("cifar10 was not found; run on shapes instead".into());
        second.images.dataset = "shapes".into();
        insta::assert_snapshot!(table(&[first, second]));
    }

    #[test]
    fn a_run_without_a_finished_seed_says_why() {
        insta::assert_snapshot!(table(&[run("badnets", vec![failed(0, "loss became NaN in epoch 0, step 3")])]));
    }
}
