use patchdoor_data::stream;
use patchdoor_kernels::TrainingBackend;
use patchdoor_train::Batch;
use rand::RngExt;

use crate::DefenseError;
use crate::adversarial_neuron_pruning::climb;
use crate::neuron_masks::{FactoredNorms, Factors};

/// How the scales and shifts of all normalizations are disturbed as harmfully as can be.
///
/// Each is multiplied by one plus a number within the bound, from a random start, by steps along the sign of the gradient of the
/// loss of clean images, with the batch's statistics, as in training. Where the code of Xu et al. (2024, arXiv:2405.19928) lets
/// the numbers leave the bound, it holds here.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NeuronNoise {
    /// The bound, in (0, 1].
    pub(crate) bound: f64,
    /// Steps, each of the bound over their number; 1 or more.
    pub(crate) steps: usize,
}

impl NeuronNoise {
    /// What scales and shifts are multiplied by, from the batch of each step; it is interrupted where there is none.
    pub(crate) fn disturbed<B: TrainingBackend>(
        &self,
        network: &FactoredNorms<B>,
        seed: u64,
        name: &str,
        mut batch: impl FnMut(usize) -> Option<Batch<B>>,
    ) -> Result<Vec<Factors>, DefenseError> {
        let mut rng = stream(seed, name);
        let bound = self.bound;
        let mut draw = || bound * rng.random_range(-1.0..=1.0);
        let scales = network.factors(&mut draw, || 0.0);
        let shifts = network.factors(|| 0.0, &mut draw);
        let mut noise: Vec<_> = scales
            .into_iter()
            .zip(shifts)
            .map(|(scale, shift)| Factors { scale: scale.scale, shift: shift.shift })
            .collect();
        for step in 0..self.steps {
            let batch = batch(step).ok_or(DefenseError::Interrupted { epochs: 0 })?;
            let uphill = network.gradients(&around_one(&noise), batch).ok_or(DefenseError::NoLoss { step })?;
            for (noise, uphill) in noise.iter_mut().zip(&uphill) {
                climb(&mut noise.scale, &uphill.scale, bound / self.steps as f64, bound);
                climb(&mut noise.shift, &uphill.shift, bound / self.steps as f64, bound);
            }
        }
        Ok(around_one(&noise))
    }
}

fn around_one(noise: &[Factors]) -> Vec<Factors> {
    let plus_one = |values: &[f64]| values.iter().map(|value| 1.0 + value).collect();
    noise.iter().map(|noise| Factors { scale: plus_one(&noise.scale), shift: plus_one(&noise.shift) }).collect()
}

#[cfg(test)]
mod tests {
    use burn::module::AutodiffModule;
    use burn_flex::FlexDevice;
    use patchdoor_train::{BatchAssembler, cross_entropy};

    use super::*;
    use crate::testing::{Learner, ascending_filters, shapes};

    #[test]
    fn noise_raises_the_loss_and_stays_within_its_bound() {
        let set = shapes(40);
        let network = FactoredNorms::<Learner>::new(ascending_filters());
        let config = NeuronNoise { bound: 0.2, steps: 8 };
        let batch =
            || BatchAssembler::<Learner>::new(&set, &FlexDevice).batch(&(0..40).collect::<Vec<_>>(), &FlexDevice);
        let disturbed = config.disturbed(&network, 0, "noise", |_| Some(batch())).expect("nothing fails");
        let mut all = disturbed.iter().flat_map(|factors| factors.scale.iter().chain(&factors.shift));
        assert!(all.all(|factor| (factor - 1.0).abs() <= 0.2 + 1e-9));
        let loss = |factors: &[Factors]| {
            let mut plain = ascending_filters().with_tensors(network.multiplied(factors)).valid();
            plain.set_collects_statistics(true);
            let batch = batch();
            let logits = plain.forward(batch.images.inner());
            cross_entropy(logits, batch.labels.inner()).into_data().iter::<f64>().sum::<f64>()
        };
        let (before, after) = (loss(&network.factors(|| 1.0, || 1.0)), loss(&disturbed));
        assert!(after > before + 0.1, "{before} before, {after} after");
        let stopped = config.disturbed(&network, 0, "noise", |step| (step < 3).then(batch));
        assert!(matches!(stopped, Err(DefenseError::Interrupted { .. })));
    }
}
