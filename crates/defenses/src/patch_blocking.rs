use burn::module::AutodiffModule;
use patchdoor_data::stream;
use patchdoor_kernels::TrainingBackend;
use patchdoor_metrics::share_down;
use patchdoor_model::Classifier;
use patchdoor_train::{PREDICTION_BATCH, Selections, Trainable, TrainingConfig, input_shape, predict_with_routing};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::defense::has_training_table;
use crate::error::{check_count, check_fraction, invalid};
use crate::filter_scores::scored_images;
use crate::reversal::ReversalConfig;
use crate::reversed_trigger::smallest;
use crate::tuning::{tune, validate_training};
use crate::{
    DefendedClassifier, Defense, DefenseError, ModelRepair, Need, RepairDetails, RepairWork, Repaired, Strengths,
};

/// Lets each expert pass over some patches, so that it takes the best of the others.
///
/// Two ideas from language models, for experts that choose patches; the form is ours. `BadMoE` is answered by sending tokens away
/// from what clean texts hardly use (2025, arXiv:2504.18598), and `SteerMoE` silences what is used more in suspicious texts than
/// in others (2025, arXiv:2509.09660).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PatchBlocking {
    /// Share of the patches of the map that an expert passes over, at most, rounded down, in [0, 1], beside those that it passes over
    /// already; it keeps as many as it takes.
    pub blocked_fraction: f64,
    /// Which patches those are.
    pub measure: BlockingMeasure,
    /// Which of the random draws it is, where the measure is `random`.
    pub draw: u64,
    /// How many of the defender's images selections are counted on, at most.
    pub scored_images: usize,
    /// How the trigger is looked for, where the measure is `risk`.
    pub reversal: ReversalConfig,
    /// How the defender's images are fitted afterwards, blocked patches staying blocked; no epochs unless said.
    pub training: TrainingConfig,
}

/// Which patches an expert passes over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockingMeasure {
    /// Those that it selects least often in clean images; ties go to the lower patch.
    #[default]
    Rarity,
    /// Those whose share of images that it selects them in rises most where a trigger is: the smallest trigger that works, made
    /// of the classifier ([`ReversalConfig`]). What does not rise stays.
    Risk,
    /// Any, a control.
    Random,
}

impl Default for PatchBlocking {
    /// A quarter of the patches, as `BadMoE`'s authors block two experts of eight; no training.
    fn default() -> Self {
        Self {
            blocked_fraction: 0.25,
            measure: BlockingMeasure::Rarity,
            draw: 0,
            scored_images: 10_000,
            reversal: ReversalConfig::default(),
            training: TrainingConfig { epochs: 0, ..TrainingConfig::default() },
        }
    }
}

impl Defense for PatchBlocking {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        problems.extend(check_fraction("blocked-fraction", self.blocked_fraction));
        if self.draw != 0 && self.measure != BlockingMeasure::Random {
            problems.push(invalid("draw", self.draw, "0, where the measure is not random"));
        }
        problems.extend(check_count("scored-images", self.scored_images));
        problems.extend(self.reversal.validate());
        problems.extend(validate_training(&self.training, true));
        problems
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Experts]
    }

    /// 5 %, as for every defense of the field here.
    fn default_clean_fraction(&self) -> f64 {
        0.05
    }

    has_training_table!();

    fn strengths(&self) -> Option<Strengths> {
        Some(Strengths { field: "blocked-fraction", values: vec![0.062_5, 0.125, 0.25, 0.5, 0.75] })
    }

    fn set_strength(&mut self, value: f64) {
        self.blocked_fraction = value;
    }

    fn make_quick(&mut self) {
        self.reversal.make_quick();
    }
}

impl<B: TrainingBackend> ModelRepair<B> for PatchBlocking {
    fn repair(
        &self,
        classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        const NAME: &str = "patch-blocking";
        let none = || DefenseError::NoExperts { defense: NAME };
        let images = scored_images(work.data.clean, self.scored_images, work.seed, NAME)?;
        let config = classifier.config();
        let choice = config.network().expert_choice().ok_or_else(none)?;
        let (rows, columns) = choice.patch_grid(input_shape(images.shape()));
        let patches = rows * columns;
        let plain = classifier.valid();
        let shares = |images| {
            let selections = predict_with_routing(&plain, images, PREDICTION_BATCH, device).selections;
            selections.map(|selections| selected_shares(&selections, patches)).ok_or_else(none)
        };
        let mut targets = Vec::new();
        let suspicion = match self.measure {
            BlockingMeasure::Rarity => shares(&images)?
                .into_iter()
                .map(|shares| shares.into_iter().map(|share| 1.0 - share).collect())
                .collect(),
            BlockingMeasure::Risk => {
                let is_stopped = || work.observer.is_stopped();
                let clean = (work.data.clean, work.seed);
                let triggers = self.reversal.reverse(classifier.clone(), clean, &is_stopped, device)?;
                targets.push(smallest(&triggers));
                risks(&shares(&triggers[targets[0]].stamp_all(&images))?, &shares(&images)?)
            }
            BlockingMeasure::Random => random_orders(choice.experts(), patches, work.seed, self.draw),
        };
        let blocked = suspicion.into_iter().enumerate().map(|(expert, mut suspicion): (usize, Vec<f64>)| {
            for &known in choice.blocked_patches(expert) {
                suspicion[usize::from(known)] = 0.0;
            }
            let spare = choice.spare_patches(input_shape(images.shape()), expert);
            most_suspicious(&suspicion, share_down(self.blocked_fraction, patches).min(spare))
        });
        let blocked = blocked.collect::<Vec<_>>();
        let classifier = classifier.block_patches(&blocked)?;
        let (classifier, history) = tune(classifier, &self.training, &Trainable::default(), work, device)?;
        let details = RepairDetails { targets, blocked_patches: blocked, ..RepairDetails::default() };
        Ok(Repaired { details, ..Repaired::tuned(classifier, history) })
    }
}

/// In which share of the images each expert selects each patch, `[expert][patch]`.
fn selected_shares(selections: &Selections, patches: usize) -> Vec<Vec<f64>> {
    let of_expert = |expert| {
        let mut counts = selections.counts(expert);
        counts.resize(patches, 0);
        counts.into_iter().map(|count| count as f64 / selections.images() as f64).collect()
    };
    (0..selections.experts()).map(of_expert).collect()
}

/// How much each share rises, and nothing where it does not.
fn risks(suspicious: &[Vec<f64>], clean: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let of_expert = |(suspicious, clean): (&Vec<f64>, &Vec<f64>)| {
        suspicious.iter().zip(clean).map(|(suspicious, clean)| (suspicious - clean).max(0.0)).collect()
    };
    suspicious.iter().zip(clean).map(of_expert).collect()
}

/// A random order of the patches for each expert, from the stream `defense/blocked-patches/DRAW`.
fn random_orders(experts: usize, patches: usize, seed: u64, draw: u64) -> Vec<Vec<f64>> {
    let rng = &mut stream(seed, &format!("defense/blocked-patches/{draw}"));
    let of_expert = |_| {
        let mut places = (1..=patches).map(|place| place as f64).collect::<Vec<_>>();
        places.shuffle(rng);
        places
    };
    (0..experts).map(of_expert).collect()
}

/// The most suspicious patches in rising order, at most so many; none of no suspicion, and ties go to the lower patch.
fn most_suspicious(suspicion: &[f64], most: usize) -> Vec<u16> {
    let mut order = (0..suspicion.len()).filter(|&patch| suspicion[patch] > 0.0).collect::<Vec<_>>();
    order.sort_by(|&a, &b| suspicion[b].total_cmp(&suspicion[a]).then(a.cmp(&b)));
    order.truncate(most);
    order.sort_unstable();
    order.into_iter().map(|patch| u16::try_from(patch).expect("a map has few patches")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planted::planted;
    use crate::testing::{ascending_filters, bits, quick_training, repair_with, shapes};

    #[test]
    fn patches_are_judged_by_how_often_they_are_selected() {
        // Two images, two experts, two patches of four each.
        let clean = selected_shares(&Selections::new(2, 2, vec![0, 1, 2, 3, 0, 2, 2, 3]), 4);
        assert_eq!(clean, [[1.0, 0.5, 0.5, 0.0], [0.0, 0.0, 1.0, 1.0]]);
        let triggered = selected_shares(&Selections::new(2, 2, vec![0, 3, 2, 3, 1, 3, 2, 3]), 4);
        let risks = risks(&triggered, &clean);
        assert_eq!(risks, [[0.0, 0.0, 0.0, 1.0], [0.0; 4]]);
        // Expert 1 is not moved: nothing of it is blocked.
        assert_eq!(most_suspicious(&risks[0], 2), [3]);
        assert!(most_suspicious(&risks[1], 2).is_empty());
        assert_eq!(most_suspicious(&[0.5, 1.0, 0.5, 0.9], 3), [0, 1, 3]);
    }

    #[test]
    fn random_patches_follow_seed_and_draw_and_differ_between_experts() {
        let drawn = |seed, draw| random_orders(3, 64, seed, draw);
        assert_eq!(drawn(0, 0), drawn(0, 0));
        assert!(drawn(0, 0) != drawn(0, 1) && drawn(0, 0) != drawn(1, 0));
        let orders = drawn(0, 0);
        assert_ne!(orders[0], orders[1]);
        let mut sorted = orders[2].clone();
        sorted.sort_by(f64::total_cmp);
        assert_eq!(sorted, (1..=64).map(f64::from).collect::<Vec<_>>());
    }

    #[test]
    fn rare_patches_are_blocked_no_weight_changes_and_they_stay_blocked_in_training() {
        let before = predict_with_routing(&ascending_filters().valid(), &shapes(40), 40, &burn_flex::FlexDevice);
        let before = selected_shares(&before.selections.expect("it routes"), 64);
        for training in [TrainingConfig { epochs: 0, ..TrainingConfig::default() }, quick_training()] {
            let is_trained = training.epochs > 0;
            let repaired = repair_with(&PatchBlocking { training, ..Default::default() }, ascending_filters(), None);
            let blocked = &repaired.details.blocked_patches;
            assert_eq!(blocked.iter().map(Vec::len).collect::<Vec<_>>(), [16; 4]);
            assert_eq!(bits(&repaired.classifier) != bits(&ascending_filters()), is_trained);
            let after = predict_with_routing(&repaired.classifier.valid(), &shapes(40), 40, &burn_flex::FlexDevice);
            let after = selected_shares(&after.selections.expect("it routes"), 64);
            for ((before, after), blocked) in before.iter().zip(&after).zip(blocked) {
                let of = |shares: &[f64], is_blocked: bool| {
                    let taken = (0..64u16).filter(|patch| blocked.contains(patch) == is_blocked);
                    taken.map(|patch| shares[usize::from(patch)]).collect::<Vec<_>>()
                };
                assert!(of(after, true).iter().all(|&share| share == 0.0), "{after:?}");
                let least = of(before, false).into_iter().fold(1.0, f64::min);
                assert!(of(before, true).iter().all(|&share| share <= least), "{before:?}");
                assert!((after.iter().sum::<f64>() - 16.0).abs() < 1e-9, "each takes as many as before");
            }
        }
    }

    #[test]
    fn an_expert_keeps_as_many_patches_as_it_takes() {
        let defense = PatchBlocking { blocked_fraction: 1.0, measure: BlockingMeasure::Random, ..Default::default() };
        let repaired = repair_with(&defense, ascending_filters(), None);
        assert_eq!(repaired.details.blocked_patches.iter().map(Vec::len).collect::<Vec<_>>(), [48; 4]);
        // Of 64 patches it takes 16 and passes over 44 already: four are left, and those are others.
        let known = (0..44).collect::<Vec<_>>();
        let classifier = ascending_filters().block_patches(&vec![known; 4]).expect("experts choose");
        for measure in [BlockingMeasure::Random, BlockingMeasure::Rarity] {
            let repaired = repair_with(&PatchBlocking { measure, ..defense.clone() }, classifier.clone(), None);
            let blocked = &repaired.details.blocked_patches;
            assert!(blocked.iter().all(|more| more.len() == 4 && more.iter().all(|&patch| patch >= 44)), "{blocked:?}");
        }
    }

    #[test]
    fn where_a_trigger_raises_selections_those_patches_are_blocked() {
        let mut defense = PatchBlocking { measure: BlockingMeasure::Risk, ..PatchBlocking::default() };
        defense.make_quick();
        let repaired = repair_with(&defense, ascending_filters(), None).details;
        assert_eq!(repaired.targets.len(), 1);
        let blocked = repaired.blocked_patches.iter().map(Vec::len).collect::<Vec<_>>();
        assert!(blocked.iter().all(|&count| count <= 16) && blocked.iter().any(|&count| count > 0), "{blocked:?}");
    }

    /// Nine of sixteen patches see the square. Blocked, they take the backdoor along, and much of the accuracy; the rare ones are others.
    #[test]
    fn a_planted_backdoor_goes_if_the_patches_that_see_it_are_blocked_and_not_if_rare_ones_are() {
        let seeing = (1..4u16).flat_map(|row| (1..4).map(move |column| 4 * row + column)).collect::<Vec<_>>();
        let victim = planted().victim();
        assert!(!planted().is_blind(&victim));
        let blind = victim.clone().block_patches(&vec![seeing; 4]).expect("experts choose");
        assert!(planted().is_blind(&blind));
        assert!(planted().attack_success(&blind) < 0.75, "{}", planted().attack_success(&blind));
        let repaired = planted().repair(&PatchBlocking::default(), victim).classifier;
        let [success, accuracy] = [planted().attack_success(&repaired), planted().accuracy(&repaired)];
        assert!(success > 0.9 && accuracy > 0.95, "{success} {accuracy}");
    }
}
