use patchdoor_kernels::TrainingBackend;
use patchdoor_metrics::{TriedStrength, Tuning};
use serde::{Deserialize, Serialize};

use crate::error::invalid;
use crate::{DefenseConfig, DefenseError, Repaired};

/// A setting by which a repair is made gentler or stronger.
#[derive(Clone, Debug, PartialEq)]
pub struct Strengths {
    /// Its path below the defense's table.
    pub field: &'static str,
    /// What is tried, from gentle to strong.
    pub values: Vec<f64>,
}

impl Strengths {
    /// A learning rate, from a tenth of the given one to ten times it.
    pub fn rates(field: &'static str, rate: f64) -> Self {
        // Rounded, so that 0.3 is what is written down and not the number beside it.
        let of = |factor: f64| (factor * rate * 1e12).round() / 1e12;
        Self { field, values: [0.1, 0.3, 1.0, 3.0, 10.0].map(of).to_vec() }
    }
}

/// How a defender chooses a repair's strength: the strongest that costs at most so much accuracy on validation images, and the
/// gentlest if all cost more.
///
/// A defender sees no trigger, so he cannot know what helps; he can know what he can afford. The rule is the same for all
/// repairs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct TuneConfig {
    /// How far the share of validation images predicted right may fall, in [0, 1).
    pub max_accuracy_drop: f64,
}

impl Default for TuneConfig {
    /// Two points, twice what the repair of Chan et al. (2025, arXiv:2505.01811) costs.
    fn default() -> Self {
        Self { max_accuracy_drop: 0.02 }
    }
}

impl TuneConfig {
    /// Checks every field.
    pub fn validate(&self) -> Vec<DefenseError> {
        if (0.0..1.0).contains(&self.max_accuracy_drop) {
            return Vec::new();
        }
        vec![invalid("max-accuracy-drop", self.max_accuracy_drop, "a fraction in [0, 1)")]
    }

    /// Tries the strengths of a repair from the strongest on until one can be afforded, and returns what it made; what was tried is
    /// in its details.
    ///
    /// `attempt` repairs a fresh copy of the classifier, each time with another defense; `accuracy` is the share of validation images
    /// that a repaired classifier predicts right, `before` that of the classifier as it was.
    ///
    /// # Errors
    /// The first of `attempt`.
    ///
    /// # Panics
    /// If the defense has no [`strengths`](crate::Defense::strengths).
    pub fn choose<B: TrainingBackend, E>(
        self,
        defense: &DefenseConfig,
        before: f64,
        mut accuracy: impl FnMut(&Repaired<B>) -> f64,
        mut attempt: impl FnMut(&DefenseConfig, f64) -> Result<Repaired<B>, E>,
    ) -> Result<Repaired<B>, E> {
        let strengths = defense.as_defense().strengths().expect("a plan tunes what has strengths");
        let mut tried = Vec::new();
        let mut made = None;
        for &value in strengths.values.iter().rev() {
            let mut stronger = defense.clone();
            stronger.as_defense_mut().set_strength(value);
            let repaired = attempt(&stronger, value)?;
            let validation_accuracy = accuracy(&repaired);
            tried.push(TriedStrength { value, validation_accuracy });
            made = Some((value, repaired));
            // A classifier that predicts not-a-number has no accuracy; it is not afforded either.
            if validation_accuracy >= before - self.max_accuracy_drop {
                break;
            }
        }
        let (value, mut repaired) = made.expect("there is a strength");
        repaired.details.tuning = Some(Tuning {
            field: strengths.field.to_owned(),
            value,
            accuracy_before: before,
            max_accuracy_drop: self.max_accuracy_drop,
            tried,
        });
        Ok(repaired)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Learner, ascending_filters};
    use crate::{ChannelLipschitzPruning, FineTuning, Strip};

    fn chosen(defense: &DefenseConfig, drop: f64, accuracies: &[f64]) -> Tuning {
        let mut found = accuracies.iter();
        let repaired = TuneConfig { max_accuracy_drop: drop }.choose::<Learner, ()>(
            defense,
            0.7,
            |_| *found.next().expect("no strength is tried after one that can be afforded"),
            |_, _| Ok(Repaired::tuned(ascending_filters(), Vec::new())),
        );
        repaired.expect("no attempt fails").details.tuning.expect("it was tuned")
    }

    #[test]
    fn the_strongest_that_can_be_afforded_is_taken_and_the_gentlest_if_none_can() {
        let defense = DefenseConfig::FineTuning(FineTuning::default());
        let taken = chosen(&defense, 0.0625, &[0.1, 0.5, 0.637_5]);
        assert_eq!((taken.field.as_str(), taken.value, taken.tried.len()), ("training.learning-rate", 0.1, 3));
        assert_eq!(taken.tried[0], TriedStrength { value: 1.0, validation_accuracy: 0.1 });
        let first = chosen(&defense, 0.02, &[0.69]);
        assert_eq!((first.value, first.tried.len()), (1.0, 1));
        let none = chosen(&defense, 0.0, &[0.1, 0.2, 0.3, f64::NAN, 0.4]);
        assert_eq!((none.value, none.tried.len()), (0.01, 5));
        // Fewer standard deviations prune more.
        let lipschitz = DefenseConfig::ChannelLipschitzPruning(ChannelLipschitzPruning::default());
        let second = chosen(&lipschitz, 0.0, &[0.6, 0.7]);
        assert_eq!((second.value, second.tried.len()), (2.0, 2));
    }

    #[test]
    fn every_strength_is_a_valid_defense_that_differs_from_the_others() {
        let classifier = crate::DefendedClassifier {
            name: "patch-moe",
            experts: Some(4),
            routers_learn: true,
            has_batch_norm: true,
        };
        let mut tunable = 0;
        for defense in DefenseConfig::defaults() {
            let Some(strengths) = defense.as_defense().strengths() else { continue };
            tunable += 1;
            let mut seen = Vec::new();
            for &value in &strengths.values {
                let mut set = defense.clone();
                set.as_defense_mut().set_strength(value);
                assert!(set.validate(&classifier).is_empty(), "{set:?}");
                assert!(!seen.contains(&set), "{set:?}");
                seen.push(set);
            }
            assert!(seen.contains(&defense), "{}: the default is none of the strengths", defense.name());
        }
        assert!(tunable >= 12, "{tunable}");
        assert_eq!(DefenseConfig::Strip(Strip::default()).as_defense().strengths(), None);
    }
}
