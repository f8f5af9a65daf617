//! Properties of routing, sizes of the networks, weights on the disk.

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::NdArray;
use patchdoor_kernels::differentiate;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

use crate::weights::named_tensors;
use crate::{
    Classifier, ClassifierConfig, ExpertForm, GateOrder, InputShape, PatchMoeConfig, PatchRouter, WideResNetConfig,
};

const INPUT: InputShape = InputShape { height: 32, width: 32, channels: 3 };

fn build<B: Backend>(config: &ClassifierConfig, seed: u64) -> Classifier<B> {
    config.init(INPUT, 10, &mut ChaCha8Rng::seed_from_u64(seed), &B::Device::default()).expect("valid")
}

fn patch_moe(config: PatchMoeConfig) -> ClassifierConfig {
    ClassifierConfig::PatchMoe(config)
}

fn images(batch: usize, seed: u64) -> Tensor<Flex, 4> {
    Tensor::from_data(TensorData::new(uniform(batch * 32 * 32 * 3, seed), [batch, 32, 32, 3]), &FlexDevice)
}

fn numbers<const D: usize>(tensor: Tensor<Flex, D>) -> Vec<f32> {
    tensor.into_data().to_vec().expect("the tensor holds f32")
}

fn uniform(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(0.0..1.0)).collect()
}

#[test]
fn published_networks_have_the_published_numbers_of_parameters() {
    let moe = build::<Flex>(&patch_moe(PatchMoeConfig::default()), 0);
    assert_eq!(moe.parameters(), 3_962_890);
    let dense = build::<Flex>(&ClassifierConfig::WideResnet(WideResNetConfig::default()), 0);
    assert_eq!(dense.parameters(), 7_438_730);
}

#[test]
fn a_configuration_says_whether_its_network_has_batch_normalization() {
    let moe = patch_moe(PatchMoeConfig { widen_factor: 1, ..Default::default() });
    let dense = ClassifierConfig::WideResnet(WideResNetConfig { widen_factor: 1, ..Default::default() });
    for config in [moe, dense] {
        assert_eq!(config.network().has_batch_norm(), !build::<Flex>(&config, 0).norms().is_empty());
    }
}

#[test]
fn a_seed_gives_the_same_weights_on_every_backend() {
    let config = patch_moe(PatchMoeConfig { widen_factor: 1, ..Default::default() });
    let flex = named_tensors(&build::<Flex>(&config, 3));
    let ndarray = named_tensors(&build::<NdArray>(&config, 3));
    assert_eq!(flex, ndarray);
    assert_ne!(flex, named_tensors(&build::<Flex>(&config, 4)));
}

/// Asserts that both are the same up to the rounding of f32.
#[track_caller]
fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-6 * largest, "{found}, expected {expected}, largest {largest}");
    }
}

/// A classifier whose normalizations do something: every constant of theirs is drawn.
fn build_trained<B: Backend>(config: &ClassifierConfig, seed: u64) -> Classifier<B> {
    let classifier = build::<B>(config, seed);
    let mut tensors = classifier.tensors();
    for (index, (path, data)) in tensors.iter_mut().enumerate() {
        let drawn = || uniform(data.num_elements(), seed + index as u64);
        if path.ends_with("gamma") || path.ends_with("variance") {
            *data = TensorData::new(drawn().iter().map(|value| value + 0.5).collect::<Vec<_>>(), data.shape.clone());
        } else if path.ends_with("beta") || path.ends_with("mean") || path.ends_with("bias") {
            *data = TensorData::new(drawn().iter().map(|value| value - 0.5).collect::<Vec<_>>(), data.shape.clone());
        }
    }
    classifier.with_tensors(tensors)
}

/// A masked, a gathered and a dense network.
fn kinds() -> [ClassifierConfig; 3] {
    let moe = |expert_form| patch_moe(PatchMoeConfig { widen_factor: 1, expert_form, ..Default::default() });
    let dense = ClassifierConfig::WideResnet(WideResNetConfig { widen_factor: 1, ..Default::default() });
    [moe(ExpertForm::Masked), moe(ExpertForm::Gathered), dense]
}

#[test]
fn inference_folds_normalizations_into_convolutions_and_changes_nothing() {
    for config in kinds() {
        let folded = build_trained::<Flex>(&config, 5);
        // Nothing is folded where a pass is recorded; frozen, it has the same constants.
        let recorded = build_trained::<Autodiff<Flex>>(&config, 5).freeze_all_but(&[]);
        let images = images(6, 1);
        let expected = differentiate(|| recorded.forward(Tensor::from_inner(images.clone())).inner());
        let (found, expected) = (numbers(folded.forward(images)), numbers(expected));
        assert!(expected.iter().any(|value| value.abs() > 0.1), "nothing to compare");
        assert_close(&found, &expected);
    }
}

#[test]
fn a_batch_gives_what_its_images_give() {
    for config in kinds() {
        let classifier = build_trained::<Flex>(&config, 6);
        // More than two parts of a batch, the last one smaller.
        let images = images(75, 2);
        let (logits, routing) = classifier.forward_with_routing(images.clone());
        let indices = |routing: &[crate::Routing<Flex>]| {
            routing
                .iter()
                .map(|layer| layer.expert_choice().expect("expert choice").indices.to_data())
                .collect::<Vec<_>>()
        };
        let (mut alone, mut selected) = (Vec::new(), Vec::new());
        for image in 0..75 {
            let (logits, routing) = classifier.forward_with_routing(images.clone().narrow(0, image, 1));
            alone.extend(numbers(logits));
            selected.extend(indices(&routing).into_iter().flat_map(|data| data.iter::<i64>().collect::<Vec<_>>()));
        }
        assert!(numbers(logits) == alone, "logits differ in their bits");
        let together: Vec<i64> = indices(&routing).iter().flat_map(|data| data.iter::<i64>()).collect();
        assert!(together == selected, "selections differ");
    }
}

#[test]
fn every_variant_gives_one_logit_per_class() {
    for expert_form in [ExpertForm::Masked, ExpertForm::Gathered] {
        for gate_order in [GateOrder::SoftmaxThenSelect, GateOrder::SelectThenSoftmax] {
            for (patch_size, patches_per_expert) in [(1, 16), (2, 5), (4, 1)] {
                let config = patch_moe(PatchMoeConfig {
                    widen_factor: 1,
                    experts: 3,
                    expert_form,
                    gate_order,
                    patch_size,
                    patches_per_expert,
                    expert_kernel: 3,
                    ..Default::default()
                });
                let (logits, routing) = build::<Flex>(&config, 0).forward_with_routing(images(2, 0));
                assert_eq!(logits.dims(), [2, 10]);
                assert_eq!(routing.len(), 1, "one layer routes");
                let routing = routing[0].expert_choice().expect("experts choose patches");
                assert_eq!(routing.weights.dims(), [2, 3, 64 / (patch_size * patch_size)]);
                assert_eq!(routing.indices.dims(), [2, 3, patches_per_expert]);
            }
        }
    }
}

#[test]
fn experts_that_take_every_patch_compute_the_same_in_both_forms() {
    // With all patches selected nothing is masked, so gathering changes only the order of positions.
    let config =
        |expert_form| PatchMoeConfig { widen_factor: 1, patches_per_expert: 64, expert_form, ..Default::default() };
    let logits = |form| build::<Flex>(&patch_moe(config(form)), 5).forward(images(2, 1)).into_data();
    let tolerance = burn::tensor::Tolerance::<f32>::rel_abs(1e-4, 1e-5);
    logits(ExpertForm::Masked).assert_approx_eq(&logits(ExpertForm::Gathered), tolerance);
}

/// Experts choose among the patches of one image, so that no image can fill an expert's buffer at the cost of another, as in
/// mixtures with a capacity (arXiv:2402.05526, 2410.22884).
///
/// What experts select is the same to the patch. Logits may differ by the rounding of sums of 64 numbers, because a product
/// with one row adds in another order than one with many: by some 64 * 6e-8 of their size.
#[test]
fn an_images_answer_does_not_depend_on_its_batch_mates() {
    let moe = |expert_form, expert_kernel| {
        let config = PatchMoeConfig { widen_factor: 1, gate_init_std: 1.0, ..Default::default() };
        patch_moe(PatchMoeConfig { expert_form, expert_kernel, ..config })
    };
    let dense = ClassifierConfig::WideResnet(WideResNetConfig { widen_factor: 1, ..Default::default() });
    for config in [moe(ExpertForm::Masked, 1), moe(ExpertForm::Masked, 3), moe(ExpertForm::Gathered, 1), dense] {
        for (seed, mates, place) in [(0, 1, 0), (1, 1, 1), (2, 6, 3), (3, 8, 8)] {
            let mut classifier = build::<Flex>(&config, seed);
            let (image, others) = (images(1, seed), images(mates, seed + 100));
            let mut batch: Vec<_> = (0..mates).map(|mate| others.clone().narrow(0, mate, 1)).collect();
            batch.insert(place, image.clone());
            let batch = Tensor::cat(batch, 0);
            let (alone, alone_routing) = classifier.forward_with_routing(image);
            let (together, together_routing) = classifier.forward_with_routing(batch.clone());
            let values = |logits: Tensor<Flex, 2>| logits.into_data().into_vec::<f32>().expect("f32");
            let alone = values(alone);
            let largest = alone.iter().fold(0.0f32, |largest, logit| largest.max(logit.abs()));
            let error = |together: Tensor<Flex, 2>| {
                let together = values(together.narrow(0, place, 1));
                alone.iter().zip(together).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
            };
            assert!(error(together.clone()) < 64.0 * 6e-8, "{}: {}", config.network().name(), error(together));
            assert_eq!(alone_routing.len(), together_routing.len());
            for (alone, together) in alone_routing.iter().zip(&together_routing) {
                let choices = [alone, together].map(|routing| routing.expert_choice().expect("experts choose"));
                let [alone, together] = choices.map(|choice| choice.indices.clone());
                assert_eq!(alone.into_data(), together.narrow(0, place, 1).into_data());
            }
            // What would tie an image to its batch is seen: normalization with the statistics of the batch.
            classifier.set_collects_statistics(true);
            assert!(error(classifier.forward(batch)) > 0.01, "{}", config.network().name());
        }
    }
}

#[test]
fn every_problem_of_a_configuration_is_reported() {
    let config =
        patch_moe(PatchMoeConfig { widen_factor: 0, patches_per_expert: 70, expert_kernel: 2, ..Default::default() });
    let problems: Vec<String> = config.validate(INPUT, 10).iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "widen-factor is 0, expected 1 to 64",
            "patches-per-expert is 70, expected 1 to 64 (the 8x8 feature map has 64 patches)",
            "expert-kernel is 2, expected 1, 3 or 5",
        ]
    );
}

/// Routes `[1, patch, channel]` patches with one expert.
fn route(patches: &[Vec<f32>], kernel: &[f32], selected: usize, order: GateOrder) -> (Vec<i32>, Vec<f32>) {
    let channels = kernel.len();
    let kernels = Tensor::from_data(TensorData::new(kernel.to_vec(), [1, channels, 1, 1]), &FlexDevice);
    let router = PatchRouter::<Flex>::with_kernels(kernels, selected, order);
    let flat: Vec<f32> = patches.iter().flatten().copied().collect();
    let routing = router.route(Tensor::from_data(TensorData::new(flat, [1, patches.len(), channels]), &FlexDevice));
    let indices = routing.indices.into_data().convert::<i32>().into_vec().expect("i32");
    (indices, routing.weights.into_data().into_vec().expect("f32"))
}

#[test]
fn ties_go_to_the_lower_patch() {
    // All scores are equal, so the first three of five patches win.
    let (indices, weights) = route(&vec![vec![1.0]; 5], &[2.0], 3, GateOrder::SoftmaxThenSelect);
    assert_eq!(indices, [0, 1, 2]);
    assert_eq!(weights, [0.2, 0.2, 0.2, 0.0, 0.0]);
}

#[test]
fn both_gate_orders_match_the_hand_calculation() {
    // Scores ln 1, ln 2, ln 5: softmax 1/8, 2/8, 5/8.
    let patches = [1.0f32, 2.0, 5.0].map(|x| vec![x.ln()]);
    let close = |ours: Vec<f32>, expected: [f32; 3]| ours.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
    let (indices, weights) = route(&patches, &[1.0], 2, GateOrder::SoftmaxThenSelect);
    assert_eq!(indices, [1, 2]);
    assert!(close(weights, [0.0, 0.25, 0.625]));
    // Among the selected: 2/7, 5/7.
    let (_, weights) = route(&patches, &[1.0], 2, GateOrder::SelectThenSoftmax);
    assert!(close(weights, [0.0, 2.0 / 7.0, 5.0 / 7.0]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn weights_sum_to_one_over_the_selected(seed in 0u64..1000, selected in 1usize..12) {
        let values = uniform(12 * 3, seed);
        let patches: Vec<Vec<f32>> = values.chunks(3).map(<[f32]>::to_vec).collect();
        let (indices, weights) = route(&patches, &[1.0, -2.0, 0.5], selected, GateOrder::SelectThenSoftmax);
        prop_assert_eq!(indices.len(), selected);
        prop_assert!(indices.is_sorted_by(|a, b| a < b));
        prop_assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        prop_assert_eq!(weights.iter().filter(|&&weight| weight > 0.0).count(), selected);
    }

    #[test]
    fn permuting_patches_permutes_the_selection(seed in 0u64..1000, shift in 1usize..12) {
        let values = uniform(12 * 3, seed);
        let patches: Vec<Vec<f32>> = values.chunks(3).map(<[f32]>::to_vec).collect();
        let mut rotated = patches.clone();
        rotated.rotate_left(shift);
        let kernel = [1.0, -2.0, 0.5];
        let (before, _) = route(&patches, &kernel, 4, GateOrder::SoftmaxThenSelect);
        let (after, _) = route(&rotated, &kernel, 4, GateOrder::SoftmaxThenSelect);
        let mut expected: Vec<i32> = before.iter().map(|&index| (index + 12 - shift as i32) % 12).collect();
        expected.sort_unstable();
        prop_assert_eq!(after, expected);
    }

    #[test]
    fn selecting_all_patches_is_a_plain_softmax(seed in 0u64..1000) {
        let values = uniform(8 * 2, seed);
        let patches: Vec<Vec<f32>> = values.chunks(2).map(<[f32]>::to_vec).collect();
        let (_, first) = route(&patches, &[3.0, -1.0], 8, GateOrder::SoftmaxThenSelect);
        let (_, second) = route(&patches, &[3.0, -1.0], 8, GateOrder::SelectThenSoftmax);
        prop_assert!(first.iter().zip(&second).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}

/// Central finite differences in double precision; random scores keep away from ties.
#[test]
fn gate_gradients_match_finite_differences() {
    type Double = Autodiff<NdArray>;
    let device = burn_ndarray::NdArrayDevice::default();
    let (batch, count, channels, selected) = (2, 9, 3, 4);
    let draw = |count: usize, seed: u64| -> Vec<f64> { uniform(count, seed).into_iter().map(f64::from).collect() };
    let patches = draw(batch * count * channels, 1);
    let kernel = draw(2 * channels, 2);
    let upstream = draw(batch * 2 * count, 3);
    let tensor = |values: &[f64], shape: [usize; 3]| {
        Tensor::<Double, 3>::from_data(TensorData::new(values.to_vec(), shape), (&device, DType::F64))
    };
    for order in [GateOrder::SoftmaxThenSelect, GateOrder::SelectThenSoftmax] {
        let loss = |patches: Tensor<Double, 3>, kernel: Tensor<Double, 3>| {
            let kernels = kernel.reshape([2, channels, 1, 1]);
            let routing = PatchRouter::with_kernels(kernels, selected, order).route(patches);
            (routing.weights * tensor(&upstream, [batch, 2, count])).sum()
        };
        let value = |patches: &[f64], kernel: &[f64]| {
            let data = loss(tensor(patches, [batch, count, channels]), tensor(kernel, [1, 2, channels])).into_data();
            data.as_slice::<f64>().expect("f64")[0]
        };
        let patch_tensor = tensor(&patches, [batch, count, channels]).require_grad();
        let kernel_tensor = tensor(&kernel, [1, 2, channels]).require_grad();
        let gradients = differentiate(|| loss(patch_tensor.clone(), kernel_tensor.clone()).backward());
        let analytic = |of: &Tensor<Double, 3>| -> Vec<f64> {
            of.grad(&gradients).expect("takes part").into_data().into_vec().expect("f64")
        };
        let step = 1e-6;
        for (i, analytic) in analytic(&patch_tensor).into_iter().enumerate() {
            let (mut up, mut down) = (patches.clone(), patches.clone());
            up[i] += step;
            down[i] -= step;
            let numeric = (value(&up, &kernel) - value(&down, &kernel)) / (2.0 * step);
            assert!((numeric - analytic).abs() < 1e-7, "{order:?} patch {i}: {numeric} against {analytic}");
        }
        for (i, analytic) in analytic(&kernel_tensor).into_iter().enumerate() {
            let (mut up, mut down) = (kernel.clone(), kernel.clone());
            up[i] += step;
            down[i] -= step;
            let numeric = (value(&patches, &up) - value(&patches, &down)) / (2.0 * step);
            assert!((numeric - analytic).abs() < 1e-7, "{order:?} kernel {i}: {numeric} against {analytic}");
        }
    }
}

fn bits(classifier: &Classifier<Flex>) -> std::collections::BTreeMap<String, Vec<u32>> {
    let bits = |data: TensorData| data.iter::<f32>().map(f32::to_bits).collect();
    classifier.tensors().into_iter().map(|(name, data)| (name, bits(data))).collect()
}

#[test]
fn pruned_filters_are_exactly_zero_and_nothing_else_changes() {
    use crate::{Pruning, Removal};

    let moe = patch_moe(PatchMoeConfig { widen_factor: 1, ..Default::default() });
    let dense = ClassifierConfig::WideResnet(WideResNetConfig { widen_factor: 1, ..Default::default() });
    // Filter 17 of 4 x 16 is the second of expert 1; of the dense network it is filter 17 of its last convolution.
    for (config, path, row, inputs) in [(moe, "experts.1.conv", 1, 64), (dense, "group3.conv2", 17, 64 * 9)] {
        for removal in [Removal::Weights, Removal::Channel] {
            // Biases start at zero; a one shows that they are pruned.
            let mut classifier = build::<Flex>(&config, 0);
            let biases = classifier.tensors().into_iter().filter(|(name, _)| name.ends_with("bias"));
            let ones = biases.map(|(name, data)| (name, TensorData::ones::<f32, _>(data.shape)));
            classifier = classifier.with_tensors(ones.collect());
            let mut expected = classifier.tensors();
            let before = bits(&classifier);
            let after = bits(&classifier.prune(&Pruning::of(&[17], 64, removal)));
            for (name, values) in &after {
                let mut wanted = before[name].clone();
                let zero = 0.0f32;
                if *name == format!("{path}.weight") {
                    wanted[row * inputs..(row + 1) * inputs].fill(zero.to_bits());
                } else if *name == format!("{path}.bias") {
                    wanted[row] = zero.to_bits();
                } else if name == "head.weight" && removal == Removal::Channel {
                    for class in 0..10 {
                        wanted[class * 64 + 17] = zero.to_bits();
                    }
                }
                let numbers = |bits: &[u32]| bits.iter().map(|&bits| f32::from_bits(bits)).collect::<Vec<_>>();
                assert_eq!(numbers(values), numbers(&wanted), "{name}");
                expected.remove(name);
            }
            assert!(expected.is_empty());
        }
    }
}

#[test]
fn filter_activity_leads_to_the_same_logits() {
    for form in [ExpertForm::Masked, ExpertForm::Gathered] {
        let moe = patch_moe(PatchMoeConfig { widen_factor: 1, expert_form: form, ..Default::default() });
        let dense = ClassifierConfig::WideResnet(WideResNetConfig { widen_factor: 1, ..Default::default() });
        for config in [moe, dense] {
            let classifier = build::<Flex>(&config, 1);
            let activity = classifier.filter_activity(images(2, 0));
            let weight = classifier.tensors().remove("head.weight").expect("a head");
            let weight = Tensor::<Flex, 2>::from_data(weight, &FlexDevice);
            // Biases start at zero, so logits are features times weights.
            let logits = activity.features.matmul(weight.transpose());
            assert_close(&numbers(logits), &numbers(classifier.forward(images(2, 0))));
            assert_eq!(activity.outputs.dims()[3], 64);
            assert_eq!(classifier.filter_groups().iter().map(|group| group.count).sum::<usize>(), 64);
        }
    }
}

#[test]
fn what_experts_make_of_an_image_alone_adds_up_to_the_logits() {
    let moe = patch_moe(PatchMoeConfig { widen_factor: 1, gate_init_std: 0.1, ..Default::default() });
    let dense = ClassifierConfig::WideResnet(WideResNetConfig { widen_factor: 1, ..Default::default() });
    for (config, experts) in [(moe, 4), (dense, 1)] {
        let classifier = build::<Flex>(&config, 1);
        let biases = TensorData::new((0..10u8).map(|class| f32::from(class) / 10.0).collect::<Vec<_>>(), [10]);
        let classifier = classifier.with_tensors([("head.bias".to_owned(), biases.clone())].into());
        let (logits, alone) = classifier.forward_by_expert(images(3, 0));
        assert_eq!(alone.dims(), [3, experts, 10]);
        // Every expert has the head's biases.
        let biases = Tensor::<Flex, 1>::from_data(biases, &FlexDevice).reshape([1, 1, 10]);
        let sum = (alone - biases.clone()).sum_dim(1) + biases;
        assert_close(&numbers(sum.reshape([3, 10])), &numbers(logits.clone()));
        assert_eq!(numbers(logits), numbers(classifier.forward(images(3, 0))));
    }
}

/// Expert 0 passes over nothing, expert 1 over three patches, the others over all but those they take.
fn blocked() -> Vec<Vec<u16>> {
    vec![vec![], vec![0, 7, 63], (16..64).collect(), (0..48).collect()]
}

#[test]
fn experts_take_the_best_of_the_patches_that_they_do_not_pass_over() {
    for form in [ExpertForm::Masked, ExpertForm::Gathered] {
        let config = patch_moe(PatchMoeConfig {
            widen_factor: 1,
            gate_init_std: 0.5,
            expert_form: form,
            ..PatchMoeConfig::default()
        });
        let network = build_trained::<Flex>(&config, 0);
        let of = network.clone().block_patches(&blocked()).expect("experts choose");
        let scores = |network: &Classifier<Flex>| numbers(network.forward_with_scores(images(3, 1)).expect("a map").1);
        let (before, after) = (scores(&network), scores(&of));
        let (logits, routing) = of.forward_with_routing(images(3, 1));
        let choice = routing[0].expert_choice().expect("experts choose");
        let taken = choice.indices.to_data().iter::<i64>().collect::<Vec<_>>();
        let weights = numbers(choice.weights.clone());
        for (row, taken) in taken.chunks(16).enumerate() {
            let (own, blocked) = (&before[row * 64..][..64], &blocked()[row % 4]);
            let mut order = (0..64u16).filter(|patch| !blocked.contains(patch)).collect::<Vec<_>>();
            // Those that are not passed over score what they scored.
            let score = |scores: &[f32], patch: &u16| scores[usize::from(*patch)].to_bits();
            assert!(order.iter().all(|patch| score(own, patch) == score(&after[row * 64..], patch)));
            order.sort_by(|&a, &b| own[usize::from(b)].total_cmp(&own[usize::from(a)]).then(a.cmp(&b)));
            let mut best = order[..16].iter().map(|&patch| i64::from(patch)).collect::<Vec<_>>();
            best.sort_unstable();
            assert_eq!(taken, best);
            assert!(blocked.iter().all(|&patch| weights[row * 64 + usize::from(patch)] == 0.0));
        }
        assert_ne!(numbers(logits.clone()), numbers(network.forward(images(3, 1))));
        // Side by side, members pass over the same patches.
        let other = build_trained::<Flex>(&config, 1).block_patches(&blocked()).expect("experts choose");
        let twice = Tensor::cat(vec![images(3, 1), images(3, 1)], 3);
        let both = numbers(Classifier::forward_members(&[&of, &other], twice));
        let [first, second] = [0, 1].map(|member| {
            let rows = both.chunks(10).enumerate().filter(|(row, _)| row % 2 == member);
            rows.flat_map(|(_, row)| row.to_vec()).collect::<Vec<_>>()
        });
        assert_close(&first, &numbers(logits));
        assert_close(&second, &numbers(other.forward(images(3, 1))));
    }
}

#[test]
fn blocked_patches_add_up_and_saved_weights_know_them() {
    use crate::{WeightsDescription, load_classifier, load_weights, save_weights};

    let config = patch_moe(PatchMoeConfig { widen_factor: 1, gate_init_std: 0.5, ..Default::default() });
    let network = build::<Flex>(&config, 0);
    let one = |expert: usize, patches: &[u16]| {
        (0..4).map(|other| if other == expert { patches.to_vec() } else { Vec::new() }).collect::<Vec<_>>()
    };
    let twice = network.clone().block_patches(&one(1, &[63, 7])).expect("experts choose");
    let twice = twice.block_patches(&one(1, &[0, 7])).expect("experts choose");
    let expected = PatchMoeConfig { blocked_patches: one(1, &[0, 7, 63]), ..config.network().nearest_patch_moe() };
    assert_eq!(twice.config(), patch_moe(expected));

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("weights.safetensors");
    let classes = (0..10).map(|class| class.to_string()).collect();
    let description = WeightsDescription { config: twice.config(), classes, input: INPUT };
    save_weights(&twice, &description, &path).expect("saved");
    let (loaded, _) = load_classifier::<Flex>(&path, &FlexDevice).expect("loaded");
    assert_eq!(numbers(loaded.forward(images(2, 1))), numbers(twice.forward(images(2, 1))));
    let refused = load_weights(network, &path).expect_err("another structure").to_string();
    assert!(refused.contains("blocked-patches = [[],[0,7,63],[],[]]"), "{refused}");

    let dense = ClassifierConfig::WideResnet(WideResNetConfig { widen_factor: 1, ..Default::default() });
    let refused = build::<Flex>(&dense, 0).block_patches(&one(0, &[])).expect_err("no experts").to_string();
    assert_eq!(refused, "wide-resnet has no routing that could be given");
}

#[test]
fn what_blocked_patches_see_has_no_part_in_the_answer() {
    use crate::patches_that_see;

    for (form, order) in [
        (ExpertForm::Masked, GateOrder::SoftmaxThenSelect),
        (ExpertForm::Masked, GateOrder::SelectThenSoftmax),
        (ExpertForm::Gathered, GateOrder::SoftmaxThenSelect),
        (ExpertForm::Gathered, GateOrder::SelectThenSoftmax),
    ] {
        let config = PatchMoeConfig {
            widen_factor: 1,
            gate_init_std: 0.5,
            expert_form: form,
            gate_order: order,
            ..PatchMoeConfig::default()
        };
        let network = build_trained::<Flex>(&patch_moe(config.clone()), 0);
        // Any window of six pixels, and any two; and all patches but the last, fewer than an expert takes.
        let mut sets = patches_that_see(&config, INPUT, 6);
        let corner = sets.len() - 1;
        sets.push((0..63).collect());
        let bits = |images: Tensor<Flex, 4>| {
            let logits = network.forward_blocked(images, &sets).expect("experts choose");
            logits
                .into_iter()
                .map(|logits| numbers(logits).into_iter().map(f32::to_bits).collect::<Vec<_>>())
                .collect::<Vec<_>>()
        };
        let window = |value: f32| {
            let square = Tensor::<Flex, 4>::full([2, 6, 6, 3], value, &FlexDevice);
            images(2, 1).slice_assign([0..2, 26..32, 26..32, 0..3], square)
        };
        let (black, white) = (bits(window(0.0)), bits(window(1.0)));
        assert_eq!(black[corner], white[corner], "the last set is of the patches that see the corner");
        assert_ne!(black[0], white[0], "the first is of others");
        let first = |value: f32| {
            let square = Tensor::<Flex, 4>::full([2, 10, 10, 3], value, &FlexDevice);
            bits(images(2, 1).slice_assign([0..2, 0..10, 0..10, 0..3], square))
        };
        assert_eq!(first(0.0)[corner + 1], first(1.0)[corner + 1], "one patch is left, and nothing else counts");
        // With no patch blocked it is the network itself.
        let own = network.forward_blocked(images(2, 1), &[Vec::new()]).expect("experts choose").remove(0);
        assert_eq!(numbers(own), numbers(network.forward(images(2, 1))));
    }
    let dense = ClassifierConfig::WideResnet(WideResNetConfig { widen_factor: 1, ..Default::default() });
    assert!(build::<Flex>(&dense, 0).forward_blocked(images(1, 0), &[]).is_err());
}

#[test]
fn lists_of_blocked_patches_that_cannot_be_are_reported() {
    let said = |blocked_patches: Vec<Vec<u16>>| {
        let config = patch_moe(PatchMoeConfig { blocked_patches, ..PatchMoeConfig::default() });
        config.validate(INPUT, 10).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert!(said(vec![]).is_empty() && said(blocked()).is_empty());
    let expected = "expected no list or 4, each of at most 48 rising numbers below 64";
    assert_eq!(said(vec![vec![1]]), [format!("blocked-patches is [[1]], {expected}")]);
    for wrong in [vec![64], vec![3, 3], vec![4, 3], (0..49).collect()] {
        let found = said(vec![vec![], wrong, vec![], vec![]]);
        assert!(found.len() == 1 && found[0].ends_with(expected), "{found:?}");
    }
}

#[test]
fn a_frozen_classifier_answers_in_training_as_in_inference_and_keeps_its_statistics() {
    use crate::Part;

    let config = patch_moe(PatchMoeConfig { widen_factor: 1, gate_init_std: 0.1, ..Default::default() });
    let classifier = build::<Autodiff<Flex>>(&config, 0);
    let image = Tensor::<Autodiff<Flex>, 4>::from_inner(images(2, 5));
    let inference = build::<Flex>(&config, 0).forward(images(2, 5)).into_data();
    let frozen = classifier.clone().freeze_all_but(&[Part::Router]);
    let before = named_tensors(&frozen);
    let gradients = differentiate(|| {
        let trained = frozen.forward(image.clone());
        trained.clone().into_data().assert_approx_eq::<f32>(&inference, burn::tensor::Tolerance::relative(1e-4));
        assert_eq!(before, named_tensors(&frozen), "no statistic moved");
        burn::optim::GradientsParams::from_grads(trained.sum().backward(), &frozen)
    });
    assert_eq!(gradients.len(), 1, "only the router's kernels learn");
    // Thawed, it normalizes by the batch again.
    let thawed = frozen.thaw(0.01);
    let logits = |classifier: &Classifier<_>| differentiate(|| classifier.forward(image.clone()).into_data());
    assert_eq!(logits(&thawed), logits(&classifier));
    assert_ne!(before, named_tensors(&thawed));
}

#[test]
fn a_configuration_is_named_as_in_toml_and_adding_a_network_needs_no_second_name() {
    for config in [patch_moe(PatchMoeConfig::default()), WideResNetConfig::default().into()] {
        let value = serde_json::to_value(&config).expect("plain values");
        let tag = value.as_object().and_then(|tagged| tagged.keys().next()).expect("externally tagged");
        assert_eq!(tag, config.network().name());
        let classifier = build::<Flex>(&config, 0);
        assert_eq!((classifier.config(), classifier.classes()), (config, 10));
    }
}

#[test]
fn a_quick_network_is_thin_and_keeps_all_else() {
    let chosen =
        PatchMoeConfig { patch_channels: Some(640), expert_channels: Some(160), experts: 2, ..Default::default() };
    let mut quick = patch_moe(chosen);
    quick.network_mut().make_quick();
    assert_eq!(quick, patch_moe(PatchMoeConfig { widen_factor: 1, experts: 2, ..Default::default() }));
    let mut quick =
        ClassifierConfig::from(WideResNetConfig { padding: crate::Padding::Symmetric, ..Default::default() });
    quick.network_mut().make_quick();
    assert_eq!((quick.widen_factor(), quick.network().experts()), (1, None));
    assert!(quick.network().expert_choice().is_none());
    // A dense network lends its widths and constants.
    let lent = PatchMoeConfig { widen_factor: 1, padding: crate::Padding::Symmetric, ..Default::default() };
    assert_eq!(quick.network().nearest_patch_moe(), lent);
}

#[test]
fn norms_are_listed_in_order_with_their_parts_and_the_convolutions_before_them() {
    use crate::{NormInput, Part};

    let moe = patch_moe(PatchMoeConfig { widen_factor: 1, experts: 2, ..Default::default() });
    let dense = WideResNetConfig { widen_factor: 1, ..Default::default() }.into();
    let own = |paths: &[&str]| NormInput::SideBySide(paths.iter().map(ToString::to_string).collect());
    let block = |path: &str| NormInput::Sum(vec![format!("{path}.conv2"), format!("{path}.shortcut")]);
    let trunk = [
        ("trunk.group1.norm1", Part::Trunk, own(&["trunk.stem"])),
        ("trunk.group1.norm2", Part::Trunk, own(&["trunk.group1.conv1"])),
        ("trunk.group2.norm1", Part::Trunk, block("trunk.group1")),
        ("trunk.group2.norm2", Part::Trunk, own(&["trunk.group2.conv1"])),
    ];
    let last = [
        vec![
            ("patch_norm", Part::Trunk, block("trunk.group2")),
            ("experts.0.norm", Part::Experts, own(&["patch_conv"])),
            ("experts.1.norm", Part::Experts, own(&["patch_conv"])),
            ("norm", Part::Head, own(&["experts.0.conv", "experts.1.conv"])),
        ],
        vec![
            ("group3.norm1", Part::Trunk, block("trunk.group2")),
            ("group3.norm2", Part::Trunk, own(&["group3.conv1"])),
            ("norm", Part::Head, block("group3")),
        ],
    ];
    for (config, last) in [moe, dense].iter().zip(last) {
        let mut classifier = build::<Flex>(config, 0);
        let tensors = classifier.tensors();
        let found = classifier.norms();
        let listed: Vec<_> = found.iter().map(|layer| (layer.path.as_str(), layer.part, layer.input.clone())).collect();
        assert_eq!(listed, trunk.iter().cloned().chain(last).collect::<Vec<_>>());
        let gammas = tensors.keys().filter(|name| name.ends_with("gamma")).count();
        assert_eq!(found.len(), gammas, "no normalization is left out");
        for layer in &found {
            assert_eq!(Part::of(&layer.path), layer.part);
            // A normalization has as many channels as the convolutions it follows.
            let channels = tensors[&format!("{}.gamma", layer.path)].num_elements();
            let filters = |path: &String| tensors[&format!("{path}.bias")].num_elements();
            match &layer.input {
                NormInput::SideBySide(paths) => assert_eq!(paths.iter().map(filters).sum::<usize>(), channels),
                NormInput::Sum(paths) => assert!(paths.iter().all(|path| filters(path) == channels)),
            }
        }
        // Changes reach the normalization of the same place.
        let parts: Vec<_> = found.iter().map(|layer| layer.part).collect();
        for (index, (part, momentum)) in classifier.momentums().into_iter().enumerate() {
            assert_eq!(part, parts[index]);
            *momentum = 0.5 / (index + 1) as f64;
        }
        for (index, layer) in classifier.norms().iter().enumerate() {
            assert_eq!(layer.norm.momentum.to_bits(), (0.5 / (index + 1) as f64).to_bits(), "{}", layer.path);
        }
    }
}

#[test]
fn taps_hand_out_every_named_value_and_nothing_else() {
    let moe = patch_moe(PatchMoeConfig { widen_factor: 1, ..Default::default() });
    let dense = WideResNetConfig { widen_factor: 1, ..Default::default() }.into();
    let maps: [&[_]; 2] = [
        &[("group1", [2, 32, 32, 16]), ("group2", [2, 16, 16, 32]), ("map", [2, 8, 8, 64]), ("filters", [2, 8, 8, 64])],
        &[
            ("group1", [2, 32, 32, 16]),
            ("group2", [2, 16, 16, 32]),
            ("group3", [2, 8, 8, 64]),
            ("filters", [2, 8, 8, 64]),
        ],
    ];
    for (config, maps) in [moe, dense].iter().zip(maps) {
        let classifier = build::<Flex>(config, 0);
        let (logits, mut taps) = classifier.forward_with_taps(images(2, 0), classifier.taps());
        assert_close(&numbers(logits), &numbers(classifier.forward(images(2, 0))));
        assert_eq!(taps.len(), classifier.taps().len());
        for &(name, shape) in maps {
            let map = taps.remove(name).and_then(crate::Tapped::map).unwrap_or_else(|| panic!("{name} is a map"));
            assert_eq!(map.dims(), shape, "{name}");
        }
        let features = taps.remove("features").and_then(crate::Tapped::features).expect("vectors");
        assert_eq!(features.dims(), [2, 64]);
        assert!(taps.is_empty());
        let (_, taps) = classifier.forward_with_taps(images(2, 0), &["group1"]);
        assert_eq!(taps.keys().collect::<Vec<_>>(), ["group1"]);
    }
}
