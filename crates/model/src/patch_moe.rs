use std::ops::Range;

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};
use patchdoor_kernels::{InferenceConv, Kernels, average_positions, gather_weighted, inference_conv2d};
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::batch_norm::BatchNormRelu;
use crate::config::{invalid, validate_trunk};
use crate::convolution::Convolution;
use crate::dense::Dense;
use crate::footprint::Map;
use crate::init::ParameterSource;
use crate::network::{FilterLayer, Network, NormInput, NormLayer};
use crate::router::{PatchRouter, Selection};
use crate::routing::{ExpertChoice, Routing};
use crate::taps::{Tapped, Taps};
use crate::trunk::{LayerOptions, Trunk, layers};
use crate::{
    BatchNormConfig, ClassifierConfig, ExpertChoiceConfig, Footprint, GivenRouting, Initializer, InputShape,
    ModelError, NetworkConfig, Padding, Part, TakenRouting,
};

/// The patch-level mixture of experts of Chowdhury et al. (2023, arXiv:2306.04073) as attacked by
/// Chan et al. (2025, arXiv:2505.01811).
///
/// The defaults are the published code's numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PatchMoeConfig {
    /// Widths of the trunk are 16, 32 and 64 times this factor.
    pub widen_factor: usize,
    /// Number of experts, each with a gate of its own.
    pub experts: usize,
    /// How many patches each expert keeps (the papers' *l*).
    pub patches_per_expert: usize,
    /// Side of a square patch on the feature map before the experts.
    pub patch_size: usize,
    /// Whether the softmax runs over all patches or over the selected ones.
    pub gate_order: GateOrder,
    /// Whether experts run over the whole masked map or over their selected patches only.
    pub expert_form: ExpertForm,
    /// Side of the experts' convolution kernel.
    pub expert_kernel: usize,
    /// Output channels of one expert; 64 times the widen factor over the number of experts if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert_channels: Option<usize>,
    /// Channels of the map that the gates see; 64 times the widen factor if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch_channels: Option<usize>,
    /// Standard deviation of the gate kernels at the start.
    pub gate_init_std: f64,
    /// Whether the gate kernels learn.
    #[serde(skip_serializing_if = "Routers::are_trained")]
    pub routers: Routers,
    /// The patches that each expert passes over whatever they score, one rising list for each expert; none if empty. Patches are
    /// numbered row by row.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocked_patches: Vec<Vec<u16>>,
    /// Where a strided convolution puts its padding.
    pub padding: Padding,
    /// How convolutions and dense layers are drawn at the start.
    pub initializer: Initializer,
    /// Constants of every batch normalization.
    pub batch_norm: BatchNormConfig,
}

impl Default for PatchMoeConfig {
    fn default() -> Self {
        Self {
            widen_factor: 10,
            experts: 4,
            patches_per_expert: 16,
            patch_size: 1,
            gate_order: GateOrder::default(),
            expert_form: ExpertForm::default(),
            expert_kernel: 1,
            expert_channels: None,
            patch_channels: None,
            gate_init_std: 1e-4,
            routers: Routers::default(),
            blocked_patches: Vec::new(),
            padding: Padding::default(),
            initializer: Initializer::default(),
            batch_norm: BatchNormConfig::default(),
        }
    }
}

/// Order of the gate's softmax and its selection of patches.
///
/// The two published gates bear one name and do it differently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GateOrder {
    /// Softmax over all patches, then keep the largest weights; kept weights sum to less than one
    /// (the published wide `ResNet`).
    #[default]
    SoftmaxThenSelect,
    /// Keep the largest scores, then softmax over those; weights sum to one (the published MNIST
    /// model and the theory).
    SelectThenSoftmax,
}

/// How experts see their patches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExpertForm {
    /// The whole map times a mask of weights, zero where not selected, as published. Batch
    /// normalization sees the zeros, and an unselected patch still adds a constant.
    #[default]
    Masked,
    /// Only the selected patches are gathered, normalized, convolved and averaged. Saves the
    /// arithmetic of the others; a different function from `masked`.
    Gathered,
}

/// Whether routers learn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Routers {
    /// With everything else, as published.
    #[default]
    Trained,
    /// They keep their random kernels for good, in trainings and in defenses; everything else learns around them. A
    /// control: what such a network does too, no learned routing explains.
    Frozen,
}

impl Routers {
    /// Whether they learn.
    pub fn are_trained(&self) -> bool {
        *self == Self::Trained
    }
}

impl PatchMoeConfig {
    /// Rows and columns of the feature map the gates see, after two strided convolutions.
    pub fn map_size(input: InputShape) -> (usize, usize) {
        (input.height.div_ceil(2).div_ceil(2), input.width.div_ceil(2).div_ceil(2))
    }

    /// Number of patches each gate chooses from.
    pub fn patches(&self, input: InputShape) -> usize {
        let (rows, columns) = self.patch_grid(input);
        rows * columns
    }

    /// Channels of the map that the gates see.
    pub fn resolved_patch_channels(&self) -> usize {
        self.patch_channels.unwrap_or(64 * self.widen_factor)
    }

    /// Whether the blocked patches are some of so many, and leave every expert enough.
    fn can_block(&self, patches: usize) -> bool {
        let fits = |blocked: &Vec<u16>| {
            blocked.is_sorted_by(|a, b| a < b)
                && blocked.iter().all(|&patch| usize::from(patch) < patches)
                && blocked.len() + self.patches_per_expert <= patches
        };
        self.blocked_patches.is_empty()
            || self.blocked_patches.len() == self.experts && self.blocked_patches.iter().all(fits)
    }

    /// Output channels of one expert.
    pub fn resolved_expert_channels(&self) -> usize {
        self.expert_channels.unwrap_or((64 * self.widen_factor / self.experts.max(1)).max(1))
    }
}

impl NetworkConfig for PatchMoeConfig {
    fn name(&self) -> &'static str {
        "patch-moe"
    }

    fn validate(&self, input: InputShape, classes: usize) -> Vec<ModelError> {
        let mut problems = validate_trunk(self.widen_factor, self.batch_norm, input, classes);
        if !(1..=256).contains(&self.experts) {
            problems.push(invalid("experts", self.experts, "1 to 256"));
        }
        let (rows, columns) = Self::map_size(input);
        if self.patch_size == 0 || rows % self.patch_size != 0 || columns % self.patch_size != 0 {
            problems.push(invalid(
                "patch-size",
                self.patch_size,
                format!("a divisor of the {rows}x{columns} feature map"),
            ));
        } else {
            let patches = self.patches(input);
            if !(1..=patches).contains(&self.patches_per_expert) {
                problems.push(invalid(
                    "patches-per-expert",
                    self.patches_per_expert,
                    format!("1 to {patches} (the {rows}x{columns} feature map has {patches} patches)"),
                ));
            } else if !self.can_block(patches) {
                let (experts, most) = (self.experts, patches - self.patches_per_expert);
                let allowed = format!("no list or {experts}, each of at most {most} rising numbers below {patches}");
                problems.push(invalid("blocked-patches", format!("{:?}", self.blocked_patches), allowed));
            }
        }
        if ![1, 3, 5].contains(&self.expert_kernel) {
            problems.push(invalid("expert-kernel", self.expert_kernel, "1, 3 or 5"));
        }
        if self.expert_channels.is_some_and(|channels| !(1..=8192).contains(&channels)) {
            problems.push(invalid("expert-channels", self.expert_channels.unwrap_or(0), "1 to 8192"));
        }
        if self.patch_channels.is_some_and(|channels| !(1..=8192).contains(&channels)) {
            problems.push(invalid("patch-channels", self.patch_channels.unwrap_or(0), "1 to 8192"));
        }
        if !(self.gate_init_std >= 0.0 && self.gate_init_std <= 10.0) {
            problems.push(invalid("gate-init-std", self.gate_init_std, "a number in [0, 10]"));
        }
        problems
    }

    fn widen_factor(&self) -> usize {
        self.widen_factor
    }

    fn make_quick(&mut self) {
        self.widen_factor = 1;
        self.expert_channels = None;
        self.patch_channels = None;
    }

    fn footprint(&self, input: InputShape, classes: usize) -> Footprint {
        let mut footprint = Footprint::default();
        let map = footprint.trunk(input, self.widen_factor);
        footprint.norm_before_convolution(map);
        let map = footprint.convolution(map, self.resolved_patch_channels(), 3, 2);
        footprint.keep(map.numbers());
        let positions = self.patch_size * self.patch_size;
        footprint.parameters += self.experts * positions * map.channels;
        // Softmax, mask and weights of every patch.
        footprint.keep(3 * self.experts * self.patches(input));
        let seen = match self.expert_form {
            ExpertForm::Masked => Map { channels: self.experts * map.channels, ..map },
            ExpertForm::Gathered => {
                Map { height: self.patches_per_expert, width: positions, channels: self.experts * map.channels }
            }
        };
        footprint.norm(seen.channels);
        if self.expert_form == ExpertForm::Gathered {
            // Their normalization keeps the patches taken; that of whole maps keeps the map itself.
            footprint.keep(seen.numbers());
        }
        footprint.keep(seen.numbers());
        let features = self.experts * self.resolved_expert_channels();
        // Each expert's filters see its own channels only.
        let kernel = self.expert_kernel * self.expert_kernel;
        footprint.parameters += features * (map.channels * kernel + 1);
        footprint.head(Map { channels: features, ..seen }, classes);
        footprint
    }

    fn experts(&self) -> Option<usize> {
        Some(self.experts)
    }

    fn expert_choice(&self) -> Option<&dyn ExpertChoiceConfig> {
        Some(self)
    }

    fn learning_parts(&self) -> &'static [Part] {
        match self.routers {
            Routers::Trained => &[Part::Trunk, Part::Router, Part::Experts, Part::Head],
            Routers::Frozen => &[Part::Trunk, Part::Experts, Part::Head],
        }
    }

    fn nearest_patch_moe(&self) -> PatchMoeConfig {
        self.clone()
    }

    fn structure(&self) -> ClassifierConfig {
        let defaults = Self::default();
        let momentum = defaults.batch_norm.momentum;
        ClassifierConfig::PatchMoe(Self {
            expert_channels: Some(self.resolved_expert_channels()),
            patch_channels: Some(self.resolved_patch_channels()),
            gate_init_std: defaults.gate_init_std,
            routers: defaults.routers,
            initializer: defaults.initializer,
            batch_norm: BatchNormConfig { momentum, ..self.batch_norm },
            ..self.clone()
        })
    }
}

impl ExpertChoiceConfig for PatchMoeConfig {
    fn experts(&self) -> usize {
        self.experts
    }

    fn patches_per_expert(&self) -> usize {
        self.patches_per_expert
    }

    fn patch_grid(&self, input: InputShape) -> (usize, usize) {
        let (rows, columns) = Self::map_size(input);
        let side = self.patch_size.max(1);
        (rows / side, columns / side)
    }

    fn receptive_field(&self, input: InputShape, row: usize, column: usize) -> (Range<usize>, Range<usize>) {
        let side = self.patch_size.max(1);
        (self.seen(row * side, side, input.height), self.seen(column * side, side, input.width))
    }

    fn gate_order(&self) -> GateOrder {
        self.gate_order
    }

    fn blocked_patches(&self, expert: usize) -> &[u16] {
        self.blocked_patches.get(expert).map_or(&[], Vec::as_slice)
    }
}

/// A wide residual network whose last group is a mixture of experts over patches of its feature map
/// (Chowdhury et al. 2023, arXiv:2306.04073).
#[derive(Module, Debug)]
pub struct PatchMoe<B: Backend> {
    pub(crate) trunk: Trunk<B>,
    pub(crate) patch_norm: BatchNormRelu<B>,
    pub(crate) patch_conv: Convolution<B>,
    pub(crate) router: PatchRouter<B>,
    pub(crate) experts: Vec<Expert<B>>,
    pub(crate) norm: BatchNormRelu<B>,
    pub(crate) head: Dense<B>,
    patch_size: usize,
    #[module(skip)]
    form: ExpertForm,
    #[module(skip)]
    config: PatchMoeConfig,
}

/// One expert: normalize, rectify, convolve.
#[derive(Module, Debug)]
pub(crate) struct Expert<B: Backend> {
    pub(crate) norm: BatchNormRelu<B>,
    pub(crate) conv: Convolution<B>,
}

impl<B: Backend> PatchMoe<B> {
    pub(crate) fn new<R: Rng>(
        config: &PatchMoeConfig,
        input: InputShape,
        classes: usize,
        rng: &mut R,
        device: &B::Device,
    ) -> Self {
        let options = LayerOptions { padding: config.padding, batch_norm: config.batch_norm };
        let source = &mut ParameterSource::new(rng, device, config.initializer);
        let wide = 32 * config.widen_factor;
        let (patch_channels, expert_channels) = (config.resolved_patch_channels(), config.resolved_expert_channels());
        let trunk = Trunk::new(source, input.channels, config.widen_factor, options);
        let patch_norm = BatchNormRelu::new(source, wide, config.batch_norm);
        let patch_conv = Convolution::new(source, [wide, patch_channels], 3, 2, config.padding);
        let router = PatchRouter::new(source, config);
        let experts = (0..config.experts)
            .map(|_| Expert {
                norm: BatchNormRelu::new(source, patch_channels, config.batch_norm),
                // Stride 1: both conventions pad alike.
                conv: Convolution::new(
                    source,
                    [patch_channels, expert_channels],
                    config.expert_kernel,
                    1,
                    Padding::Symmetric,
                ),
            })
            .collect();
        let features = config.experts * expert_channels;
        Self {
            trunk,
            patch_norm,
            patch_conv,
            router,
            experts,
            norm: BatchNormRelu::new(source, features, config.batch_norm),
            head: Dense::new(source, features, classes),
            patch_size: config.patch_size,
            form: config.expert_form,
            config: config.clone(),
        }
    }
}

impl<B: Backend> Network<B> for PatchMoe<B> {
    fn config(&self) -> ClassifierConfig {
        ClassifierConfig::PatchMoe(self.config.clone())
    }

    fn classes(&self) -> usize {
        self.head.bias.dims()[0]
    }

    fn taps(&self) -> &'static [&'static str] {
        &["group1", "group2", "map", "filters", "features"]
    }

    fn forward(&self, images: Tensor<B, 4>, taps: &mut Taps<B>) -> (Tensor<B, 2>, Vec<Routing<B>>)
    where
        B: Kernels,
    {
        let map = Self::map_of_members(&[self], images, taps);
        let routing = self.route(map.clone());
        let logits = self.forward_routed(map, &routing, taps);
        (logits, vec![Routing::ExpertChoice(routing)])
    }

    fn forward_given(
        &self,
        images: Tensor<B, 4>,
        given: &[GivenRouting<'_, B>],
    ) -> Result<Vec<Tensor<B, 2>>, ModelError>
    where
        B: Kernels,
    {
        let map = Self::map_of_members(&[self], images, &mut Taps::none());
        let logits = given.iter().map(|given| {
            let routing = self.routing_of(&map, given)?;
            Ok(self.forward_routed(map.clone(), &routing, &mut Taps::none()))
        });
        logits.collect()
    }

    fn forward_blocked(&self, images: Tensor<B, 4>, blocked: &[Vec<u16>]) -> Result<Vec<Tensor<B, 2>>, ModelError>
    where
        B: Kernels,
    {
        let map = Self::map_of_members(&[self], images, &mut Taps::none());
        let patches = into_patches(map.clone(), self.patch_size, 1);
        let logits = blocked.iter().map(|blocked| {
            let routing = self.router.passing_over(blocked).route(patches.clone());
            self.forward_routed(map.clone(), &routing, &mut Taps::none())
        });
        Ok(logits.collect())
    }

    fn patch_scores(&self, map: Tensor<B, 4>) -> Option<Tensor<B, 3>>
    where
        B: Kernels,
    {
        Some(self.router.scores(into_patches(map, self.patch_size, 1)))
    }

    fn block_patches(&mut self, blocked: &[Vec<u16>]) -> Result<(), ModelError> {
        let expert_count = self.experts.len();
        assert_eq!(blocked.len(), expert_count, "each expert has a list of patches to pass over");
        self.config.blocked_patches.resize(expert_count, Vec::new());
        for (known, more) in self.config.blocked_patches.iter_mut().zip(blocked) {
            known.extend(more);
            known.sort_unstable();
            known.dedup();
        }
        self.router.blocked.clone_from(&self.config.blocked_patches);
        Ok(())
    }

    fn norms(&self) -> Vec<NormLayer<'_, B>> {
        let mut norms = self.trunk.norms();
        norms.push(NormLayer {
            path: "patch_norm".into(),
            part: Part::Trunk,
            input: NormInput::block("trunk.group2"),
            norm: &self.patch_norm,
        });
        norms.extend(self.experts.iter().enumerate().map(|(index, expert)| NormLayer {
            path: format!("experts.{index}.norm"),
            part: Part::Experts,
            input: NormInput::SideBySide(vec!["patch_conv".into()]),
            norm: &expert.norm,
        }));
        norms.push(NormLayer {
            path: "norm".into(),
            part: Part::Head,
            input: NormInput::SideBySide(self.filters().into_iter().map(|layer| layer.path).collect()),
            norm: &self.norm,
        });
        norms
    }

    fn norms_mut(&mut self) -> Vec<&mut BatchNormRelu<B>> {
        let mut norms = self.trunk.norms_mut();
        norms.push(&mut self.patch_norm);
        norms.extend(self.experts.iter_mut().map(|expert| &mut expert.norm));
        norms.push(&mut self.norm);
        norms
    }

    fn filters(&self) -> Vec<FilterLayer> {
        let experts = self.experts.iter().enumerate();
        experts.map(|(index, expert)| expert.conv.filters(&format!("experts.{index}.conv"))).collect()
    }
}

impl<B: Kernels> PatchMoe<B> {
    /// What decides which patches go to which expert.
    pub fn router(&self) -> &PatchRouter<B> {
        &self.router
    }

    /// Goes on from the map whose patches the experts choose from: router, experts and head.
    ///
    /// # Shapes
    /// - map: `[batch, row, column, channel]`, the channels those of the configuration's
    ///   [`resolved_patch_channels`](PatchMoeConfig::resolved_patch_channels)
    /// - logits: `[batch, class]`
    pub fn forward_map(&self, map: Tensor<B, 4>) -> (Tensor<B, 2>, ExpertChoice<B>) {
        let routing = self.route(map.clone());
        (self.forward_routed(map, &routing, &mut Taps::none()), routing)
    }

    /// What a given routing comes to on a map of this network.
    fn routing_of(&self, map: &Tensor<B, 4>, given: &GivenRouting<'_, B>) -> Result<ExpertChoice<B>, ModelError> {
        let [Routing::ExpertChoice(choice)] = given.routing else {
            return Err(match given.routing {
                [_] => ModelError::OtherRouting {
                    found: "patches that choose experts".into(),
                    expected: "experts that choose patches".into(),
                },
                layers => {
                    let found = format!("{} routed layers", layers.len());
                    ModelError::OtherRouting { found, expected: "1".into() }
                }
            });
        };
        let [batch, rows, columns, _] = map.dims();
        let expected = [batch, self.experts.len(), rows * columns / (self.patch_size * self.patch_size)];
        let found = choice.weights.dims();
        if found != expected {
            let words = |[images, experts, patches]: [usize; 3]| {
                format!("{images} images, {experts} experts and {patches} patches")
            };
            return Err(ModelError::OtherRouting { found: words(found), expected: words(expected) });
        }
        Ok(match given.taken {
            TakenRouting::All => choice.clone(),
            TakenRouting::Selections => {
                let scores = self.router.scores(into_patches(map.clone(), self.patch_size, 1));
                let selection = Selection::of_indices(&choice.indices, expected[2]);
                self.router.weigh(scores, selection)
            }
        })
    }

    fn route(&self, map: Tensor<B, 4>) -> ExpertChoice<B> {
        self.router.route(into_patches(map, self.patch_size, 1))
    }

    /// Experts and head on a map that is routed already; shapes as in [`Self::forward_map`].
    pub(crate) fn forward_routed(
        &self,
        map: Tensor<B, 4>,
        routing: &ExpertChoice<B>,
        taps: &mut Taps<B>,
    ) -> Tensor<B, 2> {
        Self::forward_routed_members(&[self], map, routing, taps)
    }

    /// Several networks of one shape side by side, each over its own channels.
    ///
    /// # Shapes
    /// - images: `[batch, height, width, member * channel]`
    /// - logits: `[batch, member * class]`
    pub(crate) fn forward_members(members: &[&Self], images: Tensor<B, 4>) -> Tensor<B, 2> {
        let taps = &mut Taps::none();
        let map = Self::map_of_members(members, images, taps);
        let patches = into_patches(map.clone(), members[0].patch_size, members.len());
        let routing = PatchRouter::route_members(&layers(members, |network| &network.router), patches);
        Self::forward_routed_members(members, map, &routing, taps)
    }

    /// From the images to the map that the gates see, `[batch, row, column, member * channel]`.
    pub(crate) fn map_of_members(members: &[&Self], images: Tensor<B, 4>, taps: &mut Taps<B>) -> Tensor<B, 4> {
        let x = Trunk::forward_members(&layers(members, |network| &network.trunk), images, taps);
        let norms = layers(members, |network| &network.patch_norm);
        let convolutions = layers(members, |network| &network.patch_conv);
        let map = match BatchNormRelu::constants(&norms) {
            Some(constants) => {
                let conv = Convolution::inference(&convolutions, [x.dims()[1], x.dims()[2]]);
                inference_conv2d(x, InferenceConv { before: Some(constants), ..conv })
            }
            None => Convolution::forward_groups(&convolutions, BatchNormRelu::forward_groups(&norms, x)),
        };
        taps.offer("map", || Tapped::Map(map.clone()));
        map
    }

    /// Like [`Self::forward_routed`]; the experts of the routing stand member by member.
    fn forward_routed_members(
        members: &[&Self],
        map: Tensor<B, 4>,
        routing: &ExpertChoice<B>,
        taps: &mut Taps<B>,
    ) -> Tensor<B, 2> {
        let filters = match members[0].form {
            ExpertForm::Masked => Self::experts_on_map(members, map, routing),
            ExpertForm::Gathered => Self::experts_on_patches(members, map, routing),
        };
        taps.offer("filters", || Tapped::Map(filters.clone()));
        let norms = layers(members, |network| &network.norm);
        let features = average_positions(BatchNormRelu::forward_groups(&norms, filters));
        taps.offer("features", || Tapped::Features(features.clone()));
        Dense::forward_groups(&layers(members, |network| &network.head), features)
    }

    /// Every expert over the whole map, each patch scaled by its weight, zero where not selected;
    /// `[batch, row, column, member * expert * channel]`.
    fn experts_on_map(members: &[&Self], map: Tensor<B, 4>, routing: &ExpertChoice<B>) -> Tensor<B, 4> {
        let [_, rows, columns, _] = map.dims();
        let weights = spread(routing.weights.clone(), [rows, columns], members[0].patch_size);
        let (norms, convolutions) = Self::expert_layers(members);
        Convolution::forward_groups(&convolutions, BatchNormRelu::forward_weighted(&norms, map, weights))
    }

    /// The experts' layers, member by member.
    fn expert_layers<'a>(members: &[&'a Self]) -> (Vec<&'a BatchNormRelu<B>>, Vec<&'a Convolution<B>>) {
        members.iter().flat_map(|network| &network.experts).map(|expert| (&expert.norm, &expert.conv)).unzip()
    }

    /// Every expert over its selected patches only;
    /// `[batch, patches_per_expert, patch position, member * expert * channel]`.
    fn experts_on_patches(members: &[&Self], map: Tensor<B, 4>, routing: &ExpertChoice<B>) -> Tensor<B, 4> {
        let side = members[0].patch_size;
        let patches = into_patches(map, side, members.len());
        let [batch, count, wide] = patches.dims();
        let [_, experts, selected] = routing.indices.dims();
        let (length, experts) = (wide / members.len(), experts / members.len());
        let (norms, convolutions) = Self::expert_layers(members);
        let taken = (0..members.len()).map(|member| {
            let patches = patches.clone().narrow(2, member * length, length);
            let patches = patches.reshape([batch, count, side * side, length / (side * side)]);
            let weights = routing.weights.clone().narrow(1, member * experts, experts);
            gather_weighted(patches, weights, routing.indices.clone().narrow(1, member * experts, experts))
        });
        let seen = BatchNormRelu::forward_groups(&norms, side_by_side(taken.collect()));
        let wide = seen.dims()[3];
        let output = if convolutions[0].is_pointwise() {
            // Neighbours do not matter, so all of an image lies in one row, of which many pixels are done at a time.
            Convolution::forward_groups(&convolutions, seen.reshape([batch, 1, selected * side * side, wide]))
        } else {
            Convolution::forward_groups(&convolutions, seen.reshape([batch * selected, side, side, wide]))
        };
        let features = output.dims()[3];
        output.reshape([batch, selected, side * side, features])
    }
}

/// Cuts a map into square patches, row by row.
///
/// # Shapes
/// - map: `[batch, row, column, member * channel]`
/// - output: `[batch, patch, member * row in patch * column in patch * channel]`
pub(crate) fn into_patches<B: Backend>(map: Tensor<B, 4>, side: usize, members: usize) -> Tensor<B, 3> {
    let [batch, rows, columns, wide] = map.dims();
    if side == 1 {
        return map.reshape([batch, rows * columns, wide]);
    }
    let (down, across) = (rows / side, columns / side);
    let patches = [batch, down * across, side * side * wide];
    if members == 1 {
        // Burn 0.21 gives wrong strides to a tensor that is reshaped after an axis of one was moved.
        return map.reshape([batch, down, side, across, side, wide]).permute([0, 1, 3, 2, 4, 5]).reshape(patches);
    }
    let cut = map.reshape([batch, down, side, across, side, members, wide / members]);
    cut.permute([0, 1, 3, 5, 2, 4, 6]).reshape(patches)
}

/// Puts maps side by side, channels behind channels.
fn side_by_side<B: Backend>(mut maps: Vec<Tensor<B, 4>>) -> Tensor<B, 4> {
    if maps.len() == 1 { maps.remove(0) } else { Tensor::cat(maps, 3) }
}

/// Repeats every patch's weight over the positions of that patch.
///
/// # Shapes
/// - weights: `[batch, expert, patch]`
/// - output: `[batch, expert, row * column]`
pub(crate) fn spread<B: Backend>(weights: Tensor<B, 3>, [rows, columns]: [usize; 2], side: usize) -> Tensor<B, 3> {
    if side == 1 {
        return weights;
    }
    let [batch, experts, _] = weights.dims();
    let (down, across) = (rows / side, columns / side);
    weights
        .reshape([batch * experts, down, 1, across, 1])
        .expand([batch * experts, down, side, across, side])
        .reshape([batch, experts, rows * columns])
}
