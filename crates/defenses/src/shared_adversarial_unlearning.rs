use burn::module::AutodiffModule;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use patchdoor_kernels::{TrainingBackend, differentiate};
use patchdoor_model::Classifier;
use patchdoor_train::{
    AdamConfig, Batch, BatchPass, Objective, OptimizerConfig, Trainable, TrainingConfig, classes_of, cross_entropy,
    gradient_by,
};
use serde::{Deserialize, Serialize};

use crate::defense::has_training_table;
use crate::error::{check_count, check_positive, check_weight};
use crate::tuning::{tune_on, validate_own_training};
use crate::{DefendedClassifier, Defense, DefenseError, ModelRepair, RepairWork, Repaired};

/// Unlearns perturbations that mislead the classifier and the one from before the repair to the same wrong class.
///
/// Shared adversarial unlearning (SAU; Wei et al. 2023, arXiv:2307.10562). Of every batch, a perturbation of each image climbs, by
/// the sign of its gradient, from the largest there is: [`adversarial_weight`](Self::adversarial_weight) times the cross-entropy of
/// the images that are not yet misled, a mean over both classifiers, minus [`divergence_weight`](Self::divergence_weight) times
/// the Jensen-Shannon divergence of the two predictions where they do not yet share a wrong class. Then the classifier descends on
/// the cross-entropy of the clean images plus [`shared_weight`](Self::shared_weight) times minus the logarithm of the share it
/// leaves to other classes than the one that the classifier from before is misled to. Normalizations use the running statistics,
/// which stay; pixels may leave [0, 1], as in the authors' code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct SharedAdversarialUnlearning {
    /// The largest change of a pixel in [0, 1], a finite number above 0.
    pub bound: f64,
    /// Length of a step of the perturbation, a finite number above 0.
    pub step: f64,
    /// Steps of the perturbation, 1 or more.
    pub steps: usize,
    /// Weight of the cross-entropy in the perturbation, 0 or more.
    pub adversarial_weight: f64,
    /// Weight of the divergence in the perturbation, 0 or more.
    pub divergence_weight: f64,
    /// Weight of the shared perturbations in the training, 0 or more.
    pub shared_weight: f64,
    /// How the weights are trained.
    pub training: TrainingConfig,
}

impl Default for SharedAdversarialUnlearning {
    /// The numbers of the code of Wei et al. (2023) in `BackdoorBench` (arXiv:2206.12654): 100 rounds of Adam at 1e-4.
    fn default() -> Self {
        Self {
            bound: 0.2,
            step: 0.2,
            steps: 5,
            adversarial_weight: 0.01,
            divergence_weight: 1.0,
            shared_weight: 1.0,
            training: TrainingConfig {
                epochs: 100,
                batch_size: 256,
                learning_rate: 1e-4,
                optimizer: OptimizerConfig::Adam(AdamConfig::default()),
                ..TrainingConfig::default()
            },
        }
    }
}

impl Defense for SharedAdversarialUnlearning {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        for (field, value) in [("bound", self.bound), ("step", self.step)] {
            problems.extend(check_positive(field, value));
        }
        problems.extend(check_count("steps", self.steps));
        let weights = [
            ("adversarial-weight", self.adversarial_weight),
            ("divergence-weight", self.divergence_weight),
            ("shared-weight", self.shared_weight),
        ];
        for (field, weight) in weights {
            problems.extend(check_weight(field, weight));
        }
        problems.extend(validate_own_training(&self.training));
        problems
    }

    /// The 5 % of `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654).
    fn default_clean_fraction(&self) -> f64 {
        0.05
    }

    has_training_table!();
}

impl<B: TrainingBackend> ModelRepair<B> for SharedAdversarialUnlearning {
    fn repair(
        &self,
        mut classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        let before = classifier.clone().freeze_all_but(&[]);
        // A share of zero of the batch in the running statistics is none: they stay, and are what normalizes.
        let momentum = classifier.batch_norm_momentum();
        classifier.set_batch_norm_momentum(0.0);
        let mut objective = Unlearning { config: self, before };
        let trainable = Trainable::default();
        let (classifier, history) =
            tune_on(Some(&mut objective), classifier, &self.training, &trainable, work, device)?;
        Ok(Repaired::tuned(classifier.thaw(momentum), history))
    }
}

struct Unlearning<'a, B: TrainingBackend> {
    config: &'a SharedAdversarialUnlearning,
    /// The classifier from before, frozen.
    before: Classifier<B>,
}

impl<B: TrainingBackend> Unlearning<'_, B> {
    /// The images of a batch, perturbed.
    fn perturbed(&self, classifier: &Classifier<B>, batch: &Batch<B>) -> Tensor<B::InnerBackend, 4> {
        let config = self.config;
        let images = batch.images.clone().inner();
        let frozen = classifier.clone().freeze_all_but(&[]);
        let classes = [&frozen, &self.before].map(|network| classes_of(network.valid().forward(images.clone())));
        let mut perturbation = images.zeros_like() + config.bound;
        for _ in 0..config.steps {
            let (uphill, is_done) = gradient_by::<B, 4, _>(perturbation.clone(), |perturbation| {
                let carried = batch.images.clone() + perturbation;
                let logits = [frozen.forward(carried.clone()), self.before.forward(carried)];
                let found = logits.each_ref().map(|logits| classes_of(logits.clone().inner()));
                let misled = [0, 1].map(|network| Misled::of(&found[network], &classes[network]));
                let shares = misled[0].shared_with(&misled[1]);
                let is_done = shares.iter().all(|&shares| shares);
                let gain = self.gain(logits, batch, &misled, &shares);
                (gain, is_done)
            });
            perturbation = (perturbation + uphill.sign() * config.step).clamp(-config.bound, config.bound);
            if is_done {
                break;
            }
        }
        images + perturbation
    }

    /// What the perturbation climbs.
    fn gain(&self, logits: [Tensor<B, 2>; 2], batch: &Batch<B>, misled: &[Misled; 2], shares: &[bool]) -> Tensor<B, 1> {
        let count = shares.len() as f64;
        let mut gain = jensen_shannon(&logits) * weights(shares.iter().map(|&shares| !shares), &logits[0]);
        gain = gain * -self.config.divergence_weight;
        for (logits, misled) in logits.into_iter().zip(misled) {
            let own = log_softmax(logits, 1).gather(1, batch.labels.clone().unsqueeze_dim(1));
            let left = weights(misled.0.iter().map(Option::is_none), &own);
            gain = gain - own * left * (0.5 * self.config.adversarial_weight);
        }
        gain.sum() / count
    }
}

impl<B: TrainingBackend> Objective<B> for Unlearning<'_, B> {
    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        let perturbed = self.perturbed(classifier, &batch);
        let before = self.before.valid();
        let own = classes_of(before.forward(batch.images.clone().inner()));
        let misled = classes_of(before.forward(perturbed.clone()));
        let labels = batch.labels.clone().into_data().iter::<i64>().collect::<Vec<_>>();
        let counts = |image: usize| i64::from(misled[image]) != labels[image] && misled[image] != own[image];
        let counts = (0..misled.len()).map(counts).collect::<Vec<_>>();
        differentiate(|| {
            let logits = classifier.forward(batch.images);
            let mut loss = cross_entropy(logits.clone(), batch.labels);
            if counts.contains(&true) && self.config.shared_weight > 0.0 {
                let perturbed = classifier.forward(Tensor::from_inner(perturbed));
                loss = loss + shared_loss(perturbed, &misled, &counts) * self.config.shared_weight;
            }
            BatchPass::backward(classifier, &logits, &loss)
        })
    }
}

/// The class that each image is misled to, if it is.
#[derive(Debug, PartialEq)]
struct Misled(Vec<Option<u8>>);

impl Misled {
    fn of(found: &[u8], own: &[u8]) -> Self {
        Self(found.iter().zip(own).map(|(found, own)| (found != own).then_some(*found)).collect())
    }

    /// Whether both are misled to the same class.
    fn shared_with(&self, other: &Self) -> Vec<bool> {
        self.0.iter().zip(&other.0).map(|(own, other)| own.is_some() && own == other).collect()
    }
}

/// One where it is said and zero elsewhere, `[image, 1]`.
fn weights<B: Backend>(said: impl Iterator<Item = bool>, beside: &Tensor<B, 2>) -> Tensor<B, 2> {
    let values = said.map(|said| f32::from(u8::from(said))).collect::<Vec<_>>();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count, 1]), &beside.device())
}

/// The Jensen-Shannon divergence of the two predictions of each image in nats, `[image, 1]`, from logits `[image, class]`.
fn jensen_shannon<B: Backend>(logits: &[Tensor<B, 2>; 2]) -> Tensor<B, 2> {
    let [first, second] = logits.each_ref().map(|logits| softmax(logits.clone(), 1).clamp_min(1e-8));
    let mixed = ((first.clone() + second.clone()) * 0.5).log();
    let of = |shares: Tensor<B, 2>| (shares.clone() * (shares.log() - mixed.clone())).sum_dim(1) * 0.5;
    of(first) + of(second)
}

/// The sum over the images that count of minus the logarithm of one minus the share of the given class, over all images.
fn shared_loss<B: Backend>(logits: Tensor<B, 2>, classes: &[u8], counts: &[bool]) -> Tensor<B, 1> {
    let device = logits.device();
    let given = classes.iter().map(|&class| i32::from(class)).collect::<Vec<_>>();
    let given = Tensor::from_data(TensorData::new(given, [classes.len(), 1]), &device);
    let counting = weights(counts.iter().copied(), &logits);
    let share = softmax(logits, 1).gather(1, given);
    // Shares below a thousandth are no longer pushed, as in the authors' code.
    let left = (share.clamp_min(1e-3).neg() + 1.0 + 1e-6).log();
    (left * counting).sum().neg() / classes.len() as f64
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use patchdoor_train::BatchNormStatistics;

    use super::*;
    use crate::planted::{SeenOn, planted};
    use crate::testing::{ascending_filters, bits, repair_with};

    fn logits(shares: [[f32; 2]; 2]) -> Tensor<Flex, 2> {
        Tensor::from_data(shares.map(|row| row.map(f32::ln)), &FlexDevice)
    }

    #[test]
    fn the_divergence_of_two_predictions_worked_out_by_hand() {
        // (1/2, 1/2) and (1/4, 3/4), mixed (3/8, 5/8): (0.5 ln 4/3 + 0.5 ln 4/5) / 2 + (0.25 ln 2/3 + 0.75 ln 6/5) / 2 =
        // 0.016135 + 0.017687 = 0.033822. Alike: nothing.
        let found = jensen_shannon(&[logits([[0.5, 0.5], [0.3, 0.7]]), logits([[0.25, 0.75], [0.3, 0.7]])]);
        let found = found.into_data().iter::<f64>().collect::<Vec<_>>();
        assert!((found[0] - 0.033_822).abs() < 1e-5 && found[1].abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn the_shared_loss_is_of_the_share_left_to_other_classes() {
        // Images 0 and 1 are misled to class 1 with shares 3/4 and 1/2; the second does not count: -ln(1/4) / 2 = ln 2.
        let of = |counts| shared_loss(logits([[0.25, 0.75], [0.5, 0.5]]), &[1, 1], counts).into_scalar();
        assert!((of(&[true, false]) - 2.0f32.ln()).abs() < 1e-4);
        assert!((of(&[true, true]) - 1.039_721).abs() < 1e-4);
    }

    #[test]
    fn images_share_where_both_are_misled_to_the_same_class() {
        let (own, other) = (Misled::of(&[1, 2, 3, 4], &[1, 0, 0, 0]), Misled::of(&[1, 2, 2, 5], &[1, 0, 0, 0]));
        assert_eq!(own, Misled(vec![None, Some(2), Some(3), Some(4)]));
        assert_eq!(own.shared_with(&other), [false, true, false, false]);
    }

    #[test]
    fn running_statistics_stay() {
        let mut defense = SharedAdversarialUnlearning::default();
        defense.training.epochs = 1;
        defense.training.batch_size = 20;
        let before = bits(&ascending_filters());
        for (name, values) in bits(&repair_with(&defense, ascending_filters(), None).classifier) {
            if name.contains("running_") {
                assert!(values == before[&name], "{name}");
            } else if name == "head.weight" {
                assert!(values != before[&name], "it learns");
            }
        }
    }

    #[test]
    fn a_planted_backdoor_goes_and_the_accuracy_stays() {
        if !SeenOn::Avx512.is_here() {
            return;
        }
        let training = TrainingConfig {
            epochs: 8,
            batch_size: 40,
            learning_rate: 1e-3,
            batch_norm_statistics: BatchNormStatistics::Running,
            ..SharedAdversarialUnlearning::default().training
        };
        let defense = SharedAdversarialUnlearning { training, ..Default::default() };
        planted().assert_repairs(&defense);
    }
}
