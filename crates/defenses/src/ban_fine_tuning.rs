use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Tensor, TensorData};
use patchdoor_kernels::{TrainingBackend, differentiate};
use patchdoor_model::Classifier;
use patchdoor_train::{
    Batch, BatchPass, BatchPosition, Objective, OptimizerConfig, SgdConfig, Trainable, TrainingConfig, cross_entropy,
};
use serde::{Deserialize, Serialize};

use crate::defense::has_training_table;
use crate::error::{check_count, check_weight, invalid};
use crate::neuron_masks::FactoredNorms;
use crate::neuron_noise::NeuronNoise;
use crate::tuning::{tune_on, validate_own_training};
use crate::{DefendedClassifier, Defense, DefenseError, ModelRepair, Need, RepairWork, Repaired};

/// Fine-tunes on clean images with the neurons as they are and as harmfully disturbed as can be.
///
/// The repair of BAN (Xu et al. 2024, arXiv:2405.19928). For every batch the factors of all normalizations' scales and shifts are
/// disturbed so that its loss rises within [`bound`](Self::bound); the classifier descends on the cross-entropy plus
/// [`disturbed_weight`](Self::disturbed_weight) times that under the disturbance, which is held. Both passes take the batch's
/// statistics; the running ones are those of the undisturbed pass, where the authors' code lets both change them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct BanFineTuning {
    /// Weight of the loss under the disturbance, a finite number of 0 or more.
    pub disturbed_weight: f64,
    /// The bound of the disturbance of each factor, in (0, 1].
    pub bound: f64,
    /// Steps by the sign of the gradient to the disturbance, each of the bound over their number; 1 or more.
    pub steps: usize,
    /// How the clean images are fitted.
    pub training: TrainingConfig,
}

impl Default for BanFineTuning {
    /// The authors' code: 25 epochs of SGD at 0.005, a weight of 0.5 and one step of 0.3.
    fn default() -> Self {
        Self {
            disturbed_weight: 0.5,
            bound: 0.3,
            steps: 1,
            training: TrainingConfig {
                epochs: 25,
                batch_size: 128,
                learning_rate: 0.005,
                optimizer: OptimizerConfig::Sgd(SgdConfig { momentum: 0.9, nesterov: false, weight_decay: 5e-4 }),
                ..TrainingConfig::default()
            },
        }
    }
}

impl Defense for BanFineTuning {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        problems.extend(check_weight("disturbed-weight", self.disturbed_weight));
        if !(self.bound > 0.0 && self.bound <= 1.0) {
            problems.push(invalid("bound", self.bound, "a number in (0, 1]"));
        }
        problems.extend(check_count("steps", self.steps));
        problems.extend(validate_own_training(&self.training));
        problems
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::BatchNorm]
    }

    /// The authors' 5 %.
    fn default_clean_fraction(&self) -> f64 {
        0.05
    }

    has_training_table!();
}

impl<B: TrainingBackend> ModelRepair<B> for BanFineTuning {
    fn repair(
        &self,
        classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        let noise = NeuronNoise { bound: self.bound, steps: self.steps };
        let mut objective = Disturbed { noise, weight: self.disturbed_weight, seed: work.seed, at: [0, 0] };
        let trainable = Trainable::default();
        let (classifier, history) =
            tune_on(Some(&mut objective), classifier, &self.training, &trainable, work, device)?;
        Ok(Repaired::tuned(classifier, history))
    }
}

/// The cross-entropy without and with a disturbance.
struct Disturbed {
    noise: NeuronNoise,
    weight: f64,
    seed: u64,
    /// Epoch and step.
    at: [usize; 2],
}

impl<B: TrainingBackend> Objective<B> for Disturbed {
    fn rewrite(&mut self, batch: Batch<B>, at: &BatchPosition<'_>) -> Batch<B> {
        self.at = [at.epoch, at.step];
        batch
    }

    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        let [epoch, step] = self.at;
        // Copies: their passes leave the running statistics alone.
        let network = FactoredNorms::new(classifier.clone());
        let name = format!("defense/ban-fine-tuning/{epoch}/{step}");
        let factors = self.noise.disturbed(&network, self.seed, &name, |_| Some(batch.clone()));
        let here = cross_entropy_of(classifier, batch.clone());
        // A disturbed loss that is no finite number ends the training as an undisturbed one does.
        let Ok(factors) = factors else { return BatchPass { gradients: None, ..here } };
        let disturbed = classifier.clone().with_tensors(network.multiplied(&factors));
        let there = cross_entropy_of(&disturbed, batch);
        let gradients = here.gradients.zip(there.gradients).map(|(here, there)| {
            let factors = network.factors_by_id(&factors);
            let mut sum =
                WeightedSum { here, there, weight: self.weight, factors: &factors, sum: GradientsParams::new() };
            classifier.visit(&mut sum);
            sum.sum
        });
        BatchPass { loss: here.loss + self.weight * there.loss, predicted: here.predicted, gradients }
    }
}

fn cross_entropy_of<B: TrainingBackend>(classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
    differentiate(|| {
        let logits = classifier.forward(batch.images);
        let loss = cross_entropy(logits.clone(), batch.labels);
        BatchPass::backward(classifier, &logits, &loss)
    })
}

/// Adds up gradients of an undisturbed pass and, weighted, of a disturbed one.
struct WeightedSum<'a> {
    here: GradientsParams,
    there: GradientsParams,
    weight: f64,
    /// What the disturbed parameters were multiplied by: by the chain rule, so are their gradients.
    factors: &'a BTreeMap<ParamId, Vec<f64>>,
    sum: GradientsParams,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for WeightedSum<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let [here, there] = [&self.here, &self.there].map(|pass| pass.get::<B::InnerBackend, D>(param.id));
        let there = there.map(|gradient| {
            let gradient = gradient * self.weight;
            match self.factors.get(&param.id) {
                Some(factors) => {
                    let factors = factors.iter().map(|&factor| factor as f32).collect::<Vec<_>>();
                    let factors = TensorData::new(factors, gradient.dims());
                    gradient.clone() * Tensor::from_data(factors, &gradient.device())
                }
                None => gradient,
            }
        });
        let both = match (here, there) {
            (Some(here), Some(there)) => here + there,
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => return,
        };
        self.sum.register::<B::InnerBackend, D>(param.id, both);
    }
}

#[cfg(test)]
mod tests {
    use burn::module::AutodiffModule;
    use burn_flex::FlexDevice;
    use patchdoor_train::{BatchAssembler, BatchNormStatistics};

    use super::*;
    use crate::planted::{SeenOn, planted};
    use crate::testing::{Learner, ascending_filters, shapes};

    #[test]
    fn the_gradient_of_a_scale_is_that_of_finite_differences_of_both_losses() {
        let set = shapes(20);
        let batch =
            || BatchAssembler::<Learner>::new(&set, &FlexDevice).batch(&(0..20).collect::<Vec<_>>(), &FlexDevice);
        let noise = NeuronNoise { bound: 0.3, steps: 1 };
        let classifier = ascending_filters();
        let mut objective = Disturbed { noise: noise.clone(), weight: 0.5, seed: 0, at: [0, 0] };
        let pass = objective.pass(&classifier, batch());
        let gradients = pass.gradients.expect("finite losses");
        let id = classifier.parameter_ids()["norm.gamma"];
        let gradient = gradients.get::<burn_flex::Flex, 1>(id).expect("it learns").into_data();
        let gradient = gradient.iter::<f64>().collect::<Vec<_>>();
        // The disturbance is held where the scale is moved.
        let network = FactoredNorms::new(classifier.clone());
        let name = "defense/ban-fine-tuning/0/0";
        let held = noise.disturbed(&network, 0, name, |_| Some(batch())).expect("finite losses");
        let loss = |channel: usize, by: f64| {
            let of = |scale_factor: f64, mut tensors: BTreeMap<String, TensorData>| {
                let moved = tensors.remove("norm.gamma").expect("it is there");
                let mut values = moved.iter::<f32>().collect::<Vec<_>>();
                values[channel] += (by * scale_factor) as f32;
                tensors.insert("norm.gamma".to_owned(), TensorData::new(values, moved.shape.clone()));
                let mut plain = classifier.clone().with_tensors(tensors).valid();
                plain.set_collects_statistics(true);
                let batch = batch();
                let logits = plain.forward(batch.images.inner());
                cross_entropy(logits, batch.labels.inner()).into_data().iter::<f64>().sum::<f64>()
            };
            let factor = held.last().expect("the last normalization").scale[channel];
            of(1.0, classifier.tensors()) + 0.5 * of(factor, network.multiplied(&held))
        };
        for channel in [0, 17, 40] {
            let step = 1e-2;
            let expected = (loss(channel, step) - loss(channel, -step)) / (2.0 * step);
            let found = gradient[channel];
            assert!((found - expected).abs() < 1e-4 + 2e-2 * expected.abs(), "{channel}: {found} and {expected}");
        }
    }

    fn defense(disturbed_weight: f64) -> BanFineTuning {
        let training = TrainingConfig {
            epochs: 15,
            batch_size: 40,
            learning_rate: 0.05,
            batch_norm_statistics: BatchNormStatistics::Recomputed,
            ..BanFineTuning::default().training
        };
        BanFineTuning { disturbed_weight, training, ..BanFineTuning::default() }
    }

    #[test]
    fn a_planted_backdoor_goes_and_the_accuracy_stays() {
        if !SeenOn::Avx2.is_here() {
            return;
        }
        planted().assert_repairs(&defense(0.5));
    }

    #[test]
    fn without_the_disturbance_the_backdoor_stays() {
        if !SeenOn::Avx2.is_here() {
            return;
        }
        let plain = planted().repair(&defense(0.0), planted().victim()).classifier;
        let success = planted().attack_success(&plain);
        assert!(success > 0.9, "{success}");
    }
}
