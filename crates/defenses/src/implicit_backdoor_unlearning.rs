use burn::tensor::{Tensor, TensorData};
use patchdoor_data::ImageSet;
use patchdoor_kernels::{TrainingBackend, differentiate};
use patchdoor_metrics::share_down;
use patchdoor_model::Classifier;
use patchdoor_train::{
    AdamConfig, Batch, BatchPass, Objective, OptimizerConfig, Trainable, TrainingConfig, cross_entropy, gradient_by,
};
use serde::{Deserialize, Serialize};

use crate::batch_stream::BatchStream;
use crate::defense::has_training_table;
use crate::error::{check_positive, check_share};
use crate::tuning::{tune_on, validate_own_training};
use crate::{DefendedClassifier, Defense, DefenseError, ModelRepair, RepairWork, Repaired};

/// Length of the shift, in pixels of [0, 1], over which gradients are differenced where a second derivative is asked for.
const SHIFT: f64 = 0.05;

/// Weight of the squared length of the perturbation in the inner loss, as in the published code.
const LENGTH_PENALTY: f64 = 0.001;

/// Unlearns the one perturbation that misleads the classifier most on all images together.
///
/// I-BAU (Zeng et al. 2022, arXiv:2110.03735). Each round finds a universal perturbation by climbing the cross-entropy from zero,
/// one step for each batch, and then trains on batches of which a few images carry it. The gradient counts that the worst
/// perturbation would move with the weights: an implicit hypergradient, by the fixed-point iteration. Normalizations use the running
/// statistics throughout, as in the published code. Where that differentiates twice, gradients are differenced here over
/// a shift of 0.05 to either side, since burn does not differentiate twice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ImplicitBackdoorUnlearning {
    /// Largest length of the perturbation over all pixels in [0, 1], a finite number above 0.
    pub radius: f64,
    /// Rate at which the perturbation climbs, a finite number above 0.
    pub perturbation_rate: f64,
    /// Share of a batch that carries the perturbation, rounded down but at least one image, in (0, 1].
    pub perturbed_fraction: f64,
    /// Steps of the fixed-point iteration; 0 takes the perturbation for given.
    pub fixed_point_steps: usize,
    /// Rate of the gradient step whose fixed point is meant, a finite number above 0.
    pub fixed_point_rate: f64,
    /// How the weights are trained; an epoch is a round.
    pub training: TrainingConfig,
}

impl Default for ImplicitBackdoorUnlearning {
    /// The numbers of the code of Zeng et al. (2022, arXiv:2110.03735): five rounds of Adam at 1e-4.
    fn default() -> Self {
        Self {
            radius: 10.0,
            perturbation_rate: 10.0,
            perturbed_fraction: 0.01,
            fixed_point_steps: 5,
            fixed_point_rate: 0.1,
            training: TrainingConfig {
                epochs: 5,
                batch_size: 128,
                learning_rate: 1e-4,
                optimizer: OptimizerConfig::Adam(AdamConfig::default()),
                ..TrainingConfig::default()
            },
        }
    }
}

impl Defense for ImplicitBackdoorUnlearning {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        let positive = [
            ("radius", self.radius),
            ("perturbation-rate", self.perturbation_rate),
            ("fixed-point-rate", self.fixed_point_rate),
        ];
        for (field, value) in positive {
            problems.extend(check_positive(field, value));
        }
        problems.extend(check_share("perturbed-fraction", self.perturbed_fraction));
        problems.extend(validate_own_training(&self.training));
        problems
    }

    /// The 5 % of `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654).
    fn default_clean_fraction(&self) -> f64 {
        0.05
    }

    has_training_table!();
}

impl<B: TrainingBackend> ModelRepair<B> for ImplicitBackdoorUnlearning {
    fn repair(
        &self,
        mut classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        // A share of zero of the batch in the running statistics is none: they stay, and are what normalizes.
        let momentum = classifier.batch_norm_momentum();
        classifier.set_batch_norm_momentum(0.0);
        let clean = work.data.clean;
        let mut unlearning = Unlearning { config: self, clean, seed: work.seed, device: device.clone(), round: None };
        let trained = tune_on(Some(&mut unlearning), classifier, &self.training, &Trainable::default(), work, device)?;
        let (classifier, history) = trained;
        Ok(Repaired::tuned(classifier.thaw(momentum), history))
    }
}

/// Trains on images with the perturbation of the round.
struct Unlearning<'a, B: TrainingBackend> {
    config: &'a ImplicitBackdoorUnlearning,
    clean: &'a ImageSet,
    seed: u64,
    device: B::Device,
    round: Option<Round<B>>,
}

/// What a round has found before its steps.
struct Round<B: TrainingBackend> {
    /// `[row, column, channel]`, flat.
    perturbation: Vec<f64>,
    /// The images that the inner loss is measured on.
    inner: Batch<B>,
}

impl<B: TrainingBackend> Objective<B> for Unlearning<'_, B> {
    fn epoch_started(&mut self, classifier: &Classifier<B>) {
        let (config, device) = (self.config, &self.device);
        let batch_size = config.training.batch_size;
        let mut batches = BatchStream::new(self.clean, batch_size, self.seed, "defense/perturbation-order", device);
        let shape = self.clean.shape();
        let mut perturbation = vec![0.0; shape.height * shape.width * shape.channels];
        let inner = batches.next(device);
        let mut batch = inner.clone();
        for _ in 0..self.clean.len().div_ceil(batch_size) {
            // The classifier's own predictions, as in the published code.
            let labels = differentiate(|| classifier.forward(batch.images.clone()).argmax(1).squeeze_dim::<1>(1));
            let downhill = inner_gradient(classifier, &Batch { labels, ..batch }, &perturbation);
            for (value, gradient) in perturbation.iter_mut().zip(downhill) {
                *value -= config.perturbation_rate * gradient;
            }
            batch = batches.next(device);
        }
        let within = (config.radius / length(&perturbation).max(f64::MIN_POSITIVE)).min(1.0);
        for value in &mut perturbation {
            *value *= within;
        }
        self.round = Some(Round { perturbation, inner });
    }

    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        let round = self.round.as_ref().expect("an epoch begins before its steps");
        let config = self.config;
        let carriers = carriers(batch.images.dims()[0], config.perturbed_fraction);
        let outer = outer_gradient(classifier, &batch, &round.perturbation, carriers);
        let product = |vector: &[f64]| -> Vec<f64> {
            let [over, under] = shifted(&round.perturbation, vector);
            let [over, under] = [over, under].map(|at| inner_gradient(classifier, &round.inner, &at));
            let scale = length(vector) / (2.0 * SHIFT);
            over.iter().zip(under).map(|(over, under)| scale * (over - under)).collect()
        };
        let adjoint = fixed_point(&outer, config.fixed_point_steps, config.fixed_point_rate, product);
        differentiate(|| {
            let perturbation = tensor(&round.perturbation, &batch.images);
            let logits = classifier.forward(carried(batch.images, perturbation, carriers));
            let loss = cross_entropy(logits.clone(), batch.labels);
            let shown = loss.clone().into_data().iter::<f64>().sum();
            let strength = config.fixed_point_rate * length(&adjoint) / (2.0 * SHIFT);
            if strength == 0.0 {
                return BatchPass::backward(classifier, &logits, &loss);
            }
            // What the weights change in the perturbation's gradient, along the adjoint.
            let [over, under] = shifted(&round.perturbation, &adjoint)
                .map(|at| inner_loss(classifier, &round.inner, tensor(&at, &round.inner.images)));
            let loss = loss - (over - under).mul_scalar(strength);
            BatchPass { loss: shown, ..BatchPass::backward(classifier, &logits, &loss) }
        })
    }
}

/// How many images of a batch carry the perturbation.
fn carriers(batch: usize, fraction: f64) -> usize {
    share_down(fraction, batch).clamp(1, batch)
}

/// The vector v with v = (1 - rate H) v + g after so many steps from zero, where `product` multiplies by H.
fn fixed_point(outer: &[f64], steps: usize, rate: f64, product: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    if steps == 0 {
        return vec![0.0; outer.len()];
    }
    let mut vector = outer.to_vec();
    for _ in 1..steps {
        if length(&vector) == 0.0 {
            break;
        }
        let curved = product(&vector);
        for ((value, curved), outer) in vector.iter_mut().zip(curved).zip(outer) {
            *value = *value - rate * curved + outer;
        }
    }
    vector
}

/// A point moved by the shift along a direction and against it.
fn shifted(point: &[f64], direction: &[f64]) -> [Vec<f64>; 2] {
    let scale = SHIFT / length(direction);
    [scale, -scale].map(|scale| point.iter().zip(direction).map(|(value, along)| value + scale * along).collect())
}

fn length(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// A perturbation for images of this size, `[1, row, column, channel]`.
fn tensor<B: TrainingBackend>(values: &[f64], images: &Tensor<B, 4>) -> Tensor<B, 4> {
    let [_, rows, columns, channels] = images.dims();
    let values = values.iter().map(|&value| value as f32).collect::<Vec<_>>();
    Tensor::from_data(TensorData::new(values, [1, rows, columns, channels]), &images.device())
}

/// The images, the first of which carry the perturbation; batches come in random order.
fn carried<B: TrainingBackend>(images: Tensor<B, 4>, perturbation: Tensor<B, 4>, carriers: usize) -> Tensor<B, 4> {
    let count = images.dims()[0];
    if carriers == count {
        return images + perturbation;
    }
    let (first, rest) = (images.clone().narrow(0, 0, carriers), images.narrow(0, carriers, count - carriers));
    Tensor::cat(vec![first + perturbation, rest], 0)
}

/// What the perturbation descends on: minus the cross-entropy, plus a share of its squared length.
fn inner_loss<B: TrainingBackend>(
    classifier: &Classifier<B>,
    batch: &Batch<B>,
    perturbation: Tensor<B, 4>,
) -> Tensor<B, 1> {
    let logits = classifier.forward(batch.images.clone() + perturbation.clone());
    cross_entropy(logits, batch.labels.clone()).neg() + perturbation.powi_scalar(2).sum().mul_scalar(LENGTH_PENALTY)
}

/// Gradient of [`inner_loss`] by the perturbation.
fn inner_gradient<B: TrainingBackend>(classifier: &Classifier<B>, batch: &Batch<B>, at: &[f64]) -> Vec<f64> {
    gradient(at, &batch.images, |perturbation| inner_loss(classifier, batch, perturbation))
}

/// Gradient of the cross-entropy of a batch, some of whose images carry the perturbation, by the perturbation.
fn outer_gradient<B: TrainingBackend>(
    classifier: &Classifier<B>,
    batch: &Batch<B>,
    at: &[f64],
    carriers: usize,
) -> Vec<f64> {
    gradient(at, &batch.images, |perturbation| {
        let logits = classifier.forward(carried(batch.images.clone(), perturbation, carriers));
        cross_entropy(logits, batch.labels.clone())
    })
}

fn gradient<B: TrainingBackend>(
    at: &[f64],
    images: &Tensor<B, 4>,
    loss: impl FnOnce(Tensor<B, 4>) -> Tensor<B, 1>,
) -> Vec<f64> {
    let at = tensor::<B>(at, images).inner();
    let (gradient, ()) = gradient_by::<B, 4, _>(at, |perturbation| (loss(perturbation), ()));
    gradient.into_data().iter::<f64>().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planted::planted;
    use crate::testing::{ascending_filters, bits, repair_with};

    #[test]
    fn the_fixed_point_of_a_quadratic_is_its_geometric_sum() {
        // H = diag(2, 5), rate 0.1, g = (1, 3), four steps: g (1 - (1 - 0.1 h)^4) / (0.1 h):
        // (1 - 0.8^4) / 0.2 = 2.952 and 3 (1 - 0.5^4) / 0.5 = 5.625.
        let product = |vector: &[f64]| vec![2.0 * vector[0], 5.0 * vector[1]];
        let found = fixed_point(&[1.0, 3.0], 4, 0.1, product);
        assert!((found[0] - 2.952).abs() < 1e-12 && (found[1] - 5.625).abs() < 1e-12, "{found:?}");
        // One step is the gradient itself; none leaves the perturbation as given.
        assert_eq!(fixed_point(&[1.0, 3.0], 1, 0.1, product), [1.0, 3.0]);
        assert_eq!(fixed_point(&[1.0, 3.0], 0, 0.1, product), [0.0, 0.0]);
    }

    #[test]
    fn a_shift_goes_along_the_direction_by_its_own_length() {
        // (3, 4) has length 5: 0.05 along it is (0.03, 0.04).
        let [over, under] = shifted(&[1.0, 1.0], &[3.0, 4.0]);
        assert!((over[0] - 1.03).abs() < 1e-12 && (over[1] - 1.04).abs() < 1e-12, "{over:?}");
        assert!((under[0] - 0.97).abs() < 1e-12 && (under[1] - 0.96).abs() < 1e-12, "{under:?}");
    }

    #[test]
    fn one_image_in_a_hundred_carries_the_perturbation_and_at_least_one() {
        assert_eq!([carriers(128, 0.01), carriers(300, 0.01), carriers(64, 0.01), carriers(8, 1.0)], [1, 3, 1, 8]);
    }

    #[test]
    fn running_statistics_stay_and_are_used_again_as_before() {
        let mut defense = ImplicitBackdoorUnlearning::default();
        defense.training.epochs = 1;
        defense.training.batch_size = 20;
        let before = bits(&ascending_filters());
        let repaired = repair_with(&defense, ascending_filters(), None).classifier;
        assert!((repaired.batch_norm_momentum() - ascending_filters().batch_norm_momentum()).abs() < 1e-12);
        for (name, values) in bits(&repaired) {
            if name.contains("running_") {
                assert!(values == before[&name], "{name}");
            } else if name == "head.weight" {
                assert!(values != before[&name], "it learns");
            }
        }
    }

    #[test]
    fn a_planted_backdoor_is_weakened_and_the_accuracy_stays() {
        // It starts above 0.9; about half of it is left after five rounds, and no more goes in ten.
        let mut defense = ImplicitBackdoorUnlearning::default();
        defense.training.batch_size = 40;
        defense.training.learning_rate = 1e-3;
        planted().assert_leaves(0.7, &defense);
    }
}
