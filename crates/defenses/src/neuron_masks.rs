use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Tensor, TensorData};
use patchdoor_kernels::{TrainingBackend, differentiate};
use patchdoor_model::Classifier;
use patchdoor_train::{Batch, BatchPass, cross_entropy};
use serde::{Deserialize, Serialize};

use crate::DefenseError;
use crate::error::{check_count, check_positive, invalid};
use crate::norm_channels::NormChannels;

/// How masks on the scales of batch normalizations are trained: SGD with momentum, each mask kept in [0, 1].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct MaskTrainingConfig {
    /// How many batches are taken, 1 or more.
    pub steps: usize,
    /// Images of each batch, 2 or more.
    pub batch_size: usize,
    /// A finite number above 0.
    pub learning_rate: f64,
    /// In [0, 1).
    pub momentum: f64,
}

impl Default for MaskTrainingConfig {
    /// Those of Wu and Wang (2021, arXiv:2110.14430), whose code has a rate of 0.2.
    fn default() -> Self {
        Self { steps: 2000, batch_size: 128, learning_rate: 0.2, momentum: 0.9 }
    }
}

impl MaskTrainingConfig {
    /// All problems, below the table `masks`.
    pub(crate) fn validate(&self) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        problems.extend(check_count("masks.steps", self.steps));
        if self.batch_size < 2 {
            problems.push(invalid("masks.batch-size", self.batch_size, "2 or more"));
        }
        problems.extend(check_positive("masks.learning-rate", self.learning_rate));
        if !(0.0..1.0).contains(&self.momentum) {
            problems.push(invalid("masks.momentum", self.momentum, "a number in [0, 1)"));
        }
        problems
    }

    /// A few steps of small batches.
    pub(crate) fn make_quick(&mut self) {
        self.steps = self.steps.min(2);
        self.batch_size = self.batch_size.min(64);
    }
}

/// What multiplies a normalization's scales and shifts, `[channel]` each.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Factors {
    pub(crate) scale: Vec<f64>,
    pub(crate) shift: Vec<f64>,
}

/// A classifier whose normalizations' scales and shifts can be multiplied and whose loss can be differentiated by the factors;
/// nothing else of it learns.
pub(crate) struct FactoredNorms<B: AutodiffBackend> {
    classifier: Classifier<B>,
    norms: Vec<NormParameters>,
}

/// Scales and shifts of one normalization as they were, and under which ids their gradients are found.
struct NormParameters {
    path: String,
    gamma: Vec<f64>,
    beta: Vec<f64>,
    ids: [ParamId; 2],
}

impl<B: TrainingBackend> FactoredNorms<B> {
    pub(crate) fn new(classifier: Classifier<B>) -> Self {
        let (tensors, ids) = (classifier.tensors(), classifier.parameter_ids());
        let parameters = |path: String| {
            let [gamma, beta] = ["gamma", "beta"].map(|name| format!("{path}.{name}"));
            let values = |name: &String| tensors[name].iter::<f64>().collect::<Vec<_>>();
            NormParameters { gamma: values(&gamma), beta: values(&beta), ids: [ids[&gamma], ids[&beta]], path }
        };
        let norms: Vec<_> = classifier.norms().into_iter().map(|layer| parameters(layer.path)).collect();
        let learning = norms.iter().flat_map(|norm| norm.ids).collect();
        Self { classifier: classifier.map(&mut Only { learning }), norms }
    }

    /// Factors of all normalizations at these values.
    pub(crate) fn factors(&self, mut scale: impl FnMut() -> f64, mut shift: impl FnMut() -> f64) -> Vec<Factors> {
        let of = |norm: &NormParameters| Factors {
            scale: norm.gamma.iter().map(|_| scale()).collect(),
            shift: norm.beta.iter().map(|_| shift()).collect(),
        };
        self.norms.iter().map(of).collect()
    }

    /// Gradients of the mean cross-entropy of a batch by the factors; `None` if it is no finite number.
    ///
    /// Normalizations take the batch's statistics, as in training.
    pub(crate) fn gradients(&self, factors: &[Factors], batch: Batch<B>) -> Option<Vec<Factors>> {
        let classifier = self.classifier.clone().with_tensors(self.multiplied(factors));
        let pass = differentiate(|| {
            let logits = classifier.forward(batch.images);
            let loss = cross_entropy(logits.clone(), batch.labels);
            BatchPass::backward(&classifier, &logits, &loss)
        });
        let gradients = pass.gradients?;
        let of = |norm: &NormParameters| {
            let [gamma, beta] = norm.ids.map(|id| gradients.get::<B::InnerBackend, 1>(id));
            // By the chain rule: a factor's gradient is its parameter's times what it multiplies.
            let by_factor = |values: &[f64], gradient: Option<Tensor<B::InnerBackend, 1>>| match gradient {
                Some(gradient) => gradient.into_data().iter::<f64>().zip(values).map(|(g, value)| g * value).collect(),
                None => vec![0.0; values.len()],
            };
            Factors { scale: by_factor(&norm.gamma, gamma), shift: by_factor(&norm.beta, beta) }
        };
        Some(self.norms.iter().map(of).collect())
    }

    /// Scales and shifts of all normalizations times their factors, by their paths.
    pub(crate) fn multiplied(&self, factors: &[Factors]) -> BTreeMap<String, TensorData> {
        let product = |values: &[f64], factors: &[f64]| {
            let products =
                values.iter().zip(factors).map(|(value, factor)| (value * factor) as f32).collect::<Vec<_>>();
            TensorData::new(products, [values.len()])
        };
        let of = |(norm, factors): (&NormParameters, &Factors)| {
            [
                (format!("{}.gamma", norm.path), product(&norm.gamma, &factors.scale)),
                (format!("{}.beta", norm.path), product(&norm.beta, &factors.shift)),
            ]
        };
        self.norms.iter().zip(factors).flat_map(of).collect()
    }

    /// The factors under the ids of the parameters that they multiply.
    pub(crate) fn factors_by_id(&self, factors: &[Factors]) -> BTreeMap<ParamId, Vec<f64>> {
        let of = |(norm, factors): (&NormParameters, &Factors)| {
            let [scale, shift] = norm.ids;
            [(scale, factors.scale.clone()), (shift, factors.shift.clone())]
        };
        self.norms.iter().zip(factors).flat_map(of).collect()
    }

    /// Values of all scales' channels under their normalizations' paths.
    pub(crate) fn named(&self, scales: Vec<Vec<f64>>) -> Vec<NormChannels<f64>> {
        let paths = self.norms.iter().map(|norm| norm.path.clone());
        paths.zip(scales).map(|(path, values)| NormChannels { path, values }).collect()
    }
}

/// Lets these parameters learn and no other.
pub(crate) struct Only {
    pub(crate) learning: Vec<ParamId>,
}

impl<B: AutodiffBackend> ModuleMapper<B> for Only {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let learns = self.learning.contains(&param.id);
        param.set_require_grad(learns)
    }
}

/// Masks that descend, one for each channel of every normalization, all one at first.
pub(crate) struct Masks {
    pub(crate) values: Vec<Vec<f64>>,
    velocities: Vec<Vec<f64>>,
}

impl Masks {
    pub(crate) fn ones<B: TrainingBackend>(network: &FactoredNorms<B>) -> Self {
        let values = |value| network.norms.iter().map(|norm| vec![value; norm.gamma.len()]).collect::<Vec<_>>();
        Self { values: values(1.0), velocities: values(0.0) }
    }

    /// A step of v = momentum v + g, m = m - rate v, then back into [0, 1].
    pub(crate) fn step(&mut self, gradients: &[Vec<f64>], config: &MaskTrainingConfig) {
        let masks = self.values.iter_mut().flatten().zip(self.velocities.iter_mut().flatten());
        for ((mask, velocity), gradient) in masks.zip(gradients.iter().flatten()) {
            *velocity = config.momentum * *velocity + gradient;
            *mask = (*mask - config.learning_rate * *velocity).clamp(0.0, 1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::module::AutodiffModule;
    use burn_flex::FlexDevice;
    use patchdoor_train::BatchAssembler;

    use super::*;
    use crate::testing::{Learner, ascending_filters, shapes};

    #[test]
    fn masks_follow_their_gradients_with_momentum_and_stay_in_their_bounds() {
        let config = MaskTrainingConfig { learning_rate: 0.1, momentum: 0.5, ..Default::default() };
        let mut masks = Masks { values: vec![vec![1.0, 1.0]], velocities: vec![vec![0.0, 0.0]] };
        masks.step(&[vec![2.0, -3.0]], &config);
        // 1 - 0.1 * 2 = 0.8; 1 + 0.3 is held at 1.
        assert!((masks.values[0][0] - 0.8).abs() < 1e-12 && (masks.values[0][1] - 1.0).abs() < 1e-12);
        masks.step(&[vec![1.0, 0.0]], &config);
        // v = 0.5 * 2 + 1 = 2, 0.8 - 0.2 = 0.6.
        assert!((masks.values[0][0] - 0.6).abs() < 1e-12, "{:?}", masks.values);
    }

    #[test]
    fn a_parameter_by_its_path_is_the_one_that_its_tensors_name() {
        let classifier = ascending_filters();
        let flat =
            classifier.parameter("norm.beta").expect("it is there").into_data().iter::<f32>().collect::<Vec<_>>();
        assert!(flat == crate::testing::tensor(&classifier, "norm.beta"));
        assert!(classifier.parameter("norm.delta").is_none());
        let (ids, tensors) = (classifier.parameter_ids(), classifier.tensors());
        assert!(ids.keys().eq(tensors.keys()), "every tensor has an id");
    }

    #[test]
    fn gradients_by_the_factors_are_those_of_finite_differences() {
        let set = shapes(20);
        let batch =
            || BatchAssembler::<Learner>::new(&set, &FlexDevice).batch(&(0..20).collect::<Vec<_>>(), &FlexDevice);
        let network = FactoredNorms::new(ascending_filters());
        let ones = network.factors(|| 1.0, || 1.0);
        let gradients = network.gradients(&ones, batch()).expect("a finite loss");
        // The loss in training mode without a graph.
        let loss = |factors: &[Factors]| {
            let mut plain = network.classifier.clone().with_tensors(network.multiplied(factors)).valid();
            plain.set_collects_statistics(true);
            let batch = batch();
            let logits = plain.forward(batch.images.inner());
            cross_entropy(logits, batch.labels.inner()).into_data().iter::<f64>().sum::<f64>()
        };
        let last = ones.len() - 1;
        let step = 1e-2;
        let by = |change: &dyn Fn(&mut Factors, f64)| {
            let at = |sign: f64| {
                let mut moved = ones.clone();
                change(&mut moved[last], sign * step);
                loss(&moved)
            };
            (at(1.0) - at(-1.0)) / (2.0 * step)
        };
        for channel in [0, 17, 40] {
            let found = [gradients[last].scale[channel], gradients[last].shift[channel]];
            let expected = [
                by(&|factors, step| factors.scale[channel] += step),
                by(&|factors, step| factors.shift[channel] += step),
            ];
            for (found, expected) in found.iter().zip(expected) {
                // Losses in f32 have six digits, over a step of 0.02 that leaves about 1e-5.
                assert!(
                    (found - expected).abs() < 1e-4 + 1e-2 * expected.abs(),
                    "channel {channel}: {found} and {expected}"
                );
            }
        }
    }
}
