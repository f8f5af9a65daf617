//! Attacks whose attacker runs the victim's training: he rewrites its batches, and trains networks of his own beside it.

mod attack;
mod checks;
mod config;
mod dose;
mod expert_path;
mod forced_routing;
mod generated_trigger;
mod input_aware;
mod lira;
mod poisoned_expert;
mod ssdt;
mod state;
mod tensors;
mod watched_success;

pub use attack::{ControlledAttack, ControlledKind, HandInTraining, Scene};
pub use config::ControlledConfig;
pub use dose::DoseConfig;
pub use forced_routing::{ForcedExperts, ForcedRoutingConfig};
pub use input_aware::InputAwareConfig;
pub use lira::LiraConfig;
pub use poisoned_expert::PoisonedExpertConfig;
pub use ssdt::SsdtConfig;

#[cfg(test)]
pub(crate) mod testing;
