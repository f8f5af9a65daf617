use serde::{Deserialize, Serialize};

use crate::ModelError;

/// Height, width and channels of the images a classifier takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputShape {
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// Colour channels, 3 for RGB.
    pub channels: usize,
}

/// Which classifier to build.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClassifierConfig {
    /// The wide residual network whose last group is a patch-level mixture of experts.
    PatchMoe(PatchMoeConfig),
    /// The same network without experts, the baseline everywhere.
    WideResnet(WideResNetConfig),
}

impl ClassifierConfig {
    /// Checks every field against the input it will see and returns all problems at once.
    pub fn validate(&self, input: InputShape, classes: usize) -> Vec<ModelError> {
        match self {
            Self::PatchMoe(config) => config.validate(input, classes),
            Self::WideResnet(config) => config.validate(input, classes),
        }
    }

    /// The widen factor of the trunk.
    pub fn widen_factor(&self) -> usize {
        match self {
            Self::PatchMoe(config) => config.widen_factor,
            Self::WideResnet(config) => config.widen_factor,
        }
    }

    /// Sets the widen factor of the trunk.
    pub fn set_widen_factor(&mut self, widen_factor: usize) {
        match self {
            Self::PatchMoe(config) => config.widen_factor = widen_factor,
            Self::WideResnet(config) => config.widen_factor = widen_factor,
        }
    }
}

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
            padding: Padding::default(),
            initializer: Initializer::default(),
            batch_norm: BatchNormConfig::default(),
        }
    }
}

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

/// Padding of 3x3 convolutions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Padding {
    /// TensorFlow's `SAME`: stride 2 on an even size pads 0 on top and left, 1 on bottom and right.
    #[default]
    Tensorflow,
    /// One pixel on every side, as `PyTorch` code writes it.
    Symmetric,
}

/// Distribution of initial weights; biases start at zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Initializer {
    /// Uniform in ±sqrt(6 / (fan in + fan out)) (Glorot and Bengio 2010), Keras' default.
    #[default]
    GlorotUniform,
    /// Normal with standard deviation sqrt(2 / fan in) (He et al. 2015, arXiv:1502.01852).
    HeNormal,
}

/// Constants of batch normalization (Ioffe and Szegedy 2015, arXiv:1502.03167).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct BatchNormConfig {
    /// Added to the variance before the root.
    pub epsilon: f64,
    /// Share of the batch in the running statistics: running = (1 - momentum) running + momentum batch.
    pub momentum: f64,
}

impl Default for BatchNormConfig {
    /// Keras' numbers (its momentum 0.99 is 0.01 in our convention).
    fn default() -> Self {
        Self { epsilon: 1e-3, momentum: 0.01 }
    }
}

#[allow(clippy::needless_pass_by_value, reason = "callers pass plain numbers")]
fn invalid(field: &'static str, found: impl ToString, allowed: impl Into<String>) -> ModelError {
    ModelError::InvalidField { field, found: found.to_string(), allowed: allowed.into() }
}

fn validate_trunk(
    widen_factor: usize,
    batch_norm: BatchNormConfig,
    input: InputShape,
    classes: usize,
) -> Vec<ModelError> {
    let mut problems = Vec::new();
    if !(1..=64).contains(&widen_factor) {
        problems.push(invalid("widen-factor", widen_factor, "1 to 64"));
    }
    if !(batch_norm.epsilon > 0.0 && batch_norm.epsilon <= 1.0) {
        problems.push(invalid("batch-norm.epsilon", batch_norm.epsilon, "a number in (0, 1]"));
    }
    if !(batch_norm.momentum > 0.0 && batch_norm.momentum <= 1.0) {
        problems.push(invalid("batch-norm.momentum", batch_norm.momentum, "a number in (0, 1]"));
    }
    if input.height < 8 || input.width < 8 || input.channels == 0 {
        let found = format!("{}x{}x{}", input.height, input.width, input.channels);
        problems.push(invalid("input", found, "images of at least 8x8 pixels and one channel"));
    }
    if !(2..=256).contains(&classes) {
        problems.push(invalid("classes", classes, "2 to 256 classes"));
    }
    problems
}

impl PatchMoeConfig {
    /// Rows and columns of the feature map the gates see, after two strided convolutions.
    pub fn map_size(input: InputShape) -> (usize, usize) {
        (input.height.div_ceil(2).div_ceil(2), input.width.div_ceil(2).div_ceil(2))
    }

    /// Rows and columns of patches that each gate chooses from; patches are numbered row by row.
    pub fn patch_grid(&self, input: InputShape) -> (usize, usize) {
        let (rows, columns) = Self::map_size(input);
        let side = self.patch_size.max(1);
        (rows / side, columns / side)
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

    /// Output channels of one expert.
    pub fn resolved_expert_channels(&self) -> usize {
        self.expert_channels.unwrap_or((64 * self.widen_factor / self.experts.max(1)).max(1))
    }

    /// Checks every field against the input it will see and returns all problems at once.
    pub fn validate(&self, input: InputShape, classes: usize) -> Vec<ModelError> {
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
}

impl WideResNetConfig {
    /// Checks every field against the input it will see and returns all problems at once.
    pub fn validate(&self, input: InputShape, classes: usize) -> Vec<ModelError> {
        validate_trunk(self.widen_factor, self.batch_norm, input, classes)
    }
}
