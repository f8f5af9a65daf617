use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use patchdoor_train::TrainingConfig;
use serde::{Deserialize, Serialize};

use crate::{
    DefenseError, ExpertFineTuning, ExpertPruning, FinePruning, FineTuning, ModelRepair, PruningSeries, RepairWork,
    Repaired, RouterRetraining, StepwiseFinePruning,
};

/// What a defender does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DefenseConfig {
    /// Goes on training all weights.
    FineTuning(FineTuning),
    /// Prunes a share of every expert's filters, then trains: the protocol of Chan et al.
    FinePruning(FinePruning),
    /// Prunes until the validation accuracy drops, then trains what is left: the protocol of the field.
    StepwiseFinePruning(StepwiseFinePruning),
    /// Prunes at several fractions, without training.
    PruningSeries(PruningSeries),
    /// Takes away the experts whose routing looks least at what an image shows.
    ExpertPruning(ExpertPruning),
    /// Draws the routers anew and trains nothing else.
    RouterRetraining(RouterRetraining),
    /// Trains the experts and nothing else.
    ExpertFineTuning(ExpertFineTuning),
}

impl DefenseConfig {
    /// The names of all defenses, as a configuration writes them.
    pub const NAMES: [&str; 7] = [
        "fine-tuning",
        "fine-pruning",
        "stepwise-fine-pruning",
        "pruning-series",
        "expert-pruning",
        "router-retraining",
        "expert-fine-tuning",
    ];

    /// The defense's name, as a configuration writes it.
    pub fn name(&self) -> &'static str {
        Self::NAMES[match self {
            Self::FineTuning(_) => 0,
            Self::FinePruning(_) => 1,
            Self::StepwiseFinePruning(_) => 2,
            Self::PruningSeries(_) => 3,
            Self::ExpertPruning(_) => 4,
            Self::RouterRetraining(_) => 5,
            Self::ExpertFineTuning(_) => 6,
        }]
    }

    /// Checks every field against a classifier with this many experts (`None` for the dense baseline) and returns all
    /// problems at once; `field` is the dotted path below the defense's table, empty for the defense as a whole.
    pub fn validate(&self, experts: Option<usize>) -> Vec<DefenseError> {
        let mut problems = match self {
            Self::FineTuning(defense) => defense.validate(),
            Self::FinePruning(defense) => defense.validate(),
            Self::StepwiseFinePruning(defense) => defense.validate(),
            Self::PruningSeries(defense) => defense.validate(),
            Self::ExpertPruning(defense) => defense.validate(experts),
            Self::RouterRetraining(defense) => defense.validate(),
            Self::ExpertFineTuning(defense) => defense.validate(),
        };
        if self.needs_experts() && experts.is_none() {
            problems.push(DefenseError::InvalidField {
                field: String::new(),
                found: "for a classifier without experts".into(),
                allowed: "one of fine-tuning, fine-pruning, stepwise-fine-pruning, pruning-series".into(),
            });
        }
        problems
    }

    /// Whether it works on routers or experts, which the dense baseline does not have.
    pub fn needs_experts(&self) -> bool {
        matches!(self, Self::ExpertPruning(_) | Self::RouterRetraining(_) | Self::ExpertFineTuning(_))
    }

    /// Whether it chooses on a validation split.
    pub fn needs_validation(&self) -> bool {
        matches!(self, Self::StepwiseFinePruning(_))
    }

    /// The share of the training images that the defender has, if nothing else is said: all of them, as Chan et al.
    /// (2025, arXiv:2505.01811) have it, and 5 % for the field's protocol (`BackdoorBench`, Wu et al. 2022,
    /// arXiv:2206.12654).
    pub fn default_clean_fraction(&self) -> f64 {
        match self {
            Self::StepwiseFinePruning(_) => 0.05,
            _ => 1.0,
        }
    }

    /// How it trains; `None` if it never does.
    pub fn training(&self) -> Option<&TrainingConfig> {
        match self {
            Self::FineTuning(defense) => Some(&defense.training),
            Self::FinePruning(defense) => Some(&defense.training),
            Self::StepwiseFinePruning(defense) => Some(&defense.training),
            Self::PruningSeries(_) => None,
            Self::ExpertPruning(defense) => Some(&defense.training),
            Self::RouterRetraining(defense) => Some(&defense.training),
            Self::ExpertFineTuning(defense) => Some(&defense.training),
        }
    }

    /// Like [`Self::training`], to change it.
    pub fn training_mut(&mut self) -> Option<&mut TrainingConfig> {
        match self {
            Self::FineTuning(defense) => Some(&mut defense.training),
            Self::FinePruning(defense) => Some(&mut defense.training),
            Self::StepwiseFinePruning(defense) => Some(&mut defense.training),
            Self::PruningSeries(_) => None,
            Self::ExpertPruning(defense) => Some(&mut defense.training),
            Self::RouterRetraining(defense) => Some(&mut defense.training),
            Self::ExpertFineTuning(defense) => Some(&mut defense.training),
        }
    }

    /// Epochs of training it takes.
    pub fn epochs(&self) -> usize {
        self.training().map_or(0, |training| training.epochs)
    }
}

impl<B: TrainingBackend> ModelRepair<B> for DefenseConfig {
    fn repair(
        &self,
        classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        match self {
            Self::FineTuning(defense) => defense.repair(classifier, work, device),
            Self::FinePruning(defense) => defense.repair(classifier, work, device),
            Self::StepwiseFinePruning(defense) => defense.repair(classifier, work, device),
            Self::PruningSeries(defense) => defense.repair(classifier, work, device),
            Self::ExpertPruning(defense) => defense.repair(classifier, work, device),
            Self::RouterRetraining(defense) => defense.repair(classifier, work, device),
            Self::ExpertFineTuning(defense) => defense.repair(classifier, work, device),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> [DefenseConfig; 7] {
        [
            DefenseConfig::FineTuning(FineTuning::default()),
            DefenseConfig::FinePruning(FinePruning::default()),
            DefenseConfig::StepwiseFinePruning(StepwiseFinePruning::default()),
            DefenseConfig::PruningSeries(PruningSeries::default()),
            DefenseConfig::ExpertPruning(ExpertPruning::default()),
            DefenseConfig::RouterRetraining(RouterRetraining::default()),
            DefenseConfig::ExpertFineTuning(ExpertFineTuning::default()),
        ]
    }

    #[test]
    fn every_default_is_valid_for_four_experts_and_only_some_for_none() {
        for (defense, name) in all().iter().zip(DefenseConfig::NAMES) {
            assert_eq!(defense.name(), name);
            assert!(defense.validate(Some(4)).is_empty(), "{defense:?}");
            assert_eq!(defense.validate(None).len(), usize::from(defense.needs_experts()), "{defense:?}");
        }
    }

    #[test]
    fn every_problem_of_a_defense_is_reported_at_once() {
        let training = TrainingConfig { epochs: 0, learning_rate: -1.0, ..TrainingConfig::default() };
        let defense =
            FinePruning { pruned_fraction: 1.0, scored_images: 0, training: training.clone(), ..Default::default() };
        let said =
            |defense: DefenseConfig| defense.validate(Some(4)).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            said(DefenseConfig::FinePruning(defense)),
            [
                "pruned-fraction is 1, expected a fraction in [0, 1)",
                "scored-images is 0, expected 1 or more",
                "training.learning-rate is -1, expected a finite number above 0",
            ]
        );
        // Where training is all there is, there must be some.
        assert_eq!(
            said(DefenseConfig::FineTuning(FineTuning { training })),
            [
                "training.epochs is 0, expected 1 to 100000",
                "training.learning-rate is -1, expected a finite number above 0",
            ]
        );
    }
}
