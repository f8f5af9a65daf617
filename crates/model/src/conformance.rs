//! Against numbers of the public pMoE code, computed in float64 (`tests/data/conformance`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, ModuleVisitor, Param};
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Int, Tensor, TensorData};
use patchdoor_kernels::{Kernels, TrainingBackend, differentiate};
use rand::{SeedableRng, rngs::ChaCha8Rng};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

use crate::patch_moe::{into_patches, spread};
use crate::weights::{named_tensors, with_tensors};
use crate::{Classifier, ClassifierConfig, InputShape, PatchMoeConfig, PatchRouter};

/// Relative error allowed against the float64 numbers, in the Euclidean norm of each tensor.
const TOLERANCE: f64 = 1e-4;

struct Reference {
    tensors: BTreeMap<String, TensorData>,
    precision: DType,
}

impl Reference {
    fn read(file: &str, precision: DType) -> Self {
        let folder = std::env::var_os("PATCHDOOR_CONFORMANCE").map_or_else(
            || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/conformance"),
            PathBuf::from,
        );
        let bytes = fs_err::read(folder.join(file)).expect("conformance numbers are there");
        let tensors = SafeTensors::deserialize(&bytes).expect("they are safetensors");
        let read = |name: &str| {
            let view = tensors.tensor(name).expect("listed");
            let words = view.data();
            match view.dtype() {
                Dtype::F32 => {
                    let values = words.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
                    TensorData::new::<f32, _>(values, view.shape().to_vec()).convert_dtype(precision)
                }
                Dtype::I64 => {
                    let values = words.as_chunks::<8>().0.iter().map(|&b| i64::from_le_bytes(b)).collect();
                    TensorData::new::<i64, _>(values, view.shape().to_vec())
                }
                other => panic!("unexpected type {other:?}"),
            }
        };
        let tensors = tensors.names().into_iter().map(|name| (name.to_owned(), read(name))).collect();
        Self { tensors, precision }
    }

    fn data(&self, name: &str) -> TensorData {
        self.tensors.get(name).unwrap_or_else(|| panic!("no {name}")).clone()
    }

    fn tensor<B: Backend, const D: usize>(&self, name: &str, device: &B::Device) -> Tensor<B, D> {
        Tensor::from_data(self.data(name), (device, self.precision))
    }

    /// A map stored as `[batch, channel, row, column]`, channels last.
    fn map<B: Backend>(&self, name: &str, device: &B::Device) -> Tensor<B, 4> {
        self.tensor::<B, 4>(name, device).permute([0, 2, 3, 1])
    }
}

fn values(data: TensorData) -> Vec<f64> {
    data.convert::<f64>().into_vec().expect("converted to f64")
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// Euclidean distance over the reference's norm, or over `floor` where that is larger.
fn relative_error(ours: TensorData, reference: TensorData, floor: f64) -> f64 {
    assert_eq!(ours.shape, reference.shape);
    let (ours, reference) = (values(ours), values(reference));
    let difference: Vec<f64> = ours.iter().zip(&reference).map(|(a, b)| a - b).collect();
    norm(&difference) / norm(&reference).max(floor)
}

fn assert_close(name: &str, ours: TensorData, reference: TensorData) {
    assert_close_from(name, ours, reference, f64::MIN_POSITIVE);
}

fn assert_close_from(name: &str, ours: TensorData, reference: TensorData, floor: f64) {
    let error = relative_error(ours, reference, floor);
    assert!(error < TOLERANCE, "{name}: relative error {error:.2e}");
    // Shown by `cargo test -- --nocapture`.
    #[allow(clippy::print_stdout, reason = "a test reports the error it reached")]
    {
        println!("{name}: relative error {error:.2e}");
    }
}

fn gate_matches<B>(file: &str, side: usize, precision: DType)
where
    B: AutodiffBackend + Kernels,
{
    let device = B::Device::default();
    let reference = Reference::read(file, precision);
    let input = reference.tensor::<B, 4>("input", &device).require_grad();
    let kernel = reference.tensor::<B, 4>("kernel", &device).require_grad();
    let (indices, output, gradients) = differentiate(|| {
        let map = input.clone().permute([0, 2, 3, 1]);
        let [batch, rows, columns, _] = map.dims();
        let selected = reference.data("selected").shape[1];
        let router = PatchRouter::with_kernels(kernel.clone(), selected, crate::GateOrder::SoftmaxThenSelect);
        let routing = router.route(into_patches(map.clone(), side));
        let weights = spread(routing.weights, [rows, columns], side).reshape([batch, rows, columns, 1]);
        let output = (map * weights).permute([0, 3, 1, 2]);
        let loss = (output.clone() * reference.tensor("upstream", &device)).sum();
        (routing.indices, output.into_data(), loss.backward())
    });
    let indices = indices.squeeze_dim::<2>(1).into_data().convert::<i64>();
    assert_eq!(indices, reference.data("selected"), "{file}: selected patches");
    assert_close(&format!("{file} output"), output, reference.data("output"));
    let gradient = |of: &Tensor<B, 4>| of.grad(&gradients).expect("takes part in the loss").into_data();
    assert_close(&format!("{file} gradient of input"), gradient(&input), reference.data("grad_input"));
    assert_close(&format!("{file} gradient of kernel"), gradient(&kernel), reference.data("grad_kernel"));
}

/// Our name of a parameter, its name in the reference and its values in our layout.
fn renamed(reference: &Reference, prefix: &str) -> BTreeMap<String, TensorData> {
    let mut tensors = BTreeMap::new();
    let mut gates = BTreeMap::new();
    for (name, data) in &reference.tensors {
        let Some(path) = name.strip_prefix(prefix) else { continue };
        let (layer, parameter) = path.rsplit_once('/').expect("layer/parameter");
        if let Some(expert) = layer.strip_prefix("gate") {
            gates.insert(expert.parse::<usize>().expect("a number"), values(data.clone()));
            continue;
        }
        let layer = layer
            .replace("stem", "trunk.stem")
            .replace("group", "trunk.group")
            .replace("pre_moe/bn", "patch_norm")
            .replace("pre_moe/conv", "patch_conv")
            .replace("head/dense", "head")
            .replace("head/bn", "norm")
            .replace("/bn", ".norm")
            .replace('/', ".");
        let layer = match layer.strip_prefix("expert") {
            Some(rest) => format!("experts.{rest}"),
            None => layer,
        };
        let parameter = match parameter {
            "kernel" => "weight",
            "moving_mean" => "running_mean",
            "moving_variance" => "running_variance",
            other => other,
        };
        tensors.insert(format!("{layer}.{parameter}"), data.clone());
    }
    if !gates.is_empty() {
        let channels = gates[&0].len();
        let all: Vec<f64> = gates.values().flatten().copied().collect();
        let all = TensorData::new(all, [gates.len(), channels, 1, 1]).convert_dtype(reference.precision);
        tensors.insert("router.weight".into(), all);
    }
    tensors
}

struct Gradients<'a, B: AutodiffBackend> {
    of_loss: &'a B::Gradients,
    path: Vec<String>,
    found: BTreeMap<String, TensorData>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Gradients<'_, B> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(gradient) = param.val().grad(self.of_loss) {
            self.found.insert(self.path.join("."), gradient.into_data());
        }
    }
}

struct DescendBy<'a> {
    rate: f64,
    gradients: &'a BTreeMap<String, TensorData>,
}

impl DescendBy<'_> {
    fn step<B: Backend>(&self, classifier: Classifier<B>) -> Classifier<B> {
        let mut tensors = named_tensors(&classifier);
        for (name, gradient) in self.gradients {
            let tensor = tensors.get_mut(name).expect("gradients are of parameters");
            let stepped: Vec<f64> = tensor
                .iter::<f64>()
                .zip(gradient.iter::<f64>())
                .map(|(w, gradient)| w - self.rate * gradient)
                .collect();
            *tensor = TensorData::new(stepped, tensor.shape.clone()).convert_dtype(tensor.dtype);
        }
        with_tensors(classifier, tensors)
    }
}

/// Follows `steps` of the three training steps. Each multiplies the rounding of single precision about
/// tenfold: flex stays under the tolerance through all three; burn-ndarray's convolutions add up
/// their products in a plain row, start at 5e-5 and pass it at the third.
fn classifier_matches<B: TrainingBackend>(precision: DType, steps: usize) {
    let device = B::Device::default();
    let reference = Reference::read("pmoe_wrn.safetensors", precision);
    let config = ClassifierConfig::PatchMoe(PatchMoeConfig {
        widen_factor: 1,
        patch_channels: Some(640),
        expert_channels: Some(160),
        ..Default::default()
    });
    let input = InputShape { height: 32, width: 32, channels: 3 };
    let classifier: Classifier<B> =
        config.init(input, 10, &mut ChaCha8Rng::seed_from_u64(0), &device).expect("the configuration is valid");
    let weights = renamed(&reference, "weight/");
    let names = |tensors: &BTreeMap<String, TensorData>| tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&weights), names(&named_tensors(&classifier)), "every parameter has its reference");
    let mut classifier = with_tensors(classifier, weights);
    let images = reference.map::<B>("input", &device);
    let target = reference.tensor::<B, 1>("target", &device).int();

    let (logits, routing) = classifier.valid().forward_with_routing(images.clone().inner());
    assert_close("probabilities, inference", softmax(logits, 1).into_data(), reference.data("probability_eval"));
    let indices = routing.expect("a mixture of experts routes").indices;
    for expert in 0..4 {
        let ours = indices.clone().narrow(1, expert, 1).squeeze_dim::<2>(1).into_data().convert::<i64>();
        assert_eq!(ours, reference.data(&format!("selected_eval/expert_{expert}")), "expert {expert} selects");
    }

    let losses = values(reference.data("loss_per_step"));
    for (step, &expected) in losses.iter().enumerate().take(steps) {
        let (probabilities, value, gradients) = differentiate(|| {
            let logits = classifier.forward(images.clone());
            let probabilities = softmax(logits.clone(), 1).into_data();
            let loss = cross_entropy(logits, target.clone());
            let value = values(loss.clone().into_data())[0];
            (probabilities, value, loss.backward())
        });
        if step == 0 {
            assert_close("probabilities, training", probabilities, reference.data("probability_train"));
        }
        assert!((value - expected).abs() / expected < TOLERANCE, "loss of step {step}: {value} against {expected}");
        let mut visitor = Gradients::<B> { of_loss: &gradients, path: Vec::new(), found: BTreeMap::new() };
        classifier.visit_network(&mut visitor);
        if step == 0 {
            let references = renamed(&reference, "grad/");
            for (name, expected) in &references {
                // A bias that only feeds batch normalizations has a gradient of exactly zero (1e-15 in the
                // reference). Rounding there is measured against the gradient of the same layer's weight.
                let size = norm(&values(expected.clone()));
                let floor = match name.strip_suffix("bias") {
                    Some(layer) if size < 1e-12 => norm(&values(references[&format!("{layer}weight")].clone())),
                    _ => f64::MIN_POSITIVE,
                };
                let ours = visitor.found[name].clone();
                assert_close_from(&format!("gradient of {name}"), ours, expected.clone(), floor);
            }
        }
        classifier = DescendBy { rate: 0.1, gradients: &visitor.found }.step(classifier);
    }
    if steps < losses.len() {
        return;
    }
    let ours = named_tensors(&classifier);
    for (name, expected) in renamed(&reference, "after_3_steps/") {
        assert_close(&format!("{name} after three steps"), ours[&name].clone(), expected);
    }
    let logits = classifier.valid().forward(images.inner());
    let expected = reference.data("probability_eval_after_3_steps");
    assert_close("probabilities after three steps", softmax(logits, 1).into_data(), expected);
}

fn cross_entropy<B: Backend>(logits: Tensor<B, 2>, target: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    log_softmax(logits, 1).gather(1, target.unsqueeze_dim(1)).mean().neg()
}

macro_rules! on {
    ($backend:ident, $type:ty, $precision:ident, $steps:literal) => {
        mod $backend {
            use super::*;

            #[test]
            fn conformance_gate_of_single_positions() {
                gate_matches::<Autodiff<$type>>("gate_1x1.safetensors", 1, DType::$precision);
            }

            #[test]
            fn conformance_gate_of_square_patches() {
                gate_matches::<Autodiff<$type>>("gate_4x4.safetensors", 4, DType::$precision);
            }

            #[test]
            fn conformance_gate_that_keeps_all() {
                gate_matches::<Autodiff<$type>>("gate_all.safetensors", 1, DType::$precision);
            }

            #[test]
            fn conformance_classifier() {
                classifier_matches::<Autodiff<$type>>(DType::$precision, $steps);
            }
        }
    };
}

on!(flex, burn_flex::Flex, F32, 3);
on!(flex_double, burn_flex::Flex, F64, 3);
on!(ndarray, burn_ndarray::NdArray, F32, 2);
on!(ndarray_double, burn_ndarray::NdArray, F64, 3);
