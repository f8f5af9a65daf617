use burn::module::AutodiffModule;
use patchdoor_data::ImageSet;
use patchdoor_kernels::{Kernels, TrainingBackend};
use patchdoor_model::{Classifier, Pruning, Removal};
use patchdoor_train::{Selections, Trainable, TrainingConfig, image_batches, predict_with_routing};
use serde::{Deserialize, Serialize};

use crate::defense::has_training_table;
use crate::error::{check_count, invalid};
use crate::expert_additions::for_each_addition;
use crate::filter_scores::{pruned_filters, scored_images};
use crate::tuning::{tune, validate_training};
use crate::{
    DefendedClassifier, Defense, DefenseError, ExpertSuspicion, ModelRepair, Need, RepairDetails, RepairWork, Repaired,
};

/// Images looked at together; what is measured does not depend on it.
const BATCH: usize = 256;

/// Takes away whole experts by their share of suspicious routing.
///
/// Both measures are this project's own definitions; no public text gives one. They ask, on clean images alone, how
/// little an expert's work depends on what the image shows: a trigger that always lies in one place wants an expert that
/// always looks there, or one that always votes for one class. A removed expert's filters and their columns of the head
/// become zero, so that nothing of it reaches a class; its router goes on selecting, in vain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ExpertPruning {
    /// How many experts are removed, those with the largest share first; ties go to the lower expert.
    pub experts: usize,
    /// What counts as suspicious.
    pub measure: SuspicionMeasure,
    /// How many of the defender's images it is measured on, at most.
    pub scored_images: usize,
    /// How the defender's images are fitted afterwards, removed experts staying away; no epochs unless said.
    pub training: TrainingConfig,
}

/// What counts as suspicious in an expert.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SuspicionMeasure {
    /// Share of its selections that fall on the `patches_per_expert` places it selects most often over all images:
    /// `patches_per_expert` / patches for a router that spreads evenly, 1 for one that always looks at the same places.
    #[default]
    Positions,
    /// Share of images on which the class it adds most to is the one that it adds most to most often: 1 / classes for an
    /// expert that votes evenly, 1 for one that always votes for the same class. What an expert adds to a class is the
    /// sum of head weight times feature over its filters.
    Votes,
    /// One minus its part of what all experts add, summed over images: 1 for an expert that clean images do without, as
    /// `BadMoE` has its backdoor in experts that are hardly used (2025, arXiv:2504.18598). How much it adds to an image is the
    /// largest minus the smallest of what it adds to the classes.
    Idleness,
}

impl Default for ExpertPruning {
    /// One expert, by its positions, on as many images as Fine-Pruning looks at; no training.
    fn default() -> Self {
        Self {
            experts: 1,
            measure: SuspicionMeasure::Positions,
            scored_images: 10_000,
            training: TrainingConfig { epochs: 0, ..TrainingConfig::default() },
        }
    }
}

impl Defense for ExpertPruning {
    fn validate(&self, classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        let experts = classifier.experts;
        let most = experts.map_or(usize::MAX, |experts| experts.saturating_sub(1));
        if experts == Some(1) {
            problems.push(invalid("experts", self.experts, "a classifier with more than one expert"));
        } else if !(1..=most).contains(&self.experts) {
            let allowed = match experts {
                Some(experts) => format!("1 to {most}, so that one of {experts} experts is left"),
                None => "1 or more".into(),
            };
            problems.push(invalid("experts", self.experts, &allowed));
        }
        problems.extend(check_count("scored-images", self.scored_images));
        problems.extend(validate_training(&self.training, true));
        problems
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Experts]
    }

    has_training_table!();
}

impl<B: TrainingBackend> ModelRepair<B> for ExpertPruning {
    fn repair(
        &self,
        classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        let none = || DefenseError::NoExperts { defense: "expert-pruning" };
        let images = scored_images(work.data.clean, self.scored_images, work.seed, "expert-pruning")?;
        let plain = classifier.valid();
        let selections = predict_with_routing(&plain, &images, BATCH, device).selections.ok_or_else(none)?;
        let shares = match self.measure {
            SuspicionMeasure::Positions => favourite_places(&selections),
            SuspicionMeasure::Votes => favourite_classes(&plain, &images, device),
            SuspicionMeasure::Idleness => idle_shares(&plain, &images, device),
        };
        let mut order: Vec<usize> = (0..shares.len()).collect();
        order.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]).then(a.cmp(&b)));
        // One expert is always left.
        let removed = &order[..self.experts.min(shares.len() - 1)];
        let groups = classifier.filter_groups();
        let filters =
            removed.iter().map(|&expert| &groups[expert]).flat_map(|group| group.first..group.first + group.count);
        let filters: Vec<usize> = filters.collect();
        let pruning = Pruning::of(&filters, groups.iter().map(|group| group.count).sum(), Removal::Channel);
        let suspicions = shares.iter().enumerate().map(|(expert, &suspicious_share)| ExpertSuspicion {
            expert,
            suspicious_share,
            removed: removed.contains(&expert),
        });
        let details = RepairDetails {
            pruned: pruned_filters(&filters, &groups),
            experts: suspicions.collect(),
            ..RepairDetails::default()
        };
        let classifier = classifier.prune(&pruning);
        let (classifier, history) = tune(classifier, &self.training, &Trainable::without(pruning), work, device)?;
        Ok(Repaired { details, ..Repaired::tuned(classifier, history) })
    }
}

/// Each expert's share of selections on its favourite places.
fn favourite_places(selections: &Selections) -> Vec<f64> {
    let kept = selections.patches_per_expert();
    let share = |expert| {
        let mut counts = selections.counts(expert);
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let favourite: usize = counts.iter().take(kept).sum();
        favourite as f64 / (selections.images() * kept) as f64
    };
    (0..selections.experts()).map(share).collect()
}

/// Each expert's share of images on which it adds most to its favourite class.
fn favourite_classes<B: Kernels>(classifier: &Classifier<B>, images: &ImageSet, device: &B::Device) -> Vec<f64> {
    let classes = classifier.classes();
    let mut votes = vec![vec![0usize; classes]; classifier.filter_groups().len()];
    for_each_addition(classifier, image_batches::<B>(images, BATCH, device), |expert, added| {
        // Ties go to the lower class.
        votes[expert][(1..classes).fold(0, |best, class| if added[class] > added[best] { class } else { best })] += 1;
    });
    votes.iter().map(|votes| votes.iter().max().map_or(0.0, |&most| most as f64 / images.len() as f64)).collect()
}

/// One minus each expert's part of what all add.
fn idle_shares<B: Kernels>(classifier: &Classifier<B>, images: &ImageSet, device: &B::Device) -> Vec<f64> {
    let mut sums = vec![0.0f64; classifier.filter_groups().len()];
    for_each_addition(classifier, image_batches::<B>(images, BATCH, device), |expert, added| {
        let (least, most) =
            added.iter().fold((f32::MAX, f32::MIN), |(least, most), &add| (least.min(add), most.max(add)));
        sums[expert] += f64::from(most - least);
    });
    let total: f64 = sums.iter().sum();
    sums.iter().map(|sum| if total > 0.0 { 1.0 - sum / total } else { 1.0 }).collect()
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use burn_flex::{Flex, FlexDevice};

    use super::*;
    use crate::testing::{Learner, ascending_filters, constant_filters, quick_training, repair_with, shapes, tensor};

    #[test]
    fn an_expert_that_always_looks_at_the_same_places_has_a_share_of_one() {
        // Three images, two experts, two patches each. Expert 0: 4, 5 each time. Expert 1: 0 and 1, 1 and 2, 1 and 3;
        // its favourite places are 1 (three times) and one of 0, 2, 3 (once): 4 of 6 selections.
        let selections = Selections::new(2, 2, vec![4, 5, 0, 1, 4, 5, 1, 2, 4, 5, 1, 3]);
        let shares = favourite_places(&selections);
        assert!((shares[0] - 1.0).abs() < 1e-12 && (shares[1] - 4.0 / 6.0).abs() < 1e-12, "{shares:?}");
    }

    #[test]
    fn an_expert_that_always_votes_for_one_class_has_a_share_of_one() {
        // Constant features: whatever the head says, each expert votes for one class on all images.
        let constant = constant_filters::<Learner>(&[1.0; 64]).valid();
        let shares = favourite_classes::<Flex>(&constant, &shapes(20), &FlexDevice);
        assert!(shares.iter().all(|&share| share > 0.99), "{shares:?}");
        // Expert 1 alone sees the images: filter 16 speaks for class 3 where it answers, and class 7 has a word of
        // its own in filter 17, which answers a constant; some images go to either.
        let mut weight = vec![0.0f32; 640];
        weight[3 * 64 + 16] = 1.0;
        weight[7 * 64 + 17] = 1.0;
        let head = ("head.weight".to_owned(), TensorData::new(weight, [10, 64]));
        let varied = ascending_filters().valid().with_tensors([head].into());
        let mean = {
            let batch = image_batches::<Flex>(&shapes(20), 20, &FlexDevice).next().expect("20 images");
            let features = varied.filter_activity(batch).features.into_data();
            let column = features.iter::<f32>().skip(16).step_by(64).collect::<Vec<_>>();
            column.iter().sum::<f32>() / 20.0
        };
        // Filter 17 becomes that mean: its weights are zero, its bias undoes the normalization's shift and epsilon.
        let mut weights: Vec<f32> = varied.tensors()["experts.1.conv.weight"].iter::<f32>().collect();
        weights[64..128].fill(0.0);
        let mut biases: Vec<f32> = varied.tensors()["experts.1.conv.bias"].iter::<f32>().collect();
        biases[1] = (mean - 0.5) * 1.001f32.sqrt();
        let varied = varied.with_tensors(
            [
                ("experts.1.conv.weight".to_owned(), TensorData::new(weights, [16, 64, 1, 1])),
                ("experts.1.conv.bias".to_owned(), TensorData::new(biases, [16])),
            ]
            .into(),
        );
        let share = favourite_classes::<Flex>(&varied, &shapes(20), &FlexDevice)[1];
        assert!((0.5..1.0).contains(&share), "both classes get votes: {share}");
    }

    #[test]
    fn the_expert_that_alone_adds_anything_is_not_idle() {
        // Filter 40 is one of expert 2; filter 20, of expert 1, says the same to all classes, which is nothing.
        let mut weight = vec![0.0f32; 640];
        weight[3 * 64 + 40] = 1.0;
        (0..10).for_each(|class| weight[class * 64 + 20] = 5.0);
        let head = ("head.weight".to_owned(), TensorData::new(weight, [10, 64]));
        let classifier = ascending_filters().valid().with_tensors([head].into());
        let shares = idle_shares::<Flex>(&classifier, &shapes(20), &FlexDevice);
        assert_eq!(shares, [1.0, 1.0, 0.0, 1.0]);
    }

    #[test]
    fn a_removed_expert_adds_nothing_to_any_class_even_after_training() {
        for training in [TrainingConfig { epochs: 0, ..TrainingConfig::default() }, quick_training()] {
            let defense = ExpertPruning { experts: 2, training, ..Default::default() };
            let repaired = repair_with(&defense, ascending_filters(), None);
            let removed: Vec<_> = repaired.details.experts.iter().filter(|expert| expert.removed).collect();
            assert_eq!(removed.len(), 2);
            let least = removed.iter().map(|expert| expert.suspicious_share).fold(1.0, f64::min);
            let head = tensor(&repaired.classifier, "head.weight");
            for expert in &repaired.details.experts {
                let columns = expert.expert * 16..expert.expert * 16 + 16;
                let silent = (0..10).all(|class| head[class * 64..][columns.clone()].iter().all(|&w| w == 0.0));
                assert_eq!(silent, expert.removed, "expert {}", expert.expert);
                assert!(expert.removed || expert.suspicious_share <= least, "the most suspicious ones go");
            }
        }
    }

    #[test]
    fn the_last_expert_cannot_be_removed() {
        let classifier =
            DefendedClassifier { name: "patch-moe", experts: Some(4), routers_learn: true, has_batch_norm: true };
        let problems = ExpertPruning { experts: 4, ..Default::default() }.validate(&classifier);
        let said: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(said, ["experts is 4, expected 1 to 3, so that one of 4 experts is left"]);
    }
}
