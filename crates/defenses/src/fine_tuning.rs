use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use patchdoor_train::{Trainable, TrainingConfig};
use serde::{Deserialize, Serialize};

use crate::defense::has_training_table;
use crate::tuning::{tune, validate_training};
use crate::{DefendedClassifier, Defense, DefenseError, ModelRepair, RepairWork, Repaired};

/// Goes on training all weights on clean images.
///
/// The half of Fine-Pruning (Liu et al. 2018, arXiv:1805.12185) that follows the pruning, and the
/// usual baseline of every repair.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct FineTuning {
    /// How the clean images are fitted.
    pub training: TrainingConfig,
}

impl Default for FineTuning {
    /// Five epochs with the optimiser of the training, as Chan et al. (2025, arXiv:2505.01811) do.
    fn default() -> Self {
        Self { training: TrainingConfig { epochs: 5, ..TrainingConfig::default() } }
    }
}

impl Defense for FineTuning {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        validate_training(&self.training, false)
    }

    has_training_table!();
}

impl<B: TrainingBackend> ModelRepair<B> for FineTuning {
    fn repair(
        &self,
        classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        let (classifier, history) = tune(classifier, &self.training, &Trainable::default(), work, device)?;
        Ok(Repaired::tuned(classifier, history))
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn::module::AutodiffModule;
    use burn_flex::{Flex, FlexDevice};
    use patchdoor_data::{DatasetConfig, ShapesConfig, load, stream};
    use patchdoor_metrics::accuracy;
    use patchdoor_model::{ClassifierConfig, InputShape, PatchMoeConfig};
    use patchdoor_train::predict;

    use super::*;
    use crate::DefenderData;

    #[test]
    fn fine_tuning_fits_the_clean_images() {
        let shapes = DatasetConfig::Shapes(ShapesConfig { train: 30, test: 10, seed: 0 });
        let images = load(&shapes, &[]).expect("shapes need no file").train;
        let shape = images.shape();
        let input = InputShape { height: shape.height, width: shape.width, channels: shape.channels };
        let config = ClassifierConfig::PatchMoe(PatchMoeConfig { widen_factor: 1, ..Default::default() });
        let classifier =
            config.init::<Autodiff<Flex>>(input, 10, &mut stream(0, "weights"), &FlexDevice).expect("valid");
        let data = DefenderData { clean: &images, validation: Some(&images) };
        let mut work = RepairWork { data, seed: 0, checkpoints: None, observer: &mut () };
        let training = TrainingConfig {
            epochs: 45,
            batch_size: 30,
            learning_rate: 0.05,
            batch_norm_statistics: patchdoor_train::BatchNormStatistics::Recomputed,
            ..Default::default()
        };
        let before = accuracy(&predict(&classifier.valid(), &images, 30, &FlexDevice), images.labels());
        let repaired = FineTuning { training }.repair(classifier, &mut work, &FlexDevice).expect("nothing fails");
        assert_eq!(repaired.history.len(), 45);
        let after = accuracy(&predict(&repaired.classifier.valid(), &images, 30, &FlexDevice), images.labels());
        assert!(before < Some(0.5) && after > Some(0.9), "before {before:?}, after {after:?}");
    }
}
