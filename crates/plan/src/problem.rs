/// A value that cannot be.
pub(crate) struct Problem {
    /// Its dotted path.
    pub(crate) field: String,
    /// The value.
    pub(crate) found: String,
    /// What it could be.
    pub(crate) allowed: String,
}
