/// What can go wrong in a defense.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DefenseError {
    /// The training inside a defense failed.
    #[error("fine-tuning failed")]
    Training(#[from] patchdoor_train::TrainError),
    /// The observer stopped the defense.
    #[error("defense was interrupted after {epochs} epochs")]
    Interrupted {
        /// Epochs that were done.
        epochs: usize,
    },
}
