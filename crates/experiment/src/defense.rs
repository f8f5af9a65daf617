use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use burn::module::AutodiffModule;
use fs_err as fs;
use patchdoor_data::{ImageSet, LoosePictures, stratified_subset, stream};
use patchdoor_defenses::{
    ActionKind, DatasetFilter, DefenderData, DefenseAction, DefenseConfig, DefenseError, InputDetector, InspectionWork,
    ModelInspector, RepairWork, Repaired, SafelyTrained, TrainingDefense, TrainingWork,
};
use patchdoor_kernels::TrainingBackend;
use patchdoor_metrics::Estimate;
use patchdoor_model::Classifier;
use patchdoor_plan::{DefenderConfig, DefenderSet, ExperimentConfig};
use patchdoor_record::{
    COLLAPSE, DefenseMeasurements, DefenseOutcome, DefenseResult, DefenseStanding, DetectionMeasurements,
    FilterStanding, FilteringMeasurements, ImagesUsed, InspectionMeasurements, InspectorFindings, Ratings, Retrained,
    SCHEMA, SafeTrainingMeasurements, SafelyTrainedTwin, SeriesRow, defense_folder, is_sealed, read_sealed_json,
    write_sealed, write_sealed_json,
};
use patchdoor_train::{PREDICTION_BATCH, accuracy_on};

use crate::attack::Attack;
use crate::console::{Watch, duration};
use crate::detection::{Detection, detect};
use crate::error::RunError;
use crate::exam::Judge;
use crate::filtering::{filter as filter_set, poisoned, write_judgements};
use crate::halt::{Halt, Step};
use crate::history::HistoryFile;
use crate::images::SeedImages;
use crate::peak_memory::PeakMemory;
use crate::progress::TrainingProgress;
use crate::training::{OneTraining, load, remove_checkpoint, save};

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
    /// Images besides the test images that detectors score.
    pub(crate) suspects: Option<&'a LoosePictures>,
}

impl Victim<'_> {
    /// Tries every defense of the experiment on the same classifier. Those that finished before are not repeated.
    pub(crate) fn defend<B: TrainingBackend>(
        &self,
        judge: Judge<'_>,
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
            let result = self.defend_once::<B>(defender, judge, &folder, &label, watch, device)?;
            watch.say(format!("{label}: {}", in_words(&result)));
            write_sealed_json(&path, &result)?;
            remove_checkpoints(&folder)?;
            results.push(result);
        }
        Ok(results)
    }

    fn defend_once<B: TrainingBackend>(
        &self,
        defender: &DefenderConfig,
        judge: Judge<'_>,
        folder: &Path,
        label: &str,
        watch: Watch<'_>,
        device: &B::Device,
    ) -> Step<DefenseResult> {
        let (clean, contaminated_images) = self.defenders_images(defender, judge.exam().map(|exam| exam.attack));
        let memory = PeakMemory::start();
        let outcome = match defender.defense.action::<B>() {
            DefenseAction::Repair(_) => {
                let attempt = Attempt { defender, clean: &clean, label };
                self.try_repair::<B>(attempt, judge, folder, watch, device)
            }
            DefenseAction::Detect(detector) => {
                self.try_detector((defender, detector), &clean, judge, folder, watch, device)
            }
            DefenseAction::Inspect(inspector) => {
                self.try_inspector((defender, inspector), &clean, judge, watch, device)
            }
            DefenseAction::Filter(filter) => self.try_filter((defender, filter), judge, (folder, label), watch, device),
            DefenseAction::Train(training) => {
                self.try_training((defender, training), judge, (folder, label), watch, device)
            }
        };
        let outcome = match outcome {
            Err(Halt::Failed(reason)) => DefenseOutcome::Failed { reason },
            outcome => outcome?,
        };
        Ok(DefenseResult {
            schema: SCHEMA,
            name: defender.defense.name().to_owned(),
            title: defender.title(),
            data: defender.data.name().to_owned(),
            // Who trains from scratch has the poisoned set and nothing clean besides validation images.
            clean_images: if defender.defense.kind() == ActionKind::Train { 0 } else { clean.len() },
            contaminated_images,
            validation_images: self.images.validation.as_ref().map_or(0, ImageSet::len),
            peak_memory: memory.bytes(),
            outcome,
        })
    }

    /// Repairs the classifier, and its clean twin where that is asked for.
    fn try_repair<B: TrainingBackend>(
        &self,
        attempt: Attempt<'_>,
        judge: Judge<'_>,
        folder: &Path,
        watch: Watch<'_>,
        device: &B::Device,
    ) -> Step<DefenseOutcome> {
        let (repaired, seconds) = self.repair::<B>(attempt, (self.folder, folder), watch, device)?;
        // The twin before anything is written, so that an interruption leaves nothing half done.
        let twin = self.repair_twin::<B>(attempt, folder, watch, device)?;
        let mut measured = self.measure(&repaired, judge, seconds, folder, watch, device)?;
        if let Some(twin) = &twin {
            measured.clean_twin = Some(judge.standing(&twin.classifier.valid(), device));
            for (row, point) in measured.series.iter_mut().zip(&twin.series) {
                row.clean_twin = Some(judge.standing(&point.classifier.valid(), device));
            }
        }
        Ok(DefenseOutcome::Finished(Box::new(measured)))
    }

    /// Lets a detector judge the test images with the classifier, and with its clean twin where that is asked for.
    fn try_detector<B: TrainingBackend>(
        &self,
        (defender, detector): (&DefenderConfig, &dyn InputDetector<B>),
        clean: &ImageSet,
        judge: Judge<'_>,
        folder: &Path,
        watch: Watch<'_>,
        device: &B::Device,
    ) -> Step<DefenseOutcome> {
        let data = DefenderData { clean, validation: self.images.validation.as_ref() };
        let with = |from: &Path| {
            let classifier = load::<B>(&self.config.model, clean, self.seed, from, device)?;
            let detector = (detector, defender.defense.name());
            detect(
                detector,
                &classifier,
                (&data, self.seed),
                (judge, self.suspects.map(|suspects| &suspects.images)),
                watch,
                device,
            )
        };
        let found = with(self.folder)?;
        let twin = self.twin.filter(|_| defender.twin);
        let twin = twin.map(with).transpose().map_err(|halt| halt.of("clean twin"))?;
        write_scores(&folder.join("scores.csv"), &found)?;
        if let Some(suspects) = self.suspects {
            write_suspects(&folder.join("images.csv"), suspects, &found)?;
        }
        let judged = data.validation.map_or(0, ImageSet::len) + found.untouched.len() + found.triggered.len();
        Ok(DefenseOutcome::Detected(Box::new(DetectionMeasurements {
            victim: found.standing,
            clean_twin: twin.map(|twin| twin.standing),
            judged_images: judged,
            seconds: found.seconds,
        })))
    }

    /// Lets an inspector look at the classifier, and at its clean twin where that is asked for.
    fn try_inspector<B: TrainingBackend>(
        &self,
        (defender, inspector): (&DefenderConfig, &dyn ModelInspector<B>),
        clean: &ImageSet,
        judge: Judge<'_>,
        watch: Watch<'_>,
        device: &B::Device,
    ) -> Step<DefenseOutcome> {
        let data = DefenderData { clean, validation: self.images.validation.as_ref() };
        let work = InspectionWork { data, seed: self.seed, is_stopped: &|| watch.is_stopped() };
        let with = |from: &Path| {
            let classifier = load::<B>(&self.config.model, clean, self.seed, from, device)?;
            let found = inspector.inspect(classifier, &work, device).map_err(halt_of)?;
            Ok::<_, Halt>(InspectorFindings::of(found.scores, &found.is_flagged))
        };
        let start = Instant::now();
        let found = with(self.folder)?;
        let seconds = start.elapsed().as_secs_f64();
        let twin = self.twin.filter(|_| defender.twin);
        let twin = twin.map(with).transpose().map_err(|halt| halt.of("clean twin"))?;
        Ok(DefenseOutcome::Inspected(Box::new(InspectionMeasurements {
            targets: judge.targets(),
            victim: found,
            clean_twin: twin,
            seconds,
        })))
    }

    /// Lets a filter judge the poisoned training set, and the set without poison with the clean twin where that is asked for;
    /// then trains on what is left, if the filter asks for that.
    fn try_filter<B: TrainingBackend>(
        &self,
        (defender, filter): (&DefenderConfig, &dyn DatasetFilter<B>),
        judge: Judge<'_>,
        (folder, label): (&Path, &str),
        watch: Watch<'_>,
        device: &B::Device,
    ) -> Step<DefenseOutcome> {
        let training = &self.images.training;
        let attack = judge.exam().expect("only a run filters a training set, and it knows its attack").attack;
        let poisoned_set = attack.poison(training);
        let is_poisoned = poisoned(attack, training.len());
        let with = |from: &Path, set: &ImageSet, is_poisoned: &[bool]| {
            let classifier = load::<B>(&self.config.model, training, self.seed, from, device)?;
            filter_set(filter, &classifier, (set, is_poisoned), device)
        };
        let found = with(self.folder, &poisoned_set, &is_poisoned)?;
        let twin = self.twin.filter(|_| defender.twin);
        let twin = twin.map(|twin| with(twin, training, &vec![false; training.len()]));
        let twin = twin.transpose().map_err(|halt| halt.of("clean twin"))?;
        write_judgements(&folder.join("scores.csv"), &found.filtering, &is_poisoned)?;
        let kept = (0..training.len()).filter(|&index| !found.filtering.is_suspect[index]).collect::<Vec<_>>();
        let retrained = if filter.retrains() {
            let folder = folder.join("retrained");
            fs::create_dir_all(&folder)?;
            let kept = poisoned_set.subset(&kept);
            let label = format!("{label}, trained on what is left");
            let trained = OneTraining::of(self.config, self.seed, (self.images, &kept), self.used, &folder, label)
                .run::<B>(watch, None, device)?;
            remove_checkpoint(&folder)?;
            let after = judge.standing(&trained.classifier, device);
            let ratings = Ratings::of(self.before, after);
            Some(Retrained { before: self.before, after, ratings, epochs: trained.history.len() })
        } else {
            None
        };
        Ok(DefenseOutcome::Filtered(Box::new(FilteringMeasurements {
            victim: found.standing,
            clean_twin: twin.map(|twin| twin.standing),
            retrained,
            seconds: found.seconds,
        })))
    }

    /// Trains from scratch as a defense does on the poisoned training set, and on the set without poison where that is asked for.
    fn try_training<B: TrainingBackend>(
        &self,
        (defender, training): (&DefenderConfig, &dyn TrainingDefense<B>),
        judge: Judge<'_>,
        (folder, label): (&Path, &str),
        watch: Watch<'_>,
        device: &B::Device,
    ) -> Step<DefenseOutcome> {
        let set = &self.images.training;
        let attack = judge.exam().expect("only a run trains from scratch, and it knows its attack").attack;
        let is_poisoned = poisoned(attack, set.len());
        let with = |set: &ImageSet, folder: &Path, label: String| {
            fs::create_dir_all(folder)?;
            self.train_safely((defender, training), set, (folder, label), watch, device)
        };
        let (trained, seconds) = with(&attack.poison(set), folder, label.to_owned())?;
        // The twin before anything is written, so that an interruption leaves nothing half done.
        let twin = self.twin.filter(|_| defender.twin);
        let twin = twin.map(|_| with(set, &folder.join(CLEAN_TWIN), format!("{label}, clean twin")));
        let twin = twin.transpose().map_err(|halt| halt.of("clean twin"))?;

        let classifier = trained.classifier.valid();
        save(&classifier, set, folder)?;
        self.history(folder).write(&trained.history)?;
        write_judgements(&folder.join("scores.csv"), &trained.isolation, &is_poisoned)?;
        let after = judge.standing(&classifier, device);
        let isolation = |trained: &SafelyTrained<B>, is_poisoned: &[bool]| {
            FilterStanding::of(&trained.isolation.scores, &trained.isolation.is_suspect, is_poisoned)
        };
        let clean_twin = match twin {
            None => None,
            Some((twin, _)) => {
                self.history(&folder.join(CLEAN_TWIN)).write(&twin.history)?;
                let standing = judge.standing(&twin.classifier.valid(), device);
                Some(SafelyTrainedTwin { standing, isolation: isolation(&twin, &vec![false; set.len()]) })
            }
        };
        Ok(DefenseOutcome::Trained(Box::new(SafeTrainingMeasurements {
            before: self.before,
            after,
            ratings: Ratings::of(self.before, after),
            isolation: isolation(&trained, &is_poisoned),
            phases: trained.phases,
            epochs: trained.history.len(),
            seconds: seconds.as_secs_f64(),
            clean_twin,
        })))
    }

    /// Trains from scratch on a set, keeps in a folder what it needs to go on, and says how long it took, interrupted epochs apart.
    fn train_safely<B: TrainingBackend>(
        &self,
        (defender, training): (&DefenderConfig, &dyn TrainingDefense<B>),
        set: &ImageSet,
        (folder, label): (&Path, String),
        watch: Watch<'_>,
        device: &B::Device,
    ) -> Step<(SafelyTrained<B>, Duration)> {
        let log = self.history(folder);
        let mut progress = TrainingProgress::new(watch, label, &log, defender.defense.epochs(&self.config.training));
        let mut work = TrainingWork {
            set,
            validation: self.images.validation.as_ref(),
            augmentation: &self.config.data.augmentation,
            model: &self.config.model,
            recipe: &self.config.training,
            seed: self.seed,
            checkpoints: Some(&folder.join("checkpoint")),
            observer: &mut progress,
        };
        let start = Instant::now();
        let outcome = training.train(&mut work, device);
        followed(outcome, start.elapsed(), &mut progress)
    }

    /// Judges what a defense made, and each strength of a series.
    fn measure<B: TrainingBackend>(
        &self,
        repaired: &Repaired<B>,
        judge: Judge<'_>,
        seconds: Duration,
        folder: &Path,
        watch: Watch<'_>,
        device: &B::Device,
    ) -> Step<DefenseMeasurements> {
        let classifier = repaired.classifier.valid();
        save(&classifier, &self.images.training, folder)?;
        self.history(folder).write(&repaired.history)?;
        let after = judge.standing(&classifier, device);
        let mut series = Vec::new();
        for point in &repaired.series {
            if watch.is_stopped() {
                return Err(Halt::Interrupted);
            }
            let after = judge.standing(&point.classifier.valid(), device);
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
    fn defenders_images(&self, defender: &DefenderConfig, attack: Option<&Attack<'_>>) -> (ImageSet, usize) {
        let training = &self.images.training;
        let count = defender.amount.count(training.len());
        let drawn = stratified_subset(training, count, &mut stream(self.seed, "defense/images"));
        match defender.data {
            DefenderSet::Clean => (training.subset(&drawn), 0),
            DefenderSet::Contaminated => {
                let attack = attack.expect("only a run stamps its defender's images, and it knows its attack");
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
        attempt: Attempt<'_>,
        folder: &Path,
        watch: Watch<'_>,
        device: &B::Device,
    ) -> Step<Option<Repaired<B>>> {
        let Some(twin) = self.twin.filter(|_| attempt.defender.twin) else { return Ok(None) };
        let folder = folder.join(CLEAN_TWIN);
        fs::create_dir_all(&folder)?;
        let label = format!("{}, clean twin", attempt.label);
        let repaired = self.repair(Attempt { label: &label, ..attempt }, (twin, &folder), watch, device);
        let (repaired, _) = repaired.map_err(|halt| halt.of("clean twin"))?;
        self.history(&folder).write(&repaired.history)?;
        Ok(Some(repaired))
    }

    /// Does what the defender does to the classifier of one folder, as strongly as he can afford if he chooses that, and says how
    /// long it took, interrupted epochs apart.
    fn repair<B: TrainingBackend>(
        &self,
        attempt: Attempt<'_>,
        (from, folder): (&Path, &Path),
        watch: Watch<'_>,
        device: &B::Device,
    ) -> Step<(Repaired<B>, Duration)> {
        let Attempt { defender, clean, label } = attempt;
        let defense = &defender.defense;
        let Some(tune) = defender.tune else {
            return self.repair_once(attempt, defense, (from, folder), watch, device);
        };
        let validation = self.images.validation.as_ref().expect("only a plan with validation images tunes");
        let accuracy = |classifier: &Classifier<B::InnerBackend>| {
            accuracy_on(classifier, validation, PREDICTION_BATCH, device).unwrap_or(0.0)
        };
        let before = accuracy(&load::<B>(&self.config.model, clean, self.seed, from, device)?.valid());
        let mut seconds = Duration::ZERO;
        let repaired = tune.choose(
            defense,
            before,
            |repaired: &Repaired<B>| accuracy(&repaired.classifier.valid()),
            |stronger, value| {
                let folder = folder.join(format!("{STRENGTH}{value}"));
                fs::create_dir_all(&folder)?;
                let label = format!("{label} at {value}");
                let attempt = Attempt { label: &label, ..attempt };
                let (repaired, took) = self.repair_once::<B>(attempt, stronger, (from, &folder), watch, device)?;
                self.history(&folder).write(&repaired.history)?;
                seconds += took;
                Ok::<_, Halt>(repaired)
            },
        )?;
        Ok((repaired, seconds))
    }

    /// Does what a defense says to the classifier of one folder, and keeps what it needs to go on in another.
    fn repair_once<B: TrainingBackend>(
        &self,
        attempt: Attempt<'_>,
        defense: &DefenseConfig,
        (from, folder): (&Path, &Path),
        watch: Watch<'_>,
        device: &B::Device,
    ) -> Step<(Repaired<B>, Duration)> {
        let DefenseAction::Repair(repair) = defense.action::<B>() else {
            unreachable!("it is a repair, however strong")
        };
        let classifier = load::<B>(&self.config.model, attempt.clean, self.seed, from, device)?;
        let log = self.history(folder);
        let epochs = defense.epochs(&self.config.training);
        let mut progress = TrainingProgress::new(watch, attempt.label.to_owned(), &log, epochs);
        let checkpoint = folder.join("checkpoint");
        let mut work = RepairWork {
            data: DefenderData { clean: attempt.clean, validation: self.images.validation.as_ref() },
            seed: self.seed,
            checkpoints: Some(&checkpoint),
            observer: &mut progress,
        };
        let start = Instant::now();
        let outcome = repair.repair(classifier, &mut work, device);
        followed(outcome, start.elapsed(), &mut progress)
    }

    fn history(&self, folder: &Path) -> HistoryFile<'_> {
        HistoryFile { path: folder.join("metrics.jsonl"), seed: self.seed, images: self.used }
    }
}

/// What a defense made, and how long it took with the epochs before an interruption; what became of the log comes first.
fn followed<T>(
    outcome: Result<T, DefenseError>,
    took: Duration,
    progress: &mut TrainingProgress<'_>,
) -> Step<(T, Duration)> {
    if let Some(error) = progress.log_error.take() {
        return Err(error.into());
    }
    let seconds = took + Duration::from_secs_f64(progress.seconds_before);
    outcome.map(|made| (made, seconds)).map_err(halt_of)
}

/// Why a defense that did not come to its end ends the seed, or the run.
fn halt_of(error: DefenseError) -> Halt {
    match error {
        DefenseError::Interrupted { .. } => Halt::Interrupted,
        DefenseError::Training(error) => error.into(),
        error => RunError::from(error).into(),
    }
}

/// The folder of what is done to the clean twin.
const CLEAN_TWIN: &str = "clean-twin";

/// How the folders begin in which a repair is tried at one of several strengths.
const STRENGTH: &str = "strength-";

/// Removes what a finished defense would have gone on from.
fn remove_checkpoints(folder: &Path) -> Step<()> {
    remove_checkpoint(folder)?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == CLEAN_TWIN || name.to_string_lossy().starts_with(STRENGTH) {
            remove_checkpoints(&entry.path())?;
        }
    }
    Ok(())
}

/// A repair to try, with what its defender has.
#[derive(Clone, Copy)]
struct Attempt<'a> {
    defender: &'a DefenderConfig,
    clean: &'a ImageSet,
    /// What its progress is shown as.
    label: &'a str,
}

/// Writes a detector's score of every image of a folder, and whether it flags it; `images.csv`.
fn write_suspects(path: &Path, suspects: &LoosePictures, found: &Detection) -> Step<()> {
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(["image", "score", "flagged"])?;
    for (name, &score) in suspects.names.iter().zip(&found.suspects) {
        table.write_record([name, &score.to_string(), &(score > found.threshold).to_string()])?;
    }
    let bytes = table.into_inner().map_err(csv::IntoInnerError::into_error)?;
    Ok(write_sealed(path, &bytes)?)
}

/// Writes a detector's score of every test image, untouched and triggered; `scores.csv`. Where nobody knows a trigger, that of
/// the untouched ones, and whether it flags them.
fn write_scores(path: &Path, found: &Detection) -> Step<()> {
    if found.triggered.is_empty() {
        let mut text = "image,score,flagged\n".to_owned();
        for (index, score) in found.untouched.iter().enumerate() {
            let _ = writeln!(text, "{index},{score},{}", *score > found.threshold);
        }
        return Ok(write_sealed(path, text.as_bytes())?);
    }
    let mut text = "index,untouched,triggered\n".to_owned();
    for (index, (untouched, triggered)) in found.untouched.iter().zip(&found.triggered).enumerate() {
        let _ = writeln!(text, "{index},{untouched},{triggered}");
    }
    Ok(write_sealed(path, text.as_bytes())?)
}

/// One line about a finished defense.
fn in_words(result: &DefenseResult) -> String {
    let said = match &result.outcome {
        DefenseOutcome::Failed { reason } => return format!("failed: {reason}"),
        DefenseOutcome::Finished(measured) => repair_in_words(measured),
        DefenseOutcome::Detected(measured) => detection_in_words(measured),
        DefenseOutcome::Filtered(measured) => filtering_in_words(measured),
        DefenseOutcome::Inspected(measured) => inspection_in_words(measured),
        DefenseOutcome::Trained(measured) => training_in_words(measured),
    };
    let seconds = duration(Duration::from_secs_f64(result.seconds().unwrap_or(0.0)));
    if matches!(result.outcome, DefenseOutcome::Trained(_)) {
        return format!("{said}, {seconds}");
    }
    format!("{said}, on {} {} images, {seconds}", result.clean_images, result.data)
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".into(), |share| format!("{:.1} %", 100.0 * share))
}

fn repair_in_words(measured: &DefenseMeasurements) -> String {
    let pruned =
        measured.pruned_filters().map_or_else(String::new, |(pruned, of)| format!(", {pruned} of {of} filters"));
    let tuned = measured.details.tuning.as_ref();
    let tuned = tuned.map_or_else(String::new, |tuning| format!(", {} {} taken", tuning.field, tuning.value));
    classifier_in_words((&measured.before, &measured.after), &(pruned + &tuned), measured.clean_twin)
}

fn training_in_words(measured: &SafeTrainingMeasurements) -> String {
    let outcome = &measured.isolation.outcome;
    let isolated = outcome.true_positives + outcome.false_positives;
    let isolated = format!(", {} of {isolated} isolated images poisoned", outcome.true_positives);
    let twin = measured.clean_twin.map(|twin| twin.standing);
    classifier_in_words((&measured.before, &measured.after), &isolated, twin)
}

/// A classifier without and with a defense, what the defense did, and the clean twin with it.
fn classifier_in_words(
    (before, after): (&DefenseStanding, &DefenseStanding),
    done: &str,
    twin: Option<DefenseStanding>,
) -> String {
    let collapsed = after.largest_class_share.filter(|&share| share > COLLAPSE);
    let collapsed = collapsed.map_or_else(String::new, |share| {
        format!(", collapsed: {} of the clean images are one class to it", percent(Some(share)))
    });
    let twin = twin.map_or_else(String::new, |twin| {
        format!(", clean twin {} and {}", percent(Some(twin.clean_accuracy)), percent(twin.asr))
    });
    let attack = match (after.asr, before.asr) {
        (None, None) => String::new(),
        (after, before) => format!(", attack success {} (was {})", percent(after), percent(before)),
    };
    format!(
        "clean accuracy {} (was {}){attack}{done}{collapsed}{twin}",
        percent(Some(after.clean_accuracy)),
        percent(Some(before.clean_accuracy)),
    )
}

fn detection_in_words(measured: &DetectionMeasurements) -> String {
    let area = |area: Option<Estimate>| area.map_or_else(|| "-".into(), |area| format!("{:.3}", area.value));
    let rate = |rate: Option<Estimate>| percent(rate.map(|rate| rate.value));
    let own = &measured.victim.own_threshold;
    if own.true_positive_rate.is_none() {
        return format!("flags {} of untouched test images", rate(own.false_positive_rate));
    }
    let twin = measured.clean_twin.as_ref();
    let twin = twin.map_or_else(String::new, |twin| format!(" (clean twin {})", area(twin.auc)));
    format!(
        "AUC {}{twin}, flags {} of triggered and {} of untouched images",
        area(measured.victim.auc),
        rate(own.true_positive_rate),
        rate(own.false_positive_rate),
    )
}

fn filtering_in_words(measured: &FilteringMeasurements) -> String {
    let FilterStanding { outcome, false_positive_rate, .. } = &measured.victim;
    let poisoned = outcome.true_positives + outcome.false_negatives;
    let twin = measured.clean_twin.as_ref().and_then(|twin| twin.false_positive_rate);
    let twin = twin.map_or_else(String::new, |rate| format!(" (clean twin {})", percent(Some(rate.value))));
    let retrained = measured.retrained.as_ref().map_or_else(String::new, |retrained| {
        let (before, after) = (&retrained.before, &retrained.after);
        format!(
            ", trained on what is left clean accuracy {} (was {}), attack success {} (was {})",
            percent(Some(after.clean_accuracy)),
            percent(Some(before.clean_accuracy)),
            percent(after.asr),
            percent(before.asr),
        )
    });
    format!(
        "drops {} of {poisoned} poisoned images and {} of the others{twin}{retrained}",
        outcome.true_positives,
        percent(false_positive_rate.map(|rate| rate.value)),
    )
}

fn inspection_in_words(measured: &InspectionMeasurements) -> String {
    let classes = |findings: &InspectorFindings| match findings.flagged.as_slice() {
        [] => "no class".to_owned(),
        [class] => format!("class {class}"),
        flagged => format!("classes {}", flagged.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    };
    let twin =
        measured.clean_twin.as_ref().map_or_else(String::new, |twin| format!(", of the clean twin {}", classes(twin)));
    let targets = measured.targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let targets = if targets.is_empty() { targets } else { format!("; the attack's target is {targets}") };
    format!("flags {}{twin}{targets}", classes(&measured.victim))
}
