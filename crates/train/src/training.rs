use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use burn::module::AutodiffModule;
use burn::optim::GradientsParams;
use burn::tensor::activation::log_softmax;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor};
use patchdoor_data::{AugmentationConfig, ImageSet};
use patchdoor_kernels::{TrainingBackend, differentiate};
use patchdoor_metrics::accuracy;
use patchdoor_model::Classifier;

use crate::batches::{Augmentation, Batch, BatchAssembler, epoch_order};
use crate::checkpoint::{CheckpointDirectory, Identity, Resumed};
use crate::observer::Blind;
use crate::optimizer::Optimizer;
use crate::prediction::{classes_of, predict};
use crate::{
    BatchNormStatistics, BatchProgress, ClassifierObserver, EpochRecord, Schedule, TrainError, Trainable,
    TrainingConfig, TrainingObserver,
};

/// What a classifier learns from.
#[derive(Clone, Copy, Debug)]
pub struct TrainingData<'a> {
    /// Images and labels to fit, poisoned or not: training cannot tell.
    pub training: &'a ImageSet,
    /// Images to look at after every epoch, held out of the training data.
    pub validation: Option<&'a ImageSet>,
    /// Random changes to every training image, drawn anew each epoch.
    pub augmentation: &'a AugmentationConfig,
}

/// A classifier after its last epoch.
#[derive(Clone, Debug)]
pub struct Trained<B: AutodiffBackend> {
    /// The classifier, with the statistics that inference uses.
    pub classifier: Classifier<B>,
    /// One record per epoch.
    pub history: Vec<EpochRecord>,
}

/// How a training ended.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "one value per training")]
pub enum Outcome<B: AutodiffBackend> {
    /// After its last epoch.
    Finished(Trained<B>),
    /// Stopped by its observer; the same call resumes from the checkpoint.
    Interrupted {
        /// Epochs done and saved.
        epochs: usize,
    },
}

/// Trains a classifier by cross-entropy.
///
/// On the CPU the result is a function of classifier, data, configuration and seed, bit for bit and
/// for any number of threads. With a checkpoint folder, every finished epoch is saved there, and a
/// call with the same arguments goes on after the last one and ends with the same weights as a call
/// that was never stopped. A damaged checkpoint is refused: training goes on after the epoch before,
/// or begins again, and ends with the same weights too.
///
/// Several threads may train at once and end with the weights that they would have alone: their steps take turns
/// ([`differentiate`]), and each uses all cores. Give each training a thread of its own, not a task of a rayon pool.
///
/// # Errors
/// If the configuration is out of range, there is nothing to train on, the loss becomes NaN or
/// infinite, or a checkpoint cannot be written, read or belongs to another training.
pub fn train<B: TrainingBackend>(
    classifier: Classifier<B>,
    data: &TrainingData<'_>,
    config: &TrainingConfig,
    seed: u64,
    checkpoints: Option<&Path>,
    observer: &mut dyn TrainingObserver,
    device: &B::Device,
) -> Result<Outcome<B>, TrainError> {
    train_part(classifier, data, config, &Trainable::default(), seed, checkpoints, &mut Blind(observer), device)
}

/// Like [`train`], and shows the observer the classifier after every epoch.
///
/// # Errors
/// Those of [`train`].
pub fn train_observed<B: TrainingBackend>(
    classifier: Classifier<B>,
    data: &TrainingData<'_>,
    config: &TrainingConfig,
    seed: u64,
    checkpoints: Option<&Path>,
    observer: &mut dyn ClassifierObserver<B>,
    device: &B::Device,
) -> Result<Outcome<B>, TrainError> {
    train_part(classifier, data, config, &Trainable::default(), seed, checkpoints, observer, device)
}

/// Like [`train`], for a part of the classifier only, or with filters that stay away.
///
/// A checkpoint does not record what was trainable; resume it with the same.
///
/// # Errors
/// Those of [`train`].
#[allow(clippy::too_many_arguments, reason = "those of an ordinary training, and what of the classifier it may change")]
pub fn train_restricted<B: TrainingBackend>(
    classifier: Classifier<B>,
    data: &TrainingData<'_>,
    config: &TrainingConfig,
    trainable: &Trainable,
    seed: u64,
    checkpoints: Option<&Path>,
    observer: &mut dyn TrainingObserver,
    device: &B::Device,
) -> Result<Outcome<B>, TrainError> {
    train_part(classifier, data, config, trainable, seed, checkpoints, &mut Blind(observer), device)
}

#[allow(clippy::too_many_arguments, reason = "what all kinds of training have, together")]
fn train_part<B: TrainingBackend>(
    classifier: Classifier<B>,
    data: &TrainingData<'_>,
    config: &TrainingConfig,
    trainable: &Trainable,
    seed: u64,
    checkpoints: Option<&Path>,
    observer: &mut dyn ClassifierObserver<B>,
    device: &B::Device,
) -> Result<Outcome<B>, TrainError> {
    if let Some(problem) = config.validate().into_iter().next() {
        return Err(problem);
    }
    if data.training.is_empty() {
        return Err(TrainError::Empty);
    }
    let checkpoints = checkpoints
        .map(|path| {
            let identity = Identity { training: config.clone(), seed, data: data.training.fingerprint() };
            CheckpointDirectory::open(path, identity)
        })
        .transpose()?;
    let momentum = classifier.batch_norm_momentum();
    let classifier = trainable.apply(classifier);
    let mut state = Resumed { classifier, optimizer: Optimizer::new(&config.optimizer), history: Vec::new() };
    if let Some(directory) = &checkpoints {
        let fresh = || Optimizer::new(&config.optimizer);
        let mut refused = false;
        let resumed = directory.resume(&state.classifier, fresh, device, |path, reason| {
            refused = true;
            observer.checkpoint_refused(path, reason);
        })?;
        if resumed.is_some() || refused {
            state = resumed.unwrap_or(state);
            observer.resumed(&state.history);
        }
    }
    let images = BatchAssembler::<B>::new(data.training, device);
    while state.history.len() < config.epochs {
        let epoch = run_epoch(state, &images, data, config, trainable, seed, observer, device)?;
        let Some((mut next, record)) = epoch else {
            // Stopped within the epoch: what counts is on the disk.
            let epochs = match &checkpoints {
                Some(directory) => directory.epochs()?,
                None => 0,
            };
            return Ok(Outcome::Interrupted { epochs });
        };
        observer.classifier_trained(&next.classifier, &record);
        next.history.push(record);
        state = next;
        if let Some(directory) = &checkpoints {
            directory.save(&state.classifier, &state.optimizer, &state.history)?;
        }
        let stopped = state.history.last().is_some_and(|record| observer.epoch_done(record).is_break());
        if stopped && state.history.len() < config.epochs {
            return Ok(Outcome::Interrupted { epochs: state.history.len() });
        }
    }
    let classifier = match config.batch_norm_statistics {
        BatchNormStatistics::Running => state.classifier,
        BatchNormStatistics::Recomputed => {
            recompute_statistics(state.classifier, data.training, config.batch_size, device)
        }
    };
    let classifier = if trainable.parts.is_some() { classifier.thaw(momentum) } else { classifier };
    Ok(Outcome::Finished(Trained { classifier, history: state.history }))
}

/// One pass over the training images; `None` if the observer stopped it.
#[allow(
    clippy::too_many_arguments,
    reason = "what all kinds of training have, and the images where they are taken from"
)]
fn run_epoch<B: TrainingBackend>(
    state: Resumed<B>,
    assembler: &BatchAssembler<'_, B>,
    data: &TrainingData<'_>,
    config: &TrainingConfig,
    trainable: &Trainable,
    seed: u64,
    observer: &mut dyn ClassifierObserver<B>,
    device: &B::Device,
) -> Result<Option<(Resumed<B>, EpochRecord)>, TrainError> {
    let Resumed { mut classifier, mut optimizer, history } = state;
    let epoch = history.len();
    let images = data.training.len();
    let order = epoch_order(images, seed, epoch);
    let steps = images.div_ceil(config.batch_size);
    let schedule = Schedule::new(config, steps);
    let mut augmentation = Augmentation::of_epoch(data.augmentation, seed, epoch);
    let mut scores = Scores::default();
    let mut learning_rate = 0.0;
    let start = Instant::now();
    for (step, indices) in order.chunks(config.batch_size).enumerate() {
        let batch = assembler.assemble(indices, Some(&mut augmentation), device);
        let Pass { score, gradients } = forward_and_backward(&classifier, batch);
        let loss = scores.add(score, indices.iter().map(|&index| data.training.label(index)));
        let Some(gradients) = gradients else {
            return Err(TrainError::Diverged { loss: loss.unwrap_or(f64::NAN), epoch, step });
        };
        learning_rate = schedule.rate(epoch * steps + step);
        classifier = optimizer.step(learning_rate, classifier, gradients);
        if let Some(pruning) = &trainable.pruned {
            classifier = classifier.prune(pruning);
        }
        let progress = BatchProgress { epoch, epochs: config.epochs, step, steps, images: indices.len(), loss };
        if let ControlFlow::Break(()) = observer.batch_done(&progress) {
            return Ok(None);
        }
    }
    let (loss_sum, right) = scores.totals();
    let seconds = start.elapsed().as_secs_f64();
    if !loss_sum.is_finite() || !classifier.is_finite() {
        return Err(TrainError::Diverged { loss: f64::NAN, epoch, step: steps - 1 });
    }
    let validation_accuracy = data.validation.and_then(|set| {
        let predicted = predict(&classifier.valid(), set, config.batch_size, device);
        accuracy(&predicted, set.labels())
    });
    let record = EpochRecord {
        epoch,
        learning_rate,
        loss: loss_sum / images as f64,
        training_accuracy: right / images as f64,
        validation_accuracy,
        seconds,
        images_per_second: images as f64 / seconds.max(f64::MIN_POSITIVE),
    };
    tracing::debug!(epoch, loss = record.loss, seconds, "epoch done");
    Ok(Some((Resumed { classifier, optimizer, history }, record)))
}

/// What a pass over a batch comes to.
struct Pass<B: AutodiffBackend> {
    score: Score<B>,
    /// `None` if the loss is known to be no finite number.
    gradients: Option<GradientsParams>,
}

/// How a batch did.
enum Score<B: AutodiffBackend> {
    /// Read back.
    Host {
        /// Mean cross-entropy in nats.
        loss: f64,
        /// `[batch]`
        predicted: Vec<u8>,
    },
    /// Sum of cross-entropies in nats and number of hits, `[2]`, where they were computed.
    Device(Tensor<B::InnerBackend, 1>),
}

/// How the batches of an epoch did together.
struct Scores<B: AutodiffBackend> {
    loss_sum: f64,
    hits: usize,
    on_device: Option<Tensor<B::InnerBackend, 1>>,
}

impl<B: AutodiffBackend> Default for Scores<B> {
    fn default() -> Self {
        Self { loss_sum: 0.0, hits: 0, on_device: None }
    }
}

impl<B: AutodiffBackend> Scores<B> {
    /// Adds a batch; gives its mean loss if that is known.
    fn add(&mut self, score: Score<B>, labels: impl ExactSizeIterator<Item = u8>) -> Option<f64> {
        match score {
            Score::Host { loss, predicted } => {
                self.loss_sum += loss * labels.len() as f64;
                self.hits += labels.zip(predicted).filter(|(label, class)| label == class).count();
                Some(loss)
            }
            Score::Device(totals) => {
                self.on_device = Some(match self.on_device.take() {
                    Some(sums) => sums + totals,
                    None => totals,
                });
                None
            }
        }
    }

    /// Sum of cross-entropies in nats, and number of hits.
    fn totals(self) -> (f64, f64) {
        match self.on_device {
            None => (self.loss_sum, self.hits as f64),
            Some(sums) => {
                let sums = sums.into_data().iter::<f64>().collect::<Vec<_>>();
                (sums[0], sums[1])
            }
        }
    }
}

/// Differentiates the loss of a batch; the graph begins and ends here.
fn forward_and_backward<B: TrainingBackend>(classifier: &Classifier<B>, batch: Batch<B>) -> Pass<B> {
    let Batch { images, labels } = batch;
    differentiate(|| {
        let logits = classifier.forward(images);
        if B::ON_DEVICE {
            let loss = patchdoor_kernels::cross_entropy(logits, labels);
            let gradients = GradientsParams::from_grads(loss.mean.backward(), classifier);
            return Pass { score: Score::Device(loss.totals.inner()), gradients: Some(gradients) };
        }
        let predicted = classes_of(logits.clone().inner());
        let loss = cross_entropy(logits, labels);
        let value = loss.clone().into_data().iter::<f64>().sum::<f64>();
        let gradients = value.is_finite().then(|| GradientsParams::from_grads(loss.backward(), classifier));
        Pass { score: Score::Host { loss: value, predicted }, gradients }
    })
}

/// Mean cross-entropy in nats.
///
/// # Shapes
/// - logits: `[batch, class]`
/// - labels: `[batch]`
pub(crate) fn cross_entropy<B: Backend>(logits: Tensor<B, 2>, labels: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    log_softmax(logits, 1).gather(1, labels.unsqueeze_dim(1)).mean().neg()
}

/// Replaces the running statistics of every batch normalization by their plain average over one pass
/// through the images, in their stored order and without augmentation.
fn recompute_statistics<B: TrainingBackend>(
    mut classifier: Classifier<B>,
    images: &ImageSet,
    batch_size: usize,
    device: &B::Device,
) -> Classifier<B> {
    if classifier.batch_norm_momentum() == 0.0 {
        // All statistics are frozen.
        return classifier;
    }
    // Autodiff would keep every batch's maps, for a backward pass that never comes.
    let mut passes = classifier.valid();
    passes.set_collects_statistics(true);
    let indices: Vec<usize> = (0..images.len()).collect();
    let assembler = BatchAssembler::<B::InnerBackend>::new(images, device);
    // A smaller last batch would count as much as a full one; it is left out unless it is the only one.
    let full = indices.chunks(batch_size).filter(|chunk| chunk.len() == batch_size || images.len() < batch_size);
    for (batch, chunk) in full.enumerate() {
        passes.set_batch_norm_momentum(1.0 / (batch + 1) as f64);
        passes.forward(assembler.assemble(chunk, None, device).images);
    }
    classifier.take_statistics_of(&passes);
    classifier
}
