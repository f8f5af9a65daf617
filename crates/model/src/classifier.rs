use burn::module::{Module, ModuleMapper, ModuleVisitor, RunningState};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use patchdoor_kernels::Kernels;
use rand::Rng;

use crate::{ClassifierConfig, InputShape, ModelError, PatchMoe, Routing, WideResNet};

/// Any of the networks, chosen by a [`ClassifierConfig`].
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "a process holds a handful of classifiers")]
pub enum Classifier<B: Backend> {
    /// The patch-level mixture of experts.
    PatchMoe(PatchMoe<B>),
    /// The dense baseline.
    WideResnet(WideResNet<B>),
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

    /// Returns logits and, for a mixture of experts, the routing of the same pass.
    ///
    /// # Shapes
    /// - images: `[batch, height, width, channel]`, pixels in [0, 1]
    /// - output: `[batch, class]`
    pub fn forward_with_routing(&self, images: Tensor<B, 4>) -> (Tensor<B, 2>, Option<Routing<B>>) {
        match self {
            Self::PatchMoe(network) => {
                let (logits, routing) = network.forward(images);
                (logits, Some(routing))
            }
            Self::WideResnet(network) => (network.forward(images), None),
        }
    }
}

impl<B: Backend> Classifier<B> {
    /// Visits every parameter and running statistic under its readable path, such as
    /// `experts.0.conv.weight`.
    pub(crate) fn visit_network<V: ModuleVisitor<B>>(&self, visitor: &mut V) {
        match self {
            Self::PatchMoe(network) => network.visit(visitor),
            Self::WideResnet(network) => network.visit(visitor),
        }
    }

    pub(crate) fn map_network<M: ModuleMapper<B>>(self, mapper: &mut M) -> Self {
        match self {
            Self::PatchMoe(network) => Self::PatchMoe(network.map(mapper)),
            Self::WideResnet(network) => Self::WideResnet(network.map(mapper)),
        }
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
        let statistics: usize = self.norms().iter().map(|norm| 2 * norm.gamma.shape().num_elements()).sum();
        count.0 - statistics
    }

    fn norms(&self) -> Vec<&crate::batch_norm::BatchNormRelu<B>> {
        let (trunk, mut norms) = match self {
            Self::PatchMoe(network) => {
                let experts = network.experts.iter().map(|expert| &expert.norm);
                (&network.trunk, [&network.patch_norm, &network.norm].into_iter().chain(experts).collect::<Vec<_>>())
            }
            Self::WideResnet(network) => {
                (&network.trunk, vec![&network.group3.norm1, &network.group3.norm2, &network.norm])
            }
        };
        norms.extend([&trunk.group1.norm1, &trunk.group1.norm2, &trunk.group2.norm1, &trunk.group2.norm2]);
        norms
    }

    fn norms_mut(&mut self) -> Vec<&mut crate::batch_norm::BatchNormRelu<B>> {
        let (trunk, mut norms) = match self {
            Self::PatchMoe(network) => {
                let experts = network.experts.iter_mut().map(|expert| &mut expert.norm);
                let own = [&mut network.patch_norm, &mut network.norm];
                (&mut network.trunk, own.into_iter().chain(experts).collect::<Vec<_>>())
            }
            Self::WideResnet(network) => {
                let group = &mut network.group3;
                (&mut network.trunk, vec![&mut group.norm1, &mut group.norm2, &mut network.norm])
            }
        };
        let (first, second) = (&mut trunk.group1, &mut trunk.group2);
        norms.extend([&mut first.norm1, &mut first.norm2, &mut second.norm1, &mut second.norm2]);
        norms
    }

    /// Sets whether every batch normalization works as in training, with the batch's statistics, without autodiff too:
    /// passes that only collect statistics then keep no maps for a gradient.
    pub fn set_collects_statistics(&mut self, collects: bool) {
        for norm in self.norms_mut() {
            norm.collects = collects;
        }
    }

    /// Returns the share of the batch in every running statistic; 0 if all are frozen.
    pub fn batch_norm_momentum(&self) -> f64 {
        self.norms().iter().map(|norm| norm.momentum).find(|&momentum| momentum > 0.0).unwrap_or(0.0)
    }

    /// Sets the share of the batch in every running statistic: running = (1 - momentum) running +
    /// momentum batch. Passes with momentum 1, 1/2, 1/3, .. leave the plain average over batches. Frozen
    /// normalizations stay frozen.
    pub fn set_batch_norm_momentum(&mut self, momentum: f64) {
        for norm in self.norms_mut().into_iter().filter(|norm| norm.momentum > 0.0) {
            norm.momentum = momentum;
        }
    }
}

impl<B: AutodiffBackend> Classifier<B> {
    /// Replaces the running statistics by those of the same classifier without autodiff.
    pub fn take_statistics_of(&mut self, other: &Classifier<B::InnerBackend>) {
        for (norm, other) in self.norms_mut().into_iter().zip(other.norms()) {
            norm.running_mean = RunningState::new(Tensor::from_inner(other.running_mean.value()));
            norm.running_variance = RunningState::new(Tensor::from_inner(other.running_variance.value()));
        }
    }
}
