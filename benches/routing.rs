//! The gate, and router, experts and head together in both forms, forward and backward.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use patchdoor_benches::{classifier, tensor};
use patchdoor_kernels::differentiate;
use patchdoor_model::{Classifier, ExpertForm, GateOrder, PatchMoe, PatchMoeConfig};

type Inner = Flex;
type Recorded = Autodiff<Flex>;

const BATCH: usize = 64;
const WIDEN_FACTOR: usize = 2;
/// Channels of the map that the gates see.
const CHANNELS: usize = 64 * WIDEN_FACTOR;

fn network<B: Backend<Device = FlexDevice>>(gate_order: GateOrder, expert_form: ExpertForm) -> PatchMoe<B> {
    let config = PatchMoeConfig { widen_factor: WIDEN_FACTOR, gate_order, expert_form, ..Default::default() };
    let Classifier::PatchMoe(network) = classifier(config, &FlexDevice) else {
        unreachable!("configured as a mixture of experts")
    };
    network
}

fn gate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("routing");
    group.throughput(Throughput::Elements(BATCH as u64));
    let orders =
        [("softmax then select", GateOrder::SoftmaxThenSelect), ("select then softmax", GateOrder::SelectThenSoftmax)];
    for (name, order) in orders {
        group.bench_function(BenchmarkId::new("gate forward", name), |bencher| {
            let network = network::<Inner>(order, ExpertForm::default());
            let patches = tensor::<Inner, 3>("patches", [BATCH, 64, CHANNELS], &FlexDevice);
            bencher.iter(|| {
                let routing = network.router().route(patches.clone());
                Inner::sync(&FlexDevice).expect("a backend without queue");
                routing
            });
        });
        group.bench_function(BenchmarkId::new("gate forward and backward", name), |bencher| {
            let network = network::<Recorded>(order, ExpertForm::default());
            let patches = tensor::<Recorded, 3>("patches", [BATCH, 64, CHANNELS], &FlexDevice).require_grad();
            // Weights of a softmax over all patches sum to a constant; squares have a gradient.
            bencher.iter(|| {
                let gradients =
                    differentiate(|| network.router().route(patches.clone()).weights.powi_scalar(2).sum().backward());
                Recorded::sync(&FlexDevice).expect("a backend without queue");
                gradients
            });
        });
    }
    group.finish();
}

fn head(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("routing");
    group.throughput(Throughput::Elements(BATCH as u64));
    for (name, form) in [("masked", ExpertForm::Masked), ("gathered", ExpertForm::Gathered)] {
        group.bench_function(BenchmarkId::new("head forward", name), |bencher| {
            let network = network::<Inner>(GateOrder::default(), form);
            let map = tensor::<Inner, 4>("map", [BATCH, 8, 8, CHANNELS], &FlexDevice);
            bencher.iter(|| {
                let output = network.forward_map(map.clone());
                Inner::sync(&FlexDevice).expect("a backend without queue");
                output
            });
        });
        group.bench_function(BenchmarkId::new("head forward and backward", name), |bencher| {
            let network = network::<Recorded>(GateOrder::default(), form);
            let map = tensor::<Recorded, 4>("map", [BATCH, 8, 8, CHANNELS], &FlexDevice).require_grad();
            bencher.iter(|| {
                let gradients = differentiate(|| network.forward_map(map.clone()).0.powi_scalar(2).sum().backward());
                Recorded::sync(&FlexDevice).expect("a backend without queue");
                gradients
            });
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = Criterion::default().sample_size(20); targets = gate, head }
criterion_main!(benches);
