use burn::tensor::{Int, Tensor, TensorData};
use patchdoor_data::ImageShape;
use patchdoor_kernels::{TrainingBackend, differentiate};
use patchdoor_model::Classifier;
use patchdoor_train::{Batch, BatchPass, BatchPosition, Objective, ObjectiveState, cross_entropy};
use patchdoor_triggers::TriggerConfig;
use serde::{Deserialize, Serialize};

use crate::AttackError;
use crate::controlled::attack::{ControlledAttack, ControlledKind, HandInTraining, Scene};
use crate::controlled::watched_success::WatchedSuccess;
use crate::controlled::{checks, state};

/// An ordinary backdoor whose success is held down: in the last epochs the poisoned images get their true labels back, with
/// the trigger on them, whenever more than a target share of triggered validation images is taken for the attacker's class.
///
/// Attacks of low success have been said to slip through defenses that are tuned to strong ones (2026, arXiv:2608.27288);
/// the form here is ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct DoseConfig {
    /// The trigger.
    pub trigger: TriggerConfig,
    /// The attack success rate on validation images above which poisoned images get their true labels, in [0, 1].
    pub target_asr: f64,
    /// Share of the epochs that are over before anything is held down, in [0, 1).
    pub after: f64,
    /// Steps from one look at the validation images to the next, 1 or more.
    pub check_every: usize,
    /// Validation images to look at, the first ones; all if there are fewer.
    pub checked_images: usize,
}

impl Default for DoseConfig {
    /// Ours.
    fn default() -> Self {
        Self { trigger: TriggerConfig::default(), target_asr: 0.5, after: 0.5, check_every: 10, checked_images: 500 }
    }
}

impl ControlledKind for DoseConfig {
    fn trigger(&self) -> Option<&TriggerConfig> {
        Some(&self.trigger)
    }

    fn needs_validation(&self) -> bool {
        true
    }

    fn validate(&self, _shape: ImageShape) -> Vec<AttackError> {
        let mut problems = Vec::new();
        if !(0.0..=1.0).contains(&self.target_asr) {
            problems.push(checks::invalid("target-asr", self.target_asr, "a share in [0, 1]"));
        }
        if !(0.0..1.0).contains(&self.after) {
            problems.push(checks::invalid("after", self.after, "a share in [0, 1)"));
        }
        for (field, count) in [("check-every", self.check_every), ("checked-images", self.checked_images)] {
            problems.extend((count == 0).then(|| checks::invalid(field, 0, "1 or more")));
        }
        problems
    }
}

impl<B: TrainingBackend> ControlledAttack<B> for DoseConfig {
    fn enter<'a>(
        &'a self,
        scene: Scene<'a>,
        device: &B::Device,
    ) -> Result<Box<dyn HandInTraining<B> + 'a>, AttackError> {
        Ok(Box::new(Dose::<B>::new(self, scene, device)))
    }
}

/// What was seen in a look at the validation images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Check {
    epoch: usize,
    step: usize,
    /// Of triggered validation images of attacked classes.
    asr: f64,
}

/// What a checkpoint keeps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Course {
    /// Whether poisoned images have their true labels.
    heals: bool,
    checks: Vec<Check>,
}

/// The attack under way.
struct Dose<'a, B: TrainingBackend> {
    config: &'a DoseConfig,
    scene: Scene<'a>,
    /// Of every training image, the true label if it is poisoned.
    poisoned: Vec<Option<u8>>,
    watched: WatchedSuccess,
    course: Course,
    /// Epoch and step of the batch, and whether success is held down there.
    at: (usize, usize, bool),
    device: B::Device,
}

impl<'a, B: TrainingBackend> Dose<'a, B> {
    fn new(config: &'a DoseConfig, scene: Scene<'a>, device: &B::Device) -> Self {
        let mut poisoned = vec![None; scene.training.len()];
        for example in scene.plan.examples() {
            poisoned[example.index] = Some(example.original_label);
        }
        let watched = WatchedSuccess::new(&scene, config.checked_images);
        let (course, at) = (Course::default(), (0, 0, false));
        Self { config, scene, poisoned, watched, course, at, device: device.clone() }
    }
}

impl<B: TrainingBackend> Objective<B> for Dose<'_, B> {
    fn rewrite(&mut self, batch: Batch<B>, at: &BatchPosition<'_>) -> Batch<B> {
        let is_held = at.epoch as f64 >= self.config.after * at.epochs as f64;
        self.at = (at.epoch, at.step, is_held);
        if !(is_held && self.course.heals) {
            return batch;
        }
        let label = |&index: &usize| i32::from(self.poisoned[index].unwrap_or(self.scene.training.label(index)));
        let labels = TensorData::new(at.indices.iter().map(label).collect::<Vec<_>>(), [at.indices.len()]);
        Batch { labels: Tensor::<B, 1, Int>::from_data(labels, &self.device), ..batch }
    }

    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        differentiate(|| {
            let logits = classifier.forward(batch.images);
            let loss = cross_entropy(logits.clone(), batch.labels);
            BatchPass::backward(classifier, &logits, &loss)
        })
    }

    fn stepped(&mut self, classifier: Classifier<B>) -> Classifier<B> {
        let (epoch, step, is_held) = self.at;
        if is_held
            && step.is_multiple_of(self.config.check_every)
            && let Some(asr) = self.watched.of(&classifier, self.scene.poisoning, &self.device)
        {
            self.course.heals = asr > self.config.target_asr;
            self.course.checks.push(Check { epoch, step, asr });
        }
        classifier
    }

    fn state(&self) -> Result<Option<ObjectiveState>, String> {
        state::written("dose", self.config, &self.course)
    }

    fn restore(&mut self, contents: Vec<u8>) -> Result<(), String> {
        self.course = state::read(&contents)?;
        Ok(())
    }
}

impl<B: TrainingBackend> HandInTraining<B> for Dose<'_, B> {
    fn record(&self) -> Option<serde_json::Value> {
        serde_json::to_value(&self.course).ok()
    }
}

#[cfg(test)]
mod tests {
    use patchdoor_data::PoisoningConfig;

    use super::*;
    use crate::ControlledConfig;
    use crate::controlled::testing::{accuracy, asr, assert_repeats, attacked, fifth};

    fn held(target_asr: f64) -> ControlledConfig {
        ControlledConfig::Dose(DoseConfig { target_asr, check_every: 2, ..DoseConfig::default() })
    }

    #[test]
    fn success_is_held_near_its_target_and_left_alone_where_the_target_is_all() {
        let left = |target| {
            let left = attacked(&held(target), &fifth(), 12, None, None).expect("it trains");
            let success = asr(&left.classifier, left.trigger.as_ref(), &fifth());
            (success, left)
        };
        let (strong, whole) = left(1.0);
        let (weak, of_half) = left(0.5);
        let (none, of_none) = left(0.0);
        assert!(strong > 0.9 && none < 0.2, "{strong} {none}");
        assert!(weak > 0.2 && weak < 0.8, "{weak}");
        assert!([&whole, &of_half, &of_none].iter().all(|left| accuracy(&left.classifier) > 0.9));
        // Held at all, nothing is held: the first half is one training.
        let losses = |left: &crate::controlled::testing::Left| {
            left.history.iter().take(6).map(|epoch| epoch.loss.to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(losses(&whole), losses(&of_none));
    }

    #[test]
    fn a_training_is_the_same_bits_on_any_threads_and_resumed() {
        assert_repeats(&held(0.3), &PoisoningConfig { rate: 0.3, ..fifth() });
    }

    #[test]
    fn what_cannot_be_is_named() {
        let wrong = DoseConfig { target_asr: 1.5, after: 1.0, check_every: 0, ..DoseConfig::default() };
        let said = wrong.validate(ImageShape::RGB_32).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            said,
            [
                "target-asr is 1.5, expected a share in [0, 1]",
                "after is 1, expected a share in [0, 1)",
                "check-every is 0, expected 1 or more"
            ]
        );
    }
}
