use burn::tensor::backend::AutodiffBackend;
use patchdoor_data::ImageSet;
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use patchdoor_train::EpochRecord;

use crate::{DefenderData, DefenseError, RepairDetails, RepairWork};

/// Acts on a training set: which of its examples to drop.
pub trait DatasetFilter<B: TrainingBackend> {
    /// Returns one decision per example, true where it should be dropped.
    ///
    /// # Errors
    /// If the filter cannot run on this set or model.
    fn suspects(
        &self,
        set: &ImageSet,
        classifier: &Classifier<B>,
        device: &B::Device,
    ) -> Result<Vec<bool>, DefenseError>;
}

/// Looks at a model: whether it carries a backdoor.
pub trait ModelInspector<B: TrainingBackend> {
    /// Returns one score per class, higher where the class is more likely to be a backdoor's target.
    ///
    /// # Errors
    /// If the inspection cannot run on this model.
    fn inspect(
        &self,
        classifier: &Classifier<B>,
        data: &DefenderData<'_>,
        device: &B::Device,
    ) -> Result<Vec<f64>, DefenseError>;
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
    /// Returns one score per image, higher where a trigger is more likely.
    ///
    /// # Errors
    /// If the detector cannot run on these images or this model.
    fn scores(
        &self,
        images: &ImageSet,
        classifier: &Classifier<B>,
        data: &DefenderData<'_>,
        device: &B::Device,
    ) -> Result<Vec<f64>, DefenseError>;
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
