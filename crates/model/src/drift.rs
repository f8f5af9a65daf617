//! How far the same training drifts apart where only rounding differs, and what makes it grow (`docs/backends.md`).

use std::collections::BTreeMap;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{DType, Int, Tensor, TensorData};
use patchdoor_kernels::{TrainingBackend, differentiate};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

use crate::conformance::{DescendBy, cross_entropy, gradients_of, integers, mixture, values};
use crate::patch_moe::into_patches;
use crate::router::Selection;
use crate::taps::Taps;
use crate::weights::{named_tensors, with_tensors};
use crate::{Classifier, ClassifierConfig, InputShape, PatchMoeConfig};

type Flex = Autodiff<burn_flex::Flex>;
type Tensors = BTreeMap<String, TensorData>;

const INPUT: InputShape = InputShape { height: 32, width: 32, channels: 3 };
const BATCH: usize = 32;
const STEPS: usize = 4;

/// A training by plain gradient descent: every step a batch of its own, the step itself taken on the host.
struct Course {
    moe: PatchMoeConfig,
    rate: f64,
    /// Pixels in [0, 1] and labels of all steps.
    pixels: Vec<f32>,
    labels: Vec<i64>,
}

/// What a step saw and left.
struct Step {
    loss: f64,
    /// `[image, expert, patch]`
    scores: Vec<f64>,
    /// `[image, expert, selected]`
    selected: Vec<i64>,
    weights: Tensors,
    /// Of the step's own batch in inference mode, after the step.
    logits: Vec<f64>,
}

impl Course {
    /// Images of one flat rectangle on a flat ground, the rectangle's colour being the class.
    fn new(moe: PatchMoeConfig, rate: f64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for _ in 0..BATCH * STEPS {
            let label = rng.random_range(0..10);
            let ground: [f32; 3] = rng.random();
            let colour = [label as f32 / 10.0, 1.0 - label as f32 / 10.0, 0.5];
            let [top, left] = [0, 1].map(|_| rng.random_range(0..20));
            let [bottom, right] = [top, left].map(|start| start + rng.random_range(4..12));
            for (row, column) in (0..INPUT.height).flat_map(|row| (0..INPUT.width).map(move |column| (row, column))) {
                let inside = (top..bottom).contains(&row) && (left..right).contains(&column);
                pixels.extend(if inside { colour } else { ground });
            }
            labels.push(label);
        }
        Self { moe, rate, pixels, labels }
    }

    fn init<B: TrainingBackend>(&self) -> Classifier<B> {
        let config = ClassifierConfig::PatchMoe(self.moe.clone());
        config.init(INPUT, 10, &mut ChaCha8Rng::seed_from_u64(0), &B::Device::default()).expect("valid")
    }

    fn start(&self) -> Tensors {
        named_tensors(&self.init::<Flex>())
    }

    /// Trains, on the patches that `given` has for each step where there is such.
    fn follow<B: TrainingBackend>(&self, start: &Tensors, precision: DType, given: Option<&[Step]>) -> Vec<Step> {
        let device = &B::Device::default();
        let start = start.iter().map(|(name, data)| (name.clone(), data.clone().convert_dtype(precision))).collect();
        let mut classifier = with_tensors(self.init::<B>(), start);
        let size = INPUT.height * INPUT.width * INPUT.channels;
        let mut steps = Vec::new();
        for step in 0..STEPS {
            let pixels = self.pixels[step * BATCH * size..][..BATCH * size].to_vec();
            let pixels = TensorData::new(pixels, [BATCH, INPUT.height, INPUT.width, INPUT.channels]);
            let images = Tensor::<B, 4>::from_data(pixels.convert_dtype(precision), (device, precision));
            let labels = TensorData::new(self.labels[step * BATCH..][..BATCH].to_vec(), [BATCH]);
            let labels = Tensor::<B, 1, Int>::from_data(labels, device);
            let (loss, scores, selected, gradients) = differentiate(|| {
                let network = mixture(&classifier);
                let trunk = network.trunk.forward(images.clone(), &mut Taps::none());
                let map = network.patch_conv.forward(network.patch_norm.forward(trunk));
                let scores = network.router().scores(into_patches(map.clone(), self.moe.patch_size));
                let own = Selection::best(&scores, self.moe.patches_per_expert);
                let selected = integers(own.indices.clone());
                let selection = match given {
                    Some(given) => {
                        let chosen = given[step].selected.iter().map(|&patch| patch as i32).collect();
                        let patches = scores.dims()[2];
                        Selection::of(chosen, [BATCH, self.moe.experts, self.moe.patches_per_expert], patches)
                    }
                    None => own,
                };
                let routing = network.router().weigh(scores.clone(), selection);
                let logits = network.forward_routed(map, &routing, &mut Taps::none());
                let loss = cross_entropy(logits, labels);
                let gradients = gradients_of(&loss, &classifier);
                (values(loss.into_data())[0], values(scores.into_data()), selected, gradients)
            });
            classifier = DescendBy { rate: self.rate, gradients: &gradients }.step(classifier);
            let logits = values(classifier.valid().forward(images.inner()).into_data());
            steps.push(Step { loss, scores, selected, weights: named_tensors(&classifier), logits });
        }
        steps
    }

    /// Rows, an expert in an image each, whose selections differ, and the largest margin that one of them had in `b`.
    fn exchanged(&self, a: &Step, b: &Step) -> (usize, f64) {
        let (l, n) = (self.moe.patches_per_expert, b.scores.len() / (BATCH * self.moe.experts));
        let rows = a.selected.chunks(l).zip(b.selected.chunks(l)).zip(b.scores.chunks(n));
        let other = rows.filter(|((a, b), _)| a != b).map(|(_, scores)| margin(scores, l)).collect::<Vec<_>>();
        (other.len(), other.iter().copied().fold(0.0, f64::max))
    }
}

/// How far the last selected score is above the first that is not, over the range of the scores.
fn margin(scores: &[f64], selected: usize) -> f64 {
    let mut sorted = scores.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    if selected == sorted.len() {
        return 1.0;
    }
    (sorted[selected - 1] - sorted[selected]) / (sorted[0] - sorted[sorted.len() - 1])
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

/// All weights or all running statistics as one vector.
fn joined(tensors: &Tensors, running: bool) -> Vec<f64> {
    tensors.iter().filter(|(name, _)| name.contains("running") == running).flat_map(|(_, d)| values(d.clone())).collect()
}

/// Each weight moved by at most `relative` of itself.
fn perturbed(start: &Tensors, relative: f64, seed: u64) -> Tensors {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut moved = start.clone();
    for data in moved.values_mut() {
        let values = values(data.clone()).into_iter().map(|w| w * (1.0 + relative * rng.random_range(-1.0..1.0)));
        *data = TensorData::new(values.collect::<Vec<f64>>(), data.shape.clone());
    }
    moved
}

fn show(name: &str, course: &Course, a: &[Step], b: &[Step]) {
    println!("{name}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        let (rows, most) = course.exchanged(a, b);
        let mut worst = (0.0, "");
        for (name, data) in &b.weights {
            let d = distance(&values(a.weights[name].clone()), &values(data.clone()));
            if d > worst.0 { worst = (d, name); }
        }
        println!(
            "  step {i}: loss {:.5} {:.1e} scores {:.1e} rows {rows} (margin up to {most:.1e}) weights {:.1e} running {:.1e} logits {:.1e}  worst {:.1e} {}",
            b.loss,
            (a.loss - b.loss).abs() / b.loss,
            distance(&a.scores, &b.scores),
            distance(&joined(&a.weights, false), &joined(&b.weights, false)),
            distance(&joined(&a.weights, true), &joined(&b.weights, true)),
            distance(&a.logits, &b.logits), worst.0, worst.1
        );
    }
}


#[test]
fn explore() {
    let small = PatchMoeConfig { widen_factor: 1, ..Default::default() };
    let gathered = PatchMoeConfig { expert_form: crate::ExpertForm::Gathered, ..small.clone() };
    for (name, moe) in [
        ("masked", small.clone()),
        ("gathered", gathered.clone()),
        ("gathered 2x2 select first", PatchMoeConfig { patch_size: 2, patches_per_expert: 5, expert_kernel: 3, gate_order: crate::GateOrder::SelectThenSoftmax, ..gathered }),
        ("masked, all 64", PatchMoeConfig { patches_per_expert: 64, ..small.clone() }),
    ] {
        let course = Course::new(moe.clone(), 0.05);
        let start = course.start();
        let truth = course.follow::<Flex>(&start, DType::F64, None);
        println!("==== {name}");
        let flex = course.follow::<Flex>(&start, DType::F32, None);
        show("flex f32 vs f64", &course, &flex, &truth);
        for seed in 0..4 {
            let moved = course.follow::<Flex>(&perturbed(&start, 1e-7, seed), DType::F32, None);
            show(&format!("flex f32 moved {seed} vs flex f32"), &course, &moved, &flex);
        }
        for beta in [5.0, 20.0] {
            let mut shifted = start.clone();
            for (name, data) in &mut shifted {
                if name.ends_with("beta") {
                    *data = TensorData::new(vec![beta; data.num_elements()], data.shape.clone());
                }
            }
            let course = Course::new(moe.clone(), 0.005);
            let truth = course.follow::<Flex>(&shifted, DType::F64, None);
            let flex = course.follow::<Flex>(&shifted, DType::F32, Some(&truth));
            show(&format!("beta {beta}: flex f32 vs f64, given"), &course, &flex, &truth);
            let flex = course.follow::<Flex>(&shifted, DType::F32, None);
            show(&format!("beta {beta}: flex f32 vs f64, free"), &course, &flex, &truth);
            #[cfg(feature = "vulkan")]
            {
                type Vulkan = Autodiff<patchdoor_kernels::Vulkan>;
                show(&format!("beta {beta}: vulkan vs f64, given"), &course, &course.follow::<Vulkan>(&shifted, DType::F32, Some(&truth)), &truth);
            }
        }
        #[cfg(feature = "vulkan")]
        {
            type Vulkan = Autodiff<patchdoor_kernels::Vulkan>;
            let vulkan = course.follow::<Vulkan>(&start, DType::F32, None);
            show("vulkan vs flex", &course, &vulkan, &flex);
            show("vulkan vs f64", &course, &vulkan, &truth);
            show("vulkan vs f64, given", &course, &course.follow::<Vulkan>(&start, DType::F32, Some(&truth)), &truth);
        }
    }
}
