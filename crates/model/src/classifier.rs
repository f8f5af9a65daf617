use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use patchdoor_kernels::Kernels;
use rand::Rng;
use rayon::prelude::*;

use crate::network::{Network, NormLayer};
use crate::taps::{Tapped, Taps};
use crate::{ClassifierConfig, FilterGroup, InputShape, ModelError, Part, PatchMoe, Routing, WideResNet};

/// Images of a part of a batch, of which the CPU works on several at a time in inference.
const PART: usize = 32;

/// Any of the networks, chosen by a [`ClassifierConfig`].
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "a process holds a handful of classifiers")]
pub enum Classifier<B: Backend> {
    /// The patch-level mixture of experts.
    PatchMoe(PatchMoe<B>),
    /// The dense baseline.
    WideResnet(WideResNet<B>),
}

/// Runs an expression on the network of a classifier; `$variant` makes a classifier of such a network again.
///
/// Visitors of burn's modules are generic, so that [`Network`] cannot hand them on; all else goes through
/// [`Classifier::network`].
macro_rules! on_network {
    ($classifier:expr, |$network:ident, $variant:pat_param| $body:expr) => {
        match $classifier {
            Classifier::PatchMoe($network) => {
                let $variant = Classifier::<B>::PatchMoe;
                $body
            }
            Classifier::WideResnet($network) => {
                let $variant = Classifier::<B>::WideResnet;
                $body
            }
        }
    };
}

impl ClassifierConfig {
    /// Builds the classifier with weights drawn from `rng`, the same on every backend.
    ///
    /// # Errors
    /// The first problem that [`Self::validate`] reports.
    pub fn init<B: Backend>(
        &self,
        input: InputShape,
        classes: usize,
        rng: &mut impl Rng,
        device: &B::Device,
    ) -> Result<Classifier<B>, ModelError> {
        if let Some(problem) = self.validate(input, classes).into_iter().next() {
            return Err(problem);
        }
        Ok(match self {
            Self::PatchMoe(config) => Classifier::PatchMoe(PatchMoe::new(config, input, classes, rng, device)),
            Self::WideResnet(config) => Classifier::WideResnet(WideResNet::new(config, input, classes, rng, device)),
        })
    }
}

impl<B: Kernels> Classifier<B> {
    /// Returns logits.
    ///
    /// # Shapes
    /// - images: `[batch, height, width, channel]`, pixels in [0, 1]
    /// - output: `[batch, class]`
    pub fn forward(&self, images: Tensor<B, 4>) -> Tensor<B, 2> {
        self.forward_with_routing(images).0
    }

    /// Logits of several classifiers of one structure in one pass, each of its own images: an operation works on all
    /// of them side by side, so that small networks keep a device busy.
    ///
    /// Every classifier's logits and gradients are those of a pass of its own, but for the order of sums.
    ///
    /// # Shapes
    /// - images: `[batch, height, width, member * channel]`, pixels in [0, 1]
    /// - logits: `[batch, member, class]`
    ///
    /// # Panics
    /// If there is none, or one is built otherwise than the first.
    pub fn forward_members(members: &[&Self], images: Tensor<B, 4>) -> Tensor<B, 3> {
        let first = members.first().expect("a group has members");
        let structure = first.config().network().structure();
        let (batch, classes) = (images.dims()[0], first.classes());
        let (mut mixtures, mut dense) = (Vec::new(), Vec::new());
        for member in members {
            assert_eq!(member.config().network().structure(), structure, "members have one structure");
            match member {
                Self::PatchMoe(network) => mixtures.push(network),
                Self::WideResnet(network) => dense.push(network),
            }
        }
        let logits = if dense.is_empty() {
            PatchMoe::forward_members(&mixtures, images)
        } else {
            WideResNet::forward_members(&dense, images, &mut Taps::none())
        };
        logits.reshape([batch, members.len(), classes])
    }

    /// Returns logits and one routing for each routed layer, from the images to the head; a dense network has none.
    ///
    /// # Shapes
    /// - images: `[batch, height, width, channel]`, pixels in [0, 1]
    /// - output: `[batch, class]`
    pub fn forward_with_routing(&self, images: Tensor<B, 4>) -> (Tensor<B, 2>, Vec<Routing<B>>) {
        let [batch, height, width, channels] = images.dims();
        let learns = B::ad_enabled(&images.device()) || self.norms().iter().any(|layer| layer.norm.collects);
        if B::ON_DEVICE || learns || batch < 2 * PART {
            return self.network().forward(images, &mut Taps::none());
        }
        // Parts of the batch side by side: what an operation does on one thread is done on all of them, too.
        let parts: Vec<_> = (0..batch)
            .step_by(PART)
            .map(|first| images.clone().slice([first..batch.min(first + PART), 0..height, 0..width, 0..channels]))
            .collect();
        let (logits, routings): (Vec<_>, Vec<_>) =
            parts.into_par_iter().map(|part| self.network().forward(part, &mut Taps::none())).unzip();
        (Tensor::cat(logits, 0), Routing::joined(routings))
    }

    /// Returns logits and, by their names, the values on their way that were asked for.
    ///
    /// # Shapes
    /// - images: `[batch, height, width, channel]`, pixels in [0, 1]
    /// - logits: `[batch, class]`
    ///
    /// # Panics
    /// If a name is not among [`Self::taps`].
    pub fn forward_with_taps(
        &self,
        images: Tensor<B, 4>,
        names: &[&str],
    ) -> (Tensor<B, 2>, BTreeMap<String, Tapped<B>>) {
        for name in names {
            assert!(self.taps().contains(name), "{name} is not among the taps {:?}", self.taps());
        }
        let mut taps = Taps::of(names);
        let (logits, _) = self.network().forward(images, &mut taps);
        (logits, taps.found)
    }

    /// Returns logits and how much each expert wants each patch, before any is selected; `None` if no experts choose patches.
    ///
    /// Gradients flow through the scores of all patches, those that no expert selects too.
    ///
    /// # Shapes
    /// - images: `[batch, height, width, channel]`, pixels in [0, 1]
    /// - logits: `[batch, class]`
    /// - scores: `[batch, expert, patch]`
    pub fn forward_with_scores(&self, images: Tensor<B, 4>) -> Option<(Tensor<B, 2>, Tensor<B, 3>)> {
        let network = self.network();
        if !network.taps().contains(&"map") {
            return None;
        }
        let mut taps = Taps::of(&["map"]);
        let (logits, _) = network.forward(images, &mut taps);
        let map = taps.found.remove("map").and_then(Tapped::map)?;
        Some((logits, network.patch_scores(map)?))
    }

    /// Returns the logits of passes in which every expert passes over the patches of one of these sets. What lies before the routers is
    /// computed once for all.
    ///
    /// As long as a patch is left, nothing that the passed-over patches see has any part in the answer, whatever it is: each patch is scored
    /// by itself, and a weight of zero is left to an expert that has to take more patches than there are.
    ///
    /// # Shapes
    /// - images: `[batch, height, width, channel]`, pixels in [0, 1]
    /// - output: `[batch, class]` each
    ///
    /// # Errors
    /// If no experts choose patches.
    pub fn forward_blocked(&self, images: Tensor<B, 4>, blocked: &[Vec<u16>]) -> Result<Vec<Tensor<B, 2>>, ModelError> {
        self.network().forward_blocked(images, blocked)
    }

    /// Returns logits and what each expert makes of an image alone: head weights times its features, plus the head's biases; of a
    /// network without experts, what its filters before the head make together.
    ///
    /// # Shapes
    /// - images: `[batch, height, width, channel]`, pixels in [0, 1]
    /// - logits: `[batch, class]`
    /// - alone: `[batch, expert, class]`
    #[allow(clippy::missing_panics_doc, reason = "every network has features and a head")]
    pub fn forward_by_expert(&self, images: Tensor<B, 4>) -> (Tensor<B, 2>, Tensor<B, 3>) {
        let (logits, mut taps) = self.forward_with_taps(images, &["features"]);
        let features = taps.remove("features").and_then(Tapped::features).expect("every network has features");
        let ([count, classes], groups) = (logits.dims(), self.filter_groups());
        let filters = features.dims()[1];
        let belongs = |group: &FilterGroup, filter| (group.first..group.first + group.count).contains(&filter);
        let masks = groups.iter().flat_map(|group| (0..filters).map(move |filter| belongs(group, filter)));
        let masks = masks.map(|belongs| f32::from(u8::from(belongs))).collect::<Vec<_>>();
        let masks = TensorData::new(masks, [1, groups.len(), filters]);
        let masks = Tensor::<B, 3>::from_data(masks, (&features.device(), features.dtype()));
        let parameter = |path| self.parameter(path).expect("every network has a head");
        let weights = parameter("head.weight").reshape([1, classes, filters]).swap_dims(1, 2);
        let features = features.reshape([count, 1, filters]) * masks;
        let added = features.reshape([1, count * groups.len(), filters]).matmul(weights);
        let biases = parameter("head.bias").reshape([1, 1, classes]);
        (logits, added.reshape([count, groups.len(), classes]) + biases)
    }
}

impl<B: Backend> Classifier<B> {
    pub(crate) fn network(&self) -> &dyn Network<B> {
        on_network!(self, |network, _| network)
    }

    fn network_mut(&mut self) -> &mut dyn Network<B> {
        on_network!(self, |network, _| network)
    }

    /// Visits every parameter and running statistic under its readable path, such as
    /// `experts.0.conv.weight`.
    pub(crate) fn visit_network<V: ModuleVisitor<B>>(&self, visitor: &mut V) {
        on_network!(self, |network, _| network.visit(visitor));
    }

    pub(crate) fn map_network<M: ModuleMapper<B>>(self, mapper: &mut M) -> Self {
        on_network!(self, |network, variant| variant(network.map(mapper)))
    }

    /// The configuration it was built from.
    pub fn config(&self) -> ClassifierConfig {
        self.network().config()
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.network().classes()
    }

    /// Names of the values that [`Self::forward_with_taps`] can hand out.
    ///
    /// Residual networks have `group1`, `group2` and so on, the map after each group of blocks; a mixture of experts has
    /// `map`, whose patches the experts choose from. Both have `filters`, the raw outputs of the last filters before the
    /// head, and `features`, what the head sees: see [`FilterActivity`](crate::FilterActivity).
    pub fn taps(&self) -> &'static [&'static str] {
        self.network().taps()
    }

    /// Number of trainable parameters; running statistics do not count.
    pub fn parameters(&self) -> usize {
        struct Count(usize);
        impl<B: Backend> ModuleVisitor<B> for Count {
            fn visit_float<const D: usize>(&mut self, param: &burn::module::Param<Tensor<B, D>>) {
                self.0 += param.shape().num_elements();
            }
        }
        let mut count = Count(0);
        self.visit_network(&mut count);
        let statistics: usize = self.norms().iter().map(|layer| 2 * layer.norm.gamma.shape().num_elements()).sum();
        count.0 - statistics
    }

    /// Its batch normalizations, from the images to the head.
    pub fn norms(&self) -> Vec<NormLayer<'_, B>> {
        self.network().norms()
    }

    /// Every normalization's share of the batch in its running statistics, with the normalization's part.
    pub(crate) fn momentums(&mut self) -> Vec<(Part, &mut f64)> {
        let parts: Vec<_> = self.norms().iter().map(|layer| layer.part).collect();
        parts.into_iter().zip(self.network_mut().norms_mut().into_iter().map(|norm| &mut norm.momentum)).collect()
    }

    /// Sets whether every batch normalization works as in training, with the batch's statistics, without autodiff too:
    /// passes that only collect statistics then keep no maps for a gradient.
    pub fn set_collects_statistics(&mut self, collects: bool) {
        for norm in self.network_mut().norms_mut() {
            norm.collects = collects;
        }
    }

    /// Returns the share of the batch in every running statistic; 0 if all are frozen.
    pub fn batch_norm_momentum(&self) -> f64 {
        self.norms().iter().map(|layer| layer.norm.momentum).find(|&momentum| momentum > 0.0).unwrap_or(0.0)
    }

    /// Sets the share of the batch in every running statistic: running = (1 - momentum) running +
    /// momentum batch. Passes with momentum 1, 1/2, 1/3, .. leave the plain average over batches. Frozen
    /// normalizations stay frozen.
    pub fn set_batch_norm_momentum(&mut self, momentum: f64) {
        for norm in self.network_mut().norms_mut().into_iter().filter(|norm| norm.momentum > 0.0) {
            norm.momentum = momentum;
        }
    }

    /// The same network, whose experts pass over these patches too, whatever they score: each takes the best of the others. Patches
    /// are numbered row by row, and there is one list for each expert. Saved weights say which patches are passed over.
    ///
    /// # Errors
    /// If no experts choose patches.
    ///
    /// # Panics
    /// If there are not as many lists as experts.
    pub fn block_patches(mut self, blocked: &[Vec<u16>]) -> Result<Self, ModelError> {
        self.network_mut().block_patches(blocked)?;
        Ok(self)
    }
}

impl<B: AutodiffBackend> Classifier<B> {
    /// Replaces the running statistics by those of the same classifier without autodiff.
    pub fn take_statistics_of(&mut self, other: &Classifier<B::InnerBackend>) {
        for (norm, other) in self.network_mut().norms_mut().into_iter().zip(other.norms()) {
            norm.running_mean.set(Tensor::from_inner(other.norm.running_mean.value()));
            norm.running_variance.set(Tensor::from_inner(other.norm.running_variance.value()));
        }
    }
}
