use burn::tensor::backend::AutodiffBackend;
use patchdoor_data::AugmentationConfig;
use patchdoor_kernels::Kernels;
use patchdoor_model::Classifier;
use patchdoor_train::{Outcome, TrainingConfig, TrainingData, TrainingObserver, train};
use serde::{Deserialize, Serialize};

use crate::{DefenderData, DefenseError, ModelRepair, Repaired};

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

impl<B> ModelRepair<B> for FineTuning
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    fn repair(
        &self,
        classifier: Classifier<B>,
        data: &DefenderData<'_>,
        seed: u64,
        observer: &mut dyn TrainingObserver,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        let augmentation = AugmentationConfig::default();
        let data =
            TrainingData { training: data.clean, validation: Some(data.validation), augmentation: &augmentation };
        match train(classifier, &data, &self.training, seed, None, observer, device)? {
            Outcome::Finished(trained) => Ok(Repaired { classifier: trained.classifier, history: trained.history }),
            Outcome::Interrupted { epochs } => Err(DefenseError::Interrupted { epochs }),
        }
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

    #[test]
    fn fine_tuning_fits_the_clean_images() {
        let shapes = DatasetConfig::Shapes(ShapesConfig { train: 30, test: 10, seed: 0 });
        let images = load(&shapes, &[]).expect("shapes need no file").train;
        let shape = images.shape();
        let input = InputShape { height: shape.height, width: shape.width, channels: shape.channels };
        let config = ClassifierConfig::PatchMoe(PatchMoeConfig { widen_factor: 1, ..Default::default() });
        let classifier =
            config.init::<Autodiff<Flex>>(input, 10, &mut stream(0, "weights"), &FlexDevice).expect("valid");
        let data = DefenderData { clean: &images, validation: &images };
        let training = TrainingConfig {
            epochs: 45,
            batch_size: 30,
            learning_rate: 0.05,
            batch_norm_statistics: patchdoor_train::BatchNormStatistics::Recomputed,
            ..Default::default()
        };
        let before = accuracy(&predict(&classifier.valid(), &images, 30, &FlexDevice), images.labels());
        let repaired =
            FineTuning { training }.repair(classifier, &data, 0, &mut (), &FlexDevice).expect("nothing fails");
        assert_eq!(repaired.history.len(), 45);
        let after = accuracy(&predict(&repaired.classifier.valid(), &images, 30, &FlexDevice), images.labels());
        assert!(before < Some(0.5) && after > Some(0.9), "before {before:?}, after {after:?}");
    }
}
