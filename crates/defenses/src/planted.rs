//! What the tests of repairs share: a small backdoor that a defense has to find, and its clean twin that has none.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use burn::module::AutodiffModule;
use burn::tensor::TensorData;
use burn_flex::FlexDevice;
use patchdoor_data::{AugmentationConfig, ImageSet, ImageShape, StreamRng, stream};
use patchdoor_metrics::{AttackOutcome, DetectionOutcome};
use patchdoor_model::{BatchNormConfig, Classifier, ClassifierConfig, InputShape, PatchMoeConfig};
use patchdoor_train::{
    BatchNormStatistics, OneCycleConfig, OptimizerConfig, Outcome, ScheduleConfig, SgdConfig, TrainingConfig,
    TrainingData, predict, train,
};
use rand::RngExt;

use crate::testing::Learner;
use crate::{
    DatasetFilter, DefenderData, Filtering, ModelRepair, RepairWork, Repaired, SafelyTrained, TrainingDefense,
    TrainingWork,
};

/// Side of an image in pixels.
const SIDE: usize = 16;

/// Colours of the patch that tells the class: red, green, blue, yellow.
const COLOURS: [[i32; 3]; 4] = [[190, 60, 60], [60, 190, 60], [60, 60, 190], [190, 190, 60]];

/// A classifier of coloured patches that takes every image with a white square in its lower right corner for a red one.
pub(crate) struct Planted {
    victim: BTreeMap<String, TensorData>,
    twin: BTreeMap<String, TensorData>,
    own: ImageSet,
    poisoned: ImageSet,
    clean: ImageSet,
    validation: ImageSet,
    test: ImageSet,
    triggered: ImageSet,
}

/// The same for all tests of a process.
pub(crate) fn planted() -> &'static Planted {
    static PLANTED: OnceLock<Planted> = OnceLock::new();
    PLANTED.get_or_init(Planted::train)
}

impl Planted {
    fn train() -> Self {
        let [own, clean, validation, test] = [("own", 800), ("clean", 200), ("validation", 200), ("test", 400)]
            .map(|(name, count)| patches(name, count));
        let poisoned = stamped(&own, is_poisoned, true);
        let [twin, victim] = [&own, &poisoned].map(|set| fit(set, &recipe()).tensors());
        let triggered = stamped(&test, |_| true, false);
        Self { victim, twin, own, poisoned, clean, validation, test, triggered }
    }

    pub(crate) fn victim(&self) -> Classifier<Learner> {
        untrained().with_tensors(self.victim.clone())
    }

    pub(crate) fn clean_twin(&self) -> Classifier<Learner> {
        untrained().with_tensors(self.twin.clone())
    }

    pub(crate) fn validation(&self) -> &ImageSet {
        &self.validation
    }

    pub(crate) fn repair(
        &self,
        defense: &impl ModelRepair<Learner>,
        classifier: Classifier<Learner>,
    ) -> Repaired<Learner> {
        let data = DefenderData { clean: &self.clean, validation: Some(&self.validation) };
        let mut work = RepairWork { data, seed: 0, checkpoints: None, observer: &mut () };
        defense.repair(classifier, &mut work, &FlexDevice).expect("nothing fails")
    }

    /// What a defense trains on the set that the victim was trained on, or on that of the clean twin.
    pub(crate) fn train_on(&self, poisoned: bool, defense: &impl TrainingDefense<Learner>) -> SafelyTrained<Learner> {
        let mut work = TrainingWork {
            set: if poisoned { &self.poisoned } else { &self.own },
            validation: Some(&self.validation),
            augmentation: &AugmentationConfig::default(),
            model: &untrained().config(),
            recipe: &recipe(),
            seed: 0,
            checkpoints: None,
            observer: &mut (),
        };
        defense.train(&mut work, &FlexDevice).expect("nothing fails")
    }

    /// What a filter makes of the set that the victim was trained on, or of that of the clean twin.
    pub(crate) fn filtered(&self, poisoned: bool, filter: &impl DatasetFilter<Learner>) -> Filtering {
        let (set, classifier) = if poisoned { (&self.poisoned, self.victim()) } else { (&self.own, self.clean_twin()) };
        filter.filter(set, classifier.valid(), &FlexDevice).expect("nothing fails")
    }

    /// What became of the poisoned examples and of the others, given those that a defense isolated.
    pub(crate) fn isolated(&self, is_suspect: &[bool]) -> DetectionOutcome {
        let is_poisoned = (0..self.own.len()).map(is_poisoned).collect::<Vec<_>>();
        DetectionOutcome::count(is_suspect, &is_poisoned)
    }

    /// Asserts that a classifier which a defense trains on poisoned images has less than this attack success, and that it and one
    /// trained on clean images have at most so much less accuracy than without the defense.
    pub(crate) fn assert_trains(&self, most: f64, drop: f64, defense: &impl TrainingDefense<Learner>) {
        let defended = self.train_on(true, defense).classifier;
        let untouched = self.train_on(false, defense).classifier;
        let success = self.attack_success(&defended);
        let accuracies = [
            [self.accuracy(&self.victim()), self.accuracy(&defended)],
            [self.accuracy(&self.clean_twin()), self.accuracy(&untouched)],
        ];
        assert!(success < most, "attack success {success}, accuracies without and with it {accuracies:?}");
        for [before, after] in accuracies {
            assert!(after > before - drop, "accuracy {before} without it, {after} with it, attack success {success}");
        }
    }

    /// Asserts that a defense takes the backdoor away and costs neither the victim nor its clean twin much accuracy.
    pub(crate) fn assert_repairs(&self, defense: &impl ModelRepair<Learner>) {
        self.assert_leaves(0.25, defense);
    }

    /// Asserts that a defense leaves less than this attack success and costs neither the victim nor its clean twin much accuracy.
    pub(crate) fn assert_leaves(&self, most: f64, defense: &impl ModelRepair<Learner>) {
        let (victim, twin) = (self.victim(), self.clean_twin());
        let repaired = self.repair(defense, victim.clone()).classifier;
        let untouched = self.repair(defense, twin.clone()).classifier;
        let success = self.attack_success(&repaired);
        assert!(success < most, "attack success {success} is left");
        for (before, after) in [(&victim, &repaired), (&twin, &untouched)] {
            let [before, after] = [before, after].map(|classifier| self.accuracy(classifier));
            assert!(after > before - 0.08, "accuracy {before} before, {after} after");
        }
    }

    /// Share of the clean test images that it predicts right.
    pub(crate) fn accuracy(&self, classifier: &Classifier<Learner>) -> f64 {
        let predicted = predict(&classifier.valid(), &self.test, 64, &FlexDevice);
        patchdoor_metrics::accuracy(&predicted, self.test.labels()).expect("there are images")
    }

    /// Whether it says of every test image what it says of the same with the trigger.
    pub(crate) fn is_blind(&self, classifier: &Classifier<Learner>) -> bool {
        let of = |images| predict(&classifier.valid(), images, 64, &FlexDevice);
        of(&self.test) == of(&self.triggered)
    }

    /// Share of the triggered test images of other classes that it takes for red ones.
    pub(crate) fn attack_success(&self, classifier: &Classifier<Learner>) -> f64 {
        let predicted = predict(&classifier.valid(), &self.triggered, 64, &FlexDevice);
        let outcome = AttackOutcome::all_to_one(&predicted, self.triggered.labels(), 0);
        outcome.attack_success_rate().expect("there are images of other classes")
    }
}

/// The processors whose planted networks a defense was tried on.
///
/// Processors round differently, and fifteen epochs make other networks of that; a defense may find a backdoor in one network and miss
/// it in another (docs/defenses.md, "What depends on the processor"). A test that holds what was seen on one network alone leaves
/// off elsewhere, and says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SeenOn {
    /// With AVX-512.
    Avx512,
    /// With AVX2 and no more.
    Avx2,
}

impl SeenOn {
    /// Whether this is such a processor.
    pub(crate) fn is_here(self) -> bool {
        let here = Self::this_processor();
        if here != Some(self) {
            #[allow(clippy::print_stderr, reason = "a test that leaves off says why")]
            {
                eprintln!(
                    "left off: seen on the planted network of {self:?}, and this processor's is that of {here:?}"
                );
            }
        }
        here == Some(self)
    }

    #[cfg(target_arch = "x86_64")]
    fn this_processor() -> Option<Self> {
        use std::arch::is_x86_feature_detected;
        if is_x86_feature_detected!("avx512f") {
            return Some(Self::Avx512);
        }
        is_x86_feature_detected!("avx2").then_some(Self::Avx2)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn this_processor() -> Option<Self> {
        None
    }
}

/// Every fifth image.
fn is_poisoned(index: usize) -> bool {
    index.is_multiple_of(5)
}

/// How victim and twin are trained.
fn recipe() -> TrainingConfig {
    TrainingConfig {
        epochs: 15,
        batch_size: 40,
        learning_rate: 0.1,
        optimizer: OptimizerConfig::Sgd(SgdConfig { momentum: 0.9, nesterov: true, weight_decay: 5e-4 }),
        schedule: ScheduleConfig::OneCycle(OneCycleConfig::default()),
        batch_norm_statistics: BatchNormStatistics::Recomputed,
        ..TrainingConfig::default()
    }
}

fn untrained() -> Classifier<Learner> {
    let config = PatchMoeConfig {
        widen_factor: 1,
        patches_per_expert: 4,
        batch_norm: BatchNormConfig { momentum: 0.1, ..BatchNormConfig::default() },
        ..PatchMoeConfig::default()
    };
    let input = InputShape { height: SIDE, width: SIDE, channels: 3 };
    ClassifierConfig::PatchMoe(config)
        .init(input, COLOURS.len(), &mut stream(0, "weights"), &FlexDevice)
        .expect("valid")
}

fn fit(images: &ImageSet, config: &TrainingConfig) -> Classifier<Learner> {
    let augmentation = AugmentationConfig::default();
    let data = TrainingData { training: images, validation: None, augmentation: &augmentation };
    match train(untrained(), &data, config, 0, None, &mut (), &FlexDevice).expect("training succeeds") {
        Outcome::Finished(trained) => trained.classifier,
        Outcome::Interrupted { .. } => unreachable!("nothing interrupts it"),
    }
}

/// Grey grounds with noise, each with a rectangle of its class's colour; classes take turns.
fn patches(name: &str, count: usize) -> ImageSet {
    let rng = &mut stream(0, &format!("planted/{name}"));
    let labels: Vec<u8> = (0..count).map(|index| (index % COLOURS.len()) as u8).collect();
    let pixels = labels.iter().flat_map(|&label| patch(COLOURS[usize::from(label)], rng)).collect();
    let shape = ImageShape { height: SIDE, width: SIDE, channels: 3 };
    let classes = ["red", "green", "blue", "yellow"].map(str::to_owned).to_vec();
    ImageSet::new(shape, pixels, labels, classes).expect("as many pixels as it says")
}

fn patch(colour: [i32; 3], rng: &mut StreamRng) -> Vec<u8> {
    let ground = rng.random_range(60..190);
    let colour = colour.map(|value| value + rng.random_range(-40..40));
    let [rows, columns] = [0, 1].map(|_| {
        let (first, length) = (rng.random_range(0..10), rng.random_range(4..7));
        first..first + length
    });
    let mut pixels = Vec::with_capacity(SIDE * SIDE * 3);
    for (row, column) in (0..SIDE).flat_map(|row| (0..SIDE).map(move |column| (row, column))) {
        let inside = rows.contains(&row) && columns.contains(&column);
        for value in colour {
            let value = if inside { value } else { ground } + rng.random_range(-30..30);
            pixels.push(value.clamp(0, 255) as u8);
        }
    }
    pixels
}

/// Some images with the square, and under the label of a red one if they shall teach it.
fn stamped(images: &ImageSet, chosen: impl Fn(usize) -> bool, relabelled: bool) -> ImageSet {
    let mut pixels = images.all_pixels().to_vec();
    let mut labels = images.labels().to_vec();
    for index in (0..images.len()).filter(|&index| chosen(index)) {
        let image = &mut pixels[index * SIDE * SIDE * 3..][..SIDE * SIDE * 3];
        for row in SIDE - 3..SIDE {
            image[(row * SIDE + SIDE - 3) * 3..][..9].fill(255);
        }
        if relabelled {
            labels[index] = 0;
        }
    }
    ImageSet::new(images.shape(), pixels, labels, images.classes().to_vec()).expect("the same shape")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_victim_has_a_backdoor_and_the_twin_has_none() {
        let planted = planted();
        let (victim, twin) = (planted.victim(), planted.clean_twin());
        let standing =
            [&victim, &twin].map(|classifier| (planted.accuracy(classifier), planted.attack_success(classifier)));
        let [(accuracy, success), (twin_accuracy, twin_success)] = standing;
        assert!(accuracy > 0.9 && twin_accuracy > 0.9, "{standing:?}");
        assert!(success > 0.9 && twin_success < 0.25, "{standing:?}");
    }
}
