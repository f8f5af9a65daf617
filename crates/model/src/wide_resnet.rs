use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};
use patchdoor_kernels::{Kernels, add, average_positions};
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::batch_norm::BatchNormRelu;
use crate::config::validate_trunk;
use crate::dense::Dense;
use crate::init::ParameterSource;
use crate::network::{FilterLayer, Network, NormInput, NormLayer};
use crate::routing::Routing;
use crate::taps::{Tapped, Taps};
use crate::trunk::{LayerOptions, ResidualBlock, Trunk, layers};
use crate::{
    BatchNormConfig, ClassifierConfig, Footprint, Initializer, InputShape, ModelError, NetworkConfig, Padding, Part,
    PatchMoeConfig,
};

/// The dense wide residual network (Zagoruyko and Komodakis 2016, arXiv:1605.07146), pre-activation,
/// one block a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct WideResNetConfig {
    /// Widths of the groups are 16, 32 and 64 times this factor.
    pub widen_factor: usize,
    /// Where a strided convolution puts its padding.
    pub padding: Padding,
    /// How convolutions and dense layers are drawn at the start.
    pub initializer: Initializer,
    /// Constants of every batch normalization.
    pub batch_norm: BatchNormConfig,
}

impl Default for WideResNetConfig {
    fn default() -> Self {
        Self {
            widen_factor: 10,
            padding: Padding::default(),
            initializer: Initializer::default(),
            batch_norm: BatchNormConfig::default(),
        }
    }
}

impl NetworkConfig for WideResNetConfig {
    fn name(&self) -> &'static str {
        "wide-resnet"
    }

    fn validate(&self, input: InputShape, classes: usize) -> Vec<ModelError> {
        validate_trunk(self.widen_factor, self.batch_norm, input, classes)
    }

    fn widen_factor(&self) -> usize {
        self.widen_factor
    }

    fn make_quick(&mut self) {
        self.widen_factor = 1;
    }

    fn footprint(&self, input: InputShape, classes: usize) -> Footprint {
        let mut footprint = Footprint::default();
        let map = footprint.trunk(input, self.widen_factor);
        let map = footprint.block(map, 64 * self.widen_factor, 2);
        footprint.head(map, classes);
        footprint
    }

    fn nearest_patch_moe(&self) -> PatchMoeConfig {
        PatchMoeConfig {
            widen_factor: self.widen_factor,
            padding: self.padding,
            initializer: self.initializer,
            batch_norm: self.batch_norm,
            ..PatchMoeConfig::default()
        }
    }

    fn structure(&self) -> ClassifierConfig {
        let defaults = Self::default();
        let momentum = defaults.batch_norm.momentum;
        let batch_norm = BatchNormConfig { momentum, ..self.batch_norm };
        ClassifierConfig::WideResnet(Self { initializer: defaults.initializer, batch_norm, ..self.clone() })
    }
}

/// The dense baseline: the network of [`crate::PatchMoe`] with an ordinary third group.
#[derive(Module, Debug)]
pub struct WideResNet<B: Backend> {
    pub(crate) trunk: Trunk<B>,
    pub(crate) group3: ResidualBlock<B>,
    pub(crate) norm: BatchNormRelu<B>,
    pub(crate) head: Dense<B>,
    #[module(skip)]
    config: WideResNetConfig,
}

impl<B: Backend> WideResNet<B> {
    pub(crate) fn new<R: Rng>(
        config: &WideResNetConfig,
        input: InputShape,
        classes: usize,
        rng: &mut R,
        device: &B::Device,
    ) -> Self {
        let options = LayerOptions { padding: config.padding, batch_norm: config.batch_norm };
        let widen = config.widen_factor;
        let source = &mut ParameterSource::new(rng, device, config.initializer);
        Self {
            trunk: Trunk::new(source, input.channels, widen, options),
            group3: ResidualBlock::new(source, [32 * widen, 64 * widen], 2, options),
            norm: BatchNormRelu::new(source, 64 * widen, config.batch_norm),
            head: Dense::new(source, 64 * widen, classes),
            config: config.clone(),
        }
    }
}

impl<B: Kernels> WideResNet<B> {
    /// Several networks of one shape side by side, each over its own channels.
    ///
    /// # Shapes
    /// - images: `[batch, height, width, member * channel]`
    /// - logits: `[batch, member * class]`
    pub(crate) fn forward_members(members: &[&Self], images: Tensor<B, 4>, taps: &mut Taps<B>) -> Tensor<B, 2> {
        let x = Trunk::forward_members(&layers(members, |network| &network.trunk), images, taps);
        let blocks = layers(members, |network| &network.group3);
        let x = if taps.wants("filters") {
            let [filters, shortcut] = ResidualBlock::branches(&blocks, x);
            taps.offer("filters", || Tapped::Map(filters.clone()));
            add(filters, shortcut)
        } else {
            ResidualBlock::forward_members(&blocks, x)
        };
        taps.offer("group3", || Tapped::Map(x.clone()));
        let x = BatchNormRelu::forward_groups(&layers(members, |network| &network.norm), x);
        let features = average_positions(x);
        taps.offer("features", || Tapped::Features(features.clone()));
        Dense::forward_groups(&layers(members, |network| &network.head), features)
    }
}

impl<B: Backend> Network<B> for WideResNet<B> {
    fn config(&self) -> ClassifierConfig {
        ClassifierConfig::WideResnet(self.config.clone())
    }

    fn classes(&self) -> usize {
        self.head.bias.dims()[0]
    }

    fn taps(&self) -> &'static [&'static str] {
        &["group1", "group2", "group3", "filters", "features"]
    }

    fn forward(&self, images: Tensor<B, 4>, taps: &mut Taps<B>) -> (Tensor<B, 2>, Vec<Routing<B>>)
    where
        B: Kernels,
    {
        (Self::forward_members(&[self], images, taps), Vec::new())
    }

    fn norms(&self) -> Vec<NormLayer<'_, B>> {
        let mut norms = self.trunk.norms();
        norms.extend(self.group3.norms("group3", NormInput::block("trunk.group2")));
        norms.push(NormLayer {
            path: "norm".into(),
            part: Part::Head,
            input: NormInput::block("group3"),
            norm: &self.norm,
        });
        norms
    }

    fn norms_mut(&mut self) -> Vec<&mut BatchNormRelu<B>> {
        let mut norms = self.trunk.norms_mut();
        norms.extend(self.group3.norms_mut());
        norms.push(&mut self.norm);
        norms
    }

    fn filters(&self) -> Vec<FilterLayer> {
        vec![self.group3.conv2.filters("group3.conv2")]
    }
}
