use std::path::PathBuf;

/// What can go wrong when a classifier is trained.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A field of the training configuration is out of range.
    #[error("{field} is {found}, expected {allowed}")]
    InvalidField {
        /// Dotted path of the field in the `[training]` table.
        field: &'static str,
        /// The value found.
        found: String,
        /// What is allowed.
        allowed: String,
    },
    /// The loss is no longer a number.
    #[error("loss became {loss} in epoch {epoch}, step {step}; the learning rate may be too high")]
    Diverged {
        /// The loss, NaN or infinite.
        loss: f64,
        /// Epoch, counted from 0.
        epoch: usize,
        /// Step within the epoch, counted from 0.
        step: usize,
    },
    /// Trainings that are to go step by step together differ in something.
    #[error("trainings of a group must have {0}")]
    Group(&'static str),
    /// There are no images to train on.
    #[error("training set is empty")]
    Empty,
    /// Every part that was to learn is one that the classifier has not, or that its configuration freezes.
    #[error("none of the parts to train is one of the classifier's that learn")]
    NothingLearns,
    /// A checkpoint does not fit the training that wants to resume from it.
    #[error("checkpoint {path} {reason}")]
    Checkpoint {
        /// The checkpoint's folder.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// What is descended on cannot be written into a checkpoint, or taken from one.
    #[error("the objective's state {0}")]
    Objective(String),
    /// A classifier could not be saved or loaded.
    #[error(transparent)]
    Model(#[from] patchdoor_model::ModelError),
    /// A file could not be read or written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
