use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use burn::module::AutodiffModule;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use patchdoor_data::{AugmentationConfig, ImageSet};
use patchdoor_kernels::{TrainingBackend, differentiate};
use patchdoor_model::Classifier;

use crate::adversarial::Adversarial;
use crate::batches::{Augmentation, BatchAssembler, epoch_order};
use crate::checkpoint::{CheckpointDirectory, Identity, Resumed};
use crate::diversity::Diverse;
use crate::observer::Blind;
use crate::optimizer::Optimizer;
use crate::prediction::{accuracy_on, classes_of};
use crate::{
    Batch, BatchNormStatistics, BatchPass, BatchPosition, BatchProgress, ClassifierObserver, EpochRecord, Objective,
    Schedule, TrainError, Trainable, TrainingConfig, TrainingObserver, cross_entropy,
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
/// If the configuration is out of range, there is nothing to train on or nothing that learns, the loss becomes NaN or
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
    train_restricted_observed(
        classifier,
        data,
        config,
        &Trainable::default(),
        seed,
        checkpoints,
        &mut Blind(observer),
        device,
    )
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
    train_restricted_observed(classifier, data, config, &Trainable::default(), seed, checkpoints, observer, device)
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
    train_restricted_observed(classifier, data, config, trainable, seed, checkpoints, &mut Blind(observer), device)
}

/// One of the trainings of a group.
pub struct Member<'a, B: AutodiffBackend> {
    /// What is trained.
    pub classifier: Classifier<B>,
    /// What it learns from.
    pub data: TrainingData<'a>,
    /// Seed of its orders and changes to images.
    pub seed: u64,
    /// Where its finished epochs are saved, and it goes on from.
    pub checkpoints: Option<&'a Path>,
    /// Follows it.
    pub observer: &'a mut dyn ClassifierObserver<B>,
}

/// Trains several classifiers of one structure step by step together, each as [`train_observed`] would alone.
///
/// An operation works on all members' maps side by side, so that networks too small to keep a device busy share its
/// launches; every member has its own images, order, statistics, loss and optimiser. Weights differ from those of a
/// training alone by the order of sums only. Checkpoints are each member's own: a group goes on from those of single trainings and
/// the other way round; members that are behind train first.
///
/// # Errors
/// Those of [`train`], of any member; and if structures or numbers of images differ.
pub fn train_group<B: TrainingBackend>(
    members: Vec<Member<'_, B>>,
    config: &TrainingConfig,
    device: &B::Device,
) -> Result<Vec<Outcome<B>>, TrainError> {
    if config.own_objective().is_some() {
        return Err(TrainError::Group("no objective but the cross-entropy"));
    }
    train_members(members, config, &Trainable::default(), None, device)
}

/// Like [`train_restricted`], and shows the observer the classifier after every epoch.
///
/// # Errors
/// Those of [`train`].
#[allow(clippy::too_many_arguments, reason = "what all kinds of training have, together")]
pub fn train_restricted_observed<B: TrainingBackend>(
    classifier: Classifier<B>,
    data: &TrainingData<'_>,
    config: &TrainingConfig,
    trainable: &Trainable,
    seed: u64,
    checkpoints: Option<&Path>,
    observer: &mut dyn ClassifierObserver<B>,
    device: &B::Device,
) -> Result<Outcome<B>, TrainError> {
    let member = Member { classifier, data: *data, seed, checkpoints, observer };
    train_member(member, config, trainable, None, device)
}

/// Like [`train_restricted_observed`], on an objective of one's own if there is one.
///
/// With an objective, the loss and the predictions of every step are read back from a device. What the objective learns is part
/// of the checkpoint. The running statistics of [`BatchNormStatistics::Recomputed`] are those of the training images as they
/// are given here, whatever the objective makes of a batch.
///
/// # Errors
/// Those of [`train`].
pub fn train_member<B: TrainingBackend>(
    member: Member<'_, B>,
    config: &TrainingConfig,
    trainable: &Trainable,
    objective: Option<&mut dyn Objective<B>>,
    device: &B::Device,
) -> Result<Outcome<B>, TrainError> {
    let refused =
        |field, allowed: &str| Err(TrainError::InvalidField { field, found: "given".into(), allowed: allowed.into() });
    let mut outcomes = match (config.own_objective(), objective) {
        (Some(field), Some(_)) => {
            return refused(field, "none, where a training descends on an objective of its own");
        }
        (None, objective) => train_members(vec![member], config, trainable, objective, device)?,
        (Some(_), None) => {
            let seed = member.seed;
            let mut adversarial = config.adversarial.as_ref().map(|config| Adversarial { config, seed });
            let mut diverse = config.diversity.as_ref().map(Diverse);
            let has_pairs = member.classifier.config().network().expert_choice().is_some_and(|own| own.experts() > 1);
            if diverse.is_some() && !has_pairs {
                return refused("diversity", "none, for a network without two experts that choose patches");
            }
            let objective = match (&mut adversarial, &mut diverse) {
                (Some(adversarial), _) => Some(adversarial as &mut dyn Objective<B>),
                (None, diverse) => diverse.as_mut().map(|diverse| diverse as &mut dyn Objective<B>),
            };
            train_members(vec![member], config, trainable, objective, device)?
        }
    };
    Ok(outcomes.remove(0))
}

/// A training of a group on its way.
struct Running<'a, B: TrainingBackend> {
    /// Its place in the group.
    place: usize,
    state: Resumed<B>,
    data: TrainingData<'a>,
    seed: u64,
    images: BatchAssembler<'a, B>,
    checkpoints: Option<CheckpointDirectory>,
    observer: &'a mut dyn ClassifierObserver<B>,
}

impl<'a, B: TrainingBackend> Running<'a, B> {
    /// Begins a training, or goes on with it.
    fn new(
        place: usize,
        member: Member<'a, B>,
        config: &TrainingConfig,
        trainable: &Trainable,
        objective: Option<&mut dyn Objective<B>>,
        device: &B::Device,
    ) -> Result<Self, TrainError> {
        let Member { classifier, data, seed, checkpoints, observer } = member;
        if data.training.is_empty() {
            return Err(TrainError::Empty);
        }
        let learned = match &objective {
            Some(objective) => objective.state().map_err(TrainError::Objective)?,
            None => None,
        };
        let checkpoints = checkpoints
            .map(|path| {
                let data = data.training.fingerprint();
                let objective = learned.map(|state| state.identity);
                CheckpointDirectory::open(path, Identity { training: config.clone(), seed, data, objective })
            })
            .transpose()?;
        let classifier = trainable.apply(classifier);
        let optimizer = Optimizer::new(&config.optimizer);
        let mut state = Resumed { classifier, optimizer, history: Vec::new(), objective: None };
        if let Some(directory) = &checkpoints {
            let fresh = || Optimizer::new(&config.optimizer);
            let mut refused = false;
            let resumed = directory.resume(&state.classifier, fresh, device, |path, reason| {
                refused = true;
                observer.checkpoint_refused(path, reason);
            })?;
            if resumed.is_some() || refused {
                state = resumed.unwrap_or(state);
                if let Some((objective, learned)) = objective.zip(state.objective.take()) {
                    objective.restore(learned).map_err(TrainError::Objective)?;
                }
                observer.resumed(&state.history);
            }
        }
        let images = BatchAssembler::new(data.training, device);
        Ok(Self { place, state, data, seed, images, checkpoints, observer })
    }

    fn epochs(&self) -> usize {
        self.state.history.len()
    }

    /// Takes over what an epoch led to; whether the observer stops here.
    fn epoch_done(
        &mut self,
        record: EpochRecord,
        objective: Option<&mut dyn Objective<B>>,
    ) -> Result<bool, TrainError> {
        self.observer.classifier_trained(&self.state.classifier, &record);
        self.state.history.push(record);
        if let Some(directory) = &self.checkpoints {
            let learned = match objective {
                Some(objective) => objective.state().map_err(TrainError::Objective)?,
                None => None,
            };
            let learned = learned.map(|state| state.contents);
            directory.save(&self.state.classifier, &self.state.optimizer, &self.state.history, learned)?;
        }
        Ok(self.state.history.last().is_some_and(|record| self.observer.epoch_done(record).is_break()))
    }

    /// Epochs that a later call does not repeat.
    fn epochs_kept(&self) -> Result<usize, TrainError> {
        match &self.checkpoints {
            Some(directory) => directory.epochs(),
            None => Ok(0),
        }
    }
}

fn train_members<B: TrainingBackend>(
    members: Vec<Member<'_, B>>,
    config: &TrainingConfig,
    trainable: &Trainable,
    mut objective: Option<&mut dyn Objective<B>>,
    device: &B::Device,
) -> Result<Vec<Outcome<B>>, TrainError> {
    if let Some(problem) = config.validate().into_iter().next() {
        return Err(problem);
    }
    if !members.iter().all(|member| trainable.leaves_something_to(&member.classifier)) {
        return Err(TrainError::NothingLearns);
    }
    let momentums: Vec<f64> = members.iter().map(|member| member.classifier.batch_norm_momentum()).collect();
    check_alike(&members)?;
    let members = members.into_iter().enumerate();
    let members =
        members.map(|(place, member)| Running::new(place, member, config, trainable, again(&mut objective), device));
    let mut members = members.collect::<Result<Vec<_>, _>>()?;
    while let Some(epoch) = members.iter().map(Running::epochs).min().filter(|&epoch| epoch < config.epochs) {
        let (behind, mut all): (Vec<_>, Vec<_>) = members.into_iter().partition(|member| member.epochs() == epoch);
        let (trained, end) = run_epoch(behind, epoch, config, trainable, again(&mut objective), device)?;
        all.extend(trained);
        all.sort_unstable_by_key(|member| member.place);
        members = all;
        let epochs = match end {
            EpochEnd::Cut => members.iter().map(Running::epochs_kept).collect::<Result<Vec<_>, _>>()?,
            EpochEnd::Stopped if epoch + 1 < config.epochs => members.iter().map(Running::epochs).collect(),
            EpochEnd::Stopped | EpochEnd::Done => continue,
        };
        return Ok(epochs.into_iter().map(|epochs| Outcome::Interrupted { epochs }).collect());
    }
    let finished = members.into_iter().zip(momentums).map(|(member, momentum)| {
        let classifier = match config.batch_norm_statistics {
            BatchNormStatistics::Running => member.state.classifier,
            BatchNormStatistics::Recomputed => {
                recompute_statistics(member.state.classifier, member.data.training, config.batch_size, device)
            }
        };
        let classifier = if trainable.parts.is_some() { classifier.thaw(momentum) } else { classifier };
        Outcome::Finished(Trained { classifier, history: member.state.history })
    });
    Ok(finished.collect())
}

/// Lends an objective once more.
fn again<'a, B: TrainingBackend>(
    objective: &'a mut Option<&mut dyn Objective<B>>,
) -> Option<&'a mut (dyn Objective<B> + 'a)> {
    match objective {
        Some(objective) => Some(&mut **objective),
        None => None,
    }
}

/// Refuses members that cannot go step by step together.
fn check_alike<B: AutodiffBackend>(members: &[Member<'_, B>]) -> Result<(), TrainError> {
    let Some(first) = members.first() else {
        return Ok(());
    };
    let structure = |member: &Member<'_, B>| member.classifier.config().network().structure();
    let images = |member: &Member<'_, B>| (member.data.training.len(), member.data.training.shape());
    if members.iter().any(|member| structure(member) != structure(first)) {
        return Err(TrainError::Group("classifiers of one structure"));
    }
    if members.iter().any(|member| images(member) != images(first)) {
        return Err(TrainError::Group("as many training images, of one size"));
    }
    Ok(())
}

/// How an epoch ended.
enum EpochEnd {
    /// All of it is done.
    Done,
    /// The same, and an observer stops the training here.
    Stopped,
    /// An observer stopped within it: what counts is on the disk.
    Cut,
}

/// What a member of a group needs within an epoch.
struct Course<'a, B: TrainingBackend> {
    member: Running<'a, B>,
    order: Vec<usize>,
    augmentation: Augmentation<'a>,
    scores: Scores<B>,
}

/// One pass over the training images of members that are equally far.
fn run_epoch<'a, B: TrainingBackend>(
    members: Vec<Running<'a, B>>,
    epoch: usize,
    config: &TrainingConfig,
    trainable: &Trainable,
    mut objective: Option<&mut dyn Objective<B>>,
    device: &B::Device,
) -> Result<(Vec<Running<'a, B>>, EpochEnd), TrainError> {
    let images = members[0].data.training.len();
    let steps = images.div_ceil(config.batch_size);
    let schedule = Schedule::new(config, steps);
    let courses = members.into_iter().map(|member| Course {
        order: epoch_order(images, member.seed, epoch),
        augmentation: Augmentation::of_epoch(member.data.augmentation, member.seed, epoch),
        scores: Scores::default(),
        member,
    });
    let mut courses: Vec<Course<'a, B>> = courses.collect();
    let mut learning_rate = 0.0;
    let start = Instant::now();
    if let Some(objective) = &mut objective {
        for course in &courses {
            objective.epoch_started(&course.member.state.classifier);
        }
    }
    for step in 0..steps {
        let taken = step * config.batch_size..images.min((step + 1) * config.batch_size);
        let batches = courses.iter_mut().map(|course| {
            let indices = &course.order[taken.clone()];
            course.member.images.assemble(indices, Some(&mut course.augmentation), device)
        });
        let batches: Vec<_> = batches.collect();
        let passes = match &mut objective {
            Some(objective) => {
                let own = courses.iter().zip(batches).map(|(course, batch)| {
                    let indices = &course.order[taken.clone()];
                    let position = BatchPosition { epoch, epochs: config.epochs, step, indices };
                    pass_of_objective(&mut **objective, &course.member.state.classifier, batch, &position)
                });
                own.collect()
            }
            None => forward_and_backward(&courses, &taken, batches),
        };
        learning_rate = schedule.rate(epoch * steps + step);
        let mut is_stopped = false;
        let stepped = courses.into_iter().zip(passes).map(|(course, (pass, labels))| {
            let Course { mut member, order, augmentation, mut scores } = course;
            let Pass { score, gradients } = pass;
            let loss = scores.add(score, labels.into_iter());
            let Some(gradients) = gradients else {
                return Err(TrainError::Diverged { loss: loss.unwrap_or(f64::NAN), epoch, step });
            };
            let Resumed { classifier, mut optimizer, history, .. } = member.state;
            let mut classifier = optimizer.step(learning_rate, classifier, gradients);
            if let Some(objective) = &mut objective {
                classifier = objective.stepped(classifier);
            }
            if let Some(pruning) = &trainable.pruned {
                classifier = classifier.prune(pruning);
            }
            member.state = Resumed { classifier, optimizer, history, objective: None };
            let progress = BatchProgress { epoch, epochs: config.epochs, step, steps, images: taken.len(), loss };
            is_stopped |= member.observer.batch_done(&progress).is_break();
            Ok(Course { member, order, augmentation, scores })
        });
        courses = stepped.collect::<Result<_, _>>()?;
        if is_stopped {
            return Ok((courses.into_iter().map(|course| course.member).collect(), EpochEnd::Cut));
        }
    }
    // Reading them waits for the device.
    let ended = courses.into_iter().map(|course| (course.member, course.scores.totals()));
    let ended: Vec<_> = ended.collect();
    let seconds = start.elapsed().as_secs_f64();
    let (mut members, mut end) = (Vec::new(), EpochEnd::Done);
    for (mut member, (loss_sum, right)) in ended {
        let classifier = &member.state.classifier;
        if !loss_sum.is_finite() || !classifier.is_finite() {
            return Err(TrainError::Diverged { loss: f64::NAN, epoch, step: steps - 1 });
        }
        let validation = member.data.validation;
        let validation_accuracy =
            validation.and_then(|set| accuracy_on(&classifier.valid(), set, config.batch_size, device));
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
        if member.epoch_done(record, again(&mut objective))? {
            end = EpochEnd::Stopped;
        }
        members.push(member);
    }
    Ok((members, end))
}

/// What a pass over a batch comes to.
struct Pass<B: AutodiffBackend> {
    score: Score<B>,
    /// `None` if the loss is known to be no finite number.
    gradients: Option<GradientsParams>,
}

impl<B: AutodiffBackend> From<BatchPass> for Pass<B> {
    fn from(BatchPass { loss, predicted, gradients }: BatchPass) -> Self {
        Self { score: Score::Host { loss, predicted }, gradients }
    }
}

/// How a batch did.
enum Score<B: AutodiffBackend> {
    /// Read back.
    Host {
        /// Mean loss.
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

/// A pass by an objective of one's own, and the labels that it is judged by.
fn pass_of_objective<B: TrainingBackend>(
    objective: &mut (dyn Objective<B> + '_),
    classifier: &Classifier<B>,
    batch: Batch<B>,
    position: &BatchPosition<'_>,
) -> (Pass<B>, Vec<u8>) {
    let batch = objective.rewrite(batch, position);
    let labels = batch.labels.to_data().iter::<i64>().map(|label| label as u8).collect();
    (objective.pass(classifier, batch).into(), labels)
}

/// Passes by the cross-entropy over the batches of the images that are `taken` of every course's order, and their labels.
fn forward_and_backward<B: TrainingBackend>(
    courses: &[Course<'_, B>],
    taken: &Range<usize>,
    batches: Vec<Batch<B>>,
) -> Vec<(Pass<B>, Vec<u8>)> {
    let classifiers: Vec<_> = courses.iter().map(|course| &course.member.state.classifier).collect();
    let labels = courses.iter().map(|course| {
        let indices = course.order[taken.clone()].iter();
        indices.map(|&index| course.member.data.training.label(index)).collect()
    });
    differentiated(&classifiers, batches).into_iter().zip(labels).collect()
}

/// Differentiates the losses of the members' batches; the graph begins and ends here.
fn differentiated<B: TrainingBackend>(classifiers: &[&Classifier<B>], batches: Vec<Batch<B>>) -> Vec<Pass<B>> {
    let (images, labels): (Vec<_>, Vec<_>) = batches.into_iter().map(|batch| (batch.images, batch.labels)).unzip();
    differentiate(|| {
        let logits = logits_of(classifiers, images);
        if B::ON_DEVICE {
            let losses =
                logits.into_iter().zip(labels).map(|(logits, labels)| patchdoor_kernels::cross_entropy(logits, labels));
            let losses: Vec<_> = losses.collect();
            let mut gradients = sum(losses.iter().map(|loss| loss.mean.clone())).backward();
            let passes = losses.into_iter().zip(classifiers).map(|(loss, classifier)| Pass {
                score: Score::Device(loss.totals.inner()),
                gradients: Some(GradientsParams::from_module(&mut gradients, *classifier)),
            });
            return passes.collect();
        }
        let predicted: Vec<_> = logits.iter().map(|logits| classes_of(logits.clone().inner())).collect();
        let losses: Vec<_> =
            logits.into_iter().zip(labels).map(|(logits, labels)| cross_entropy(logits, labels)).collect();
        let values: Vec<f64> = losses.iter().map(|loss| loss.clone().into_data().iter::<f64>().sum()).collect();
        let mut gradients = values.iter().all(|value| value.is_finite()).then(|| sum(losses.into_iter()).backward());
        let passes = classifiers.iter().zip(values).zip(predicted).map(|((classifier, loss), predicted)| Pass {
            score: Score::Host { loss, predicted },
            gradients: gradients
                .as_mut()
                .filter(|_| loss.is_finite())
                .map(|gradients| GradientsParams::from_module(gradients, *classifier)),
        });
        passes.collect()
    })
}

/// Every member's logits of its own batch, `[batch, class]`.
fn logits_of<B: TrainingBackend>(classifiers: &[&Classifier<B>], images: Vec<Tensor<B, 4>>) -> Vec<Tensor<B, 2>> {
    let mut images = images;
    if let [classifier] = classifiers {
        return vec![classifier.forward(images.remove(0))];
    }
    let logits = Classifier::forward_members(classifiers, Tensor::cat(images, 3));
    let [batch, _, classes] = logits.dims();
    let of = |member| logits.clone().narrow(1, member, 1).reshape([batch, classes]);
    (0..classifiers.len()).map(of).collect()
}

fn sum<B: Backend>(losses: impl Iterator<Item = Tensor<B, 1>>) -> Tensor<B, 1> {
    losses.reduce(|sum, loss| sum + loss).expect("a group has members")
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
