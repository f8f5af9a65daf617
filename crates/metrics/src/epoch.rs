use serde::{Deserialize, Serialize};

/// What an epoch of training came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct EpochRecord {
    /// Epoch, counted from 0.
    pub epoch: usize,
    /// Learning rate of its last step.
    pub learning_rate: f64,
    /// Mean cross-entropy over its images, in nats, each taken in training mode just before its step.
    pub loss: f64,
    /// Share of its images predicted right in those passes.
    pub training_accuracy: f64,
    /// Share of validation images predicted right in inference mode after it.
    pub validation_accuracy: Option<f64>,
    /// Wall-clock time of its steps.
    pub seconds: f64,
    /// Training images per second of that time.
    pub images_per_second: f64,
}
