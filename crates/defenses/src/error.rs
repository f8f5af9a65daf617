/// What can go wrong in a defense.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DefenseError {
    /// A field of a defense's configuration is out of range.
    #[error("{field} is {found}, expected {allowed}")]
    InvalidField {
        /// Dotted path of the field below the defense's table.
        field: String,
        /// The value found.
        found: String,
        /// What is allowed.
        allowed: String,
    },
    /// The defense chooses on a validation split, and there is none.
    #[error("{defense} chooses on validation images, and there are none")]
    NoValidation {
        /// Name of the defense.
        defense: &'static str,
    },
    /// The defense works on experts, and the classifier has none.
    #[error("{defense} works on experts, and this classifier has none")]
    NoExperts {
        /// Name of the defense.
        defense: &'static str,
    },
    /// There are no images to measure filters or routers on.
    #[error("{defense} measures on clean images, and there are none")]
    NoImages {
        /// Name of the defense.
        defense: &'static str,
    },
    /// The loss of a defense that trains something of its own is no longer a number.
    #[error("loss is not finite in step {step}; the learning rate may be too high")]
    NoLoss {
        /// The step, counted from 0.
        step: usize,
    },
    /// The training inside a defense failed.
    #[error("fine-tuning failed")]
    Training(#[from] patchdoor_train::TrainError),
    /// The classifier to train cannot be made.
    #[error("the classifier cannot be made")]
    Model(#[from] patchdoor_model::ModelError),
    /// The observer stopped the defense.
    #[error("defense was interrupted after {epochs} epochs")]
    Interrupted {
        /// Epochs that were done.
        epochs: usize,
    },
}

#[allow(clippy::needless_pass_by_value, reason = "callers pass plain numbers")]
pub(crate) fn invalid(field: &str, found: impl ToString, allowed: &str) -> DefenseError {
    DefenseError::InvalidField { field: field.into(), found: found.to_string(), allowed: allowed.into() }
}

/// The problem of a share of validation images that may be flagged, if it is one.
pub(crate) fn check_rate(field: &str, rate: f64) -> Option<DefenseError> {
    (!(rate > 0.0 && rate < 1.0)).then(|| invalid(field, rate, "a fraction in (0, 1)"))
}

/// The problem of what something counts, if it is one.
pub(crate) fn check_weight(field: &str, weight: f64) -> Option<DefenseError> {
    (!(weight >= 0.0 && weight.is_finite())).then(|| invalid(field, weight, "a finite number of 0 or more"))
}

/// The problem of a rate, size or cost that has to be there, if it is one.
pub(crate) fn check_positive(field: &str, value: f64) -> Option<DefenseError> {
    (!(value > 0.0 && value.is_finite())).then(|| invalid(field, value, "a finite number above 0"))
}

/// The problem of a number of things of which one at least is needed, if it is one.
pub(crate) fn check_count(field: &str, count: usize) -> Option<DefenseError> {
    (count == 0).then(|| invalid(field, count, "1 or more"))
}

/// The problem of a share that may be none or all, if it is one.
pub(crate) fn check_fraction(field: &str, fraction: f64) -> Option<DefenseError> {
    (!(0.0..=1.0).contains(&fraction)).then(|| invalid(field, fraction, "a fraction in [0, 1]"))
}

/// The problem of a share that may be all but not none, if it is one.
pub(crate) fn check_share(field: &str, share: f64) -> Option<DefenseError> {
    (!(share > 0.0 && share <= 1.0)).then(|| invalid(field, share, "a fraction in (0, 1]"))
}
