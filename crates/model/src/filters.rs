use burn::module::Param;
use burn::tensor::{Tensor, TensorData, backend::Backend};
use patchdoor_kernels::{Kernels, add, average_positions};

use crate::Classifier;
use crate::convolution::Convolution;
use crate::dense::Dense;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Its weights and its bias become zero, as in the code of Chan et al. (2025, arXiv:2505.01811). The normalization
    /// that follows turns the zero into a constant, which still reaches the head.
    Weights,
    /// Its column of the head becomes zero too, so that nothing of it reaches a class.
    Channel,
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

    fn keep<B: Backend>(&self, group: &FilterGroup, device: &B::Device) -> Tensor<B, 1> {
        let kept =
            self.pruned[group.first..group.first + group.count].iter().map(|&pruned| f32::from(u8::from(!pruned)));
        Tensor::from_data(TensorData::new(kept.collect::<Vec<_>>(), [group.count]), device)
    }
}

impl<B: Backend> Classifier<B> {
    /// The filters before the head, convolution by convolution.
    pub fn filter_groups(&self) -> Vec<FilterGroup> {
        let groups: Vec<_> = match self {
            Self::PatchMoe(network) => {
                let experts = network.experts.iter().enumerate();
                experts.map(|(e, expert)| (format!("experts.{e}.conv"), &expert.conv)).collect()
            }
            Self::WideResnet(network) => vec![("group3.conv2".to_owned(), &network.group3.conv2)],
        };
        let mut first = 0;
        let numbered = groups.into_iter().map(|(path, convolution)| {
            let count = convolution.bias.dims()[0];
            first += count;
            FilterGroup { path, first: first - count, count }
        });
        numbered.collect()
    }

    /// Takes filters away: exactly zero weights, biases and, where asked for, columns of the head; all else stays.
    ///
    /// # Panics
    /// If `pruning` is not for as many filters as there are.
    #[must_use]
    pub fn prune(self, pruning: &Pruning) -> Self {
        let groups = self.filter_groups();
        let count = groups.iter().map(|group| group.count).sum::<usize>();
        assert_eq!(pruning.pruned.len(), count, "a pruning has one entry for each filter");
        let whole = FilterGroup { path: String::new(), first: 0, count };
        match self {
            Self::PatchMoe(mut network) => {
                let device = network.head.bias.device();
                let experts = network.experts.into_iter().zip(&groups);
                network.experts = experts
                    .map(|(mut expert, group)| {
                        expert.conv = keep_filters(expert.conv, &pruning.keep(group, &device));
                        expert
                    })
                    .collect();
                if pruning.removal == Removal::Channel {
                    network.head = keep_columns(network.head, &pruning.keep(&whole, &device));
                }
                Self::PatchMoe(network)
            }
            Self::WideResnet(mut network) => {
                let keep = pruning.keep(&whole, &network.head.bias.device());
                network.group3.conv2 = keep_filters(network.group3.conv2, &keep);
                if pruning.removal == Removal::Channel {
                    network.head = keep_columns(network.head, &keep);
                }
                Self::WideResnet(network)
            }
        }
    }
}

impl<B: Kernels> Classifier<B> {
    /// Returns what the last filters before the head answer to images.
    ///
    /// # Shapes
    /// - images: `[batch, height, width, channel]`, pixels in [0, 1]
    pub fn filter_activity(&self, images: Tensor<B, 4>) -> FilterActivity<B> {
        let (outputs, normalized) = match self {
            Self::PatchMoe(network) => {
                let (outputs, _) = network.expert_outputs(network.map_of(images));
                (outputs.clone(), network.norm.forward(outputs))
            }
            Self::WideResnet(network) => {
                let x = network.trunk.forward(images);
                let outputs = network.group3.branch(x.clone());
                let sum = add(outputs.clone(), network.group3.shortcut.forward(x));
                (outputs, network.norm.forward(sum))
            }
        };
        FilterActivity { outputs, features: average_positions(normalized) }
    }
}

fn keep_filters<B: Backend>(mut convolution: Convolution<B>, keep: &Tensor<B, 1>) -> Convolution<B> {
    let filters = keep.dims()[0];
    convolution.weight = multiply(convolution.weight, keep.clone().reshape([filters, 1, 1, 1]));
    convolution.bias = multiply(convolution.bias, keep.clone());
    convolution
}

fn keep_columns<B: Backend>(mut head: Dense<B>, keep: &Tensor<B, 1>) -> Dense<B> {
    head.weight = multiply(head.weight, keep.clone().unsqueeze());
    head
}

/// Multiplies a parameter outside of any gradient; by ones and zeros this is exact.
fn multiply<B: Backend, const D: usize>(param: Param<Tensor<B, D>>, factor: Tensor<B, D>) -> Param<Tensor<B, D>> {
    param.map(|value| {
        let learns = value.is_require_grad();
        // A product is no leaf, and only a leaf can learn.
        (value.detach() * factor).detach().set_require_grad(learns)
    })
}
