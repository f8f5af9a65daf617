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
use crate::router::Selection;
use crate::taps::Taps;
use crate::weights::{named_tensors, with_tensors};
use crate::{Classifier, ClassifierConfig, InputShape, PatchMoe, PatchMoeConfig, PatchRouter};

/// Relative error allowed against the float64 numbers, in the Euclidean norm of each tensor.
const TOLERANCE: f64 = 1e-4;

/// The same for gradients: a value that rounds to the other side of zero before a rectifier takes all of its gradient with it. Seen are 2.13e-4, of
/// ndarray on a processor without AVX-512, where the forward pass differs by 3e-7.
const GRADIENT_TOLERANCE: f64 = 1e-3;

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

pub(crate) fn values(data: TensorData) -> Vec<f64> {
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
    assert_within(TOLERANCE, name, relative_error(ours, reference, f64::MIN_POSITIVE));
}

fn assert_within(tolerance: f64, name: &str, error: f64) {
    assert!(error < tolerance, "{name}: relative error {error:.2e}");
    // Shown by `cargo test -- --nocapture`.
    #[allow(clippy::print_stdout, reason = "a test reports the error it reached")]
    {
        println!("{name}: relative error {error:.2e}");
    }
}

/// Scores in double precision and how far rounding may move each of ours from them, `[row, patch]`: a row is an expert in
/// an image.
///
/// A dot product of n terms in a precision of unit roundoff u errs by at most n u / (1 - n u) times the sum of the terms'
/// absolute values, in any order and with or without fused multiplications (Higham 2002, Accuracy and Stability of
/// Numerical Algorithms, section 3.1). Each factor that is off adds its distance times the other factor.
struct Exact {
    values: Vec<f64>,
    errors: Vec<f64>,
    patches: usize,
}

/// Bound on the relative error of a dot product.
fn rounding(precision: DType, terms: usize) -> f64 {
    let unit = if precision == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) } / 2.0;
    terms as f64 * unit / (1.0 - terms as f64 * unit)
}

impl Exact {
    /// Of patches and kernels as they are stored. The reference was computed before either was rounded to single
    /// precision.
    fn of_stored(patches: &TensorData, kernel: &TensorData, precision: DType) -> Self {
        let (count, length) = (patches.shape[1], patches.shape[2]);
        let (patches, kernel) = (values(patches.clone()), values(kernel.clone()));
        let stored = rounding(DType::F32, 2);
        let products = |patch: &[f64]| patch.iter().zip(&kernel).map(|(x, w)| x * w).collect::<Vec<_>>();
        let rows: Vec<Vec<f64>> = patches.chunks(length).map(products).collect();
        let size = |products: &Vec<f64>| products.iter().map(|product| product.abs()).sum::<f64>();
        Self {
            values: rows.iter().map(|products| products.iter().sum()).collect(),
            errors: rows.iter().map(|row| (rounding(precision, length) + stored) * size(row)).collect(),
            patches: count,
        }
    }

    /// Whether scores are these but for rounding, and a selection the reference's but for patches that rounding may
    /// have exchanged; returns how many rows have such.
    fn agree(&self, scores: &[f64], ours: &[i64], reference: &[i64]) -> Result<usize, String> {
        for (index, (score, (value, error))) in scores.iter().zip(self.values.iter().zip(&self.errors)).enumerate() {
            if (score - value).abs() > *error {
                return Err(format!("score {index} is {score:e}, expected {value:e} within {error:e}"));
            }
        }
        let rows = self.values.len() / self.patches;
        let selected = reference.len() / rows;
        assert_eq!(ours.len(), reference.len());
        let mut exchanged_rows = 0;
        for row in 0..rows {
            let [ours, reference] = [ours, reference].map(|all| &all[row * selected..][..selected]);
            let at = |patch: i64| row * self.patches + patch as usize;
            // The same number is missing as is too many, unless one is selected twice.
            let added: Vec<i64> = ours.iter().copied().filter(|patch| !reference.contains(patch)).collect();
            let missing: Vec<i64> = reference.iter().copied().filter(|patch| !ours.contains(patch)).collect();
            if added.len() != missing.len() {
                return Err(format!("row {row} selects a patch twice: {ours:?}"));
            }
            for (&added, &missing) in added.iter().flat_map(|added| missing.iter().map(move |missing| (added, missing)))
            {
                let margin = self.values[at(missing)] - self.values[at(added)];
                let rounding = self.errors[at(missing)] + self.errors[at(added)];
                if margin.abs() > rounding {
                    return Err(format!(
                        "row {row} selects patch {added} instead of {missing}, whose score differs by {margin:e}; \
                         rounding explains {rounding:e}"
                    ));
                }
            }
            exchanged_rows += usize::from(!added.is_empty());
        }
        Ok(exchanged_rows)
    }
}

pub(crate) fn integers(data: TensorData) -> Vec<i64> {
    data.convert::<i64>().into_vec().expect("converted to i64")
}

/// What a gate makes of the reference's input.
struct GateNumbers {
    scores: TensorData,
    patches: TensorData,
    selected: Vec<i64>,
    output: TensorData,
    input_gradient: TensorData,
    kernel_gradient: TensorData,
}

/// Runs the gate, going on with the `chosen` patches, or with its own selection.
fn gate<B: AutodiffBackend + Kernels>(
    reference: &Reference,
    side: usize,
    selected: usize,
    chosen: Option<Vec<i64>>,
) -> GateNumbers {
    let device = B::Device::default();
    let input = reference.tensor::<B, 4>("input", &device).require_grad();
    let kernel = reference.tensor::<B, 4>("kernel", &device).require_grad();
    let (scores, patches, ours, output, gradients) = differentiate(|| {
        let map = input.clone().permute([0, 2, 3, 1]);
        let [batch, rows, columns, _] = map.dims();
        let router = PatchRouter::with_kernels(kernel.clone(), selected, crate::GateOrder::SoftmaxThenSelect);
        let patches = into_patches(map.clone(), side, 1);
        let scores = router.scores(patches.clone());
        let own = Selection::best(&scores, selected);
        let ours = integers(own.indices.clone());
        let count = patches.dims()[1];
        let selection = chosen.map_or(own, |chosen| {
            Selection::of(chosen.into_iter().map(|patch| patch as i32).collect(), [batch, 1, selected], count)
        });
        let routing = router.weigh(scores.clone(), selection);
        let weights = spread(routing.weights, [rows, columns], side).reshape([batch, rows, columns, 1]);
        let output = (map * weights).permute([0, 3, 1, 2]);
        let gradients = (output.clone() * reference.tensor("upstream", &device)).sum().backward();
        (scores, patches, ours, output, gradients)
    });
    let gradient = |of: &Tensor<B, 4>| of.grad(&gradients).expect("takes part in the loss").into_data();
    GateNumbers {
        scores: scores.into_data(),
        patches: patches.into_data(),
        selected: ours,
        input_gradient: gradient(&input),
        kernel_gradient: gradient(&kernel),
        output: output.into_data(),
    }
}

/// Compares the scores and the selection of a gate, and what follows from the reference's selection; returns how many
/// images have patches exchanged by rounding.
fn gate_matches<B>(name: &str, reference: &Reference, side: usize) -> Result<usize, String>
where
    B: AutodiffBackend + Kernels,
{
    let expected = integers(reference.data("selected"));
    let selected = reference.data("selected").shape[1];
    let ours = gate::<B>(reference, side, selected, Some(expected.clone()));
    // A patch's numbers go row by row, channels last.
    let kernel = reference.map::<burn_flex::Flex>("kernel", &burn_flex::FlexDevice).into_data();
    let exact = Exact::of_stored(&ours.patches, &kernel, reference.precision);
    let exchanged = exact.agree(&values(ours.scores), &ours.selected, &expected)?;
    assert_close(&format!("{name} output"), ours.output, reference.data("output"));
    assert_close(&format!("{name} gradient of input"), ours.input_gradient, reference.data("grad_input"));
    assert_close(&format!("{name} gradient of kernel"), ours.kernel_gradient, reference.data("grad_kernel"));
    Ok(exchanged)
}

fn published_gate_matches<B: AutodiffBackend + Kernels>(file: &str, side: usize, precision: DType) {
    if let Err(problem) = gate_matches::<B>(file, &Reference::read(file, precision), side) {
        panic!("{file}: {problem}");
    }
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

pub(crate) struct DescendBy<'a> {
    pub(crate) rate: f64,
    pub(crate) gradients: &'a BTreeMap<String, TensorData>,
}

impl DescendBy<'_> {
    pub(crate) fn step<B: Backend>(&self, classifier: Classifier<B>) -> Classifier<B> {
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

pub(crate) fn mixture<B: Backend>(classifier: &Classifier<B>) -> &PatchMoe<B> {
    let Classifier::PatchMoe(network) = classifier else { unreachable!("it was built as a mixture of experts") };
    network
}

/// A pass up to the router: map and scores.
fn half_pass<B: Kernels>(network: &PatchMoe<B>, images: Tensor<B, 4>) -> (Tensor<B, 4>, Tensor<B, 3>) {
    let map = PatchMoe::map_of_members(&[network], images, &mut Taps::none());
    let scores = network.router().scores(into_patches(map.clone(), 1, 1));
    (map, scores)
}

/// Scores of a pass in double precision, and how far ours may be from them given how far its map and kernels are.
fn exact_scores(
    [map, double_map]: [TensorData; 2],
    [kernels, double_kernels]: [TensorData; 2],
    double_scores: TensorData,
    precision: DType,
) -> Exact {
    let [images, experts, patches] = [0, 1, 2].map(|axis| double_scores.shape[axis]);
    let [map, double_map, kernels, double_kernels] = [map, double_map, kernels, double_kernels].map(values);
    let channels = kernels.len() / experts;
    let mut errors = Vec::with_capacity(images * experts * patches);
    for (image, expert, patch) in (0..images)
        .flat_map(|image| (0..experts).map(move |expert| (image, expert)))
        .flat_map(|(image, expert)| (0..patches).map(move |patch| (image, expert, patch)))
    {
        let [x, exact_x] = [&map, &double_map].map(|map| &map[(image * patches + patch) * channels..][..channels]);
        let [w, exact_w] = [&kernels, &double_kernels].map(|kernels| &kernels[expert * channels..][..channels]);
        let sum = |of: &dyn Fn(usize) -> f64| (0..channels).map(|channel| of(channel).abs()).sum::<f64>();
        let distance = sum(&|c| w[c] * (x[c] - exact_x[c])) + sum(&|c| (w[c] - exact_w[c]) * exact_x[c]);
        // The scores in double precision are rounded themselves.
        let rounded = rounding(precision, channels) * sum(&|c| w[c] * x[c])
            + rounding(DType::F64, channels) * sum(&|c| exact_w[c] * exact_x[c]);
        errors.push(distance + rounded);
    }
    Exact { values: values(double_scores), errors, patches }
}

/// What a pass and the same in double precision give.
struct Pass<B: Backend, D: Backend> {
    logits: Tensor<B, 2>,
    double_logits: Tensor<D, 2>,
    /// What the pass in double precision selects.
    selected: Vec<i64>,
    /// The maps before the routers, ours first.
    maps: [TensorData; 2],
}

impl<B: Backend, D: Backend> Pass<B, D> {
    fn assert_close_maps(&self, tolerance: f64, name: &str) {
        let [ours, double] = self.maps.clone();
        let error = relative_error(ours, double, f64::MIN_POSITIVE);
        assert_within(tolerance, &format!("{name}, map before the router"), error);
    }
}

/// Runs a pass beside the same one in double precision; where rounding exchanges patches in ours, it goes on with
/// those of the other, so that what follows can be compared.
fn pass_beside<B: Kernels, D: Kernels>(
    name: &str,
    (single, images): (&PatchMoe<B>, Tensor<B, 4>),
    (double, double_images): (&PatchMoe<D>, Tensor<D, 4>),
    precision: DType,
) -> Pass<B, D> {
    let (map, scores) = half_pass(single, images);
    let (double_map, double_scores) = half_pass(double, double_images);
    let exact = exact_scores(
        [map.to_data(), double_map.to_data()],
        [single.router().weight.val().into_data(), double.router().weight.val().into_data()],
        double_scores.to_data(),
        precision,
    );
    let count = exact.patches;
    let ours = integers(Selection::best(&scores, SELECTED).indices);
    let chosen = Selection::best(&double_scores, SELECTED).indices;
    let [batch, experts, _] = [0, 1, 2].map(|axis| chosen.shape[axis]);
    let selected = integers(chosen);
    let exchanged = exact.agree(&values(scores.to_data()), &ours, &selected);
    let exchanged = exchanged.unwrap_or_else(|problem| panic!("{name}: {problem}"));
    #[allow(clippy::print_stdout, reason = "a test reports what it found")]
    {
        println!("{name}: rounding exchanges patches in {exchanged} of {} rows", batch * experts);
    }
    let selection = || {
        let chosen = selected.iter().map(|&patch| patch as i32).collect();
        Selection::of(chosen, [batch, experts, SELECTED], count)
    };
    let routing = single.router().weigh(scores, selection());
    let double_routing = double.router().weigh(double_scores, selection());
    let maps = [map.to_data(), double_map.to_data()];
    Pass {
        maps,
        logits: single.forward_routed(map, &routing, &mut Taps::none()),
        double_logits: double.forward_routed(double_map, &double_routing, &mut Taps::none()),
        selected,
    }
}

/// Patches that each expert of the reference selects.
const SELECTED: usize = 16;

/// A mixture of experts with the reference's weights.
fn reference_classifier<B: TrainingBackend>(reference: &Reference) -> Classifier<B> {
    let config = ClassifierConfig::PatchMoe(PatchMoeConfig {
        widen_factor: 1,
        patch_channels: Some(640),
        expert_channels: Some(160),
        patches_per_expert: SELECTED,
        ..Default::default()
    });
    let input = InputShape { height: 32, width: 32, channels: 3 };
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let classifier: Classifier<B> =
        config.init(input, 10, &mut rng, &B::Device::default()).expect("the configuration is valid");
    let weights = renamed(reference, "weight/");
    let names = |tensors: &BTreeMap<String, TensorData>| tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&weights), names(&named_tensors(&classifier)), "every parameter has its reference");
    with_tensors(classifier, weights)
}

/// Gradients of a loss by the names of the parameters.
pub(crate) fn gradients_of<B: TrainingBackend>(
    loss: &Tensor<B, 1>,
    classifier: &Classifier<B>,
) -> BTreeMap<String, TensorData> {
    let gradients = loss.backward();
    let mut visitor = Gradients::<B> { of_loss: &gradients, path: Vec::new(), found: BTreeMap::new() };
    classifier.visit_network(&mut visitor);
    visitor.found
}

/// Follows `steps` of the three training steps. Each multiplies the rounding of single precision about
/// tenfold: flex stays under the tolerance through all three; burn-ndarray's convolutions add up
/// their products in a plain row, start at 5e-5 and pass it at the third.
fn classifier_matches<B: TrainingBackend>(precision: DType, steps: usize) {
    type Double = Autodiff<burn_flex::Flex>;
    let (device, double_device) = (B::Device::default(), burn_flex::FlexDevice);
    let reference = Reference::read("pmoe_wrn.safetensors", precision);
    let double_reference = Reference::read("pmoe_wrn.safetensors", DType::F64);
    let mut classifier = reference_classifier::<B>(&reference);
    let mut double = reference_classifier::<Double>(&double_reference);
    let images = reference.map::<B>("input", &device);
    let double_images = double_reference.map::<Double>("input", &double_device);
    let target = reference.tensor::<B, 1>("target", &device).int();
    let double_target = double_reference.tensor::<Double, 1>("target", &double_device).int();
    let inference = |name: &str, classifier: &Classifier<B>, double: &Classifier<Double>| {
        let (plain, double) = (classifier.valid(), double.valid());
        let ours = (mixture(&plain), images.clone().inner());
        pass_beside(name, ours, (mixture(&double), double_images.clone().inner()), precision)
    };

    let pass = inference("inference", &classifier, &double);
    pass.assert_close_maps(TOLERANCE, "inference");
    for expert in 0..4 {
        let rows = pass.selected.chunks(SELECTED).skip(expert).step_by(4);
        let expected = integers(reference.data(&format!("selected_eval/expert_{expert}")));
        assert_eq!(
            rows.flatten().copied().collect::<Vec<_>>(),
            expected,
            "expert {expert} selects in double precision"
        );
    }
    let (logits, routings) = classifier.valid().forward_with_routing(images.clone().inner());
    let choice = routings[0].expert_choice().expect("experts choose patches");
    if integers(choice.indices.to_data()) == pass.selected {
        assert_eq!(logits.into_data(), pass.logits.to_data(), "an ordinary pass is the same");
    }
    let probabilities = softmax(pass.logits, 1).into_data();
    assert_close("probabilities, inference", probabilities, reference.data("probability_eval"));

    let losses = values(reference.data("loss_per_step"));
    for (step, &expected) in losses.iter().enumerate().take(steps) {
        let (pass, loss, gradients, double_gradients) = differentiate(|| {
            let ours = (mixture(&classifier), images.clone());
            let beside = (mixture(&double), double_images.clone());
            let pass = pass_beside(&format!("step {step}"), ours, beside, precision);
            let loss = cross_entropy(pass.logits.clone(), target.clone());
            let double_loss = cross_entropy(pass.double_logits.clone(), double_target.clone());
            let gradients = gradients_of(&loss, &classifier);
            let double_gradients = gradients_of(&double_loss, &double);
            (pass, loss, gradients, double_gradients)
        });
        // After a step, weights differ as the gradients did.
        let tolerance = if step == 0 { TOLERANCE } else { GRADIENT_TOLERANCE };
        pass.assert_close_maps(tolerance, &format!("step {step}"));
        if step == 0 {
            let ours = softmax(pass.logits.clone(), 1).into_data();
            assert_close("probabilities, training", ours, reference.data("probability_train"));
        }
        let value = values(loss.into_data())[0];
        assert!((value - expected).abs() / expected < TOLERANCE, "loss of step {step}: {value} against {expected}");
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
                let ours = gradients[name].clone();
                let error = relative_error(ours, expected.clone(), floor);
                assert_within(GRADIENT_TOLERANCE, &format!("gradient of {name}"), error);
            }
        }
        classifier = DescendBy { rate: 0.1, gradients: &gradients }.step(classifier);
        double = DescendBy { rate: 0.1, gradients: &double_gradients }.step(double);
    }
    if steps < losses.len() {
        return;
    }
    let ours = named_tensors(&classifier);
    for (name, expected) in renamed(&reference, "after_3_steps/") {
        assert_close(&format!("{name} after three steps"), ours[&name].clone(), expected);
    }
    // By now the maps are 2e-4 apart in single precision; probabilities decide, as in the reference.
    let pass = inference("after three steps", &classifier, &double);
    let expected = reference.data("probability_eval_after_3_steps");
    assert_close("probabilities after three steps", softmax(pass.logits, 1).into_data(), expected);
}

pub(crate) fn cross_entropy<B: Backend>(logits: Tensor<B, 2>, target: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    log_softmax(logits, 1).gather(1, target.unsqueeze_dim(1)).mean().neg()
}

macro_rules! on {
    ($backend:ident, $type:ty, $precision:ident, $steps:literal) => {
        mod $backend {
            use super::*;

            #[test]
            fn conformance_gate_of_single_positions() {
                published_gate_matches::<Autodiff<$type>>("gate_1x1.safetensors", 1, DType::$precision);
            }

            #[test]
            fn conformance_gate_of_square_patches() {
                published_gate_matches::<Autodiff<$type>>("gate_4x4.safetensors", 4, DType::$precision);
            }

            #[test]
            fn conformance_gate_that_keeps_all() {
                published_gate_matches::<Autodiff<$type>>("gate_all.safetensors", 1, DType::$precision);
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
#[cfg(feature = "vulkan")]
on!(vulkan, patchdoor_kernels::Vulkan, F32, 3);
on!(ndarray_double, burn_ndarray::NdArray, F64, 3);

/// A gate's numbers in double precision on four patches of two channels, 1, 1 + 2^-26, 1/2 and 1/4 by their scores, of
/// which it selects one.
fn near_tie(precision: DType) -> Reference {
    let tensors = |precision| {
        let small = 2.0f64.powi(-26);
        let data = |values: Vec<f64>, shape: [usize; 4]| TensorData::new(values, shape).convert_dtype(precision);
        BTreeMap::from([
            ("input".to_owned(), data(vec![1.0, 1.0, 0.5, 0.25, 0.0, small, 0.0, 0.0], [1, 2, 2, 2])),
            ("kernel".to_owned(), data(vec![1.0, 1.0], [1, 2, 1, 1])),
            ("upstream".to_owned(), data(vec![1.0, -2.0, 3.0, 0.5, 1.5, 2.0, -1.0, 0.25], [1, 2, 2, 2])),
        ])
    };
    let double = Reference { tensors: tensors(DType::F64), precision: DType::F64 };
    let numbers = gate::<Autodiff<burn_flex::Flex>>(&double, 1, 1, None);
    assert_eq!(numbers.selected, [1], "2^-26 is more than nothing in double precision");
    let mut tensors = tensors(precision);
    tensors.insert("selected".to_owned(), TensorData::new(numbers.selected, [1, 1]));
    for (name, data) in
        [("output", numbers.output), ("grad_input", numbers.input_gradient), ("grad_kernel", numbers.kernel_gradient)]
    {
        tensors.insert(name.to_owned(), data.convert_dtype(precision));
    }
    Reference { tensors, precision }
}

#[test]
fn patches_that_differ_by_less_than_rounding_may_be_exchanged() {
    type Learner = Autodiff<burn_flex::Flex>;
    // In single precision 1 + 2^-26 is 1, and ties go to the lower patch.
    let single = near_tie(DType::F32);
    assert_eq!(gate::<Learner>(&single, 1, 1, None).selected, [0]);
    assert_eq!(gate_matches::<Learner>("near tie", &single, 1), Ok(1));
    assert_eq!(gate_matches::<Learner>("near tie", &near_tie(DType::F64), 1), Ok(0));
}

#[test]
fn a_wrong_selection_is_an_error_in_either_precision() {
    for precision in [DType::F32, DType::F64] {
        // The reference says patch 2, whose score is half of the one that our gate selects.
        let mut reference = near_tie(precision);
        reference.tensors.insert("selected".to_owned(), TensorData::new(vec![2i64], [1, 1]));
        let problem = gate_matches::<Autodiff<burn_flex::Flex>>("wrong", &reference, 1);
        let problem = problem.expect_err("the scores are far apart");
        assert!(problem.contains("patch") && problem.contains("instead of 2"), "{problem}");
    }
    // Scores 4, 3, 2, 1, each known within 0.6.
    let exact = Exact { values: vec![4.0, 3.0, 2.0, 1.0], errors: vec![0.6; 4], patches: 4 };
    let scores = [4.5, 2.5, 2.5, 1.0];
    assert_eq!(exact.agree(&scores, &[0, 1], &[0, 1]), Ok(0));
    // 3 and 2 are 1.0 apart, which is less than 1.2; 4 and 2 are not.
    assert_eq!(exact.agree(&scores, &[0, 2], &[0, 1]), Ok(1));
    let problem = exact.agree(&scores, &[1, 2], &[0, 1]).expect_err("patch 0 is missing");
    assert!(problem.contains("patch 2 instead of 0"), "{problem}");
    assert!(exact.agree(&scores, &[0, 3], &[0, 1]).is_err());
    assert!(exact.agree(&scores, &[0, 0], &[0, 1]).is_err());
    let problem = exact.agree(&[4.0, 3.0, 2.0, 1.7], &[0, 1], &[0, 1]).expect_err("a score is off by more");
    assert!(problem.starts_with("score 3"), "{problem}");
}
