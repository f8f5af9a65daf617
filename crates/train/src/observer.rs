use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::backend::AutodiffBackend;
use patchdoor_metrics::EpochRecord;
use patchdoor_model::Classifier;

/// What a step of training has to show.
#[derive(Clone, Copy, Debug)]
pub struct BatchProgress {
    /// Epoch, counted from 0.
    pub epoch: usize,
    /// Epochs in all.
    pub epochs: usize,
    /// Step within the epoch, counted from 0.
    pub step: usize,
    /// Steps per epoch.
    pub steps: usize,
    /// Images in this step.
    pub images: usize,
    /// Mean cross-entropy of this step's images, in nats; `None` on a device that would have to stop to tell.
    pub loss: Option<f64>,
}

/// Follows a training and may stop it.
pub trait TrainingObserver {
    /// A checkpoint is damaged and not used; it was moved aside to `path`, where it stays until its epoch is saved again.
    /// `reason` follows "checkpoint PATH". Training goes on from the checkpoint before it, or from the start, with the same
    /// result; [`Self::resumed`] says which.
    fn checkpoint_refused(&mut self, _path: &Path, _reason: &str) {}

    /// Training goes on from a checkpoint with these finished epochs; none if every checkpoint was refused and it begins
    /// again. Not called where there was no checkpoint.
    fn resumed(&mut self, _history: &[EpochRecord]) {}

    /// A step is done. `Break` stops at once; the unfinished epoch is lost.
    fn batch_done(&mut self, _progress: &BatchProgress) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// An epoch is done and its checkpoint, if any, is saved. `Break` stops here.
    fn epoch_done(&mut self, _record: &EpochRecord) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// Whether to stop, asked between long steps that are no training, such as those of a pruning.
    fn is_stopped(&self) -> bool {
        false
    }
}

/// Follows nothing and never stops.
impl TrainingObserver for () {}

/// Follows a training and looks at the classifier after every epoch.
pub trait ClassifierObserver<B: AutodiffBackend>: TrainingObserver {
    /// The steps of an epoch are done, its checkpoint is not yet saved: what is kept on disk here is there for every epoch
    /// that a resumed training does not repeat. Its batch normalization has the running statistics.
    fn classifier_trained(&mut self, classifier: &Classifier<B>, record: &EpochRecord);
}

/// An observer that does not look at the classifier.
pub struct Blind<'a>(pub &'a mut dyn TrainingObserver);

impl TrainingObserver for Blind<'_> {
    fn checkpoint_refused(&mut self, path: &Path, reason: &str) {
        self.0.checkpoint_refused(path, reason);
    }

    fn resumed(&mut self, history: &[EpochRecord]) {
        self.0.resumed(history);
    }

    fn batch_done(&mut self, progress: &BatchProgress) -> ControlFlow<()> {
        self.0.batch_done(progress)
    }

    fn epoch_done(&mut self, record: &EpochRecord) -> ControlFlow<()> {
        self.0.epoch_done(record)
    }

    fn is_stopped(&self) -> bool {
        self.0.is_stopped()
    }
}

impl<B: AutodiffBackend> ClassifierObserver<B> for Blind<'_> {
    fn classifier_trained(&mut self, _classifier: &Classifier<B>, _record: &EpochRecord) {}
}
