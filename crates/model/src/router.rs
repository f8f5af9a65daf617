use burn::module::{Module, Param};
use burn::tensor::activation::softmax;
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use patchdoor_kernels::{ConvOptions, Kernels, choose_patches, dense, grouped_conv2d, join};
use rand::Rng;

use crate::init::ParameterSource;
use crate::routing::ExpertChoice;
use crate::{GateOrder, PatchMoeConfig};

/// Sends to each expert the patches it scores highest.
///
/// Expert `e` scores patch `x` as `w_e · x` and keeps its `patches_per_expert` best (Chowdhury et al.
/// 2023, arXiv:2306.04073). Ties go to the lower patch index. There is no capacity, no noise and no
/// balancing loss; an image's patches may go to several experts or to none.
#[derive(Module, Debug)]
pub struct PatchRouter<B: Backend> {
    /// One kernel per expert, `[expert, channel, row, column]`.
    pub(crate) weight: Param<Tensor<B, 4>>,
    patches_per_expert: usize,
    #[module(skip)]
    order: GateOrder,
    /// The patches that each expert passes over; no lists if none passes over any.
    #[module(skip)]
    pub(crate) blocked: Vec<Vec<u16>>,
}

/// What is added to the score of a patch that is passed over.
const PASSED_OVER: f32 = -1e30;

impl<B: Backend> PatchRouter<B> {
    pub(crate) fn new<R: Rng>(source: &mut ParameterSource<'_, R, B>, config: &PatchMoeConfig) -> Self {
        let side = config.patch_size;
        let shape = [config.experts, config.resolved_patch_channels(), side, side];
        Self {
            weight: source.normal(config.gate_init_std, shape).set_require_grad(config.routers.are_trained()),
            patches_per_expert: config.patches_per_expert,
            order: config.gate_order,
            blocked: config.blocked_patches.clone(),
        }
    }

    /// The same router, whose experts all pass over these patches too.
    pub(crate) fn passing_over(&self, patches: &[u16]) -> Self {
        let mut router = self.clone();
        router.blocked.resize(self.weight.dims()[0], Vec::new());
        for blocked in &mut router.blocked {
            blocked.extend(patches);
        }
        router
    }

    /// A router with given kernels, `[expert, channel, row, column]`.
    #[cfg(test)]
    pub(crate) fn with_kernels(kernels: Tensor<B, 4>, patches_per_expert: usize, order: GateOrder) -> Self {
        let id = burn::module::ParamId::new();
        Self { weight: Param::initialized(id, kernels), patches_per_expert, order, blocked: Vec::new() }
    }

    /// Scores all patches and selects each expert's best.
    ///
    /// # Shapes
    /// - patches: `[batch, patch, row * column * channel]`, the pixels of a patch row by row
    pub fn route(&self, patches: Tensor<B, 3>) -> ExpertChoice<B>
    where
        B: Kernels,
    {
        let scores = self.scores(patches);
        if B::ON_DEVICE {
            let softmax_first = self.order == GateOrder::SoftmaxThenSelect;
            let (weights, indices) = choose_patches(scores, self.patches_per_expert, softmax_first);
            return ExpertChoice { weights, indices };
        }
        let selection = Selection::best(&scores, self.patches_per_expert);
        self.weigh(scores, selection)
    }

    /// Routes for several networks side by side, each by its own patches; the experts stand member by member.
    ///
    /// # Shapes
    /// - patches: `[batch, patch, member * row * column * channel]`
    pub(crate) fn route_members(members: &[&Self], patches: Tensor<B, 3>) -> ExpertChoice<B>
    where
        B: Kernels,
    {
        if B::ON_DEVICE {
            let softmax_first = members[0].order == GateOrder::SoftmaxThenSelect;
            let scores = Self::scores_on_device(members, patches);
            let (weights, indices) = choose_patches(scores, members[0].patches_per_expert, softmax_first);
            return ExpertChoice { weights, indices };
        }
        let length = patches.dims()[2] / members.len();
        let choices = members.iter().enumerate().map(|(member, router)| {
            let ExpertChoice { weights, indices } = router.route(patches.clone().narrow(2, member * length, length));
            (weights, indices)
        });
        let (weights, indices) = choices.unzip();
        ExpertChoice { weights: Tensor::cat(weights, 1), indices: Tensor::cat(indices, 1) }
    }

    /// The kernels as they meet a patch's pixels, `[expert, row * column * channel]`.
    fn kernels(&self) -> Tensor<B, 2> {
        let [experts, channels, rows, columns] = self.weight.dims();
        self.weight.val().permute([0, 2, 3, 1]).reshape([experts, rows * columns * channels])
    }

    /// Like [`Self::scores`], of several networks side by side: `[batch, member * expert, patch]`.
    fn scores_on_device(members: &[&Self], patches: Tensor<B, 3>) -> Tensor<B, 3>
    where
        B: Kernels,
    {
        let [batch, count, wide] = patches.dims();
        let kernels = join(members.iter().map(|router| router.kernels()).collect());
        let [experts, length] = kernels.dims();
        let biases = Tensor::zeros([experts], &patches.device());
        let (patches, kernels) = (patches.reshape([batch, count, 1, wide]), kernels.reshape([experts, length, 1, 1]));
        let scores = grouped_conv2d(patches, kernels, biases, members.len(), ConvOptions::symmetric([1, 1], 1));
        // Burn 0.21 gives wrong strides to a tensor that is reshaped after an axis of one was moved, as the gradient would be.
        let scores = match experts {
            1 => scores.reshape([batch, 1, count]),
            _ => scores.reshape([batch, count, experts]).swap_dims(1, 2),
        };
        Self::pass_over(members, scores)
    }

    /// The scores with those of blocked patches far below all others.
    ///
    /// # Shapes
    /// - scores and output: `[batch, member * expert, patch]`
    fn pass_over(members: &[&Self], scores: Tensor<B, 3>) -> Tensor<B, 3> {
        // Networks of one structure pass over the same patches.
        let blocked = &members[0].blocked;
        if blocked.iter().all(Vec::is_empty) {
            return scores;
        }
        let [_, experts, patches] = scores.dims();
        let mut added = vec![0.0f32; experts / members.len() * patches];
        for (expert, blocked) in blocked.iter().enumerate() {
            for &patch in blocked {
                added[expert * patches + usize::from(patch)] = PASSED_OVER;
            }
        }
        let added = TensorData::new(added.repeat(members.len()), [1, experts, patches]);
        let added = Tensor::from_data(added, (&scores.device(), scores.dtype()));
        scores + added
    }

    /// How much each expert wants each patch, `[batch, expert, patch]`; shapes as in [`Self::route`].
    pub(crate) fn scores(&self, patches: Tensor<B, 3>) -> Tensor<B, 3>
    where
        B: Kernels,
    {
        if B::ON_DEVICE {
            return Self::scores_on_device(&[self], patches);
        }
        let [batch, count, length] = patches.dims();
        let experts = self.weight.dims()[0];
        let (device, dtype) = (patches.device(), patches.dtype());
        let (patches, kernels) = (patches.reshape([batch * count, length]), self.kernels());
        let scores = if B::ad_enabled(&device) {
            patches.matmul(kernels.transpose())
        } else {
            // Selections must not depend on the batch.
            dense(patches, kernels, Tensor::zeros([experts], (&device, dtype)))
        };
        Self::pass_over(&[self], scores.reshape([batch, count, experts]).swap_dims(1, 2))
    }

    /// Weighs the selected patches by their scores, `[batch, expert, patch]`.
    pub(crate) fn weigh(&self, scores: Tensor<B, 3>, selection: Selection) -> ExpertChoice<B> {
        let device = scores.device();
        let weights = match self.order {
            GateOrder::SoftmaxThenSelect => {
                let kept = Tensor::from_data(selection.kept, (&device, scores.dtype()));
                softmax(scores, 2) * kept
            }
            GateOrder::SelectThenSoftmax => {
                let dropped = Tensor::<B, 3>::from_data(selection.kept, &device).equal_elem(0.0);
                softmax(scores.mask_fill(dropped, f32::MIN), 2)
            }
        };
        ExpertChoice { weights, indices: Tensor::from_data(selection.indices, &device) }
    }
}

/// The selected patches as host data, chosen on the host because backends disagree about ties.
pub(crate) struct Selection {
    /// `[batch, expert, patches_per_expert]`, rising.
    pub(crate) indices: TensorData,
    /// `[batch, expert, patch]`, one where selected, else zero.
    kept: TensorData,
}

impl Selection {
    pub(crate) fn best<B: Backend>(scores: &Tensor<B, 3>, selected: usize) -> Self {
        let [batch, experts, count] = scores.dims();
        let scores = scores.clone().detach().into_data().convert::<f64>();
        let scores = scores.as_slice::<f64>().expect("converted to f64");
        let mut indices = Vec::with_capacity(batch * experts * selected);
        let mut order: Vec<i32> = Vec::with_capacity(count);
        for row in scores.chunks_exact(count) {
            order.clear();
            order.extend(0..count as i32);
            let best_first = |&a: &i32, &b: &i32| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b));
            if selected < count {
                order.select_nth_unstable_by(selected - 1, best_first);
            }
            let best = &mut order[..selected];
            best.sort_unstable();
            indices.extend_from_slice(best);
        }
        Self::of(indices, [batch, experts, selected], count)
    }

    /// What another pass selected of `count` patches.
    pub(crate) fn of_indices<B: Backend>(indices: &Tensor<B, 3, Int>, count: usize) -> Self {
        let shape = indices.dims();
        let indices = indices.to_data().convert::<i32>().into_vec().expect("converted to i32");
        Self::of(indices, shape, count)
    }

    /// These patches of `count`, `[batch, expert, patches_per_expert]`.
    pub(crate) fn of(indices: Vec<i32>, [batch, experts, selected]: [usize; 3], count: usize) -> Self {
        let mut kept = vec![0.0f32; batch * experts * count];
        for (best, kept) in indices.chunks_exact(selected).zip(kept.chunks_exact_mut(count)) {
            for &index in best {
                kept[index as usize] = 1.0;
            }
        }
        Self {
            indices: TensorData::new(indices, [batch, experts, selected]),
            kept: TensorData::new(kept, [batch, experts, count]),
        }
    }
}
