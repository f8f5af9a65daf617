use burn::tensor::{IndexingUpdateOp, Int, Tensor, backend::Backend};

/// How the patches and the experts of one layer met.
#[derive(Clone, Debug)]
pub enum Routing<B: Backend> {
    /// Each expert picked patches.
    ExpertChoice(ExpertChoice<B>),
    /// Each patch picked experts.
    TokenChoice(TokenChoice<B>),
    /// Every expert saw mixtures of all patches.
    SoftDispatch(SoftDispatch<B>),
}

/// Each expert picks the patches it scores highest (Chowdhury et al. 2023, arXiv:2306.04073).
///
/// An image's patches may go to several experts or to none.
#[derive(Clone, Debug)]
pub struct ExpertChoice<B: Backend> {
    /// Weight of every patch for every expert, `[batch, expert, patch]`, in [0, 1]; zero where not selected. Patches are
    /// numbered row by row. An expert's weights sum to one, or to less where the softmax ran over all patches before the
    /// selection.
    pub weights: Tensor<B, 3>,
    /// Selected patches in rising order, `[batch, expert, patches_per_expert]`.
    pub indices: Tensor<B, 3, Int>,
}

/// Each patch picks the experts that score it highest (V-MoE: Riquelme et al. 2021, arXiv:2106.05974).
#[derive(Clone, Debug)]
pub struct TokenChoice<B: Backend> {
    /// Number of experts to choose from.
    pub experts: usize,
    /// The experts of every patch, best first, `[batch, patch, experts_per_patch]`; no patch has one twice.
    pub indices: Tensor<B, 3, Int>,
    /// Their weights, `[batch, patch, experts_per_patch]`, in [0, 1]. A patch's weights sum to at most one: to less where
    /// the softmax ran over all experts before the selection, or where an expert beyond its capacity dropped the patch,
    /// whose weight there is zero.
    pub weights: Tensor<B, 3>,
}

/// Every expert works on slots, each a mixture of all patches, and every patch takes a mixture of all slots back (Soft `MoE`:
/// Puigcerver et al. 2023, arXiv:2308.00951, section 2.1).
#[derive(Clone, Debug)]
pub struct SoftDispatch<B: Backend> {
    /// What each slot is mixed from, `[batch, patch, expert, slot]`: a slot's weights sum to one over the patches.
    pub dispatch: Tensor<B, 4>,
    /// What each patch takes back, `[batch, patch, expert, slot]`: a patch's weights sum to one over experts and slots.
    pub combine: Tensor<B, 4>,
}

impl<B: Backend> Routing<B> {
    /// The routings of a batch from those of its parts, each with one for each routed layer.
    ///
    /// # Panics
    /// If there is no part, or layers are routed otherwise in one part than in another.
    pub(crate) fn joined(parts: Vec<Vec<Self>>) -> Vec<Self> {
        let mut layers: Vec<Vec<Self>> = Vec::new();
        for part in parts {
            layers.resize_with(part.len(), Vec::new);
            for (layer, routing) in layers.iter_mut().zip(part) {
                layer.push(routing);
            }
        }
        layers.into_iter().map(Self::joined_layer).collect()
    }

    fn joined_layer(parts: Vec<Self>) -> Self {
        const ALIKE: &str = "all parts of a batch are routed alike";
        match &parts[0] {
            Self::ExpertChoice(_) => {
                let choices = parts.into_iter().map(|part| match part {
                    Self::ExpertChoice(ExpertChoice { weights, indices }) => (weights, indices),
                    Self::TokenChoice(_) | Self::SoftDispatch(_) => panic!("{ALIKE}"),
                });
                let (weights, indices) = choices.unzip();
                Self::ExpertChoice(ExpertChoice { weights: Tensor::cat(weights, 0), indices: Tensor::cat(indices, 0) })
            }
            &Self::TokenChoice(TokenChoice { experts, .. }) => {
                let choices = parts.into_iter().map(|part| match part {
                    Self::TokenChoice(TokenChoice { indices, weights, .. }) => (indices, weights),
                    Self::ExpertChoice(_) | Self::SoftDispatch(_) => panic!("{ALIKE}"),
                });
                let (indices, weights) = choices.unzip();
                let (indices, weights) = (Tensor::cat(indices, 0), Tensor::cat(weights, 0));
                Self::TokenChoice(TokenChoice { experts, indices, weights })
            }
            Self::SoftDispatch(_) => {
                let mixtures = parts.into_iter().map(|part| match part {
                    Self::SoftDispatch(SoftDispatch { dispatch, combine }) => (dispatch, combine),
                    Self::ExpertChoice(_) | Self::TokenChoice(_) => panic!("{ALIKE}"),
                });
                let (dispatch, combine) = mixtures.unzip();
                Self::SoftDispatch(SoftDispatch {
                    dispatch: Tensor::cat(dispatch, 0),
                    combine: Tensor::cat(combine, 0),
                })
            }
        }
    }

    /// The patches that experts picked; `None` if they picked none.
    pub fn expert_choice(&self) -> Option<&ExpertChoice<B>> {
        match self {
            Self::ExpertChoice(choice) => Some(choice),
            Self::TokenChoice(_) | Self::SoftDispatch(_) => None,
        }
    }

    /// How strongly every patch hears every expert, `[batch, expert, patch]`, whatever the form: the gate of a selected pair,
    /// zero for others, and of soft dispatch the sum of a patch's combine weights over the expert's slots.
    ///
    /// Summed over patches this is an expert's importance (Riquelme et al. 2021, arXiv:2106.05974, appendix A).
    pub fn weights(&self) -> Tensor<B, 3> {
        match self {
            Self::ExpertChoice(choice) => choice.weights.clone(),
            Self::TokenChoice(choice) => choice.dense_weights(),
            Self::SoftDispatch(soft) => soft.combine.clone().sum_dim(3).squeeze_dim::<3>(3).swap_dims(1, 2),
        }
    }
}

impl<B: Backend> TokenChoice<B> {
    /// `[batch, expert, patch]`, zero where not selected.
    fn dense_weights(&self) -> Tensor<B, 3> {
        let [batch, patches, _] = self.weights.dims();
        let zeros = Tensor::zeros([batch, patches, self.experts], (&self.weights.device(), self.weights.dtype()));
        let scattered = zeros.scatter(2, self.indices.clone(), self.weights.clone(), IndexingUpdateOp::Add);
        scattered.swap_dims(1, 2)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use burn::tensor::activation::softmax;
    use burn_flex::{Flex, FlexDevice};
    use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

    use super::*;
    use crate::{GateOrder, PatchRouter};

    const BATCH: usize = 2;
    const PATCHES: usize = 6;
    const EXPERTS: usize = 4;

    fn values<const D: usize>(tensor: Tensor<Flex, D>) -> Vec<f32> {
        tensor.into_data().into_vec().expect("f32")
    }

    fn uniform<const D: usize>(shape: [usize; D], seed: u64) -> Tensor<Flex, D> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let drawn: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-2.0..2.0)).collect();
        Tensor::from_data(TensorData::new(drawn, shape), &FlexDevice)
    }

    /// Sums of 24 weights in single precision err by less than 24 * 6e-8.
    fn assert_ones(sums: &[f32]) {
        assert!(!sums.is_empty() && sums.iter().all(|sum| (sum - 1.0).abs() < 2e-6), "{sums:?}");
    }

    #[test]
    fn expert_choice_keeps_its_best_patches_and_an_experts_weights_sum_to_one() {
        let router = |order| PatchRouter::with_kernels(uniform([EXPERTS, 3, 1, 1], 0), 2, order);
        let patches = uniform([BATCH, PATCHES, 3], 1);
        let routing = Routing::ExpertChoice(router(GateOrder::SelectThenSoftmax).route(patches.clone()));
        let choice = routing.expert_choice().expect("it is one");
        assert_eq!(choice.weights.dims(), [BATCH, EXPERTS, PATCHES]);
        assert_eq!(choice.indices.dims(), [BATCH, EXPERTS, 2]);
        assert_ones(&values(routing.weights().sum_dim(2)));
        // Exactly the selected patches have weights.
        let indices: Vec<i64> = choice.indices.to_data().iter::<i64>().collect();
        for (selected, weights) in indices.chunks(2).zip(values(choice.weights.clone()).chunks(PATCHES)) {
            let weighed: Vec<i64> = (0..PATCHES as i64).filter(|&patch| weights[patch as usize] > 0.0).collect();
            assert_eq!(weighed, selected);
        }
        let early = router(GateOrder::SoftmaxThenSelect).route(patches).weights;
        assert!(values(early.sum_dim(2)).iter().all(|&sum| 0.0 < sum && sum < 1.0));
    }

    #[test]
    fn token_choice_gives_each_patch_its_experts_and_their_weights() {
        // Patch 0 takes experts 2 and 0, patch 1 experts 1 and 3, of which the second dropped it.
        let indices = Tensor::from_data(TensorData::new(vec![2i64, 0, 1, 3], [1, 2, 2]), &FlexDevice);
        let weights = Tensor::from_data(TensorData::new(vec![0.75f32, 0.25, 0.5, 0.0], [1, 2, 2]), &FlexDevice);
        let routing = Routing::<Flex>::TokenChoice(TokenChoice { experts: EXPERTS, indices, weights });
        assert!(routing.expert_choice().is_none());
        let dense = routing.weights();
        assert_eq!(dense.dims(), [1, EXPERTS, 2]);
        assert_eq!(values(dense.clone()), [0.25, 0.0, 0.0, 0.5, 0.75, 0.0, 0.0, 0.0]);
        assert_eq!(values(dense.sum_dim(1)), [1.0, 0.5]);
    }

    #[test]
    fn soft_dispatch_mixes_slots_from_patches_and_patches_from_slots() {
        let slots = 3;
        let scores = uniform([BATCH, PATCHES, EXPERTS * slots], 2);
        let shape = [BATCH, PATCHES, EXPERTS, slots];
        let soft = SoftDispatch {
            dispatch: softmax(scores.clone(), 1).reshape(shape),
            combine: softmax(scores, 2).reshape(shape),
        };
        assert_ones(&values(soft.dispatch.clone().sum_dim(1)));
        assert_ones(&values(soft.combine.clone().sum_dim(3).sum_dim(2)));
        let expected = values(soft.combine.clone());
        let routing = Routing::SoftDispatch(soft);
        assert!(routing.expert_choice().is_none());
        let weights = routing.weights();
        assert_eq!(weights.dims(), [BATCH, EXPERTS, PATCHES]);
        assert_ones(&values(weights.clone().sum_dim(1)));
        // Expert 1 and patch 4 of image 1: slots 1 * 3 to 1 * 3 + 3 of the row 1 * 6 + 4 of 12.
        let sum: f32 = expected[(6 + 4) * 12 + 3..][..3].iter().sum();
        assert!((values(weights)[(4 + 1) * 6 + 4] - sum).abs() < 1e-6);
    }
}
