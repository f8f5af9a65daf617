use burn::module::AutodiffModule;
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::{Classifier, Pruning, Removal};
use patchdoor_train::{Trainable, TrainingConfig};
use serde::{Deserialize, Serialize};

use crate::defense::has_training_table;
use crate::error::{check_count, invalid};
use crate::filter_scores::{FilterScore, filter_scores, lowest_of_each, pruned_filters, scored_images};
use crate::tuning::{tune, validate_training};
use crate::{DefendedClassifier, Defense, DefenseError, ModelRepair, RepairDetails, RepairWork, Repaired};

/// Prunes the lowest share of every expert's filters, then trains all weights.
///
/// Fine-Pruning (Liu et al. 2018, arXiv:1805.12185) as the code of Chan et al. (2025, arXiv:2505.01811) does it. The
/// weights and the bias of a pruned filter become zero; what batch normalization makes of the zero still reaches the
/// head, and in training pruned weights may grow again (those whose shift in that normalization is positive; the others
/// take no gradient). Of the dense baseline, the filters are those of its last
/// convolution. That is not what Liu et al. do, who mask the filter's activation; `how = "activation"` does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct FinePruning {
    /// Share of each expert's filters that is pruned, in [0, 1), rounded down.
    pub pruned_fraction: f64,
    /// What filters are judged by.
    pub score: FilterScore,
    /// How many of the defender's images they are judged on, at most.
    pub scored_images: usize,
    /// How a filter is pruned: `weights`, as published, `activation`, which switches it off and keeps it off in training, or
    /// `channel`, its weights and its column of the head.
    #[serde(skip_serializing_if = "Removal::is_weights")]
    pub how: Removal,
    /// Whether pruned filters stay zero in training; those that are switched off do in any case.
    pub keep_mask: bool,
    /// How the defender's images are fitted afterwards; 0 epochs prune alone.
    pub training: TrainingConfig,
}

impl Default for FinePruning {
    /// The numbers of Chan et al. (2025, arXiv:2505.01811): 10 %, judged on 10,000 images, five epochs with the
    /// optimiser of the training.
    fn default() -> Self {
        Self {
            pruned_fraction: 0.1,
            score: FilterScore::RawOutput,
            scored_images: 10_000,
            how: Removal::Weights,
            keep_mask: false,
            training: TrainingConfig { epochs: 5, ..TrainingConfig::default() },
        }
    }
}

impl Defense for FinePruning {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        if !(0.0..1.0).contains(&self.pruned_fraction) {
            problems.push(invalid("pruned-fraction", self.pruned_fraction, "a fraction in [0, 1)"));
        }
        problems.extend(check_count("scored-images", self.scored_images));
        problems.extend(validate_training(&self.training, true));
        problems
    }

    has_training_table!();
}

impl<B: TrainingBackend> ModelRepair<B> for FinePruning {
    fn repair(
        &self,
        classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        let images = scored_images(work.data.clean, self.scored_images, work.seed, "fine-pruning")?;
        let scores = filter_scores(&classifier.valid(), &images, self.score, device);
        let groups = classifier.filter_groups();
        let lowest = lowest_of_each(&scores, &groups, self.pruned_fraction);
        let pruning = Pruning::of(&lowest, scores.len(), self.how);
        let classifier = classifier.prune(&pruning);
        let stays = self.keep_mask || self.how == Removal::Activation;
        let trainable = if stays { Trainable::without(pruning) } else { Trainable::default() };
        let (classifier, history) = tune(classifier, &self.training, &trainable, work, device)?;
        let details = RepairDetails { pruned: pruned_filters(&lowest, &groups), ..RepairDetails::default() };
        Ok(Repaired { details, ..Repaired::tuned(classifier, history) })
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use patchdoor_train::image_batches;

    use super::*;
    use crate::testing::{Learner, ascending_filters, bits, quick_training, repair_with, shapes, tensor};

    fn pruned(defense: &FinePruning) -> Repaired<Learner> {
        repair_with(defense, ascending_filters(), None)
    }

    #[test]
    fn the_lowest_tenth_of_every_expert_becomes_zero_and_nothing_else_changes() {
        let alone = TrainingConfig { epochs: 0, ..TrainingConfig::default() };
        let repaired = pruned(&FinePruning { pruned_fraction: 0.13, training: alone, ..FinePruning::default() });
        // Filter f of an expert answers about 10 f, so the lowest floor(0.13 * 16) = 2 are 0 and 1.
        let before = bits(&ascending_filters());
        for (name, values) in bits(&repaired.classifier) {
            if !name.starts_with("experts.") || !name.contains("conv") {
                assert_eq!(values, before[&name], "{name}");
                continue;
            }
            let inputs = if name.ends_with("weight") { 64 } else { 1 };
            let zeros = |values: &[u32]| values.iter().all(|&bits| f32::from_bits(bits) == 0.0);
            assert!(zeros(&values[..2 * inputs]), "{name}");
            assert_eq!(values[2 * inputs..], before[&name][2 * inputs..], "{name}");
        }
        assert!(repaired.history.is_empty());
        assert_eq!(repaired.details.pruned.len(), 4);
        assert!(repaired.details.pruned.iter().all(|layer| layer.filters == [0, 1] && layer.of == 16));
    }

    #[test]
    fn a_filter_that_is_switched_off_answers_nothing_and_stays_off_in_training() {
        for epochs in [0, 2] {
            let training = TrainingConfig { epochs, ..quick_training() };
            let defense =
                FinePruning { pruned_fraction: 0.13, how: Removal::Activation, training, ..FinePruning::default() };
            let repaired = pruned(&defense);
            let images = image_batches::<Flex>(&shapes(20), 20, &FlexDevice).next().expect("a batch");
            let features = repaired.classifier.valid().filter_activity(images).features;
            let features = features.into_data().iter::<f32>().collect::<Vec<_>>();
            for (place, feature) in features.into_iter().enumerate() {
                // Filters 0 and 1 of each expert, of 16.
                assert_eq!(feature == 0.0, place % 16 < 2, "feature {place} is {feature} after {epochs} epochs");
            }
            // By weights alone the same filters answer a constant: the shift of their normalization is one half.
            let zeroed = pruned(&FinePruning { how: Removal::Weights, ..defense });
            let images = image_batches::<Flex>(&shapes(20), 20, &FlexDevice).next().expect("a batch");
            let features = zeroed.classifier.valid().filter_activity(images).features.into_data();
            assert!(features.iter::<f32>().all(|feature| feature > 0.0), "a constant, and no zero");
        }
    }

    #[test]
    fn pruned_filters_grow_again_unless_the_mask_is_kept() {
        for keep_mask in [false, true] {
            let defense =
                FinePruning { pruned_fraction: 0.5, keep_mask, training: quick_training(), ..Default::default() };
            let repaired = pruned(&defense);
            assert_eq!(repaired.history.len(), quick_training().epochs);
            for expert in 0..4 {
                let weights = tensor(&repaired.classifier, &format!("experts.{expert}.conv.weight"));
                assert_eq!(weights[..8 * 64].iter().all(|&weight| weight == 0.0), keep_mask, "expert {expert}");
                assert!(weights[8 * 64..].iter().any(|&weight| weight != 0.0));
            }
        }
    }
}
