//! The kernels of GPU backends on a Vulkan driver that needs no GPU, against the CPU's: values and gradients.

mod support;

use burn::backend::Autodiff;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::Flex;
use patchdoor_kernels::{
    ConvOptions, Kernels, SgdStep, TrainingBackend, Vulkan, add, average_positions, average_statistics,
    batch_norm_relu, choose_patches, cross_entropy, differentiate, fold_statistics, gather_weighted, grouped_conv2d,
    join, pack_pixels, scale_shift_relu, take_images, weighted_batch_norm_relu, weighted_scale_shift_relu,
};
use support::values;

type Host = Autodiff<Flex>;
type Device = Autodiff<Vulkan>;

/// Named results of one operation.
type Found = Vec<(&'static str, Vec<f64>)>;

/// Both round differently, and sum in another order.
const TOLERANCE: f64 = 2e-6;

fn input<B: AutodiffBackend, const D: usize>(seed: u64, shape: [usize; D]) -> Tensor<B, D> {
    let data = TensorData::new(values(seed, shape.iter().product()), shape);
    Tensor::from_data(data, &B::Device::default()).require_grad()
}

fn numbers(data: &TensorData) -> Vec<f64> {
    data.iter::<f64>().collect()
}

/// An operation's output, and the gradients of its product with fixed numbers for its inputs.
struct Pass<B: AutodiffBackend> {
    found: Found,
    gradients: B::Gradients,
}

impl<B: AutodiffBackend> Pass<B> {
    fn of<const D: usize>(output: &Tensor<B, D>) -> Self {
        let upstream = input::<B, D>(99, output.dims()).detach();
        let loss = (output.clone() * upstream).sum();
        Self { found: vec![("output", numbers(&output.to_data()))], gradients: loss.backward() }
    }

    fn gradient<const D: usize>(mut self, name: &'static str, of: &Tensor<B, D>) -> Self {
        let gradient = of.grad(&self.gradients).unwrap_or_else(|| panic!("{name} has a gradient"));
        self.found.push((name, numbers(&gradient.into_data())));
        self
    }
}

/// Asserts that a device finds what the host finds, each result relative to its Euclidean length.
fn agree(what: &str, device: &Found, host: &Found) {
    assert_eq!(device.len(), host.len());
    for ((name, found), (_, expected)) in device.iter().zip(host) {
        assert_eq!(found.len(), expected.len(), "{what}, {name}");
        let length = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
        let apart = length(&mut found.iter().zip(expected).map(|(a, b)| a - b));
        let relative = apart / length(&mut expected.iter().copied()).max(1e-9);
        assert!(relative <= TOLERANCE, "{what}: {name} differs by {relative:.1e}");
    }
}

fn convolution<B: TrainingBackend>(
    size: [usize; 2],
    [channels, out]: [usize; 2],
    groups: usize,
    kernel: usize,
    options: ConvOptions,
) -> Found {
    differentiate(|| {
        let x = input::<B, 4>(1, [3, size[0], size[1], channels]);
        let weight = input::<B, 4>(2, [out, channels / groups, kernel, kernel]);
        let bias = input::<B, 1>(3, [out]);
        let y = grouped_conv2d(x.clone(), weight.clone(), bias.clone(), groups, options);
        Pass::of(&y).gradient("x", &x).gradient("weight", &weight).gradient("bias", &bias).found
    })
}

#[test]
fn convolutions_agree() {
    let symmetric = |kernel: usize, stride| ConvOptions::symmetric([kernel; 2], stride);
    let same = |size, kernel: usize, stride| ConvOptions::same(size, [kernel; 2], stride);
    let odd = ConvOptions { stride: 2, padding: [1, 0, 2, 3] };
    for (size, channels, groups, kernel, options) in [
        ([32, 32], [3, 16], 1, 3, symmetric(3, 1)),
        ([32, 32], [16, 32], 1, 3, same([32, 32], 3, 2)),
        ([32, 32], [16, 32], 1, 3, symmetric(3, 2)),
        ([9, 7], [5, 6], 1, 3, same([9, 7], 3, 2)),
        ([6, 9], [2, 7], 1, 3, odd),
        ([16, 16], [32, 64], 1, 1, symmetric(1, 2)),
        ([8, 8], [64, 64], 1, 3, symmetric(3, 1)),
        ([16, 16], [160, 96], 1, 3, symmetric(3, 1)),
        ([8, 8], [256, 64], 4, 1, symmetric(1, 1)),
        ([8, 8], [32, 16], 4, 3, symmetric(3, 1)),
        ([7, 5], [9, 15], 3, 3, symmetric(3, 1)),
        // Channels that fill wide tiles, in all the ways that positions and taps can be cut.
        ([9, 7], [32, 48], 1, 3, same([9, 7], 3, 2)),
        ([8, 8], [64, 96], 2, 3, symmetric(3, 1)),
        ([9, 10], [48, 160], 1, 3, odd),
        ([8, 8], [32, 32], 1, 2, ConvOptions { stride: 4, padding: [0; 4] }),
        ([4, 4], [16, 16], 1, 3, ConvOptions { stride: 1, padding: [3, 3, 4, 4] }),
        ([1, 1], [16, 16], 1, 1, symmetric(1, 1)),
        ([1, 1], [1, 1], 1, 1, symmetric(1, 1)),
        // Stride above the kernel's side: some inputs reach no output.
        ([8, 8], [4, 4], 1, 2, ConvOptions { stride: 4, padding: [0; 4] }),
        // More zeros than the kernel reaches.
        ([4, 4], [4, 4], 1, 3, ConvOptions { stride: 1, padding: [3, 3, 4, 4] }),
    ] {
        let what = format!("{size:?}, {channels:?} channels, {groups} groups, kernel {kernel}, {options:?}");
        let device = convolution::<Device>(size, channels, groups, kernel, options);
        agree(&what, &device, &convolution::<Host>(size, channels, groups, kernel, options));
    }
}

fn normalization<B: TrainingBackend>(shape: [usize; 4], shift: f64) -> Found {
    differentiate(|| {
        let x = (input::<B, 4>(1, shape) + shift).detach().require_grad();
        let (gamma, beta) = (input::<B, 1>(2, [shape[3]]), input::<B, 1>(3, [shape[3]]));
        let normalized = batch_norm_relu(x.clone(), gamma.clone(), beta.clone(), 1e-3);
        let statistics = [("mean", normalized.mean), ("variance", normalized.variance)];
        let pass = Pass::of(&normalized.output).gradient("x", &x).gradient("gamma", &gamma);
        let mut found = pass.gradient("beta", &beta).found;
        found.extend(statistics.map(|(name, value)| (name, numbers(&value.into_data()))));
        let y = scale_shift_relu(x.clone(), gamma.clone(), beta.clone());
        found.extend(Pass::of(&y).gradient("x", &x).gradient("scale", &gamma).gradient("shift", &beta).found);
        found
    })
}

#[test]
fn normalizations_agree() {
    for shape in [[3, 8, 8, 20], [4, 32, 32, 16], [5, 3, 1, 7], [16, 16, 1, 256], [33, 20, 20, 3]] {
        agree(&format!("{shape:?}"), &normalization::<Device>(shape, 0.0), &normalization::<Host>(shape, 0.0));
    }
}

#[test]
fn a_large_mean_costs_a_variance_no_digits() {
    let variance = |found: Found| found.into_iter().find(|(name, _)| *name == "variance").expect("it has one").1;
    let near = variance(normalization::<Device>([8, 16, 16, 16], 0.0));
    let far = variance(normalization::<Device>([8, 16, 16, 16], 1000.0));
    for (near, far) in near.iter().zip(&far) {
        // The inputs themselves lose digits: f32 near 1000 has steps of 6e-5.
        assert!((near - far).abs() < 1e-4 * near, "{near} and {far}");
    }
}

fn weighted<B: TrainingBackend>(channels: usize, members: usize) -> Found {
    differentiate(|| {
        let map = input::<B, 4>(1, [3, 8, 8, members * channels]);
        let weights = input::<B, 3>(4, [3, members * 4, 64]);
        let (gamma, beta) = (input::<B, 1>(2, [members * 4 * channels]), input::<B, 1>(3, [members * 4 * channels]));
        let normalized = weighted_batch_norm_relu(map.clone(), weights.clone(), gamma.clone(), beta.clone(), 1e-3);
        let pass = Pass::of(&normalized.output).gradient("map", &map).gradient("weights", &weights);
        let mut found = pass.gradient("gamma", &gamma).gradient("beta", &beta).found;
        let y = weighted_scale_shift_relu(map.clone(), weights.clone(), gamma.clone(), beta.clone());
        found.extend(Pass::of(&y).gradient("map", &map).gradient("weights", &weights).gradient("scale", &gamma).found);
        found
    })
}

#[test]
fn weighted_normalizations_agree() {
    for (channels, members) in [(20, 1), (64, 1), (150, 1), (20, 3)] {
        let (found, expected) = (weighted::<Device>(channels, members), weighted::<Host>(channels, members));
        agree(&format!("{channels} channels of {members} members"), &found, &expected);
    }
}

fn gathering<B: TrainingBackend>(positions: usize) -> Found {
    differentiate(|| {
        let (patches, weights) = (input::<B, 4>(1, [3, 16, positions, 12]), input::<B, 3>(4, [3, 4, 16]));
        let indices = (0..12).flat_map(|row| (0..5).map(move |patch| (row + 3 * patch) % 16)).collect::<Vec<i32>>();
        let indices = Tensor::<B, 3, Int>::from_data(TensorData::new(indices, [3, 4, 5]), &B::Device::default());
        let y = gather_weighted(patches.clone(), weights.clone(), indices);
        Pass::of(&y).gradient("patches", &patches).gradient("weights", &weights).found
    })
}

#[test]
fn gathering_agrees() {
    for positions in [1, 4] {
        agree(&format!("{positions} positions"), &gathering::<Device>(positions), &gathering::<Host>(positions));
    }
}

fn choice<B: TrainingBackend>(scores: Vec<f32>, shape: [usize; 3], selected: usize, softmax_first: bool) -> Found {
    differentiate(|| {
        let device = B::Device::default();
        let scores = Tensor::<B, 3>::from_data(TensorData::new(scores, shape), &device).require_grad();
        let (weights, indices) = choose_patches(scores.clone(), selected, softmax_first);
        let mut found = Pass::of(&weights).gradient("scores", &scores).found;
        found.push(("indices", numbers(&indices.into_data())));
        found
    })
}

#[test]
fn choices_of_patches_agree_and_ties_go_to_the_lower_index() {
    let shape = [3, 4, 64];
    let mut tied = values(5, 768);
    for score in &mut tied {
        // A few values only, so that most boundaries are ties.
        *score = (*score * 3.0).round();
    }
    for scores in [values(4, 768), tied, vec![0.25; 768]] {
        for (selected, softmax_first) in [(16, true), (16, false), (1, true), (64, true), (64, false)] {
            let what = format!("{selected} selected, softmax first: {softmax_first}");
            let device = choice::<Device>(scores.clone(), shape, selected, softmax_first);
            agree(&what, &device, &choice::<Host>(scores.clone(), shape, selected, softmax_first));
        }
    }
    let equal = choice::<Device>(vec![0.25; 768], shape, 16, true);
    let (_, indices) = equal.last().expect("it has indices");
    assert!(indices.chunks(16).all(|row| row.iter().enumerate().all(|(place, &patch)| patch == place as f64)));
}

fn elementwise<B: TrainingBackend>() -> Found {
    differentiate(|| {
        let (left, right) = (input::<B, 4>(1, [3, 8, 8, 20]), input::<B, 4>(2, [3, 8, 8, 20]));
        let mean = average_positions(add(left.clone(), right.clone()));
        let mut found = Pass::of(&mean).gradient("left", &left).gradient("right", &right).found;
        let parts: Vec<Tensor<B, 2>> = (0..4).map(|part| input(part, [3, 5])).collect();
        let joined = join(parts.clone());
        let mut pass = Pass::of(&joined);
        for part in &parts {
            pass = pass.gradient("part", part);
        }
        found.extend(pass.found);
        let scores = input::<B, 3>(6, [3, 4, 64]);
        found.extend(Pass::of(&softmax(scores.clone(), 2)).gradient("scores", &scores).found);
        found
    })
}

#[test]
fn sums_averages_and_joined_tensors_agree() {
    agree("elementwise", &elementwise::<Device>(), &elementwise::<Host>());
}

fn loss<B: TrainingBackend>(logits: Vec<f32>) -> Found {
    differentiate(|| {
        let device = B::Device::default();
        let logits = Tensor::<B, 2>::from_data(TensorData::new(logits, [300, 10]), &device).require_grad();
        let labels: Vec<i32> = (0..300).map(|image| image % 10).collect();
        let labels = Tensor::<B, 1, Int>::from_data(TensorData::new(labels, [300]), &device);
        let scored = cross_entropy(logits.clone(), labels.clone());
        let totals = numbers(&scored.totals.into_data());
        let gradients = (scored.mean.clone() * 3.0).backward();
        let gradient = numbers(&logits.grad(&gradients).expect("logits have a gradient").into_data());
        let stock = log_softmax(logits.clone(), 1).gather(1, labels.unsqueeze_dim(1)).mean().neg();
        let stock_gradients = (stock.clone() * 3.0).backward();
        let stock_gradient = numbers(&logits.grad(&stock_gradients).expect("logits have a gradient").into_data());
        let found = vec![("mean", numbers(&scored.mean.into_data())), ("gradient", gradient)];
        agree("the loss", &found, &vec![("mean", numbers(&stock.into_data())), ("gradient", stock_gradient)]);
        found.into_iter().chain([("totals", totals)]).collect()
    })
}

#[test]
fn losses_agree_and_count_hits() {
    let logits: Vec<f32> = values(8, 3000).iter().map(|logit| logit * 20.0).collect();
    agree("cross-entropy", &loss::<Device>(logits.clone()), &loss::<Host>(logits));
    // All logits equal: class 0 is taken, which is right for every tenth image.
    let (_, totals) = loss::<Device>(vec![0.5; 3000]).pop().expect("it has totals");
    assert!((totals[0] / (300.0 * 10.0_f64.ln()) - 1.0).abs() < 1e-5 && (totals[1] - 30.0).abs() < 1e-6, "{totals:?}");
}

fn statistics<B: TrainingBackend>() -> Found {
    let statistic = |seed, channels| input::<B, 1>(seed, [channels]).detach();
    let (means, variances) = average_statistics(
        (0..3).map(|group| statistic(group, 20)).collect(),
        (3..6).map(|group| statistic(group, 20)).collect(),
        statistic(7, 60),
        statistic(8, 60),
        0.1,
    );
    means.into_iter().chain(variances).map(|average| ("statistic", numbers(&average.into_data()))).collect()
}

#[test]
fn running_statistics_agree() {
    agree("running statistics", &statistics::<Device>(), &statistics::<Host>());
}

fn folded<B: TrainingBackend>() -> Found {
    let list = |seed: u64| (seed..seed + 3).map(|group| input::<B, 1>(group, [20])).collect::<Vec<_>>();
    let (gammas, betas) = (list(0), list(9));
    // A backward pass uses its graph up, so each output has one of its own.
    let fold = || {
        let variances = list(6).into_iter().map(|variance| (variance + 1.5).detach()).collect();
        let means = list(3).into_iter().map(Tensor::detach).collect();
        fold_statistics(gammas.clone(), betas.clone(), means, variances, 1e-3)
    };
    differentiate(|| {
        let scale = Pass::of(&fold().0).gradient("gamma", &gammas[1]).found;
        let shift = Pass::of(&fold().1).gradient("gamma", &gammas[2]).gradient("beta", &betas[0]).found;
        scale.into_iter().chain(shift).collect()
    })
}

#[test]
fn folded_statistics_agree() {
    agree("folded statistics", &folded::<Device>(), &folded::<Host>());
    let inner = || {
        let list =
            |seed: u64| (seed..seed + 3).map(|group| input::<Device, 1>(group, [20]).inner()).collect::<Vec<_>>();
        let variances = list(6).into_iter().map(|variance| variance + 1.5).collect();
        fold_statistics(list(0), list(9), list(3), variances, 1e-3)
    };
    let (scale, shift) = inner();
    let found = vec![("output", numbers(&scale.into_data())), ("output", numbers(&shift.into_data()))];
    let host = folded::<Host>().into_iter().filter(|(name, _)| *name == "output").collect();
    agree("without gradients", &found, &host);
}

fn steps<B: Kernels>(step: SgdStep) -> Found {
    let shapes = [70, 3, 100_000, 1, 257];
    let list = |seed: u64| -> Vec<_> {
        let one = |(index, &length): (usize, &usize)| {
            let data = TensorData::new(values(seed + index as u64, length), [length]);
            Tensor::<B, 1>::from_data(data, &B::Device::default()).into_primitive().tensor()
        };
        shapes.iter().enumerate().map(one).collect()
    };
    let (mut parameters, mut velocities) = (list(1), Vec::new());
    for gradients in [20, 30, 40] {
        (parameters, velocities) = B::sgd_step(parameters, list(gradients), velocities, step);
    }
    let data = |primitive| {
        let tensor = Tensor::<B, 1>::from_primitive(burn::tensor::TensorPrimitive::Float(primitive));
        numbers(&tensor.into_data())
    };
    assert_eq!(velocities.len(), if step.momentum > 0.0 { shapes.len() } else { 0 });
    parameters.into_iter().chain(velocities).map(|primitive| ("list", data(primitive))).collect()
}

#[test]
fn steps_of_the_optimiser_agree() {
    for (weight_decay, momentum, nesterov) in [(0.0, 0.0, false), (5e-4, 0.9, true), (0.01, 0.5, false)] {
        let step = SgdStep { rate: 0.1, weight_decay, momentum, nesterov };
        agree(&format!("{step:?}"), &steps::<Vulkan>(step), &steps::<Flex>(step));
    }
}

fn batch<B: Kernels>() -> Vec<f32> {
    let [height, width, channels] = [7, 5, 3];
    let pixels: Vec<u8> = (0..10 * height * width * channels).map(|index| (index * 37 % 251) as u8).collect();
    let device = B::Device::default();
    let draws = vec![0, 0, 2, 2, 9, 1, 0, 4, 3, 1, 2, 2, 3, 0, 4, 1];
    let draws = Tensor::<B, 2, Int>::from_data(TensorData::new(draws, [4, 4]), &device);
    let batch = take_images(pack_pixels::<B>(&pixels, &device), draws, [height, width, channels], 2);
    batch.into_data().to_vec().expect("it holds f32")
}

#[test]
fn batches_made_on_the_device_are_the_same_bits() {
    assert_eq!(batch::<Vulkan>(), batch::<Flex>());
}
