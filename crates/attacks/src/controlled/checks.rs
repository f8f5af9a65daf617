use std::fmt::Display;

use patchdoor_data::ImageShape;
use patchdoor_model::GeneratorConfig;
use patchdoor_train::input_shape;

use crate::AttackError;

pub(super) fn invalid(field: &str, found: impl Display, allowed: impl Into<String>) -> AttackError {
    AttackError::InvalidField { field: field.into(), found: found.to_string(), allowed: allowed.into() }
}

/// What is wrong with a generator for images of a shape.
pub(super) fn generator(config: GeneratorConfig, shape: ImageShape) -> Vec<AttackError> {
    let mut problems = Vec::new();
    if config.channels == 0 {
        problems.push(invalid("generator.channels", 0, "1 or more"));
    }
    if GeneratorConfig::halvings(input_shape(shape)).is_none() {
        let found = format!("a network that halves images of {shape}");
        problems.push(invalid("generator", found, "images whose sides can be divided by 4"));
    }
    problems
}
