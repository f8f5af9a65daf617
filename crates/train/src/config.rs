use serde::{Deserialize, Serialize};

use crate::{AdversarialConfig, DiversityConfig, TrainError};

/// How a classifier is trained.
///
/// The defaults are the pMoE authors' recipe: plain SGD at a constant 0.1, batches of 128, 25 epochs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct TrainingConfig {
    /// Passes over the training images.
    pub epochs: usize,
    /// Images per step; the last batch of an epoch may be smaller.
    pub batch_size: usize,
    /// Peak learning rate; the schedule scales it.
    pub learning_rate: f64,
    /// How a gradient becomes a step.
    pub optimizer: OptimizerConfig,
    /// How the learning rate changes over the steps.
    pub schedule: ScheduleConfig,
    /// Where the statistics for inference come from.
    pub batch_norm_statistics: BatchNormStatistics,
    /// How the images of every step are perturbed against the classifier as it is then (adversarial training); not at all if
    /// not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adversarial: Option<AdversarialConfig>,
    /// How much experts are kept from choosing the same patches; not at all if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diversity: Option<DiversityConfig>,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            epochs: 25,
            batch_size: 128,
            learning_rate: 0.1,
            optimizer: OptimizerConfig::default(),
            schedule: ScheduleConfig::default(),
            batch_norm_statistics: BatchNormStatistics::default(),
            adversarial: None,
            diversity: None,
        }
    }
}

/// How a gradient becomes a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerConfig {
    /// Stochastic gradient descent.
    Sgd(SgdConfig),
    /// Adam (Kingma and Ba 2015, arXiv:1412.6980).
    Adam(AdamConfig),
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self::Sgd(SgdConfig::default())
    }
}

/// Stochastic gradient descent, undampened: v = momentum v + g + decay w; w = w - rate v.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct SgdConfig {
    /// Momentum in [0, 1).
    pub momentum: f64,
    /// Nesterov's look-ahead; needs momentum.
    pub nesterov: bool,
    /// L2 penalty added to the gradient of every parameter.
    pub weight_decay: f64,
}

/// Adam's constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct AdamConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// L2 penalty added to the gradient of every parameter.
    pub weight_decay: f64,
}

impl Default for AdamConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// How the learning rate changes over the steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleConfig {
    /// Always the peak rate.
    #[default]
    Constant,
    /// Multiplied by `factor` at the start of each listed epoch (counted from 0).
    Step(StepConfig),
    /// From the peak down to `floor` times the peak along half a cosine over all steps (Loshchilov
    /// and Hutter 2017, arXiv:1608.03983).
    Cosine(CosineConfig),
    /// Linear warm-up, then linear decay to zero (Smith and Topin 2017, arXiv:1708.07120).
    OneCycle(OneCycleConfig),
}

/// Constants of the step schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StepConfig {
    /// Epochs, counted from 0, at whose start the rate is multiplied; strictly rising.
    pub epochs: Vec<usize>,
    /// The factor, in (0, 1].
    pub factor: f64,
}

/// Constants of the cosine schedule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct CosineConfig {
    /// Last rate as a share of the peak, in [0, 1].
    pub floor: f64,
}

/// Constants of the one-cycle schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct OneCycleConfig {
    /// Share of all steps that warm up, in [0, 1).
    pub warm_up: f64,
    /// First rate as a share of the peak, in (0, 1].
    pub start: f64,
}

impl Default for OneCycleConfig {
    fn default() -> Self {
        Self { warm_up: 0.3, start: 0.04 }
    }
}

/// Where the statistics that batch normalization uses for inference come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BatchNormStatistics {
    /// Exponential averages over the training batches, as published.
    #[default]
    Running,
    /// Averages over one more pass through the training images after the last epoch. For short
    /// trainings, whose exponential averages lag behind the weights.
    Recomputed,
}

impl TrainingConfig {
    /// Checks every field and returns all problems at once; `field` is the dotted path in the
    /// `[training]` table.
    pub fn validate(&self) -> Vec<TrainError> {
        let mut problems = Vec::new();
        let mut expect = |holds: bool, field: &'static str, found: String, allowed: &str| {
            if !holds {
                problems.push(TrainError::InvalidField { field, found, allowed: allowed.into() });
            }
        };
        expect((1..=100_000).contains(&self.epochs), "epochs", self.epochs.to_string(), "1 to 100000");
        expect((2..=65_536).contains(&self.batch_size), "batch-size", self.batch_size.to_string(), "2 to 65536");
        let rate = self.learning_rate;
        expect(rate > 0.0 && rate.is_finite(), "learning-rate", rate.to_string(), "a finite number above 0");
        match &self.optimizer {
            OptimizerConfig::Sgd(sgd) => {
                let momentum = sgd.momentum;
                expect(
                    (0.0..1.0).contains(&momentum),
                    "optimizer.sgd.momentum",
                    momentum.to_string(),
                    "a number in [0, 1)",
                );
                let decay = sgd.weight_decay;
                expect(
                    (0.0..=1.0).contains(&decay),
                    "optimizer.sgd.weight-decay",
                    decay.to_string(),
                    "a number in [0, 1]",
                );
                expect(
                    !sgd.nesterov || momentum > 0.0,
                    "optimizer.sgd.nesterov",
                    "true with momentum 0".into(),
                    "false, or a momentum above 0",
                );
            }
            OptimizerConfig::Adam(adam) => {
                let unit = 0.0..1.0;
                expect(
                    unit.contains(&adam.beta1),
                    "optimizer.adam.beta1",
                    adam.beta1.to_string(),
                    "a number in [0, 1)",
                );
                expect(
                    unit.contains(&adam.beta2),
                    "optimizer.adam.beta2",
                    adam.beta2.to_string(),
                    "a number in [0, 1)",
                );
                let epsilon = adam.epsilon;
                expect(
                    epsilon > 0.0 && epsilon < 1.0,
                    "optimizer.adam.epsilon",
                    epsilon.to_string(),
                    "a number in (0, 1)",
                );
                let decay = adam.weight_decay;
                expect(
                    (0.0..=1.0).contains(&decay),
                    "optimizer.adam.weight-decay",
                    decay.to_string(),
                    "a number in [0, 1]",
                );
            }
        }
        match &self.schedule {
            ScheduleConfig::Constant => {}
            ScheduleConfig::Step(step) => {
                expect(
                    step.epochs.is_sorted_by(|a, b| a < b),
                    "schedule.step.epochs",
                    format!("{:?}", step.epochs),
                    "strictly rising epochs",
                );
                let factor = step.factor;
                expect(factor > 0.0 && factor <= 1.0, "schedule.step.factor", factor.to_string(), "a number in (0, 1]");
            }
            ScheduleConfig::Cosine(cosine) => {
                let floor = cosine.floor;
                expect((0.0..=1.0).contains(&floor), "schedule.cosine.floor", floor.to_string(), "a number in [0, 1]");
            }
            ScheduleConfig::OneCycle(cycle) => {
                let (warm_up, start) = (cycle.warm_up, cycle.start);
                expect(
                    (0.0..1.0).contains(&warm_up),
                    "schedule.one-cycle.warm-up",
                    warm_up.to_string(),
                    "a number in [0, 1)",
                );
                expect(
                    start > 0.0 && start <= 1.0,
                    "schedule.one-cycle.start",
                    start.to_string(),
                    "a number in (0, 1]",
                );
            }
        }
        problems.extend(self.check_objective());
        problems
    }

    /// What is wrong with the tables that take the place of the cross-entropy.
    fn check_objective(&self) -> Vec<TrainError> {
        let mut problems = Vec::new();
        if let Some(adversarial) = &self.adversarial {
            problems.extend(adversarial.validate());
        }
        if let Some(diversity) = &self.diversity {
            problems.extend(diversity.validate());
            if self.adversarial.is_some() {
                let allowed = "none beside adversarial".into();
                problems.push(TrainError::InvalidField { field: "diversity", found: "given".into(), allowed });
            }
        }
        problems
    }

    /// The table that makes it descend on something else than the cross-entropy, by its name; `None` if there is none.
    pub fn own_objective(&self) -> Option<&'static str> {
        let adversarial = self.adversarial.as_ref().map(|_| "adversarial");
        adversarial.or_else(|| self.diversity.as_ref().map(|_| "diversity"))
    }

    /// The same training on the cross-entropy alone.
    #[must_use]
    pub fn plain(self) -> Self {
        Self { adversarial: None, diversity: None, ..self }
    }
}
