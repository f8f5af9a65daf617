use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use burn::module::AutodiffModule;
use burn::tensor::backend::AutodiffBackend;
use fs_err as fs;
use patchdoor_data::{ImageSet, stream};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::{Classifier, load_weights, save_weights};
use patchdoor_train::{
    BatchProgress, ClassifierObserver, EpochRecord, Outcome, TrainError, TrainingData, TrainingObserver, predict,
    train_observed,
};
use serde::{Deserialize, Serialize};

use crate::files::{write_json, write_whole};
use crate::images::SeedImages;
use crate::progress::TrainingProgress;
use crate::result::{ImagesUsed, SCHEMA};
use crate::routing::EpochRouting;
use crate::run::{Job, PREDICTION_BATCH, RunError, described, input_shape};
use crate::run_directory::lock;

/// What is known of a clean twin; its `result.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct TwinResult {
    schema: u32,
    seed: u64,
    #[serde(flatten)]
    images: ImagesUsed,
    training_images: usize,
    test_images: usize,
    /// Share of untouched test images predicted right.
    pub(crate) clean_accuracy: f64,
    training_seconds: f64,
}

/// A trained clean twin.
pub(crate) struct Twin<B: AutodiffBackend> {
    /// Its folder, below the output folder.
    pub(crate) folder: String,
    pub(crate) result: TwinResult,
    pub(crate) classifier: Classifier<B::InnerBackend>,
}

/// What a clean model is trained for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// To know what the poison costs.
    Twin,
    /// To choose cells by.
    Surrogate,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Twin => "clean twin",
            Self::Surrogate => "surrogate",
        }
    }
}

/// How the training of a twin ended.
pub(crate) enum TwinEnd<B: AutodiffBackend> {
    Ready(Box<Twin<B>>),
    Failed(String),
    Interrupted,
}

/// Finds the clean twin of a seed, or trains it: the same configuration, images, seed, nothing poisoned.
pub(crate) fn clean_twin<B: TrainingBackend>(
    job: &Job<'_>,
    role: Role,
    seed: u64,
    images: &SeedImages,
    test: &ImageSet,
    device: &B::Device,
) -> Result<TwinEnd<B>, RunError> {
    let hash = job.plan.twin_hash(job.backend.name(), job.fingerprint);
    let folder = format!("twins/{hash}/seed-{seed}");
    let finished = job.out.join(&folder);
    if finished.join("result.json").is_file() {
        job.console.say(format!(
            "{} seed {seed}: {} trained before, in {}",
            job.plan.name(),
            role.name(),
            finished.display()
        ));
    } else {
        let Some(_lock) = wait_for_lock(job, &format!("twin-{hash}-seed-{seed}"))? else {
            return Ok(TwinEnd::Interrupted);
        };
        // Whoever held the lock may have trained it meanwhile.
        if !finished.join("result.json").is_file() {
            let partial = job.out.join(format!("{folder}.partial"));
            match train_twin::<B>(job, role, seed, images, test, &partial, device)? {
                TwinEnd::Ready(_) => fs::rename(&partial, &finished)?,
                end => return Ok(end),
            }
        }
    }
    let result = serde_json::from_slice(&fs::read(finished.join("result.json"))?)
        .map_err(|source| RunError::Result { path: finished.join("result.json"), source })?;
    let config = job.plan.config();
    let input = input_shape(&images.training);
    let blank =
        config.model.init::<B::InnerBackend>(input, test.class_count(), &mut stream(seed, "weights"), device)?;
    let classifier = load_weights(blank, &finished.join("weights.safetensors"))?;
    Ok(TwinEnd::Ready(Box::new(Twin { folder, result, classifier })))
}

fn train_twin<B: TrainingBackend>(
    job: &Job<'_>,
    role: Role,
    seed: u64,
    images: &SeedImages,
    test: &ImageSet,
    folder: &Path,
    device: &B::Device,
) -> Result<TwinEnd<B>, RunError> {
    fs::create_dir_all(folder)?;
    write_whole(&folder.join("config.toml"), job.config_toml("The clean twin of").as_bytes())?;
    let label = format!("{} seed {seed}, {}", job.plan.name(), role.name());
    let (classifier, history) = match train_one::<B>(job, seed, images, &images.training, folder, label, device)? {
        TrainingEnd::Finished(classifier, history) => (classifier, history),
        TrainingEnd::Failed(reason) => return Ok(TwinEnd::Failed(format!("{}: {reason}", role.name()))),
        TrainingEnd::Interrupted => return Ok(TwinEnd::Interrupted),
    };
    let predicted = predict(&classifier, test, PREDICTION_BATCH, device);
    let result = TwinResult {
        schema: SCHEMA,
        seed,
        images: job.used.clone(),
        training_images: images.training.len(),
        test_images: test.len(),
        clean_accuracy: patchdoor_metrics::accuracy(&predicted, test.labels()).unwrap_or(0.0),
        training_seconds: history.iter().map(|epoch| epoch.seconds).sum(),
    };
    write_json(&folder.join("result.json"), &result)?;
    remove_checkpoint(folder)?;
    Ok(TwinEnd::Ready(Box::new(Twin { folder: String::new(), result, classifier: *classifier })))
}

/// How one training ended.
pub(crate) enum TrainingEnd<B: AutodiffBackend> {
    Finished(Box<Classifier<B::InnerBackend>>, Vec<EpochRecord>),
    Failed(String),
    Interrupted,
}

/// Trains one classifier on the given training images, resuming what is in `folder`; leaves its weights and epochs there.
pub(crate) fn train_one<B: TrainingBackend>(
    job: &Job<'_>,
    seed: u64,
    images: &SeedImages,
    training: &ImageSet,
    folder: &Path,
    label: String,
    device: &B::Device,
) -> Result<TrainingEnd<B>, RunError> {
    OneTraining { seed, images, training, folder, label }.run(job, None, device)
}

/// One training of a run.
pub(crate) struct OneTraining<'a> {
    pub(crate) seed: u64,
    pub(crate) images: &'a SeedImages,
    /// The images to fit, poisoned or not.
    pub(crate) training: &'a ImageSet,
    /// Where a checkpoint is resumed, and weights and epochs are left.
    pub(crate) folder: &'a Path,
    /// What progress is shown as.
    pub(crate) label: String,
}

impl OneTraining<'_> {
    /// Trains, resuming what is there; `epochs` looks at the classifier after every epoch.
    pub(crate) fn run<B: TrainingBackend>(
        self,
        job: &Job<'_>,
        epochs: Option<&mut EpochRouting<'_, B>>,
        device: &B::Device,
    ) -> Result<TrainingEnd<B>, RunError> {
        let Self { seed, images, training, folder, label } = self;
        if job.stop.load(Ordering::Relaxed) {
            return Ok(TrainingEnd::Interrupted);
        }
        let config = job.plan.config();
        let write = |path: &Path, history: &[EpochRecord]| job.write_history(path, seed, history);
        let log: PathBuf = folder.join("metrics.jsonl");
        let progress = TrainingProgress::new(job.console, label, job.stop, log, &write, config.training.epochs);
        let mut watch = Watch { progress, epochs };
        let classifier = config.model.init::<B>(
            input_shape(training),
            training.class_count(),
            &mut stream(seed, "weights"),
            device,
        )?;
        let data =
            TrainingData { training, validation: images.validation.as_ref(), augmentation: &config.data.augmentation };
        let checkpoint = folder.join("checkpoint");
        let outcome = train_observed(classifier, &data, &config.training, seed, Some(&checkpoint), &mut watch, device);
        if let Some(error) = watch.progress.log_error.take() {
            return Err(error.into());
        }
        if let Some(error) = watch.epochs.take().and_then(|epochs| epochs.error.take()) {
            return Err(error);
        }
        drop(watch);
        match outcome {
            Ok(Outcome::Finished(trained)) => {
                let classifier = trained.classifier.valid();
                save_weights(&classifier, &described(&config.model, training), &folder.join("weights.safetensors"))?;
                write(&folder.join("metrics.jsonl"), &trained.history)?;
                Ok(TrainingEnd::Finished(Box::new(classifier), trained.history))
            }
            Ok(Outcome::Interrupted { .. }) => Ok(TrainingEnd::Interrupted),
            Err(error @ TrainError::Diverged { .. }) => Ok(TrainingEnd::Failed(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }
}

/// Shows a training and looks at its routers.
struct Watch<'a, 'p, 'e, B: AutodiffBackend> {
    progress: TrainingProgress<'p>,
    epochs: Option<&'a mut EpochRouting<'e, B>>,
}

impl<B: AutodiffBackend> TrainingObserver for Watch<'_, '_, '_, B> {
    fn resumed(&mut self, history: &[EpochRecord]) {
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

impl<B: TrainingBackend> ClassifierObserver<B> for Watch<'_, '_, '_, B> {
    fn classifier_trained(&mut self, classifier: &Classifier<B>, record: &EpochRecord) {
        if let Some(epochs) = &mut self.epochs {
            epochs.look(classifier, record);
        }
    }
}

/// Removes the checkpoint of a finished training; its weights are saved.
pub(crate) fn remove_checkpoint(folder: &Path) -> Result<(), RunError> {
    let checkpoint = folder.join("checkpoint");
    if checkpoint.exists() {
        fs::remove_dir_all(checkpoint)?;
    }
    Ok(())
}

/// Waits until no other process trains this twin; `None` if interrupted meanwhile.
fn wait_for_lock(job: &Job<'_>, name: &str) -> Result<Option<std::fs::File>, RunError> {
    let mut said = false;
    loop {
        if let Some(file) = lock(job.out, name)? {
            return Ok(Some(file));
        }
        if job.stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        if !said {
            job.console.say("waiting for another process, which trains the same clean twin");
            said = true;
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}
