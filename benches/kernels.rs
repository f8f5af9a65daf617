//! Convolutions and normalizations at the sizes they have in a network of widen factor 2.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use patchdoor_benches::tensor;
use patchdoor_kernels::{ConvOptions, batch_norm_relu, conv2d, scale_shift_relu};

type Inner = Flex;
type Recorded = Autodiff<Flex>;

const BATCH: usize = 32;

struct Layer {
    name: &'static str,
    /// Height and width of the input.
    side: usize,
    /// Channels in and out.
    channels: [usize; 2],
    kernel: usize,
    stride: usize,
}

const LAYERS: [Layer; 5] = [
    Layer { name: "stem 3x3", side: 32, channels: [3, 16], kernel: 3, stride: 1 },
    Layer { name: "group 1 3x3", side: 32, channels: [32, 32], kernel: 3, stride: 1 },
    Layer { name: "group 2 3x3 stride 2", side: 32, channels: [32, 64], kernel: 3, stride: 2 },
    Layer { name: "shortcut 1x1 stride 2", side: 32, channels: [32, 64], kernel: 1, stride: 2 },
    Layer { name: "experts 1x1", side: 8, channels: [128, 128], kernel: 1, stride: 1 },
];

impl Layer {
    fn options(&self) -> ConvOptions {
        ConvOptions::same([self.side; 2], [self.kernel; 2], self.stride)
    }

    /// Input, weight and bias.
    fn input<B: Backend<Device = FlexDevice>>(&self) -> (burn::Tensor<B, 4>, burn::Tensor<B, 4>, burn::Tensor<B, 1>) {
        let [from, to] = self.channels;
        (
            tensor("x", [BATCH, self.side, self.side, from], &FlexDevice),
            tensor("weight", [to, from, self.kernel, self.kernel], &FlexDevice),
            tensor("bias", [to], &FlexDevice),
        )
    }
}

fn convolution(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("kernels");
    group.throughput(Throughput::Elements(BATCH as u64));
    for layer in &LAYERS {
        group.bench_function(BenchmarkId::new("convolution forward", layer.name), |bencher| {
            let (x, weight, bias) = layer.input::<Inner>();
            bencher.iter(|| {
                let output = conv2d(x.clone(), weight.clone(), bias.clone(), layer.options());
                Inner::sync(&FlexDevice).expect("a backend without queue");
                output
            });
        });
        group.bench_function(BenchmarkId::new("convolution forward and backward", layer.name), |bencher| {
            let (x, weight, bias) = layer.input::<Recorded>();
            let (x, weight, bias) = (x.require_grad(), weight.require_grad(), bias.require_grad());
            bencher.iter(|| {
                let gradients = conv2d(x.clone(), weight.clone(), bias.clone(), layer.options()).sum().backward();
                Recorded::sync(&FlexDevice).expect("a backend without queue");
                gradients
            });
        });
    }
    group.finish();
}

fn normalization(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("kernels");
    group.throughput(Throughput::Elements(BATCH as u64));
    let maps = [("32x32x32", [BATCH, 32, 32, 32]), ("8x8x128", [BATCH, 8, 8, 128])];
    for (name, shape) in maps {
        let channels = shape[3];
        group.bench_function(BenchmarkId::new("batch norm and relu forward", name), |bencher| {
            let x = tensor::<Inner, 4>("x", shape, &FlexDevice);
            let (gamma, beta) = (tensor("gamma", [channels], &FlexDevice), tensor("beta", [channels], &FlexDevice));
            bencher.iter(|| {
                let normalized = batch_norm_relu(x.clone(), gamma.clone(), beta.clone(), 1e-3);
                Inner::sync(&FlexDevice).expect("a backend without queue");
                normalized
            });
        });
        group.bench_function(BenchmarkId::new("batch norm and relu forward and backward", name), |bencher| {
            let x = tensor::<Recorded, 4>("x", shape, &FlexDevice).require_grad();
            let gamma = tensor("gamma", [channels], &FlexDevice).require_grad();
            let beta = tensor("beta", [channels], &FlexDevice).require_grad();
            bencher.iter(|| {
                let output = batch_norm_relu(x.clone(), gamma.clone(), beta.clone(), 1e-3).output;
                let gradients = output.sum().backward();
                Recorded::sync(&FlexDevice).expect("a backend without queue");
                gradients
            });
        });
        group.bench_function(BenchmarkId::new("scale, shift and relu", name), |bencher| {
            let x = tensor::<Inner, 4>("x", shape, &FlexDevice);
            let (scale, shift) = (tensor("scale", [channels], &FlexDevice), tensor("shift", [channels], &FlexDevice));
            bencher.iter(|| {
                let output = scale_shift_relu(x.clone(), scale.clone(), shift.clone());
                Inner::sync(&FlexDevice).expect("a backend without queue");
                output
            });
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = Criterion::default().sample_size(20); targets = convolution, normalization }
criterion_main!(benches);
