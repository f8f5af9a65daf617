use patchdoor_data::{ImageShape, Trigger};
use serde::{Deserialize, Serialize};

use crate::{SquareConfig, TriggerError};

/// Which trigger an attacker uses; in TOML the table `[trigger.square]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum TriggerConfig {
    /// A square that overwrites what it covers.
    Square(SquareConfig),
}

impl Default for TriggerConfig {
    fn default() -> Self {
        Self::Square(SquareConfig::default())
    }
}

impl TriggerConfig {
    /// The trigger's name, as in a configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Square(_) => "square",
        }
    }

    /// Checks every field against the images and returns all problems at once; fields are those of the trigger's own
    /// table.
    pub fn validate(&self, shape: ImageShape) -> Vec<TriggerError> {
        match self {
            Self::Square(config) => config.validate(shape),
        }
    }

    /// Builds the trigger for images of `shape`.
    ///
    /// # Errors
    ///
    /// The first of the problems that [`validate`](Self::validate) finds.
    pub fn build(&self, shape: ImageShape) -> Result<Box<dyn Trigger>, TriggerError> {
        match self {
            Self::Square(config) => Ok(Box::new(config.build(shape)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_survives_toml() {
        let text = toml::to_string(&TriggerConfig::default()).unwrap();
        assert_eq!(text, "[square]\nsize = 4\nanchor = \"upper-left\"\nvalue = 255\n");
        assert_eq!(toml::from_str::<TriggerConfig>(&text).unwrap(), TriggerConfig::default());
        assert_eq!(toml::from_str::<TriggerConfig>("[square]").unwrap(), TriggerConfig::default());
    }

    #[test]
    fn unknown_triggers_and_keys_are_refused_with_what_is_allowed() {
        let error = toml::from_str::<TriggerConfig>("[sqare]").unwrap_err().to_string();
        assert!(error.contains("unknown variant `sqare`, expected `square`"), "{error}");
        let error = toml::from_str::<TriggerConfig>("[square]\nsise = 3").unwrap_err().to_string();
        assert!(error.contains("unknown field `sise`") && error.contains("`size`"), "{error}");
        let error = toml::from_str::<TriggerConfig>("[square]\nvalue = 256").unwrap_err().to_string();
        assert!(error.contains("256"), "{error}");
    }
}
