use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::activation::log_softmax;
use burn::tensor::backend::AutodiffBackend;
use patchdoor_kernels::{TrainingBackend, differentiate};
use patchdoor_model::Classifier;
use patchdoor_train::{Batch, BatchPass, Objective, Trainable, TrainingConfig};
use serde::{Deserialize, Serialize};

use crate::defense::has_training_table;
use crate::error::{check_positive, invalid};
use crate::tuning::{field_training, tune_on, validate_own_training};
use crate::{DefendedClassifier, Defense, DefenseError, ModelRepair, RepairWork, Repaired};

/// Fine-tunes towards flat minima: each step follows the gradient at the worst weights nearby.
///
/// FT-SAM (Zhu et al. 2023, arXiv:2304.11823), with the adaptive sharpness-aware minimization of Kwon et al. (2021,
/// arXiv:2102.11600): the worst weights are w + rho w^2 g / |w g|, where g is the gradient at w. Zhu et al. found that the
/// weights of backdoor neurons are large, and such weights are moved most.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct SharpnessAwareFineTuning {
    /// How far the worst weights may lie, in weights as the unit of each, a finite number above 0.
    pub radius: f64,
    /// Share of the true class that is spread evenly over the others, in [0, 1).
    pub label_smoothing: f64,
    /// How the clean images are fitted.
    pub training: TrainingConfig,
}

impl Default for SharpnessAwareFineTuning {
    /// Radius 2 and smoothing 0.1 of Zhu et al. (2023, arXiv:2304.11823), for CIFAR-10 as `BackdoorBench` (Wu et al. 2022,
    /// arXiv:2206.12654) runs it: 100 epochs.
    fn default() -> Self {
        Self { radius: 2.0, label_smoothing: 0.1, training: field_training(100) }
    }
}

impl Defense for SharpnessAwareFineTuning {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        problems.extend(check_positive("radius", self.radius));
        if !(0.0..1.0).contains(&self.label_smoothing) {
            problems.push(invalid("label-smoothing", self.label_smoothing, "a number in [0, 1)"));
        }
        problems.extend(validate_own_training(&self.training));
        problems
    }

    /// The 5 % of `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654).
    fn default_clean_fraction(&self) -> f64 {
        0.05
    }

    has_training_table!();
}

impl<B: TrainingBackend> ModelRepair<B> for SharpnessAwareFineTuning {
    fn repair(
        &self,
        classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        let mut objective = WorstNearby { radius: self.radius, label_smoothing: self.label_smoothing };
        let trainable = Trainable::default();
        let (classifier, history) =
            tune_on(Some(&mut objective), classifier, &self.training, &trainable, work, device)?;
        Ok(Repaired::tuned(classifier, history))
    }
}

/// The smoothed cross-entropy at the worst weights nearby, whose distance does not count for the gradient.
struct WorstNearby {
    radius: f64,
    label_smoothing: f64,
}

impl WorstNearby {
    fn at<B: TrainingBackend>(&self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        differentiate(|| {
            let logits = classifier.forward(batch.images);
            let loss = smoothed_cross_entropy(&logits, batch.labels, self.label_smoothing);
            BatchPass::backward(classifier, &logits, &loss)
        })
    }
}

impl<B: TrainingBackend> Objective<B> for WorstNearby {
    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        let here = self.at(classifier, batch.clone());
        let Some(gradients) = &here.gradients else { return here };
        // The copy has running statistics of its own: the second pass leaves those of the classifier alone.
        let worst = ascend(classifier.clone(), gradients, self.radius);
        let there = self.at(&worst, batch);
        BatchPass { gradients: there.gradients, ..here }
    }
}

/// Mean cross-entropy in nats against labels that give each other class an even share of `smoothing`.
///
/// # Shapes
/// - logits: `[batch, class]`
/// - labels: `[batch]`
fn smoothed_cross_entropy<B: AutodiffBackend>(
    logits: &Tensor<B, 2>,
    labels: Tensor<B, 1, burn::tensor::Int>,
    smoothing: f64,
) -> Tensor<B, 1> {
    let classes = logits.dims()[1] as f64;
    let logarithms = log_softmax(logits.clone(), 1);
    let own = logarithms.clone().gather(1, labels.unsqueeze_dim(1));
    let share = smoothing / (classes - 1.0);
    (own.mul_scalar(1.0 - smoothing - share) + logarithms.sum_dim(1).mul_scalar(share)).mean().neg()
}

/// The weights w + radius w^2 g / |w g| of those that have a gradient g; the norm is over all of them.
fn ascend<B: AutodiffBackend>(classifier: Classifier<B>, gradients: &GradientsParams, radius: f64) -> Classifier<B> {
    let mut squares = ScaledSquares { gradients, sum: 0.0 };
    classifier.visit(&mut squares);
    // The constant of the published code keeps a zero gradient from dividing by zero.
    let factor = radius / (squares.sum.sqrt() + 1e-12);
    classifier.map(&mut Ascent { gradients, factor })
}

/// Adds up (w g)^2.
struct ScaledSquares<'a> {
    gradients: &'a GradientsParams,
    sum: f64,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for ScaledSquares<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(gradient) = self.gradients.get::<B::InnerBackend, D>(param.id) {
            let scaled = param.val().inner() * gradient;
            self.sum += scaled.powi_scalar(2).sum().into_data().iter::<f64>().sum::<f64>();
        }
    }
}

/// Moves every parameter by factor w^2 g.
struct Ascent<'a> {
    gradients: &'a GradientsParams,
    factor: f64,
}

impl<B: AutodiffBackend> ModuleMapper<B> for Ascent<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let Some(gradient) = self.gradients.get::<B::InnerBackend, D>(param.id) else { return param };
        param.map(|value| {
            let value = value.inner();
            let step = value.clone().powi_scalar(2) * gradient * self.factor;
            Tensor::from_inner(value + step).require_grad()
        })
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use burn_flex::FlexDevice;
    use patchdoor_train::{BatchNormStatistics, TrainingConfig};

    use super::*;
    use crate::planted::planted;
    use crate::testing::{Learner, ascending_filters, bits, shapes, tensor};

    #[test]
    fn smoothing_gives_the_other_classes_an_even_share() {
        // Logits ln 1, ln 2, ln 5 are probabilities 1/8, 2/8, 5/8. True class 2, smoothing 0.2:
        // -(0.8 ln 5/8 + 0.1 ln 2/8 + 0.1 ln 1/8) = 0.376003 + 0.138629 + 0.207944 = 0.722576.
        let logits = Tensor::<Learner, 2>::from_data([[1.0f32.ln(), 2.0f32.ln(), 5.0f32.ln()]], &FlexDevice);
        let labels = Tensor::from_data([2], &FlexDevice);
        let loss = smoothed_cross_entropy(&logits, labels, 0.2).into_data().iter::<f64>().sum::<f64>();
        assert!((loss - 0.722_576).abs() < 1e-6, "{loss}");
    }

    fn batch() -> Batch<Learner> {
        let images = shapes(20);
        let pixels = images.all_pixels().iter().map(|&pixel| f32::from(pixel) / 255.0).collect::<Vec<_>>();
        let labels = images.labels().iter().map(|&label| i32::from(label)).collect::<Vec<_>>();
        Batch {
            images: Tensor::from_data(TensorData::new(pixels, [20, 32, 32, 3]), &FlexDevice),
            labels: Tensor::from_data(TensorData::new(labels, [20]), &FlexDevice),
        }
    }

    #[test]
    fn the_worst_weights_lie_at_the_radius_and_have_the_larger_loss() {
        let objective = WorstNearby { radius: 0.5, label_smoothing: 0.1 };
        let start = ascending_filters();
        let here = objective.at(&start.clone(), batch());
        let worst = ascend(start.clone(), here.gradients.as_ref().expect("a finite loss"), objective.radius);
        // |(w' - w) / w| is the radius: each weight's move is measured in that weight.
        let distance: f64 = start
            .tensors()
            .keys()
            .filter(|name| !name.contains("running_"))
            .flat_map(|name| tensor(&start, name).into_iter().zip(tensor(&worst, name)))
            .filter(|&(before, _)| before != 0.0)
            .map(|(before, after)| f64::from((after - before) / before).powi(2))
            .sum::<f64>()
            .sqrt();
        assert!((distance - 0.5).abs() < 1e-3, "{distance}");
        // Weights that are zero, such as most biases at the start, do not move.
        assert!(tensor(&worst, "head.bias").iter().all(|&bias| bias == 0.0));
        let there = objective.at(&worst, batch());
        assert!(there.loss > here.loss, "{} here, {} there", here.loss, there.loss);
    }

    #[test]
    fn the_second_pass_leaves_running_statistics_alone() {
        let once = ascending_filters();
        WorstNearby { radius: 2.0, label_smoothing: 0.1 }.at(&once, batch());
        let both = ascending_filters();
        let pass = Objective::pass(&mut WorstNearby { radius: 2.0, label_smoothing: 0.1 }, &both, batch());
        assert!(pass.gradients.is_some());
        assert!(bits(&both) == bits(&once), "statistics are those of one pass");
    }

    #[test]
    fn a_planted_backdoor_goes_and_the_accuracy_stays() {
        let planted = planted();
        let training = TrainingConfig {
            batch_size: 40,
            learning_rate: 0.05,
            batch_norm_statistics: BatchNormStatistics::Recomputed,
            ..field_training(15)
        };
        let defense = SharpnessAwareFineTuning { training, ..Default::default() };
        planted.assert_repairs(&defense);
    }
}
