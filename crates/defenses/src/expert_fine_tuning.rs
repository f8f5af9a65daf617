use patchdoor_kernels::TrainingBackend;
use patchdoor_model::{Classifier, Part};
use patchdoor_train::{Trainable, TrainingConfig};
use serde::{Deserialize, Serialize};

use crate::defense::has_training_table;
use crate::tuning::{tune, validate_training};
use crate::{DefendedClassifier, Defense, DefenseError, ModelRepair, Need, RepairWork, Repaired};

/// Trains the experts on clean images, and nothing else unless asked to.
///
/// This project's own defense. All other weights and running statistics stay as they are, bit for bit; frozen batch
/// normalizations use the running statistics in this training, as in inference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ExpertFineTuning {
    /// Whether the last normalization and the dense layer learn too.
    pub head: bool,
    /// How the defender's images are fitted.
    pub training: TrainingConfig,
}

impl Default for ExpertFineTuning {
    /// Experts alone, five epochs with the optimiser of the training, as the fine-tuning of Chan et al. (2025,
    /// arXiv:2505.01811).
    fn default() -> Self {
        Self { head: false, training: TrainingConfig { epochs: 5, ..TrainingConfig::default() } }
    }
}

impl Defense for ExpertFineTuning {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        validate_training(&self.training, false)
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Experts]
    }

    has_training_table!();
}

impl<B: TrainingBackend> ModelRepair<B> for ExpertFineTuning {
    fn repair(
        &self,
        classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        if classifier.config().network().experts().is_none() {
            return Err(DefenseError::NoExperts { defense: "expert-fine-tuning" });
        }
        let parts: &[Part] = if self.head { &[Part::Experts, Part::Head] } else { &[Part::Experts] };
        let (classifier, history) = tune(classifier, &self.training, &Trainable::only(parts), work, device)?;
        Ok(Repaired::tuned(classifier, history))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ascending_filters, bits, quick_training, repair_with};

    #[test]
    fn experts_learn_the_head_if_asked_to_and_all_else_keeps_every_bit() {
        let before = bits(&ascending_filters());
        for head in [false, true] {
            let defense = ExpertFineTuning { head, training: quick_training() };
            let after = bits(&repair_with(&defense, ascending_filters(), None).classifier);
            for (name, values) in &after {
                let learns = match Part::of(name) {
                    Part::Experts => true,
                    Part::Head => head,
                    Part::Trunk | Part::Router => false,
                };
                assert_eq!(values != &before[name], learns, "{name} with head = {head}");
            }
        }
    }
}
