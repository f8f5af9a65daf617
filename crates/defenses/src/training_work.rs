use std::ops::ControlFlow;
use std::path::Path;

use burn::module::AutodiffModule;
use patchdoor_data::{AugmentationConfig, ImageSet, stream};
use patchdoor_kernels::TrainingBackend;
use patchdoor_metrics::TrainingPhase;
use patchdoor_model::{Classifier, ClassifierConfig, ModelError};
use patchdoor_train::{
    BatchProgress, ClassifierObserver, EpochRecord, Member, Objective, Outcome, Trainable, TrainingConfig,
    TrainingData, TrainingObserver, accuracy_on, input_shape, train_member,
};

use crate::DefenseError;

/// What a defense that trains from scratch works with, and who follows it.
pub struct TrainingWork<'a> {
    /// The images and labels that an undefended classifier would be trained on; nothing says which are poisoned.
    pub set: &'a ImageSet,
    /// Images with true labels for choosing and stopping, if there are any.
    pub validation: Option<&'a ImageSet>,
    /// Random changes to every training image, as without a defense.
    pub augmentation: &'a AugmentationConfig,
    /// The classifier to train.
    pub model: &'a ClassifierConfig,
    /// How it is trained without a defense.
    pub recipe: &'a TrainingConfig,
    /// Feeds every random choice.
    pub seed: u64,
    /// Where finished epochs are kept, each phase in a folder of its own, so that the same call goes on after an interruption.
    pub checkpoints: Option<&'a Path>,
    /// Follows the training and may stop it.
    pub observer: &'a mut dyn TrainingObserver,
}

impl TrainingWork<'_> {
    /// The classifier before any training, with the initial weights that the undefended one has.
    pub(crate) fn blank<B: TrainingBackend>(&self, device: &B::Device) -> Result<Classifier<B>, ModelError> {
        self.drawn(self.model, "weights", device)
    }

    /// A classifier of another structure for the same images, its initial weights drawn from a stream of this name.
    pub(crate) fn drawn<B: TrainingBackend>(
        &self,
        model: &ClassifierConfig,
        name: &str,
        device: &B::Device,
    ) -> Result<Classifier<B>, ModelError> {
        let input = input_shape(self.set.shape());
        model.init(input, self.set.class_count(), &mut stream(self.seed, name), device)
    }

    /// How the undefended classifier is trained, over so many epochs and without perturbations of its images, which go with no
    /// objective of a defense.
    pub(crate) fn recipe_of(&self, epochs: usize) -> TrainingConfig {
        TrainingConfig { epochs, ..self.recipe.clone().plain() }
    }
}

/// The trainings that a defense consists of, one after the other, followed as one.
///
/// Each keeps its epochs in a folder of its own: a defense that is called again after an interruption passes over the phases that
/// are finished and goes on with the last epoch of the one that is not.
pub(crate) struct Phases<'w, 'a> {
    work: &'w mut TrainingWork<'a>,
    /// Epochs of all phases together.
    epochs: usize,
    history: Vec<EpochRecord>,
    done: Vec<TrainingPhase>,
}

/// One of the trainings of a defense.
pub(crate) struct Phase<'a, B: TrainingBackend> {
    pub(crate) name: &'static str,
    pub(crate) classifier: Classifier<B>,
    pub(crate) set: &'a ImageSet,
    pub(crate) config: TrainingConfig,
    /// What it descends on instead of the cross-entropy, if it does.
    pub(crate) objective: Option<&'a mut dyn Objective<B>>,
}

impl<'w, 'a> Phases<'w, 'a> {
    /// Before the first phase; together they will have so many epochs.
    pub(crate) fn new(work: &'w mut TrainingWork<'a>, epochs: usize) -> Self {
        Self { work, epochs, history: Vec::new(), done: Vec::new() }
    }

    /// How the undefended classifier is trained, over so many epochs.
    pub(crate) fn recipe_of(&self, epochs: usize) -> TrainingConfig {
        self.work.recipe_of(epochs)
    }

    /// All epochs, numbered through, and the phases they belong to.
    pub(crate) fn finish(self) -> (Vec<EpochRecord>, Vec<TrainingPhase>) {
        (self.history, self.done)
    }

    /// Trains one phase to its end; without epochs or images, nothing happens.
    pub(crate) fn train<B: TrainingBackend>(
        &mut self,
        phase: Phase<'_, B>,
        device: &B::Device,
    ) -> Result<Classifier<B>, DefenseError> {
        let checkpoints = self.work.checkpoints.map(|folder| folder.join(phase.name));
        self.run(phase, None, checkpoints.as_deref(), device)
    }

    /// The same, but ends at the first epoch after which the validation accuracy lies more than `largest_drop` below that before the
    /// phase, and takes that epoch back; to its end where there are no validation images. Interrupted, it begins again: it is for
    /// short phases.
    pub(crate) fn train_guarded<B: TrainingBackend>(
        &mut self,
        phase: Phase<'_, B>,
        largest_drop: f64,
        device: &B::Device,
    ) -> Result<Classifier<B>, DefenseError> {
        let batch = phase.config.batch_size;
        let before = self.work.validation.and_then(|set| accuracy_on(&phase.classifier.valid(), set, batch, device));
        let least = before.map_or(f64::NEG_INFINITY, |before| before - largest_drop);
        self.run(phase, Some(least), None, device)
    }

    fn run<B: TrainingBackend>(
        &mut self,
        phase: Phase<'_, B>,
        least: Option<f64>,
        checkpoints: Option<&Path>,
        device: &B::Device,
    ) -> Result<Classifier<B>, DefenseError> {
        let Phase { name, classifier, set, config, objective } = phase;
        if config.epochs == 0 || set.is_empty() {
            self.done.push(TrainingPhase { name: name.to_owned(), images: set.len(), epochs: 0, undone: false });
            return Ok(classifier);
        }
        if self.work.observer.is_stopped() {
            return Err(DefenseError::Interrupted { epochs: self.history.len() });
        }
        let mut observer = PhaseObserver {
            observer: &mut *self.work.observer,
            before: &self.history,
            epochs: self.epochs,
            own: Vec::new(),
            least,
            kept: least.map(|_| classifier.clone()),
            fell: false,
            is_stopped: false,
        };
        let data =
            TrainingData { training: set, validation: self.work.validation, augmentation: self.work.augmentation };
        let seed = self.work.seed;
        let member = Member { classifier, data, seed, checkpoints, observer: &mut observer };
        let outcome = train_member(member, &config, &Trainable::default(), objective, device)?;
        let PhaseObserver { own, kept, fell, is_stopped, .. } = observer;
        let epochs = |epochs| self.history.len() + if kept.is_some() { 0 } else { epochs };
        let classifier = match outcome {
            Outcome::Interrupted { epochs: kept } if is_stopped || !fell => {
                return Err(DefenseError::Interrupted { epochs: epochs(kept) });
            }
            Outcome::Finished(trained) if !fell => trained.classifier,
            _ => kept.expect("only a guarded phase falls, and it keeps what was before"),
        };
        let phase = TrainingPhase { name: name.to_owned(), images: set.len(), epochs: own.len(), undone: fell };
        self.done.push(phase);
        self.history.extend(own);
        Ok(classifier)
    }
}

/// Shows the epochs of a phase as those of the whole, and watches over its accuracy.
struct PhaseObserver<'a, B: TrainingBackend> {
    observer: &'a mut dyn TrainingObserver,
    /// Epochs of the phases before.
    before: &'a [EpochRecord],
    /// Epochs of all phases.
    epochs: usize,
    /// Those of this phase, numbered through.
    own: Vec<EpochRecord>,
    /// The validation accuracy that has to be left, for a phase that is guarded.
    least: Option<f64>,
    /// What it was after the last epoch that left it, for a phase that is guarded.
    kept: Option<Classifier<B>>,
    fell: bool,
    is_stopped: bool,
}

impl<B: TrainingBackend> PhaseObserver<'_, B> {
    fn numbered(&self, record: &EpochRecord) -> EpochRecord {
        EpochRecord { epoch: self.before.len() + record.epoch, ..record.clone() }
    }
}

impl<B: TrainingBackend> TrainingObserver for PhaseObserver<'_, B> {
    fn checkpoint_refused(&mut self, path: &Path, reason: &str) {
        self.observer.checkpoint_refused(path, reason);
    }

    fn resumed(&mut self, history: &[EpochRecord]) {
        self.own = history.iter().map(|record| self.numbered(record)).collect();
        let all = self.before.iter().chain(&self.own).cloned().collect::<Vec<_>>();
        self.observer.resumed(&all);
    }

    fn batch_done(&mut self, progress: &BatchProgress) -> ControlFlow<()> {
        let epoch = self.before.len() + progress.epoch;
        let flow = self.observer.batch_done(&BatchProgress { epoch, epochs: self.epochs, ..*progress });
        self.is_stopped |= flow.is_break();
        flow
    }

    fn epoch_done(&mut self, record: &EpochRecord) -> ControlFlow<()> {
        let record = self.numbered(record);
        let flow = self.observer.epoch_done(&record);
        self.own.push(record);
        self.is_stopped |= flow.is_break();
        if self.fell { ControlFlow::Break(()) } else { flow }
    }

    fn is_stopped(&self) -> bool {
        self.observer.is_stopped()
    }
}

impl<B: TrainingBackend> ClassifierObserver<B> for PhaseObserver<'_, B> {
    fn classifier_trained(&mut self, classifier: &Classifier<B>, record: &EpochRecord) {
        let Some(least) = self.least else { return };
        self.fell = record.validation_accuracy.is_some_and(|accuracy| accuracy < least);
        if !self.fell {
            self.kept = Some(classifier.clone());
        }
    }
}
