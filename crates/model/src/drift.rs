//! The same training on several backends: how far rounding may take them apart (`docs/backends.md`).

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
use crate::{Classifier, ClassifierConfig, InputShape, PatchMoe, PatchMoeConfig};

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
    /// `[image, expert, selected]`
    selected: Vec<i64>,
    gradients: Tensors,
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
    fn follow<B: TrainingBackend>(
        &self,
        start: &Tensors,
        precision: DType,
        given: Option<&[Step]>,
        steps: usize,
    ) -> Vec<Step> {
        let device = &B::Device::default();
        let start = start.iter().map(|(name, data)| (name.clone(), data.clone().convert_dtype(precision))).collect();
        let mut classifier = with_tensors(self.init::<B>(), start);
        let size = INPUT.height * INPUT.width * INPUT.channels;
        let mut taken = Vec::new();
        for step in 0..steps {
            let pixels = self.pixels[step * BATCH * size..][..BATCH * size].to_vec();
            let pixels = TensorData::new(pixels, [BATCH, INPUT.height, INPUT.width, INPUT.channels]);
            let images = Tensor::<B, 4>::from_data(pixels.convert_dtype(precision), (device, precision));
            let labels = TensorData::new(self.labels[step * BATCH..][..BATCH].to_vec(), [BATCH]);
            let labels = Tensor::<B, 1, Int>::from_data(labels, device);
            let (loss, selected, gradients) = differentiate(|| {
                let network = mixture(&classifier);
                let map = PatchMoe::map_of_members(&[network], images.clone(), &mut Taps::none());
                let scores = network.router().scores(into_patches(map.clone(), self.moe.patch_size, 1));
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
                let routing = network.router().weigh(scores, selection);
                let logits = network.forward_routed(map, &routing, &mut Taps::none());
                let loss = cross_entropy(logits, labels);
                let gradients = gradients_of(&loss, &classifier);
                (values(loss.into_data())[0], selected, gradients)
            });
            classifier = DescendBy { rate: self.rate, gradients: &gradients }.step(classifier);
            let logits = values(classifier.valid().forward(images.inner()).into_data());
            taken.push(Step { loss, selected, gradients, logits });
        }
        taken
    }
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
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

/// The training of the published form at widen factor 1.
fn course() -> Course {
    Course::new(PatchMoeConfig { widen_factor: 1, ..Default::default() }, 0.05)
}

/// Asserts that a backend's first gradients are those in double precision, on the same patches.
fn first_gradients_match<B: TrainingBackend>() {
    let course = course();
    let start = course.start();
    let exact = course.follow::<Flex>(&start, DType::F64, None, 1);
    let ours = course.follow::<B>(&start, DType::F32, Some(&exact), 1);
    for (name, gradient) in &exact[0].gradients {
        let gradient = values(gradient.clone());
        if gradient.iter().all(|value| value.abs() < 1e-12) {
            // A bias that only feeds normalizations: what rounding leaves has no size to compare with.
            continue;
        }
        let error = distance(&values(ours[0].gradients[name].clone()), &gradient);
        assert!(error < 1e-3, "gradient of {name}: {error:.1e} from that in double precision");
    }
}

/// Asserts that a backend's training ends where the one in double precision does, but for rounding.
fn four_steps_match<B: TrainingBackend>() {
    let course = course();
    let start = course.start();
    let exact = course.follow::<Flex>(&start, DType::F64, None, STEPS);
    let ours = course.follow::<B>(&start, DType::F32, Some(&exact), STEPS);
    for (step, (ours, exact)) in ours.iter().zip(&exact).enumerate() {
        let [loss, logits] = [(ours.loss - exact.loss).abs() / exact.loss, distance(&ours.logits, &exact.logits)];
        // Shown by `cargo test -- --nocapture`.
        #[allow(clippy::print_stdout, reason = "a test reports the distances it found")]
        {
            println!("step {step}: loss {loss:.1e}, logits {logits:.1e}");
        }
        assert!(loss < 1e-4 && logits < 1e-3, "step {step}: loss off by {loss:.1e}, logits by {logits:.1e}");
    }
}

#[test]
fn first_gradients_match_on_flex() {
    first_gradients_match::<Flex>();
}

#[test]
fn four_steps_match_on_flex() {
    four_steps_match::<Flex>();
}

#[cfg(feature = "vulkan")]
#[test]
fn first_gradients_match_on_vulkan() {
    first_gradients_match::<Autodiff<patchdoor_kernels::Vulkan>>();
}

#[cfg(feature = "vulkan")]
#[test]
fn four_steps_match_on_vulkan() {
    four_steps_match::<Autodiff<patchdoor_kernels::Vulkan>>();
}

#[test]
fn a_training_multiplies_a_small_change_by_little() {
    // Far below what rounding in single precision moves, so that no rectifier and no selection changes sides.
    let course = course();
    let start = course.start();
    let exact = course.follow::<Flex>(&start, DType::F64, None, STEPS);
    let moved = course.follow::<Flex>(&perturbed(&start, 1e-12, 0), DType::F64, None, STEPS);
    let apart = distance(&moved[STEPS - 1].logits, &exact[STEPS - 1].logits);
    assert!(apart > 0.0 && apart < 1e-10, "logits are {apart:.1e} apart");
    assert_eq!(moved[STEPS - 1].selected, exact[STEPS - 1].selected);
}
