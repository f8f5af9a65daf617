/// What can go wrong when a trigger is configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TriggerError {
    /// A field of a configuration is out of range or does not fit the images.
    #[error("{field} is {found}, expected {allowed}")]
    InvalidField {
        /// Dotted path of the field in the trigger's table, as written in TOML.
        field: &'static str,
        /// The value found.
        found: String,
        /// What is allowed.
        allowed: String,
    },
}

pub(crate) fn invalid(field: &'static str, found: impl std::fmt::Display, allowed: impl Into<String>) -> TriggerError {
    TriggerError::InvalidField { field, found: format!("{found}"), allowed: allowed.into() }
}
