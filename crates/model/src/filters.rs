use std::ops::Range;

use burn::module::{ModuleMapper, Param};
use burn::tensor::{Tensor, TensorData, backend::Backend};
use patchdoor_kernels::Kernels;
use serde::{Deserialize, Serialize};

use crate::network::FilterLayer;
use crate::{Classifier, Tapped};

/// The filters of one convolution before the head.
///
/// Filters are numbered as the head sees them: of a mixture of experts, expert by expert; of the dense baseline, those
/// of its last convolution, `group3.conv2`, to whose outputs a shortcut is added before the last normalization.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterGroup {
    /// Path of the convolution, such as `experts.0.conv`.
    pub path: String,
    /// Number of its first filter.
    pub first: usize,
    /// How many filters it has.
    pub count: usize,
}

/// What the last filters before the head make of some images, in inference mode on an inner backend.
#[derive(Clone, Debug)]
pub struct FilterActivity<B: Backend> {
    /// Raw outputs of the filters, before normalization and rectifier, `[batch, row, column, filter]`; of gathered
    /// experts, `[batch, patches_per_expert, patch position, filter]`.
    pub outputs: Tensor<B, 4>,
    /// What the head sees: normalized, rectified and averaged over positions, `[batch, filter]`.
    pub features: Tensor<B, 2>,
}

/// How a filter is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Removal {
    /// Its weights and its bias become zero, as in the code of Chan et al. (2025, arXiv:2505.01811). The normalization
    /// that follows turns the zero into the constant relu(beta - gamma mean / sd), which still reaches the head: the filter is
    /// not switched off, and one of low mean output gets a large constant.
    Weights,
    /// Its output is masked after the normalization and the rectifier, as Liu et al. (2018, arXiv:1805.12185) do it: scale and
    /// shift of its channel become zero, and so does its feature, for every image. Its weights stay. Of the dense baseline this
    /// silences the shortcut's share of the channel too.
    Activation,
    /// Its column of the head becomes zero too, so that nothing of it reaches a class.
    Channel,
}

impl Removal {
    /// Whether it is by weights, what Chan et al. (2025, arXiv:2505.01811) do.
    pub fn is_weights(&self) -> bool {
        *self == Self::Weights
    }

    /// Whether it is by weights and column of the head.
    pub fn is_channel(&self) -> bool {
        *self == Self::Channel
    }
}

/// Filters that are taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pruning {
    /// One entry for each filter, true where it is taken away.
    pub pruned: Vec<bool>,
    /// How it is taken away.
    pub removal: Removal,
}

impl Pruning {
    /// Takes away the filters with these numbers, of `count`.
    ///
    /// # Panics
    /// If there is no filter of such a number.
    pub fn of(filters: &[usize], count: usize, removal: Removal) -> Self {
        let mut pruned = vec![false; count];
        for &filter in filters {
            pruned[filter] = true;
        }
        Self { pruned, removal }
    }

    /// One for filters that stay and zero for others, `[filter]`.
    fn keep<B: Backend>(&self, filters: Range<usize>, device: &B::Device) -> Tensor<B, 1> {
        let kept: Vec<_> = self.pruned[filters].iter().map(|&pruned| f32::from(u8::from(!pruned))).collect();
        let count = kept.len();
        Tensor::from_data(TensorData::new(kept, [count]), device)
    }
}

impl<B: Backend> Classifier<B> {
    /// The filters before the head, layer by layer.
    pub fn filter_groups(&self) -> Vec<FilterGroup> {
        let mut first = 0;
        let numbered = self.network().filters().into_iter().map(|FilterLayer { path, count }| {
            first += count;
            FilterGroup { path, first: first - count, count }
        });
        numbered.collect()
    }

    /// Takes filters away: exactly zero are, as the removal says, weights, biases and columns of the head, or scale and shift of
    /// the last normalization; all else stays.
    ///
    /// # Panics
    /// If `pruning` is not for as many filters as there are.
    #[must_use]
    pub fn prune(self, pruning: &Pruning) -> Self {
        let groups = self.filter_groups();
        let count = groups.iter().map(|group| group.count).sum::<usize>();
        assert_eq!(pruning.pruned.len(), count, "a pruning has one entry for each filter");
        self.map_network(&mut Pruner { path: Vec::new(), pruning, groups })
    }
}

impl<B: Kernels> Classifier<B> {
    /// Returns what the last filters before the head answer to images.
    ///
    /// # Shapes
    /// - images: `[batch, height, width, channel]`, pixels in [0, 1]
    pub fn filter_activity(&self, images: Tensor<B, 4>) -> FilterActivity<B> {
        let (_, mut taps) = self.forward_with_taps(images, &["filters", "features"]);
        match (taps.remove("filters"), taps.remove("features")) {
            (Some(Tapped::Map(outputs)), Some(Tapped::Features(features))) => FilterActivity { outputs, features },
            _ => unreachable!("both were asked for"),
        }
    }
}

/// Makes the parameters of pruned filters zero, or of what follows them.
struct Pruner<'a> {
    path: Vec<String>,
    pruning: &'a Pruning,
    groups: Vec<FilterGroup>,
}

impl<B: Backend> ModuleMapper<B> for Pruner<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let path = self.path.join(".");
        let Some((layer, parameter)) = path.rsplit_once('.') else { return param };
        let mut shape = [1; D];
        let all = 0..self.pruning.pruned.len();
        let masks = self.pruning.removal == Removal::Activation;
        let filters = if masks {
            if layer != "norm" || !["gamma", "beta"].contains(&parameter) {
                return param;
            }
            // Scale and shift of the last normalization, whose channels are the filters.
            shape[0] = all.len();
            all
        } else if let Some(group) = self.groups.iter().find(|group| group.path == layer) {
            // Weights and biases have the filter as their first axis.
            shape[0] = group.count;
            group.first..group.first + group.count
        } else if (layer, parameter) == ("head", "weight") && self.pruning.removal == Removal::Channel {
            shape[D - 1] = all.len();
            all
        } else {
            return param;
        };
        let keep = self.pruning.keep(filters, &param.device());
        multiply(param, keep.reshape(shape))
    }
}

/// Multiplies a parameter outside of any gradient; by ones and zeros this is exact.
fn multiply<B: Backend, const D: usize>(param: Param<Tensor<B, D>>, factor: Tensor<B, D>) -> Param<Tensor<B, D>> {
    param.map(|value| {
        let learns = value.is_require_grad();
        // A product is no leaf, and only a leaf can learn.
        (value.detach() * factor).detach().set_require_grad(learns)
    })
}
