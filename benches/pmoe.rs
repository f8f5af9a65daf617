//! Images per second of one training step and of evaluation, and memory, as `pytorch/pmoe.py` measures them for
//! `PyTorch`: `cargo run --release -p patchdoor-benches --example pmoe -- [--gathered] [--bf16] [WIDEN_FACTOR..]`.
//!
//! `cargo xtask bench --pytorch` runs the two in turns.
#![allow(clippy::print_stdout, reason = "a timing prints what it measures")]

use std::time::Instant;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::optim::{GradientsParams, Optimizer, SgdConfig};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::{Flex, FlexDevice};
use patchdoor_kernels::{Precision, differentiate, multiplies_bf16};
use patchdoor_model::{Classifier, ClassifierConfig, ExpertForm, InputShape, PatchMoeConfig};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

type B = Autodiff<Flex>;

const BATCH: usize = 128;

fn step(
    classifier: Classifier<B>,
    optimizer: &mut impl Optimizer<Classifier<B>, B>,
    images: &Tensor<B, 4>,
    labels: &Tensor<B, 1, Int>,
) -> Classifier<B> {
    let gradients = differentiate(|| {
        let logits = classifier.forward(images.clone());
        let loss = -log_softmax(logits, 1).gather(1, labels.clone().unsqueeze_dim(1)).mean();
        GradientsParams::from_grads(loss.backward(), &classifier)
    });
    optimizer.step(0.01, classifier, gradients)
}

/// Median of the images per second of some runs.
fn rate(runs: usize, mut work: impl FnMut()) -> f64 {
    let mut rates: Vec<f64> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            work();
            BATCH as f64 / start.elapsed().as_secs_f64()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[runs / 2]
}

/// MiB of this process: now (`VmRSS`) or at most (`VmHWM`); 0 where the system does not say.
fn resident(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok()).unwrap_or(0) / 1024
}

fn main() {
    // As the runner does it: work that starts on the pool's own threads wakes nobody up for each of its operations.
    rayon::scope(|_| measure());
}

fn measure() {
    let widens: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let expert_form = if std::env::args().any(|argument| argument == "--gathered") {
        ExpertForm::Gathered
    } else {
        ExpertForm::Masked
    };
    if std::env::args().any(|argument| argument == "--bf16") {
        assert!(multiplies_bf16(), "--bf16 takes a processor with AVX512-BF16");
        Precision::Bf16.choose();
    }
    let before = resident("VmRSS");
    let device = FlexDevice;
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let pixels: Vec<f32> = (0..BATCH * 32 * 32 * 3).map(|_| rng.random()).collect();
    let images = Tensor::<B, 4>::from_data(TensorData::new(pixels, [BATCH, 32, 32, 3]), &device);
    let labels: Vec<i32> = (0..BATCH).map(|_| rng.random_range(0..10)).collect();
    let labels = Tensor::<B, 1, Int>::from_data(TensorData::new(labels, [BATCH]), &device);
    for widen_factor in if widens.is_empty() { vec![1, 2, 4, 10] } else { widens } {
        let config = ClassifierConfig::PatchMoe(PatchMoeConfig { widen_factor, expert_form, ..Default::default() });
        let input = InputShape { height: 32, width: 32, channels: 3 };
        let classifier = config.init(input, 10, &mut rng, &device).expect("the configuration is valid");
        let mut optimizer = SgdConfig::new().init();
        let mut classifier = Some(classifier);
        let mut train = || {
            let trained = step(classifier.take().expect("put back"), &mut optimizer, &images, &labels);
            classifier = Some(trained);
        };
        let runs = (40 / widen_factor).max(3);
        train();
        train();
        let training = rate(runs, train);
        let classifier = classifier.expect("put back").valid();
        let inputs = images.clone().inner();
        let evaluation = rate(runs, || drop(classifier.forward(inputs.clone()).into_data()));
        let peak = resident("VmHWM");
        println!(
            "widen {widen_factor:2}: training {training:7.1}, evaluation {evaluation:7.1} images/s, \
             memory {before} MiB before, {peak} MiB at most"
        );
    }
}
