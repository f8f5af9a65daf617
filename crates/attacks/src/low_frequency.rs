use burn::module::AutodiffModule;
use burn::tensor::{Tensor, TensorData};
use patchdoor_data::{ImageSet, ImageShape, LabelRule};
use patchdoor_kernels::TrainingBackend;
use patchdoor_train::{BatchAssembler, PREDICTION_BATCH, gradient_by, predict};
use patchdoor_triggers::PlacementConfig;
use serde::{Deserialize, Serialize};

use crate::crafting::{no_placement, only_one_target};
use crate::error::{above_zero, invalid, one_or_more};
use crate::pattern::{Pattern, split_images};
use crate::target_share::{share_of, target_shares};
use crate::{AttackError, Craft, Crafted, CraftedTrigger, Crafting, Workshop};

/// The low-frequency trigger, LF (Zeng et al. 2021, arXiv:2104.03413): a smooth pattern added to the whole image that moves
/// images towards the target class.
///
/// Image by image, `DeepFool` (Moosavi-Dezfooli et al. 2016, arXiv:1511.04599) steps from the image with the pattern to the
/// target's side of the boundary; what it adds goes to the pattern, which is then smoothed by a Gaussian and drawn to
/// [0, `strength`]. It ends when `fooling-rate` of the images of other classes are taken for the target, or after `passes`. The
/// width of the Gaussian is ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct LowFrequencyConfig {
    /// The most that is added, as a share of 255.
    pub strength: f64,
    /// Standard deviation of the Gaussian in pixels.
    pub smoothing: f64,
    /// The attacker's images that it is made on.
    pub images: usize,
    /// By how much of its length each step goes too far.
    pub overshoot: f64,
    /// Steps of `DeepFool` for one image at most.
    pub steps: usize,
    /// The share of images at which it ends.
    pub fooling_rate: f64,
    /// Passes over the images at most.
    pub passes: usize,
}

impl Default for LowFrequencyConfig {
    /// As in `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654): 0.2, 100 images, overshoot 0.02, 200 steps, a rate of 0.2, 50
    /// passes.
    fn default() -> Self {
        Self { strength: 0.2, smoothing: 3.0, images: 100, overshoot: 0.02, steps: 200, fooling_rate: 0.2, passes: 50 }
    }
}

impl Crafting for LowFrequencyConfig {
    fn validate(&self, _shape: ImageShape) -> Vec<AttackError> {
        let mut problems = Vec::new();
        for (field, value) in [("strength", self.strength), ("fooling-rate", self.fooling_rate)] {
            if !(value > 0.0 && value <= 1.0) {
                problems.push(invalid(field, value, "a share in (0, 1]"));
            }
        }
        problems.extend(above_zero("smoothing", self.smoothing));
        if !(self.overshoot >= 0.0 && self.overshoot.is_finite()) {
            problems.push(invalid("overshoot", self.overshoot, "a number that is 0 or more"));
        }
        let counts = [("images", self.images), ("steps", self.steps), ("passes", self.passes)];
        problems.extend(counts.into_iter().filter_map(|(field, count)| one_or_more(field, count)));
        problems
    }

    fn refuse(&self, rule: &LabelRule, placement: Option<&PlacementConfig>) -> Vec<AttackError> {
        let placed = no_placement(placement, "its pattern is smooth over the whole image");
        only_one_target(rule).into_iter().chain(placed).collect()
    }

    fn pixel_budget(&self, shape: ImageShape, _placed: Option<usize>) -> usize {
        shape.height * shape.width
    }

    fn make_quick(&mut self) {
        self.images = self.images.min(8);
        self.steps = self.steps.min(2);
        self.passes = self.passes.min(1);
    }
}

impl<B: TrainingBackend> Craft<B> for LowFrequencyConfig {
    fn craft(&self, workshop: &Workshop<'_, B>) -> Result<Crafted, AttackError> {
        let (images, target) = (workshop.images, workshop.poisoning.target_class);
        let shape = images.shape();
        let [own, _] = split_images(images, self.images, |label| label != target, workshop.seed);
        let assembler = BatchAssembler::<B::InnerBackend>::new(&own, workshop.device);
        let mut pattern = Pattern::zero(shape, self.strength);
        let everywhere = vec![true; shape.height * shape.width];
        let (mut passes, mut rate) = (0, 0.0);
        while passes < self.passes && rate < self.fooling_rate {
            for index in 0..own.len() {
                workshop.step(passes * own.len() + index, self.passes * own.len())?;
                let image = assembler.batch(&[index], workshop.device).images;
                if let Some(added) = self.fooling(workshop, image, &pattern) {
                    pattern.values.iter_mut().zip(added).for_each(|(value, added)| *value += added);
                    pattern.values = drawn_to(smoothed(&pattern.values, shape, self.smoothing), self.strength);
                }
            }
            passes += 1;
            let trigger = CraftedTrigger::new(shape, pattern.change(&everywhere, 1.0));
            rate = fooled(workshop, &own, &trigger);
        }
        let trigger = CraftedTrigger::new(shape, pattern.change(&everywhere, 1.0));
        let mut reached = target_shares(workshop, &trigger);
        reached.insert("fooling-rate".into(), rate);
        reached.insert("passes".into(), passes as f64);
        Ok(Crafted { trigger, reached })
    }
}

/// Share of images that the surrogate takes for the target with the trigger.
fn fooled<B: TrainingBackend>(workshop: &Workshop<'_, B>, images: &ImageSet, trigger: &CraftedTrigger) -> f64 {
    let triggered = patchdoor_data::trigger_all_images(images, trigger, workshop.seed);
    let predicted = predict(&workshop.surrogate.valid(), &triggered, PREDICTION_BATCH, workshop.device);
    share_of(&predicted, workshop.poisoning.target_class)
}

impl LowFrequencyConfig {
    /// What moves an image with the pattern to the target's side; `None` if it is there.
    fn fooling<B: TrainingBackend>(
        &self,
        workshop: &Workshop<'_, B>,
        image: Tensor<B::InnerBackend, 4>,
        pattern: &Pattern,
    ) -> Option<Vec<f64>> {
        let (device, target) = (workshop.device, usize::from(workshop.poisoning.target_class));
        let start = (image + pattern.tensor::<B::InnerBackend>(device)).clamp(0.0, 1.0);
        let mut added = vec![0.0; pattern.values.len()];
        for step in 0..self.steps {
            let moved = Pattern {
                values: added.iter().map(|value| (1.0 + self.overshoot) * value).collect(),
                ..pattern.clone()
            };
            let at = start.clone() + moved.tensor::<B::InnerBackend>(device);
            let (gradient, distance) = gradient_by::<B, 4, _>(at, |image| {
                let logits = workshop.surrogate.forward(image);
                let values: Vec<f64> = logits.clone().into_data().iter::<f64>().collect();
                let best =
                    (1..values.len()).fold(0, |best, class| if values[class] > values[best] { class } else { best });
                let mut signs = vec![0.0f32; values.len()];
                // From the class it is taken for to the target.
                signs[best] -= 1.0;
                signs[target] += 1.0;
                let signs = Tensor::<B, 2>::from_data(TensorData::new(signs, [1, values.len()]), device);
                ((logits * signs).sum(), values[best] - values[target])
            });
            if distance <= 0.0 {
                return (step > 0).then_some(added);
            }
            let gradient: Vec<f64> = gradient.into_data().iter::<f64>().collect();
            let square = gradient.iter().map(|value| value * value).sum::<f64>().max(1e-12);
            added.iter_mut().zip(&gradient).for_each(|(added, slope)| *added += (distance + 1e-4) / square * slope);
        }
        Some(added)
    }
}

/// Every channel under a Gaussian of that standard deviation, row by row and column by column; borders go on as they are.
fn smoothed(values: &[f64], shape: ImageShape, deviation: f64) -> Vec<f64> {
    let reach = (3.0 * deviation).ceil() as isize;
    let weights: Vec<f64> = (-reach..=reach).map(|at| (-0.5 * (at as f64 / deviation).powi(2)).exp()).collect();
    let sum = weights.iter().sum::<f64>();
    let ImageShape { height, width, channels } = shape;
    let along = |values: &[f64], down: isize, right: isize| -> Vec<f64> {
        let of = |index: usize| {
            let (row, column, channel) = (index / (width * channels), index / channels % width, index % channels);
            let offsets = (-reach..=reach).zip(&weights).map(|(offset, weight)| {
                let row = (row as isize + down * offset).clamp(0, height as isize - 1) as usize;
                let column = (column as isize + right * offset).clamp(0, width as isize - 1) as usize;
                weight * values[(row * width + column) * channels + channel]
            });
            offsets.sum::<f64>() / sum
        };
        (0..values.len()).map(of).collect()
    };
    along(&along(values, 1, 0), 0, 1)
}

/// The values drawn to [0, strength], the least to 0 and the largest to the end; values that are all alike to 0.
fn drawn_to(values: Vec<f64>, strength: f64) -> Vec<f64> {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let range = values.iter().copied().fold(f64::NEG_INFINITY, f64::max) - least;
    let scale = if range > 0.0 { strength / range } else { 0.0 };
    values.into_iter().map(|value| (value - least) * scale).collect()
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use patchdoor_data::{Image, PoisoningConfig};

    use super::*;
    use crate::testing::{Learner, SHAPE, TARGET, of_class, patches, surrogate};

    /// How much two neighbours of a pattern differ, as a share of its range: of smooth ones little.
    fn roughness(picture: &Image) -> f64 {
        let shape = picture.shape();
        let values: Vec<f64> = picture.pixels().iter().map(|&value| f64::from(value)).collect();
        let pairs = (0..shape.size() - shape.channels).filter(|at| at / shape.channels % shape.width + 1 < shape.width);
        let steps: Vec<f64> = pairs.map(|at| (values[at] - values[at + shape.channels]).abs()).collect();
        let range = values.iter().copied().fold(0.0, f64::max) - values.iter().copied().fold(255.0, f64::min);
        steps.iter().sum::<f64>() / steps.len() as f64 / range.max(1.0)
    }

    #[test]
    fn smoothing_keeps_what_is_constant_and_spreads_a_point_as_a_gaussian() {
        let shape = ImageShape { height: 9, width: 9, channels: 1 };
        assert!(smoothed(&[3.0; 81], shape, 1.5).iter().all(|value| (value - 3.0).abs() < 1e-12));
        let mut point = vec![0.0; 81];
        point[40] = 1.0;
        let spread = smoothed(&point, shape, 1.0);
        // Beside the middle exp(-1/2) of it, across a corner exp(-1).
        assert!((spread[41] / spread[40] - (-0.5_f64).exp()).abs() < 1e-12);
        assert!((spread[50] / spread[40] - (-1.0_f64).exp()).abs() < 1e-12);
        assert_eq!(drawn_to(vec![-1.0, 1.0, 3.0], 0.2), [0.0, 0.1, 0.2]);
        assert_eq!(drawn_to(vec![2.0, 2.0], 0.2), [0.0, 0.0]);
    }

    fn with_workshop<T>(target_class: u8, images: &ImageSet, run: impl FnOnce(&Workshop<'_, Learner>) -> T) -> T {
        let poisoning = PoisoningConfig { target_class, ..PoisoningConfig::default() };
        run(&Workshop {
            surrogate: &surrogate(),
            images,
            poisoned: images,
            poisoning: &poisoning,
            cells: None,
            seed: 0,
            device: &FlexDevice,
            is_stopped: &|| false,
            progress: &|_, _| (),
        })
    }

    #[test]
    fn deep_fool_takes_a_single_image_to_the_target() {
        let images = of_class(&patches("test", 40), 0);
        let config = LowFrequencyConfig::default();
        let assembler = BatchAssembler::<Flex>::new(&images, &FlexDevice);
        for index in 0..images.len() {
            let image = assembler.batch(&[index], &FlexDevice).images;
            let nothing = Pattern::zero(SHAPE, 0.2);
            let added = with_workshop(TARGET, &images, |workshop| config.fooling(workshop, image.clone(), &nothing));
            let added = added.expect("it is of another class");
            let moved = Pattern { values: added.iter().map(|value| 1.02 * value).collect(), ..nothing };
            let logits = surrogate().valid().forward(image + moved.tensor::<Flex>(&FlexDevice));
            assert_eq!(patchdoor_train::classes_of(logits), [TARGET], "image {index}");
        }
    }

    #[test]
    fn the_pattern_is_smooth_and_moves_images_to_the_target_as_no_random_one_does() {
        // Of the four classes, blue: noise of any kind is taken for yellow, and no smooth pattern for red or green.
        let images = patches("own", 600);
        let config = LowFrequencyConfig { images: 40, ..LowFrequencyConfig::default() };
        let (made, random) = with_workshop(2, &images, |workshop| {
            let random = smoothed(&Pattern::random(SHAPE, Some(1.0), 7).values, SHAPE, config.smoothing);
            let random = Pattern { values: drawn_to(random, config.strength), ..Pattern::zero(SHAPE, 0.2) };
            let random = CraftedTrigger::new(SHAPE, random.change(&[true; 256], 1.0));
            (config.craft(workshop).unwrap(), target_shares(workshop, &random)["target-share"])
        });
        let share = made.reached["target-share"];
        assert!(share > 0.7 && random < 0.3, "{share} against {random}");
        let rough = roughness(&made.trigger.picture());
        assert!(rough < 0.05, "{rough}");
    }
}
