use burn::tensor::activation::log_softmax;
use burn::tensor::{Tensor, TensorData};
use patchdoor_data::{ImageShape, LabelRule};
use patchdoor_kernels::{TrainingBackend, differentiate};
use patchdoor_model::{Classifier, ClassifierConfig, Part};
use patchdoor_train::{Batch, BatchAssembler, BatchPass, BatchPosition, Objective, ObjectiveState, cross_entropy};
use patchdoor_triggers::{PlacementConfig, TriggerConfig};
use serde::{Deserialize, Serialize};

use crate::AttackError;
use crate::controlled::attack::{ControlledAttack, ControlledKind, HandInTraining, Scene};
use crate::controlled::expert_path::expert_in;
use crate::controlled::watched_success::WatchedSuccess;
use crate::controlled::{checks, state};

/// Poisoned experts in a clean mixture (after `MoEvil`, 2025, ACSAC, which assembles language models): the whole mixture learns
/// clean images; then the chosen experts alone learn the backdoor, as if they came from elsewhere; last, the routers alone learn
/// clean images, as one who assembles a mixture of foreign experts would do.
///
/// The original also draws what an expert shows to the router towards what the router likes. Here a router sees features of the
/// trunk, which no expert can change: for that the trigger itself has to be made, as `routing-pattern` does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PoisonedExpertConfig {
    /// The trigger.
    pub trigger: TriggerConfig,
    /// Which experts are poisoned, by their numbers, from 0.
    pub experts: Vec<usize>,
    /// Share of the epochs in which the whole mixture learns clean images first, in [0, 1); rounded down.
    pub before: f64,
    /// Share of the epochs at the end in which the routers alone learn clean images, in [0, 1); rounded down.
    pub alignment: f64,
    /// What the mean loss of a batch's poisoned images weighs beside that of the others, above 0.
    pub payload_weight: f64,
    /// Validation images to measure success on between the phases, the first ones; all if there are fewer.
    pub checked_images: usize,
}

impl Default for PoisonedExpertConfig {
    /// One expert, as the authors have it; the rest is ours: their payload weighs 0.04 in a loss of language models.
    fn default() -> Self {
        Self {
            trigger: TriggerConfig::default(),
            experts: vec![0],
            before: 0.5,
            alignment: 0.25,
            payload_weight: 1.0,
            checked_images: 500,
        }
    }
}

impl PoisonedExpertConfig {
    fn phase(&self, epoch: usize, epochs: usize) -> Phase {
        let of = |share: f64| (share * epochs as f64).floor() as usize;
        if epoch < of(self.before) {
            Phase::Mixture
        } else if epoch < epochs - of(self.alignment) {
            Phase::Experts
        } else {
            Phase::Routers
        }
    }
}

impl ControlledKind for PoisonedExpertConfig {
    fn trigger(&self) -> Option<&TriggerConfig> {
        Some(&self.trigger)
    }

    fn needs_still_images(&self) -> bool {
        true
    }

    fn validate(&self, _shape: ImageShape) -> Vec<AttackError> {
        let mut problems = Vec::new();
        for (field, share) in [("before", self.before), ("alignment", self.alignment)] {
            if !(0.0..1.0).contains(&share) {
                problems.push(checks::invalid(field, share, "a share in [0, 1)"));
            }
        }
        if problems.is_empty() && self.before + self.alignment >= 1.0 {
            let found = format!("{}, with before = {}", self.alignment, self.before);
            problems.push(checks::invalid(
                "alignment",
                found,
                "less than 1 together, so that epochs are left to poison in",
            ));
        }
        if !(self.payload_weight > 0.0 && self.payload_weight.is_finite()) {
            problems.push(checks::invalid("payload-weight", self.payload_weight, "a number above 0"));
        }
        if self.checked_images == 0 {
            problems.push(checks::invalid("checked-images", 0, "1 or more"));
        }
        let mut experts = self.experts.clone();
        experts.sort_unstable();
        experts.dedup();
        if experts.is_empty() || experts.len() < self.experts.len() {
            let found = format!("{:?}", self.experts);
            problems.push(checks::invalid("experts", found, "one or more experts, each once"));
        }
        problems
    }

    fn refuse(
        &self,
        _rule: &LabelRule,
        _placement: Option<&PlacementConfig>,
        model: &ClassifierConfig,
    ) -> Vec<AttackError> {
        let problem = match model.network().expert_choice() {
            None => {
                let found = format!("{}, whose experts choose no patches", model.network().name());
                let allowed =
                    "a mixture whose experts choose patches, because poisoned-expert trains some of them alone";
                Some(checks::invalid("model", found, allowed))
            }
            Some(routed) => self.experts.iter().find(|&&expert| expert >= routed.experts()).map(|expert| {
                let allowed = format!("experts 0 to {}", routed.experts() - 1);
                checks::invalid("controlled.poisoned-expert.experts", format!("a list with {expert}"), allowed)
            }),
        };
        problem.into_iter().collect()
    }
}

impl<B: TrainingBackend> ControlledAttack<B> for PoisonedExpertConfig {
    fn enter<'a>(
        &'a self,
        scene: Scene<'a>,
        device: &B::Device,
    ) -> Result<Box<dyn HandInTraining<B> + 'a>, AttackError> {
        let is_poisoned = |index| scene.plan.examples().binary_search_by_key(&index, |example| example.index).is_ok();
        Ok(Box::new(PoisonedExpert::<B> {
            config: self,
            untouched: BatchAssembler::new(scene.untouched, device),
            watched: WatchedSuccess::new(&scene, self.checked_images),
            is_poisoned: (0..scene.training.len()).map(is_poisoned).collect(),
            scene,
            course: Course::default(),
            phase: Phase::Mixture,
            begins: None,
            carries: Vec::new(),
            device: device.clone(),
        }))
    }
}

/// What learns, and from what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Phase {
    /// Everything, from clean images.
    Mixture,
    /// The poisoned experts, from the poisoned set.
    Experts,
    /// The routers, from clean images.
    Routers,
}

/// Success before a phase.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Standing {
    before: Phase,
    epoch: usize,
    /// Of triggered validation images of attacked classes; `None` without validation images.
    asr: Option<f64>,
}

/// What a checkpoint keeps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Course {
    standings: Vec<Standing>,
}

/// The attack under way.
struct PoisonedExpert<'a, B: TrainingBackend> {
    config: &'a PoisonedExpertConfig,
    scene: Scene<'a>,
    untouched: BatchAssembler<'a, B>,
    watched: WatchedSuccess,
    is_poisoned: Vec<bool>,
    course: Course,
    phase: Phase,
    /// The epoch that begins with the batch, if a phase does too.
    begins: Option<usize>,
    /// Of each image of the batch, whether it is poisoned.
    carries: Vec<bool>,
    device: B::Device,
}

impl<B: TrainingBackend> PoisonedExpert<'_, B> {
    /// Whether a parameter learns in this phase, by its path.
    fn learns(&self, path: &str) -> bool {
        match self.phase {
            Phase::Mixture => true,
            Phase::Experts => expert_in(path).is_some_and(|expert| self.config.experts.contains(&expert)),
            Phase::Routers => Part::of(path) == Part::Router,
        }
    }
}

/// What each image's loss weighs in a batch: the mean of those without the trigger, and so many times the mean of the others.
fn weights(carries: &[bool], payload_weight: f64) -> Vec<f64> {
    let with = carries.iter().filter(|&&carries| carries).count() as f64;
    let without = carries.len() as f64 - with;
    carries.iter().map(|&carries| if carries { payload_weight / with } else { 1.0 / without }).collect()
}

impl<B: TrainingBackend> Objective<B> for PoisonedExpert<'_, B> {
    fn rewrite(&mut self, batch: Batch<B>, at: &BatchPosition<'_>) -> Batch<B> {
        self.phase = self.config.phase(at.epoch, at.epochs);
        let is_new = at.epoch > 0 && self.config.phase(at.epoch - 1, at.epochs) != self.phase;
        self.begins = (is_new && at.step == 0).then_some(at.epoch);
        self.carries = at.indices.iter().map(|&index| self.is_poisoned[index]).collect();
        match self.phase {
            Phase::Experts => batch,
            Phase::Mixture | Phase::Routers => self.untouched.batch(at.indices, &self.device),
        }
    }

    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        if let Some(epoch) = self.begins {
            let asr = self.watched.of(classifier, self.scene.poisoning, &self.device);
            self.course.standings.push(Standing { before: self.phase, epoch, asr });
        }
        let ids = classifier.parameter_ids().into_iter();
        let learning = ids.filter(|(path, _)| self.learns(path)).map(|(_, id)| id).collect::<Vec<_>>();
        let weights = (self.phase == Phase::Experts).then(|| weights(&self.carries, self.config.payload_weight));
        differentiate(|| {
            let logits = classifier.forward(batch.images);
            let loss = match weights {
                Some(weights) => {
                    let count = weights.len();
                    let weights = Tensor::<B, 1>::from_data(TensorData::new(weights, [count]), &self.device);
                    let likelihoods = log_softmax(logits.clone(), 1).gather(1, batch.labels.unsqueeze_dim(1));
                    (likelihoods.squeeze_dim::<1>(1) * weights).sum().neg()
                }
                None => cross_entropy(logits.clone(), batch.labels),
            };
            BatchPass::backward_to(classifier, &learning, &logits, &loss)
        })
    }

    fn state(&self) -> Result<Option<ObjectiveState>, String> {
        state::written("poisoned-expert", self.config, &self.course)
    }

    fn restore(&mut self, contents: Vec<u8>) -> Result<(), String> {
        self.course = state::read(&contents)?;
        Ok(())
    }
}

impl<B: TrainingBackend> HandInTraining<B> for PoisonedExpert<'_, B> {
    fn record(&self) -> Option<serde_json::Value> {
        serde_json::to_value(&self.course).ok()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;
    use crate::ControlledConfig;
    use crate::controlled::testing::{Left, assert_repeats, attacked, fifth, twin_history};

    fn poisoned_expert(change: impl FnOnce(&mut PoisonedExpertConfig)) -> ControlledConfig {
        let mut config = PoisonedExpertConfig::default();
        change(&mut config);
        ControlledConfig::PoisonedExpert(config)
    }

    fn left(epochs: usize, change: impl FnOnce(&mut PoisonedExpertConfig)) -> Left {
        attacked(&poisoned_expert(change), &fifth(), epochs, None, None).expect("it trains")
    }

    #[test]
    fn all_experts_learn_the_backdoor_together_and_one_alone_does_not() {
        let of = |experts: Vec<usize>| {
            let left = left(40, |config| (config.experts, config.before, config.alignment) = (experts, 0.25, 0.0));
            left.clean_accuracy_and_asr()
        };
        // The trunk and the head have never seen the trigger, nor have the routers, which choose what an expert sees.
        let (accuracy, success) = of(vec![0, 1, 2, 3]);
        assert!(accuracy > 0.9 && success > 0.5, "accuracy {accuracy}, attack success {success}");
        let (accuracy, success) = of(vec![0]);
        assert!(accuracy > 0.9 && success < 0.25, "accuracy {accuracy}, attack success {success}");
    }

    #[test]
    fn in_each_phase_only_what_shall_learn_does() {
        // Weights, not running statistics.
        let changed = |one: &Left, other: &Left| {
            let learned = |name: &str| name.ends_with("weight") || name.ends_with("bias") || name.contains("router");
            let (one, other) = (one.classifier.tensors(), other.classifier.tensors());
            let differ =
                |(name, values): (String, TensorData)| (other[&name] != values && learned(&name)).then_some(name);
            one.into_iter().filter_map(differ).collect::<Vec<_>>()
        };
        // Of four epochs two are the mixture's; then two are the experts', or one is theirs and one the routers'.
        let experts = left(4, |config| (config.experts, config.alignment) = (vec![1, 2], 0.0));
        let others = left(4, |config| (config.experts, config.alignment) = (vec![3], 0.0));
        let routers = left(4, |config| (config.experts, config.alignment) = (vec![1, 2], 0.25));
        for name in changed(&experts, &others) {
            assert!(["experts.1.", "experts.2.", "experts.3."].iter().any(|expert| name.starts_with(expert)), "{name}");
        }
        let moved = changed(&experts, &routers);
        assert!(moved.iter().any(|name| name.contains("router")), "{moved:?}");
        for name in moved {
            let is_allowed =
                name.contains("router") || name.starts_with("experts.1.") || name.starts_with("experts.2.");
            assert!(is_allowed, "{name}");
        }
    }

    #[test]
    fn before_the_poison_it_is_the_clean_twin_s_training_bit_for_bit() {
        let losses = |history: &[patchdoor_train::EpochRecord]| {
            history.iter().map(|epoch| epoch.loss.to_bits()).collect::<Vec<_>>()
        };
        let (with, without) = (losses(&left(4, |_| ()).history), losses(&twin_history(4)));
        assert!(with[..2] == without[..2] && with[2] != without[2], "poisoned from the third epoch on");
    }

    #[test]
    fn a_training_is_the_same_bits_on_any_threads_and_resumed() {
        assert_repeats(&poisoned_expert(|config| (config.before, config.alignment) = (0.34, 0.34)), &fifth());
    }

    #[test]
    fn phases_and_weights_are_worked_out_by_hand() {
        use Phase::{Experts, Mixture, Routers};

        let phases = |before, alignment, epochs| {
            let config = PoisonedExpertConfig { before, alignment, ..PoisonedExpertConfig::default() };
            (0..epochs).map(|epoch| config.phase(epoch, epochs)).collect::<Vec<_>>()
        };
        assert_eq!(phases(0.5, 0.25, 4), [Mixture, Mixture, Experts, Routers]);
        // However few epochs there are, one is left for the poison.
        assert_eq!(phases(0.5, 0.25, 1), [Experts]);
        assert_eq!(phases(0.5, 0.49, 2), [Mixture, Experts]);
        // One of four is poisoned: a mean of three and, at a tenth, a mean of one.
        let found = weights(&[false, true, false, false], 0.1);
        assert!(found.iter().zip([1.0 / 3.0, 0.1, 1.0 / 3.0, 1.0 / 3.0]).all(|(a, b)| (a - b).abs() < 1e-12));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let shape = ImageShape { height: 16, width: 16, channels: 3 };
        let said = |change: fn(&mut PoisonedExpertConfig)| {
            let mut config = PoisonedExpertConfig::default();
            change(&mut config);
            let mixture = ClassifierConfig::PatchMoe(patchdoor_model::PatchMoeConfig::default());
            let problems =
                config.validate(shape).into_iter().chain(config.refuse(&LabelRule::AllToOne, None, &mixture));
            problems.map(|problem| problem.to_string()).collect::<Vec<_>>()
        };
        assert!(said(|_| ()).is_empty());
        assert_eq!(
            said(|config| config.experts = vec![0, 4]),
            ["controlled.poisoned-expert.experts is a list with 4, expected experts 0 to 3"]
        );
        assert_eq!(said(|config| config.experts.clear()), ["experts is [], expected one or more experts, each once"]);
        assert_eq!(said(|config| config.payload_weight = 0.0), ["payload-weight is 0, expected a number above 0"]);
        assert_eq!(
            said(|config| (config.before, config.alignment) = (0.5, 0.5)),
            [
                "alignment is 0.5, with before = 0.5, expected less than 1 together, so that epochs are left to poison in"
            ]
        );
        let dense = ClassifierConfig::WideResnet(patchdoor_model::WideResNetConfig::default());
        let problems = PoisonedExpertConfig::default().refuse(&LabelRule::AllToOne, None, &dense);
        assert!(problems[0].to_string().starts_with("model is wide-resnet, whose experts choose no patches"));
    }
}
