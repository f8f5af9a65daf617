use burn::module::ParamId;
use burn::optim::GradientsParams;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;

use crate::Batch;
use crate::prediction::classes_of;

/// What a training descends on instead of the mean cross-entropy of its batches.
///
/// It must be a function of classifier and batch, of what it was made from, and of its [`state`](Self::state): a training
/// that is resumed makes it anew and gives it the state back.
pub trait Objective<B: TrainingBackend> {
    /// Changes a batch before the pass over it, and learns where it stands; the batch as it is, unless it says otherwise.
    /// Hits are counted against the labels that come back, which are as many as went in.
    fn rewrite(&mut self, batch: Batch<B>, _at: &BatchPosition<'_>) -> Batch<B> {
        batch
    }

    /// Differentiates it at a batch, in [`patchdoor_kernels::differentiate`], and nothing else; what the gradients of the
    /// returned pass say is what the optimiser follows. Running statistics are those of the passes through `classifier`
    /// itself; a copy has its own.
    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass;

    /// An epoch begins with this classifier; nothing follows, unless it says otherwise. A training is only ever resumed here.
    fn epoch_started(&mut self, _classifier: &Classifier<B>) {}

    /// What becomes of the classifier after the optimiser's step; nothing, unless it says otherwise.
    fn stepped(&mut self, classifier: Classifier<B>) -> Classifier<B> {
        classifier
    }

    /// What a checkpoint must say of it, such as the weights and the optimiser of a second network that learns beside the
    /// classifier; `None`, unless it says otherwise, for one that learns nothing itself.
    ///
    /// # Errors
    /// If it cannot be written down, and why.
    fn state(&self) -> Result<Option<ObjectiveState>, String> {
        Ok(None)
    }

    /// Takes back what [`state`](Self::state) said after the last epoch that is done; not called where it says nothing.
    ///
    /// # Errors
    /// If these bytes are not its own, and why.
    fn restore(&mut self, _contents: Vec<u8>) -> Result<(), String> {
        Ok(())
    }
}

/// Which batch of a training comes next.
#[derive(Clone, Copy, Debug)]
pub struct BatchPosition<'a> {
    /// Epoch, counted from 0.
    pub epoch: usize,
    /// Epochs in all.
    pub epochs: usize,
    /// Step within the epoch, counted from 0.
    pub step: usize,
    /// The training images in it, by their numbers in the training set.
    pub indices: &'a [usize],
}

/// What a checkpoint keeps of an objective.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectiveState {
    /// What it was made from, in a form that two objectives share only if they are the same; a checkpoint resumes no other.
    pub identity: String,
    /// What it has learned so far.
    pub contents: Vec<u8>,
}

/// What a pass over a batch comes to.
#[derive(Debug)]
pub struct BatchPass {
    /// Mean loss of the images, in nats where it is a cross-entropy.
    pub loss: f64,
    /// The class with the largest logit of each image, `[batch]`.
    pub predicted: Vec<u8>,
    /// Of the parameters that learn; `None` if the loss is no finite number, which ends the training.
    pub gradients: Option<GradientsParams>,
}

impl BatchPass {
    /// Ends a pass: backward from the loss to the parameters of the classifier. To be called in
    /// [`patchdoor_kernels::differentiate`].
    ///
    /// # Shapes
    /// - logits: `[batch, class]`
    /// - loss: `[1]`
    pub fn backward<B: AutodiffBackend>(
        classifier: &Classifier<B>,
        logits: &Tensor<B, 2>,
        loss: &Tensor<B, 1>,
    ) -> Self {
        Self::of(logits, loss, |loss| GradientsParams::from_grads(loss.backward(), classifier))
    }

    /// Like [`backward`](Self::backward), to these parameters of the classifier alone: the others stay as they are in this step.
    pub fn backward_to<B: AutodiffBackend>(
        classifier: &Classifier<B>,
        parameters: &[ParamId],
        logits: &Tensor<B, 2>,
        loss: &Tensor<B, 1>,
    ) -> Self {
        Self::of(logits, loss, |loss| GradientsParams::from_params(&mut loss.backward(), classifier, parameters))
    }

    fn of<B: AutodiffBackend>(
        logits: &Tensor<B, 2>,
        loss: &Tensor<B, 1>,
        gradients: impl FnOnce(&Tensor<B, 1>) -> GradientsParams,
    ) -> Self {
        let predicted = classes_of(logits.clone().inner());
        let value = loss.clone().into_data().iter::<f64>().sum::<f64>();
        Self { loss: value, predicted, gradients: value.is_finite().then(|| gradients(loss)) }
    }
}

/// Mean cross-entropy in nats.
///
/// # Shapes
/// - logits: `[batch, class]`
/// - labels: `[batch]`
pub fn cross_entropy<B: Backend>(logits: Tensor<B, 2>, labels: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    log_softmax(logits, 1).gather(1, labels.unsqueeze_dim(1)).mean().neg()
}

/// The Kullback-Leibler divergence of softmax(to) from softmax(from) over the last dimension, in nats, a mean over all others.
///
/// # Shapes
/// - from and to: the same, such as `[batch, class]` or `[batch, expert, patch]`
pub fn divergence<B: Backend, const D: usize>(from: Tensor<B, D>, to: Tensor<B, D>) -> Tensor<B, 1> {
    let distributions: usize = from.dims()[..D - 1].iter().product();
    let difference = log_softmax(from.clone(), D - 1) - log_softmax(to, D - 1);
    (softmax(from, D - 1) * difference).sum().div_scalar(distributions as f64)
}
