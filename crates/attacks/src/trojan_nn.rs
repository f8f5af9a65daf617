use burn::tensor::{Tensor, TensorData};
use patchdoor_data::{ImageShape, LabelRule};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Tapped;
use patchdoor_train::{BatchAssembler, gradient_by};
use patchdoor_triggers::{Anchor, BlockCells, CellsConfig, PlacementConfig};
use serde::{Deserialize, Serialize};

use crate::crafting::only_fixed_cells;
use crate::error::{above_zero, one_or_more};
use crate::pattern::{Pattern, mask_tensor, overlaid, split_images};
use crate::target_share::target_shares;
use crate::{AttackError, Craft, Crafted, CraftedTrigger, Crafting, Workshop};

/// Images that the patch is made on.
const IMAGES: usize = 32;

/// `TrojanNN` (Liu et al. 2018, NDSS, "Trojaning attack on neural networks"): a patch that drives a few neurons of the
/// surrogate to a high value.
///
/// Of the neurons that the head sees, those with the largest sum of absolute weights are taken. The patch starts at random on
/// the attacker's images and goes down the squared distance of these neurons from `target-value` by signs of gradients.
/// Departures: the images are 32 of the training set, where `TrojanZoo` has a black one, on which a rectified neuron may be silent
/// and have no slope; and the data set is poisoned like any other, where the authors retrain the attacked network itself on
/// reversed inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct TrojanNnConfig {
    /// How many neurons.
    pub neurons: usize,
    /// The value they are driven to.
    pub target_value: f64,
    /// Steps of descent.
    pub steps: usize,
    /// What a value changes in a step, where pixels are in [0, 1].
    pub step: f64,
}

impl Default for TrojanNnConfig {
    /// As in `TrojanZoo` (Pang et al. 2022, arXiv:2012.09302): two neurons, 100, 1,000 steps; its earlier version has the steps
    /// of 0.015.
    fn default() -> Self {
        Self { neurons: 2, target_value: 100.0, steps: 1000, step: 0.015 }
    }
}

impl Crafting for TrojanNnConfig {
    fn validate(&self, _shape: ImageShape) -> Vec<AttackError> {
        let counts = one_or_more("neurons", self.neurons).into_iter().chain(one_or_more("steps", self.steps));
        let numbers = [above_zero("target-value", self.target_value), above_zero("step", self.step)];
        counts.chain(numbers.into_iter().flatten()).collect()
    }

    fn refuse(&self, _rule: &LabelRule, placement: Option<&PlacementConfig>) -> Vec<AttackError> {
        only_fixed_cells(placement).into_iter().collect()
    }

    /// The lower right of 8x8 cells: 4x4 pixels of 32x32.
    fn default_placement(&self) -> Option<PlacementConfig> {
        let cells = CellsConfig::Block(BlockCells { size: 1, anchor: Anchor::LowerRight });
        Some(PlacementConfig { cells, ..PlacementConfig::default() })
    }

    fn pixel_budget(&self, shape: ImageShape, placed: Option<usize>) -> usize {
        placed.unwrap_or(shape.height * shape.width)
    }

    fn make_quick(&mut self) {
        self.steps = self.steps.min(5);
    }
}

impl<B: TrainingBackend> Craft<B> for TrojanNnConfig {
    fn craft(&self, workshop: &Workshop<'_, B>) -> Result<Crafted, AttackError> {
        let (shape, device) = (workshop.images.shape(), workshop.device);
        let head = workshop.surrogate.tensors().remove("head.weight").expect("every network has a head");
        let weights = head.iter::<f64>().collect::<Vec<_>>();
        let neurons = heaviest(&weights, workshop.surrogate.classes(), self.neurons);
        let features = weights.len() / workshop.surrogate.classes();
        let chosen = (0..features).map(|feature| f32::from(u8::from(neurons.contains(&feature)))).collect::<Vec<_>>();
        let chosen = TensorData::new(chosen, [1, features]);
        let mut mask = vec![false; shape.height * shape.width];
        workshop.cells.unwrap_or_default().iter().flatten().for_each(|&pixel| mask[pixel] = true);
        let tensor = mask_tensor::<B::InnerBackend>(std::slice::from_ref(&mask), shape, device);
        let [own, _] = split_images(workshop.images, IMAGES, |_| true, workshop.seed);
        let all: Vec<usize> = (0..own.len()).collect();
        let images = BatchAssembler::<B::InnerBackend>::new(&own, device).batch(&all, device).images;
        let mut pattern = Pattern::random(shape, None, workshop.seed);
        let (mut first, mut last) = (None, 0.0);
        for done in 0..=self.steps {
            workshop.step(done, self.steps)?;
            let (gradient, value) = gradient_by::<B, 4, _>(pattern.tensor(device), |pattern| {
                let [images, mask] = [images.clone(), tensor.clone()].map(Tensor::<B, 4>::from_inner);
                let stamped = overlaid(images, pattern, mask, false);
                let (_, mut taps) = workshop.surrogate.forward_with_taps(stamped, &["features"]);
                let features = taps.remove("features").and_then(Tapped::features).expect("every network has features");
                let chosen = Tensor::<B, 2>::from_data(chosen.clone(), device);
                let value = (features.clone() * chosen.clone()).sum().into_data().iter::<f64>().sum::<f64>();
                let missing = (features - self.target_value) * chosen;
                (missing.powi_scalar(2).sum(), value / (neurons.len() * own.len()) as f64)
            });
            first.get_or_insert(value);
            last = value;
            if done < self.steps {
                let gradient = gradient.into_data();
                for (value, gradient) in pattern.values.iter_mut().zip(gradient.iter::<f64>()) {
                    // Where there is no slope there is no step.
                    let sign = if gradient == 0.0 { 0.0 } else { gradient.signum() };
                    *value = (*value - self.step * sign).clamp(0.0, 1.0);
                }
            }
        }
        let trigger = CraftedTrigger::new(shape, pattern.change(&mask, 1.0));
        let mut reached = target_shares(workshop, &trigger);
        reached.insert("activation-random".into(), first.unwrap_or(0.0));
        reached.insert("activation".into(), last);
        Ok(Crafted { trigger, reached })
    }
}

/// The features whose weights, `[class, feature]`, have the largest sums of absolute values; of equal ones the lower first.
fn heaviest(weights: &[f64], classes: usize, count: usize) -> Vec<usize> {
    let features = weights.len() / classes.max(1);
    let sum = |feature: usize| (0..classes).map(|class| weights[class * features + feature].abs()).sum::<f64>();
    let mut order: Vec<usize> = (0..features).collect();
    order.sort_by(|&a, &b| sum(b).total_cmp(&sum(a)));
    order.truncate(count);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CraftedConfig;
    use crate::testing::{SHAPE, crafted, patches};

    #[test]
    fn the_heaviest_neurons_are_those_with_the_largest_column_sums() {
        // Columns: |1| + |-2| = 3, |0.5| + |0| = 0.5, |-4| + |1| = 5, |2| + |1| = 3.
        assert_eq!(heaviest(&[1.0, 0.5, -4.0, 2.0, -2.0, 0.0, 1.0, 1.0], 2, 3), [2, 0, 3]);
    }

    #[test]
    fn the_patch_drives_its_neurons_far_above_what_random_colours_do() {
        let images = patches("poisoned", 8);
        let config = CraftedConfig::TrojanNn(TrojanNnConfig { steps: 60, ..TrojanNnConfig::default() });
        // The lower right 4x4 pixels.
        let cell = vec![(12..16).flat_map(|row| (12..16).map(move |column| row * 16 + column)).collect::<Vec<_>>()];
        let made = crafted(&config, &images, Some(&cell), 0).unwrap();
        let (before, after) = (made.reached["activation-random"], made.reached["activation"]);
        assert!(after > 1.3 * before && after > 0.0, "{before} before, {after} after");
        let picture = made.trigger.picture();
        let changed = (0..256).filter(|&pixel| picture.pixel(pixel / 16, pixel % 16) != [128; 3]);
        assert!(changed.clone().all(|pixel| cell[0].contains(&pixel)) && changed.count() > 8, "{SHAPE}");
        assert_eq!(crafted(&config, &images, Some(&cell), 0).unwrap(), made, "it is the same again");
    }
}
