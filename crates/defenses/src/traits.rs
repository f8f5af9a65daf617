use burn::tensor::backend::AutodiffBackend;
use patchdoor_data::ImageSet;
use patchdoor_kernels::TrainingBackend;
use patchdoor_metrics::TrainingPhase;
use patchdoor_model::Classifier;
use patchdoor_train::EpochRecord;

use crate::{DefenseError, Inputs, InspectionWork, RepairDetails, RepairWork, TrainingWork};

/// Acts on a training set: which of its examples to drop.
pub trait DatasetFilter<B: TrainingBackend> {
    /// Judges every example of a set, images and labels as they are trained on; nothing says which are poisoned. The
    /// classifier was trained on that set.
    ///
    /// # Errors
    /// If the filter cannot run on this set or model.
    fn filter(
        &self,
        set: &ImageSet,
        classifier: Classifier<B::InnerBackend>,
        device: &B::Device,
    ) -> Result<Filtering, DefenseError>;

    /// Whether a classifier is trained anew on what is left.
    fn retrains(&self) -> bool;
}

/// What a filter makes of every example of a training set.
#[derive(Clone, Debug, PartialEq)]
pub struct Filtering {
    /// Higher where an example is more likely poisoned.
    pub scores: Vec<f64>,
    /// Whether it should be dropped.
    pub is_suspect: Vec<bool>,
}

impl Filtering {
    /// Drops none of so many examples.
    pub(crate) fn of_none(examples: usize) -> Self {
        Self { scores: vec![0.0; examples], is_suspect: vec![false; examples] }
    }
}

/// Trains a classifier from scratch on a set that may be poisoned.
pub trait TrainingDefense<B: TrainingBackend> {
    /// Trains the classifier that [`TrainingWork`] describes, from its initial weights.
    ///
    /// # Errors
    /// If a training fails, the defense lacks something it needs, or its observer stops it.
    fn train(&self, work: &mut TrainingWork<'_>, device: &B::Device) -> Result<SafelyTrained<B>, DefenseError>;
}

/// A classifier that a defense trained from scratch.
#[derive(Clone, Debug)]
pub struct SafelyTrained<B: AutodiffBackend> {
    /// The classifier.
    pub classifier: Classifier<B>,
    /// One record per epoch of all its phases, numbered through.
    pub history: Vec<EpochRecord>,
    /// The trainings that it consisted of, in their order.
    pub phases: Vec<TrainingPhase>,
    /// What it made of every example of the set: suspects are those that it kept from the classifier or unlearned.
    pub isolation: Filtering,
}

/// Looks at a model: whether it carries a backdoor.
pub trait ModelInspector<B: TrainingBackend> {
    /// Scores every class and flags those that it takes for targets.
    ///
    /// # Errors
    /// If the inspection cannot run on this model, or is stopped.
    fn inspect(
        &self,
        classifier: Classifier<B>,
        work: &InspectionWork<'_>,
        device: &B::Device,
    ) -> Result<Inspection, DefenseError>;
}

/// What an inspector says of every class.
#[derive(Clone, Debug, PartialEq)]
pub struct Inspection {
    /// Higher where a class is more likely a backdoor's target.
    pub scores: Vec<f64>,
    /// Whether it is taken for one.
    pub is_flagged: Vec<bool>,
}

/// Changes a model so that the backdoor goes and the accuracy stays.
pub trait ModelRepair<B: TrainingBackend> {
    /// Returns the repaired model.
    ///
    /// # Errors
    /// If the repair fails, lacks something it needs, or its observer stops it.
    fn repair(
        &self,
        classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError>;
}

/// Looks at inputs when the model is in use: whether an image carries a trigger.
pub trait InputDetector<B: TrainingBackend> {
    /// Where it flags images if nothing else is said.
    fn threshold(&self) -> DetectionThreshold;

    /// Learns what it needs from the defender's clean images, and returns what scores others. Validation images are left
    /// alone: thresholds come from their scores ([`Calibrated`](crate::Calibrated)).
    ///
    /// # Errors
    /// If it cannot work on this classifier, or lacks something it needs.
    fn prepare<'a>(
        &self,
        classifier: Classifier<B::InnerBackend>,
        clean: &ImageSet,
        seed: u64,
        device: &'a B::Device,
    ) -> Result<Scorer<'a>, DefenseError>;
}

/// Gives one score for each image, higher where a trigger is more likely. An image's score depends on that image alone.
pub type Scorer<'a> = Box<dyn Fn(Inputs<'_>) -> Vec<f64> + 'a>;

/// Where a detector flags images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DetectionThreshold {
    /// Above what this share of the validation images scores more than, in [0, 1].
    FalsePositiveRate(f64),
    /// Above this score.
    Score(f64),
}

/// A model after a repair.
#[derive(Clone, Debug)]
pub struct Repaired<B: AutodiffBackend> {
    /// The repaired classifier.
    pub classifier: Classifier<B>,
    /// One record per epoch of training that the repair took.
    pub history: Vec<EpochRecord>,
    /// What it did besides training.
    pub details: RepairDetails,
    /// Other models on the way, for a repair that is tried at several strengths.
    pub series: Vec<SeriesPoint<B>>,
}

impl<B: AutodiffBackend> Repaired<B> {
    /// A model after training and nothing else.
    pub(crate) fn tuned(classifier: Classifier<B>, history: Vec<EpochRecord>) -> Self {
        Self { classifier, history, details: RepairDetails::default(), series: Vec::new() }
    }
}

/// A model pruned at one of several fractions.
#[derive(Clone, Debug)]
pub struct SeriesPoint<B: AutodiffBackend> {
    /// Share of each expert's filters that was to be pruned.
    pub pruned_fraction: f64,
    /// Filters that were.
    pub pruned_filters: usize,
    /// Filters before the head, pruned or not.
    pub filters: usize,
    /// The classifier without them.
    pub classifier: Classifier<B>,
}
