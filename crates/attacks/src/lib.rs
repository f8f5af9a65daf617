//! Attacks that need a trained model or a hand in the training loop.
//!
//! What an attacker merely adds to an image lives in `patchdoor-triggers`, which knows no models. What he makes with the
//! help of one lives here, above `patchdoor-train`: the caller trains the model, the *surrogate*, and an attack looks at it.
//! Its routers say in which cells of the image a trigger is seen most ([`SurrogateConfig`]); its gradients make triggers
//! ([`CraftedConfig`]), each a new file, whose configuration implements [`Craft`], and a new line in that list. Attacks of an
//! attacker who *controls* the victim's training are a [`ControlledConfig`].
//!
//! ```
//! use patchdoor_attacks::SurrogateConfig;
//! use patchdoor_model::{ClassifierConfig, PatchMoeConfig};
//!
//! // An attacker who takes the victim for a network of eight experts.
//! let victim = ClassifierConfig::PatchMoe(PatchMoeConfig { widen_factor: 1, ..PatchMoeConfig::default() });
//! let surrogate = SurrogateConfig { experts: Some(8), ..SurrogateConfig::default() };
//! assert_eq!((surrogate.model(&victim).experts, surrogate.model(&victim).widen_factor), (8, 1));
//! ```

mod config;
mod controlled;
mod crafted_trigger;
mod crafting;
mod error;
mod expert_contribution;
mod label_consistent;
mod low_frequency;
mod margin;
mod narcissus;
mod patch_cells;
mod pattern;
mod registry;
mod routing_loss;
mod routing_pattern;
mod surrogate;
mod target_share;
#[cfg(test)]
mod testing;
mod trojan_nn;

pub use config::CraftedConfig;
pub use controlled::{
    ControlledAttack, ControlledConfig, ControlledKind, DoseConfig, ForcedExperts, ForcedRoutingConfig, HandInTraining,
    InputAwareConfig, LiraConfig, PoisonedExpertConfig, Scene, SsdtConfig,
};
pub use crafted_trigger::{Change, CraftedTrigger};
pub use crafting::{Craft, Crafted, Crafting, Workshop};
pub use error::AttackError;
pub use label_consistent::LabelConsistentConfig;
pub use low_frequency::LowFrequencyConfig;
pub use margin::margins;
pub use narcissus::NarcissusConfig;
pub use patchdoor_model::GeneratorConfig;
pub use routing_pattern::{Aim, RoutingPatternConfig};
pub use surrogate::{CellChoice, SurrogateConfig, SurrogateImages};
pub use trojan_nn::TrojanNnConfig;
