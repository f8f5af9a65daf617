use patchdoor_data::{ImageSet, ImageShape, LabelRule, PoisoningConfig, PoisoningPlan, Trigger};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::ClassifierConfig;
use patchdoor_train::Objective;
use patchdoor_triggers::{PlacementConfig, TriggerConfig};

use crate::AttackError;

/// What the configuration of an attack answers that controls the training, without any training.
pub trait ControlledKind {
    /// The ordinary trigger that it works with; `None` if it makes its own while it trains, which is then known only after
    /// the training.
    fn trigger(&self) -> Option<&TriggerConfig> {
        None
    }

    /// Checks every field against images of `shape` and returns all problems at once; fields are those of its own table.
    fn validate(&self, shape: ImageShape) -> Vec<AttackError>;

    /// What it makes no sense with, each with its reason; fields are paths from the root of the experiment.
    fn refuse(
        &self,
        _rule: &LabelRule,
        placement: Option<&PlacementConfig>,
        _model: &ClassifierConfig,
    ) -> Vec<AttackError> {
        let no_cells = placement.filter(|_| self.trigger().is_none()).map(|_| AttackError::InvalidField {
            field: "placement".into(),
            found: "given".into(),
            allowed: "no placement, because a generator chooses where an image is changed".into(),
        });
        no_cells.into_iter().collect()
    }

    /// Whether it looks at images that are held out of the training data.
    fn needs_validation(&self) -> bool {
        false
    }

    /// Whether training images must stay where they are, so that it knows which patches a trigger touches.
    fn needs_still_images(&self) -> bool {
        false
    }

    /// Shortens what it trains for a run of seconds that keeps all paths.
    fn make_quick(&mut self) {}
}

/// An attack that controls the training, on every backend that trains.
pub trait ControlledAttack<B: TrainingBackend>: ControlledKind {
    /// Prepares its hand in the training that `scene` describes.
    ///
    /// # Errors
    /// If a field of its configuration is out of range.
    fn enter<'a>(
        &'a self,
        scene: Scene<'a>,
        device: &B::Device,
    ) -> Result<Box<dyn HandInTraining<B> + 'a>, AttackError>;
}

/// The training that an attacker controls.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    /// The images that the classifier is trained on, under the labels that the attacker gives them. Where the trigger is
    /// known beforehand, the poisoned ones carry it; where a generator is yet to make it, they are untouched.
    pub training: &'a ImageSet,
    /// The same images untouched, under their true labels.
    pub untouched: &'a ImageSet,
    /// Which of them are poisoned, and which are covers.
    pub plan: &'a PoisoningPlan,
    /// By what label rule.
    pub poisoning: &'a PoisoningConfig,
    /// The trigger, where it is known beforehand.
    pub trigger: &'a dyn Trigger,
    /// Images held out of the training data, untouched.
    pub validation: Option<&'a ImageSet>,
    /// The run's seed.
    pub seed: u64,
    /// Images in a batch.
    pub batch_size: usize,
    /// Whether to stop, asked in long steps of the attacker's own.
    pub is_stopped: &'a dyn Fn() -> bool,
    /// Hears of long steps of the attacker's own.
    pub say: &'a dyn Fn(String),
}

/// An attacker's hand in one training: what the training descends on, and what it leaves.
pub trait HandInTraining<B: TrainingBackend>: Objective<B> {
    /// The trigger that its generator has become; `None` if the trigger was there before.
    fn trigger(&self) -> Option<Box<dyn Trigger>> {
        None
    }

    /// What the trigger is made of, as the bytes of a safetensors file; `None` if the trigger was there before.
    ///
    /// # Errors
    /// If they cannot be written so.
    fn to_safetensors(&self) -> Result<Option<Vec<u8>>, AttackError> {
        Ok(None)
    }

    /// What is to be known of how it went, for the record; `None` if that is nothing.
    fn record(&self) -> Option<serde_json::Value> {
        None
    }

    /// Takes back what [`to_safetensors`](Self::to_safetensors) gave.
    ///
    /// # Errors
    /// If the bytes are not of such networks.
    fn take_safetensors(&mut self, _bytes: &[u8]) -> Result<(), AttackError> {
        Ok(())
    }
}
