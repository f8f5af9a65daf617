use serde::{Deserialize, Serialize};

/// What a classifier made of triggered test images.
///
/// Counts only; the rates follow from them. Images whose true class is the class the attacker wants
/// count in the `all_classes` pair alone: they are right without any backdoor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AttackOutcome {
    /// Triggered images whose true class is not the attacker's.
    pub images: usize,
    /// Those of them predicted as the attacker wants.
    pub successes: usize,
    /// Those of them still predicted as their true class.
    pub robust: usize,
    /// Triggered images of all classes, the attacker's included.
    pub images_all_classes: usize,
    /// Those of them predicted as the attacker wants.
    pub successes_all_classes: usize,
}

impl AttackOutcome {
    /// Counts for an attacker who wants every image classified as `target`.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn all_to_one(predicted: &[u8], truth: &[u8], target: u8) -> Self {
        Self::by_rule(predicted, truth, |label| (target, label != target))
    }

    /// Counts for an attacker who wants class y classified as y + 1, modulo `classes`.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn all_to_all(predicted: &[u8], truth: &[u8], classes: usize) -> Self {
        Self::by_rule(predicted, truth, |label| (((usize::from(label) + 1) % classes) as u8, true))
    }

    /// Counts for any label rule: `rule` gives, for a true class, the class that the attacker wants for
    /// its images, and whether he attacks them at all.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn by_rule(predicted: &[u8], truth: &[u8], rule: impl Fn(u8) -> (u8, bool)) -> Self {
        assert_eq!(predicted.len(), truth.len(), "one prediction per label");
        let mut outcome = Self::default();
        for (&prediction, &label) in predicted.iter().zip(truth) {
            let (wanted, is_attacked) = rule(label);
            outcome.images_all_classes += 1;
            outcome.successes_all_classes += usize::from(prediction == wanted);
            if is_attacked {
                outcome.images += 1;
                outcome.successes += usize::from(prediction == wanted);
                outcome.robust += usize::from(prediction == label);
            }
        }
        outcome
    }

    /// Attack success rate (ASR), in [0, 1]: share of triggered images not truly of the attacker's
    /// class that are predicted as it. `None` without such images.
    pub fn attack_success_rate(&self) -> Option<f64> {
        share(self.successes, self.images)
    }

    /// Robust accuracy (RA), in [0, 1]: share of the same images still predicted as their true
    /// class. ASR + RA is at most 1.
    pub fn robust_accuracy(&self) -> Option<f64> {
        share(self.robust, self.images)
    }

    /// The rate that counts the attacker's own class too, as `BackdoorBox` does; always reported
    /// beside [`Self::attack_success_rate`], never instead of it.
    pub fn attack_success_rate_all_classes(&self) -> Option<f64> {
        share(self.successes_all_classes, self.images_all_classes)
    }
}

pub(crate) fn share(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn asr_ignores_images_of_the_target_class() {
        // True classes 0 0 1 2; all predicted 0, target 0: two of two count, four of four in all.
        let outcome = AttackOutcome::all_to_one(&[0, 0, 0, 0], &[0, 0, 1, 2], 0);
        assert_eq!((outcome.successes, outcome.images), (2, 2));
        assert_eq!((outcome.successes_all_classes, outcome.images_all_classes), (4, 4));
    }

    #[test]
    fn all_to_all_counts_the_next_class() {
        // Classes 0, 1, 2 of 3 want 1, 2, 0.
        let outcome = AttackOutcome::all_to_all(&[1, 1, 0], &[0, 1, 2], 3);
        assert_eq!((outcome.images, outcome.successes, outcome.robust), (3, 2, 1));
    }

    #[test]
    fn images_that_are_not_attacked_count_in_the_rate_over_all_only() {
        // Class 1 is attacked and becomes 0: one of two; the image of class 2 is no success of the attack.
        let outcome = AttackOutcome::by_rule(&[0, 1, 0], &[1, 1, 2], |label| (0, label == 1));
        assert_eq!((outcome.images, outcome.successes, outcome.robust), (2, 1, 1));
        assert_eq!((outcome.images_all_classes, outcome.successes_all_classes), (3, 2));
    }

    #[test]
    fn rates_of_no_images_are_none() {
        // The only image is of the target class.
        let outcome = AttackOutcome::all_to_one(&[0], &[0], 0);
        assert_eq!(outcome.attack_success_rate(), None);
        assert_eq!(outcome.attack_success_rate_all_classes(), Some(1.0));
    }

    proptest! {
        #[test]
        fn rates_lie_in_the_unit_interval(images in prop::collection::vec((0u8..5, 0u8..5), 0..40), target in 0u8..5) {
            let (predicted, truth): (Vec<u8>, Vec<u8>) = images.into_iter().unzip();
            let outcome = AttackOutcome::all_to_one(&predicted, &truth, target);
            if let (Some(asr), Some(ra)) = (outcome.attack_success_rate(), outcome.robust_accuracy()) {
                prop_assert!((0.0..=1.0).contains(&asr) && (0.0..=1.0).contains(&ra));
                prop_assert!(asr + ra <= 1.0 + 1e-12);
            }
        }
    }
}
