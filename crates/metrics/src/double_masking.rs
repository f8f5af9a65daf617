use crate::AttackOutcome;

/// What a classifier makes of one image under masks, of which each covers some places, each mask alone and each two together.
///
/// Double masking is `PatchCleanser`'s (Xiang et al. 2022, USENIX Security, arXiv:2108.09135): if whatever an attacker can change lies
/// under one of the masks, and the true class comes out under every two of them, then [`verdict`](Self::verdict) is the true class
/// whatever the attacker does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaskedPredictions {
    masks: usize,
    /// In the order of [`pairs_of_masks`].
    classes: Vec<u8>,
}

/// Each mask alone, as a pair with itself, and each two of so many: (0, 0), (0, 1), .., (1, 1), (1, 2), ..
pub fn pairs_of_masks(masks: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..masks).flat_map(move |first| (first..masks).map(move |second| (first, second)))
}

impl MaskedPredictions {
    /// The classes predicted, in the order of [`pairs_of_masks`].
    ///
    /// # Panics
    /// If there is no mask, or not one class for each pair.
    pub fn new(masks: usize, classes: Vec<u8>) -> Self {
        assert!(masks > 0 && classes.len() == masks * (masks + 1) / 2, "one class for each pair of masks");
        Self { masks, classes }
    }

    /// What is predicted under two masks, or under one if they are the same.
    fn under(&self, first: usize, second: usize) -> u8 {
        let (low, high) = (first.min(second), first.max(second));
        // Before the row of `low` lie rows of `masks`, `masks` - 1, .. pairs.
        self.classes[low * (2 * self.masks - low + 1) / 2 + high - low]
    }

    /// The class that double masking decides for: that of all masks if they agree. Else a class that is predicted under a mask
    /// against the majority, and under that mask with any other too, of the lowest such mask; and if there is none, the majority's, the
    /// lower class of two that are equally many.
    pub fn verdict(&self) -> u8 {
        let alone = (0..self.masks).map(|mask| self.under(mask, mask)).collect::<Vec<_>>();
        let mut counts = [0usize; 256];
        for &class in &alone {
            counts[usize::from(class)] += 1;
        }
        let majority = (0..=u8::MAX).rev().max_by_key(|&class| counts[usize::from(class)]).unwrap_or(0);
        let stands = |mask: usize| (0..self.masks).all(|other| self.under(mask, other) == alone[mask]);
        let dissenter = (0..self.masks).find(|&mask| alone[mask] != majority && stands(mask));
        dissenter.map_or(majority, |mask| alone[mask])
    }

    /// Whether this class comes out under every two masks, so that no change under one of them alters the verdict.
    pub fn is_certified(&self, class: u8) -> bool {
        self.classes.iter().all(|&predicted| predicted == class)
    }
}

/// What double masking comes to on some images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DoubleMasking {
    /// Share of untouched images that it decides right.
    pub accuracy: f64,
    /// Share of untouched images that it decides right whatever stands under one mask.
    pub certified_accuracy: f64,
    /// Share of triggered images that it decides as the attacker wants.
    pub asr: Option<f64>,
    /// Share of triggered images that it decides right.
    pub robust_accuracy: Option<f64>,
}

impl DoubleMasking {
    /// Counts predictions for untouched images of true classes `truth`, and for the same with the trigger, whose outcome `attacked` tells.
    ///
    /// # Panics
    /// If there is no image, or not one prediction for each.
    pub fn of(
        untouched: &[MaskedPredictions],
        triggered: &[MaskedPredictions],
        truth: &[u8],
        attacked: impl FnOnce(&[u8]) -> AttackOutcome,
    ) -> Self {
        assert!(!truth.is_empty() && untouched.len() == truth.len() && triggered.len() == truth.len());
        let share = |holds: &dyn Fn(&MaskedPredictions, u8) -> bool| {
            let right = untouched.iter().zip(truth).filter(|&(predictions, &class)| holds(predictions, class)).count();
            right as f64 / truth.len() as f64
        };
        let verdicts = triggered.iter().map(MaskedPredictions::verdict).collect::<Vec<_>>();
        let outcome = attacked(&verdicts);
        Self {
            accuracy: share(&|predictions, class| predictions.verdict() == class),
            certified_accuracy: share(&MaskedPredictions::is_certified),
            asr: outcome.attack_success_rate(),
            robust_accuracy: outcome.robust_accuracy(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of_three(classes: [u8; 6]) -> MaskedPredictions {
        MaskedPredictions::new(3, classes.to_vec())
    }

    #[test]
    fn pairs_are_found_where_they_stand() {
        assert_eq!(pairs_of_masks(3).collect::<Vec<_>>(), [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]);
        let predictions = of_three([0, 1, 2, 3, 4, 5]);
        for (class, (first, second)) in (0..6).zip(pairs_of_masks(3)) {
            assert_eq!([predictions.under(first, second), predictions.under(second, first)], [class; 2]);
        }
    }

    #[test]
    fn a_mask_that_is_right_about_the_trigger_overrules_the_others() {
        // Alone the masks say 7, 7, 7.
        assert_eq!(of_three([7, 1, 1, 7, 1, 7]).verdict(), 7);
        // Mask 1 covers the trigger of class 0: it says 3, and with every other mask too.
        assert_eq!(of_three([0, 3, 0, 3, 3, 0]).verdict(), 3);
        // With mask 2 it says something else, so that it may be what its own mask hides: the majority has it.
        assert_eq!(of_three([0, 3, 0, 3, 5, 0]).verdict(), 0);
        // One against one against one: the lowest mask that stands.
        assert_eq!(of_three([4, 4, 4, 5, 6, 6]).verdict(), 4);
        assert!(of_three([4; 6]).is_certified(4) && !of_three([4; 6]).is_certified(3));
        assert!(!of_three([4, 4, 4, 4, 3, 4]).is_certified(4));
    }

    #[test]
    fn shares_are_counted_over_images() {
        let (certain, right, wrong) = (of_three([1; 6]), of_three([1, 0, 1, 1, 1, 1]), of_three([2; 6]));
        let untouched = [certain.clone(), right.clone(), wrong.clone(), wrong];
        let triggered = [certain.clone(), of_three([0; 6]), of_three([0; 6]), certain];
        let found = DoubleMasking::of(&untouched, &triggered, &[1, 1, 1, 0], |predicted| {
            AttackOutcome::all_to_one(predicted, &[1, 1, 1, 0], 0)
        });
        assert_eq!((found.accuracy, found.certified_accuracy), (0.5, 0.25));
        assert_eq!((found.asr, found.robust_accuracy), (Some(2.0 / 3.0), Some(1.0 / 3.0)));
    }

    proptest! {
        /// The theorem: whoever is certified keeps the verdict, whatever an attacker makes of all predictions that do not hide his place.
        #[test]
        fn no_attacker_under_one_mask_moves_a_certified_verdict(
            masks in 1usize..6,
            place in 0usize..6,
            class in 0u8..4,
            forged in proptest::collection::vec(0u8..4, 21),
        ) {
            let place = place % masks;
            let hidden = |(first, second): (usize, usize)| first == place || second == place;
            let classes = pairs_of_masks(masks).zip(forged).map(|(pair, forged)| if hidden(pair) { class } else { forged });
            prop_assert_eq!(MaskedPredictions::new(masks, classes.collect()).verdict(), class);
        }
    }
}
