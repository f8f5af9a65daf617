use burn::tensor::{Tensor, TensorData};
use patchdoor_data::stream;
use patchdoor_kernels::{TrainingBackend, differentiate};
use patchdoor_model::Classifier;
use patchdoor_train::{
    Batch, BatchPass, Objective, OptimizerConfig, SgdConfig, Trainable, TrainingConfig, cross_entropy,
};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::defense::has_training_table;
use crate::error::check_weight;
use crate::tuning::{tune_on, validate_own_training};
use crate::{DefendedClassifier, Defense, DefenseError, ModelRepair, RepairWork, Repaired};

/// Path of the weights of the head.
const HEAD: &str = "head.weight";

/// Draws the head anew and fine-tunes while it is pushed away from what it was, so that features have to shift.
///
/// Feature shift tuning (FST; Min et al. 2023, arXiv:2310.01875): the loss is the cross-entropy plus the penalty times the
/// inner product of the head's weights with those before, and after each step the weights are scaled back to the length
/// of those before, since the product could fall without end otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct FeatureShiftTuning {
    /// Weight of the inner product, a finite number of 0 or more.
    pub penalty: f64,
    /// How the clean images are fitted.
    pub training: TrainingConfig,
}

impl Default for FeatureShiftTuning {
    /// The numbers of Min et al. (2023, arXiv:2310.01875) for CIFAR-10: penalty 0.2, ten epochs of SGD with momentum at 0.01.
    fn default() -> Self {
        Self {
            penalty: 0.2,
            training: TrainingConfig {
                epochs: 10,
                batch_size: 128,
                learning_rate: 0.01,
                optimizer: OptimizerConfig::Sgd(SgdConfig { momentum: 0.9, nesterov: false, weight_decay: 0.0 }),
                ..TrainingConfig::default()
            },
        }
    }
}

impl Defense for FeatureShiftTuning {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        problems.extend(check_weight("penalty", self.penalty));
        problems.extend(validate_own_training(&self.training));
        problems
    }

    /// The 5 % of `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654), as its siblings here; Min et al. have 2 %.
    fn default_clean_fraction(&self) -> f64 {
        0.05
    }

    has_training_table!();
}

impl<B: TrainingBackend> ModelRepair<B> for FeatureShiftTuning {
    fn repair(
        &self,
        classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        let before = classifier.tensors().remove(HEAD).expect("every network has a head");
        let mut objective = Shift { penalty: self.penalty, length: length(&before), before: flat(&before, device) };
        let classifier = redraw_head(classifier, work.seed);
        let (classifier, history) =
            tune_on(Some(&mut objective), classifier, &self.training, &Trainable::default(), work, device)?;
        Ok(Repaired::tuned(classifier, history))
    }
}

/// Weights and biases of the head anew, uniform in ±1 / sqrt(features), as the published code draws them.
fn redraw_head<B: TrainingBackend>(classifier: Classifier<B>, seed: u64) -> Classifier<B> {
    let rng = &mut stream(seed, "defense/head");
    let mut tensors = classifier.tensors();
    let features = tensors[HEAD].shape[1] as f32;
    let redrawn = [HEAD, "head.bias"].map(|path| {
        let data = tensors.remove(path).expect("every network has a head");
        let bound = features.sqrt().recip();
        let drawn = (0..data.num_elements()).map(|_| rng.random_range(-bound..bound)).collect::<Vec<f32>>();
        (path.to_owned(), TensorData::new(drawn, data.shape.clone()).convert_dtype(data.dtype))
    });
    classifier.with_tensors(redrawn.into())
}

/// Cross-entropy plus the inner product of the head's weights with those before.
struct Shift<B: TrainingBackend> {
    penalty: f64,
    /// The head's weights before, flat.
    before: Tensor<B, 1>,
    /// Their length.
    length: f64,
}

impl<B: TrainingBackend> Objective<B> for Shift<B> {
    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        differentiate(|| {
            let logits = classifier.forward(batch.images);
            let head = classifier.parameter(HEAD).expect("every network has a head");
            let product = (head * self.before.clone()).sum();
            let loss = cross_entropy(logits.clone(), batch.labels) + product.mul_scalar(self.penalty);
            BatchPass::backward(classifier, &logits, &loss)
        })
    }

    fn stepped(&mut self, classifier: Classifier<B>) -> Classifier<B> {
        let head = classifier.tensors().remove(HEAD).expect("every network has a head");
        // A head of zeros has no direction.
        let factor = (self.length / length(&head).max(f64::MIN_POSITIVE)) as f32;
        let scaled = head.iter::<f32>().map(|weight| weight * factor).collect::<Vec<_>>();
        let scaled = TensorData::new(scaled, head.shape.clone()).convert_dtype(head.dtype);
        classifier.with_tensors([(HEAD.to_owned(), scaled)].into())
    }
}

fn flat<B: TrainingBackend>(weights: &TensorData, device: &B::Device) -> Tensor<B, 1> {
    Tensor::from_data(TensorData::new(weights.iter::<f32>().collect::<Vec<_>>(), [weights.num_elements()]), device)
}

fn length(weights: &TensorData) -> f64 {
    weights.iter::<f64>().map(|weight| weight * weight).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use patchdoor_train::BatchNormStatistics;

    use super::*;
    use crate::planted::planted;
    use crate::testing::{ascending_filters, quick_training, repair_with, tensor};

    fn product(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum()
    }

    #[test]
    fn the_head_keeps_its_length_and_turns_away_from_what_it_was() {
        let before = tensor(&ascending_filters(), HEAD);
        let turned = |penalty| {
            let defense = FeatureShiftTuning { penalty, training: quick_training() };
            tensor(&repair_with(&defense, ascending_filters(), None).classifier, HEAD)
        };
        let square = product(&before, &before);
        let [free, pushed] = [0.0, 10.0].map(turned);
        for head in [&free, &pushed] {
            assert!((product(head, head) / square - 1.0).abs() < 1e-5);
        }
        // The cosine with the weights before.
        let [free, pushed] = [free, pushed].map(|head| product(&head, &before) / square);
        assert!(free.abs() < 0.3, "drawn anew, it has nothing to do with what it was: {free}");
        assert!((-1.0 - 1e-5..-0.5).contains(&pushed), "{pushed}");
    }

    #[test]
    fn the_penalty_adds_itself_times_the_old_weights_to_the_gradient() {
        // Two passes differ in the penalty alone, so their gradients differ by 0.2 w and their losses by 0.2 <w', w>.
        use burn_flex::FlexDevice;
        let classifier = ascending_filters();
        let before = classifier.tensors().remove(HEAD).unwrap();
        let images = Tensor::full([4, 32, 32, 3], 0.5, &FlexDevice);
        let labels = Tensor::from_data([1, 2, 3, 4], &FlexDevice);
        let [plain, pushed] = [0.0, 0.2].map(|penalty| {
            let mut shift = Shift { penalty, length: 1.0, before: flat(&before, &FlexDevice) };
            shift.pass(&classifier, Batch { images: images.clone(), labels: labels.clone() })
        });
        let square = before.iter::<f64>().map(|weight| weight * weight).sum::<f64>();
        assert!((pushed.loss - plain.loss - 0.2 * square).abs() < 1e-4, "{} and {}", pushed.loss, plain.loss);
    }

    #[test]
    fn a_planted_backdoor_goes_and_the_accuracy_stays() {
        let training = TrainingConfig {
            batch_size: 40,
            batch_norm_statistics: BatchNormStatistics::Recomputed,
            ..FeatureShiftTuning::default().training
        };
        planted().assert_repairs(&FeatureShiftTuning { training, ..Default::default() });
    }
}
