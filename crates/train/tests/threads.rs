//! Trainings side by side, each in a thread of its own.

use burn::backend::Autodiff;
use burn_flex::{Flex, FlexDevice};
use patchdoor_data::{AugmentationConfig, DatasetConfig, ImageSet, ShapesConfig, load, stream};
use patchdoor_model::{Classifier, ClassifierConfig, InputShape, PatchMoeConfig, WeightsDescription, save_weights};
use patchdoor_train::{BatchNormStatistics, Outcome, TrainingConfig, TrainingData, train};

type Learner = Autodiff<Flex>;

fn shapes() -> ImageSet {
    let config = DatasetConfig::Shapes(ShapesConfig { train: 40, test: 10, seed: 0 });
    load(&config, &[]).expect("shapes need no file").train
}

const INPUT: InputShape = InputShape { height: 32, width: 32, channels: 3 };

fn config() -> ClassifierConfig {
    PatchMoeConfig { widen_factor: 1, ..Default::default() }.into()
}

fn untrained(seed: u64) -> Classifier<Learner> {
    config().init(INPUT, 10, &mut stream(seed, "weights"), &FlexDevice).expect("the configuration is valid")
}

fn bytes(classifier: &Classifier<Learner>) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("weights.safetensors");
    let description = WeightsDescription {
        config: config(),
        classes: (0..10).map(|class| class.to_string()).collect(),
        input: INPUT,
    };
    save_weights(classifier, &description, &path).expect("the folder is writable");
    fs_err::read(path).expect("just written")
}

/// The bits of every epoch's loss and of the weights and running statistics at the end.
fn trained(classifier: Classifier<Learner>, seed: u64) -> (Vec<u64>, Vec<u8>) {
    let images = shapes();
    let data = TrainingData { training: &images, validation: None, augmentation: &AugmentationConfig::default() };
    let config = TrainingConfig {
        epochs: 3,
        batch_size: 8,
        learning_rate: 0.05,
        batch_norm_statistics: BatchNormStatistics::Running,
        ..Default::default()
    };
    match train(classifier, &data, &config, seed, None, &mut (), &FlexDevice).expect("training succeeds") {
        Outcome::Finished(trained) => {
            let losses = trained.history.iter().map(|record| record.loss.to_bits()).collect();
            (losses, bytes(&trained.classifier))
        }
        Outcome::Interrupted { .. } => unreachable!("nothing interrupts this training"),
    }
}

/// Asserts that four threads at once train classifiers to the bits that they reach one after another.
#[track_caller]
fn assert_same_at_once(classifiers: &[Classifier<Learner>; 4]) {
    let seeds = [0, 1, 2, 3];
    let expected = seeds.map(|seed| trained(classifiers[seed].clone(), seed as u64));
    let found = std::thread::scope(|scope| {
        let threads = seeds.map(|seed| scope.spawn(move || trained(classifiers[seed].clone(), seed as u64)));
        threads.map(|thread| thread.join().expect("no training loses a gradient"))
    });
    for (seed, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found.0, expected.0, "losses of seed {seed}");
        assert!(found.1 == expected.1, "weights of seed {seed}");
    }
}

#[test]
fn four_threads_train_to_the_weights_that_one_trains_to() {
    assert_same_at_once(&[0, 1, 2, 3].map(untrained));
}

#[test]
fn four_threads_may_train_copies_of_one_classifier_and_leave_it_as_it_was() {
    let classifier = untrained(0);
    let before = bytes(&classifier);
    assert_same_at_once(&[(); 4].map(|()| classifier.clone()));
    assert!(bytes(&classifier) == before, "a training changed the classifier it was given a copy of");
}
