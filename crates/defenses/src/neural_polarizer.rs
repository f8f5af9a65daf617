use std::collections::BTreeMap;

use burn::module::{AutodiffModule, Module, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use patchdoor_kernels::{TrainingBackend, differentiate};
use patchdoor_model::{Classifier, NormInput, Part};
use patchdoor_train::{Batch, BatchPass, classes_of, cross_entropy, gradient_by};
use serde::{Deserialize, Serialize};

use crate::batch_stream::BatchStream;
use crate::error::{check_count, check_positive, check_weight, invalid};
use crate::neuron_masks::Only;
use crate::{DefendedClassifier, Defense, DefenseError, ModelRepair, RepairWork, Repaired, Strengths};

/// The share of a batch that has to be misled for its perturbation to be enough, as in the authors' code.
const MISLED_ENOUGH: f64 = 0.6;

/// Inserts one linear map of channels that turns perturbed images back, learns it alone, and folds it into the weights before it.
///
/// Neural polarizer (NPD; Zhu et al. 2023, arXiv:2306.16697). The map is z -> A z + b at every place of what enters the experts and
/// their gates; in the dense network, of what enters the last residual block. Of every batch, a perturbation of each image within
/// the length [`radius`](Self::radius) is sought that leads to the image's most likely wrong class. A and b descend on the cross-entropy
/// of the clean images; of the perturbed ones towards the class that the clean ones are predicted as; and on minus the logarithm of the
/// share that the perturbed ones leave to other classes than their most likely wrong one, and than the one they were led to.
///
/// What precedes the map is a convolution, or a sum of two, so that A and b are folded into their kernels and biases without a
/// difference: what is repaired is an ordinary classifier. Departures: the authors' layer is a 1x1 convolution with batch
/// normalization, whose running statistics five warm-up epochs fit. In use that is an affine map too; here it starts as the
/// identity, has no statistics, and so no warm-up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct NeuralPolarizer {
    /// Passes over the clean images, 1 or more.
    pub epochs: usize,
    /// Images of each batch, 1 or more.
    pub batch_size: usize,
    /// Rate of the SGD, a finite number above 0.
    pub learning_rate: f64,
    /// Its momentum, in [0, 1).
    pub momentum: f64,
    /// Its weight decay, towards zero, a finite number of 0 or more.
    pub weight_decay: f64,
    /// Length of a perturbation over all pixels in [0, 1], a finite number above 0.
    pub radius: f64,
    /// How far a step moves every pixel before the length is cut, a finite number above 0.
    pub step: f64,
    /// Steps of the perturbation, 1 or more.
    pub steps: usize,
    /// Weight of the clean images' cross-entropy, 0 or more.
    pub clean_weight: f64,
    /// Weight of the perturbed images' cross-entropy, 0 or more.
    pub perturbed_weight: f64,
    /// Weight of what perturbed images give to their most likely wrong class, 0 or more.
    pub runner_up_weight: f64,
    /// Weight of what perturbed images give to the class that they were led to, 0 or more.
    pub target_weight: f64,
}

impl Default for NeuralPolarizer {
    /// The authors' code in `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654) for CIFAR-10.
    fn default() -> Self {
        Self {
            epochs: 50,
            batch_size: 128,
            learning_rate: 0.01,
            momentum: 0.9,
            weight_decay: 5e-4,
            radius: 3.0,
            step: 0.1,
            steps: 2,
            clean_weight: 1.0,
            perturbed_weight: 0.4,
            runner_up_weight: 0.4,
            target_weight: 0.4,
        }
    }
}

impl Defense for NeuralPolarizer {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        let counts = [("epochs", self.epochs), ("batch-size", self.batch_size), ("steps", self.steps)];
        problems.extend(counts.into_iter().filter_map(|(field, count)| check_count(field, count)));
        for (field, value) in [("learning-rate", self.learning_rate), ("radius", self.radius), ("step", self.step)] {
            problems.extend(check_positive(field, value));
        }
        if !(0.0..1.0).contains(&self.momentum) {
            problems.push(invalid("momentum", self.momentum, "a number in [0, 1)"));
        }
        let weights = [
            ("weight-decay", self.weight_decay),
            ("clean-weight", self.clean_weight),
            ("perturbed-weight", self.perturbed_weight),
            ("runner-up-weight", self.runner_up_weight),
            ("target-weight", self.target_weight),
        ];
        for (field, weight) in weights {
            problems.extend(check_weight(field, weight));
        }
        problems
    }

    /// The 5 % of `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654).
    fn default_clean_fraction(&self) -> f64 {
        0.05
    }

    fn strengths(&self) -> Option<Strengths> {
        Some(Strengths::rates("learning-rate", self.learning_rate))
    }

    fn set_strength(&mut self, value: f64) {
        self.learning_rate = value;
    }

    fn make_quick(&mut self) {
        self.epochs = self.epochs.min(1);
        self.batch_size = self.batch_size.min(64);
    }
}

impl<B: TrainingBackend> ModelRepair<B> for NeuralPolarizer {
    fn repair(
        &self,
        classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        let clean = work.data.clean;
        if clean.is_empty() {
            return Err(DefenseError::NoImages { defense: "neural-polarizer" });
        }
        let mut polarizer = Polarizer::new(classifier.clone(), device);
        let mut batches = BatchStream::new(clean, self.batch_size, work.seed, "defense/polarizer-order", device);
        let mut velocity = polarizer.map.zeros_like();
        for step in 0..self.epochs * (clean.len() / self.batch_size).max(1) {
            if work.observer.is_stopped() {
                return Err(DefenseError::Interrupted { epochs: 0 });
            }
            let gradient = self.gradient(&polarizer, batches.next(device)).ok_or(DefenseError::NoLoss { step })?;
            velocity = velocity * self.momentum + gradient + polarizer.map.clone() * self.weight_decay;
            polarizer.map = polarizer.map - velocity.clone() * self.learning_rate;
        }
        let folded = polarizer.folded();
        Ok(Repaired::tuned(classifier.with_tensors(folded), Vec::new()))
    }
}

impl NeuralPolarizer {
    /// The gradient of a batch's loss by the map; `None` if the loss is no finite number.
    fn gradient<B: TrainingBackend>(
        &self,
        polarizer: &Polarizer<B>,
        batch: Batch<B>,
    ) -> Option<Tensor<B::InnerBackend, 2>> {
        let classifier = polarizer.classifier();
        let labels = batch.labels.clone().into_data().iter::<i64>().collect::<Vec<_>>();
        let logits = classifier.valid().forward(batch.images.clone().inner());
        let own = classes::<B>(classes_of(logits.clone()).into_iter().map(i64::from).collect(), &batch);
        let targets = classes::<B>(runners_up(logits, &labels), &batch);
        let perturbed = self.perturbed(&classifier, &batch, &targets);
        let pass = differentiate(|| {
            let logits = classifier.forward(batch.images.clone());
            let misled = classifier.forward(Tensor::from_inner(perturbed));
            let rivals = classes::<B>(runners_up(misled.clone().inner(), &labels), &batch);
            let loss = cross_entropy(logits.clone(), batch.labels) * self.clean_weight
                + cross_entropy(misled.clone(), own) * self.perturbed_weight
                + repulsion(misled.clone(), rivals) * self.runner_up_weight
                + repulsion(misled, targets) * self.target_weight;
            BatchPass::backward(&classifier, &logits, &loss)
        });
        Some(polarizer.gradient(&pass.gradients?))
    }

    /// Images led to these classes, pixels in [0, 1].
    fn perturbed<B: TrainingBackend>(
        &self,
        classifier: &Classifier<B>,
        batch: &Batch<B>,
        targets: &Tensor<B, 1, Int>,
    ) -> Tensor<B::InnerBackend, 4> {
        let frozen = classifier.clone().freeze_all_but(&[]);
        let plain = frozen.valid();
        let images = batch.images.clone().inner();
        let wanted = targets.clone().into_data().iter::<i64>().collect::<Vec<_>>();
        let mut perturbation = images.zeros_like();
        for _ in 0..self.steps {
            let (uphill, ()) = gradient_by::<B, 4, _>(perturbation.clone(), |perturbation| {
                let carried = (batch.images.clone() + perturbation).clamp(0.0, 1.0);
                (cross_entropy(frozen.forward(carried), targets.clone()), ())
            });
            perturbation = cut_to_length(perturbation - uphill.sign() * self.step, self.radius);
            let found = classes_of(plain.forward((images.clone() + perturbation.clone()).clamp(0.0, 1.0)));
            let led = found.iter().zip(&wanted).filter(|&(&found, &wanted)| i64::from(found) == wanted).count();
            if led as f64 > MISLED_ENOUGH * found.len() as f64 {
                break;
            }
        }
        (images + perturbation).clamp(0.0, 1.0)
    }
}

/// A classifier with an affine map of channels behind some of its convolutions, folded into them.
struct Polarizer<B: TrainingBackend> {
    /// Nothing of it learns but the convolutions.
    frozen: Classifier<B>,
    /// They see one map, and what follows sees the sum of their outputs.
    convolutions: Vec<Folded<B>>,
    /// `[channel, channel + 1]`: the matrix and the shift beside it.
    map: Tensor<B::InnerBackend, 2>,
}

/// A convolution into which the map is folded.
struct Folded<B: TrainingBackend> {
    /// Its paths and ids: of the kernel, of the bias.
    paths: [String; 2],
    ids: [ParamId; 2],
    /// Its kernel's shape.
    shape: Vec<usize>,
    /// `[channel + 1, in * row * column + 1]`: kernel and bias beside it as they were. The last row says where the shift goes: to the
    /// bias of the first convolution, to no other.
    parameters: Tensor<B::InnerBackend, 2>,
}

impl<B: TrainingBackend> Polarizer<B> {
    fn new(classifier: Classifier<B>, device: &B::Device) -> Self {
        let (tensors, ids) = (classifier.tensors(), classifier.parameter_ids());
        let folded = |(index, path): (usize, String)| {
            let paths = ["weight", "bias"].map(|name| format!("{path}.{name}"));
            let [kernel, bias] = paths.each_ref().map(|path| tensors[path].iter::<f32>().collect::<Vec<_>>());
            let (channels, inputs) = (bias.len(), kernel.len() / bias.len());
            let rows = kernel.chunks_exact(inputs).zip(&bias);
            let mut parameters = rows.flat_map(|(row, &bias)| row.iter().copied().chain([bias])).collect::<Vec<_>>();
            parameters.extend(vec![0.0; inputs]);
            parameters.push(if index == 0 { 1.0 } else { 0.0 });
            let parameters = TensorData::new(parameters, [channels + 1, inputs + 1]);
            Folded {
                ids: paths.each_ref().map(|path| ids[path]),
                shape: tensors[&paths[0]].shape.to_vec(),
                parameters: Tensor::from_data(parameters, device),
                paths,
            }
        };
        let convolutions: Vec<_> = before_the_map(&classifier).into_iter().enumerate().map(folded).collect();
        let channels = convolutions[0].shape[0];
        let identity =
            (0..channels * (channels + 1)).map(|place| if place % (channels + 2) == 0 { 1.0f32 } else { 0.0 });
        let map = TensorData::new(identity.collect::<Vec<_>>(), [channels, channels + 1]);
        let learning = convolutions.iter().flat_map(|folded: &Folded<B>| folded.ids).collect();
        let frozen = classifier.freeze_all_but(&[]).map(&mut Only { learning });
        Self { frozen, convolutions, map: Tensor::from_data(map, device) }
    }

    /// Kernels and biases with the map in them.
    fn folded(&self) -> BTreeMap<String, TensorData> {
        let of = |convolution: &Folded<B>| {
            let product = self.map.clone().matmul(convolution.parameters.clone());
            let [channels, wide] = product.dims();
            let kernel = product
                .clone()
                .narrow(1, 0, wide - 1)
                .reshape::<4, _>(<[usize; 4]>::try_from(convolution.shape.as_slice()).expect("a kernel has four axes"));
            let bias = product.narrow(1, wide - 1, 1).reshape([channels]);
            let [weight, shift] = convolution.paths.clone();
            [(weight, kernel.into_data()), (shift, bias.into_data())]
        };
        self.convolutions.iter().flat_map(of).collect()
    }

    fn classifier(&self) -> Classifier<B> {
        self.frozen.clone().with_tensors(self.folded())
    }

    /// By the chain rule: the folded parameters are the map times what they were.
    fn gradient(&self, gradients: &GradientsParams) -> Tensor<B::InnerBackend, 2> {
        let mut sum = self.map.zeros_like();
        for Folded { ids: [weight, bias], parameters, .. } in &self.convolutions {
            let [channels, inputs] = [self.map.dims()[0], parameters.dims()[1] - 1];
            let of_kernel = gradients.get::<B::InnerBackend, 4>(*weight).expect("it learns");
            let of_bias = gradients.get::<B::InnerBackend, 1>(*bias).expect("it learns");
            let both = Tensor::cat(vec![of_kernel.reshape([channels, inputs]), of_bias.reshape([channels, 1])], 1);
            sum = sum + both.matmul(parameters.clone().transpose());
        }
        sum
    }
}

/// The convolutions whose summed output is where the map belongs: what the experts see, or else what the last block does.
fn before_the_map<B: Backend>(classifier: &Classifier<B>) -> Vec<String> {
    let norms = classifier.norms();
    let experts = norms.iter().find(|layer| layer.part == Part::Experts);
    // The last block has two normalizations, and the last of all follows it.
    let seen = experts.or_else(|| norms.iter().rev().nth(2)).expect("a network has blocks");
    match &seen.input {
        NormInput::SideBySide(paths) | NormInput::Sum(paths) => paths.clone(),
    }
}

/// The most likely class of each image but its label; ties go to the lower class.
fn runners_up<B: Backend>(logits: Tensor<B, 2>, labels: &[i64]) -> Vec<i64> {
    let classes = logits.dims()[1];
    let values = logits.into_data().iter::<f64>().collect::<Vec<_>>();
    let of_image = |(row, &label): (&[f64], &i64)| {
        let others = (0..classes).filter(|&class| class as i64 != label);
        others.reduce(|best, class| if row[class] > row[best] { class } else { best }).unwrap_or(0) as i64
    };
    values.chunks_exact(classes).zip(labels).map(of_image).collect()
}

/// The mean of minus the logarithm of the share that is left to other classes than these, in nats; with the constants of the
/// authors' code, that keep it finite.
fn repulsion<B: Backend>(logits: Tensor<B, 2>, from: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    let shares = softmax(logits, 1).gather(1, from.unsqueeze_dim(1));
    (shares.neg() + 1.0001).log().mean().neg()
}

/// Each image's perturbation, cut to a length.
fn cut_to_length<B: Backend>(perturbation: Tensor<B, 4>, length: f64) -> Tensor<B, 4> {
    let [count, height, width, channels] = perturbation.dims();
    let flat = perturbation.reshape([count, height * width * channels]);
    let lengths = flat.clone().powi_scalar(2).sum_dim(1).sqrt();
    let factors = lengths.clamp_min(length).recip() * length;
    (flat * factors).reshape([count, height, width, channels])
}

fn classes<B: TrainingBackend>(classes: Vec<i64>, beside: &Batch<B>) -> Tensor<B, 1, Int> {
    let count = classes.len();
    let classes = classes.into_iter().map(|class| class as i32).collect::<Vec<_>>();
    Tensor::from_data(TensorData::new(classes, [count]), &beside.labels.device())
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use patchdoor_data::stream;
    use patchdoor_model::{ClassifierConfig, InputShape, Tapped, WideResNetConfig};
    use patchdoor_train::BatchAssembler;
    use rand::RngExt;

    use super::*;
    use crate::planted::{SeenOn, planted};
    use crate::testing::{Learner, ascending_filters, bits, repair_with, shapes};

    fn values<const D: usize>(tensor: Tensor<Flex, D>) -> Vec<f64> {
        tensor.into_data().iter::<f64>().collect()
    }

    fn near(found: &[f64], expected: &[f64], within: f64) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= within * (1.0 + expected.abs()), "{found}, expected {expected}");
        }
    }

    fn dense() -> Classifier<Learner> {
        let input = InputShape { height: 32, width: 32, channels: 3 };
        let config = ClassifierConfig::WideResnet(WideResNetConfig { widen_factor: 1, ..Default::default() });
        config.init::<Learner>(input, 10, &mut stream(0, "weights"), &FlexDevice).expect("valid")
    }

    /// Near the identity.
    fn some_map(polarizer: &Polarizer<Learner>) -> Tensor<Flex, 2> {
        let size = polarizer.map.dims();
        let mut rng = stream(0, "map");
        let noise = (0..size[0] * size[1]).map(|_| rng.random_range(-0.1..0.1f32)).collect::<Vec<_>>();
        polarizer.map.clone() + Tensor::from_data(TensorData::new(noise, size), &FlexDevice)
    }

    #[test]
    fn a_folded_map_is_the_map_behind_the_convolutions() {
        let images =
            BatchAssembler::<Flex>::new(&shapes(10), &FlexDevice).batch(&[0, 1, 2, 3, 4, 5], &FlexDevice).images;
        let check = |classifier: Classifier<Learner>, tap: &str| {
            let mut polarizer = Polarizer::new(classifier.clone(), &FlexDevice);
            polarizer.map = some_map(&polarizer);
            let tapped = |classifier: Classifier<Learner>| {
                let (_, mut found) = classifier.valid().forward_with_taps(images.clone(), &[tap]);
                found.remove(tap).and_then(Tapped::map).expect("a map")
            };
            let (before, after) = (tapped(classifier.clone()), tapped(polarizer.classifier()));
            let [_, _, _, channels] = before.dims();
            let places = before.clone().reshape([before.shape().num_elements() / channels, channels]);
            let [matrix, shift] =
                [(0, channels), (channels, 1)].map(|(from, count)| polarizer.map.clone().narrow(1, from, count));
            let mapped = (places.matmul(matrix.transpose()) + shift.transpose()).reshape(before.dims());
            near(&values(after), &values(mapped.clone()), 1e-4);
            if let Classifier::PatchMoe(network) = classifier.valid() {
                let folded = polarizer.classifier().valid().forward(images.clone());
                near(&values(folded), &values(network.forward_map(mapped).0), 1e-3);
            }
        };
        check(ascending_filters(), "map");
        check(dense(), "group2");
    }

    #[test]
    fn the_identity_changes_nothing() {
        let polarizer = Polarizer::new(dense(), &FlexDevice);
        assert_eq!(polarizer.convolutions.len(), 2);
        assert!(bits(&polarizer.classifier()) == bits(&dense()));
    }

    #[test]
    fn the_gradient_by_the_map_is_that_of_finite_differences() {
        let set = shapes(20);
        let batch =
            || BatchAssembler::<Learner>::new(&set, &FlexDevice).batch(&(0..20).collect::<Vec<_>>(), &FlexDevice);
        // The clean images' cross-entropy alone, which plain passes can follow.
        let alone =
            NeuralPolarizer { perturbed_weight: 0.0, runner_up_weight: 0.0, target_weight: 0.0, ..Default::default() };
        let mut polarizer = Polarizer::new(dense(), &FlexDevice);
        let gradient = values(alone.gradient(&polarizer, batch()).expect("a finite loss"));
        let (map, step) = (values(polarizer.map.clone()), 4e-3);
        let size = polarizer.map.dims();
        let mut loss = |place: usize, by: f64| {
            let mut moved = map.iter().map(|&value| value as f32).collect::<Vec<_>>();
            moved[place] += by as f32;
            polarizer.map = Tensor::from_data(TensorData::new(moved, size), &FlexDevice);
            let batch = batch();
            let logits = polarizer.classifier().valid().forward(batch.images.inner());
            values(cross_entropy(logits, batch.labels.inner()))[0]
        };
        // The steepest places of the matrix and of the shift: rectifiers bend the loss within a step, and f32 has six digits of it.
        let is_shift = |place: usize| (place + 1).is_multiple_of(size[1]);
        for of_shift in [false, true] {
            let places = (0..gradient.len()).filter(|&place| is_shift(place) == of_shift);
            let place = places.max_by(|&one, &other| gradient[one].abs().total_cmp(&gradient[other].abs()));
            let place = place.expect("there are places");
            let expected = (loss(place, step) - loss(place, -step)) / (2.0 * step);
            let found = gradient[place];
            assert!((found - expected).abs() < 3e-4 + 5e-2 * expected.abs(), "{place}: {found} and {expected}");
        }
    }

    #[test]
    fn lengths_runners_up_and_repulsion_worked_out_by_hand() {
        let pixels = Tensor::<Flex, 4>::from_data([[[[3.0], [4.0]]], [[[0.3], [0.4]]]], &FlexDevice);
        // Lengths 5 and 0.5, cut to 2: the first times 2 / 5, the second as it is.
        near(&values(cut_to_length(pixels, 2.0)), &[1.2, 1.6, 0.3, 0.4], 1e-6);
        let logits = Tensor::<Flex, 2>::from_data([[0.0, 3.0, 2.0], [5.0, 1.0, 1.0]], &FlexDevice);
        assert_eq!(runners_up(logits, &[1, 0]), [2, 1]);
        // Shares 3/4 and 1/2: -(ln 0.2501 + ln 0.5001) / 2 = (1.385894 + 0.692947) / 2.
        let logits = Tensor::<Flex, 2>::from_data([[3.0f32.ln(), 0.0], [0.0, 0.0]], &FlexDevice);
        let from = Tensor::<Flex, 1, Int>::from_data([0, 1], &FlexDevice);
        near(&values(repulsion(logits, from)), &[1.039_421], 1e-5);
    }

    #[test]
    fn only_the_convolution_before_the_gates_changes() {
        let defense = NeuralPolarizer { epochs: 1, batch_size: 20, ..NeuralPolarizer::default() };
        let before = bits(&ascending_filters());
        for (name, values) in bits(&repair_with(&defense, ascending_filters(), None).classifier) {
            assert_eq!(values != before[&name], name.starts_with("patch_conv."), "{name}");
        }
    }

    #[test]
    fn a_planted_backdoor_goes_and_the_accuracy_stays() {
        if !SeenOn::Avx2.is_here() {
            return;
        }
        let defense = NeuralPolarizer { batch_size: 40, ..NeuralPolarizer::default() };
        planted().assert_repairs(&defense);
    }
}
