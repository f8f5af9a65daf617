use burn::tensor::{Int, Tensor, TensorData};
use patchdoor_data::{ImageSet, ImageShape, stream};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use patchdoor_train::{Adam, classes_of, cross_entropy, gradient_by};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::DefenseError;
use crate::batch_stream::BatchStream;
use crate::covered_gates::{cells, unselected};
use crate::error::{check_count, check_positive, check_share, check_weight, invalid};
use crate::reversed_trigger::{ReversedTrigger, mask_and_pattern, stamped, unsquashed};

/// How the smallest trigger of a class is looked for: a mask and a pattern that together send clean images of all classes to it.
///
/// Adam descends on the cross-entropy towards the class plus a cost times the sum of the mask. After each round the cost follows
/// the success: it rises after [`patience`](Self::patience) rounds of enough success and falls after as many without. The smallest
/// mask of a round of enough success is the one that is found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ReversalConfig {
    /// Rounds of every class, 1 or more.
    pub rounds: usize,
    /// Steps of each round, one for each batch of clean images; 1 or more.
    pub steps: usize,
    /// Images of each batch, 1 or more.
    pub batch_size: usize,
    /// Adam's rate, a finite number above 0.
    pub learning_rate: f64,
    /// What a mask of one pixel costs once there is success, in nats, a finite number above 0.
    pub cost: f64,
    /// What the cost is multiplied by where it rises, above 1; where it falls it is divided by the power of 1.5 of that.
    pub cost_factor: f64,
    /// Rounds after which the cost changes, 1 or more.
    pub patience: usize,
    /// The share of a round's images that have to go to the class, in (0, 1].
    pub success: f64,
    /// Weight of the gates: how much it counts that the routers select the patches which the mask covers, 0 or more. Our own;
    /// 0 leaves it out.
    pub gate_weight: f64,
}

impl Default for ReversalConfig {
    /// Wang et al. (2019, IEEE S&P): Adam at 0.1, a cost of 1e-3 that rises by 2 and falls by 2^1.5, patience 5. A success of
    /// 98 % and batches of 64 as in `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654), whose ten epochs of 2,500 images are as
    /// many steps as 40 rounds of 10.
    fn default() -> Self {
        Self {
            rounds: 40,
            steps: 10,
            batch_size: 64,
            learning_rate: 0.1,
            cost: 1e-3,
            cost_factor: 2.0,
            patience: 5,
            success: 0.98,
            gate_weight: 0.0,
        }
    }
}

impl ReversalConfig {
    /// All problems, below the table `reversal`.
    pub(crate) fn validate(&self) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        let counts = [
            ("rounds", self.rounds),
            ("steps", self.steps),
            ("batch-size", self.batch_size),
            ("patience", self.patience),
        ];
        let of_count = |(field, count)| check_count(&format!("reversal.{field}"), count);
        problems.extend(counts.into_iter().filter_map(of_count));
        for (field, value) in [("learning-rate", self.learning_rate), ("cost", self.cost)] {
            problems.extend(check_positive(&format!("reversal.{field}"), value));
        }
        if !(self.cost_factor > 1.0 && self.cost_factor.is_finite()) {
            problems.push(invalid("reversal.cost-factor", self.cost_factor, "a finite number above 1"));
        }
        problems.extend(check_share("reversal.success", self.success));
        problems.extend(check_weight("reversal.gate-weight", self.gate_weight));
        problems
    }

    /// Whether it asks the routers.
    pub(crate) fn asks_routers(&self) -> bool {
        self.gate_weight > 0.0
    }

    pub(crate) fn make_quick(&mut self) {
        self.rounds = self.rounds.min(2);
        self.steps = self.steps.min(2);
        self.batch_size = self.batch_size.min(16);
    }

    /// The smallest trigger that was found of every class.
    ///
    /// Random draws come from the stream `defense/reversal/CLASS`, batches from `defense/reversal-order`.
    pub(crate) fn reverse<B: TrainingBackend>(
        &self,
        classifier: Classifier<B>,
        (clean, seed): (&ImageSet, u64),
        is_stopped: &dyn Fn() -> bool,
        device: &B::Device,
    ) -> Result<Vec<ReversedTrigger>, DefenseError> {
        // Frozen, it normalizes as in inference, and no weight takes a gradient.
        let classifier = classifier.freeze_all_but(&[]);
        let cells = self.asks_routers().then(|| cells::<B>(&classifier, clean.shape(), device)).flatten();
        let of_class = |class| {
            let mut search = Search::<B>::new(self, class, clean.shape(), seed, device);
            let mut batches = BatchStream::<B>::new(clean, self.batch_size, seed, "defense/reversal-order", device);
            for _ in 0..self.rounds {
                if is_stopped() {
                    return Err(DefenseError::Interrupted { epochs: 0 });
                }
                search.round(&classifier, &mut batches, cells.as_ref(), device);
            }
            Ok(search.found())
        };
        (0..classifier.classes()).map(of_class).collect()
    }
}

#[cfg(test)]
impl ReversalConfig {
    /// Few rounds, many steps: sixteen pixels a side are soon searched.
    pub(crate) fn of_small_images() -> Self {
        Self { rounds: 30, steps: 4, batch_size: 32, patience: 2, cost: 0.01, ..Self::default() }
    }
}

/// The search for the trigger of one class.
struct Search<'a, B: TrainingBackend> {
    config: &'a ReversalConfig,
    class: usize,
    /// What mask and pattern are squashed from, `[1, row, column, 1 + channel]`.
    raw: Tensor<B::InnerBackend, 4>,
    adam: Adam<B, 4>,
    schedule: CostSchedule,
    best: Option<ReversedTrigger>,
}

impl<'a, B: TrainingBackend> Search<'a, B> {
    fn new(config: &'a ReversalConfig, class: usize, shape: ImageShape, seed: u64, device: &B::Device) -> Self {
        let mut rng = stream(seed, &format!("defense/reversal/{class}"));
        let size = [1, shape.height, shape.width, 1 + shape.channels];
        // Mask and pattern are uniform at first, as in the authors' code.
        let raw = (0..size.iter().product()).map(|_| unsquashed(rng.random_range(0.0..1.0))).collect::<Vec<f32>>();
        Self {
            config,
            class,
            raw: Tensor::from_data(TensorData::new(raw, size), device),
            adam: Adam::new(config.learning_rate, [0.5, 0.9]),
            schedule: CostSchedule::new(config),
            best: None,
        }
    }

    fn round(
        &mut self,
        classifier: &Classifier<B>,
        batches: &mut BatchStream<'_, B>,
        cells: Option<&Tensor<B, 2>>,
        device: &B::Device,
    ) {
        let (mut taken, mut images) = (0, 0);
        for _ in 0..self.config.steps {
            let batch = batches.next(device).images;
            let count = batch.dims()[0];
            let target = Tensor::<B, 1, Int>::full([count], self.class as i64, device);
            let cost = self.schedule.cost;
            let (gradient, predicted) = gradient_by::<B, 4, _>(self.raw.clone(), |raw| {
                let [mask, pattern] = mask_and_pattern(raw);
                let stamped = stamped(batch.clone(), mask.clone(), pattern);
                let (logits, routings) = classifier.forward_with_routing(stamped);
                let mut loss = cross_entropy(logits.clone(), target) + mask.clone().sum() * cost;
                if let (Some(cells), Some(routing)) = (cells, routings.first()) {
                    loss = loss + unselected(routing.weights(), mask, cells.clone()) * self.config.gate_weight;
                }
                (loss, classes_of(logits.inner()))
            });
            taken += predicted.iter().filter(|&&class| usize::from(class) == self.class).count();
            images += count;
            self.raw = self.adam.step(self.raw.clone(), gradient);
        }
        let succeeds = taken as f64 >= self.config.success * images as f64;
        let now = self.trigger(succeeds);
        if succeeds && self.best.as_ref().is_none_or(|best| now.size() < best.size()) {
            self.best = Some(now);
        }
        self.schedule.round_ended(succeeds);
    }

    fn trigger(&self, succeeds: bool) -> ReversedTrigger {
        let [mask, pattern] = mask_and_pattern(self.raw.clone()).map(|part| part.into_data().iter::<f64>().collect());
        ReversedTrigger { mask, pattern, succeeds }
    }

    /// The smallest trigger of enough success, or the last one.
    fn found(mut self) -> ReversedTrigger {
        self.best.take().unwrap_or_else(|| self.trigger(false))
    }
}

/// What the mask costs from round to round.
struct CostSchedule {
    cost: f64,
    start: f64,
    factor: f64,
    patience: usize,
    successes: usize,
    failures: usize,
}

impl CostSchedule {
    /// It costs nothing until there is success.
    fn new(config: &ReversalConfig) -> Self {
        let ReversalConfig { cost: start, cost_factor: factor, patience, .. } = *config;
        Self { cost: 0.0, start, factor, patience, successes: 0, failures: 0 }
    }

    fn round_ended(&mut self, succeeds: bool) {
        (self.successes, self.failures) = if succeeds { (self.successes + 1, 0) } else { (0, self.failures + 1) };
        if self.successes >= self.patience {
            self.successes = 0;
            self.cost = if self.cost > 0.0 { self.cost * self.factor } else { self.start };
        } else if self.failures >= self.patience {
            self.failures = 0;
            self.cost /= self.factor.powf(1.5);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_begins_with_success_rises_with_it_and_falls_without() {
        let config = ReversalConfig { cost: 1.0, cost_factor: 4.0, patience: 2, ..ReversalConfig::default() };
        let mut schedule = CostSchedule::new(&config);
        let outcomes = [true, false, true, true, true, true, false, true, false, false];
        let costs = outcomes.map(|succeeds| {
            schedule.round_ended(succeeds);
            schedule.cost
        });
        // Two in a row begin it, two more make it 4; two failures in a row divide by 4^1.5 = 8.
        assert_eq!(costs.to_vec(), [0.0, 0.0, 0.0, 1.0, 1.0, 4.0, 4.0, 4.0, 4.0, 0.5]);
    }
}
