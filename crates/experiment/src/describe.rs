use std::path::Path;

use patchdoor_data::Dataset;
use patchdoor_defenses::ActionKind;
use patchdoor_plan::{DatasetFacts, ExperimentConfig, ImageCounts, Plan, choice_name};
use patchdoor_triggers::TriggerError;

use crate::backend::Backend;

/// Says what a plan will do, before it does it; one line each.
pub fn describe(plan: &Plan, facts: Option<&DatasetFacts>, backend: &Backend, folder: &Path) -> Vec<String> {
    let config = plan.config();
    let dataset = config.dataset.name();
    let published = DatasetFacts::published(&config.dataset);
    let facts = facts.unwrap_or(&published);
    let counts = plan.counts(facts);
    let known = |count: Option<usize>, all: &str| count.map_or_else(|| all.to_owned(), |count| count.to_string());
    let seeds = config.seeds.len();
    let twins = if config.trains_twin(counts.poisoned) { seeds } else { 0 };
    let quick = if plan.is_quick() { ", quick version (its numbers mean nothing)" } else { "" };
    let pixels = facts.shape.height * facts.shape.width;
    let budget =
        pixel_budget(config, facts).map_or_else(String::new, |budget| format!(" ({budget} of {pixels} pixels)"));
    let target = plan
        .target_in_words(facts)
        .map_or_else(|| "each class taken for the next".to_owned(), |target| format!("target class {target}"));
    let mut lines = vec![format!(
        "{}: {} (widen {}) on {dataset}, {} trigger{budget}, {target}{quick}",
        plan.name(),
        choice_name(&config.model),
        config.model.widen_factor(),
        config.attack_name(),
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
    if config.makes_trigger_in_training() {
        lines.push("  its trigger is made in the training, where no curves can follow it".to_owned());
    } else {
        lines.extend(curves_in_words(config, &counts));
    }
    if let Some(difference) = config.victim.in_words() {
        lines.push(format!("  the backdoored classifier {difference}"));
    }
    if let Some(placement) = &config.placement {
        let mut line =
            format!("  triggers in {} cells of {}x{}", choice_name(&placement.cells), placement.grid, placement.grid);
        if placement.surrogate().is_some() {
            let (is_twin, surrogate) = surrogate_in_words(plan);
            line.push_str(", chosen by the ");
            line.push_str(if is_twin { "clean twin's routers" } else { "routers of " });
            line.push_str(if is_twin { "" } else { surrogate });
        }
        lines.push(line);
    }
    if config.poisoning.selection.asks_surrogate() {
        lines.push(format!("  images to poison are those of which {} is least sure", surrogate_in_words(plan).1));
    }
    if config.crafted.is_some() {
        lines.push(format!("  the trigger is made with {}", surrogate_in_words(plan).1));
    }
    for defender in &config.defenses {
        let images = counts
            .training
            .map_or_else(|| "a share of the".to_owned(), |training| defender.amount.count(training).to_string());
        let data = defender.data.name();
        let epochs = match defender.most_epochs(&config.training) {
            0 => "no training".to_owned(),
            1 => "1 epoch".to_owned(),
            epochs => format!("{epochs} epochs"),
        };
        let tuned = if defender.tune.is_some() { " at most, as strong as validation images allow" } else { "" };
        let data = match defender.defense.kind() {
            ActionKind::Train => "trained from scratch on the poisoned set".to_owned(),
            _ => format!("{images} {data} images"),
        };
        lines.push(format!("  then {}: {data}, {epochs}{tuned}", defender.title()));
    }
    lines.extend(plan.notes(facts).iter().map(|note| format!("  note: {note}")));
    let precision = if config.precision.is_full() {
        String::new()
    } else {
        format!(", operands of convolutions rounded to {}", config.precision.name())
    };
    lines.push(format!(
        "  on {} ({}){precision}; results go to {}",
        backend.name(),
        backend.device(),
        folder.display()
    ));
    lines
}

/// How many pixels of an image the trigger may change; `None` where that cannot be said.
fn pixel_budget(config: &ExperimentConfig, facts: &DatasetFacts) -> Option<usize> {
    let shape = facts.shape;
    if let Some(crafted) = &config.crafted {
        let crafting = crafted.kind();
        let placed = config.trigger_placement().map(|placement| {
            let placed = placement.pixels_of_cells(shape)?;
            let cell = shape.height / placement.grid * (shape.width / placement.grid);
            Ok::<_, TriggerError>(crafting.chosen_cells().map_or(placed, |count| placed.min(count * cell)))
        });
        return Some(crafting.pixel_budget(shape, placed.transpose().ok()?));
    }
    let trigger = config.trigger()?;
    match &config.placement {
        Some(placement) => trigger.placed_pixel_budget(shape, placement).ok(),
        None => trigger.pixel_budget(shape).ok(),
    }
}

/// Whether the surrogate is the clean twin, and what it is.
fn surrogate_in_words(plan: &Plan) -> (bool, &'static str) {
    let is_twin = plan.surrogate().is_some_and(|(surrogate, other)| {
        surrogate.seed_offset == 0 && surrogate.images.is_all() && other.config().model == plan.config().model
    });
    (is_twin, if is_twin { "the clean twin" } else { "a surrogate, one more training for each seed" })
}

/// How the backdoored classifier is followed through its training and what that costs; `None` if it is not.
fn curves_in_words(config: &ExperimentConfig, counts: &ImageCounts) -> Option<String> {
    let (curves, epochs) = (&config.curves, config.training.epochs);
    let looks = curves.looks(epochs);
    let predictions = curves.predictions(epochs, counts.test);
    // A prediction is about a third of a training step.
    let cost = counts.training.map(|training| 100.0 * predictions as f64 / (3 * training * epochs).max(1) as f64);
    let cost = cost.map_or_else(String::new, |cost| format!(", about {cost:.1} % of the training"));
    (looks > 0).then(|| {
        format!(
            "  for display, CA, ASR and RA on {} test images after {looks} of {epochs} epochs: {predictions} predictions{cost}",
            curves.images.min(counts.test.unwrap_or(usize::MAX))
        )
    })
}

/// Where images come from, and what is to be known about them; one line each.
pub(crate) fn describe_images(dataset: &Dataset) -> Vec<String> {
    let location = dataset.location.as_ref().map(|location| format!("  images from {}", location.display()));
    location.into_iter().chain(dataset.notes.iter().map(|note| format!("  note: {note}"))).collect()
}
