//! Patch-level mixture-of-experts classifiers and their dense baselines.

mod config;
mod error;

pub use config::{
    BatchNormConfig, ClassifierConfig, ExpertForm, GateOrder, Initializer, InputShape, Padding, PatchMoeConfig, WideResNetConfig,
};
pub use error::ModelError;
