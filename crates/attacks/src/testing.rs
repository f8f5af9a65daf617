//! What the tests of crafted triggers share: a small clean classifier of coloured patches, trained once.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::TensorData;
use burn_flex::{Flex, FlexDevice};
use patchdoor_data::{AugmentationConfig, ImageSet, ImageShape, PoisoningConfig, Trigger, stream, trigger_all_images};
use patchdoor_model::{BatchNormConfig, Classifier, ClassifierConfig, InputShape, PatchMoeConfig};
use patchdoor_train::{
    BatchNormStatistics, OneCycleConfig, OptimizerConfig, Outcome, ScheduleConfig, SgdConfig, TrainingConfig,
    TrainingData, predict, train,
};
use rand::RngExt;

use crate::{AttackError, Crafted, CraftedConfig, Workshop};

pub(crate) type Learner = Autodiff<Flex>;

pub(crate) const SHAPE: ImageShape = ImageShape { height: 16, width: 16, channels: 3 };

/// The class that attackers of the tests want.
pub(crate) const TARGET: u8 = 1;

/// Colours of the patch that tells the class.
const COLOURS: [[i32; 3]; 4] = [[190, 60, 60], [60, 190, 60], [60, 60, 190], [190, 190, 60]];

/// Images of noise with a patch of 4x4 pixels anywhere, whose colour is the class.
pub(crate) fn patches(name: &str, count: usize) -> ImageSet {
    let mut rng = stream(0, &format!("patches/{name}"));
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for index in 0..count {
        let class = index % 4;
        let (top, left) = (rng.random_range(0..13), rng.random_range(0..13));
        labels.push(class as u8);
        for (row, column) in (0..16).flat_map(|row| (0..16).map(move |column| (row, column))) {
            let is_patch = (top..top + 4).contains(&row) && (left..left + 4).contains(&column);
            for base in if is_patch { COLOURS[class] } else { [125; 3] } {
                pixels.push((base + rng.random_range(-30..=30)).clamp(0, 255) as u8);
            }
        }
    }
    ImageSet::new(SHAPE, pixels, labels, ["red", "green", "blue", "yellow"].map(str::to_owned)).expect("valid")
}

fn blank() -> Classifier<Learner> {
    let config = PatchMoeConfig {
        widen_factor: 1,
        patches_per_expert: 4,
        batch_norm: BatchNormConfig { momentum: 0.1, ..BatchNormConfig::default() },
        ..PatchMoeConfig::default()
    };
    let input = InputShape { height: 16, width: 16, channels: 3 };
    ClassifierConfig::PatchMoe(config).init(input, 4, &mut stream(0, "weights"), &FlexDevice).expect("valid")
}

/// The surrogate of all tests, frozen.
pub(crate) fn surrogate() -> Classifier<Learner> {
    static TRAINED: OnceLock<BTreeMap<String, TensorData>> = OnceLock::new();
    let tensors = TRAINED.get_or_init(|| {
        let config = TrainingConfig {
            adversarial: None,
            diversity: None,
            epochs: 12,
            batch_size: 40,
            learning_rate: 0.1,
            optimizer: OptimizerConfig::Sgd(SgdConfig { momentum: 0.9, nesterov: true, weight_decay: 5e-4 }),
            schedule: ScheduleConfig::OneCycle(OneCycleConfig::default()),
            batch_norm_statistics: BatchNormStatistics::Recomputed,
        };
        let images = patches("own", 600);
        let data = TrainingData { training: &images, validation: None, augmentation: &AugmentationConfig::default() };
        match train(blank(), &data, &config, 0, None, &mut (), &FlexDevice).expect("nothing fails") {
            Outcome::Finished(trained) => trained.classifier.tensors(),
            Outcome::Interrupted { .. } => unreachable!("nothing interrupts this training"),
        }
    });
    blank().with_tensors(tensors.clone()).freeze_all_but(&[])
}

/// Crafts with the shared surrogate; `cells` are those that the trigger may lie in.
pub(crate) fn crafted(
    config: &CraftedConfig,
    poisoned: &ImageSet,
    cells: Option<&[Vec<usize>]>,
    seed: u64,
) -> Result<Crafted, AttackError> {
    let (surrogate, images) = (surrogate(), patches("own", 600));
    let poisoning = PoisoningConfig { target_class: TARGET, ..PoisoningConfig::default() };
    config.on_backend().craft(&Workshop {
        surrogate: &surrogate,
        images: &images,
        poisoned,
        poisoning: &poisoning,
        cells,
        seed,
        device: &FlexDevice,
        is_stopped: &|| false,
        progress: &|_, _| (),
    })
}

/// Share of the images that the surrogate takes for a class, with a trigger if one is given.
pub(crate) fn taken_for(class: u8, images: &ImageSet, trigger: Option<&dyn Trigger>) -> f64 {
    let triggered = trigger.map(|trigger| trigger_all_images(images, trigger, 0));
    let predicted = predict(&surrogate().valid(), triggered.as_ref().unwrap_or(images), 64, &FlexDevice);
    crate::target_share::share_of(&predicted, class)
}

/// The images of one class.
pub(crate) fn of_class(images: &ImageSet, class: u8) -> ImageSet {
    images.subset(&(0..images.len()).filter(|&index| images.label(index) == class).collect::<Vec<_>>())
}
