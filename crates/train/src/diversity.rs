use burn::tensor::activation::{relu, softmax};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use patchdoor_kernels::{TrainingBackend, differentiate};
use patchdoor_model::Classifier;
use serde::{Deserialize, Serialize};

use crate::{Batch, BatchPass, Objective, TrainError, cross_entropy};

/// How much experts are kept from choosing the same patches.
///
/// After `RGMoE` (Feng et al. 2025, arXiv:2510.15333), which keeps the experts of a network on graphs apart by a penalty on the cosine of
/// what two of them have learned, above a half; for experts that choose patches the form is ours. Added to the cross-entropy is
/// [`weight`](Self::weight) times the mean over images and pairs of experts of max(0, cosine - [`overlap`](Self::overlap)), the cosine of
/// the two experts' softmax over all patches. `RGMoE`'s term of mutual information is left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct DiversityConfig {
    /// What the penalty counts, a finite number of 0 or more.
    pub weight: f64,
    /// The cosine up to which nothing is paid, in [0, 1).
    pub overlap: f64,
}

impl Default for DiversityConfig {
    /// The authors' half; a weight of one is ours.
    fn default() -> Self {
        Self { weight: 1.0, overlap: 0.5 }
    }
}

impl DiversityConfig {
    /// Every field that cannot be, by its path below a table of training.
    pub(crate) fn validate(&self) -> Vec<TrainError> {
        let mut problems = Vec::new();
        let mut refuse = |field, found: f64, allowed: &str| {
            problems.push(TrainError::InvalidField { field, found: found.to_string(), allowed: allowed.into() });
        };
        if !(self.weight >= 0.0 && self.weight.is_finite()) {
            refuse("diversity.weight", self.weight, "a finite number of 0 or more");
        }
        if !(0.0..1.0).contains(&self.overlap) {
            refuse("diversity.overlap", self.overlap, "a number in [0, 1)");
        }
        problems
    }
}

/// The cross-entropy plus the penalty of a [`DiversityConfig`].
pub(crate) struct Diverse<'a>(pub(crate) &'a DiversityConfig);

impl<B: TrainingBackend> Objective<B> for Diverse<'_> {
    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        differentiate(|| {
            let seen = classifier.forward_with_scores(batch.images);
            let (logits, scores) = seen.expect("a training with this penalty is of experts that choose patches");
            let loss = cross_entropy(logits.clone(), batch.labels) + overlaps(scores, self.0.overlap) * self.0.weight;
            BatchPass::backward(classifier, &logits, &loss)
        })
    }
}

/// The mean over images and pairs of experts of what the cosine of their softmax over the patches exceeds `free` by; zero of one expert.
///
/// # Shapes
/// - scores: `[batch, expert, patch]`
/// - output: `[1]`
fn overlaps<B: Backend>(scores: Tensor<B, 3>, free: f64) -> Tensor<B, 1> {
    let [count, experts, _] = scores.dims();
    let gates = softmax(scores, 2);
    let lengths = gates.clone().powf_scalar(2.0).sum_dim(2).sqrt();
    let directions = gates / lengths;
    let cosines = directions.clone().matmul(directions.swap_dims(1, 2));
    let others = (0..experts * experts).map(|at| f32::from(u8::from(at / experts != at % experts))).collect::<Vec<_>>();
    let others = TensorData::new(others, [1, experts, experts]);
    let others = Tensor::from_data(others, (&cosines.device(), cosines.dtype()));
    let pairs = (count * experts * experts.saturating_sub(1)).max(1);
    (relu(cosines - free) * others).sum() / pairs as f64
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn::module::AutodiffModule;
    use burn_flex::{Flex, FlexDevice};
    use patchdoor_data::{AugmentationConfig, DatasetConfig, ShapesConfig, load, stream};
    use patchdoor_model::{ClassifierConfig, PatchMoeConfig, WideResNetConfig};

    use super::*;
    use crate::{Outcome, TrainingConfig, TrainingData, input_shape, train};

    type Learner = Autodiff<Flex>;

    #[test]
    fn the_penalty_is_what_cosines_exceed_the_free_overlap_by() {
        let scores = |of: [[f64; 2]; 3]| Tensor::<Flex, 3>::from_data([of], &FlexDevice);
        // Gates (3/4, 1/4), (1/4, 3/4) and (1/2, 1/2): cosines 6/10 and twice 1/sqrt(2) / sqrt(10/16) = 0.894427.
        let three = scores([[3f64.ln(), 0.0], [0.0, 3f64.ln()], [1.0, 1.0]]);
        let found = overlaps(three.clone(), 0.5).into_scalar();
        assert!((found - (0.1 + 2.0 * 0.394_427) / 3.0).abs() < 1e-5, "{found}");
        let found = overlaps(three.clone(), 0.7).into_scalar();
        assert!((found - 2.0 * 0.194_427 / 3.0).abs() < 1e-5, "{found}");
        assert!(overlaps(three.narrow(1, 0, 1), 0.0).into_scalar().abs() < 1e-9);
    }

    fn trained(
        model: impl Into<ClassifierConfig>,
        diversity: DiversityConfig,
    ) -> Result<Classifier<Learner>, TrainError> {
        let images = load(&DatasetConfig::Shapes(ShapesConfig { train: 60, test: 10, seed: 0 }), &[]).expect("no file");
        let input = input_shape(images.train.shape());
        let classifier = model.into().init(input, 10, &mut stream(0, "weights"), &FlexDevice).expect("valid");
        let config =
            TrainingConfig { epochs: 8, batch_size: 20, diversity: Some(diversity), ..TrainingConfig::default() };
        let augmentation = AugmentationConfig::default();
        let data = TrainingData { training: &images.train, validation: None, augmentation: &augmentation };
        match train(classifier, &data, &config, 0, None, &mut (), &FlexDevice)? {
            Outcome::Finished(trained) => Ok(trained.classifier),
            Outcome::Interrupted { .. } => panic!("nothing interrupts it"),
        }
    }

    fn mixture(experts: usize) -> PatchMoeConfig {
        PatchMoeConfig { widen_factor: 1, experts, gate_init_std: 1.0, ..PatchMoeConfig::default() }
    }

    #[test]
    fn experts_that_pay_for_it_choose_other_patches_than_each_other() {
        let overlap = |weight| {
            let classifier = trained(mixture(4), DiversityConfig { weight, overlap: 0.0 }).expect("it trains");
            let images = load(&DatasetConfig::Shapes(ShapesConfig { train: 10, test: 40, seed: 0 }), &[]);
            let images = images.expect("no file").test;
            let batch = crate::image_batches::<Flex>(&images, 40, &FlexDevice).next().expect("40 images");
            let (_, scores) = classifier.valid().forward_with_scores(batch).expect("they choose");
            overlaps(scores, 0.0).into_scalar()
        };
        let [free, paid] = [0.0, 5.0].map(overlap);
        assert!(paid < 0.8 * free, "{free} without, {paid} with the penalty");
    }

    #[test]
    fn who_has_no_pair_of_experts_is_refused() {
        let said =
            |model: ClassifierConfig| trained(model, DiversityConfig::default()).expect_err("refused").to_string();
        let expected = "diversity is given, expected none, for a network without two experts that choose patches";
        assert_eq!(said(mixture(1).into()), expected);
        assert_eq!(said(WideResNetConfig { widen_factor: 1, ..WideResNetConfig::default() }.into()), expected);
    }
}
