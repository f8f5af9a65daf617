/// Why an attack cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttackError {
    /// A field of a configuration is out of range.
    #[error("{field} is {found}, expected {allowed}")]
    InvalidField {
        /// Dotted path below the attack's table.
        field: String,
        /// The value.
        found: String,
        /// What it could be.
        allowed: String,
    },
    /// Weights of an attacker's networks cannot be written or read.
    #[error("weights of the attacker's networks: {0}")]
    Weights(String),
}
