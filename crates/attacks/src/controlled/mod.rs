//! Attacks whose attacker runs the victim's training: he rewrites its batches, and trains networks of his own beside it.

mod attack;
mod checks;
mod config;
mod generated_trigger;
mod generator;
mod input_aware;
mod registry;
mod ssdt;
#[cfg(test)]
pub(crate) mod testing;

pub use attack::{ControlledAttack, ControlledKind, HandInTraining, Scene};
pub use config::ControlledConfig;
pub use generator::GeneratorConfig;
pub use input_aware::InputAwareConfig;
pub use ssdt::SsdtConfig;
