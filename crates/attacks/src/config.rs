use patchdoor_kernels::TrainingBackend;
use serde::{Deserialize, Serialize};

use crate::registry::attacks;
use crate::{
    Craft, Crafting, LabelConsistentConfig, LowFrequencyConfig, NarcissusConfig, RoutingPatternConfig, TrojanNnConfig,
};

attacks! {
    /// Which trigger an attacker makes with a trained model; in TOML the table `[crafted.label-consistent]`, and so on, in the
    /// place of `[trigger.NAME]`.
    ///
    /// This list is all there is to registering one: its names, defaults and tests follow from it.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[non_exhaustive]
    pub enum CraftedConfig: Crafting + Craft {
        /// Images of the target class made hard to recognise, and checkers in the corners.
        LabelConsistent(LabelConsistentConfig) = "label-consistent",
        /// A smooth pattern that moves images towards the target class.
        LowFrequency(LowFrequencyConfig) = "low-frequency",
        /// A patch that drives a few neurons.
        TrojanNn(TrojanNnConfig) = "trojan-nn",
        /// Noise that points inwards to the target class, in test images more.
        Narcissus(NarcissusConfig) = "narcissus",
        /// A pattern that routers select or avoid.
        RoutingPattern(RoutingPatternConfig) = "routing-pattern",
    }
}

#[cfg(test)]
mod tests {
    use patchdoor_data::ImageShape;

    use super::*;

    #[test]
    fn every_crafted_trigger_is_known_by_the_name_that_serde_reads_and_an_empty_table_is_its_default() {
        for (config, &name) in CraftedConfig::defaults().iter().zip(CraftedConfig::NAMES) {
            assert_eq!(config.name(), name);
            assert_eq!(&toml::from_str::<CraftedConfig>(&format!("[{name}]")).unwrap(), config);
            assert_eq!(&toml::from_str::<CraftedConfig>(&toml::to_string(config).unwrap()).unwrap(), config);
            assert!(config.kind().validate(ImageShape::RGB_32).is_empty(), "{name}");
        }
        let error = toml::from_str::<CraftedConfig>("[none]").unwrap_err().to_string();
        assert!(error.contains(&format!("`{}`", CraftedConfig::NAMES[0])), "{error}");
    }

    #[test]
    fn every_crafted_trigger_has_a_section_in_the_documents() {
        let documents = include_str!("../../../docs/attacks.md");
        for name in CraftedConfig::NAMES {
            let quoted = format!("`{name}`");
            let is_there = documents.lines().any(|line| line.starts_with("### ") && line.contains(&quoted));
            assert!(is_there, "docs/attacks.md has no section {quoted}");
        }
    }
}
