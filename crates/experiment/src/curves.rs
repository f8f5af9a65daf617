use std::path::{Path, PathBuf};

use burn::tensor::backend::AutodiffBackend;
use patchdoor_data::{ImageSet, stratified_subset, stream};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use patchdoor_plan::ExperimentConfig;
use patchdoor_record::{CURVES, CurvePoint, RecordError};
use patchdoor_train::EpochRecord;

use crate::attack::Attack;
use crate::epoch_lines::keep_line;
use crate::exam::Exam;

/// Measures the backdoored classifier on a slice of the test images after epochs of its training.
///
/// For display alone: nothing is chosen by what it sees. It predicts with weights that it cannot change and draws from no
/// stream of the training, so that weights are the same bits with it and without it.
pub(crate) struct EpochCurves<'a, B: AutodiffBackend> {
    config: &'a ExperimentConfig,
    exam: Exam<'a>,
    path: PathBuf,
    device: &'a B::Device,
}

/// The test images that the curves are measured on, the same for every seed; `None` if the experiment wants no curves.
pub(crate) fn curve_images(config: &ExperimentConfig, test: &ImageSet) -> Option<ImageSet> {
    let curves = &config.curves;
    let count = curves.images.min(test.len());
    let chosen = || stratified_subset(test, count, &mut stream(0, "curve-images"));
    (curves.looks(config.training.epochs) > 0).then(|| test.subset(&chosen()))
}

impl<'a, B: TrainingBackend> EpochCurves<'a, B> {
    /// Triggers the images of [`curve_images`]; `folder` is the seed's.
    pub(crate) fn new(
        config: &'a ExperimentConfig,
        attack: &'a Attack<'a>,
        images: &'a ImageSet,
        folder: &Path,
        device: &'a B::Device,
    ) -> Self {
        Self { config, exam: Exam::new(attack, images), path: folder.join(CURVES), device }
    }

    /// Measures and keeps what it sees, if this epoch is to be looked at.
    pub(crate) fn keep(
        &self,
        classifier: &Classifier<B::InnerBackend>,
        record: &EpochRecord,
    ) -> Result<(), RecordError> {
        if !self.config.curves.looks_after(record.epoch, self.config.training.epochs) {
            return Ok(());
        }
        let standing = self.exam.standing(classifier, self.device);
        let point = CurvePoint {
            epoch: record.epoch,
            images: self.exam.test.len(),
            clean_accuracy: standing.clean_accuracy,
            asr: standing.asr,
            robust_accuracy: standing.robust_accuracy,
        };
        keep_line(&self.path, point, |point| point.epoch)
    }
}
