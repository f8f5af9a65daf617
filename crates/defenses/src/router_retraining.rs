use patchdoor_data::stream;
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::{Classifier, Part};
use patchdoor_train::{Trainable, TrainingConfig};
use serde::{Deserialize, Serialize};

use crate::defense::has_training_table;
use crate::error::invalid;
use crate::tuning::{tune, validate_training};
use crate::{DefendedClassifier, Defense, DefenseError, ModelRepair, Need, RepairWork, Repaired};

/// Draws the routers' kernels anew and trains them on clean images, and nothing else.
///
/// This project's own defense: if the backdoor lives in what the routers select, routers that never saw a trigger do
/// without it. All other weights and all running statistics stay as they are, bit for bit; batch normalization uses the
/// running statistics in this training, as in inference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct RouterRetraining {
    /// Standard deviation of the new kernels, in [0, 10]; with 0 all patches score alike at first.
    pub gate_init_std: f64,
    /// How the defender's images are fitted; 0 epochs leave the routers as drawn.
    pub training: TrainingConfig,
}

impl Default for RouterRetraining {
    /// The initial deviation and the optimiser of Chan et al. (2025, arXiv:2505.01811), and the five epochs of their
    /// fine-tuning.
    fn default() -> Self {
        Self { gate_init_std: 1e-4, training: TrainingConfig { epochs: 5, ..TrainingConfig::default() } }
    }
}

impl Defense for RouterRetraining {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        if !(0.0..=10.0).contains(&self.gate_init_std) {
            problems.push(invalid("gate-init-std", self.gate_init_std, "a number in [0, 10]"));
        }
        problems.extend(validate_training(&self.training, true));
        problems
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Experts, Need::LearningRouters]
    }

    has_training_table!();
}

impl<B: TrainingBackend> ModelRepair<B> for RouterRetraining {
    fn repair(
        &self,
        classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        if classifier.config().network().experts().is_none() {
            return Err(DefenseError::NoExperts { defense: "router-retraining" });
        }
        let classifier = classifier.redraw_router(self.gate_init_std, &mut stream(work.seed, "defense/router"));
        let trainable = Trainable::only(&[Part::Router]);
        let (classifier, history) = tune(classifier, &self.training, &trainable, work, device)?;
        Ok(Repaired::tuned(classifier, history))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ascending_filters, bits, quick_training, repair_with};

    #[test]
    fn routers_are_drawn_anew_and_trained_and_all_else_keeps_every_bit() {
        let before = bits(&ascending_filters());
        let untrained = TrainingConfig { epochs: 0, ..TrainingConfig::default() };
        let repaired = |training| {
            let defense = RouterRetraining { training, ..Default::default() };
            bits(&repair_with(&defense, ascending_filters(), None).classifier)
        };
        let (drawn, trained) = (repaired(untrained), repaired(quick_training()));
        for (name, values) in &trained {
            if name == "router.weight" {
                assert_ne!(&drawn[name], &before[name], "drawn anew");
                assert_ne!(values, &drawn[name], "trained");
                let squares = drawn[name].iter().map(|&bits| f64::from(f32::from_bits(bits)).powi(2)).sum::<f64>();
                let deviation = (squares / drawn[name].len() as f64).sqrt();
                assert!((0.8e-4..1.2e-4).contains(&deviation), "{deviation}");
            } else {
                assert_eq!(values, &before[name], "{name}");
            }
        }
    }
}
