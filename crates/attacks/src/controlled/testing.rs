//! What the tests of attacks share that control the training: small images, and a training with such an attack.

use std::ops::ControlFlow;
use std::path::Path;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn_flex::{Flex, FlexDevice};
use patchdoor_data::{
    AugmentationConfig, ImageSet, ImageShape, PoisoningConfig, PoisoningPlan, Trigger, stream, trigger_test_images,
};
use patchdoor_model::{BatchNormConfig, Classifier, ClassifierConfig, InputShape, PatchMoeConfig};
use patchdoor_train::{
    BatchNormStatistics, Blind, EpochRecord, Member, Objective, OneCycleConfig, OptimizerConfig, Outcome,
    ScheduleConfig, SgdConfig, Trainable, TrainingConfig, TrainingData, TrainingObserver, predict, train_member,
};
use patchdoor_triggers::TriggerConfig;
use rand::RngExt;

use crate::{ControlledConfig, HandInTraining, Scene};

pub(crate) type Learner = Autodiff<Flex>;

/// Random changes to training images.
const FLIPS: AugmentationConfig = AugmentationConfig { crop_padding: 0, flip: true };

/// Colours that tell the class.
const COLOURS: [[i32; 3]; 4] = [[190, 60, 60], [60, 190, 60], [60, 60, 190], [190, 190, 60]];

/// Grey noise of 16x16 pixels with a coloured patch somewhere.
pub(crate) fn patches(name: &str, count: usize) -> ImageSet {
    let shape = ImageShape { height: 16, width: 16, channels: 3 };
    let mut rng = stream(5, name);
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for image in 0..count {
        let label = image % 4;
        let (top, left) = (rng.random_range(0..10), rng.random_range(0..10));
        for (row, column) in (0..256).map(|pixel| (pixel / 16, pixel % 16)) {
            let is_patch = (top..top + 6).contains(&row) && (left..left + 6).contains(&column);
            for colour in COLOURS[label] {
                let level = if is_patch { colour } else { 110 };
                pixels.push((level + rng.random_range(-25..=25)).clamp(0, 255) as u8);
            }
        }
        labels.push(label as u8);
    }
    ImageSet::new(shape, pixels, labels, ["red", "green", "blue", "yellow"].map(str::to_owned)).unwrap()
}

/// Every fifth image is poisoned, more or less.
pub(crate) fn fifth() -> PoisoningConfig {
    PoisoningConfig { rate: 0.2, ..PoisoningConfig::default() }
}

/// What a training with an attack leaves.
pub(crate) struct Left {
    pub(crate) classifier: Classifier<Flex>,
    pub(crate) trigger: Box<dyn Trigger>,
    pub(crate) generator: Option<Vec<u8>>,
    pub(crate) history: Vec<EpochRecord>,
}

impl Left {
    /// Share of test images that are classified right, and of triggered ones that are taken for the target.
    pub(crate) fn clean_accuracy_and_asr(&self) -> (f64, f64) {
        (accuracy(&self.classifier), asr(&self.classifier, self.trigger.as_ref(), &fifth()))
    }
}

pub(crate) fn accuracy(classifier: &Classifier<Flex>) -> f64 {
    let test = patches("test", 200);
    share(&predict(classifier, &test, 100, &FlexDevice), |row| test.label(row))
}

pub(crate) fn asr(classifier: &Classifier<Flex>, trigger: &dyn Trigger, poisoning: &PoisoningConfig) -> f64 {
    let triggered = trigger_test_images(&patches("test", 200), poisoning, trigger, 0);
    share(&predict(classifier, &triggered, 100, &FlexDevice), |row| poisoning.attack_target(triggered.label(row), 4))
}

fn share(predicted: &[u8], wanted: impl Fn(usize) -> u8) -> f64 {
    let hits = predicted.iter().enumerate().filter(|&(row, &class)| class == wanted(row)).count();
    hits as f64 / predicted.len() as f64
}

fn untrained() -> Classifier<Learner> {
    let batch_norm = BatchNormConfig { momentum: 0.1, ..BatchNormConfig::default() };
    let config = PatchMoeConfig { widen_factor: 1, patches_per_expert: 4, batch_norm, ..PatchMoeConfig::default() };
    let input = InputShape { height: 16, width: 16, channels: 3 };
    ClassifierConfig::PatchMoe(config).init(input, 4, &mut stream(0, "weights"), &FlexDevice).unwrap()
}

pub(crate) fn recipe(epochs: usize) -> TrainingConfig {
    TrainingConfig {
        adversarial: None,
        diversity: None,
        epochs,
        batch_size: 40,
        learning_rate: 0.1,
        optimizer: OptimizerConfig::Sgd(SgdConfig { momentum: 0.9, nesterov: true, weight_decay: 5e-4 }),
        schedule: ScheduleConfig::OneCycle(OneCycleConfig::default()),
        batch_norm_statistics: BatchNormStatistics::Recomputed,
    }
}

/// A training without any attack.
pub(crate) fn twin(epochs: usize) -> Classifier<Flex> {
    fit(&patches("own", 400), &FLIPS, None, epochs, None, None).expect("nothing stops it").0.valid()
}

/// The epochs of a training without any attack and any random change to images.
pub(crate) fn twin_history(epochs: usize) -> Vec<EpochRecord> {
    fit(&patches("own", 400), &AugmentationConfig::default(), None, epochs, None, None).expect("nothing stops it").1
}

/// Trains with an attack; `None` if it was stopped after so many epochs.
pub(crate) fn attacked(
    config: &ControlledConfig,
    poisoning: &PoisoningConfig,
    epochs: usize,
    checkpoints: Option<&Path>,
    stop_after: Option<usize>,
) -> Option<Left> {
    struct Unmade;
    impl Trigger for Unmade {
        fn stamp(&self, image: &patchdoor_data::Image, _rng: &mut patchdoor_data::StreamRng) -> patchdoor_data::Image {
            image.clone()
        }
    }
    let own = patches("own", 400);
    let ordinary = || -> Box<dyn Trigger> {
        let build = |trigger: &TriggerConfig| trigger.build(own.shape()).expect("it fits");
        config.kind().trigger().map_or_else(|| Box::new(Unmade) as Box<dyn Trigger>, build)
    };
    let trigger = ordinary();
    let plan = PoisoningPlan::draw_for(poisoning, &own, trigger.as_ref(), 0).unwrap();
    let training = plan.apply(&own, trigger.as_ref(), 0);
    let validation = patches("validation", 100);
    let scene = Scene {
        training: &training,
        untouched: &own,
        plan: &plan,
        poisoning,
        trigger: trigger.as_ref(),
        validation: Some(&validation),
        seed: 0,
        batch_size: 40,
        is_stopped: &|| false,
        say: &|_| {},
    };
    let mut hand: Box<dyn HandInTraining<Learner> + '_> =
        config.on_backend::<Learner>().enter(scene, &FlexDevice).expect("its configuration is valid");
    let objective: &mut dyn Objective<Learner> = hand.as_mut();
    let (classifier, history) = fit(&training, &FLIPS, Some(objective), epochs, checkpoints, stop_after)?;
    let generator = hand.to_safetensors().expect("it can be written");
    let trigger = hand.trigger().unwrap_or_else(ordinary);
    Some(Left { classifier: classifier.valid(), trigger, generator, history })
}

fn fit(
    training: &ImageSet,
    augmentation: &AugmentationConfig,
    objective: Option<&mut dyn Objective<Learner>>,
    epochs: usize,
    checkpoints: Option<&Path>,
    stop_after: Option<usize>,
) -> Option<(Classifier<Learner>, Vec<EpochRecord>)> {
    struct Stop(Option<usize>);
    impl TrainingObserver for Stop {
        fn epoch_done(&mut self, record: &EpochRecord) -> ControlFlow<()> {
            if self.0 == Some(record.epoch + 1) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }
    let data = TrainingData { training, validation: None, augmentation };
    let (mut stop, classifier) = (Stop(stop_after), untrained());
    let observer = &mut Blind(&mut stop);
    let member = Member { classifier, data, seed: 0, checkpoints, observer };
    match train_member(member, &recipe(epochs), &Trainable::default(), objective, &FlexDevice).expect("it trains") {
        Outcome::Finished(trained) => Some((trained.classifier, trained.history)),
        Outcome::Interrupted { .. } => None,
    }
}

/// Makes sure that a training that is stopped after its second epoch ends with the bits of one that is not, and so does one
/// on another number of threads.
pub(crate) fn assert_repeats(config: &ControlledConfig, poisoning: &PoisoningConfig) {
    let bits = |left: &Left| {
        let losses = left.history.iter().map(|record| record.loss.to_bits()).collect::<Vec<_>>();
        (left.classifier.tensors(), left.generator.clone(), losses)
    };
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| bits(&attacked(config, poisoning, 3, None, None).expect("nothing stops it")))
    };
    let whole = on(2);
    assert!(whole == on(1), "other bits on one thread");
    let folder = tempfile::tempdir().unwrap();
    assert!(attacked(config, poisoning, 3, Some(folder.path()), Some(2)).is_none());
    let resumed = attacked(config, poisoning, 3, Some(folder.path()), None).expect("nothing stops it");
    assert!(whole == bits(&resumed), "other bits after it was resumed");
}
