use burn::module::AutodiffModule;
use patchdoor_data::{ImageSet, PoisoningConfig, trigger_test_images};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use patchdoor_train::{PREDICTION_BATCH, predict};

use crate::controlled::attack::Scene;

/// What an attacker sees of his success while the victim learns: on validation images, for the test images choose nothing.
pub(crate) struct WatchedSuccess {
    /// Images of attacked classes alone.
    triggered: ImageSet,
}

impl WatchedSuccess {
    /// On so many validation images, the first ones; all if there are fewer.
    pub(crate) fn new(scene: &Scene<'_>, images: usize) -> Self {
        let first = |set: &ImageSet| set.subset(&(0..set.len().min(images)).collect::<Vec<_>>());
        let checked = scene.validation.map_or_else(|| scene.training.subset(&[]), first);
        Self { triggered: trigger_test_images(&checked, scene.poisoning, scene.trigger, scene.seed) }
    }

    /// Share of the triggered images that are taken for the attacker's class; `None` without images.
    pub(crate) fn of<B: TrainingBackend>(
        &self,
        classifier: &Classifier<B>,
        poisoning: &PoisoningConfig,
        device: &B::Device,
    ) -> Option<f64> {
        let predicted = predict(&classifier.valid(), &self.triggered, PREDICTION_BATCH, device);
        let classes = self.triggered.class_count();
        let wanted = self.triggered.labels().iter().map(|&label| poisoning.attack_target(label, classes));
        let hits = predicted.iter().zip(wanted).filter(|(class, wanted)| *class == wanted).count();
        (!predicted.is_empty()).then(|| hits as f64 / predicted.len() as f64)
    }
}
