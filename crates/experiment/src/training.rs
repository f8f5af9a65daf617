use std::ops::ControlFlow;
use std::path::Path;

use burn::module::AutodiffModule;
use burn::tensor::backend::AutodiffBackend;
use fs_err as fs;
use patchdoor_attacks::HandInTraining;
use patchdoor_data::{AugmentationConfig, ImageSet, stream};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::{Classifier, ClassifierConfig, WeightsDescription, load_weights, save_weights};
use patchdoor_plan::{ExperimentConfig, VictimConfig};
use patchdoor_record::{ImagesUsed, check_sealed, is_sealed, read_sealed_json_lines, seal};
use patchdoor_train::{
    BatchProgress, ClassifierObserver, EpochRecord, Member, Objective, Outcome, Trainable, TrainingConfig,
    TrainingData, TrainingObserver, input_shape, train_member,
};

use crate::console::Watch;
use crate::controlled;
use crate::epochs::EpochLooks;
use crate::halt::{Halt, Step};
use crate::history::HistoryFile;
use crate::images::SeedImages;
use crate::progress::TrainingProgress;

/// Name of the file with a classifier's weights.
pub(crate) const WEIGHTS: &str = "weights.safetensors";

/// One training of a run.
pub(crate) struct OneTraining<'a> {
    pub(crate) model: &'a ClassifierConfig,
    pub(crate) config: &'a TrainingConfig,
    pub(crate) augmentation: &'a AugmentationConfig,
    pub(crate) seed: u64,
    /// The images to fit, poisoned or not.
    pub(crate) training: &'a ImageSet,
    pub(crate) validation: Option<&'a ImageSet>,
    /// What every line of the history says of the images.
    pub(crate) used: &'a ImagesUsed,
    /// Folder with the weights to start from; those that the seed draws if not given.
    pub(crate) start: Option<&'a Path>,
    /// What may change.
    pub(crate) trainable: Trainable,
    /// Where a checkpoint is resumed, and weights and epochs are left.
    pub(crate) folder: &'a Path,
    /// What progress is shown as.
    pub(crate) label: String,
}

/// A classifier after its training, its weights saved.
pub(crate) struct TrainedClassifier<B: AutodiffBackend> {
    pub(crate) classifier: Classifier<B::InnerBackend>,
    pub(crate) history: Vec<EpochRecord>,
}

impl<'a> OneTraining<'a> {
    /// The training that an experiment describes, on its own images or on poisoned ones.
    pub(crate) fn of(
        config: &'a ExperimentConfig,
        seed: u64,
        (images, training): (&'a SeedImages, &'a ImageSet),
        used: &'a ImagesUsed,
        folder: &'a Path,
        label: String,
    ) -> Self {
        Self {
            model: &config.model,
            config: &config.training,
            augmentation: &config.data.augmentation,
            seed,
            training,
            validation: images.validation.as_ref(),
            used,
            start: None,
            trainable: Trainable::default(),
            folder,
            label,
        }
    }

    /// The same with what is different for the backdoored classifier; `start` is the folder of the weights it starts from.
    pub(crate) fn for_victim(self, config: &VictimConfig, start: Option<&'a Path>) -> Self {
        Self { start, trainable: Trainable { parts: config.parts.clone(), pruned: None }, ..self }
    }

    /// What the same training left earlier, of a seed of which something else failed; `None` if it has to be trained, or to
    /// go on from a checkpoint.
    fn trained_before<B: TrainingBackend>(
        &self,
        watch: Watch<'_>,
        hand: Option<&mut (dyn HandInTraining<B> + '_)>,
        device: &B::Device,
    ) -> Step<Option<TrainedClassifier<B>>> {
        let (weights, log) = (self.folder.join(WEIGHTS), self.folder.join("metrics.jsonl"));
        if self.folder.join("checkpoint").exists() || !is_sealed(&weights)? || !is_sealed(&log)? {
            return Ok(None);
        }
        if let Some(hand) = &hand
            && !controlled::is_saved(&**hand, self.folder)?
        {
            return Ok(None);
        }
        let before = check_sealed(&weights).and_then(|()| read_sealed_json_lines::<EpochRecord>(&log));
        match before {
            Ok(history) if history.len() == self.config.epochs => {
                watch.say(format!("{}: trained before", self.label));
                let classifier = load(self.model, self.training, self.seed, self.folder, device)?;
                if let Some(hand) = hand {
                    controlled::load(hand, self.folder)?;
                }
                Ok(Some(TrainedClassifier { classifier, history }))
            }
            Ok(_) => Ok(None),
            Err(error) => {
                watch.say(format!("warning: {}: trained anew: {error}", self.label));
                Ok(None)
            }
        }
    }

    /// Trains, going on from a checkpoint if there is one; `epochs` looks at the classifier after every epoch.
    pub(crate) fn run<B: TrainingBackend>(
        self,
        watch: Watch<'_>,
        epochs: Option<&mut EpochLooks<'_, B>>,
        device: &B::Device,
    ) -> Step<TrainedClassifier<B>> {
        self.run_controlled(watch, epochs, None, device)
    }

    /// The same with an attacker's hand in it, if he has one there; what he trains is saved and resumed beside the classifier.
    pub(crate) fn run_controlled<B: TrainingBackend>(
        self,
        watch: Watch<'_>,
        epochs: Option<&mut EpochLooks<'_, B>>,
        mut hand: Option<&mut (dyn HandInTraining<B> + '_)>,
        device: &B::Device,
    ) -> Step<TrainedClassifier<B>> {
        if watch.is_stopped() {
            return Err(Halt::Interrupted);
        }
        if let Some(trained) = self.trained_before::<B>(watch, lend(&mut hand), device)? {
            return Ok(trained);
        }
        let log = HistoryFile { path: self.folder.join("metrics.jsonl"), seed: self.seed, images: self.used };
        let progress = TrainingProgress::new(watch, self.label, &log, self.config.epochs);
        let mut observer = Observer { progress, epochs };
        let classifier = match self.start {
            Some(folder) => load::<B>(self.model, self.training, self.seed, folder, device)?,
            None => blank::<B>(self.model, self.training, self.seed, device)?,
        };
        let data =
            TrainingData { training: self.training, validation: self.validation, augmentation: self.augmentation };
        let checkpoint = self.folder.join("checkpoint");
        let member =
            Member { classifier, data, seed: self.seed, checkpoints: Some(&checkpoint), observer: &mut observer };
        let objective = lend(&mut hand).map(|hand| hand as &mut dyn Objective<B>);
        let outcome = train_member(member, self.config, &self.trainable, objective, device);
        if let Some(error) = observer.progress.log_error.take() {
            return Err(error.into());
        }
        if let Some(error) = observer.epochs.take().and_then(|epochs| epochs.error.take()) {
            return Err(error.into());
        }
        match outcome? {
            Outcome::Interrupted { .. } => Err(Halt::Interrupted),
            Outcome::Finished(trained) => {
                let classifier = trained.classifier.valid();
                if let Some(hand) = hand {
                    controlled::save(hand, self.folder)?;
                }
                save(&classifier, self.training, self.folder)?;
                log.write(&trained.history)?;
                Ok(TrainedClassifier { classifier, history: trained.history })
            }
        }
    }
}

/// Lends an attacker's hand once more.
fn lend<'a, B: TrainingBackend>(
    hand: &'a mut Option<&mut (dyn HandInTraining<B> + '_)>,
) -> Option<&'a mut (dyn HandInTraining<B> + 'a)> {
    match hand {
        Some(hand) => Some(&mut **hand),
        None => None,
    }
}

/// A classifier for these images before any training.
pub(crate) fn blank<B: burn::tensor::backend::Backend>(
    model: &ClassifierConfig,
    images: &ImageSet,
    seed: u64,
    device: &B::Device,
) -> Step<Classifier<B>> {
    Ok(model.init::<B>(input_shape(images.shape()), images.class_count(), &mut stream(seed, "weights"), device)?)
}

/// Saves the weights of a classifier for these images, with what they are and with their checksum.
pub(crate) fn save<B: patchdoor_kernels::Kernels>(
    classifier: &Classifier<B>,
    images: &ImageSet,
    folder: &Path,
) -> Step<()> {
    let path = folder.join(WEIGHTS);
    let description = WeightsDescription {
        config: classifier.config(),
        classes: images.classes().to_vec(),
        input: input_shape(images.shape()),
    };
    save_weights(classifier, &description, &path)?;
    Ok(seal(&path)?)
}

/// Loads the weights that [`save`] left in a folder, if they are as they were.
pub(crate) fn load<B: patchdoor_kernels::Kernels>(
    model: &ClassifierConfig,
    images: &ImageSet,
    seed: u64,
    folder: &Path,
    device: &B::Device,
) -> Step<Classifier<B>> {
    let path = folder.join(WEIGHTS);
    check_sealed(&path)?;
    Ok(load_weights(blank(model, images, seed, device)?, &path)?)
}

/// Removes the checkpoint of a finished training; its weights are saved.
pub(crate) fn remove_checkpoint(folder: &Path) -> Step<()> {
    let checkpoint = folder.join("checkpoint");
    if checkpoint.exists() {
        fs::remove_dir_all(checkpoint)?;
    }
    Ok(())
}

/// Shows a training and looks at its classifier.
struct Observer<'a, 'p, 'e, B: AutodiffBackend> {
    progress: TrainingProgress<'p>,
    epochs: Option<&'a mut EpochLooks<'e, B>>,
}

impl<B: AutodiffBackend> TrainingObserver for Observer<'_, '_, '_, B> {
    fn checkpoint_refused(&mut self, path: &Path, reason: &str) {
        self.progress.checkpoint_refused(path, reason);
    }

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

impl<B: TrainingBackend> ClassifierObserver<B> for Observer<'_, '_, '_, B> {
    fn classifier_trained(&mut self, classifier: &Classifier<B>, record: &EpochRecord) {
        if let Some(epochs) = &mut self.epochs {
            epochs.look(classifier, record);
        }
    }
}
