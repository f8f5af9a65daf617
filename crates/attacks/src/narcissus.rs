use burn::tensor::{Int, Tensor, TensorData};
use patchdoor_data::{ImageShape, LabelRule};
use patchdoor_kernels::TrainingBackend;
use patchdoor_train::{Adam, BatchAssembler, cross_entropy, gradient_by};
use patchdoor_triggers::PlacementConfig;
use serde::{Deserialize, Serialize};

use crate::crafting::{no_placement, only_clean_label};
use crate::error::{above_zero, invalid, one_or_more};
use crate::pattern::{Pattern, batches, mask_tensor, overlaid};
use crate::target_share::target_shares;
use crate::{AttackError, Craft, Crafted, CraftedTrigger, Crafting, Workshop};

/// Narcissus (Zeng et al. 2023, arXiv:2204.05255): noise over the whole image that points inwards to the target class.
///
/// From nothing the noise descends on the surrogate's cross-entropy of the target class, over images of that class alone, with
/// every value within `bound`. Poisoned images of the target class carry it under their label; test images carry it
/// `amplification` times. Departures: Adam where the published code has `RAdam`, and the surrogate is the one that the
/// experiment says, where the authors train one on other data and tune it on the target class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct NarcissusConfig {
    /// The most that a value changes in training, of 255.
    pub bound: u8,
    /// How many times the noise test images carry, 1 or more.
    pub amplification: f64,
    /// Passes over the attacker's images of the target class.
    pub passes: usize,
    /// Images in a step.
    pub batch_size: usize,
    /// Adam's rate, where pixels are in [0, 1].
    pub learning_rate: f64,
}

impl Default for NarcissusConfig {
    /// As in the published code: 16 of 255, three times in tests, 1,000 passes in batches of 350, a rate of 0.01 where pixels
    /// are in [-1, 1].
    fn default() -> Self {
        Self { bound: 16, amplification: 3.0, passes: 1000, batch_size: 350, learning_rate: 0.005 }
    }
}

impl Crafting for NarcissusConfig {
    fn validate(&self, _shape: ImageShape) -> Vec<AttackError> {
        let mut problems = Vec::new();
        problems.extend(one_or_more("bound", usize::from(self.bound)));
        if !(self.amplification >= 1.0 && self.amplification <= 255.0) {
            problems.push(invalid("amplification", self.amplification, "a number in [1, 255]"));
        }
        problems.extend(one_or_more("passes", self.passes));
        problems.extend(one_or_more("batch-size", self.batch_size));
        problems.extend(above_zero("learning-rate", self.learning_rate));
        problems
    }

    fn refuse(&self, rule: &LabelRule, placement: Option<&PlacementConfig>) -> Vec<AttackError> {
        let placed = no_placement(placement, "its noise covers the whole image");
        only_clean_label(rule).into_iter().chain(placed).collect()
    }

    fn pixel_budget(&self, shape: ImageShape, _placed: Option<usize>) -> usize {
        shape.height * shape.width
    }

    fn make_quick(&mut self) {
        self.passes = self.passes.min(2);
        self.batch_size = self.batch_size.min(32);
    }
}

impl<B: TrainingBackend> Craft<B> for NarcissusConfig {
    fn craft(&self, workshop: &Workshop<'_, B>) -> Result<Crafted, AttackError> {
        let (images, device) = (workshop.images, workshop.device);
        let (shape, target) = (images.shape(), workshop.poisoning.target_class);
        let own = images.subset(&(0..images.len()).filter(|&index| images.label(index) == target).collect::<Vec<_>>());
        let mut pattern = Pattern::zero(shape, f64::from(self.bound) / 255.0);
        let everywhere = vec![true; shape.height * shape.width];
        let mask = mask_tensor::<B::InnerBackend>(std::slice::from_ref(&everywhere), shape, device);
        let assembler = BatchAssembler::<B::InnerBackend>::new(&own, device);
        let mut adam = Adam::<B, 4>::new(self.learning_rate, Adam::<B, 4>::BETAS);
        let total = self.passes * own.len().div_ceil(self.batch_size);
        for (done, indices) in batches(own.len(), self.batch_size, workshop.seed).take(total).enumerate() {
            workshop.step(done, total)?;
            let batch = assembler.batch(&indices, device).images;
            let (gradient, ()) = gradient_by::<B, 4, _>(pattern.tensor(device), |pattern| {
                let stamped = overlaid(Tensor::from_inner(batch), pattern, Tensor::from_inner(mask.clone()), true);
                let labels = TensorData::new(vec![i32::from(target); indices.len()], [indices.len()]);
                let labels = Tensor::<B, 1, Int>::from_data(labels, device);
                (cross_entropy(workshop.surrogate.forward(stamped), labels), ())
            });
            pattern.take(adam.step(pattern.tensor(device), gradient));
        }
        let trigger = CraftedTrigger::new(shape, pattern.change(&everywhere, self.amplification))
            .with_training(pattern.change(&everywhere, 1.0));
        let reached = target_shares(workshop, &trigger);
        Ok(Crafted { trigger, reached })
    }
}

#[cfg(test)]
mod tests {
    use patchdoor_data::{Trigger, stream};

    use super::*;
    use crate::CraftedConfig;
    use crate::testing::{TARGET, crafted, of_class, patches, taken_for};

    #[test]
    fn the_noise_stays_in_its_bound_and_points_to_the_target_far_more_than_random_noise_does() {
        let config = NarcissusConfig { passes: 12, batch_size: 50, learning_rate: 0.01, ..NarcissusConfig::default() };
        let poisoned = of_class(&patches("poisoned", 8), TARGET);
        let made = crafted(&CraftedConfig::Narcissus(config), &poisoned, None, 0).unwrap();
        let image = poisoned.image(0);
        let rng = &mut stream(0, "");
        let training = made.trigger.stamp_training(&image, TARGET, rng);
        let largest = training.pixels().iter().zip(image.pixels()).map(|(a, b)| a.abs_diff(*b)).max();
        assert_eq!(largest, Some(16));
        let tested = made.trigger.stamp(&image, rng);
        let largest = tested.pixels().iter().zip(image.pixels()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(largest.is_some_and(|largest| (40..=48).contains(&largest)), "{largest:?}");
        let others = of_class(&patches("test", 80), 0);
        let found = taken_for(TARGET, &others, Some(&made.trigger));
        let random = Pattern::random(image.shape(), Some(16.0 / 255.0), 1).change(&[true; 256], 3.0);
        let random = taken_for(TARGET, &others, Some(&CraftedTrigger::new(image.shape(), random)));
        assert!(found > 0.5 && found > random + 0.3, "{found} against {random}");
    }
}
