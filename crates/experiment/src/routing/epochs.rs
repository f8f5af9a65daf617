use std::path::{Path, PathBuf};

use burn::module::AutodiffModule;
use burn::tensor::backend::AutodiffBackend;
use fs_err as fs;
use patchdoor_data::{ImageSet, stratified_subset, stream};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use patchdoor_plan::ExperimentConfig;
use patchdoor_record::{RecordError, RoutingEpoch, read_sealed_json_lines, write_sealed_json_lines};
use patchdoor_train::{EpochRecord, PREDICTION_BATCH, predict_with_routing};

use super::analysis::{Scene, analyse};
use crate::attack::Attack;

/// Looks at what the routers of a classifier select after every epoch of its training.
pub(crate) struct EpochRouting<'a, B: AutodiffBackend> {
    clean: ImageSet,
    triggered: ImageSet,
    scene: Scene,
    folder: PathBuf,
    device: &'a B::Device,
    /// Why something could not be kept.
    pub(crate) error: Option<RecordError>,
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
        Some(Self { clean, triggered, scene, folder: folder.join("routing"), device, error: None })
    }

    /// Looks, and keeps what it sees; lines of this epoch and later ones, from before an interruption, are replaced.
    pub(crate) fn look(&mut self, classifier: &Classifier<B>, record: &EpochRecord) {
        if let Err(error) = self.keep(classifier, record) {
            self.error.get_or_insert(error);
        }
    }

    fn keep(&self, classifier: &Classifier<B>, record: &EpochRecord) -> Result<(), RecordError> {
        let classifier = classifier.valid();
        let [clean, triggered] = [&self.clean, &self.triggered]
            .map(|images| predict_with_routing(&classifier, images, PREDICTION_BATCH, self.device).selections);
        let (Some(clean), Some(triggered)) = (clean, triggered) else { return Ok(()) };
        let analysis = analyse(&self.scene, "victim", [&clean, &triggered]);
        let [clean_frequency, triggered_frequency] = analysis
            .counts
            .each_ref()
            .map(|counts| (0..self.scene.experts).filter_map(|expert| counts.frequencies(None, expert)).collect());
        let line = RoutingEpoch {
            epoch: record.epoch,
            images: self.clean.len(),
            numbers: analysis.numbers,
            clean_frequency,
            triggered_frequency,
        };
        fs::create_dir_all(&self.folder)?;
        let path = self.folder.join("epochs.jsonl");
        let mut lines: Vec<RoutingEpoch> = if path.is_file() { read_sealed_json_lines(&path)? } else { Vec::new() };
        lines.retain(|kept| kept.epoch < record.epoch);
        lines.push(line);
        write_sealed_json_lines(&path, &lines)
    }
}
