use burn::module::AutodiffModule;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use patchdoor_kernels::{TrainingBackend, differentiate};
use patchdoor_model::{Classifier, Tapped};
use patchdoor_train::{
    Batch, BatchPass, Objective, OptimizerConfig, SgdConfig, Trainable, TrainingConfig, cross_entropy,
};
use serde::{Deserialize, Serialize};

use crate::defense::has_training_table;
use crate::error::invalid;
use crate::tuning::{tune, tune_on, validate_own_training, validate_training_in};
use crate::{DefendedClassifier, Defense, DefenseError, ModelRepair, RepairWork, Repaired};

/// Fine-tunes while the places where the maps are strong are pulled to those of a fine-tuned teacher.
///
/// Neural attention distillation (NAD; Li et al. 2021, arXiv:2101.05930). The teacher is the same classifier after a
/// fine-tuning. A map's attention is the sum of its squared channels at each position, as a vector of length one for each
/// image; the loss is the cross-entropy plus, for each map, its weight times the mean squared difference of attentions. With
/// all weights at zero no teacher is trained, and this is fine-tuning, bit for bit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct AttentionDistillation {
    /// Weights of the maps after the first two groups and of the last one, finite and 0 or more: of a mixture of experts, the
    /// map that they choose patches from; of the dense baseline, the one after the third group.
    pub attention_weights: [f64; 3],
    /// How the teacher is trained, from the classifier to repair, on the same images.
    pub teacher: TrainingConfig,
    /// How the student is.
    pub training: TrainingConfig,
}

impl Default for AttentionDistillation {
    /// The weights and the optimiser of Li et al. (2021, arXiv:2101.05930), ten epochs each; the rate of 0.01 is that of
    /// `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654).
    fn default() -> Self {
        let training = TrainingConfig {
            epochs: 10,
            batch_size: 64,
            learning_rate: 0.01,
            optimizer: OptimizerConfig::Sgd(SgdConfig { momentum: 0.9, nesterov: false, weight_decay: 1e-4 }),
            ..TrainingConfig::default()
        };
        Self { attention_weights: [500.0, 1000.0, 1000.0], teacher: training.clone(), training }
    }
}

impl AttentionDistillation {
    fn distills(&self) -> bool {
        self.attention_weights.iter().any(|&weight| weight > 0.0)
    }
}

impl Defense for AttentionDistillation {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        if !self.attention_weights.iter().all(|&weight| weight >= 0.0 && weight.is_finite()) {
            let found = format!("{:?}", self.attention_weights);
            problems.push(invalid("attention-weights", found, "three finite numbers of 0 or more"));
        }
        problems.extend(validate_training_in("teacher", &self.teacher, false));
        problems.extend(validate_own_training(&self.training));
        problems
    }

    /// The 5 % of Li et al. (2021, arXiv:2101.05930).
    fn default_clean_fraction(&self) -> f64 {
        0.05
    }

    has_training_table!();

    fn make_quick(&mut self) {
        self.teacher.epochs = self.teacher.epochs.min(1);
        self.teacher.batch_size = self.teacher.batch_size.min(64);
    }
}

impl<B: TrainingBackend> ModelRepair<B> for AttentionDistillation {
    fn repair(
        &self,
        classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        let trainable = Trainable::default();
        if !self.distills() {
            let (classifier, history) = tune(classifier, &self.training, &trainable, work, device)?;
            return Ok(Repaired::tuned(classifier, history));
        }
        let (teacher, _) =
            work.aside("teacher", |work| tune(classifier.clone(), &self.teacher, &trainable, work, device))?;
        let mut objective = Imitation { teacher: teacher.valid(), weights: self.attention_weights };
        let (classifier, history) =
            tune_on(Some(&mut objective), classifier, &self.training, &trainable, work, device)?;
        Ok(Repaired::tuned(classifier, history))
    }
}

/// Cross-entropy plus distances from the teacher's attentions.
struct Imitation<B: TrainingBackend> {
    /// In inference, whatever the student does.
    teacher: Classifier<B::InnerBackend>,
    weights: [f64; 3],
}

impl<B: TrainingBackend> Objective<B> for Imitation<B> {
    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        let names = mapped(classifier);
        let (_, mut taught) = self.teacher.forward_with_taps(batch.images.clone().inner(), &names);
        differentiate(|| {
            let (logits, mut learned) = classifier.forward_with_taps(batch.images, &names);
            let mut loss = cross_entropy(logits.clone(), batch.labels);
            for (name, weight) in names.iter().zip(self.weights).filter(|&(_, weight)| weight > 0.0) {
                let maps = (learned.remove(*name).and_then(Tapped::map), taught.remove(*name).and_then(Tapped::map));
                let (Some(own), Some(taught)) = maps else { unreachable!("{name} is a map") };
                let difference = attention(own) - Tensor::from_inner(attention(taught));
                loss = loss + difference.powi_scalar(2).mean().mul_scalar(weight);
            }
            BatchPass::backward(classifier, &logits, &loss)
        })
    }
}

/// The taps whose attentions are compared.
fn mapped<B: Backend>(classifier: &Classifier<B>) -> [&'static str; 3] {
    let last = if classifier.taps().contains(&"group3") { "group3" } else { "map" };
    ["group1", "group2", last]
}

/// Where a map is strong.
///
/// # Shapes
/// - map: `[batch, row, column, channel]`
/// - output: `[batch, row * column]`, of length one for each image
fn attention<B: Backend>(map: Tensor<B, 4>) -> Tensor<B, 2> {
    let [batch, rows, columns, channels] = map.dims();
    let strength =
        map.reshape([batch, rows * columns, channels]).powi_scalar(2).sum_dim(2).reshape([batch, rows * columns]);
    // The constant of the published code.
    let length = strength.clone().powi_scalar(2).sum_dim(1).sqrt().add_scalar(1e-6);
    strength / length
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use burn_flex::{Flex, FlexDevice};
    use patchdoor_train::BatchNormStatistics;

    use super::*;
    use crate::FineTuning;
    use crate::planted::planted;
    use crate::testing::{ascending_filters, bits, quick_training, repair_with};

    #[test]
    fn attention_is_the_squared_strength_of_each_place_as_a_vector_of_length_one() {
        // Two places of two channels: (1, 2) has 1 + 4 = 5, (3, -1) has 9 + 1 = 10; of length sqrt(125): 0.447214, 0.894427.
        let map =
            Tensor::<Flex, 4>::from_data(TensorData::new(vec![1.0f32, 2.0, 3.0, -1.0], [1, 1, 2, 2]), &FlexDevice);
        let found = attention(map).into_data().iter::<f64>().collect::<Vec<_>>();
        assert!((found[0] - 0.447_214).abs() < 1e-5 && (found[1] - 0.894_427).abs() < 1e-5, "{found:?}");
    }

    #[test]
    fn without_attention_it_is_fine_tuning_to_the_last_bit() {
        let ablated =
            AttentionDistillation { attention_weights: [0.0; 3], training: quick_training(), ..Default::default() };
        let tuned = FineTuning { training: quick_training() };
        let ablated = bits(&repair_with(&ablated, ascending_filters(), None).classifier);
        let tuned = bits(&repair_with(&tuned, ascending_filters(), None).classifier);
        assert!(ablated == tuned);
    }

    #[test]
    fn the_distance_from_the_teacher_adds_to_the_loss() {
        let defense = AttentionDistillation {
            teacher: quick_training(),
            training: TrainingConfig { epochs: 1, batch_size: 40, ..quick_training() },
            ..Default::default()
        };
        let distilled = repair_with(&defense, ascending_filters(), None);
        let tuned = FineTuning { training: defense.training.clone() };
        let tuned = repair_with(&tuned, ascending_filters(), None);
        let [distilled, tuned] = [&distilled.history[0], &tuned.history[0]].map(|record| record.loss);
        assert!(distilled > tuned, "{distilled} and {tuned}");
    }

    #[test]
    fn a_planted_backdoor_goes_and_the_accuracy_stays() {
        let training = TrainingConfig {
            batch_size: 40,
            learning_rate: 0.05,
            batch_norm_statistics: BatchNormStatistics::Recomputed,
            ..AttentionDistillation::default().training
        };
        planted().assert_repairs(&AttentionDistillation { teacher: training.clone(), training, ..Default::default() });
    }
}
