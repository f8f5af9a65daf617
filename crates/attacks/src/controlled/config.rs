use patchdoor_kernels::TrainingBackend;
use serde::{Deserialize, Serialize};

use crate::registry::attacks;
use crate::{
    ControlledAttack, ControlledKind, DoseConfig, ForcedRoutingConfig, InputAwareConfig, LiraConfig,
    PoisonedExpertConfig, SsdtConfig,
};

attacks! {
    /// Which attack an attacker makes who controls the training; in TOML the table `[controlled.input-aware]`, and so on,
    /// which stands in the place of `[trigger]`.
    ///
    /// This list is all there is to registering such an attack.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[non_exhaustive]
    pub enum ControlledConfig: ControlledKind + ControlledAttack {
        /// A pattern for each image, which works on no other.
        InputAware(InputAwareConfig) = "input-aware",
        /// Bounded noise for each image.
        Lira(LiraConfig) = "lira",
        /// The input-aware attack for images of one class alone.
        Ssdt(SsdtConfig) = "ssdt",
        /// Experts that are forced to select the trigger's patches.
        ForcedRouting(ForcedRoutingConfig) = "forced-routing",
        /// A backdoor whose success is held down.
        Dose(DoseConfig) = "dose",
        /// A clean mixture in which some experts alone learn the backdoor.
        PoisonedExpert(PoisonedExpertConfig) = "poisoned-expert",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attack_is_known_by_its_name_has_a_section_and_an_empty_table_is_its_default() {
        let documents = include_str!("../../../../docs/attacks.md");
        let headings: Vec<&str> = documents.lines().filter(|line| line.starts_with("### ")).collect();
        for (config, &name) in ControlledConfig::defaults().iter().zip(ControlledConfig::NAMES) {
            assert_eq!(config.name(), name);
            assert_eq!(&toml::from_str::<ControlledConfig>(&format!("[{name}]")).unwrap(), config);
            assert_eq!(&toml::from_str::<ControlledConfig>(&toml::to_string(config).unwrap()).unwrap(), config);
            assert!(headings.iter().any(|line| line.contains(&format!("`{name}`"))), "no section `{name}`");
        }
    }
}
