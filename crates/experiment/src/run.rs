use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use fs_err as fs;
use patchdoor_data::{DataError, Dataset, ImageSet, ImageShape, PoisoningPlan, Trigger, trigger_all_images};
use patchdoor_kernels::TrainingBackend;
use patchdoor_metrics::accuracy;
use patchdoor_model::{Classifier, ClassifierConfig, InputShape, ModelError, WeightsDescription};
use patchdoor_train::{EpochRecord, TrainError, predict_with_routing};
use patchdoor_triggers::{PlacementConfig, TriggerError};
use serde::Serialize;

use crate::backend::Backend;
use crate::defense::{DefenseStanding, DefenseSummary, Victim, defend};
use crate::environment::{Environment, ImageSource};
use crate::facts::DatasetFacts;
use crate::files::{write_json, write_json_lines, write_whole};
use crate::images::{Acquired, ImagesError, SeedImages, acquire, test_images};
use crate::progress::Console;
use crate::report::describe;
use crate::result::{
    ClassMeasurements, ImagesUsed, Measurements, MetricSummaries, RunSummary, SCHEMA, SeedOutcome, SeedResult,
    TwinMeasurements, attack_outcome,
};
use crate::routing::{EpochRouting, draw_seeds, measure, summarize};
use crate::run_directory::{Opened, RunDirectory, RunDirectoryError};
use crate::surrogate::{PlacementEnd, resolve_placement};
use crate::twin::{OneTraining, Role, TrainingEnd, Twin, TwinEnd, clean_twin, remove_checkpoint};
use crate::{ExperimentConfig, Plan};

/// Images predicted at once; the predictions do not depend on it.
pub(crate) const PREDICTION_BATCH: usize = 256;

/// Where and how plans run.
#[derive(Clone, Copy, Debug)]
pub struct RunSettings<'a> {
    /// Where results go.
    pub out: &'a Path,
    /// Where images are looked for, in order.
    pub roots: &'a [PathBuf],
    /// Whether missing images are not fetched.
    pub offline: bool,
    /// Whether a run of the same name is moved aside and computed anew.
    pub fresh: bool,
    /// Set from outside to end the run after its epoch.
    pub stop: &'a AtomicBool,
    /// Where the run says what it does.
    pub console: Console,
}

/// How a run ended.
#[derive(Debug)]
pub enum Execution {
    /// With results, in their folder, now or earlier.
    Done {
        /// The results.
        summary: Box<RunSummary>,
        /// Their folder.
        folder: PathBuf,
    },
    /// Before its end; the same call goes on.
    Interrupted {
        /// What is there so far.
        folder: PathBuf,
    },
}

/// What keeps a run from its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// There are no images to run on.
    #[error(transparent)]
    Images(#[from] ImagesError),
    /// There is no place for results.
    #[error(transparent)]
    Directory(#[from] RunDirectoryError),
    /// An unfinished run of the same name was computed on other images.
    #[error(
        "{} was begun on other images than these ({found}, now {expected}); --fresh moves it aside",
        path.display()
    )]
    OtherImages {
        /// The unfinished run.
        path: PathBuf,
        /// Fingerprint of its images.
        found: String,
        /// Fingerprint of the images now.
        expected: String,
    },
    /// A result file of an earlier run cannot be understood.
    #[error("{} is not a result of this program; --fresh moves the run aside", path.display())]
    Result {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The images cannot be poisoned as asked.
    #[error("the training images cannot be poisoned")]
    Poisoning(#[from] DataError),
    /// Where nothing is trained, no surrogate can choose cells.
    #[error(
        "its cells are {cells}, chosen by a surrogate: run the experiment, then give the cells of its surrogate.json \
         with --set placement.cells.list=CELLS"
    )]
    NeedsSurrogate {
        /// The choice of cells.
        cells: String,
    },
    /// The trigger cannot be built.
    #[error("the trigger cannot be made")]
    Trigger(#[from] TriggerError),
    /// The classifier cannot be built, saved or loaded.
    #[error("the classifier cannot be made, saved or loaded")]
    Model(#[from] ModelError),
    /// Training failed for another reason than its loss.
    #[error("training failed")]
    Training(#[from] TrainError),
    /// A defense failed for another reason than its training's loss.
    #[error("a defense failed")]
    Defense(#[from] patchdoor_defenses::DefenseError),
    /// A file cannot be read or written.
    #[error("a result cannot be read or written")]
    Io(#[from] io::Error),
    /// The list of poisoned images cannot be written.
    #[error("the list of poisoned images cannot be written")]
    Csv(#[from] csv::Error),
}

/// Everything a run needs, as the generic part sees it.
pub(crate) struct Job<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) dataset: &'a Dataset,
    pub(crate) used: &'a ImagesUsed,
    pub(crate) fingerprint: &'a str,
    pub(crate) backend: &'a Backend,
    /// The folder of this run.
    pub(crate) folder: &'a Path,
    pub(crate) out: &'a Path,
    pub(crate) stop: &'a AtomicBool,
    pub(crate) console: Console,
}

/// How the generic part of a run ended.
pub(crate) enum RunEnd {
    Finished(Vec<SeedResult>),
    Interrupted,
}

/// Runs a plan, goes on with it, or finds that it has run.
///
/// # Errors
/// If there are no images, no place for results, or something other than a training's loss fails. A
/// training whose loss is no longer a number ends that seed only, with its reason in the results.
pub fn execute(plan: &Plan, backend: &Backend, settings: &RunSettings<'_>) -> Result<Execution, RunError> {
    let console = settings.console;
    let found = |plan: &Plan| RunDirectory::finished(settings.out, &run_name(plan, backend));
    if let Some(folder) = found(plan).filter(|_| !settings.fresh) {
        return show(folder, console);
    }
    let acquired = acquire(plan, settings.roots, settings.offline, settings.stop, console)?;
    execute_on(&acquired, backend, settings, |folder| {
        let Acquired { plan, dataset, .. } = &acquired;
        let facts = DatasetFacts::of(&dataset.train, &dataset.test);
        for line in describe(plan, Some(facts), backend, folder) {
            console.say(line);
        }
        for line in describe_images(dataset) {
            console.say(line);
        }
    })
}

/// Where images come from, and what is to be known about them; one line each.
pub(crate) fn describe_images(dataset: &Dataset) -> Vec<String> {
    let location = dataset.location.as_ref().map(|location| format!("  images from {}", location.display()));
    location.into_iter().chain(dataset.notes.iter().map(|note| format!("  note: {note}"))).collect()
}

/// Runs a plan on images in memory; `announce` is called with the folder of the results before anything is computed.
pub(crate) fn execute_on(
    acquired: &Acquired,
    backend: &Backend,
    settings: &RunSettings<'_>,
    announce: impl FnOnce(&Path),
) -> Result<Execution, RunError> {
    let console = settings.console;
    let Acquired { plan, dataset, used, fingerprint } = acquired;
    let directory = match RunDirectory::open(settings.out, &run_name(plan, backend), settings.fresh)? {
        Opened::Finished(folder) => return show(folder, console),
        Opened::Ready(directory) => directory,
    };
    announce(directory.finished_path());
    let job = Job {
        plan,
        dataset,
        used,
        fingerprint,
        backend,
        folder: directory.path(),
        out: settings.out,
        stop: settings.stop,
        console,
    };
    job.write_preamble()?;
    tracing::info!(run = run_name(plan, backend), images = used.dataset, backend = backend.name(), "run begins");
    let seeds = match backend.run(&job)? {
        RunEnd::Finished(seeds) => seeds,
        RunEnd::Interrupted => return Ok(Execution::Interrupted { folder: directory.path().to_owned() }),
    };
    let summary = RunSummary {
        schema: SCHEMA,
        experiment: plan.name(),
        run: run_name(plan, backend),
        images: used.clone(),
        notes: dataset.notes.clone(),
        quick: plan.is_quick(),
        backend: backend.name().into(),
        device: backend.device().into(),
        metrics: MetricSummaries::of(&seeds),
        routing: summarize(&seeds),
        expected: plan.config().expected,
        defenses: DefenseSummary::of(&seeds),
        seeds,
    };
    if plan.config().routing.as_ref().is_some_and(|routing| routing.figures) {
        draw_seeds(directory.path(), &summary.seeds)?;
    }
    write_json(&directory.path().join("summary.json"), &summary)?;
    tracing::info!(run = summary.run, seeds = summary.seeds.len(), complete = summary.is_complete(), "run ends");
    Ok(Execution::Done { summary: Box::new(summary), folder: directory.finish()? })
}

/// Name of a run's folder: the experiment's, and eight digits of what it depends on.
pub fn run_name(plan: &Plan, backend: &Backend) -> String {
    format!("{}-{}", plan.name(), plan.hash(backend.name()))
}

/// The results in a finished run's folder.
pub(crate) fn read_summary(folder: &Path) -> Result<RunSummary, RunError> {
    let path = folder.join("summary.json");
    serde_json::from_slice(&fs::read(&path)?).map_err(|source| RunError::Result { path, source })
}

fn show(folder: PathBuf, console: Console) -> Result<Execution, RunError> {
    let summary = read_summary(&folder)?;
    console.say(format!("finished earlier, in {}; --fresh computes it anew", folder.display()));
    Ok(Execution::Done { summary: Box::new(summary), folder })
}

/// Trains and measures every seed of a job.
pub(crate) fn run_on<B: TrainingBackend>(job: &Job<'_>, device: &B::Device) -> Result<RunEnd, RunError> {
    let test = test_images(job.plan.config(), &job.dataset.test);
    let mut results = Vec::new();
    for &seed in &job.plan.config().seeds {
        let folder = job.folder.join(format!("seed-{seed}"));
        let path = folder.join("result.json");
        if path.is_file() {
            let result = serde_json::from_slice(&fs::read(&path)?);
            results.push(result.map_err(|source| RunError::Result { path, source })?);
            continue;
        }
        fs::create_dir_all(&folder)?;
        let Some(result) = run_seed::<B>(job, seed, &test, &folder, device)? else {
            return Ok(RunEnd::Interrupted);
        };
        write_json(&path, &result)?;
        if let SeedOutcome::Failed { reason } = &result.outcome {
            job.console.say(format!("{} seed {seed} failed: {reason}", job.plan.name()));
        } else {
            remove_checkpoint(&folder)?;
        }
        results.push(result);
    }
    Ok(RunEnd::Finished(results))
}

/// Trains and measures one seed; `None` if interrupted.
fn run_seed<B: TrainingBackend>(
    job: &Job<'_>,
    seed: u64,
    test: &ImageSet,
    folder: &Path,
    device: &B::Device,
) -> Result<Option<SeedResult>, RunError> {
    let config = job.plan.config();
    let images = SeedImages::draw(config, &job.dataset.train, seed);
    let result_of = |poisoned_images, outcome| SeedResult {
        schema: SCHEMA,
        seed,
        images: job.used.clone(),
        training_images: images.training.len(),
        validation_images: images.validation.as_ref().map_or(0, ImageSet::len),
        poisoned_images,
        outcome,
    };
    let placement = match resolve_placement::<B>(job, seed, test, folder, device)? {
        PlacementEnd::Ready(placement) => placement,
        PlacementEnd::Failed(reason) => return Ok(Some(result_of(0, SeedOutcome::Failed { reason }))),
        PlacementEnd::Interrupted => return Ok(None),
    };
    let trigger = build_trigger(config, placement.as_ref(), images.training.shape(), seed)?;
    let poisoning = PoisoningPlan::draw_for(&config.poisoning, &images.training, trigger.as_ref(), seed)?;
    job.write_poisoned(&folder.join("poisoned-indices.csv"), &poisoning)?;
    let result = |outcome| result_of(poisoning.examples().len(), outcome);

    // Without poison the classifier is its own twin.
    let twin = if config.clean_twin && !poisoning.is_empty() {
        match clean_twin::<B>(job, Role::Twin, seed, &images, test, device)? {
            TwinEnd::Ready(twin) => Some(twin),
            TwinEnd::Failed(reason) => return Ok(Some(result(SeedOutcome::Failed { reason }))),
            TwinEnd::Interrupted => return Ok(None),
        }
    } else {
        None
    };

    let poisoned = poisoning.apply(&images.training, trigger.as_ref(), seed);
    let label = format!("{} seed {seed}, backdoored", job.plan.name());
    let looks = (config.routing.as_ref(), &config.model);
    let mut epochs = EpochRouting::new(looks, test, (trigger.as_ref(), seed), folder.join("routing"), device);
    let training = OneTraining { seed, images: &images, training: &poisoned, folder, label };
    let (classifier, history) = match training.run::<B>(job, epochs.as_mut(), device)? {
        TrainingEnd::Finished(classifier, history) => (classifier, history),
        TrainingEnd::Failed(reason) => return Ok(Some(result(SeedOutcome::Failed { reason }))),
        TrainingEnd::Interrupted => return Ok(None),
    };
    drop(poisoned);

    let attacked =
        Attacked { job, seed, folder, images: &images, poisoning: &poisoning, trigger: trigger.as_ref(), test };
    let measured = attacked.measure::<B>(&classifier, &history, twin, device)?;
    Ok(measured.map(|measurements| result(SeedOutcome::Finished(Box::new(measurements)))))
}

/// A seed whose classifier is trained, ready to be measured.
struct Attacked<'a> {
    job: &'a Job<'a>,
    seed: u64,
    folder: &'a Path,
    images: &'a SeedImages,
    poisoning: &'a PoisoningPlan,
    trigger: &'a dyn Trigger,
    test: &'a ImageSet,
}

impl Attacked<'_> {
    /// Measures the attack and what defenses make of it; `None` if interrupted.
    fn measure<B: TrainingBackend>(
        &self,
        classifier: &Classifier<B::InnerBackend>,
        history: &[EpochRecord],
        twin: Option<Box<Twin<B>>>,
        device: &B::Device,
    ) -> Result<Option<Measurements>, RunError> {
        let &Self { job, seed, folder, images, poisoning, trigger, test } = self;
        let config = job.plan.config();
        let triggered = trigger_all_images(test, trigger, seed);
        let outcome =
            |predicted: &[u8]| attack_outcome(predicted, test.labels(), &config.poisoning, test.class_count());
        let clean = predict_with_routing(classifier, test, PREDICTION_BATCH, device);
        let predicted = predict_with_routing(classifier, &triggered, PREDICTION_BATCH, device);
        let twin = twin.map(|twin| {
            let predicted = predict_with_routing(&twin.classifier, &triggered, PREDICTION_BATCH, device);
            (twin, predicted)
        });
        let routing = match &config.routing {
            Some(routing) => measure::<B>(
                (routing, &config.model),
                (test, &triggered),
                [&clean, &predicted],
                twin.as_ref().map(|(twin, predicted)| (&twin.classifier, predicted)),
                &folder.join("routing"),
                device,
            )?,
            None => None,
        };
        let (clean, predicted) = (clean.classes, predicted.classes);
        let attack = outcome(&predicted);
        let twin = twin.map(|(twin, predicted)| {
            let attack = outcome(&predicted.classes);
            TwinMeasurements {
                folder: twin.folder,
                clean_accuracy: twin.result.clean_accuracy,
                asr: attack.attack_success_rate(),
            }
        });
        let clean_accuracy = accuracy(&clean, test.labels()).unwrap_or(0.0);
        let victim = Victim {
            job,
            seed,
            folder,
            images,
            poisoning,
            trigger,
            test,
            triggered: &triggered,
            before: DefenseStanding {
                clean_accuracy,
                asr: attack.attack_success_rate(),
                robust_accuracy: attack.robust_accuracy(),
            },
        };
        let Some(defenses) = defend::<B>(&victim, device)? else { return Ok(None) };
        let seconds = history.iter().map(|epoch: &EpochRecord| epoch.seconds).sum::<f64>();
        let measurements = Measurements {
            test_images: test.len(),
            triggered_images: attack.images,
            clean_accuracy,
            asr: attack.attack_success_rate(),
            asr_all_classes: attack.attack_success_rate_all_classes(),
            robust_accuracy: attack.robust_accuracy(),
            clean_accuracy_drop: twin.as_ref().map(|twin| twin.clean_accuracy - clean_accuracy),
            clean_twin: twin,
            classes: ClassMeasurements::count(
                test.classes(),
                (&clean, test.labels()),
                (&predicted, test.labels()),
                &config.poisoning,
            ),
            routing: routing.map(Box::new),
            training_seconds: seconds,
            images_per_second: (images.training.len() * history.len()) as f64 / seconds.max(1e-9),
            defenses,
        };
        Ok(Some(measurements))
    }
}

/// The trigger of a seed, in the cells of a placement that waits for no surrogate.
pub(crate) fn build_trigger(
    config: &ExperimentConfig,
    placement: Option<&PlacementConfig>,
    shape: ImageShape,
    seed: u64,
) -> Result<Box<dyn Trigger>, TriggerError> {
    match placement {
        Some(placement) => config.trigger.build_placed(shape, placement, seed),
        None => config.trigger.build_seeded(shape, seed),
    }
}

/// The images' height, width and channels, as the classifier takes them.
pub(crate) fn input_shape(images: &ImageSet) -> InputShape {
    let shape = images.shape();
    InputShape { height: shape.height, width: shape.width, channels: shape.channels }
}

/// What a weights file of a classifier for these images says about itself.
pub(crate) fn described(model: &ClassifierConfig, images: &ImageSet) -> WeightsDescription {
    WeightsDescription { config: model.clone(), classes: images.classes().to_vec(), input: input_shape(images) }
}

/// One line of `metrics.jsonl`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct EpochLine<'a> {
    seed: u64,
    #[serde(flatten)]
    images: &'a ImagesUsed,
    #[serde(flatten)]
    epoch: &'a EpochRecord,
}

/// One line of `poisoned-indices.csv`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct PoisonedLine<'a> {
    /// Index among the images trained on.
    index: usize,
    /// Index in the data set's training split.
    origin: u32,
    original_label: u8,
    poisoned_label: u8,
    /// `poisoned`, or `cover` for an image that is changed but keeps its label.
    role: &'static str,
    dataset: &'a str,
}

impl Job<'_> {
    /// The configuration with every default written out, under a comment that says where it comes from.
    pub(crate) fn config_toml(&self, what: &str) -> String {
        let plan = self.plan;
        let mut text = format!("# {what} {}, with every default written out.\n", plan.path().display());
        if let Some(point) = plan.point() {
            text.extend(["# Point of its sweep: ", point, "\n"]);
        }
        for set in plan.overrides() {
            text.extend(["# --set ", set, "\n"]);
        }
        if plan.is_quick() {
            text.push_str("# --quick: few images, two epochs, a thin network; its numbers mean nothing.\n");
        }
        if let Some(substitution) = &self.used.substitution {
            text.extend(["# ", substitution, ".\n"]);
        }
        text.push('\n');
        text.push_str(&plan.to_toml());
        text
    }

    /// Writes what is known before anything is trained, or checks that it is as it was when the run was begun.
    fn write_preamble(&self) -> Result<(), RunError> {
        write_whole(&self.folder.join("config.toml"), self.config_toml("The experiment").as_bytes())?;
        let source = ImageSource {
            used: self.used,
            location: self.dataset.location.as_deref(),
            notes: &self.dataset.notes,
            fingerprint: self.fingerprint,
        };
        let environment = Environment::of(self.plan, self.backend, &source);
        let mut path = self.folder.join("environment.json");
        for resumption in 1.. {
            let Some(before) = Environment::read(&path) else { break };
            if before.fingerprint != environment.fingerprint {
                let (found, expected) = (before.fingerprint, environment.fingerprint);
                return Err(RunError::OtherImages { path: self.folder.to_owned(), found, expected });
            }
            if (Environment { started: before.started, ..environment.clone() }) == before {
                return Ok(());
            }
            // Resumed with another build or on another machine: both are on record.
            path = self.folder.join(format!("environment-resumed-{resumption}.json"));
        }
        Ok(environment.write(&path)?)
    }

    /// Writes the epochs of a training, a line of JSON each.
    pub(crate) fn write_history(&self, path: &Path, seed: u64, history: &[EpochRecord]) -> io::Result<()> {
        write_json_lines(path, history.iter().map(|epoch| EpochLine { seed, images: self.used, epoch }))
    }

    fn write_poisoned(&self, path: &Path, poisoning: &PoisoningPlan) -> Result<(), RunError> {
        let dataset = match &self.used.substitution {
            Some(substitution) => format!("{} ({substitution})", self.used.dataset),
            None => self.used.dataset.clone(),
        };
        let mut table = csv::Writer::from_writer(Vec::new());
        for example in poisoning.examples() {
            table.serialize(PoisonedLine {
                index: example.index,
                origin: example.origin,
                original_label: example.original_label,
                poisoned_label: example.poisoned_label,
                role: "poisoned",
                dataset: &dataset,
            })?;
        }
        for cover in poisoning.covers() {
            table.serialize(PoisonedLine {
                index: cover.index,
                origin: cover.origin,
                original_label: cover.label,
                poisoned_label: cover.label,
                role: "cover",
                dataset: &dataset,
            })?;
        }
        let bytes = table.into_inner().map_err(csv::IntoInnerError::into_error)?;
        Ok(write_whole(path, &bytes)?)
    }
}
