use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use patchdoor_data::{ImageSet, ImageShape, stream};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use patchdoor_train::{classes_of, cross_entropy, input_shape};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::DefenseError;
use crate::batch_stream::BatchStream;
use crate::error::invalid;
use crate::gradients::{Adam, gradient_by};

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
        for (field, _) in counts.into_iter().filter(|&(_, count)| count == 0) {
            problems.push(invalid(&format!("reversal.{field}"), 0, "1 or more"));
        }
        for (field, value) in [("learning-rate", self.learning_rate), ("cost", self.cost)] {
            if !(value > 0.0 && value.is_finite()) {
                problems.push(invalid(&format!("reversal.{field}"), value, "a finite number above 0"));
            }
        }
        if !(self.cost_factor > 1.0 && self.cost_factor.is_finite()) {
            problems.push(invalid("reversal.cost-factor", self.cost_factor, "a finite number above 1"));
        }
        if !(self.success > 0.0 && self.success <= 1.0) {
            problems.push(invalid("reversal.success", self.success, "a fraction in (0, 1]"));
        }
        if !(self.gate_weight >= 0.0 && self.gate_weight.is_finite()) {
            problems.push(invalid("reversal.gate-weight", self.gate_weight, "a finite number of 0 or more"));
        }
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

/// A trigger made from a classifier: where the mask is one, the pattern stands instead of the image.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ReversedTrigger {
    /// `[row, column]`, flat, in [0, 1].
    mask: Vec<f64>,
    /// `[row, column, channel]`, flat, in [0, 1].
    pattern: Vec<f64>,
    /// Whether it sent enough images to its class.
    pub(crate) succeeds: bool,
}

impl ReversedTrigger {
    /// Pixels that the mask covers, parts added up.
    pub(crate) fn size(&self) -> f64 {
        self.mask.iter().sum()
    }

    /// An image with it, pixels in 0..=255.
    pub(crate) fn stamp(&self, pixels: &[u8]) -> Vec<u8> {
        let channels = self.pattern.len() / self.mask.len();
        let masks = self.mask.iter().flat_map(|&mask| std::iter::repeat_n(mask, channels));
        let mixed = pixels.iter().zip(masks).zip(&self.pattern).map(|((&pixel, mask), pattern)| {
            (f64::from(pixel) * (1.0 - mask) + 255.0 * pattern * mask).round().clamp(0.0, 255.0) as u8
        });
        mixed.collect()
    }
}

#[cfg(test)]
impl ReversedTrigger {
    /// The same mask and value everywhere.
    pub(crate) fn even(shape: ImageShape, mask: f64, value: f64, succeeds: bool) -> Self {
        Self { mask: vec![mask; shape.height * shape.width], pattern: vec![value; shape.size()], succeeds }
    }

    /// What the experts weigh of the cells that it covers, on images that carry it, over what it covers.
    pub(crate) fn taken_by(&self, classifier: &Classifier<crate::testing::Learner>, images: &ImageSet) -> f64 {
        use burn::module::AutodiffModule;
        use burn_flex::{Flex, FlexDevice};

        let shape = images.shape();
        let pixels = (0..images.len()).flat_map(|index| self.stamp(images.pixels(index))).collect();
        let stamped = ImageSet::new(shape, pixels, images.labels().to_vec(), images.classes().to_vec());
        let batch = patchdoor_train::image_batches::<Flex>(&stamped.expect("as before"), 1000, &FlexDevice).next();
        let (_, routings) = classifier.valid().forward_with_routing(batch.expect("there are images"));
        let cells = cells(classifier, shape, &FlexDevice).expect("experts choose").inner();
        let [pixels, patches] = cells.dims();
        let mask = self.mask.iter().map(|&mask| mask as f32).collect::<Vec<_>>();
        let covered = Tensor::<Flex, 2>::from_data(TensorData::new(mask, [1, pixels]), &FlexDevice).matmul(cells);
        let gates = routings[0].weights().mean_dim(0).mean_dim(1).reshape([1, patches]);
        f64::from((gates * covered.clone()).sum().into_scalar()) / f64::from(covered.sum().into_scalar())
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
            let (predicted, gradient) = gradient_by::<B, 4, _>(&self.raw, |raw| {
                let [mask, pattern] = mask_and_pattern(raw);
                let stamped = batch.clone() * (mask.clone().neg() + 1.0) + mask.clone() * pattern;
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

/// What a number in [0, 1] is squashed from; the ends are left out.
fn unsquashed(value: f64) -> f32 {
    ((value - 0.5) * (2.0 - 1e-6)).atanh() as f32
}

/// Mask `[1, row, column, 1]` and pattern `[1, row, column, channel]` in [0, 1].
fn mask_and_pattern<B: Backend>(raw: Tensor<B, 4>) -> [Tensor<B, 4>; 2] {
    let channels = raw.dims()[3] - 1;
    let squashed = raw.tanh() / 2.0 + 0.5;
    [squashed.clone().narrow(3, 0, 1), squashed.narrow(3, 1, channels)]
}

/// The share of every pixel in the mean of its cell, `[pixel, patch]`: cells of the image lie as patches on the map do. `None`
/// for a classifier whose experts choose no patches.
fn cells<B: TrainingBackend>(
    classifier: &Classifier<B>,
    shape: ImageShape,
    device: &B::Device,
) -> Option<Tensor<B, 2>> {
    let config = classifier.config();
    let (rows, columns) = config.network().expert_choice()?.patch_grid(input_shape(shape));
    let ImageShape { height, width, .. } = shape;
    let cell_of = |pixel: usize| (pixel / width * rows / height) * columns + pixel % width * columns / width;
    let cells = (0..height * width).map(cell_of).collect::<Vec<_>>();
    let mut sizes = vec![0.0f32; rows * columns];
    for &cell in &cells {
        sizes[cell] += 1.0;
    }
    let mut shares = vec![0.0f32; height * width * rows * columns];
    for (pixel, &cell) in cells.iter().enumerate() {
        shares[pixel * rows * columns + cell] = 1.0 / sizes[cell];
    }
    Some(Tensor::from_data(TensorData::new(shares, [height * width, rows * columns]), device))
}

/// How little the experts weigh the patches that a mask covers: the mean over images and experts of minus the logarithm of the
/// sum over patches of gate times covered share, in nats.
///
/// # Shapes
/// - gates: `[batch, expert, patch]`
/// - mask: `[1, row, column, 1]`
/// - cells: `[pixel, patch]`
fn unselected<B: Backend>(gates: Tensor<B, 3>, mask: Tensor<B, 4>, cells: Tensor<B, 2>) -> Tensor<B, 1> {
    let [pixels, patches] = cells.dims();
    let covered = mask.reshape([1, pixels]).matmul(cells).reshape([1, 1, patches]);
    ((gates * covered).sum_dim(2) + 1e-6).log().mean().neg()
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;
    use crate::testing::ascending_filters;

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

    #[test]
    fn a_trigger_mixes_its_pattern_into_the_image_by_its_mask() {
        let trigger = ReversedTrigger { mask: vec![0.0, 0.5], pattern: vec![1.0, 1.0, 0.0, 1.0], succeeds: true };
        // The first pixel stays; half of 100 and half of 0 or 255.
        assert_eq!(trigger.stamp(&[10, 20, 100, 100]), [10, 20, 50, 178]);
        assert!((trigger.size() - 0.5).abs() < 1e-12);
        // Squashing takes back what it was squashed from.
        let raw = Tensor::<Flex, 1>::from_data([unsquashed(0.25), unsquashed(0.0)], &FlexDevice).reshape([1, 1, 1, 2]);
        let [mask, pattern] = mask_and_pattern(raw);
        assert!((mask.into_scalar() - 0.25).abs() < 1e-6 && pattern.into_scalar() < 1e-5);
    }

    #[test]
    fn the_gates_are_asked_how_much_of_the_covered_cells_they_take() {
        let classifier = ascending_filters();
        let shape = ImageShape { height: 32, width: 32, channels: 3 };
        let cells = cells(&classifier, shape, &FlexDevice).expect("experts choose");
        assert_eq!(cells.dims(), [1024, 64]);
        // A mask over the 4x4 pixels of the last patch alone; expert 0 gives it a quarter, expert 1 nothing.
        let mask = (0..1024).map(|pixel| f32::from(u8::from(pixel / 32 >= 28 && pixel % 32 >= 28))).collect::<Vec<_>>();
        let mask = Tensor::from_data(TensorData::new(mask, [1, 32, 32, 1]), &FlexDevice);
        let mut gates = vec![0.0f32; 128];
        gates[63] = 0.25;
        gates[64] = 1.0;
        let gates = Tensor::from_data(TensorData::new(gates, [1, 2, 64]), &FlexDevice);
        let found = unselected::<crate::testing::Learner>(gates, mask, cells).inner().into_scalar();
        // -(ln 0.250001 + ln 1e-6) / 2 = (1.386290 + 13.815511) / 2.
        assert!((found - 7.600_9).abs() < 1e-3, "{found}");
    }
}
