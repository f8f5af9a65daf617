use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use patchdoor_model::ClassifierConfig;
use patchdoor_plan::{ConfigErrors, DatasetFacts, Plan, Point, RoutingConfig, Sweep, choice_name, merged};
use patchdoor_record::{read_sealed, read_summary};
use serde::Deserialize;

use crate::backend::Backend;
use crate::console::duration;
use crate::images::{Acquired, ImagesError};
use crate::sweep::units::{SweepOptions, Unit, UnitState, units};

/// What a sweep will do before it does it, as far as can be known.
#[derive(Clone, Debug)]
pub struct Forecast {
    pub(crate) units: Vec<Unit>,
    /// Runs that will be computed.
    pub pending: usize,
    /// Clean twins that will be trained for them, surrogates among them.
    pub twins_to_train: usize,
    /// Clean twins that are there already.
    pub twins_there: usize,
    /// Whether the images could be looked at; without them it is not known which twins are there.
    pub images_known: bool,
    /// Seconds that all trainings may take, if anything is known about their speed.
    pub seconds: Option<f64>,
    /// What the seconds rest on.
    pub basis: String,
}

impl Forecast {
    /// What a sweep would do, computing nothing and fetching nothing.
    ///
    /// # Errors
    /// If images that are there do not fit a point.
    pub fn of(
        sweep: &Sweep,
        backend: &Backend,
        out: &Path,
        roots: &[PathBuf],
        options: SweepOptions,
    ) -> Result<Self, ConfigErrors> {
        let units = units(sweep, backend, out);
        let mut fingerprints = vec![None; sweep.points().len()];
        let mut loaded = Vec::new();
        let mut problems = Vec::new();
        for unit in units.iter().filter(|unit| options.computes(unit.state)) {
            let plan = sweep.points()[unit.point].plan();
            let dataset = &plan.config().dataset;
            if !loaded.iter().any(|(known, _)| known == dataset) {
                let images = match Acquired::if_there(plan, roots) {
                    Ok(images) => images,
                    Err(ImagesError::Unfit(errors)) => {
                        problems.push((plan.point().unwrap_or_default().to_owned(), errors.diagnostics));
                        None
                    }
                    // What cannot be read is said when it is run.
                    Err(_) => None,
                };
                loaded.push((dataset.clone(), images));
            }
            let images = loaded.iter().find(|(known, _)| known == dataset).and_then(|(_, images)| images.as_ref());
            if let Some(images) = images
                && fingerprints[unit.point].is_none()
            {
                if let Err(ImagesError::Unfit(errors)) = images.for_plan(plan) {
                    problems.push((plan.point().unwrap_or_default().to_owned(), errors.diagnostics));
                }
                fingerprints[unit.point] = Some(images.sources.fingerprint.clone());
            }
        }
        if !problems.is_empty() {
            let diagnostics = merged(problems, sweep.points().len());
            return Err(ConfigErrors { path: sweep.path().to_owned(), diagnostics });
        }
        Ok(Self::on(sweep, units, backend, out, &fingerprints, options))
    }

    /// Like [`Self::of`], with the fingerprints of each point's images as far as they are known.
    pub(crate) fn on(
        sweep: &Sweep,
        units: Vec<Unit>,
        backend: &Backend,
        out: &Path,
        fingerprints: &[Option<String>],
        options: SweepOptions,
    ) -> Self {
        let speeds = Speeds::measure(out, backend);
        let mut twins = BTreeSet::new();
        let mut there = BTreeSet::new();
        let mut seconds = Some(0.0);
        let mut sources: Vec<String> = Vec::new();
        let pending = units.iter().filter(|unit| options.computes(unit.state)).collect::<Vec<_>>();
        for unit in &pending {
            let plan = sweep.points()[unit.point].plan();
            let poisoned = plan.counts(&DatasetFacts::published(&plan.config().dataset)).poisoned;
            let mut clean = Vec::new();
            if plan.config().trains_twin(poisoned) {
                clean.push((plan.clone(), unit.seed));
            }
            if let Some((surrogate, plan)) = plan.surrogate() {
                clean.push((plan, unit.seed.wrapping_add(surrogate.seed_offset)));
            }
            let victim = work(plan).zip(repairs(plan)).map(|(training, repairs)| training + repairs + curves(plan));
            let mut trainings = vec![(plan.config().model.clone(), victim)];
            for (plan, seed) in clean {
                let fingerprint = fingerprints[unit.point].as_deref();
                let hash = plan.twin_hash(backend.name(), fingerprint.unwrap_or("unknown"));
                if out.join(format!("twins/{hash}/seed-{seed}/result.json")).is_file() {
                    there.insert((hash, seed));
                } else if twins.insert((hash, seed)) {
                    trainings.push((plan.config().model.clone(), work(&plan)));
                }
            }
            for (model, images) in trainings {
                let (speed, source) = speeds.of(&model, backend);
                seconds = seconds.zip(speed).zip(images).map(|((sum, speed), images)| sum + images / speed);
                if !sources.contains(&source) {
                    sources.push(source);
                }
            }
        }
        Self {
            pending: pending.len(),
            twins_to_train: twins.len(),
            twins_there: there.len(),
            images_known: pending.iter().all(|unit| fingerprints[unit.point].is_some()),
            seconds,
            basis: sources.join("; "),
            units,
        }
    }

    /// Says it in a few lines.
    pub fn describe(&self, sweep: &Sweep, backend: &Backend, out: &Path) -> Vec<String> {
        let count = |state| self.units.iter().filter(|unit| unit.state == state).count();
        let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
        let seeds = sweep.seeds().iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let quick = if sweep.is_quick() { ", quick version (its numbers mean nothing)" } else { "" };
        let mut lines = vec![format!(
            "{}: {} of {}, {} {seeds}: {}{quick}",
            sweep.name(),
            plural(sweep.points().len(), "point"),
            sweep.shape(),
            if sweep.seeds().len() == 1 { "seed" } else { "seeds" },
            plural(self.units.len(), "run"),
        )];
        let mut line = format!("  {} finished", count(UnitState::Finished));
        for (state, word) in [(UnitState::Failed, "failed"), (UnitState::Begun, "begun")] {
            if count(state) > 0 {
                let _ = write!(line, ", {} {word}", count(state));
            }
        }
        let _ = write!(line, "; {} to compute", self.pending);
        if self.pending > 0 {
            let _ = match self.twins_to_train {
                0 => write!(line, ", no clean twin to train"),
                twins => write!(line, ", {} to train", plural(twins, "clean twin")),
            };
            if self.twins_there > 0 {
                let _ = write!(line, " ({} there)", self.twins_there);
            }
            if !self.images_known {
                line.push_str(" (the images are not here, so nobody knows which twins are)");
            }
        }
        lines.push(line);
        if self.pending > 0 {
            lines.push(match self.seconds {
                Some(seconds) => {
                    format!("  at most about {}: {}", duration(Duration::from_secs_f64(seconds)), self.basis)
                }
                None => format!("  no estimate of the time: {}", self.basis),
            });
        }
        let folder = out.join(sweep.result_name(backend.name()));
        lines.push(format!("  on {} ({}); tables go to {}", backend.name(), backend.device(), folder.display()));
        lines
    }

    /// Each point with the state of its runs, a line each.
    pub fn points(&self, sweep: &Sweep, backend: &Backend) -> Vec<String> {
        let label = |point: &Point| point.plan().point().unwrap_or_default().to_owned();
        let width = sweep.points().iter().map(|point| label(point).chars().count()).max().unwrap_or(0);
        let lines = sweep.points().iter().map(|point| {
            let states = sweep.seeds().iter().map(|&seed| {
                let run = point.plan().with_seed(seed).run_name(backend.name());
                let unit = self.units.iter().find(|unit| unit.run == run);
                format!("seed {seed} {}", unit.map_or("to do", |unit| unit.state.word()))
            });
            format!("  {:width$}  {}", label(point), states.collect::<Vec<_>>().join(", "))
        });
        lines.collect()
    }

    /// How far the runs are: the names of the runs and their states.
    pub fn runs(&self) -> impl Iterator<Item = (&str, UnitState)> {
        self.units.iter().map(|unit| (unit.run.as_str(), unit.state))
    }
}

/// Images that one training and its predictions have to go through, a prediction counted as a third of a training step.
fn work(plan: &Plan) -> Option<f64> {
    let counts = plan.counts(&DatasetFacts::published(&plan.config().dataset));
    let passes = counts.training? * plan.config().training.epochs;
    // The test images are predicted untouched, triggered, and triggered by the twin.
    let predictions = 3 + plan.config().routing.as_ref().map_or(0, RoutingConfig::predictions);
    Some((passes + counts.test.unwrap_or(0) * predictions / 3) as f64)
}

/// Images that following the backdoored classifier through its training comes to, in the same count.
fn curves(plan: &Plan) -> f64 {
    let counts = plan.counts(&DatasetFacts::published(&plan.config().dataset));
    plan.config().curves.predictions(plan.config().training.epochs, counts.test) as f64 / 3.0
}

/// Images that all defenses of a plan go through.
fn repairs(plan: &Plan) -> Option<f64> {
    let counts = plan.counts(&DatasetFacts::published(&plan.config().dataset));
    let training = counts.training?;
    let recipe = &plan.config().training;
    let images = plan.config().defenses.iter().map(|defender| {
        // Each repaired classifier predicts the test images twice.
        let classifiers = if defender.twin { 2 } else { 1 };
        let epochs = defender.most_epochs(recipe);
        classifiers * (defender.amount.count(training) * epochs + counts.test.unwrap_or(0) * 2 / 3)
    });
    Some(images.sum::<usize>() as f64)
}

/// Trainings that took less say little about a long one's speed.
const SHORTEST_SECONDS: f64 = 5.0;

/// How fast trainings were: finished runs, and what is known without any.
struct Speeds {
    /// Classifiers of finished runs and their images per second.
    measured: Vec<(ClassifierConfig, f64)>,
}

/// What a run's `config.toml` has to have.
#[derive(Deserialize)]
struct ModelOnly {
    model: ClassifierConfig,
}

impl Speeds {
    /// Looks at all finished runs of this backend below `out`.
    fn measure(out: &Path, backend: &Backend) -> Self {
        let mut measured = Vec::new();
        for entry in std::fs::read_dir(out).into_iter().flatten().flatten() {
            let folder = entry.path();
            if !folder.join("summary.json").is_file() {
                continue;
            }
            let Ok(summary) = read_summary(&folder) else { continue };
            let Ok(text) = read_sealed(&folder.join("config.toml")) else { continue };
            let Ok(ModelOnly { model }) = toml::from_slice(&text) else { continue };
            if summary.backend == backend.name() && !summary.quick {
                let seeds = summary.seeds.iter().filter_map(|seed| seed.measurements());
                let seeds = seeds.filter(|seed| seed.training_seconds >= SHORTEST_SECONDS);
                measured.extend(seeds.map(|seed| (model.clone(), seed.images_per_second)));
            }
        }
        Self { measured }
    }

    /// Images per second of a classifier, and where the number is from.
    fn of(&self, model: &ClassifierConfig, backend: &Backend) -> (Option<f64>, String) {
        let mean = |alike: &dyn Fn(&ClassifierConfig) -> bool| {
            let speeds = self.measured.iter().filter(|(other, _)| alike(other)).map(|(_, speed)| *speed);
            let speeds = speeds.collect::<Vec<_>>();
            (!speeds.is_empty()).then(|| speeds.len() as f64 / speeds.iter().map(|speed| speed.recip()).sum::<f64>())
        };
        let widen = model.widen_factor();
        if let Some(speed) = mean(&|other| other == model) {
            return (Some(speed), format!("{speed:.0} images/s in finished runs of this classifier"));
        }
        if let Some(speed) = mean(&|other| choice_name(other) == choice_name(model) && other.widen_factor() == widen) {
            return (Some(speed), format!("{speed:.0} images/s in finished runs of widen factor {widen}"));
        }
        match backend.name() {
            "flex" => {
                let speed = rough_speed(widen);
                (Some(speed), format!("{speed:.0} images/s assumed for widen factor {widen} on two cores"))
            }
            other => (None, format!("no finished run on {other} says how fast it is")),
        }
    }
}

/// Training images per second of the patch-level mixture of experts on 32x32 pixels: measured on two cores with AVX-512
/// for widen factors 1, 2, 4 and 10, and a power law in between.
fn rough_speed(widen: usize) -> f64 {
    const MEASURED: [(f64, f64); 4] = [(1.0, 2000.0), (2.0, 1000.0), (4.0, 380.0), (10.0, 75.0)];
    let widen = widen.max(1) as f64;
    let upper = MEASURED.iter().position(|(known, _)| *known >= widen).unwrap_or(MEASURED.len() - 1).max(1);
    let ((x0, y0), (x1, y1)) = (MEASURED[upper - 1], MEASURED[upper]);
    let slope = (y1 / y0).ln() / (x1 / x0).ln();
    y0 * (widen / x0).powf(slope)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_go_through_what_was_measured() {
        for (widen, speed) in [(1, 2000.0), (2, 1000.0), (4, 380.0), (10, 75.0)] {
            assert!((rough_speed(widen) - speed).abs() < 1e-6 * speed, "{widen}: {}", rough_speed(widen));
        }
        assert!(rough_speed(6) < 380.0 && rough_speed(6) > 75.0);
        assert!(rough_speed(20) < 75.0);
    }
}
