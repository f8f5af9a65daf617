use burn::module::AutodiffModule;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use patchdoor_data::ImageSet;
use patchdoor_kernels::{TrainingBackend, differentiate};
use patchdoor_metrics::share_down;
use patchdoor_model::Classifier;
use patchdoor_train::{
    Batch, BatchNormStatistics, BatchPass, Objective, ScheduleConfig, TrainingConfig, cross_entropy,
};
use serde::{Deserialize, Serialize};

use crate::error::{check_positive, check_weight, invalid};
use crate::label_likelihood::{label_likelihoods, log_likelihood};
use crate::training_work::{Phase, Phases};
use crate::{DefendedClassifier, Defense, DefenseError, Filtering, SafelyTrained, TrainingDefense, TrainingWork};

/// Anti-backdoor learning (ABL; Li et al. 2021, arXiv:2110.11571): what a backdoor teaches is learned first, and can be told by that.
///
/// Three phases. *Isolation* trains on all examples with a loss that is kept from falling below [`gamma`](Self::gamma); poisoned ones
/// fall below it all the same. The [`isolated_fraction`](Self::isolated_fraction) of lowest cross-entropy is set apart. *Rest* trains the
/// same classifier on the others. *Unlearning* climbs the cross-entropy of the isolated ones.
///
/// Departures: the first two phases train as the experiment's `[training]` says, over their own epochs, instead of at rates of their
/// own; normalizations keep their statistics in the last, whose images are mostly of one class and carry the trigger; and it ends before it
/// costs more than [`largest_drop`](Self::largest_drop), where there are validation images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct AntiBackdoorLearning {
    /// What the isolation descends on.
    pub loss: IsolationLoss,
    /// What it is a function of.
    pub scope: LossScope,
    /// The cross-entropy below which it turns, in nats.
    pub gamma: f64,
    /// Share of the examples that are isolated, in (0, 1), rounded down, but one at least.
    pub isolated_fraction: f64,
    /// Epochs on all examples, before they are isolated.
    pub isolation_epochs: usize,
    /// Epochs on the rest, after that; 0 leaves them out.
    pub rest_epochs: usize,
    /// Epochs of unlearning, at most.
    pub unlearning_epochs: usize,
    /// Learning rate of unlearning, all through.
    pub unlearning_rate: f64,
    /// Unlearning ends at the first epoch after which the validation accuracy lies more than this below that before it, in [0, 1], and
    /// that epoch is taken back.
    pub largest_drop: f64,
}

/// A loss that is kept from falling below a number gamma; l is a cross-entropy in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IsolationLoss {
    /// abs(l - gamma) + gamma (Ishida et al. 2020, arXiv:2002.08709).
    #[default]
    Flooding,
    /// sign(l - gamma) l, the LGA loss of Li et al.
    LocalGradientAscent,
}

/// Whose cross-entropy is kept from falling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossScope {
    /// The mean of a batch, as the code of Li et al. and `BackdoorBench` compute it.
    #[default]
    Batch,
    /// That of each example, as the paper's equation has it.
    Example,
}

impl Default for AntiBackdoorLearning {
    /// Flooding at 0.5, 1 %, and 20, 60 and 20 epochs, as `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654) has it; a rate of 5e-4, as the
    /// paper and the configurations of both codes, which then set 1e-4. A drop of 0.05 is ours.
    fn default() -> Self {
        Self {
            loss: IsolationLoss::Flooding,
            scope: LossScope::Batch,
            gamma: 0.5,
            isolated_fraction: 0.01,
            isolation_epochs: 20,
            rest_epochs: 60,
            unlearning_epochs: 20,
            unlearning_rate: 5e-4,
            largest_drop: 0.05,
        }
    }
}

impl Defense for AntiBackdoorLearning {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        problems.extend(check_weight("gamma", self.gamma));
        if !(self.isolated_fraction > 0.0 && self.isolated_fraction < 1.0) {
            problems.push(invalid("isolated-fraction", self.isolated_fraction, "a fraction in (0, 1)"));
        }
        if !(1..=100_000).contains(&self.isolation_epochs) {
            problems.push(invalid("isolation-epochs", self.isolation_epochs, "1 to 100000"));
        }
        for (field, epochs) in [("rest-epochs", self.rest_epochs), ("unlearning-epochs", self.unlearning_epochs)] {
            if epochs > 100_000 {
                problems.push(invalid(field, epochs, "0 to 100000"));
            }
        }
        problems.extend(check_positive("unlearning-rate", self.unlearning_rate));
        if !(0.0..=1.0).contains(&self.largest_drop) {
            problems.push(invalid("largest-drop", self.largest_drop, "a number in [0, 1]"));
        }
        problems
    }

    fn epochs(&self, _recipe: &TrainingConfig) -> usize {
        self.isolation_epochs + self.rest_epochs + self.unlearning_epochs
    }

    fn make_quick(&mut self) {
        for epochs in [&mut self.isolation_epochs, &mut self.rest_epochs, &mut self.unlearning_epochs] {
            *epochs = (*epochs).min(1);
        }
    }
}

impl<B: TrainingBackend> TrainingDefense<B> for AntiBackdoorLearning {
    fn train(&self, work: &mut TrainingWork<'_>, device: &B::Device) -> Result<SafelyTrained<B>, DefenseError> {
        let set = work.set;
        let mut classifier = work.blank::<B>(device)?;
        let [isolation, rest] = [self.isolation_epochs, self.rest_epochs].map(|epochs| work.recipe_of(epochs));
        let mut phases = Phases::new(work, self.epochs(work.recipe));

        let objective = Some(&mut Kept { config: self } as &mut dyn Objective<B>);
        let phase = Phase { name: "isolation", classifier, set, config: isolation, objective };
        classifier = phases.train(phase, device)?;
        let isolation = self.isolate(&label_likelihoods(&classifier.valid(), set, device));
        let [isolated, others] = [true, false].map(|chosen| set.subset(&indices(&isolation.is_suspect, chosen)));

        let phase = Phase { name: "rest", classifier, set: &others, config: rest, objective: None };
        classifier = phases.train(phase, device)?;

        classifier = self.unlearn(classifier, &isolated, &mut phases, device)?;
        let (history, phases) = phases.finish();
        Ok(SafelyTrained { classifier, history, phases, isolation })
    }
}

impl AntiBackdoorLearning {
    /// Climbs the cross-entropy of these examples.
    fn unlearn<B: TrainingBackend>(
        &self,
        mut classifier: Classifier<B>,
        isolated: &ImageSet,
        phases: &mut Phases<'_, '_>,
        device: &B::Device,
    ) -> Result<Classifier<B>, DefenseError> {
        let config = TrainingConfig {
            learning_rate: self.unlearning_rate,
            schedule: ScheduleConfig::Constant,
            batch_norm_statistics: BatchNormStatistics::Running,
            ..phases.recipe_of(self.unlearning_epochs)
        };
        // A share of zero of the batch in the running statistics is none: they stay, and are what normalizes.
        let momentum = classifier.batch_norm_momentum();
        classifier.set_batch_norm_momentum(0.0);
        let objective = Some(&mut Ascent as &mut dyn Objective<B>);
        let phase = Phase { name: "unlearning", classifier, set: isolated, config, objective };
        Ok(phases.train_guarded(phase, self.largest_drop, device)?.thaw(momentum))
    }

    /// Sets apart the examples whose labels are most likely to the classifier; ties go to the lower number.
    fn isolate(&self, likelihoods: &[f64]) -> Filtering {
        let count = share_down(self.isolated_fraction, likelihoods.len()).max(1);
        let mut order = (0..likelihoods.len()).collect::<Vec<_>>();
        order.sort_by(|&a, &b| likelihoods[b].total_cmp(&likelihoods[a]).then(a.cmp(&b)));
        let mut is_suspect = vec![false; likelihoods.len()];
        for &example in order.iter().take(count) {
            is_suspect[example] = true;
        }
        Filtering { scores: likelihoods.to_vec(), is_suspect }
    }

    /// What the isolation descends on, `[1]`, from the cross-entropy of each example of a batch, `[batch]`.
    fn kept<B: Backend>(&self, losses: Tensor<B, 1>) -> Tensor<B, 1> {
        let losses = match self.scope {
            LossScope::Batch => losses.mean(),
            LossScope::Example => losses,
        };
        let above = losses.clone() - self.gamma;
        let kept = match self.loss {
            IsolationLoss::Flooding => above.abs() + self.gamma,
            IsolationLoss::LocalGradientAscent => above.detach().sign() * losses,
        };
        kept.mean()
    }
}

/// The examples that are suspects, or those that are not.
fn indices(is_suspect: &[bool], chosen: bool) -> Vec<usize> {
    (0..is_suspect.len()).filter(|&example| is_suspect[example] == chosen).collect()
}

/// A cross-entropy that is kept from falling.
struct Kept<'a> {
    config: &'a AntiBackdoorLearning,
}

impl<B: TrainingBackend> Objective<B> for Kept<'_> {
    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        differentiate(|| {
            let logits = classifier.forward(batch.images);
            let loss = self.config.kept(log_likelihood(logits.clone(), batch.labels).neg());
            BatchPass::backward(classifier, &logits, &loss)
        })
    }
}

/// The cross-entropy, climbed.
struct Ascent;

impl<B: TrainingBackend> Objective<B> for Ascent {
    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        differentiate(|| {
            let logits = classifier.forward(batch.images);
            let loss = cross_entropy(logits.clone(), batch.labels).neg();
            BatchPass::backward(classifier, &logits, &loss)
        })
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;
    use crate::planted::{SeenOn, planted};
    use IsolationLoss::{Flooding, LocalGradientAscent};
    use LossScope::{Batch as Mean, Example};

    #[test]
    fn a_loss_below_gamma_is_turned_around() {
        let kept = |loss, scope, losses: [f64; 2]| {
            let config = AntiBackdoorLearning { loss, scope, gamma: 0.5, ..AntiBackdoorLearning::default() };
            let losses = Tensor::<Flex, 1>::from_data(losses, &FlexDevice);
            config.kept(losses).into_data().iter::<f64>().sum::<f64>()
        };
        let assert_is = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
        // The mean of 0.2 and 1.0 is 0.6, above 0.5; that of 0.1 and 0.3 is 0.2: 0.3 below and 0.5 on top.
        assert_is(kept(Flooding, Mean, [0.2, 1.0]), 0.6);
        assert_is(kept(Flooding, Mean, [0.1, 0.3]), 0.8);
        assert_is(kept(LocalGradientAscent, Mean, [0.2, 1.0]), 0.6);
        assert_is(kept(LocalGradientAscent, Mean, [0.1, 0.3]), -0.2);
        // (0.3 + 0.5 + 0.5 + 0.5) / 2, and (-0.2 + 1.0) / 2.
        assert_is(kept(Flooding, Example, [0.2, 1.0]), 0.9);
        assert_is(kept(LocalGradientAscent, Example, [0.2, 1.0]), 0.4);
    }

    #[test]
    fn the_likeliest_labels_are_isolated_and_one_of_them_at_least() {
        let config = |isolated_fraction| AntiBackdoorLearning { isolated_fraction, ..AntiBackdoorLearning::default() };
        let likelihoods = [-0.5, -0.1, -2.0, -0.1];
        assert_eq!(config(0.5).isolate(&likelihoods).is_suspect, [false, true, false, true]);
        assert_eq!(config(0.01).isolate(&likelihoods).is_suspect, [false, true, false, false]);
    }

    /// Isolation works less well than in the paper: docs/defenses.md says why.
    #[test]
    fn more_of_what_it_isolates_is_poisoned_than_by_chance_and_the_accuracy_stays() {
        if !SeenOn::Avx2.is_here() {
            return;
        }
        let defense = AntiBackdoorLearning {
            isolated_fraction: 0.05,
            isolation_epochs: 5,
            rest_epochs: 10,
            ..AntiBackdoorLearning::default()
        };
        let poisoned = planted().train_on(true, &defense);
        let clean = planted().train_on(false, &defense);
        let outcome = planted().isolated(&poisoned.isolation.is_suspect);
        // Every fifth image is poisoned.
        assert!(outcome.precision() > Some(0.4), "{outcome:?}");
        for classifier in [&poisoned.classifier, &clean.classifier] {
            let accuracy = planted().accuracy(classifier);
            assert!(accuracy > 0.9, "accuracy {accuracy}");
        }
    }
}
