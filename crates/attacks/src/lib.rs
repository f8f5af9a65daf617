//! Attacks that need a trained model or a hand in the training loop.
//!
//! What an attacker merely adds to an image lives in `patchdoor-triggers`, which knows no models. What he makes with the
//! help of one lives here, above `patchdoor-train`: the caller trains the model, an attack looks at it. The *surrogate* is
//! a clean model whose routers say in which cells of the image a trigger is seen most. Attacks of an attacker who *controls*
//! the victim's training are a [`ControlledConfig`].
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

mod controlled;
mod error;
mod margin;
mod surrogate;

pub use controlled::{
    ControlledAttack, ControlledConfig, ControlledKind, GeneratorConfig, HandInTraining, InputAwareConfig, Scene,
    SsdtConfig,
};
pub use error::AttackError;
pub use margin::margins;
pub use surrogate::{CellChoice, SurrogateConfig, SurrogateImages};
