//! Training as a whole: determinism, interruption, divergence.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn_flex::{Flex, FlexDevice};
use patchdoor_data::{AugmentationConfig, DatasetConfig, ImageSet, ShapesConfig, load, stream};
use patchdoor_kernels::differentiate;
use patchdoor_metrics::accuracy;
use patchdoor_model::{
    Classifier, ClassifierConfig, InputShape, Part, PatchMoeConfig, Pruning, Removal, Routers, WeightsDescription,
    save_weights,
};

use crate::manifest::Manifest;
use crate::{
    AdamConfig, Batch, BatchNormStatistics, BatchPass, BatchPosition, BatchProgress, Blind, CosineConfig, EpochRecord,
    Member, Objective, ObjectiveState, OptimizerConfig, Outcome, ScheduleConfig, SgdConfig, TrainError, Trainable,
    Trained, TrainingConfig, TrainingData, TrainingObserver, cross_entropy, predict, predict_with_routing, train,
    train_member, train_restricted,
};

type Learner = Autodiff<Flex>;

fn shapes(count: usize) -> ImageSet {
    let config = DatasetConfig::Shapes(ShapesConfig { train: count, test: 10, seed: 0 });
    load(&config, &[]).expect("shapes need no file").train
}

fn untrained(seed: u64) -> Classifier<Learner> {
    untrained_with(Routers::Trained, seed)
}

fn untrained_with(routers: Routers, seed: u64) -> Classifier<Learner> {
    let config = ClassifierConfig::PatchMoe(PatchMoeConfig { widen_factor: 1, routers, ..Default::default() });
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
        ..TrainingConfig::default()
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
}

#[test]
fn a_checkpoint_of_a_build_that_wrote_no_manifest_is_an_error() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let stopped = fit(&recipe(), Some(folder.path()), &mut StopAfter { epochs: 1, within_next: false });
    assert!(matches!(stopped, Ok(Outcome::Interrupted { epochs: 1 })));
    let checkpoint = folder.path().join("epoch-0001");
    fs_err::remove_file(checkpoint.join(Manifest::FILE)).expect("just written");
    let state = checkpoint.join("state.json");
    let text = fs_err::read_to_string(&state).expect("just written").replace("\"schema\": 3", "\"schema\": 2");
    fs_err::write(&state, text).expect("the folder is writable");
    let error = fit(&recipe(), Some(folder.path()), &mut ()).expect_err("the layout differs");
    assert!(error.to_string().contains("has layout 2, expected 3; another build"), "{error}");
    assert!(state.exists(), "it is left for the build that can read it");
}

/// What a training said of its checkpoints.
#[derive(Default)]
struct Heard {
    refused: Vec<(PathBuf, String)>,
    resumed: Option<usize>,
}

impl TrainingObserver for Heard {
    fn checkpoint_refused(&mut self, path: &Path, reason: &str) {
        assert!(path.is_dir(), "{} is where it was moved to", path.display());
        self.refused.push((path.to_owned(), reason.to_owned()));
    }

    fn resumed(&mut self, history: &[EpochRecord]) {
        self.resumed = Some(history.len());
    }
}

/// A training of two images that was stopped after its second epoch of three, and the weights it would have ended with.
struct Stopped {
    folder: tempfile::TempDir,
    straight: Vec<u8>,
}

const FILES: [&str; 4] = ["classifier.bin", "optimizer.bin", "state.json", Manifest::FILE];

impl Stopped {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let stopped = Self::train(Some(folder.path()), &mut StopAfter { epochs: 2, within_next: false });
        assert!(matches!(stopped, Ok(Outcome::Interrupted { epochs: 2 })));
        Self { folder, straight: bytes(&finished(Self::train(None, &mut ())).classifier) }
    }

    fn train(checkpoints: Option<&Path>, observer: &mut dyn TrainingObserver) -> Result<Outcome<Learner>, TrainError> {
        let images = shapes(10).subset(&[0, 1]);
        let data = TrainingData { training: &images, validation: None, augmentation: &CROP_AND_FLIP };
        let config = TrainingConfig { batch_size: 2, ..recipe() };
        train(untrained(0), &data, &config, 0, checkpoints, observer, &FlexDevice)
    }

    /// Goes on from a damaged copy and checks the weights; returns what was heard.
    fn resume_damaged(&self, damage: impl FnOnce(&Path)) -> Heard {
        let copy = tempfile::tempdir().expect("a temporary folder");
        for epoch in ["epoch-0001", "epoch-0002"] {
            fs_err::create_dir(copy.path().join(epoch)).expect("the folder is writable");
            for file in FILES {
                let file = Path::new(epoch).join(file);
                fs_err::copy(self.folder.path().join(&file), copy.path().join(&file))
                    .expect("two checkpoints are kept");
            }
        }
        damage(copy.path());
        let mut heard = Heard::default();
        let trained = finished(Self::train(Some(copy.path()), &mut heard));
        assert!(bytes(&trained.classifier) == self.straight, "other weights after {:?}", heard.refused);
        assert_eq!(trained.history.iter().map(|record| record.epoch).collect::<Vec<_>>(), [0, 1, 2]);
        let mut left: Vec<_> = fs_err::read_dir(copy.path())
            .expect("it is there")
            .map(|entry| entry.expect("readable").file_name().into_string().expect("our names"))
            .collect();
        left.sort();
        assert_eq!(left, ["epoch-0002", "epoch-0003"], "refused ones go once their epoch is saved again");
        heard
    }
}

/// Changes the bytes of a file in place.
fn damage(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut contents = fs_err::read(path).expect("it is there");
    change(&mut contents);
    fs_err::write(path, contents).expect("the folder is writable");
}

#[test]
fn a_checkpoint_with_a_cut_or_missing_file_is_refused_for_the_one_before() {
    let stopped = Stopped::new();
    let whole = stopped.resume_damaged(|_| {});
    assert_eq!((whole.refused.len(), whole.resumed), (0, Some(2)));
    for file in FILES {
        let newest = Path::new("epoch-0002").join(file);
        let length = fs_err::read(stopped.folder.path().join(&newest)).expect("just written").len();
        // Of zeros as a disk leaves them after a loss of power, shorter, longer, and not there at all.
        let mut heard = vec![
            stopped.resume_damaged(|folder| damage(&folder.join(&newest), |contents| contents.fill(0))),
            stopped.resume_damaged(|folder| damage(&folder.join(&newest), |contents| contents.push(b'}'))),
            stopped.resume_damaged(|folder| fs_err::remove_file(folder.join(&newest)).expect("it is there")),
        ];
        for kept in [0, 1, 7, length / 2, length - 9, length - 2] {
            heard.push(
                stopped.resume_damaged(|folder| damage(&folder.join(&newest), |contents| contents.truncate(kept))),
            );
        }
        for heard in heard {
            assert_eq!(heard.resumed, Some(1), "{file}: {:?}", heard.refused);
            let [(path, reason)] = heard.refused.as_slice() else { panic!("{file}: {:?}", heard.refused) };
            assert!(path.ends_with("epoch-0002.refused"), "{}", path.display());
            assert!(reason.contains(file) || reason == "has a damaged manifest", "{file}: {reason}");
        }
    }
}

#[test]
fn no_flipped_bit_of_a_checkpoint_changes_the_weights_in_the_end() {
    let stopped = Stopped::new();
    for file in FILES {
        let newest = Path::new("epoch-0002").join(file);
        let bits = 8 * fs_err::read(stopped.folder.path().join(&newest)).expect("just written").len();
        // Both ends, where lengths and braces stand, and places in between that share no divisor with the bytes.
        let positions =
            [0, 1, 6, 8, 63, bits - 1, bits - 12].into_iter().chain((0..9).map(|part| bits / 10 * part + 77));
        for bit in positions {
            let heard = stopped.resume_damaged(|folder| {
                damage(&folder.join(&newest), |contents| contents[bit / 8] ^= 1 << (bit % 8));
            });
            let refused = heard.refused.len();
            // Between the words of the manifest a space may become another.
            let seen = refused == 1 || file == Manifest::FILE;
            assert!(seen, "bit {bit} of {file} goes unseen");
            assert_eq!(heard.resumed, Some(2 - refused), "bit {bit} of {file}");
        }
    }
}

#[test]
fn with_both_checkpoints_damaged_training_begins_again() {
    let stopped = Stopped::new();
    let empty = |folder: &Path, name: &str| damage(&folder.join(name), Vec::clear);
    let heard = stopped.resume_damaged(|folder| {
        empty(folder, "epoch-0001/optimizer.bin");
        empty(folder, "epoch-0002/classifier.bin");
    });
    assert_eq!(heard.resumed, Some(0));
    let names = heard.refused.iter().map(|(path, _)| path.file_name().expect("a name").to_string_lossy().into_owned());
    assert_eq!(names.collect::<Vec<_>>(), ["epoch-0002.refused", "epoch-0001.refused"]);
}

#[test]
fn a_refused_checkpoint_stays_until_its_epoch_is_saved_again() {
    let stopped = Stopped::new();
    let folder = stopped.folder.path();
    damage(&folder.join("epoch-0002/state.json"), Vec::clear);
    let within = Stopped::train(Some(folder), &mut StopWithin(1));
    assert!(matches!(within, Ok(Outcome::Interrupted { epochs: 1 })));
    assert!(folder.join("epoch-0002.refused/classifier.bin").is_file());
    let after = Stopped::train(Some(folder), &mut StopAfter { epochs: 2, within_next: false });
    assert!(matches!(after, Ok(Outcome::Interrupted { epochs: 2 })));
    assert!(!folder.join("epoch-0002.refused").exists());
}

/// Stops within an epoch, counted from 0.
struct StopWithin(usize);

impl TrainingObserver for StopWithin {
    fn batch_done(&mut self, progress: &BatchProgress) -> ControlFlow<()> {
        if progress.epoch == self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
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

/// Trains a part of a given classifier.
fn fit_part(
    classifier: Classifier<Learner>,
    recipe: &TrainingConfig,
    trainable: &Trainable,
    checkpoints: Option<&Path>,
    observer: &mut dyn TrainingObserver,
) -> Result<Outcome<Learner>, TrainError> {
    let images = shapes(40);
    let data = TrainingData { training: &images, validation: None, augmentation: &AugmentationConfig::default() };
    train_restricted(classifier, &data, recipe, trainable, 0, checkpoints, observer, &FlexDevice)
}

#[test]
fn frozen_routers_keep_every_bit_under_every_optimiser_and_in_a_training_after_the_training() {
    let decaying = AdamConfig { weight_decay: 0.1, ..AdamConfig::default() };
    let heavy = SgdConfig { momentum: 0.9, nesterov: true, weight_decay: 0.1 };
    let plain = SgdConfig { momentum: 0.0, nesterov: false, weight_decay: 0.1 };
    for optimizer in [OptimizerConfig::Adam(decaying), OptimizerConfig::Sgd(heavy), OptimizerConfig::Sgd(plain)] {
        let recipe = TrainingConfig { epochs: 2, learning_rate: 0.01, optimizer, ..recipe() };
        let fit = |classifier: Classifier<Learner>, trainable: &Trainable| {
            let trained = finished(fit_part(classifier.clone(), &recipe, trainable, None, &mut ())).classifier;
            let (before, after) = (classifier.tensors(), trained.tensors());
            let changed = |part| after.iter().any(|(path, data)| Part::of(path) == part && *data != before[path]);
            let parts = [Part::Trunk, Part::Router, Part::Experts, Part::Head];
            (trained, parts.into_iter().filter(|&part| changed(part)).collect::<Vec<_>>())
        };
        let frozen = untrained_with(Routers::Frozen, 0);
        assert_eq!(frozen.tensors(), untrained(0).tensors(), "they start as routers that learn");
        let (once, changed) = fit(frozen, &Trainable::default());
        assert_eq!(changed, [Part::Trunk, Part::Experts, Part::Head]);
        // As defenses do: some parts of what was trained, thawed at the end, and then all of it.
        let (twice, changed) = fit(once, &Trainable::only(&[Part::Router, Part::Experts]));
        assert_eq!(changed, [Part::Experts]);
        let (_, changed) = fit(twice, &Trainable::default());
        assert_eq!(changed, [Part::Trunk, Part::Experts, Part::Head]);
        let (_, changed) = fit(untrained(0), &Trainable::default());
        assert!(changed.contains(&Part::Router), "others learn");
    }
}

#[test]
fn a_training_with_frozen_routers_resumes_to_the_same_weights() {
    let fit = |checkpoints: Option<&Path>, observer: &mut dyn TrainingObserver| {
        fit_part(untrained_with(Routers::Frozen, 0), &recipe(), &Trainable::default(), checkpoints, observer)
    };
    let straight = finished(fit(None, &mut ()));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let stopped = fit(Some(folder.path()), &mut StopAfter { epochs: 2, within_next: false });
    assert!(matches!(stopped, Ok(Outcome::Interrupted { epochs: 2 })));
    let resumed = finished(fit(Some(folder.path()), &mut ()));
    assert!(bytes(&straight.classifier) == bytes(&resumed.classifier), "other weights");
    let kernels = |classifier: &Classifier<Learner>| classifier.tensors().remove("router.weight").expect("it routes");
    assert_eq!(kernels(&resumed.classifier), kernels(&untrained(0)), "resumed, they are still frozen");
}

#[test]
fn a_training_in_which_nothing_learns_is_refused() {
    let only = Trainable::only(&[Part::Router]);
    let refused = fit_part(untrained_with(Routers::Frozen, 0), &recipe(), &only, None, &mut ());
    assert!(matches!(refused, Err(TrainError::NothingLearns)), "{:?}", refused.err());
    assert!(matches!(fit_part(untrained(0), &recipe(), &only, None, &mut ()), Ok(Outcome::Finished(_))));
}

/// The cross-entropy, as an objective of one's own; counts what it is asked.
#[derive(Default)]
struct Counted {
    epochs: usize,
    passes: usize,
    steps: usize,
}

impl Objective<Learner> for Counted {
    fn epoch_started(&mut self, _classifier: &Classifier<Learner>) {
        self.epochs += 1;
    }

    fn pass(&mut self, classifier: &Classifier<Learner>, batch: Batch<Learner>) -> BatchPass {
        self.passes += 1;
        differentiate(|| {
            let logits = classifier.forward(batch.images);
            let loss = cross_entropy(logits.clone(), batch.labels);
            BatchPass::backward(classifier, &logits, &loss)
        })
    }

    fn stepped(&mut self, classifier: Classifier<Learner>) -> Classifier<Learner> {
        self.steps += 1;
        classifier
    }
}

fn fit_on(objective: &mut dyn Objective<Learner>) -> Result<Outcome<Learner>, TrainError> {
    let (images, validation) = (shapes(40), shapes(10));
    let data = TrainingData { training: &images, validation: Some(&validation), augmentation: &CROP_AND_FLIP };
    let observer = &mut Blind(&mut ());
    let member = Member { classifier: untrained(0), data, seed: 0, checkpoints: None, observer };
    train_member(member, &recipe(), &Trainable::default(), Some(objective), &FlexDevice)
}

#[test]
fn an_objective_that_is_the_cross_entropy_trains_to_the_same_bits() {
    let mut objective = Counted::default();
    let own = finished(fit_on(&mut objective));
    let plain = finished(fit(&recipe(), None, &mut ()));
    assert_eq!(losses(&own.history), losses(&plain.history));
    assert!(bytes(&own.classifier) == bytes(&plain.classifier));
    // Forty images in batches of sixteen are three steps an epoch.
    assert_eq!((objective.epochs, objective.passes, objective.steps), (3, 9, 9));
}

#[test]
fn an_objective_without_gradients_ends_the_training() {
    struct Lost;
    impl Objective<Learner> for Lost {
        fn pass(&mut self, _classifier: &Classifier<Learner>, batch: Batch<Learner>) -> BatchPass {
            BatchPass { loss: f64::INFINITY, predicted: vec![0; batch.labels.dims()[0]], gradients: None }
        }
    }
    let error = fit_on(&mut Lost).expect_err("there is nothing to follow");
    assert!(matches!(error, TrainError::Diverged { epoch: 0, step: 0, .. }), "{error}");
}

/// An objective that learns: it brightens every image by a number of its own, which it moves after each step, and gives the
/// images of the first class the last class's label.
struct Brightening {
    shift: f32,
    seen: Vec<(usize, usize, usize)>,
}

impl Objective<Learner> for Brightening {
    fn rewrite(&mut self, batch: Batch<Learner>, at: &BatchPosition<'_>) -> Batch<Learner> {
        assert_eq!((at.epochs, at.indices.len()), (3, batch.labels.dims()[0]));
        self.seen.push((at.epoch, at.step, at.indices[0]));
        let is_first = batch.labels.clone().equal_elem(0);
        Batch { images: batch.images + self.shift, labels: batch.labels.mask_fill(is_first, 9) }
    }

    fn pass(&mut self, classifier: &Classifier<Learner>, batch: Batch<Learner>) -> BatchPass {
        let pass = differentiate(|| {
            let logits = classifier.forward(batch.images);
            let loss = cross_entropy(logits.clone(), batch.labels);
            BatchPass::backward(classifier, &logits, &loss)
        });
        self.shift += 0.01 * pass.loss as f32;
        pass
    }

    fn state(&self) -> Result<Option<ObjectiveState>, String> {
        let contents = self.shift.to_le_bytes().to_vec();
        Ok(Some(ObjectiveState { identity: "brightening by 0.01".into(), contents }))
    }

    fn restore(&mut self, contents: Vec<u8>) -> Result<(), String> {
        self.shift = f32::from_le_bytes(contents.try_into().map_err(|_| "is no number")?);
        Ok(())
    }
}

fn brighten(
    objective: &mut dyn Objective<Learner>,
    checkpoints: Option<&Path>,
    observer: &mut dyn TrainingObserver,
) -> Result<Outcome<Learner>, TrainError> {
    let images = shapes(40);
    let data = TrainingData { training: &images, validation: None, augmentation: &CROP_AND_FLIP };
    let observer = &mut Blind(observer);
    let member = Member { classifier: untrained(0), data, seed: 0, checkpoints, observer };
    train_member(member, &recipe(), &Trainable::default(), Some(objective), &FlexDevice)
}

/// The same, which does not take back what it has learned.
struct Forgetful(Brightening);
impl Objective<Learner> for Forgetful {
    fn rewrite(&mut self, batch: Batch<Learner>, at: &BatchPosition<'_>) -> Batch<Learner> {
        self.0.rewrite(batch, at)
    }

    fn pass(&mut self, classifier: &Classifier<Learner>, batch: Batch<Learner>) -> BatchPass {
        self.0.pass(classifier, batch)
    }

    fn state(&self) -> Result<Option<ObjectiveState>, String> {
        self.0.state()
    }
}

#[test]
fn a_training_with_an_objective_that_learns_resumes_to_the_same_bits() {
    let new = || Brightening { shift: 0.0, seen: Vec::new() };
    let mut straight = new();
    let whole = finished(brighten(&mut straight, None, &mut ()));
    let steps = (0..9).map(|step| (step / 3, step % 3)).collect::<Vec<_>>();
    assert_eq!(straight.seen.iter().map(|&(epoch, step, _)| (epoch, step)).collect::<Vec<_>>(), steps);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let stopped = brighten(&mut new(), Some(folder.path()), &mut StopAfter { epochs: 2, within_next: true });
    assert!(matches!(stopped, Ok(Outcome::Interrupted { epochs: 2 })));
    let mut resumed = new();
    let rest = finished(brighten(&mut resumed, Some(folder.path()), &mut ()));
    assert!(bytes(&whole.classifier) == bytes(&rest.classifier), "other weights");
    assert_eq!(losses(&whole.history), losses(&rest.history));
    assert_eq!(straight.shift.to_bits(), resumed.shift.to_bits(), "the objective goes on where it was");
    assert_eq!(resumed.seen, straight.seen[6..], "and sees the same batches");
    // Without what it has learned the weights are others.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let stopped = brighten(&mut new(), Some(folder.path()), &mut StopAfter { epochs: 2, within_next: false });
    assert!(matches!(stopped, Ok(Outcome::Interrupted { .. })));
    let forgotten = finished(brighten(&mut Forgetful(new()), Some(folder.path()), &mut ()));
    assert!(bytes(&whole.classifier) != bytes(&forgotten.classifier));
}

#[test]
fn a_checkpoint_of_an_objective_resumes_no_other_and_its_damage_is_seen() {
    let new = || Brightening { shift: 0.0, seen: Vec::new() };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let stop = || StopAfter { epochs: 2, within_next: false };
    assert!(matches!(brighten(&mut new(), Some(folder.path()), &mut stop()), Ok(Outcome::Interrupted { epochs: 2 })));
    let other = brighten(&mut Counted::default(), Some(folder.path()), &mut ()).expect_err("it is another training");
    assert!(other.to_string().contains("belongs to another training"), "{other}");
    let whole = finished(brighten(&mut new(), None, &mut ()));
    fs_err::write(folder.path().join("epoch-0002/objective.bin"), 7.0_f32.to_le_bytes()).expect("writable");
    let rest = finished(brighten(&mut new(), Some(folder.path()), &mut ()));
    assert!(folder.path().join("epoch-0003").exists());
    assert!(bytes(&whole.classifier) == bytes(&rest.classifier), "the checkpoint before is gone on from");
}

#[test]
fn hits_are_counted_against_rewritten_labels() {
    /// Says that everything is of class 9, and says so of the labels too.
    struct Nine;
    impl Objective<Learner> for Nine {
        fn rewrite(&mut self, batch: Batch<Learner>, _at: &BatchPosition<'_>) -> Batch<Learner> {
            Batch { labels: batch.labels.zeros_like().add_scalar(9), ..batch }
        }

        fn pass(&mut self, classifier: &Classifier<Learner>, batch: Batch<Learner>) -> BatchPass {
            let images = batch.labels.dims()[0];
            let pass = differentiate(|| {
                let logits = classifier.forward(batch.images);
                let loss = cross_entropy(logits.clone(), batch.labels);
                BatchPass::backward(classifier, &logits, &loss)
            });
            BatchPass { predicted: vec![9; images], ..pass }
        }
    }
    let trained = finished(fit_on(&mut Nine));
    assert!(trained.history.iter().all(|epoch| (epoch.training_accuracy - 1.0).abs() < 1e-12));
}

#[test]
fn adversarial_training_resumes_to_the_same_weights_and_without_room_is_the_ordinary_one() {
    use crate::{AdversarialConfig, AdversarialMethod, DivergenceConfig};

    let hardened = |epsilon, method| {
        let adversarial = Some(AdversarialConfig { epsilon, step: epsilon, steps: 2, method });
        TrainingConfig { adversarial, ..recipe() }
    };
    let loss = |trained: &Trained<Learner>| trained.history[0].loss;
    let ordinary = loss(&finished(fit(&recipe(), None, &mut ())));
    let methods = [
        AdversarialMethod::CrossEntropy,
        AdversarialMethod::Alternating(DivergenceConfig::default()),
        AdversarialMethod::SecondBest(DivergenceConfig::default()),
    ];
    let mut trained = Vec::new();
    for method in methods {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let hard = hardened(8.0, method.clone());
        let straight = finished(fit(&hard, None, &mut ()));
        let stopped = fit(&hard, Some(folder.path()), &mut StopAfter { epochs: 1, within_next: false });
        assert!(matches!(stopped, Ok(Outcome::Interrupted { epochs: 1 })), "{method:?}");
        let resumed = finished(fit(&hard, Some(folder.path()), &mut ()));
        assert_eq!(bytes(&straight.classifier), bytes(&resumed.classifier), "{method:?}");
        let without_room = loss(&finished(fit(&hardened(1e-4, method.clone()), None, &mut ())));
        assert!((without_room - ordinary).abs() < 1e-2 * ordinary, "{method:?}: {without_room}, ordinary {ordinary}");
        let hard = loss(&straight);
        // A divergence from what the classifier says itself is small while it knows little.
        let least = if matches!(method, AdversarialMethod::Alternating(_)) { 1.001 } else { 1.01 };
        assert!(hard > least * ordinary, "what is perturbed is harder: {method:?} {hard}, {ordinary}");
        trained.push(bytes(&straight.classifier));
    }
    assert!(trained[0] != trained[1] && trained[1] != trained[2] && trained[0] != trained[2]);
}
