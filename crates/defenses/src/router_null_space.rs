use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Tensor, TensorData};
use patchdoor_data::ImageSet;
use patchdoor_kernels::{Kernels, TrainingBackend, differentiate};
use patchdoor_model::{Classifier, Part};
use patchdoor_train::{Batch, BatchPass, Objective, Trainable, TrainingConfig, cross_entropy, image_batches};
use serde::{Deserialize, Serialize};

use burn::module::AutodiffModule;

use crate::defense::has_training_table;
use crate::error::{check_count, check_share};
use crate::filter_scores::scored_images;
use crate::principal::eigen;
use crate::tuning::{tune_on, validate_own_training};
use crate::{DefendedClassifier, Defense, DefenseError, ModelRepair, Need, RepairWork, Repaired};

/// Images whose patches are looked at together; what is measured does not depend on it but for rounding.
const BATCH: usize = 256;

/// Fine-tunes, and lets the routers change only across the directions of clean patches.
///
/// After GRIP (2026, arXiv:2601.16905), which keeps the routing of a language model so while it unlearns; for experts that
/// choose patches the form is ours. The directions are the eigenvectors of the matrix of inner products of all clean patches'
/// features, uncentred, largest first, until they hold `energy` of its trace. After every step the change of each gate's kernel
/// since the beginning loses what lies in their span. With the trunk frozen and `energy = 1`, every score of the defender's
/// clean patches stays what it was, and so do their selections, but for rounding: what the training then repairs, it repairs in
/// the experts, or in the routing of patches unlike the clean ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct RouterNullSpace {
    /// Share of the clean patches' energy that the closed directions hold, in (0, 1].
    pub energy: f64,
    /// How many of the defender's images the directions are taken from, at most.
    pub scored_images: usize,
    /// Whether the trunk learns too. Without it, clean patches score what they scored; with it, their features move, and what
    /// is kept is how the gates score features as they were.
    pub trunk: bool,
    /// How the defender's images are fitted.
    pub training: TrainingConfig,
}

impl Default for RouterNullSpace {
    /// 90 % of the energy, all parts, as any fine-tuning; five epochs with the optimiser of the training, as the fine-tuning of
    /// Chan et al. (2025, arXiv:2505.01811).
    fn default() -> Self {
        Self {
            energy: 0.9,
            scored_images: 10_000,
            trunk: true,
            training: TrainingConfig { epochs: 5, ..TrainingConfig::default() },
        }
    }
}

impl Defense for RouterNullSpace {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        problems.extend(check_share("energy", self.energy));
        problems.extend(check_count("scored-images", self.scored_images));
        problems.extend(validate_own_training(&self.training));
        problems
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Experts]
    }

    has_training_table!();
}

impl<B: TrainingBackend> ModelRepair<B> for RouterNullSpace {
    fn repair(
        &self,
        classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        if classifier.config().network().experts().is_none() {
            return Err(DefenseError::NoExperts { defense: "router-null-space" });
        }
        let images = scored_images(work.data.clean, self.scored_images, work.seed, "router-null-space")?;
        let side = classifier.config().network().nearest_patch_moe().patch_size.max(1);
        let axes = energy_axes(inner_products(&classifier.valid(), side, &images, device), self.energy);
        let router = classifier.tensors().remove(ROUTER).expect("a network with experts has a router");
        let experts = router.shape[0];
        let length = router.num_elements() / experts;
        let axes: Vec<f32> = axes.iter().flatten().map(|&value| value as f32).collect();
        let count = axes.len() / length;
        let mut objective = NullSpace::<B> {
            start: Tensor::<B::InnerBackend, 1>::from_data(
                TensorData::new(router.iter::<f32>().collect::<Vec<_>>(), [experts * length]),
                device,
            )
            .reshape([experts, length]),
            axes: Tensor::from_data(TensorData::new(axes, [count, length]), device),
        };
        let trainable =
            if self.trunk { Trainable::default() } else { Trainable::only(&[Part::Router, Part::Experts, Part::Head]) };
        let (classifier, history) =
            tune_on(Some(&mut objective), classifier, &self.training, &trainable, work, device)?;
        Ok(Repaired::tuned(classifier, history))
    }
}

/// Path of the gates' kernels, `[expert, channel, row, column]`.
const ROUTER: &str = "router.weight";

/// The inner products of the features of all clean patches, summed over patches: one row and column for each number of a
/// gate's kernel, channel by channel.
fn inner_products<B: Kernels>(
    classifier: &Classifier<B>,
    side: usize,
    images: &ImageSet,
    device: &B::Device,
) -> Vec<Vec<f64>> {
    let mut products: Vec<Vec<f64>> = Vec::new();
    for batch in image_batches::<B>(images, BATCH, device) {
        let (_, mut tapped) = classifier.forward_with_taps(batch, &["map"]);
        let map = tapped.remove("map").and_then(patchdoor_model::Tapped::map).expect("a mixture of experts has a map");
        let patches = as_rows(map, side);
        let length = patches.dims()[1];
        let of_batch = patches.clone().transpose().matmul(patches).into_data();
        products.resize(length, vec![0.0; length]);
        let values: Vec<f64> = of_batch.iter::<f64>().collect();
        for (sums, values) in products.iter_mut().zip(values.chunks_exact(length)) {
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
    }
    products
}

/// The patches of a map, `[patch, channel * row * column]`, as kernels are laid out.
fn as_rows<B: Kernels>(map: Tensor<B, 4>, side: usize) -> Tensor<B, 2> {
    let [batch, rows, columns, channels] = map.dims();
    if side == 1 {
        return map.reshape([batch * rows * columns, channels]);
    }
    let (down, across) = (rows / side, columns / side);
    let map = map.slice([0..batch, 0..down * side, 0..across * side, 0..channels]);
    let blocks = map.reshape([batch * down, side, across, side, channels]).permute([0, 2, 4, 1, 3]);
    blocks.reshape([batch * down * across, channels * side * side])
}

/// The eigenvectors of a matrix of inner products, largest first, until they hold a share of its trace; none of a matrix of
/// zeros.
fn energy_axes(products: Vec<Vec<f64>>, energy: f64) -> Vec<Vec<f64>> {
    let (values, vectors) = eigen(products);
    let total: f64 = values.iter().map(|value| value.max(0.0)).sum();
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    let mut held = 0.0;
    let mut axes = Vec::new();
    for index in order {
        // Rounding may keep the sum of all a little below the total.
        if total <= 0.0 || held >= energy * total || (values[index] <= 1e-12 * total) {
            break;
        }
        held += values[index];
        axes.push(vectors[index].clone());
    }
    axes
}

/// The cross-entropy, with gates that keep away from some directions.
struct NullSpace<B: AutodiffBackend> {
    /// The gates at the beginning, `[expert, channel * row * column]`.
    start: Tensor<B::InnerBackend, 2>,
    /// The closed directions, each of length one, `[direction, channel * row * column]`.
    axes: Tensor<B::InnerBackend, 2>,
}

impl<B: TrainingBackend> Objective<B> for NullSpace<B> {
    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        differentiate(|| {
            let logits = classifier.forward(batch.images);
            let loss = cross_entropy(logits.clone(), batch.labels);
            BatchPass::backward(classifier, &logits, &loss)
        })
    }

    fn stepped(&mut self, classifier: Classifier<B>) -> Classifier<B> {
        classifier.map(&mut Projection { path: Vec::new(), space: self })
    }
}

impl<B: AutodiffBackend> NullSpace<B> {
    /// The gates whose change since the beginning has nothing along the closed directions.
    fn projected(&self, gates: Tensor<B::InnerBackend, 2>) -> Tensor<B::InnerBackend, 2> {
        if self.axes.dims()[0] == 0 {
            return gates;
        }
        let change = gates - self.start.clone();
        let along = change.clone().matmul(self.axes.clone().transpose()).matmul(self.axes.clone());
        self.start.clone() + change - along
    }
}

/// Projects the gates and leaves all else.
struct Projection<'a, B: AutodiffBackend> {
    path: Vec<String>,
    space: &'a NullSpace<B>,
}

impl<B: AutodiffBackend> ModuleMapper<B> for Projection<'_, B> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if !self.path.join(".").ends_with(ROUTER) {
            return param;
        }
        let space = self.space;
        param.map(|gates| {
            let (shape, learns) = (gates.dims(), gates.is_require_grad());
            let rows = gates.inner().reshape(space.start.dims());
            let projected = Tensor::from_inner(space.projected(rows).reshape(shape));
            if learns { projected.require_grad() } else { projected }
        })
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use patchdoor_train::{BatchNormStatistics, OptimizerConfig, SgdConfig};

    use super::*;
    use crate::planted::planted;
    use crate::testing::{Learner, ascending_filters, bits, quick_training, repair_with, shapes};

    #[test]
    fn directions_are_closed_until_they_hold_the_energy() {
        // Energies 9 along (1, 0) and 1 along (0, 1).
        let products = || vec![vec![9.0, 0.0], vec![0.0, 1.0]];
        assert_eq!(energy_axes(products(), 0.9), [[1.0, 0.0]]);
        assert_eq!(energy_axes(products(), 0.91).len(), 2);
        assert_eq!(energy_axes(products(), 1.0).len(), 2);
        assert!(energy_axes(vec![vec![0.0; 2]; 2], 0.9).is_empty());
    }

    #[test]
    fn a_change_loses_what_lies_along_a_closed_direction() {
        let row = |values: [[f32; 2]; 1]| Tensor::<Flex, 2>::from_data(values, &FlexDevice);
        let space = NullSpace::<Learner> { start: row([[1.0, 1.0]]), axes: row([[0.6, 0.8]]) };
        // The change (2, 4) is 4.4 along (0.6, 0.8); (2, 4) - (2.64, 3.52) = (-0.64, 0.48).
        let projected = space.projected(row([[3.0, 5.0]])).into_data().to_vec::<f32>().expect("f32");
        assert!((projected[0] - 0.36).abs() < 1e-5 && (projected[1] - 1.48).abs() < 1e-5, "{projected:?}");
    }

    #[test]
    fn patches_lie_as_kernels_do() {
        // Two channels, c and 10 + c, on a 2x2 map that is one patch.
        let map = [0.0f32, 10.0, 1.0, 11.0, 2.0, 12.0, 3.0, 13.0];
        let map = Tensor::<Flex, 4>::from_data(TensorData::new(map.to_vec(), [1, 2, 2, 2]), &FlexDevice);
        let rows = as_rows(map, 2);
        assert_eq!(rows.dims(), [1, 8]);
        assert_eq!(rows.into_data().to_vec::<f32>().expect("f32"), [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0]);
    }

    #[test]
    fn with_all_directions_closed_clean_patches_score_as_before_and_the_trunk_keeps_every_bit() {
        let training = TrainingConfig { batch_norm_statistics: BatchNormStatistics::Running, ..quick_training() };
        let repaired = |energy| {
            let defense = RouterNullSpace { energy, trunk: false, training: training.clone(), ..Default::default() };
            repair_with(&defense, ascending_filters(), None).classifier
        };
        let scores = |classifier: &Classifier<Learner>| {
            let images = image_batches::<Flex>(&shapes(40), 40, &FlexDevice).next().expect("a batch");
            let scores = classifier.valid().forward_with_scores(images).expect("it routes").1;
            scores.into_data().to_vec::<f32>().expect("f32")
        };
        let farthest = |classifier: &Classifier<Learner>| {
            let pairs = scores(classifier).into_iter().zip(scores(&ascending_filters()));
            pairs.map(|(after, before)| (after - before).abs()).fold(0.0, f32::max)
        };
        let (closed, open) = (repaired(1.0), repaired(0.5));
        assert!(farthest(&closed) < 1e-3, "{}", farthest(&closed));
        assert!(farthest(&open) > 10.0 * farthest(&closed), "{}", farthest(&open));
        let before = bits(&ascending_filters());
        for (name, values) in bits(&open) {
            let learns = ["router", "experts", "norm", "head"].iter().any(|part| name.starts_with(part));
            assert!(learns || values == before[&name], "{name}");
        }
        assert_ne!(bits(&open)[ROUTER], before[ROUTER]);
    }

    #[test]
    fn a_planted_backdoor_is_weakened_and_the_accuracy_stays() {
        let training = TrainingConfig {
            epochs: 30,
            batch_size: 20,
            learning_rate: 0.05,
            optimizer: OptimizerConfig::Sgd(SgdConfig { momentum: 0.9, nesterov: false, weight_decay: 5e-4 }),
            batch_norm_statistics: BatchNormStatistics::Recomputed,
            ..TrainingConfig::default()
        };
        planted().assert_leaves(0.5, &RouterNullSpace { training, ..Default::default() });
    }

    #[test]
    fn behind_a_frozen_trunk_a_planted_backdoor_stays() {
        // A finding, not a wish: what is fitted already teaches experts and head nothing.
        let training = TrainingConfig { epochs: 5, batch_size: 20, learning_rate: 0.1, ..TrainingConfig::default() };
        let defense = RouterNullSpace { trunk: false, training, ..Default::default() };
        let repaired = planted().repair(&defense, planted().victim()).classifier;
        assert!(planted().attack_success(&repaired) > 0.9);
    }
}
