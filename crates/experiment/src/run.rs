use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

use fs_err as fs;
use patchdoor_data::{Dataset, ImageSet};
use patchdoor_kernels::TrainingBackend;
use patchdoor_plan::{DatasetFacts, Plan, Start};
use patchdoor_record::{
    Again, Build, Environment, EvasionMeasurements, ImagesUsed, Measurements, Opened, RunDirectory, RunSummary, SCHEMA,
    SeedOutcome, SeedResult, TwinMeasurements, is_sealed, read_sealed_json, read_summary, write_sealed,
    write_sealed_json,
};
use patchdoor_train::{PREDICTION_BATCH, predict_with_routing};

use crate::attack::Attack;
use crate::backend::{Backend, OnBackend, threads};
use crate::certification::measure_certificates;
use crate::clean_models::{CleanModels, Role};
use crate::config_text::config_text;
use crate::console::{Console, Watch};
use crate::controlled::{Bystander, enter};
use crate::crafting::craft_trigger;
use crate::curves::{EpochCurves, curve_images};
use crate::defense::Victim;
use crate::describe::{describe, describe_images};
use crate::epochs::EpochLooks;
use crate::error::RunError;
use crate::evasion::{evade, evasion_images};
use crate::exam::{Exam, Judge};
use crate::examples::leave_examples;
use crate::halt::{Halt, Step};
use crate::images::ImagesError;
use crate::images::{Acquired, SeedImages, acquire, test_images};
use crate::placement::choose_placement;
use crate::reach::reach;
use crate::routing::{EpochRouting, Looked, look_at_routing};
use crate::selection::choose_margins;
use crate::sources::Sources;
use crate::stealth::stealth;
use crate::training::{OneTraining, load, remove_checkpoint};

/// Where and how plans run.
#[derive(Clone, Copy)]
pub struct RunSettings<'a> {
    /// Where results go.
    pub out: &'a Path,
    /// Where images are looked for, in order.
    pub roots: &'a [PathBuf],
    /// Whether missing images are not fetched.
    pub offline: bool,
    /// What becomes of a run of the same name that is there already.
    pub again: Again,
    /// Set from outside to end the run after its epoch.
    pub stop: &'a AtomicBool,
    /// Where the run says what it does.
    pub console: Console,
    /// The program that runs, which is part of what makes a result repeatable.
    pub build: &'a Build,
    /// Who makes figures and tables of what was found.
    pub reporter: &'a dyn Reporter,
}

impl<'a> RunSettings<'a> {
    pub(crate) fn watch(&self) -> Watch<'a> {
        Watch { console: self.console, stop: self.stop }
    }
}

/// Makes what people look at of what runs leave. This crate calls it and knows none; `()` makes nothing.
pub trait Reporter {
    /// A run has all its results in `folder`, which is not yet called by its final name.
    ///
    /// # Errors
    /// If something cannot be written.
    fn run_ends(&self, folder: &Path, summary: &RunSummary) -> std::io::Result<()>;

    /// The table of a sweep was written to `folder`.
    ///
    /// # Errors
    /// If something cannot be written.
    fn table_written(&self, folder: &Path, table: &patchdoor_record::ResultTable) -> std::io::Result<()>;
}

impl Reporter for () {
    fn run_ends(&self, _folder: &Path, _summary: &RunSummary) -> std::io::Result<()> {
        Ok(())
    }

    fn table_written(&self, _folder: &Path, _table: &patchdoor_record::ResultTable) -> std::io::Result<()> {
        Ok(())
    }
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

/// Runs a plan, goes on with it, or finds that it has run.
///
/// # Errors
/// If there are no images, no place for results, something other than a training's loss fails, or an earlier result is
/// not as it was written. A training whose loss is no longer a number ends that seed only, with its reason in the results.
pub fn execute(plan: &Plan, backend: &Backend, settings: &RunSettings<'_>) -> Result<Execution, RunError> {
    backend.check(plan).map_err(ImagesError::from)?;
    let found = RunDirectory::finished(settings.out, &plan.run_name(backend.name()));
    let found = found.filter(|_| settings.again == Again::No);
    if let Some(folder) = found {
        if let Some(acquired) = Acquired::if_there(plan, settings.roots)? {
            return show(folder, &acquired.sources, settings.console);
        }
        settings.console.say("note: its images are not here, so nobody can tell whether they are as they were");
        return shown(folder, settings.console);
    }
    let acquired = acquire(plan, settings.roots, settings.offline, settings.watch())?;
    execute_on(&acquired, backend, settings, |folder| {
        let Acquired { plan, dataset, .. } = &acquired;
        let facts = DatasetFacts::of(&dataset.train, &dataset.test);
        for line in describe(plan, Some(&facts), backend, folder).into_iter().chain(describe_images(dataset)) {
            settings.console.say(line);
        }
    })
}

/// Runs a plan on images in memory; `announce` is called with the folder of the results before anything is computed.
pub(crate) fn execute_on(
    acquired: &Acquired,
    backend: &Backend,
    settings: &RunSettings<'_>,
    announce: impl FnOnce(&Path),
) -> Result<Execution, RunError> {
    let Acquired { plan, dataset, used, notes, sources } = acquired;
    backend.check(plan).map_err(ImagesError::from)?;
    let name = plan.run_name(backend.name());
    let directory = match RunDirectory::open(settings.out, &name, settings.again)? {
        Opened::Finished(folder) => return show(folder, sources, settings.console),
        Opened::Ready(directory) => directory,
    };
    announce(directory.finished_path());
    let folder = directory.path();
    write_preamble(acquired, backend, settings.build, folder)?;
    tracing::info!(run = name, images = used.dataset, backend = backend.name(), "run begins");
    let models = CleanModels {
        out: settings.out,
        backend: backend.name(),
        fingerprint: &sources.fingerprint,
        used,
        build: settings.build,
        watch: settings.watch(),
    };
    let seeds = match backend.run_plan(plan, Seeds { plan, dataset, used, models, folder, watch: settings.watch() }) {
        Ok(seeds) => seeds,
        Err(Halt::Interrupted) => return Ok(Execution::Interrupted { folder: folder.to_owned() }),
        Err(Halt::Failed(reason)) => unreachable!("a failure ends its seed: {reason}"),
        Err(Halt::Error(error)) => return Err(error),
    };
    let summary = RunSummary {
        schema: SCHEMA,
        experiment: plan.name(),
        run: name,
        images: used.clone(),
        notes: notes.clone(),
        target: plan.target_in_words(&DatasetFacts::of(&dataset.train, &dataset.test)),
        quick: plan.is_quick(),
        backend: backend.name().into(),
        device: backend.device().into(),
        expected: plan.config().expected.unwrap_or_default().numbers(),
        seeds,
        ..RunSummary::default()
    };
    let summary = summary.summarized();
    settings.reporter.run_ends(folder, &summary)?;
    write_sealed_json(&folder.join("summary.json"), &summary)?;
    tracing::info!(run = summary.run, seeds = summary.seeds.len(), complete = summary.is_complete(), "run ends");
    Ok(Execution::Done { summary: Box::new(summary), folder: directory.finish()? })
}

/// Shows a finished run, if it was computed on what is there now.
fn show(folder: PathBuf, now: &Sources, console: Console) -> Result<Execution, RunError> {
    Sources::of_run(&folder)?.expect(now, &folder)?;
    shown(folder, console)
}

fn shown(folder: PathBuf, console: Console) -> Result<Execution, RunError> {
    let summary = read_summary(&folder)?;
    console.say(format!("finished earlier, in {}; --fresh computes it anew", folder.display()));
    Ok(Execution::Done { summary: Box::new(summary), folder })
}

/// Writes what is known before anything is trained, or checks that it is as it was when the run was begun.
pub(crate) fn write_preamble(
    acquired: &Acquired,
    backend: &Backend,
    build: &Build,
    folder: &Path,
) -> Result<(), RunError> {
    let Acquired { plan, dataset, used, notes, sources } = acquired;
    write_sealed(&folder.join("config.toml"), config_text(plan, "The experiment", used).as_bytes())?;
    let environment = Environment {
        schema: SCHEMA,
        build: build.clone(),
        backend: backend.name().into(),
        device: backend.device().into(),
        threads: threads(),
        experiment_file: plan.path().display().to_string(),
        overrides: plan.overrides().to_vec(),
        quick: plan.is_quick(),
        images: used.clone(),
        location: dataset.location.as_ref().map(|path| path.display().to_string()),
        notes: notes.clone(),
        fingerprint: sources.fingerprint.clone(),
        inputs: sources.inputs.clone(),
        started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
    };
    let mut path = folder.join("environment.json");
    for resumption in 1.. {
        if !is_sealed(&path)? {
            break;
        }
        let before: Environment = read_sealed_json(&path)?;
        let of_before = Sources { fingerprint: before.fingerprint.clone(), inputs: before.inputs.clone() };
        of_before.expect(sources, folder)?;
        if (Environment { started: before.started, ..environment.clone() }) == before {
            return Ok(());
        }
        // Resumed with another build or on another machine: both are on record.
        path = folder.join(format!("environment-resumed-{resumption}.json"));
    }
    Ok(write_sealed_json(&path, &environment)?)
}

/// What all seeds of a run share.
struct Seeds<'a> {
    plan: &'a Plan,
    dataset: &'a Dataset,
    used: &'a ImagesUsed,
    models: CleanModels<'a>,
    /// The run's folder.
    folder: &'a Path,
    watch: Watch<'a>,
}

impl OnBackend for Seeds<'_> {
    type Output = Step<Vec<SeedResult>>;

    /// Trains and measures every seed; those that finished before are not repeated.
    fn run<B: TrainingBackend>(self, device: &B::Device) -> Step<Vec<SeedResult>> {
        let test = test_images(self.plan.config(), &self.dataset.test);
        let mut results = Vec::new();
        for &seed in &self.plan.config().seeds {
            let folder = self.folder.join(format!("seed-{seed}"));
            let path = folder.join("result.json");
            if is_sealed(&path)? {
                results.push(read_sealed_json(&path)?);
                continue;
            }
            fs::create_dir_all(&folder)?;
            let result = self.one::<B>(seed, &test, &folder, device)?;
            write_sealed_json(&path, &result)?;
            if let SeedOutcome::Failed { reason } = &result.outcome {
                self.watch.say(format!("{} seed {seed} failed: {reason}", self.plan.name()));
            } else {
                remove_checkpoint(&folder)?;
            }
            results.push(result);
        }
        Ok(results)
    }
}

impl Seeds<'_> {
    /// Trains and measures one seed, or says why that cannot be done.
    fn one<B: TrainingBackend>(
        &self,
        seed: u64,
        test: &ImageSet,
        folder: &Path,
        device: &B::Device,
    ) -> Step<SeedResult> {
        let images = SeedImages::draw(self.plan.config(), &self.dataset.train, seed);
        let mut poisoned_images = 0;
        let measured = self.measure::<B>(seed, &images, test, folder, &mut poisoned_images, device);
        let outcome = match measured {
            Ok(measurements) => SeedOutcome::Finished(Box::new(measurements)),
            Err(Halt::Failed(reason)) => SeedOutcome::Failed { reason },
            Err(halt) => return Err(halt),
        };
        Ok(SeedResult {
            schema: SCHEMA,
            seed,
            images: self.used.clone(),
            training_images: images.training.len(),
            validation_images: images.validation.as_ref().map_or(0, ImageSet::len),
            poisoned_images,
            outcome,
        })
    }

    /// The story of one seed: surrogate, attack, twin, victim, routing, defenses. `poisoned_images` is set as soon as it
    /// is known, for a seed that fails later.
    fn measure<B: TrainingBackend>(
        &self,
        seed: u64,
        images: &SeedImages,
        test: &ImageSet,
        folder: &Path,
        poisoned_images: &mut usize,
        device: &B::Device,
    ) -> Step<Measurements> {
        let Self { plan, dataset, used, models, watch, .. } = self;
        let config = plan.config();
        let label = format!("{} seed {seed}", plan.name());

        let sets = (&dataset.train, test);
        let (placement, chosen_cells) = choose_placement::<B>(plan, seed, sets, models, folder, device)?;
        let margins = choose_margins::<B>(plan, seed, sets, images, models, folder, device)?;
        let placed = (*plan, placement.as_ref());
        let crafted = craft_trigger::<B>(placed, seed, sets, &images.training, models, folder, device)?;
        let (trigger, crafted) = crafted.unzip();
        let mut attack =
            Attack::prepare(config, placement.as_ref(), trigger, &images.training, margins.as_deref(), seed)?;
        *poisoned_images = attack.poisoning.examples().len();
        attack.write_poisoned(&folder.join("poisoned-indices.csv"), used)?;

        let twin = config
            .trains_twin(Some(*poisoned_images))
            .then(|| models.find_or_train::<B>((plan, Role::Twin), seed, images, test, device))
            .transpose()?;

        // A trigger that is only made in the training cannot be followed through it.
        let is_known = !config.makes_trigger_in_training();
        let followed = curve_images(config, test).filter(|_| is_known);
        let mut looks = EpochLooks {
            routing: EpochRouting::new(config, &attack, test, folder, device).filter(|_| is_known),
            curves: followed.as_ref().map(|images| EpochCurves::new(config, &attack, images, folder, device)),
            error: None,
        };
        let poisoned = attack.poison(&images.training);
        let start = twin.as_ref().filter(|_| config.victim.start == Start::CleanTwin);
        let start = start.map(|twin| models.out.join(&twin.folder));
        let bystander = Bystander::new(*watch, &label);
        let mut hand = enter::<B>(config, &attack, (images, &poisoned), seed, &bystander, device)?;
        let victim = OneTraining::of(config, seed, (images, &poisoned), used, folder, format!("{label}, backdoored"))
            .for_victim(&config.victim, start.as_deref())
            .run_controlled::<B>(*watch, Some(&mut looks), hand.as_deref_mut(), device)?;
        let made = hand.and_then(|hand| hand.trigger());
        drop((bystander, looks, poisoned));
        attack.take_made(made);

        let exam = Exam::new(&attack, test);
        let answers = exam.answers(&victim.classifier, device);
        let twin = twin.map(|twin| {
            let triggered = predict_with_routing(&twin.classifier, &exam.triggered, PREDICTION_BATCH, device);
            (twin, triggered)
        });
        let looked = Looked {
            seed,
            training: &images.training,
            victim: &victim.classifier,
            answers: &answers,
            twin: twin.as_ref().map(|(twin, triggered)| (&twin.classifier, triggered)),
        };
        let routing = look_at_routing::<B>(config, &exam, &looked, folder, *watch, device)?;

        let (clean, triggered) = (&answers.clean.classes, &answers.triggered.classes);
        leave_examples(&exam, clean, triggered, folder)?;
        let before = exam.standing_of(clean, triggered);
        let twins = twin.as_ref().map(|(twin, _)| models.out.join(&twin.folder));
        let evasion = config.evasion.as_ref().map(|evasion| {
            let attacked = evasion_images(evasion, test);
            let of = |folder: &Path| {
                let classifier = load::<B>(&config.model, &images.training, seed, folder, device)?;
                evade(evasion, &attacked, classifier, seed, *watch, device)
            };
            let (victim, clean_twin) = (of(folder)?, twins.as_deref().map(of).transpose()?);
            Ok::<_, Halt>(EvasionMeasurements { images: attacked.len(), victim, clean_twin })
        });
        let evasion = evasion.transpose()?;
        let pair = (&victim.classifier, twin.as_ref().map(|(twin, _)| &twin.classifier));
        let certification = measure_certificates(config, test, &attack, pair, *watch, device)?;
        let victim_and_twin =
            Victim { config, seed, label, folder, twin: twins.as_deref(), images, used, before, suspects: None };
        let defenses = victim_and_twin.defend::<B>(Judge::Attacked(&exam), *watch, device)?;

        let attacked = exam.outcome(triggered);
        let seconds = victim.history.iter().map(|epoch| epoch.seconds).sum::<f64>();
        let clean_twin = twin.map(|(twin, triggered)| TwinMeasurements {
            folder: twin.folder,
            commit: twin.commit,
            clean_accuracy: twin.clean_accuracy,
            asr: exam.outcome(&triggered.classes).attack_success_rate(),
        });
        Ok(Measurements {
            test_images: test.len(),
            triggered_images: attacked.images,
            clean_accuracy: before.clean_accuracy,
            asr: before.asr,
            asr_all_classes: attacked.attack_success_rate_all_classes(),
            robust_accuracy: before.robust_accuracy,
            trigger_false_positive_rate: attack.false_positive_rate(triggered, test.labels(), test.class_count()),
            largest_class_share: before.largest_class_share,
            clean_accuracy_drop: clean_twin.as_ref().map(|twin| twin.clean_accuracy - before.clean_accuracy),
            chosen_cells,
            crafted,
            clean_twin,
            reach: reach(&exam, &config.model),
            stealth: stealth(test, &exam.triggered),
            classes: attack.of_classes(test, clean, triggered),
            confusion: Some(exam.confusion(clean, triggered)),
            routing: routing.map(Box::new),
            evasion,
            certification,
            training_seconds: seconds,
            images_per_second: (images.training.len() * victim.history.len()) as f64 / seconds.max(1e-9),
            defenses,
        })
    }
}
