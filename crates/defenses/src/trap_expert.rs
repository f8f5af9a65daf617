use burn::module::AutodiffModule;
use burn::tensor::activation::log_softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use patchdoor_kernels::{TrainingBackend, differentiate};
use patchdoor_model::{Classifier, ClassifierConfig, PatchMoeConfig};
use patchdoor_train::{Batch, BatchPass, BatchPosition, Objective, TrainingConfig, cross_entropy};
use serde::{Deserialize, Serialize};

use crate::error::invalid;
use crate::label_likelihood::{label_likelihoods, log_likelihood};
use crate::training_work::{Phase, Phases};
use crate::{DefendedClassifier, Defense, DefenseError, Filtering, Need, SafelyTrained, TrainingDefense, TrainingWork};

/// An expert that is trained first and thrown away, so that the shortcut is learned there: a defense of this project, after Nested `PoE`
/// (arXiv:2404.02356), which lets small models absorb triggers, and the reweighting of Karimi Mahabadi et al. (2020, arXiv:1909.06321).
///
/// *Trap*: one expert, as wide as one of the mixture and with a trunk, router and head of its own, is trained on all examples by the
/// generalised cross-entropy (Zhang and Sabuncu 2018, arXiv:1805.07836), (1 - p^q) / q, whose gradient is that of the cross-entropy
/// times p^q: it goes on with what is easy and leaves the rest. *Mixture*: the classifier itself is trained from its usual initial weights, as
/// the experiment's `[training]` says, with what the trap makes of every example held against it ([`TrapUse`]). The trap is then dropped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct TrapExpert {
    /// The exponent of the generalised cross-entropy, in (0, 1]: towards 0 it is the cross-entropy, at 1 the mean absolute error.
    pub q: f64,
    /// Epochs of the trap.
    pub trap_epochs: usize,
    /// Epochs of the mixture; those of the experiment's training if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// How the trap's answers are held against the examples.
    pub trap: TrapUse,
    /// Share of an example's label to the trap above which it counts as trapped, in (0, 1).
    pub sure: f64,
}

/// How the mixture is kept from what the trap has learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrapUse {
    /// The cross-entropy of each example is weighed by one minus the share that the trap gives to its label, over the mean of all
    /// these weights; trapped examples weigh nothing.
    #[default]
    Weights,
    /// The cross-entropy is that of the product of both predictions, of the trap as it is frozen.
    Product,
}

impl Default for TrapExpert {
    /// The exponent of Zhang and Sabuncu. The rest is ours, chosen on the small planted backdoor of the tests.
    fn default() -> Self {
        Self { q: 0.7, trap_epochs: 3, epochs: None, trap: TrapUse::Weights, sure: 0.7 }
    }
}

impl Defense for TrapExpert {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        if !(self.q > 0.0 && self.q <= 1.0) {
            problems.push(invalid("q", self.q, "a number in (0, 1]"));
        }
        for (field, epochs) in [("trap-epochs", Some(self.trap_epochs)), ("epochs", self.epochs)] {
            if let Some(epochs) = epochs.filter(|epochs| !(1..=100_000).contains(epochs)) {
                problems.push(invalid(field, epochs, "1 to 100000"));
            }
        }
        if !(self.sure > 0.0 && self.sure < 1.0) {
            problems.push(invalid("sure", self.sure, "a number in (0, 1)"));
        }
        problems
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Experts]
    }

    fn epochs(&self, recipe: &TrainingConfig) -> usize {
        self.trap_epochs + self.epochs.unwrap_or(recipe.epochs)
    }

    fn make_quick(&mut self) {
        self.trap_epochs = 1;
        self.epochs = Some(1);
    }
}

impl<B: TrainingBackend> TrainingDefense<B> for TrapExpert {
    fn train(&self, work: &mut TrainingWork<'_>, device: &B::Device) -> Result<SafelyTrained<B>, DefenseError> {
        let set = work.set;
        if work.model.network().experts().is_none() {
            return Err(DefenseError::NoExperts { defense: "trap-expert" });
        }
        let trap = work.drawn::<B>(&alone(work.model), "trap-expert/weights", device)?;
        let classifier = work.blank::<B>(device)?;
        let config = work.recipe_of(self.trap_epochs);
        let own = work.recipe_of(self.epochs.unwrap_or(work.recipe.epochs));
        let mut phases = Phases::new(work, config.epochs + own.epochs);

        let objective = Some(&mut Generalised { q: self.q } as &mut dyn Objective<B>);
        let trap = phases.train(Phase { name: "trap", classifier: trap, set, config, objective }, device)?;
        let trap = trap.valid();
        let shares: Vec<f64> = label_likelihoods(&trap, set, device).into_iter().map(f64::exp).collect();
        let is_suspect = shares.iter().map(|&share| share > self.sure).collect();

        let mut weighed = Weighed { weights: weights(&shares, self.sure), of_batch: Vec::new() };
        let mut product = Product { trap };
        let objective: &mut dyn Objective<B> = match self.trap {
            TrapUse::Weights => &mut weighed,
            TrapUse::Product => &mut product,
        };
        let phase = Phase { name: "mixture", classifier, set, config: own, objective: Some(objective) };
        let classifier = phases.train(phase, device)?;
        let (history, phases) = phases.finish();
        Ok(SafelyTrained { classifier, history, phases, isolation: Filtering { scores: shares, is_suspect } })
    }
}

/// A network with one expert, as wide as those of the mixture, and the same trunk.
fn alone(mixture: &ClassifierConfig) -> ClassifierConfig {
    let mixture = mixture.network().nearest_patch_moe();
    let expert_channels = Some(mixture.resolved_expert_channels());
    PatchMoeConfig { experts: 1, expert_channels, ..mixture }.into()
}

/// What each example weighs, given the shares of the labels to the trap: one on average, unless all are trapped.
fn weights(shares: &[f64], sure: f64) -> Vec<f64> {
    let left = shares.iter().map(|&share| if share > sure { 0.0 } else { 1.0 - share }).collect::<Vec<_>>();
    let mean = left.iter().sum::<f64>() / left.len().max(1) as f64;
    left.into_iter().map(|weight| weight / mean.max(1e-6)).collect()
}

/// The generalised cross-entropy, `[1]`, from the logarithms of the shares of the labels, `[batch]`.
fn generalised<B: Backend>(likelihoods: Tensor<B, 1>, q: f64) -> Tensor<B, 1> {
    ((likelihoods * q).exp().neg() + 1.0).mean() / q
}

struct Generalised {
    q: f64,
}

impl<B: TrainingBackend> Objective<B> for Generalised {
    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        differentiate(|| {
            let logits = classifier.forward(batch.images);
            let loss = generalised(log_likelihood(logits.clone(), batch.labels), self.q);
            BatchPass::backward(classifier, &logits, &loss)
        })
    }
}

/// Cross-entropies of examples that weigh differently.
struct Weighed {
    /// Of every example of the set.
    weights: Vec<f64>,
    /// Of those of the batch under way.
    of_batch: Vec<f32>,
}

impl<B: TrainingBackend> Objective<B> for Weighed {
    fn rewrite(&mut self, batch: Batch<B>, at: &BatchPosition<'_>) -> Batch<B> {
        self.of_batch = at.indices.iter().map(|&index| self.weights[index] as f32).collect();
        batch
    }

    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        let data = TensorData::new(self.of_batch.clone(), [self.of_batch.len()]);
        let weights = Tensor::<B, 1>::from_data(data, &batch.images.device());
        differentiate(|| {
            let logits = classifier.forward(batch.images);
            let loss = (log_likelihood(logits.clone(), batch.labels) * weights).mean().neg();
            BatchPass::backward(classifier, &logits, &loss)
        })
    }
}

/// The cross-entropy of the product of two predictions, one of them frozen.
struct Product<B: TrainingBackend> {
    trap: Classifier<B::InnerBackend>,
}

impl<B: TrainingBackend> Objective<B> for Product<B> {
    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        let trapped = log_softmax(self.trap.forward(batch.images.clone().inner()), 1);
        differentiate(|| {
            let logits = classifier.forward(batch.images);
            let both = log_softmax(logits.clone(), 1) + Tensor::from_inner(trapped);
            let loss = cross_entropy(both, batch.labels);
            BatchPass::backward(classifier, &logits, &loss)
        })
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;
    use crate::planted::{SeenOn, planted};

    #[test]
    fn the_generalised_cross_entropy_lies_between_error_and_cross_entropy() {
        let of = |q| {
            let likelihoods = Tensor::<Flex, 1>::from_data([0.25f64.ln(), 0.64f64.ln()], &FlexDevice);
            generalised(likelihoods, q).into_data().iter::<f64>().sum::<f64>()
        };
        let assert_is = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
        // (0.75 + 0.36) / 2; 2 (0.5 + 0.2) / 2.
        assert_is(of(1.0), 0.555);
        assert_is(of(0.5), 0.7);
    }

    #[test]
    fn the_surer_the_trap_the_less_an_example_weighs() {
        // 0, 0.5, 0.7 and 1 with a mean of 0.55.
        let found = weights(&[0.95, 0.5, 0.3, 0.0], 0.9);
        for (found, expected) in found.iter().zip([0.0, 0.5, 0.7, 1.0]) {
            assert!((found - expected / 0.55).abs() < 1e-12, "{found}");
        }
        assert_eq!(weights(&[0.99; 3], 0.9), [0.0; 3], "nothing is left");
    }

    #[test]
    fn what_the_trap_has_learned_the_mixture_does_not() {
        if !SeenOn::Avx2.is_here() {
            return;
        }
        // The victim's attack success is above 0.9, both accuracies too.
        planted().assert_trains(0.25, 0.05, &TrapExpert::default());
        let trained = planted().train_on(true, &TrapExpert::default());
        let outcome = planted().isolated(&trained.isolation.is_suspect);
        assert!(outcome.true_positive_rate() > Some(0.9), "{outcome:?}");
    }
}
