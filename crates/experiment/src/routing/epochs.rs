use std::path::{Path, PathBuf};

use burn::tensor::backend::AutodiffBackend;
use patchdoor_data::{ImageSet, stratified_subset, stream};
use patchdoor_kernels::TrainingBackend;
use patchdoor_metrics::SelectionCounts;
use patchdoor_model::Classifier;
use patchdoor_plan::ExperimentConfig;
use patchdoor_record::{RecordError, RoutingEpoch};
use patchdoor_train::{EpochRecord, PREDICTION_BATCH, predict_with_routing};

use super::analysis::{Scene, analyse};
use crate::attack::Attack;
use crate::epoch_lines::keep_line;

/// Looks at what the routers of a classifier select after every epoch of its training.
pub(crate) struct EpochRouting<'a, B: AutodiffBackend> {
    clean: ImageSet,
    triggered: ImageSet,
    scene: Scene,
    path: PathBuf,
    device: &'a B::Device,
}

impl<'a, B: TrainingBackend> EpochRouting<'a, B> {
    /// `None` if the experiment does not ask for it; `folder` is the seed's.
    pub(crate) fn new(
        config: &ExperimentConfig,
        attack: &Attack<'_>,
        test: &ImageSet,
        folder: &Path,
        device: &'a B::Device,
    ) -> Option<Self> {
        let routing = config.routing.as_ref().filter(|routing| routing.per_epoch)?;
        let model = config.model.network().expert_choice()?;
        let count = routing.per_epoch_images.min(test.len());
        let indices = stratified_subset(test, count, &mut stream(0, "routing-images"));
        let clean = test.subset(&indices);
        let triggered = attack.trigger_all(&clean);
        let scene = Scene::new(&clean, &triggered, model);
        Some(Self { clean, triggered, scene, path: folder.join("routing/epochs.jsonl"), device })
    }

    /// Looks, and keeps what it sees.
    pub(crate) fn keep(
        &self,
        classifier: &Classifier<B::InnerBackend>,
        record: &EpochRecord,
    ) -> Result<(), RecordError> {
        let [clean, triggered] = [&self.clean, &self.triggered]
            .map(|images| predict_with_routing(classifier, images, PREDICTION_BATCH, self.device).selections);
        let (Some(clean), Some(triggered)) = (clean, triggered) else { return Ok(()) };
        let analysis = analyse(&self.scene, "victim", [&clean, &triggered]);
        let of_class = |counts: &SelectionCounts, class: Option<usize>| -> Vec<Vec<f64>> {
            (0..self.scene.experts).filter_map(|expert| counts.frequencies(class, expert)).collect()
        };
        let [clean_frequency, triggered_frequency] = analysis.counts.each_ref().map(|counts| of_class(counts, None));
        let [clean_frequency_by_class, triggered_frequency_by_class] = analysis.counts.each_ref().map(|counts| {
            (0..self.clean.class_count()).map(|class| to_four_digits(of_class(counts, Some(class)))).collect()
        });
        let line = RoutingEpoch {
            epoch: record.epoch,
            images: self.clean.len(),
            numbers: analysis.numbers,
            clean_frequency,
            triggered_frequency,
            clean_frequency_by_class,
            triggered_frequency_by_class,
        };
        keep_line(&self.path, line, |line| line.epoch)
    }
}

/// Shares as they are written where there are many.
fn to_four_digits(mut maps: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    maps.iter_mut().flatten().for_each(|share| *share = (*share * 1e4).round() / 1e4);
    maps
}
