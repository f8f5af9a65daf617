//! Patch-level mixture-of-experts classifiers and their dense baselines.
//!
//! The pMoE wide residual network of Chowdhury et al. (2023, arXiv:2306.04073), every choice of the
//! published code a field of [`PatchMoeConfig`], and [`WideResNet`], the same network without
//! experts. A forward pass can return its [`Routing`]: which patches each expert took, and how
//! strongly. A pass can also be given the routing of another pass, so that one sees what routing alone
//! does ([`Classifier::forward_given_routing`]).
//!
//! This crate knows nothing of poisoning, triggers or training. Maps are channels last,
//! `[batch, row, column, channel]`, so that a patch is a row of numbers.
//!
//! ```
//! use burn::tensor::Tensor;
//! use burn_flex::{Flex, FlexDevice};
//! use patchdoor_model::{ClassifierConfig, InputShape, PatchMoeConfig};
//! use rand::{SeedableRng, rngs::ChaCha8Rng};
//!
//! let config = ClassifierConfig::PatchMoe(PatchMoeConfig { widen_factor: 1, ..Default::default() });
//! let input = InputShape { height: 32, width: 32, channels: 3 };
//! let classifier = config.init::<Flex>(input, 10, &mut ChaCha8Rng::seed_from_u64(0), &FlexDevice)?;
//!
//! let images = Tensor::<Flex, 4>::full([2, 32, 32, 3], 0.5, &FlexDevice);
//! let (logits, routing) = classifier.forward_with_routing(images);
//! assert_eq!(logits.dims(), [2, 10]);
//!
//! // Two images, four experts, sixteen of sixty-four patches each, in its one routed layer.
//! let routing = routing[0].expert_choice().expect("experts choose patches");
//! assert_eq!(routing.indices.dims(), [2, 4, 16]);
//! assert_eq!(routing.weights.dims(), [2, 4, 64]);
//! # Ok::<(), patchdoor_model::ModelError>(())
//! ```

mod batch_norm;
mod classifier;
mod config;
mod convolution;
mod dense;
mod description;
mod error;
mod filters;
mod footprint;
mod generator;
mod given_routing;
mod init;
mod network;
mod parts;
mod patch_moe;
mod receptive_field;
mod router;
mod routing;
mod statistic;
mod taps;
mod trunk;
mod weights;
mod wide_resnet;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod drift;
#[cfg(test)]
mod tests;

pub use classifier::Classifier;
pub use config::{
    BatchNormConfig, ClassifierConfig, ExpertChoiceConfig, Initializer, InputShape, NetworkConfig, Padding,
};
pub use description::WeightsDescription;
pub use error::ModelError;
pub use filters::{FilterActivity, FilterGroup, Pruning, Removal};
pub use footprint::Footprint;
pub use generator::{Generator, GeneratorConfig, GeneratorStatistics, as_shares};
pub use given_routing::{GivenRouting, TakenRouting};
pub use network::{NormInput, NormLayer};
pub use parts::Part;
pub use patch_moe::{ExpertForm, GateOrder, PatchMoe, PatchMoeConfig, Routers};
pub use receptive_field::patches_that_see;
pub use router::PatchRouter;
pub use routing::{ExpertChoice, Routing, SoftDispatch, TokenChoice};
pub use taps::Tapped;
pub use weights::{load_classifier, load_weights, read_description, save_weights};
pub use wide_resnet::{WideResNet, WideResNetConfig};
