use std::collections::BTreeMap;
use std::fmt::Debug;

use patchdoor_data::{ImageSet, ImageShape, LabelRule, PoisoningConfig};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::{Classifier, PatchMoeConfig};
use patchdoor_triggers::PlacementConfig;

use crate::error::invalid;
use crate::{AttackError, CraftedTrigger};

/// What the configuration of a trigger that is made with a trained model answers; each kind implements it in its own file.
///
/// [`CraftedConfig`](crate::CraftedConfig) lists the kinds.
pub trait Crafting: Debug {
    /// Checks every field against the images and returns all problems at once; fields are those of the trigger's own table.
    fn validate(&self, shape: ImageShape) -> Vec<AttackError>;

    /// Says which label rules and placements make no sense with it, and why. Fields are paths from the root of the
    /// experiment; what is allowed ends with the reason.
    fn refuse(&self, rule: &LabelRule, placement: Option<&PlacementConfig>) -> Vec<AttackError>;

    /// Whether the surrogate must have routers that choose patches.
    fn needs_routers(&self) -> bool {
        false
    }

    /// What it asks of a mixture that another one has not; only where it [needs routers](Self::needs_routers).
    fn refuse_mixture(&self, _surrogate: &PatchMoeConfig) -> Vec<AttackError> {
        Vec::new()
    }

    /// The cells that the trigger lies in where the experiment has no placement; `None` if it lies where it says itself.
    fn default_placement(&self) -> Option<PlacementConfig> {
        None
    }

    /// How many of the placement's cells it chooses for itself; `None` if it lies in all of them.
    fn chosen_cells(&self) -> Option<usize> {
        None
    }

    /// How many pixels of one image it may change, in cells of `placed` pixels together if it lies in cells.
    fn pixel_budget(&self, shape: ImageShape, placed: Option<usize>) -> usize;

    /// Keeps every code path and takes seconds.
    fn make_quick(&mut self);
}

/// How a trigger is made, on every backend that trains.
pub trait Craft<B: TrainingBackend>: Crafting {
    /// Makes the trigger, the same for the same surrogate, images and seed on any number of threads of a CPU.
    ///
    /// # Errors
    /// [`AttackError::Interrupted`] if it was asked to stop.
    fn craft(&self, workshop: &Workshop<'_, B>) -> Result<Crafted, AttackError>;
}

/// What an attacker has when he makes a trigger.
#[derive(Clone, Copy)]
#[allow(missing_debug_implementations, reason = "it holds closures")]
pub struct Workshop<'a, B: TrainingBackend> {
    /// His clean classifier, frozen: it normalizes as in inference, and no weight takes a gradient.
    pub surrogate: &'a Classifier<B>,
    /// The images that it was trained on.
    pub images: &'a ImageSet,
    /// The untouched images that he will poison.
    pub poisoned: &'a ImageSet,
    /// Which class he wants, and under which label rule.
    pub poisoning: &'a PoisoningConfig,
    /// The pixels of each cell that the trigger may lie in, row by row; `None` if it lies where it says itself.
    pub cells: Option<&'a [Vec<usize>]>,
    /// The run's seed.
    pub seed: u64,
    /// Where the surrogate is.
    pub device: &'a B::Device,
    /// Whether to end early.
    pub is_stopped: &'a dyn Fn() -> bool,
    /// Told after each step how many of how many are done.
    pub progress: &'a dyn Fn(usize, usize),
}

impl<B: TrainingBackend> Workshop<'_, B> {
    /// Says how far it is.
    ///
    /// # Errors
    /// If it shall stop.
    pub(crate) fn step(&self, done: usize, total: usize) -> Result<(), AttackError> {
        if (self.is_stopped)() {
            return Err(AttackError::Interrupted);
        }
        (self.progress)(done, total);
        Ok(())
    }
}

/// A trigger, and what its making came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Crafted {
    /// What images get.
    pub trigger: CraftedTrigger,
    /// Numbers by their names, on the attacker's images and the surrogate.
    pub reached: BTreeMap<String, f64>,
}

/// Refuses every rule but clean-label.
pub(crate) fn only_clean_label(rule: &LabelRule) -> Option<AttackError> {
    let allowed = "clean-label: it is made for images of the target class that keep their label";
    (!matches!(rule, LabelRule::CleanLabel(_))).then(|| invalid("poisoning.label-rule", rule_name(rule), allowed))
}

/// Refuses a rule without one target class.
pub(crate) fn only_one_target(rule: &LabelRule) -> Option<AttackError> {
    let allowed = "a rule with one target class, which the pattern is made for";
    matches!(rule, LabelRule::AllToAll).then(|| invalid("poisoning.label-rule", rule_name(rule), allowed))
}

/// Refuses any placement.
pub(crate) fn no_placement(placement: Option<&PlacementConfig>, reason: &str) -> Option<AttackError> {
    placement.map(|_| invalid("placement", "given", format!("no placement: {reason}")))
}

/// Refuses cells that differ from image to image.
pub(crate) fn only_fixed_cells(placement: Option<&PlacementConfig>) -> Option<AttackError> {
    let moves = placement.is_some_and(|placement| !placement.is_fixed());
    let allowed = "the same cells in all images: one pattern is made for them";
    moves.then(|| invalid("placement.cells", "other cells in other images", allowed))
}

fn rule_name(rule: &LabelRule) -> &'static str {
    match rule {
        LabelRule::AllToOne => "all-to-one",
        LabelRule::AllToAll => "all-to-all",
        LabelRule::SourceSpecific(_) => "source-specific",
        LabelRule::CleanLabel(_) => "clean-label",
        _ => "another rule",
    }
}
