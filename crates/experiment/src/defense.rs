use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use burn::module::AutodiffModule;
use burn::tensor::backend::AutodiffBackend;
use fs_err as fs;
use patchdoor_data::{ImageSet, PoisoningPlan, Trigger, stratified_subset, stream};
use patchdoor_defenses::{DefenderData, DefenseError, ModelRepair, RepairDetails, RepairWork, Repaired};
use patchdoor_kernels::{Kernels, TrainingBackend};
use patchdoor_metrics::{Standing, Summary, accuracy, defense_effectiveness_rating, robust_improvement_rating};
use patchdoor_model::{Classifier, load_weights, save_weights};
use patchdoor_train::{BatchProgress, EpochRecord, TrainError, TrainingObserver, predict};
use serde::{Deserialize, Serialize};

use crate::defender::{DefenderConfig, DefenderSet};
use crate::files::write_json;
use crate::images::SeedImages;
use crate::progress::{TrainingProgress, duration};
use crate::result::{SCHEMA, SeedResult, attack_outcome};
use crate::run::{Job, PREDICTION_BATCH, RunError, input_shape};
use crate::twin::remove_checkpoint;

/// What one defense of one seed came to; `seed-N/defenses/INDEX-NAME/result.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DefenseResult {
    /// Layout of this file.
    pub schema: u32,
    /// The defense, such as `fine-pruning`.
    pub name: String,
    /// What the report calls it.
    pub title: String,
    /// Which images the defender had.
    pub data: DefenderSet,
    /// How many.
    pub clean_images: usize,
    /// How many of them carry the trigger, under their true labels.
    pub contaminated_images: usize,
    /// Images it could choose on.
    pub validation_images: usize,
    /// What was measured, or why nothing was.
    pub outcome: DefenseOutcome,
}

/// How a defense ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DefenseOutcome {
    /// With a repaired classifier.
    Finished(Box<DefenseMeasurements>),
    /// Its training could not go on.
    Failed {
        /// Why.
        reason: String,
    },
}

/// What was measured before and after a defense.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DefenseMeasurements {
    /// The backdoored classifier.
    pub before: DefenseStanding,
    /// The repaired one.
    pub after: DefenseStanding,
    /// How much it helped.
    #[serde(flatten)]
    pub ratings: Ratings,
    /// Seconds that the defense took, interrupted epochs apart.
    pub seconds: f64,
    /// Epochs of training in it.
    pub epochs: usize,
    /// What it did besides training.
    pub details: RepairDetails,
    /// What was measured at each strength of a series.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub series: Vec<SeriesRow>,
}

/// Where a classifier stands; shares of test images in [0, 1], as in [`Measurements`](crate::Measurements).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DefenseStanding {
    /// Share of untouched test images predicted right.
    pub clean_accuracy: f64,
    /// Attack success rate, by the attack's own label rule.
    pub asr: Option<f64>,
    /// Share of the triggered images still given their true class.
    pub robust_accuracy: Option<f64>,
}

/// How much a defense helped, in [0, 1]; 0.5 means that nothing happened. `None` where nothing is attacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ratings {
    /// Defense effectiveness rating (DER).
    pub defense_effectiveness: Option<f64>,
    /// Robust improvement rating (RIR).
    pub robust_improvement: Option<f64>,
}

/// One strength of a series of prunings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SeriesRow {
    /// Share of each expert's filters that was to be pruned.
    pub pruned_fraction: f64,
    /// Filters that were.
    pub pruned_filters: usize,
    /// The classifier without them.
    pub after: DefenseStanding,
    /// How much it helped.
    #[serde(flatten)]
    pub ratings: Ratings,
}

impl Ratings {
    fn of(before: DefenseStanding, after: DefenseStanding) -> Self {
        let standing = |standing: DefenseStanding| {
            Some(Standing {
                clean_accuracy: standing.clean_accuracy,
                attack_success_rate: standing.asr?,
                robust_accuracy: standing.robust_accuracy?,
            })
        };
        standing(before).zip(standing(after)).map_or_else(Self::default, |(before, after)| Self {
            defense_effectiveness: Some(defense_effectiveness_rating(&before, &after)),
            robust_improvement: Some(robust_improvement_rating(&before, &after)),
        })
    }
}

/// A backdoored classifier whose weights lie in `folder`, and all that it takes to defend and to measure it.
pub(crate) struct Victim<'a> {
    pub(crate) job: &'a Job<'a>,
    pub(crate) seed: u64,
    /// The folder of the seed.
    pub(crate) folder: &'a Path,
    pub(crate) images: &'a SeedImages,
    pub(crate) poisoning: &'a PoisoningPlan,
    pub(crate) trigger: &'a dyn Trigger,
    pub(crate) test: &'a ImageSet,
    pub(crate) triggered: &'a ImageSet,
    pub(crate) before: DefenseStanding,
}

/// Tries every defense of an experiment on the same backdoored classifier; `None` if interrupted. Those that finished
/// before are not repeated.
pub(crate) fn defend<B: TrainingBackend>(
    victim: &Victim<'_>,
    device: &B::Device,
) -> Result<Option<Vec<DefenseResult>>, RunError> {
    let mut results = Vec::new();
    for (index, defender) in victim.job.plan.config().defenses.iter().enumerate() {
        let folder = victim.folder.join("defenses").join(format!("{index}-{}", defender.defense.name()));
        let path = folder.join("result.json");
        if path.is_file() {
            let result = serde_json::from_slice(&fs::read(&path)?);
            results.push(result.map_err(|source| RunError::Result { path, source })?);
            continue;
        }
        if victim.job.stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        fs::create_dir_all(&folder)?;
        let label = format!("{} seed {}, {}", victim.job.plan.name(), victim.seed, defender.title());
        let Some(result) = victim.defend_once::<B>(defender, &folder, &label, device)? else { return Ok(None) };
        victim.job.console.say(format!("{label}: {}", in_words(&result)));
        write_json(&path, &result)?;
        remove_checkpoint(&folder)?;
        results.push(result);
    }
    Ok(Some(results))
}

impl Victim<'_> {
    fn defend_once<B: TrainingBackend>(
        &self,
        defender: &DefenderConfig,
        folder: &Path,
        label: &str,
        device: &B::Device,
    ) -> Result<Option<DefenseResult>, RunError> {
        let (clean, contaminated_images) = self.defenders_images(defender);
        let validation = self.images.validation.as_ref();
        let result = |outcome| DefenseResult {
            schema: SCHEMA,
            name: defender.defense.name().to_owned(),
            title: defender.title(),
            data: defender.data,
            clean_images: clean.len(),
            contaminated_images,
            validation_images: validation.map_or(0, ImageSet::len),
            outcome,
        };
        let repaired = match self.repair::<B>(defender, &clean, folder, label, device)? {
            RepairEnd::Repaired(repaired, seconds) => (repaired, seconds),
            RepairEnd::Failed(reason) => return Ok(Some(result(DefenseOutcome::Failed { reason }))),
            RepairEnd::Interrupted => return Ok(None),
        };
        let (repaired, seconds) = repaired;
        let classifier = repaired.classifier.valid();
        let description = crate::run::described(&self.job.plan.config().model, &clean);
        save_weights(&classifier, &description, &folder.join("weights.safetensors"))?;
        self.job.write_history(&folder.join("metrics.jsonl"), self.seed, &repaired.history)?;
        let after = self.standing(&classifier, device);
        let mut series = Vec::new();
        for point in &repaired.series {
            if self.job.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let after = self.standing(&point.classifier.valid(), device);
            series.push(SeriesRow {
                pruned_fraction: point.pruned_fraction,
                pruned_filters: point.pruned_filters,
                after,
                ratings: Ratings::of(self.before, after),
            });
        }
        let measurements = DefenseMeasurements {
            before: self.before,
            after,
            ratings: Ratings::of(self.before, after),
            seconds: seconds.as_secs_f64(),
            epochs: repaired.history.len(),
            series,
            details: repaired.details,
        };
        Ok(Some(result(DefenseOutcome::Finished(Box::new(measurements)))))
    }

    /// What the defender has, and how many of its images carry the trigger.
    fn defenders_images(&self, defender: &DefenderConfig) -> (ImageSet, usize) {
        let training = &self.images.training;
        let count = defender.amount.count(training.len());
        let drawn = stratified_subset(training, count, &mut stream(self.seed, "defense/images"));
        match defender.data {
            DefenderSet::Clean => (training.subset(&drawn), 0),
            DefenderSet::Contaminated => {
                let stamped = self.poisoning.apply(training, self.trigger, self.seed);
                let relabelled = ImageSet::new(
                    training.shape(),
                    stamped.all_pixels().to_vec(),
                    training.labels().to_vec(),
                    training.classes().to_vec(),
                );
                let relabelled = relabelled.expect("the labels are those of the same images");
                let (examples, covers) = (self.poisoning.examples().iter(), self.poisoning.covers().iter());
                let changed = examples.map(|example| example.index).chain(covers.map(|cover| cover.index));
                let contaminated = changed.filter(|index| drawn.binary_search(index).is_ok()).count();
                (relabelled.subset(&drawn), contaminated)
            }
        }
    }

    fn repair<B: TrainingBackend>(
        &self,
        defender: &DefenderConfig,
        clean: &ImageSet,
        folder: &Path,
        label: &str,
        device: &B::Device,
    ) -> Result<RepairEnd<B>, RunError> {
        let job = self.job;
        let config = job.plan.config();
        let blank = config.model.init::<B>(
            input_shape(clean),
            clean.class_count(),
            &mut stream(self.seed, "weights"),
            device,
        )?;
        let classifier = load_weights(blank, &self.folder.join("weights.safetensors"))?;
        let write = |path: &Path, history: &[EpochRecord]| job.write_history(path, self.seed, history);
        let log: PathBuf = folder.join("metrics.jsonl");
        let epochs = defender.defense.epochs();
        let progress = TrainingProgress::new(job.console, label.to_owned(), job.stop, log, &write, epochs);
        let mut observer = DefenseObserver { progress, before: 0.0 };
        let checkpoint = folder.join("checkpoint");
        let mut work = RepairWork {
            data: DefenderData { clean, validation: self.images.validation.as_ref() },
            seed: self.seed,
            checkpoints: Some(&checkpoint),
            observer: &mut observer,
        };
        let start = Instant::now();
        let outcome = defender.defense.repair(classifier, &mut work, device);
        let seconds = start.elapsed() + Duration::from_secs_f64(observer.before);
        if let Some(error) = observer.progress.log_error.take() {
            return Err(error.into());
        }
        match outcome {
            Ok(repaired) => Ok(RepairEnd::Repaired(Box::new(repaired), seconds)),
            Err(DefenseError::Interrupted { .. }) => Ok(RepairEnd::Interrupted),
            Err(DefenseError::Training(error @ TrainError::Diverged { .. })) => {
                Ok(RepairEnd::Failed(error.to_string()))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn standing<B: Kernels>(&self, classifier: &Classifier<B>, device: &B::Device) -> DefenseStanding {
        let test = self.test;
        let clean = predict(classifier, test, PREDICTION_BATCH, device);
        let triggered = predict(classifier, self.triggered, PREDICTION_BATCH, device);
        let poisoning = &self.job.plan.config().poisoning;
        let attack = attack_outcome(&triggered, test.labels(), poisoning, test.class_count());
        DefenseStanding {
            clean_accuracy: accuracy(&clean, test.labels()).unwrap_or(0.0),
            asr: attack.attack_success_rate(),
            robust_accuracy: attack.robust_accuracy(),
        }
    }
}

enum RepairEnd<B: AutodiffBackend> {
    Repaired(Box<Repaired<B>>, Duration),
    Failed(String),
    Interrupted,
}

/// Shows the training in a defense and remembers how long the epochs took that were done before an interruption.
struct DefenseObserver<'a> {
    progress: TrainingProgress<'a>,
    before: f64,
}

impl TrainingObserver for DefenseObserver<'_> {
    fn resumed(&mut self, history: &[EpochRecord]) {
        self.before = history.iter().map(|epoch| epoch.seconds).sum();
        self.progress.resumed(history);
    }

    fn batch_done(&mut self, progress: &BatchProgress) -> ControlFlow<()> {
        self.progress.batch_done(progress)
    }

    fn epoch_done(&mut self, record: &EpochRecord) -> ControlFlow<()> {
        self.progress.epoch_done(record)
    }

    fn is_stopped(&self) -> bool {
        self.progress.is_stopped()
    }
}

/// One line about a finished defense.
fn in_words(result: &DefenseResult) -> String {
    let measured = match &result.outcome {
        DefenseOutcome::Failed { reason } => return format!("failed: {reason}"),
        DefenseOutcome::Finished(measured) => measured,
    };
    let percent = |share: Option<f64>| share.map_or_else(|| "-".into(), |share| format!("{:.1} %", 100.0 * share));
    let (before, after) = (&measured.before, &measured.after);
    format!(
        "clean accuracy {} (was {}), attack success {} (was {}), on {} {} images, {}",
        percent(Some(after.clean_accuracy)),
        percent(Some(before.clean_accuracy)),
        percent(after.asr),
        percent(before.asr),
        result.clean_images,
        result.data.name(),
        duration(Duration::from_secs_f64(measured.seconds)),
    )
}

/// Mean and spread over seeds of what one defense came to, or of one strength of a series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DefenseSummary {
    /// The defense, such as `fine-pruning`.
    pub name: String,
    /// What the report calls it.
    pub title: String,
    /// Which images the defender had.
    pub data: DefenderSet,
    /// The strength, if this is one of a series.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned_fraction: Option<f64>,
    /// Share of untouched test images predicted right.
    pub clean_accuracy: Option<Summary>,
    /// Attack success rate.
    pub asr: Option<Summary>,
    /// Share of the triggered images still given their true class.
    pub robust_accuracy: Option<Summary>,
    /// Defense effectiveness rating (DER).
    pub defense_effectiveness: Option<Summary>,
    /// Robust improvement rating (RIR).
    pub robust_improvement: Option<Summary>,
    /// Seconds that it took; a series as a whole.
    pub seconds: Option<Summary>,
}

impl DefenseSummary {
    /// Summarizes every defense over the seeds that finished, in the order of the experiment; each strength of a series
    /// after the defense it belongs to.
    pub fn of(seeds: &[SeedResult]) -> Vec<Self> {
        let all: Vec<&[DefenseResult]> =
            seeds.iter().filter_map(SeedResult::measurements).map(|measured| measured.defenses.as_slice()).collect();
        let count = all.iter().map(|defenses| defenses.len()).max().unwrap_or(0);
        let mut summaries = Vec::new();
        for index in 0..count {
            let results: Vec<&DefenseResult> = all.iter().filter_map(|defenses| defenses.get(index)).collect();
            let measured: Vec<&DefenseMeasurements> =
                results.iter().filter_map(|result| result.measurements()).collect();
            let after = measured.iter().map(|m| (m.after, m.ratings)).collect::<Vec<_>>();
            let seconds = Summary::of(&measured.iter().map(|m| m.seconds).collect::<Vec<_>>());
            summaries.push(Self { seconds, ..Self::row(results[0], None, &after) });
            let strengths = measured.iter().map(|m| m.series.len()).max().unwrap_or(0);
            for strength in 0..strengths {
                let rows: Vec<&SeriesRow> = measured.iter().filter_map(|m| m.series.get(strength)).collect();
                let after = rows.iter().map(|row| (row.after, row.ratings)).collect::<Vec<_>>();
                summaries.push(Self::row(results[0], Some(rows[0].pruned_fraction), &after));
            }
        }
        summaries
    }

    fn row(result: &DefenseResult, pruned_fraction: Option<f64>, after: &[(DefenseStanding, Ratings)]) -> Self {
        let over = |of: &dyn Fn(&(DefenseStanding, Ratings)) -> Option<f64>| {
            Summary::of(&after.iter().filter_map(of).collect::<Vec<_>>())
        };
        Self {
            name: result.name.clone(),
            title: result.title.clone(),
            data: result.data,
            pruned_fraction,
            clean_accuracy: over(&|(standing, _)| Some(standing.clean_accuracy)),
            asr: over(&|(standing, _)| standing.asr),
            robust_accuracy: over(&|(standing, _)| standing.robust_accuracy),
            defense_effectiveness: over(&|(_, ratings)| ratings.defense_effectiveness),
            robust_improvement: over(&|(_, ratings)| ratings.robust_improvement),
            seconds: None,
        }
    }
}

impl DefenseResult {
    /// What was measured, if the defense finished.
    pub fn measurements(&self) -> Option<&DefenseMeasurements> {
        match &self.outcome {
            DefenseOutcome::Finished(measurements) => Some(measurements),
            DefenseOutcome::Failed { .. } => None,
        }
    }
}
