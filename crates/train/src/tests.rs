//! Training as a whole: determinism, interruption, divergence.

use std::ops::ControlFlow;
use std::path::Path;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::{NdArray, NdArrayDevice};
use patchdoor_data::{AugmentationConfig, DatasetConfig, ImageSet, ShapesConfig, load, stream};
use patchdoor_kernels::TrainingBackend;
use patchdoor_metrics::accuracy;
use patchdoor_model::{
    Classifier, ClassifierConfig, ExpertForm, InputShape, Part, PatchMoeConfig, Pruning, Removal, WeightsDescription,
    save_weights,
};

use crate::training::recompute_statistics;
use crate::{
    AdamConfig, BatchNormStatistics, BatchProgress, CosineConfig, EpochRecord, OptimizerConfig, Outcome,
    ScheduleConfig, SgdConfig, TrainError, Trainable, Trained, TrainingConfig, TrainingData, TrainingObserver, predict,
    predict_with_routing, train, train_restricted,
};

type Learner = Autodiff<Flex>;

fn shapes(count: usize) -> ImageSet {
    let config = DatasetConfig::Shapes(ShapesConfig { train: count, test: 10, seed: 0 });
    load(&config, &[]).expect("shapes need no file").train
}

fn untrained(seed: u64) -> Classifier<Learner> {
    let config = ClassifierConfig::PatchMoe(PatchMoeConfig { widen_factor: 1, ..Default::default() });
    let input = InputShape { height: 32, width: 32, channels: 3 };
    config.init(input, 10, &mut stream(seed, "weights"), &FlexDevice).expect("the configuration is valid")
}

fn bytes(classifier: &Classifier<Learner>) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("weights.safetensors");
    let classes = (0..10).map(|class| class.to_string()).collect();
    let input = InputShape { height: 32, width: 32, channels: 3 };
    let description = WeightsDescription { config: classifier.config(), classes, input };
    save_weights(classifier, &description, &path).expect("the folder is writable");
    fs_err::read(path).expect("just written")
}

const CROP_AND_FLIP: AugmentationConfig = AugmentationConfig { crop_padding: 2, flip: true };

fn recipe() -> TrainingConfig {
    TrainingConfig {
        epochs: 3,
        batch_size: 16,
        learning_rate: 0.05,
        optimizer: OptimizerConfig::Sgd(SgdConfig { momentum: 0.9, nesterov: true, weight_decay: 5e-4 }),
        schedule: ScheduleConfig::Cosine(CosineConfig::default()),
        batch_norm_statistics: BatchNormStatistics::Recomputed,
    }
}

fn fit(
    config: &TrainingConfig,
    checkpoints: Option<&Path>,
    observer: &mut dyn TrainingObserver,
) -> Result<Outcome<Learner>, TrainError> {
    let images = shapes(40);
    let validation = shapes(10);
    let data = TrainingData { training: &images, validation: Some(&validation), augmentation: &CROP_AND_FLIP };
    train(untrained(0), &data, config, 0, checkpoints, observer, &FlexDevice)
}

fn finished(outcome: Result<Outcome<Learner>, TrainError>) -> Trained<Learner> {
    match outcome.expect("training succeeds") {
        Outcome::Finished(trained) => trained,
        Outcome::Interrupted { epochs } => panic!("interrupted after {epochs} epochs"),
    }
}

fn losses(history: &[EpochRecord]) -> Vec<u64> {
    history.iter().map(|record| record.loss.to_bits()).collect()
}

#[test]
fn one_seed_gives_the_same_bits_for_any_number_of_threads() {
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
        pool.install(|| finished(fit(&recipe(), None, &mut ())))
    };
    let (one, two) = (on(1), on(2));
    assert_eq!(losses(&one.history), losses(&two.history));
    assert_eq!(bytes(&one.classifier), bytes(&two.classifier));
}

/// Stops after some epochs, or within the epoch that follows them.
struct StopAfter {
    epochs: usize,
    within_next: bool,
}

impl TrainingObserver for StopAfter {
    fn batch_done(&mut self, progress: &BatchProgress) -> ControlFlow<()> {
        if self.within_next && progress.epoch == self.epochs && progress.step == 1 {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn epoch_done(&mut self, record: &EpochRecord) -> ControlFlow<()> {
        if !self.within_next && record.epoch + 1 == self.epochs {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

#[test]
fn an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one() {
    let adam = TrainingConfig { optimizer: OptimizerConfig::Adam(AdamConfig::default()), ..recipe() };
    for config in [recipe(), adam] {
        let straight = finished(fit(&config, None, &mut ()));
        for within_next in [false, true] {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let stopped = fit(&config, Some(folder.path()), &mut StopAfter { epochs: 2, within_next });
            assert!(matches!(stopped, Ok(Outcome::Interrupted { epochs: 2 })));
            let resumed = finished(fit(&config, Some(folder.path()), &mut ()));
            assert_eq!(losses(&straight.history), losses(&resumed.history));
            assert_eq!(bytes(&straight.classifier), bytes(&resumed.classifier));
        }
    }
}

#[test]
fn a_half_written_checkpoint_is_passed_over() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let stopped = fit(&recipe(), Some(folder.path()), &mut StopAfter { epochs: 1, within_next: false });
    assert!(matches!(stopped, Ok(Outcome::Interrupted { epochs: 1 })));
    let partial = folder.path().join("epoch-0002.partial");
    fs_err::create_dir(&partial).expect("the folder is writable");
    fs_err::write(partial.join("classifier.bin"), b"cut").expect("the folder is writable");
    let resumed = finished(fit(&recipe(), Some(folder.path()), &mut ()));
    assert_eq!(bytes(&resumed.classifier), bytes(&finished(fit(&recipe(), None, &mut ())).classifier));
}

#[test]
fn a_checkpoint_resumes_no_other_training() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let stopped = fit(&recipe(), Some(folder.path()), &mut StopAfter { epochs: 1, within_next: false });
    assert!(matches!(stopped, Ok(Outcome::Interrupted { epochs: 1 })));
    let other = TrainingConfig { learning_rate: 0.06, ..recipe() };
    let error = fit(&other, Some(folder.path()), &mut ()).expect_err("the learning rate differs");
    assert!(error.to_string().contains("belongs to another training"), "{error}");
}

#[test]
fn a_checkpoint_that_another_build_wrote_is_an_error_and_not_a_panic() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let stopped = fit(&recipe(), Some(folder.path()), &mut StopAfter { epochs: 1, within_next: false });
    assert!(matches!(stopped, Ok(Outcome::Interrupted { epochs: 1 })));

    // The same training of a classifier with more experts, whose record has more to read than there is.
    let config = PatchMoeConfig { widen_factor: 1, experts: 5, ..Default::default() };
    let input = InputShape { height: 32, width: 32, channels: 3 };
    let other: Classifier<Learner> = ClassifierConfig::PatchMoe(config)
        .init(input, 10, &mut stream(0, "weights"), &FlexDevice)
        .expect("the configuration is valid");
    let images = shapes(40);
    let data = TrainingData { training: &images, validation: None, augmentation: &CROP_AND_FLIP };
    let error = train(other, &data, &recipe(), 0, Some(folder.path()), &mut (), &FlexDevice).expect_err("it differs");
    assert!(error.to_string().contains("holds a classifier of another structure"), "{error}");

    let state = folder.path().join("epoch-0001/state.json");
    let text = fs_err::read_to_string(&state).expect("just written").replace("\"schema\": 2", "\"schema\": 1");
    fs_err::write(&state, text).expect("the folder is writable");
    let error = fit(&recipe(), Some(folder.path()), &mut ()).expect_err("the layout differs");
    assert!(error.to_string().contains("has layout 1, expected 2; another build"), "{error}");
}

#[test]
fn a_loss_that_is_no_number_stops_training() {
    let config = TrainingConfig { learning_rate: 1e30, ..recipe() };
    let error = fit(&config, None, &mut ()).expect_err("weights overflow");
    assert!(matches!(error, TrainError::Diverged { epoch: 0, .. }), "{error}");
}

#[test]
fn a_tiny_model_learns_eight_images_by_heart() {
    let images = shapes(10).subset(&[0, 1, 2, 3, 4, 5, 6, 7]);
    let data = TrainingData { training: &images, validation: None, augmentation: &AugmentationConfig::default() };
    let config = TrainingConfig {
        epochs: 150,
        batch_size: 8,
        learning_rate: 0.05,
        batch_norm_statistics: BatchNormStatistics::Recomputed,
        ..Default::default()
    };
    let trained = finished(train(untrained(1), &data, &config, 1, None, &mut (), &FlexDevice));
    let predicted = predict(&trained.classifier.valid(), &images, 8, &FlexDevice);
    assert_eq!(accuracy(&predicted, images.labels()), Some(1.0));
    assert!(trained.history.last().is_some_and(|record| record.loss < 0.2));
}

#[test]
fn every_problem_of_a_configuration_is_reported() {
    let config = TrainingConfig {
        epochs: 0,
        learning_rate: f64::NAN,
        optimizer: OptimizerConfig::Sgd(SgdConfig { momentum: 1.0, ..Default::default() }),
        ..Default::default()
    };
    let fields: Vec<String> = config.validate().iter().map(ToString::to_string).collect();
    assert_eq!(
        fields,
        [
            "epochs is 0, expected 1 to 100000",
            "learning-rate is NaN, expected a finite number above 0",
            "optimizer.sgd.momentum is 1, expected a number in [0, 1)",
        ]
    );
}

#[test]
fn routed_predictions_agree_with_plain_ones_and_name_each_experts_patches_in_order() {
    let images = shapes(20);
    let classifier = untrained(0).valid();
    let routed = predict_with_routing(&classifier, &images, 7, &FlexDevice);
    assert_eq!(routed.classes, predict(&classifier, &images, 20, &FlexDevice));
    let selections = routed.selections.expect("the classifier has routers");
    assert_eq!((selections.images(), selections.experts(), selections.patches_per_expert()), (20, 4, 16));

    let last = images.subset(&[19]);
    let alone =
        predict_with_routing(&classifier, &last, 1, &FlexDevice).selections.expect("the classifier has routers");
    for expert in 0..4 {
        let patches = selections.of(19, expert);
        assert_eq!(patches, alone.of(0, expert), "a batch changes no image's routing");
        assert!(patches.is_sorted() && patches.iter().all(|&patch| patch < 64));
    }
}

/// Megabytes of memory this process holds.
#[cfg(target_os = "linux")]
fn resident_megabytes() -> f64 {
    let status = fs_err::read_to_string("/proc/self/status").expect("Linux describes processes");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("memory is described");
    line.trim().trim_end_matches("kB").trim().parse::<f64>().expect("a number") / 1024.0
}

#[cfg(target_os = "linux")]
#[test]
fn recomputing_statistics_keeps_no_feature_maps() {
    let images = shapes(640);
    let pass = || drop(recompute_statistics(untrained(0), &images, 32, &FlexDevice));
    // The first pass fills the allocator's pools; a second one that kept its maps would hold some 300 megabytes more.
    pass();
    let before = resident_megabytes();
    pass();
    let grown = resident_megabytes() - before;
    assert!(grown < 60.0, "{grown} MB more are held after a pass that should hold nothing");
}

fn fit_restricted(
    trainable: &Trainable,
    checkpoints: Option<&Path>,
    observer: &mut dyn TrainingObserver,
) -> Outcome<Learner> {
    let images = shapes(40);
    let data = TrainingData { training: &images, validation: None, augmentation: &AugmentationConfig::default() };
    train_restricted(untrained(0), &data, &recipe(), trainable, 0, checkpoints, observer, &FlexDevice)
        .expect("training succeeds")
}

fn trained_parts(trainable: &Trainable) -> Vec<Part> {
    let trained = finished(Ok(fit_restricted(trainable, None, &mut ())));
    let before = untrained(0).tensors();
    let mut changed: Vec<Part> = Vec::new();
    for (path, data) in trained.classifier.tensors() {
        let part = Part::of(&path);
        if data != before[&path] && !changed.contains(&part) {
            changed.push(part);
        }
    }
    let momentum = |classifier: &Classifier<Learner>| classifier.batch_norm_momentum().to_bits();
    assert_eq!(momentum(&trained.classifier), momentum(&untrained(0)), "thawed at the end");
    changed
}

#[test]
fn only_the_parts_that_may_learn_change_and_the_others_keep_every_bit() {
    assert_eq!(trained_parts(&Trainable::only(&[Part::Router])), [Part::Router]);
    assert_eq!(trained_parts(&Trainable::only(&[Part::Experts])), [Part::Experts]);
    assert_eq!(trained_parts(&Trainable::only(&[Part::Experts, Part::Head])), [Part::Experts, Part::Head]);
    assert_eq!(trained_parts(&Trainable::default()).len(), 4);
}

#[test]
fn filters_that_stay_away_are_zero_after_training_and_the_others_learn() {
    let pruning = Pruning::of(&[0, 17, 63], 64, Removal::Channel);
    let trained = finished(Ok(fit_restricted(&Trainable::without(pruning), None, &mut ())));
    let tensors = trained.classifier.tensors();
    let values = |name: &str| tensors[name].iter::<f32>().collect::<Vec<_>>();
    for filter in 0..64 {
        let (expert, row) = (filter / 16, filter % 16);
        let weights = &values(&format!("experts.{expert}.conv.weight"))[row * 64..(row + 1) * 64];
        let bias = values(&format!("experts.{expert}.conv.bias"))[row];
        let head = values("head.weight");
        let columns = (0..10).map(|class| head[class * 64 + filter]).collect::<Vec<_>>();
        let is_pruned = [0, 17, 63].contains(&filter);
        for part in [weights, &[bias], &columns] {
            assert_eq!(part.iter().all(|&value| value == 0.0), is_pruned, "filter {filter}");
        }
    }
}

#[test]
fn a_restricted_training_resumes_to_the_same_weights() {
    for trainable in [Trainable::only(&[Part::Experts]), Trainable::without(Pruning::of(&[5], 64, Removal::Weights))] {
        let straight = finished(Ok(fit_restricted(&trainable, None, &mut ())));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let stop = &mut StopAfter { epochs: 2, within_next: false };
        let stopped = fit_restricted(&trainable, Some(folder.path()), stop);
        assert!(matches!(stopped, Outcome::Interrupted { epochs: 2 }));
        let resumed = finished(Ok(fit_restricted(&trainable, Some(folder.path()), &mut ())));
        assert!(bytes(&straight.classifier) == bytes(&resumed.classifier), "other weights with {trainable:?}");
    }
}

/// Keeps the loss of every step.
#[derive(Default)]
struct Losses(Vec<f64>);

impl TrainingObserver for Losses {
    fn batch_done(&mut self, progress: &BatchProgress) -> ControlFlow<()> {
        self.0.push(progress.loss);
        ControlFlow::Continue(())
    }
}

/// The loss of each of twelve steps of a small network on a backend.
fn loss_curve<B: TrainingBackend>(expert_form: ExpertForm, rate: f64, device: &B::Device) -> Vec<f64> {
    let model = PatchMoeConfig { widen_factor: 1, patches_per_expert: 64, expert_form, ..Default::default() };
    let input = InputShape { height: 32, width: 32, channels: 3 };
    let classifier = ClassifierConfig::PatchMoe(model).init::<B>(input, 10, &mut stream(0, "weights"), device);
    let images = shapes(24);
    let data = TrainingData { training: &images, validation: None, augmentation: &CROP_AND_FLIP };
    let optimizer = OptimizerConfig::Sgd(SgdConfig { momentum: 0.0, nesterov: false, weight_decay: 0.0 });
    let config = TrainingConfig { epochs: 4, batch_size: 8, learning_rate: rate, optimizer, ..recipe() };
    let mut losses = Losses::default();
    train(classifier.expect("the configuration is valid"), &data, &config, 0, None, &mut losses, device)
        .expect("training succeeds");
    losses.0
}

/// The fast kernels against their default bodies in stock operations, which burn's other CPU backend has.
///
/// Both compute in `f32` (relative rounding 6e-8) and add in another order, so losses differ by roundings, and every
/// step multiplies the difference, since rectifiers open and close by it. Measured: 3e-6 and less up to the fifth step,
/// 7e-5 and less up to the twelfth. A learning rate that is off by a thousandth, as if every gradient were, moves the
/// fifth loss by 2e-5. Experts take all patches here: of two patches with nearly the same score roundings decide which
/// is selected, and a loss then jumps.
#[test]
fn losses_are_the_same_with_the_kernels_and_without() {
    let rate = 0.003;
    let apart = |one: &[f64], other: &[f64]| -> Vec<f64> {
        one.iter().zip(other).map(|(one, other)| ((one - other) / other).abs()).collect()
    };
    let largest = |differences: &[f64]| differences.iter().copied().fold(0.0, f64::max);
    for form in [ExpertForm::Masked, ExpertForm::Gathered] {
        let fast = loss_curve::<Autodiff<Flex>>(form, rate, &FlexDevice);
        let stock = loss_curve::<Autodiff<NdArray>>(form, rate, &NdArrayDevice::default());
        assert_eq!((fast.len(), stock.len()), (12, 12));
        let differences = apart(&fast, &stock);
        assert!(largest(&differences[..1]) <= 1e-6, "{form:?}: {differences:?}");
        assert!(largest(&differences[..5]) <= 1e-5, "{form:?}: {differences:?}");
        assert!(largest(&differences) <= 3e-4, "{form:?}: {differences:?}");

        let wrong = loss_curve::<Autodiff<Flex>>(form, rate * 1.001, &FlexDevice);
        let differences = apart(&wrong, &stock);
        assert!(largest(&differences[..5]) > 1e-5, "an error of a thousandth goes unnoticed: {differences:?}");
    }
}
