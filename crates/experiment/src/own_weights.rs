use std::path::{Path, PathBuf};

use burn::module::AutodiffModule;
use fs_err as fs;
use patchdoor_data::{Dataset, ImageSet, LoosePictures, read_loose_pictures};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::{Classifier, ClassifierConfig, load_weights, read_description};
use patchdoor_plan::{ActionKind, ConfigErrors, DefensePlan, Plan, PlanOptions, model_of};
use patchdoor_record::{
    ImagesUsed, Opened, OwnWeightsResult, RunDirectory, SCHEMA, read_sealed_json, write_sealed_json,
};
use patchdoor_train::input_shape;
use sha2::{Digest, Sha256};

use crate::attack::Attack;
use crate::backend::{Backend, OnBackend};
use crate::console::Watch;
use crate::defense::Victim;
use crate::error::RunError;
use crate::exam::{Exam, Judge};
use crate::halt::{Halt, Step};
use crate::images::{Acquired, ImagesError, SeedImages, acquire, test_images};
use crate::placement::placement_without_surrogate;
use crate::run::{RunSettings, write_preamble};
use crate::training::{blank, save};
use crate::weights_error::WeightsError;

/// What to do with weights that no run of this project need have trained.
#[derive(Clone, Copy, Debug)]
pub struct OwnWeights<'a> {
    /// A safetensors file.
    pub weights: &'a Path,
    /// A file whose `[model]` table says what the weights are, where they do not say it themselves.
    pub model: Option<&'a Path>,
    /// The file with `dataset` and `[[defenses]]`.
    pub defenses: &'a Path,
    /// What its defenses do.
    pub kind: ActionKind,
    /// A folder of pictures for detectors to score.
    pub images: Option<&'a Path>,
    /// What is changed about the file.
    pub options: &'a PlanOptions,
}

/// How the defenses of weights ended.
#[derive(Debug)]
pub enum OwnWeightsOutcome {
    /// With results, in their folder, now or earlier.
    Done {
        /// The results.
        result: Box<OwnWeightsResult>,
        /// Their folder.
        folder: PathBuf,
    },
    /// Before their end; the same call goes on.
    Interrupted {
        /// What is there so far.
        folder: PathBuf,
    },
}

/// What is known of weights before any image is read.
struct Known {
    config: ClassifierConfig,
    /// Names of classes and shape of images, where the weights say them.
    said: Option<(Vec<String>, patchdoor_model::InputShape)>,
    sha256: String,
    notes: Vec<String>,
}

impl OwnWeights<'_> {
    /// Tries every defense of the file on the weights, goes on with what was interrupted, or finds that it was done.
    ///
    /// The defenses see the weights and images of the training split; a trigger that the file has serves the measurement.
    ///
    /// # Errors
    /// If the weights, the file or the images are of no use, or something cannot be written.
    pub fn execute(&self, backend: &Backend, settings: &RunSettings<'_>) -> Result<OwnWeightsOutcome, RunError> {
        let known = self.known()?;
        let defense_plan = DefensePlan::read(self.defenses, &known.config, self.kind, self.options);
        let defense_plan = defense_plan.map_err(ImagesError::from)?;
        backend.check(defense_plan.plan()).map_err(ImagesError::from)?;
        let mut acquired = acquire(defense_plan.plan(), settings.roots, settings.offline, settings.watch())?;
        let Known { sha256, mut notes, .. } = self.fitting(known, &acquired)?;
        let weights = self.weights.display().to_string();
        acquired.sources.inputs.insert(weights.clone(), sha256.clone());
        let suspects = self.images.map(|folder| read_loose_pictures(folder, acquired.dataset.train.shape()));
        let suspects = suspects.transpose().map_err(ImagesError::from)?;
        notes.extend(suspects.iter().flat_map(|suspects| suspects.notes.clone()));
        let config = acquired.plan.config();
        if config.defenses.iter().any(|defender| defender.twin) {
            notes.push("twin = true is left aside: these weights have no clean twin".into());
        }
        if config.seeds.len() > 1 {
            notes.push(format!("of {} seeds the first is taken, {}", config.seeds.len(), config.seeds[0]));
        }
        let knows_trigger = defense_plan.knows_trigger();
        let pictures = suspects.as_ref().map(|suspects| suspects.images.fingerprint());
        let depends_on = (acquired.plan.hash(backend.name()), &sha256, &acquired.sources.fingerprint, pictures);
        let run = format!("{}-{}-{}", stem(self.weights), stem(self.defenses), digits(&depends_on, knows_trigger));

        let last = OwnWeightsResult::FILE;
        let directory = match RunDirectory::open_with(settings.out, &run, settings.again, last)? {
            Opened::Ready(directory) => directory,
            Opened::Finished(folder) => {
                let result = read_sealed_json(&folder.join(last))?;
                settings.console.say(format!("finished earlier, in {}; --fresh computes it anew", folder.display()));
                return Ok(OwnWeightsOutcome::Done { result: Box::new(result), folder });
            }
        };
        let folder = directory.path();
        for note in &notes {
            settings.console.say(format!("note: {note}"));
        }
        write_preamble(&acquired, backend, settings.build, folder)?;
        let Acquired { plan, dataset, used, .. } = &acquired;
        let work = Defending {
            weights: self.weights,
            plan,
            dataset,
            used,
            knows_trigger,
            suspects: suspects.as_ref(),
            folder,
            watch: settings.watch(),
            blank: OwnWeightsResult {
                schema: SCHEMA,
                command: command(self.kind).into(),
                run,
                weights,
                weights_sha256: sha256,
                defense_file: self.defenses.display().to_string(),
                images: used.clone(),
                seed: plan.config().seeds[0],
                test_images: 0,
                knows_trigger,
                notes,
                classes: dataset.train.classes().to_vec(),
                backend: backend.name().into(),
                device: backend.device().into(),
                before: patchdoor_record::DefenseStanding {
                    clean_accuracy: 0.0,
                    asr: None,
                    robust_accuracy: None,
                    largest_class_share: None,
                },
                defenses: Vec::new(),
            },
        };
        let result = match backend.run_plan(plan, work) {
            Ok(result) => result,
            Err(Halt::Interrupted) => return Ok(OwnWeightsOutcome::Interrupted { folder: folder.to_owned() }),
            Err(Halt::Failed(reason)) => unreachable!("a failure ends its defense: {reason}"),
            Err(Halt::Error(error)) => return Err(error),
        };
        write_sealed_json(&folder.join(last), &result)?;
        Ok(OwnWeightsOutcome::Done { result: Box::new(result), folder: directory.finish()? })
    }

    /// What the weights are: what they say of themselves, unless a file was named for it; else what the file of defenses says.
    fn known(&self) -> Result<Known, RunError> {
        let described = read_description(self.weights).map_err(WeightsError::from)?;
        let table = |path: &Path| model_of(path).map_err(|errors: ConfigErrors| ImagesError::from(errors));
        let mut notes = Vec::new();
        let config = match (self.model, &described) {
            (Some(model), _) => table(model)?
                .ok_or_else(|| WeightsError::NoModel { model: model.to_owned(), weights: self.weights.to_owned() })?,
            (None, Some(described)) => {
                let other = model_of(self.defenses).ok().flatten();
                let structure = |config: &ClassifierConfig| config.network().structure();
                if other.is_some_and(|other| structure(&other) != structure(&described.config)) {
                    notes.push("[model] of the file of defenses is another than the weights say; theirs counts".into());
                }
                described.config.clone()
            }
            (None, None) => table(self.defenses)?.ok_or_else(|| WeightsError::NoStructure {
                weights: self.weights.to_owned(),
                defenses: self.defenses.to_owned(),
            })?,
        };
        let digest = Sha256::digest(fs::read(self.weights)?);
        let sha256 = digest.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        Ok(Known { config, said: described.map(|described| (described.classes, described.input)), sha256, notes })
    }

    /// Makes sure that the weights are for images of the data set.
    fn fitting(&self, mut known: Known, acquired: &Acquired) -> Result<Known, WeightsError> {
        let Some((classes, input)) = &known.said else { return Ok(known) };
        let train = &acquired.dataset.train;
        let in_words = |shape: patchdoor_model::InputShape, classes: usize| {
            format!("{}x{}x{} images of {classes} classes", shape.height, shape.width, shape.channels)
        };
        let here = input_shape(train.shape());
        if *input != here || classes.len() != train.class_count() {
            return Err(WeightsError::OtherImages {
                weights: self.weights.to_owned(),
                found: in_words(*input, classes.len()),
                dataset: acquired.used.dataset.clone(),
                expected: in_words(here, train.class_count()),
            });
        }
        if classes[..] != *train.classes() {
            known.notes.push(format!(
                "the classes of the weights are called {}, those of the images {}: they are matched by number",
                classes.join(", "),
                train.classes().join(", ")
            ));
        }
        Ok(known)
    }
}

/// The command that takes defenses of a kind.
fn command(kind: ActionKind) -> &'static str {
    match kind {
        ActionKind::Repair => "defend",
        ActionKind::Detect => "detect",
        ActionKind::Inspect => "inspect",
        ActionKind::Filter | ActionKind::Train => "run",
    }
}

fn stem(path: &Path) -> String {
    path.file_stem().map_or_else(|| "weights".into(), |stem| stem.to_string_lossy().into_owned())
}

/// Eight hexadecimal digits that differ between defenses whose results may differ.
fn digits(depends_on: &(String, &String, &String, Option<String>), knows_trigger: bool) -> String {
    let text = serde_json::to_vec(&(1, depends_on, knows_trigger)).expect("plain texts");
    Sha256::digest(text).iter().take(4).fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// The defenses of weights on whatever backend was chosen.
struct Defending<'a> {
    weights: &'a Path,
    plan: &'a Plan,
    dataset: &'a Dataset,
    used: &'a ImagesUsed,
    knows_trigger: bool,
    suspects: Option<&'a LoosePictures>,
    folder: &'a Path,
    watch: Watch<'a>,
    /// The result, without what is measured.
    blank: OwnWeightsResult,
}

impl OnBackend for Defending<'_> {
    type Output = Step<OwnWeightsResult>;

    fn run<B: TrainingBackend>(self, device: &B::Device) -> Step<OwnWeightsResult> {
        let config = self.plan.config();
        let seed = config.seeds[0];
        let images = SeedImages::draw(config, &self.dataset.train, seed);
        let test = test_images(config, &self.dataset.test);
        let classifier = self.load::<B>(&images.training, seed, device)?.valid();
        save(&classifier, &images.training, self.folder)?;

        let attack = self.knows_trigger.then(|| {
            let placement = placement_without_surrogate(config)?;
            Attack::prepare(config, placement, None, &images.training, None, seed)
        });
        let attack = attack.transpose()?;
        let exam = attack.as_ref().map(|attack| Exam::new(attack, &test));
        let judge = exam.as_ref().map_or(Judge::Untouched(&test), Judge::Attacked);
        let before = judge.standing(&classifier, device);
        drop(classifier);
        let victim = Victim {
            config,
            seed,
            label: stem(self.weights),
            folder: self.folder,
            twin: None,
            images: &images,
            used: self.used,
            before,
            suspects: self.suspects,
        };
        let defenses = victim.defend::<B>(judge, self.watch, device)?;
        Ok(OwnWeightsResult { test_images: test.len(), before, defenses, ..self.blank })
    }
}

impl Defending<'_> {
    fn load<B: TrainingBackend>(&self, images: &ImageSet, seed: u64, device: &B::Device) -> Step<Classifier<B>> {
        let blank = blank::<B>(&self.plan.config().model, images, seed, device)?;
        let classifier = load_weights(blank, self.weights).map_err(WeightsError::from).map_err(RunError::from)?;
        if !classifier.is_finite() {
            return Err(RunError::from(WeightsError::NotFinite { weights: self.weights.to_owned() }).into());
        }
        Ok(classifier)
    }
}
