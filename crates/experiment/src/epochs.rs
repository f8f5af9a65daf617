use burn::module::AutodiffModule;
use burn::tensor::backend::AutodiffBackend;
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use patchdoor_record::RecordError;
use patchdoor_train::EpochRecord;

use crate::curves::EpochCurves;
use crate::routing::EpochRouting;

/// What is looked at in the backdoored classifier after epochs of its training, on test images. Nothing is chosen by it.
pub(crate) struct EpochLooks<'a, B: AutodiffBackend> {
    pub(crate) routing: Option<EpochRouting<'a, B>>,
    pub(crate) curves: Option<EpochCurves<'a, B>>,
    /// Why something could not be kept.
    pub(crate) error: Option<RecordError>,
}

impl<B: TrainingBackend> EpochLooks<'_, B> {
    /// Looks, and keeps what there is to see.
    pub(crate) fn look(&mut self, classifier: &Classifier<B>, record: &EpochRecord) {
        let classifier = classifier.valid();
        let routing = self.routing.as_ref().map_or(Ok(()), |routing| routing.keep(&classifier, record));
        let curves = self.curves.as_ref().map_or(Ok(()), |curves| curves.keep(&classifier, record));
        if let Err(error) = routing.and(curves) {
            self.error.get_or_insert(error);
        }
    }
}
