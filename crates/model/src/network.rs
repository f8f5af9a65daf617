use burn::tensor::{Tensor, backend::Backend};
use patchdoor_kernels::Kernels;

use crate::batch_norm::BatchNormRelu;
use crate::taps::Taps;
use crate::{ClassifierConfig, GivenRouting, ModelError, Part, Routing};

/// What every network is asked for; [`Classifier`](crate::Classifier) answers everything else from it.
///
/// Parameters are found by their paths, so names of fields carry meaning: `router` and `experts` anywhere in a path, `norm`
/// and `head` at its start ([`Part::of`]); `head` is the dense layer to the classes.
pub(crate) trait Network<B: Backend> {
    /// The configuration it was built from.
    fn config(&self) -> ClassifierConfig;

    /// Number of classes.
    fn classes(&self) -> usize;

    /// Names of the values that a pass can hand out on its way, in their order.
    fn taps(&self) -> &'static [&'static str];

    /// Returns logits, and one routing for each routed layer, from the images to the head.
    ///
    /// # Shapes
    /// - images: `[batch, height, width, channel]`, pixels in [0, 1]
    /// - logits: `[batch, class]`
    fn forward(&self, images: Tensor<B, 4>, taps: &mut Taps<B>) -> (Tensor<B, 2>, Vec<Routing<B>>)
    where
        B: Kernels;

    /// Returns logits for each routing given from outside, of one pass through what lies before the routers.
    ///
    /// # Errors
    /// If it has no routers, or a routing does not fit.
    fn forward_given(
        &self,
        _images: Tensor<B, 4>,
        _given: &[GivenRouting<'_, B>],
    ) -> Result<Vec<Tensor<B, 2>>, ModelError>
    where
        B: Kernels,
    {
        Err(ModelError::NoRouting { network: self.config().network().name() })
    }

    /// Returns logits of passes in which every expert passes over these patches, of one pass through what lies before the routers.
    ///
    /// # Errors
    /// If no experts choose patches.
    fn forward_blocked(&self, _images: Tensor<B, 4>, _blocked: &[Vec<u16>]) -> Result<Vec<Tensor<B, 2>>, ModelError>
    where
        B: Kernels,
    {
        Err(ModelError::NoRouting { network: self.config().network().name() })
    }

    /// How much each expert wants each patch of the map before the routers, `[batch, expert, patch]`; `None` if no experts
    /// score patches of one map.
    fn patch_scores(&self, _map: Tensor<B, 4>) -> Option<Tensor<B, 3>>
    where
        B: Kernels,
    {
        None
    }

    /// Lets each expert pass over these patches too, one list for each.
    ///
    /// # Errors
    /// If no experts choose patches.
    fn block_patches(&mut self, _blocked: &[Vec<u16>]) -> Result<(), ModelError> {
        Err(ModelError::NoRouting { network: self.config().network().name() })
    }

    /// Its batch normalizations, from the images to the head; none is fine.
    fn norms(&self) -> Vec<NormLayer<'_, B>>;

    /// The same in the same order, to change.
    fn norms_mut(&mut self) -> Vec<&mut BatchNormRelu<B>>;

    /// The filters before the head, layer by layer, in the order of the head's columns.
    fn filters(&self) -> Vec<FilterLayer>;
}

/// A batch normalization and its place in the network.
#[derive(Debug)]
pub struct NormLayer<'a, B: Backend> {
    /// Its path, such as `experts.0.norm`; `gamma`, `beta`, `running_mean` and `running_variance` are below it.
    pub path: String,
    /// The part it belongs to.
    pub part: Part,
    /// What it normalizes.
    pub input: NormInput,
    pub(crate) norm: &'a BatchNormRelu<B>,
}

impl<B: Backend> NormLayer<'_, B> {
    /// What it multiplies each channel by in inference: gamma / sqrt(running variance + epsilon), `[channel]`.
    pub fn scales(&self) -> Vec<f64> {
        let values = |tensor: Tensor<B, 1>| tensor.into_data().iter::<f64>().collect::<Vec<_>>();
        let (gammas, variances) = (values(self.norm.gamma.val()), values(self.norm.running_variance.value()));
        let scale = |(gamma, variance): (f64, f64)| gamma / (variance + self.norm.epsilon).sqrt();
        gammas.into_iter().zip(variances).map(scale).collect()
    }
}

/// Which convolutions, by their paths, a batch normalization follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NormInput {
    /// It sees their outputs side by side, channels in this order; often a single one's.
    SideBySide(Vec<String>),
    /// It sees the sum of their outputs.
    Sum(Vec<String>),
}

impl NormInput {
    /// The output of a residual block.
    pub(crate) fn block(path: &str) -> Self {
        Self::Sum(vec![format!("{path}.conv2"), format!("{path}.shortcut")])
    }
}

/// The filters of one layer before the head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FilterLayer {
    /// Path of the layer, such as `experts.0.conv`.
    pub(crate) path: String,
    pub(crate) count: usize,
}
