use std::path::PathBuf;

use burn::module::AutodiffModule;
use burn::tensor::backend::AutodiffBackend;
use fs_err as fs;
use patchdoor_data::{ImageSet, Trigger, stratified_subset, stream, trigger_all_images};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::{Classifier, ClassifierConfig};
use patchdoor_train::{EpochRecord, predict_with_routing};
use serde::{Deserialize, Serialize};

use super::RoutingConfig;
use super::analysis::{Scene, analyse};
use super::figures;
use super::numbers::RoutingNumbers;
use crate::files::{write_json_lines, write_whole};
use crate::run::{PREDICTION_BATCH, RunError};

/// One line of `epochs.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct EpochLine {
    /// Epoch, counted from 0.
    pub(crate) epoch: usize,
    /// Test images looked at.
    images: usize,
    #[serde(flatten)]
    numbers: RoutingNumbers,
    /// Share of the images in which each expert selected each patch, untouched: `[expert, patch]`.
    pub(crate) clean_frequency: Vec<Vec<f64>>,
    /// The same, triggered.
    pub(crate) triggered_frequency: Vec<Vec<f64>>,
}

/// Looks at what the routers of a classifier select after every epoch of its training.
pub(crate) struct EpochRouting<'a, B: AutodiffBackend> {
    clean: ImageSet,
    triggered: ImageSet,
    scene: Scene,
    figures: bool,
    folder: PathBuf,
    device: &'a B::Device,
    /// Why something could not be kept.
    pub(crate) error: Option<RunError>,
}

impl<'a, B: TrainingBackend> EpochRouting<'a, B> {
    /// `None` if the experiment does not ask for it; `folder` is where the lines go.
    pub(crate) fn new(
        (config, model): (Option<&RoutingConfig>, &ClassifierConfig),
        test: &ImageSet,
        (trigger, seed): (&dyn Trigger, u64),
        folder: PathBuf,
        device: &'a B::Device,
    ) -> Option<Self> {
        let config = config.filter(|config| config.per_epoch)?;
        let model = model.network().expert_choice()?;
        let count = config.per_epoch_images.min(test.len());
        let indices = stratified_subset(test, count, &mut stream(0, "routing-images"));
        let clean = test.subset(&indices);
        let triggered = trigger_all_images(&clean, trigger, seed);
        let scene = Scene::new(&clean, &triggered, model);
        Some(Self { clean, triggered, scene, figures: config.figures, folder, device, error: None })
    }

    /// Looks, and keeps what it sees; lines of this epoch and later ones, from before an interruption, are replaced.
    pub(crate) fn look(&mut self, classifier: &Classifier<B>, record: &EpochRecord) {
        if let Err(error) = self.keep(classifier, record) {
            self.error.get_or_insert(error);
        }
    }

    fn keep(&self, classifier: &Classifier<B>, record: &EpochRecord) -> Result<(), RunError> {
        let classifier = classifier.valid();
        let [clean, triggered] = [&self.clean, &self.triggered]
            .map(|images| predict_with_routing(&classifier, images, PREDICTION_BATCH, self.device).selections);
        let (Some(clean), Some(triggered)) = (clean, triggered) else { return Ok(()) };
        let analysis = analyse(&self.scene, "victim", [&clean, &triggered]);
        let [clean_frequency, triggered_frequency] = analysis
            .counts
            .each_ref()
            .map(|counts| (0..self.scene.experts).filter_map(|expert| counts.frequencies(None, expert)).collect());
        let line = EpochLine {
            epoch: record.epoch,
            images: self.clean.len(),
            numbers: analysis.numbers,
            clean_frequency,
            triggered_frequency,
        };
        fs::create_dir_all(&self.folder)?;
        let path = self.folder.join("epochs.jsonl");
        let mut lines: Vec<EpochLine> = Vec::new();
        if path.is_file() {
            for line in fs::read_to_string(&path)?.lines() {
                let line = serde_json::from_str(line);
                lines.push(line.map_err(|source| RunError::Result { path: path.clone(), source })?);
            }
        }
        lines.retain(|kept| kept.epoch < record.epoch);
        lines.push(line);
        write_json_lines(&path, &lines)?;
        if self.figures {
            write_whole(&self.folder.join("epochs.svg"), figures::epochs(&self.scene, &lines).as_bytes())?;
        }
        Ok(())
    }
}
