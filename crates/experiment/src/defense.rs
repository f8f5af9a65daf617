use std::path::Path;
use std::time::{Duration, Instant};

use burn::module::AutodiffModule;
use fs_err as fs;
use patchdoor_data::{ImageSet, stratified_subset, stream};
use patchdoor_defenses::{DefenderData, DefenseAction, DefenseError, RepairWork, Repaired};
use patchdoor_kernels::TrainingBackend;
use patchdoor_plan::{DefenderConfig, DefenderSet, ExperimentConfig};
use patchdoor_record::{
    COLLAPSE, DefenseMeasurements, DefenseOutcome, DefenseResult, DefenseStanding, ImagesUsed, Ratings, SCHEMA,
    SeriesRow, defense_folder, is_sealed, read_sealed_json, write_sealed_json,
};

use crate::attack::Attack;
use crate::console::{Watch, duration};
use crate::error::RunError;
use crate::exam::Exam;
use crate::halt::{Halt, Step};
use crate::history::HistoryFile;
use crate::images::SeedImages;
use crate::progress::TrainingProgress;
use crate::training::{load, remove_checkpoint, save};

/// A backdoored classifier whose weights lie in a folder, and the images that its defenders may have some of.
pub(crate) struct Victim<'a> {
    pub(crate) config: &'a ExperimentConfig,
    pub(crate) seed: u64,
    /// What its defenses are shown as belonging to.
    pub(crate) label: String,
    /// The folder of the seed.
    pub(crate) folder: &'a Path,
    /// The folder of its clean twin, if it has one.
    pub(crate) twin: Option<&'a Path>,
    pub(crate) images: &'a SeedImages,
    pub(crate) used: &'a ImagesUsed,
    /// Where it stands undefended.
    pub(crate) before: DefenseStanding,
}

impl Victim<'_> {
    /// Tries every defense of the experiment on the same classifier. Those that finished before are not repeated.
    pub(crate) fn defend<B: TrainingBackend>(
        &self,
        exam: &Exam<'_>,
        watch: Watch<'_>,
        device: &B::Device,
    ) -> Step<Vec<DefenseResult>> {
        let mut results = Vec::new();
        for (index, defender) in self.config.defenses.iter().enumerate() {
            let folder = defense_folder(self.folder, index, defender.defense.name());
            let path = folder.join("result.json");
            if is_sealed(&path)? {
                results.push(read_sealed_json(&path)?);
                continue;
            }
            if watch.is_stopped() {
                return Err(Halt::Interrupted);
            }
            fs::create_dir_all(&folder)?;
            let label = format!("{}, {}", self.label, defender.title());
            let result = self.defend_once::<B>(defender, exam, &folder, &label, watch, device)?;
            watch.say(format!("{label}: {}", in_words(&result)));
            write_sealed_json(&path, &result)?;
            remove_checkpoint(&folder)?;
            remove_checkpoint(&folder.join("clean-twin"))?;
            results.push(result);
        }
        Ok(results)
    }

    fn defend_once<B: TrainingBackend>(
        &self,
        defender: &DefenderConfig,
        exam: &Exam<'_>,
        folder: &Path,
        label: &str,
        watch: Watch<'_>,
        device: &B::Device,
    ) -> Step<DefenseResult> {
        let (clean, contaminated_images) = self.defenders_images(defender, exam.attack);
        let victim = self.repair::<B>(defender, &clean, (self.folder, folder), label, watch, device);
        // The twin before anything is written, so that an interruption leaves nothing half done.
        let both = victim
            .and_then(|victim| Ok((victim, self.repair_twin::<B>(defender, &clean, folder, label, watch, device)?)));
        let outcome = match both {
            Ok(((repaired, seconds), twin)) => {
                let mut measured = self.measure(&repaired, exam, seconds, folder, watch, device)?;
                if let Some(twin) = &twin {
                    measured.clean_twin = Some(exam.standing(&twin.classifier.valid(), device));
                    for (row, point) in measured.series.iter_mut().zip(&twin.series) {
                        row.clean_twin = Some(exam.standing(&point.classifier.valid(), device));
                    }
                }
                DefenseOutcome::Finished(Box::new(measured))
            }
            Err(Halt::Failed(reason)) => DefenseOutcome::Failed { reason },
            Err(halt) => return Err(halt),
        };
        Ok(DefenseResult {
            schema: SCHEMA,
            name: defender.defense.name().to_owned(),
            title: defender.title(),
            data: defender.data.name().to_owned(),
            clean_images: clean.len(),
            contaminated_images,
            validation_images: self.images.validation.as_ref().map_or(0, ImageSet::len),
            outcome,
        })
    }

    /// Judges what a defense made, and each strength of a series.
    fn measure<B: TrainingBackend>(
        &self,
        repaired: &Repaired<B>,
        exam: &Exam<'_>,
        seconds: Duration,
        folder: &Path,
        watch: Watch<'_>,
        device: &B::Device,
    ) -> Step<DefenseMeasurements> {
        let classifier = repaired.classifier.valid();
        save(&classifier, &self.config.model, &self.images.training, folder)?;
        self.history(folder).write(&repaired.history)?;
        let after = exam.standing(&classifier, device);
        let mut series = Vec::new();
        for point in &repaired.series {
            if watch.is_stopped() {
                return Err(Halt::Interrupted);
            }
            let after = exam.standing(&point.classifier.valid(), device);
            series.push(SeriesRow {
                pruned_fraction: point.pruned_fraction,
                pruned_filters: point.pruned_filters,
                filters: Some(point.filters),
                after,
                ratings: Ratings::of(self.before, after),
                clean_twin: None,
            });
        }
        Ok(DefenseMeasurements {
            before: self.before,
            after,
            ratings: Ratings::of(self.before, after),
            seconds: seconds.as_secs_f64(),
            epochs: repaired.history.len(),
            clean_twin: None,
            series,
            details: repaired.details.clone(),
        })
    }

    /// What the defender has, and how many of its images carry the trigger.
    fn defenders_images(&self, defender: &DefenderConfig, attack: &Attack<'_>) -> (ImageSet, usize) {
        let training = &self.images.training;
        let count = defender.amount.count(training.len());
        let drawn = stratified_subset(training, count, &mut stream(self.seed, "defense/images"));
        match defender.data {
            DefenderSet::Clean => (training.subset(&drawn), 0),
            DefenderSet::Contaminated => {
                let stamped = attack.poison(training);
                let relabelled = ImageSet::new(
                    training.shape(),
                    stamped.all_pixels().to_vec(),
                    training.labels().to_vec(),
                    training.classes().to_vec(),
                );
                let relabelled = relabelled.expect("the labels are those of the same images");
                let (examples, covers) = (attack.poisoning.examples().iter(), attack.poisoning.covers().iter());
                let changed = examples.map(|example| example.index).chain(covers.map(|cover| cover.index));
                let contaminated = changed.filter(|index| drawn.binary_search(index).is_ok()).count();
                (relabelled.subset(&drawn), contaminated)
            }
        }
    }

    /// Does the same to the clean twin, where the experiment asks for it: what the defense does to a network without a backdoor.
    fn repair_twin<B: TrainingBackend>(
        &self,
        defender: &DefenderConfig,
        clean: &ImageSet,
        folder: &Path,
        label: &str,
        watch: Watch<'_>,
        device: &B::Device,
    ) -> Step<Option<Repaired<B>>> {
        let Some(twin) = self.twin.filter(|_| defender.twin) else { return Ok(None) };
        let folder = folder.join("clean-twin");
        fs::create_dir_all(&folder)?;
        let label = format!("{label}, clean twin");
        let repaired = self.repair::<B>(defender, clean, (twin, &folder), &label, watch, device);
        let (repaired, _) = repaired.map_err(|halt| halt.of("clean twin"))?;
        self.history(&folder).write(&repaired.history)?;
        Ok(Some(repaired))
    }

    /// Does what the defender does to the classifier of one folder, keeps what it needs to go on in another, and says how
    /// long it took, interrupted epochs apart.
    fn repair<B: TrainingBackend>(
        &self,
        defender: &DefenderConfig,
        clean: &ImageSet,
        (from, folder): (&Path, &Path),
        label: &str,
        watch: Watch<'_>,
        device: &B::Device,
    ) -> Step<(Repaired<B>, Duration)> {
        let classifier = load::<B>(&self.config.model, clean, self.seed, from, device)?;
        let log = self.history(folder);
        let mut progress = TrainingProgress::new(watch, label.to_owned(), &log, defender.defense.epochs());
        let checkpoint = folder.join("checkpoint");
        let mut work = RepairWork {
            data: DefenderData { clean, validation: self.images.validation.as_ref() },
            seed: self.seed,
            checkpoints: Some(&checkpoint),
            observer: &mut progress,
        };
        let start = Instant::now();
        let DefenseAction::Repair(defense) = defender.defense.action::<B>();
        let outcome = defense.repair(classifier, &mut work, device);
        let seconds = start.elapsed() + Duration::from_secs_f64(progress.seconds_before);
        if let Some(error) = progress.log_error.take() {
            return Err(error.into());
        }
        match outcome {
            Ok(repaired) => Ok((repaired, seconds)),
            Err(DefenseError::Interrupted { .. }) => Err(Halt::Interrupted),
            Err(DefenseError::Training(error)) => Err(error.into()),
            Err(error) => Err(RunError::from(error).into()),
        }
    }

    fn history(&self, folder: &Path) -> HistoryFile<'_> {
        HistoryFile { path: folder.join("metrics.jsonl"), seed: self.seed, images: self.used }
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
    let pruned =
        measured.pruned_filters().map_or_else(String::new, |(pruned, of)| format!(", {pruned} of {of} filters"));
    let collapsed = after.largest_class_share.filter(|&share| share > COLLAPSE);
    let collapsed = collapsed.map_or_else(String::new, |share| {
        format!(", collapsed: {} of the clean images are one class to it", percent(Some(share)))
    });
    let twin = measured.clean_twin.map_or_else(String::new, |twin| {
        format!(", clean twin {} and {}", percent(Some(twin.clean_accuracy)), percent(twin.asr))
    });
    format!(
        "clean accuracy {} (was {}), attack success {} (was {}){pruned}{collapsed}{twin}, on {} {} images, {}",
        percent(Some(after.clean_accuracy)),
        percent(Some(before.clean_accuracy)),
        percent(after.asr),
        percent(before.asr),
        result.clean_images,
        result.data,
        duration(Duration::from_secs_f64(measured.seconds)),
    )
}
