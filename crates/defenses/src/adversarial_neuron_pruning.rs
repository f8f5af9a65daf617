use patchdoor_data::{StreamRng, stream};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use patchdoor_train::Batch;
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::batch_stream::BatchStream;
use crate::error::{check_count, invalid};
use crate::neuron_masks::{FactoredNorms, Factors, MaskTrainingConfig, Masks};
use crate::threshold_pruning::ThresholdConfig;
use crate::{DefendedClassifier, Defense, DefenseError, ModelRepair, Need, RepairWork, Repaired};

/// Prunes the channels that matter most when scales and shifts of all normalizations are disturbed as harmfully as can be.
///
/// Adversarial neuron pruning (ANP; Wu and Wang 2021, arXiv:2110.14430). Each step disturbs the factors of all scales and
/// shifts within the bound so that the loss of a batch rises, and moves the masks down the gradient of a mean of the
/// undisturbed and the disturbed loss; channels with low masks are pruned. Where the published code lets a disturbance
/// leave the bound of the paper, by its random start plus its step, it is held here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct AdversarialNeuronPruning {
    /// The bound of the disturbance of each factor, in [0, 1]; 0 disturbs nothing.
    pub perturbation: f64,
    /// Steps by the sign of the gradient to the disturbance, each of the bound over their number; 1 or more.
    pub perturbation_steps: usize,
    /// Share of the undisturbed loss, in [0, 1].
    pub clean_weight: f64,
    /// How the masks are trained.
    pub masks: MaskTrainingConfig,
    /// How far is pruned.
    pub pruning: ThresholdConfig,
}

impl Default for AdversarialNeuronPruning {
    /// The numbers of Wu and Wang (2021, arXiv:2110.14430) for CIFAR-10.
    fn default() -> Self {
        Self {
            perturbation: 0.4,
            perturbation_steps: 1,
            clean_weight: 0.2,
            masks: MaskTrainingConfig::default(),
            pruning: ThresholdConfig::default(),
        }
    }
}

impl Defense for AdversarialNeuronPruning {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        if !(0.0..=1.0).contains(&self.perturbation) {
            problems.push(invalid("perturbation", self.perturbation, "a number in [0, 1]"));
        }
        problems.extend(check_count("perturbation-steps", self.perturbation_steps));
        if !(0.0..=1.0).contains(&self.clean_weight) {
            problems.push(invalid("clean-weight", self.clean_weight, "a number in [0, 1]"));
        }
        problems.extend(self.masks.validate());
        problems.extend(self.pruning.validate());
        problems
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::BatchNorm, Need::ValidationImages]
    }

    /// The 5 % of `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654); Wu and Wang have 1 %.
    fn default_clean_fraction(&self) -> f64 {
        0.05
    }

    fn make_quick(&mut self) {
        self.masks.make_quick();
        self.pruning.make_quick();
    }
}

impl<B: TrainingBackend> ModelRepair<B> for AdversarialNeuronPruning {
    fn repair(
        &self,
        classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        let validation =
            work.data.validation.ok_or(DefenseError::NoValidation { defense: "adversarial-neuron-pruning" })?;
        let network = FactoredNorms::new(classifier.clone());
        let mut masks = Masks::ones(&network);
        let mut batches =
            BatchStream::new(work.data.clean, self.masks.batch_size, work.seed, "defense/mask-order", device);
        let rng = &mut stream(work.seed, "defense/perturbation");
        for step in 0..self.masks.steps {
            if work.observer.is_stopped() {
                return Err(DefenseError::Interrupted { epochs: 0 });
            }
            let gradients = self.gradients(&network, &masks.values, &batches.next(device), rng);
            masks.step(&gradients.ok_or(DefenseError::NoLoss { step })?, &self.masks);
        }
        let masks = network.named(masks.values);
        let (classifier, details) = self.pruning.prune(classifier, &masks, validation, work.observer, device)?;
        Ok(Repaired { details, ..Repaired::tuned(classifier, Vec::new()) })
    }
}

impl AdversarialNeuronPruning {
    /// Gradients of the mean loss by the masks; `None` if a loss is no finite number.
    fn gradients<B: TrainingBackend>(
        &self,
        network: &FactoredNorms<B>,
        masks: &[Vec<f64>],
        batch: &Batch<B>,
        rng: &mut StreamRng,
    ) -> Option<Vec<Vec<f64>>> {
        let bound = self.perturbation;
        let mut noise = {
            let mut draw = || bound * rng.random_range(-1.0..=1.0);
            let scales = network.factors(&mut draw, || 0.0);
            let shifts = network.factors(|| 0.0, &mut draw);
            scales.into_iter().zip(shifts).map(|(scales, shifts)| Factors { scale: scales.scale, shift: shifts.shift })
        }
        .collect::<Vec<_>>();
        let clean = network.gradients(&disturbed(masks, None), batch.clone())?;
        if bound == 0.0 {
            return Some(clean.into_iter().map(|gradient| gradient.scale).collect());
        }
        for _ in 0..self.perturbation_steps {
            let uphill = network.gradients(&disturbed(masks, Some(&noise)), batch.clone())?;
            let step = bound / self.perturbation_steps as f64;
            for (noise, uphill) in noise.iter_mut().zip(&uphill) {
                climb(&mut noise.scale, &uphill.scale, step, bound);
                climb(&mut noise.shift, &uphill.shift, step, bound);
            }
        }
        let harmed = network.gradients(&disturbed(masks, Some(&noise)), batch.clone())?;
        let mean = |(clean, harmed): (Factors, Factors)| {
            let both = clean.scale.into_iter().zip(harmed.scale);
            both.map(|(clean, harmed)| self.clean_weight * clean + (1.0 - self.clean_weight) * harmed).collect()
        };
        Some(clean.into_iter().zip(harmed).map(mean).collect())
    }
}

/// A step by the sign of the gradient, back within the bound.
pub(crate) fn climb(noise: &mut [f64], uphill: &[f64], step: f64, bound: f64) {
    for (noise, uphill) in noise.iter_mut().zip(uphill) {
        // The sign of zero is zero.
        let sign = if *uphill == 0.0 { 0.0 } else { uphill.signum() };
        *noise = (*noise + step * sign).clamp(-bound, bound);
    }
}

/// Factors of scales: mask plus noise; of shifts: one plus noise.
fn disturbed(masks: &[Vec<f64>], noise: Option<&[Factors]>) -> Vec<Factors> {
    let of = |(norm, masks): (usize, &Vec<f64>)| match noise {
        None => Factors { scale: masks.clone(), shift: vec![1.0; masks.len()] },
        Some(noise) => Factors {
            scale: masks.iter().zip(&noise[norm].scale).map(|(mask, noise)| mask + noise).collect(),
            shift: noise[norm].shift.iter().map(|noise| 1.0 + noise).collect(),
        },
    };
    masks.iter().enumerate().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planted::planted;

    #[test]
    fn a_disturbance_climbs_by_signs_and_stays_within_its_bound() {
        let mut noise = [0.3, -0.3, 0.1];
        climb(&mut noise, &[5.0, -0.1, 0.0], 0.2, 0.4);
        // 0.3 + 0.2 is held at 0.4, -0.3 - 0.2 at -0.4; without a gradient nothing moves.
        let distances = noise.iter().zip([0.4, -0.4, 0.1]).map(|(noise, expected)| (noise - expected).abs());
        assert!(distances.sum::<f64>() < 1e-12, "{noise:?}");
    }

    #[test]
    fn masks_multiply_scales_and_noise_is_added_to_both_factors() {
        let noise = [Factors { scale: vec![0.25, -0.25], shift: vec![0.5, -0.5] }];
        let found = disturbed(&[vec![0.5, 1.0]], Some(&noise));
        assert_eq!(found, [Factors { scale: vec![0.75, 0.75], shift: vec![1.5, 0.5] }]);
    }

    #[test]
    fn a_planted_backdoor_goes_and_the_accuracy_stays() {
        let masks = MaskTrainingConfig { steps: 200, batch_size: 64, ..Default::default() };
        planted().assert_repairs(&AdversarialNeuronPruning { perturbation: 0.2, masks, ..Default::default() });
    }
}
