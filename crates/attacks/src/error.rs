/// Why an attack cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttackError {
    /// A field of a configuration is out of range.
    #[error("{field} is {found}, expected {allowed}")]
    InvalidField {
        /// Dotted path below the attack's table, or from the root of the experiment where it is of another table.
        field: String,
        /// The value.
        found: String,
        /// What it could be.
        allowed: String,
    },
    /// Weights of an attacker's networks cannot be written or read.
    #[error("weights of the attacker's networks: {0}")]
    Weights(String),
    /// The crafting was asked to stop; it begins anew the next time.
    #[error("interrupted while the trigger was made")]
    Interrupted,
    /// What was crafted before cannot be what the experiment stamps.
    #[error("the crafted trigger on record is for {found} images, expected {expected}")]
    OtherImages {
        /// The shape on record.
        found: String,
        /// The shape of the images.
        expected: String,
    },
}

pub(crate) fn invalid(
    field: impl Into<String>,
    found: impl std::fmt::Display,
    allowed: impl Into<String>,
) -> AttackError {
    AttackError::InvalidField { field: field.into(), found: found.to_string(), allowed: allowed.into() }
}

/// Refuses a number that is not above 0.
pub(crate) fn above_zero(field: &'static str, value: f64) -> Option<AttackError> {
    (!(value > 0.0 && value.is_finite())).then(|| invalid(field, value, "a number above 0"))
}

/// Refuses a count of none.
pub(crate) fn one_or_more(field: &'static str, count: usize) -> Option<AttackError> {
    (count == 0).then(|| invalid(field, 0, "1 or more"))
}
