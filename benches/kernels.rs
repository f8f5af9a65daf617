//! Every fused operation at the shapes of the network at widen factor 1, and the whole network at 1, 2 and 4 with
//! its experts in both forms and in bf16, on the CPU backend.

use std::hint::black_box;

use burn::backend::Autodiff;
use burn::optim::{GradientsParams, Optimizer, SgdConfig};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor};
use burn_flex::{Flex, FlexDevice};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use patchdoor_benches::{classifier, tensor};
use patchdoor_kernels::{
    ConvOptions, Precision, average_positions, batch_norm_relu, conv2d, differentiate, grouped_conv2d, multiplies_bf16,
    weighted_batch_norm_relu,
};
use patchdoor_model::{ExpertForm, PatchMoeConfig};

type B = Autodiff<Flex>;

const BATCH: usize = 128;

fn random<const D: usize>(shape: [usize; D]) -> Tensor<B, D> {
    tensor("kernels", shape, &FlexDevice)
}

/// Forward, and forward with backward, of `operation` on leaves of these shapes.
fn both_ways<const N: usize>(
    criterion: &mut Criterion,
    group: &str,
    name: &str,
    mut operation: impl FnMut(bool) -> Tensor<B, N>,
) {
    let mut group = criterion.benchmark_group(group);
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function(BenchmarkId::new(name, "forward"), |bencher| bencher.iter(|| black_box(operation(false))));
    group.bench_function(BenchmarkId::new(name, "both"), |bencher| {
        bencher.iter(|| black_box(differentiate(|| operation(true).backward())));
    });
}

fn convolutions(criterion: &mut Criterion) {
    for (name, size, channels, out, kernel, stride) in [
        ("stem", 32, 3, 16, 3, 1),
        ("group 1", 32, 16, 16, 3, 1),
        ("group 2 strided", 32, 16, 32, 3, 2),
        ("group 2", 16, 32, 32, 3, 1),
        ("group 2 shortcut", 32, 16, 32, 1, 2),
        ("before experts", 16, 32, 64, 3, 2),
        ("group 1 at widen 4", 32, 64, 64, 3, 1),
    ] {
        let options = ConvOptions::same([size, size], [kernel, kernel], stride);
        let x = random([BATCH, size, size, channels]);
        let [weight, bias] = [random([out, channels, kernel, kernel]), random([1, 1, 1, out])];
        both_ways(criterion, "convolution", name, |gradients| {
            let leaf = |tensor: &Tensor<B, 4>| {
                let tensor = tensor.clone().detach();
                if gradients { tensor.require_grad() } else { tensor }
            };
            conv2d(leaf(&x), leaf(&weight), bias.clone().reshape([out]), options)
        });
    }
}

fn normalizations(criterion: &mut Criterion) {
    for (size, channels) in [(32, 16), (16, 32), (8, 64)] {
        let x = random([BATCH, size, size, channels]);
        both_ways(criterion, "batch norm relu", &format!("{size}x{size}x{channels}"), |gradients| {
            let x = if gradients { x.clone().detach().require_grad() } else { x.clone() };
            batch_norm_relu(x, random([channels]), random([channels]), 1e-3).output
        });
    }
}

fn experts(criterion: &mut Criterion) {
    let map = random([BATCH, 8, 8, 64]);
    let weights = random([BATCH, 4, 64]);
    let weight = random([64, 64, 1, 1]);
    both_ways(criterion, "experts", "4 of 64 channels", |gradients| {
        let map = if gradients { map.clone().detach().require_grad() } else { map.clone() };
        let seen = weighted_batch_norm_relu(map, weights.clone(), random([256]), random([256]), 1e-3).output;
        let options = ConvOptions::same([8, 8], [1, 1], 1);
        average_positions(grouped_conv2d(seen, weight.clone(), random([64]), 4, options))
    });
}

fn network(criterion: &mut Criterion) {
    let batch = || {
        let labels = Tensor::<B, 1, Int>::arange(0..128, &FlexDevice).remainder_scalar(10);
        (random([BATCH, 32, 32, 3]).abs(), labels)
    };
    let mut group = criterion.benchmark_group("network");
    group.throughput(Throughput::Elements(BATCH as u64));
    for widen_factor in [1, 2, 4] {
        for (form, expert_form, precision) in [
            ("", ExpertForm::Masked, Precision::F32),
            (", gathered", ExpertForm::Gathered, Precision::F32),
            (", bf16", ExpertForm::Masked, Precision::Bf16),
        ] {
            if precision == Precision::Bf16 && !multiplies_bf16() {
                continue;
            }
            precision.choose();
            let config = PatchMoeConfig { widen_factor, expert_form, ..Default::default() };
            group.bench_function(BenchmarkId::new(format!("training step{form}"), widen_factor), |bencher| {
                let (images, labels) = batch();
                let mut trained = Some(classifier::<B>(config.clone(), &FlexDevice));
                let mut optimizer = SgdConfig::new().init();
                bencher.iter(|| {
                    let classifier = trained.take().expect("put back by the step before");
                    let gradients = differentiate(|| {
                        let logits = classifier.forward(images.clone());
                        let loss = -log_softmax(logits, 1).gather(1, labels.clone().unsqueeze_dim(1)).mean();
                        GradientsParams::from_grads(loss.backward(), &classifier)
                    });
                    trained = Some(optimizer.step(0.01, classifier, gradients));
                });
            });
            group.bench_function(BenchmarkId::new(format!("evaluation{form}"), widen_factor), |bencher| {
                let classifier = classifier::<Flex>(config.clone(), &FlexDevice);
                let images = batch().0.inner();
                bencher.iter(|| black_box(classifier.forward(images.clone()).into_data()));
            });
        }
    }
    group.finish();
    Precision::F32.choose();
}

criterion_group! {
    name = kernels;
    config = Criterion::default().sample_size(20);
    targets = convolutions, normalizations, experts, network
}
criterion_main!(kernels);
