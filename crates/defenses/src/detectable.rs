//! A small network with a backdoor and its clean twin, both trained once for all tests.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use burn::module::AutodiffModule;
use burn::tensor::TensorData;
use burn_flex::FlexDevice;
use patchdoor_data::{AugmentationConfig, ImageSet, ImageShape, stream};
use patchdoor_metrics::separation;
use patchdoor_model::{Classifier, ClassifierConfig, InputShape, PatchMoeConfig};
use patchdoor_train::{
    BatchNormStatistics, OneCycleConfig, OptimizerConfig, Outcome, ScheduleConfig, SgdConfig, TrainingConfig,
    TrainingData, train,
};
use rand::RngExt;

use crate::testing::Learner;
use crate::{
    Calibrated, DatasetFilter, DefenderData, DetectionThreshold, Filtering, InputDetector, Inputs, Inspection,
    InspectionWork, ModelInspector,
};

/// The class that the trigger stands for.
pub(crate) const TARGET: u8 = 3;
/// Every so many images one is poisoned: 78 of 2,400, about a quarter of those that then have the target's label.
const EVERY: usize = 31;
const TRAINED_ON: usize = 2400;

/// All images: 2,400 to train on, then 200 of the defender, 200 for validation and 400 that nobody has seen. Each class is a
/// pattern of 8x8 coloured blocks, of any contrast and under noise, which a small network learns in seconds.
static IMAGES: LazyLock<ImageSet> = LazyLock::new(|| {
    let shape = ImageShape { height: 32, width: 32, channels: 3 };
    let of_class = |class: usize| {
        let mut rng = stream(0, &format!("planted/class/{class}"));
        (0..8 * 8 * 3).map(|_| rng.random_range(20.0..140.0)).collect::<Vec<f64>>()
    };
    let patterns = (0..10).map(of_class).collect::<Vec<_>>();
    let mut rng = stream(0, "planted/images");
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for index in 0..TRAINED_ON + 800 {
        let (class, contrast) = (index % 10, rng.random_range(0.6..1.0));
        labels.push(class as u8);
        for (row, column) in (0..32).flat_map(|row| (0..32).map(move |column| (row, column))) {
            let block = (row / 4 * 8 + column / 4) * 3;
            for value in &patterns[class][block..block + 3] {
                pixels.push((contrast * value + rng.random_range(-40.0..40.0)).clamp(0.0, 255.0) as u8);
            }
        }
    }
    ImageSet::new(shape, pixels, labels, (0..10).map(|class| class.to_string()).collect::<Vec<_>>()).expect("valid")
});

fn images(first: usize, count: usize) -> ImageSet {
    IMAGES.subset(&(first..first + count).collect::<Vec<_>>())
}

/// What the defender has.
pub(crate) fn clean_images() -> ImageSet {
    images(TRAINED_ON, 200)
}

pub(crate) fn validation_images() -> ImageSet {
    images(TRAINED_ON + 200, 200)
}

/// Images that were used for nothing, without those of the target class.
pub(crate) fn unseen_images() -> ImageSet {
    let unseen = images(TRAINED_ON + 400, 400);
    unseen.subset(&(0..400).filter(|&index| unseen.label(index) != TARGET).collect::<Vec<_>>())
}

/// The same images with a white 8x8 square in the lower right corner, under their true labels.
pub(crate) fn triggered(images: &ImageSet) -> ImageSet {
    let shape = images.shape();
    let mut pixels = images.all_pixels().to_vec();
    for image in pixels.chunks_exact_mut(shape.size()) {
        for row in shape.height - 8..shape.height {
            let end = (row + 1) * shape.width * shape.channels;
            image[end - 8 * shape.channels..end].fill(255);
        }
    }
    ImageSet::new(shape, pixels, images.labels().to_vec(), images.classes().to_vec()).expect("as before")
}

/// The training images with some of them triggered and relabelled, and which those are.
pub(crate) fn poisoned_images() -> (ImageSet, Vec<bool>) {
    let clean = images(0, TRAINED_ON);
    let stamped = triggered(&clean);
    let is_poisoned = (0..TRAINED_ON).map(|index| index % EVERY == 0).collect::<Vec<_>>();
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for (index, &is_poisoned) in is_poisoned.iter().enumerate() {
        pixels.extend_from_slice(if is_poisoned { stamped.pixels(index) } else { clean.pixels(index) });
        labels.push(if is_poisoned { TARGET } else { clean.label(index) });
    }
    let set = ImageSet::new(clean.shape(), pixels, labels, clean.classes().to_vec()).expect("as before");
    (set, is_poisoned)
}

/// Which of the two networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planted {
    Backdoored,
    CleanTwin,
}

static BACKDOORED: LazyLock<BTreeMap<String, TensorData>> = LazyLock::new(|| trained(&poisoned_images().0));
static CLEAN_TWIN: LazyLock<BTreeMap<String, TensorData>> = LazyLock::new(|| trained(&images(0, TRAINED_ON)));

fn blank() -> Classifier<Learner> {
    let config = PatchMoeConfig { widen_factor: 1, ..PatchMoeConfig::default() };
    let input = InputShape { height: 32, width: 32, channels: 3 };
    ClassifierConfig::PatchMoe(config).init(input, 10, &mut stream(0, "weights"), &FlexDevice).expect("valid")
}

fn trained(images: &ImageSet) -> BTreeMap<String, TensorData> {
    let config = TrainingConfig {
        epochs: 8,
        batch_size: 64,
        learning_rate: 0.1,
        batch_norm_statistics: BatchNormStatistics::Recomputed,
        optimizer: OptimizerConfig::Sgd(SgdConfig { momentum: 0.9, nesterov: true, weight_decay: 5e-4 }),
        schedule: ScheduleConfig::OneCycle(OneCycleConfig::default()),
        ..TrainingConfig::default()
    };
    let data = TrainingData { training: images, validation: None, augmentation: &AugmentationConfig::default() };
    match train(blank(), &data, &config, 0, None, &mut (), &FlexDevice).expect("nothing fails") {
        Outcome::Finished(trained) => trained.classifier.tensors(),
        Outcome::Interrupted { .. } => unreachable!("nothing interrupts this training"),
    }
}

impl Planted {
    pub(crate) fn classifier(self) -> Classifier<Learner> {
        let tensors = match self {
            Self::Backdoored => &*BACKDOORED,
            Self::CleanTwin => &*CLEAN_TWIN,
        };
        blank().with_tensors(tensors.clone())
    }

    /// How a detector judges unseen images and the same triggered.
    pub(crate) fn judged(self, detector: &impl InputDetector<Learner>) -> Judged {
        let (clean, validation, unseen) = (clean_images(), validation_images(), unseen_images());
        let data = DefenderData { clean: &clean, validation: Some(&validation) };
        let detector =
            Calibrated::new(detector, "detector", &self.classifier(), &data, 0, &FlexDevice).expect("nothing fails");
        let [positives, negatives] = [&triggered(&unseen), &unseen].map(|images| detector.scores(Inputs::of(images)));
        let threshold = detector.threshold(DetectionThreshold::FalsePositiveRate(0.05));
        Judged {
            area: separation(&positives, &negatives).expect("there are images").value,
            false_alarms: negatives.iter().filter(|&&score| score > threshold).count() as f64 / negatives.len() as f64,
        }
    }
}

/// What a detector is worth.
pub(crate) struct Judged {
    /// Area under the ROC curve.
    pub(crate) area: f64,
    /// Share of untouched images above the threshold that 5 % of the validation images lie above. Of 200 and 360 images it
    /// errs by four standard deviations beyond 0.13.
    pub(crate) false_alarms: f64,
}

impl Planted {
    /// What a filter makes of the images that this network was trained on, and the area under the ROC curve among the images of
    /// the target class; the area means nothing for the clean twin.
    pub(crate) fn filtered(self, filter: &impl DatasetFilter<Learner>) -> (f64, Filtering) {
        let (poisoned, is_poisoned) = poisoned_images();
        let set = if self == Self::Backdoored { poisoned } else { images(0, TRAINED_ON) };
        let filtering = filter.filter(&set, self.classifier().valid(), &FlexDevice).expect("nothing fails");
        let of_target = |poisoned: bool| {
            let chosen = (0..set.len()).filter(|&index| set.label(index) == TARGET && is_poisoned[index] == poisoned);
            chosen.map(|index| filtering.scores[index]).collect::<Vec<_>>()
        };
        let area = separation(&of_target(true), &of_target(false)).map_or(0.5, |area| area.value);
        (area, filtering)
    }
}

impl Planted {
    /// What an inspector says of the network.
    pub(crate) fn inspected(self, inspector: &impl ModelInspector<Learner>) -> Inspection {
        let (clean, validation) = (clean_images(), validation_images());
        let data = DefenderData { clean: &clean, validation: Some(&validation) };
        let work = InspectionWork { data, seed: 0, is_stopped: &|| false };
        inspector.inspect(self.classifier(), &work, &FlexDevice).expect("nothing fails")
    }
}

#[test]
fn the_backdoor_works_and_its_clean_twin_has_none() {
    use patchdoor_metrics::accuracy;
    use patchdoor_train::predict;

    let unseen = unseen_images();
    let of = |network: Planted| {
        let classifier = network.classifier().valid();
        let [clean, stamped] =
            [&unseen, &triggered(&unseen)].map(|images| predict(&classifier, images, 64, &FlexDevice));
        let taken = accuracy(&stamped, &vec![TARGET; stamped.len()]).expect("there are images");
        (accuracy(&clean, unseen.labels()).expect("there are images"), taken)
    };
    let (accuracy, success) = of(Planted::Backdoored);
    assert!(accuracy > 0.9 && success > 0.95, "accuracy {accuracy}, success {success}");
    let (accuracy, success) = of(Planted::CleanTwin);
    assert!(accuracy > 0.9 && success < 0.2, "accuracy {accuracy}, success {success} of the clean twin");
}
