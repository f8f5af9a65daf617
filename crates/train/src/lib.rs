//! The training loop, schedules, optimisers, checkpoints and prediction.

mod config;
mod error;

pub use config::{
    AdamConfig, BatchNormStatistics, CosineConfig, OneCycleConfig, OptimizerConfig, ScheduleConfig, SgdConfig, StepConfig,
    TrainingConfig,
};
pub use error::TrainError;
