use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{Footprint, GateOrder, ModelError, Part, PatchMoeConfig, WideResNetConfig};

/// Height, width and channels of the images a classifier takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
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
    /// What every network's configuration answers.
    pub fn network(&self) -> &dyn NetworkConfig {
        match self {
            Self::PatchMoe(config) => config,
            Self::WideResnet(config) => config,
        }
    }

    /// The same, to change.
    pub fn network_mut(&mut self) -> &mut dyn NetworkConfig {
        match self {
            Self::PatchMoe(config) => config,
            Self::WideResnet(config) => config,
        }
    }

    /// Checks every field against the input it will see and returns all problems at once.
    pub fn validate(&self, input: InputShape, classes: usize) -> Vec<ModelError> {
        self.network().validate(input, classes)
    }

    /// How many times wider it is than the thinnest of its kind.
    pub fn widen_factor(&self) -> usize {
        self.network().widen_factor()
    }
}

impl From<PatchMoeConfig> for ClassifierConfig {
    fn from(config: PatchMoeConfig) -> Self {
        Self::PatchMoe(config)
    }
}

impl From<WideResNetConfig> for ClassifierConfig {
    fn from(config: WideResNetConfig) -> Self {
        Self::WideResnet(config)
    }
}

/// What is known of a network before it is built.
pub trait NetworkConfig {
    /// Its name in TOML, such as `patch-moe`.
    fn name(&self) -> &'static str;

    /// Checks every field against the input it will see and returns all problems at once.
    fn validate(&self, input: InputShape, classes: usize) -> Vec<ModelError>;

    /// How many times wider it is than the thinnest of its kind.
    fn widen_factor(&self) -> usize;

    /// Makes it the thinnest of its kind, all layers kept.
    fn make_quick(&mut self);

    /// How many numbers it holds, for classes of such images.
    fn footprint(&self, input: InputShape, classes: usize) -> Footprint;

    /// How many experts each routed layer has; `None` without experts.
    fn experts(&self) -> Option<usize> {
        None
    }

    /// Whether it has a batch normalization; a transformer has none.
    fn has_batch_norm(&self) -> bool {
        true
    }

    /// What it lets experts choose from; `None` where experts choose no patches.
    fn expert_choice(&self) -> Option<&dyn ExpertChoiceConfig> {
        None
    }

    /// The parts it has that ever learn, from the images to the head.
    fn learning_parts(&self) -> &'static [Part] {
        &[Part::Trunk, Part::Head]
    }

    /// The patch-level mixture of experts most like it: itself, or one with its widths and constants.
    fn nearest_patch_moe(&self) -> PatchMoeConfig;

    /// The same with every default written out, and with defaults for what matters only before and in training: initial
    /// weights and the share of a batch in running statistics. Networks of equal structure compute the same with the
    /// same weights.
    fn structure(&self) -> ClassifierConfig;
}

/// A network in which each expert chooses patches of a feature map.
pub trait ExpertChoiceConfig {
    /// Number of experts.
    fn experts(&self) -> usize;

    /// How many patches each expert keeps.
    fn patches_per_expert(&self) -> usize;

    /// Rows and columns of patches that each expert chooses from; patches are numbered row by row.
    fn patch_grid(&self, input: InputShape) -> (usize, usize);

    /// Rows and columns of pixels that a patch's score depends on, cut off at the edges of the image; `row` and `column`
    /// count patches.
    fn receptive_field(&self, input: InputShape, row: usize, column: usize) -> (Range<usize>, Range<usize>);

    /// Whether the softmax runs over all patches or over the selected ones.
    fn gate_order(&self) -> GateOrder;

    /// The patches that an expert passes over whatever they score, in rising order.
    fn blocked_patches(&self, expert: usize) -> &[u16];

    /// How many patches more an expert could pass over and still take as many as it does.
    fn spare_patches(&self, input: InputShape, expert: usize) -> usize {
        let (rows, columns) = self.patch_grid(input);
        (rows * columns).saturating_sub(self.patches_per_expert() + self.blocked_patches(expert).len())
    }
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
pub(crate) fn invalid(field: &'static str, found: impl ToString, allowed: impl Into<String>) -> ModelError {
    ModelError::InvalidField { field, found: found.to_string(), allowed: allowed.into() }
}

pub(crate) fn validate_trunk(
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
