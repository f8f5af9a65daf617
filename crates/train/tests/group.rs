//! Trainings of a group against the same trainings alone.

use std::ops::ControlFlow;
use std::path::Path;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::backend::AutodiffBackend;
use burn_flex::{Flex, FlexDevice};
use patchdoor_data::{AugmentationConfig, DatasetConfig, ImageSet, ShapesConfig, load, stream};
use patchdoor_kernels::{Kernels, TrainingBackend};
use patchdoor_model::{Classifier, ClassifierConfig, ExpertForm, PatchMoeConfig, WideResNetConfig};
use patchdoor_train::{
    ClassifierObserver, EpochRecord, Member, OptimizerConfig, Outcome, SgdConfig, TrainError, Trained, TrainingConfig,
    TrainingData, TrainingObserver, input_shape, train_group, train_observed,
};

type Host = Autodiff<Flex>;

const AUGMENTATION: AugmentationConfig = AugmentationConfig { crop_padding: 4, flip: true };
const SEEDS: [u64; 3] = [0, 1, 2];

fn shapes(train: usize, seed: u64) -> ImageSet {
    load(&DatasetConfig::Shapes(ShapesConfig { train, test: 10, seed }), &[]).expect("drawn").train
}

fn data(images: &ImageSet) -> TrainingData<'_> {
    TrainingData { training: images, validation: Some(images), augmentation: &AUGMENTATION }
}

fn config(epochs: usize, batch_size: usize) -> TrainingConfig {
    let optimizer = OptimizerConfig::Sgd(SgdConfig { momentum: 0.9, nesterov: true, weight_decay: 5e-4 });
    TrainingConfig { epochs, batch_size, learning_rate: 0.01, optimizer, ..Default::default() }
}

fn moe(form: ExpertForm) -> PatchMoeConfig {
    PatchMoeConfig { widen_factor: 1, expert_form: form, ..Default::default() }
}

fn blank<B: TrainingBackend>(model: &ClassifierConfig, images: &ImageSet, seed: u64) -> Classifier<B> {
    let shape = input_shape(images.shape());
    model.init::<B>(shape, 10, &mut stream(seed, "weights"), &B::Device::default()).expect("valid")
}

/// Sees every epoch, and stops after so many.
struct Stop(usize, Vec<usize>);

impl TrainingObserver for Stop {
    fn epoch_done(&mut self, record: &EpochRecord) -> ControlFlow<()> {
        self.1.push(record.epoch);
        if record.epoch + 1 == self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl<B: AutodiffBackend> ClassifierObserver<B> for Stop {
    fn classifier_trained(&mut self, _classifier: &Classifier<B>, _record: &EpochRecord) {}
}

fn alone<B: TrainingBackend>(
    model: &ClassifierConfig,
    images: &ImageSet,
    config: &TrainingConfig,
    seed: u64,
    folder: Option<&Path>,
    stop: usize,
) -> Outcome<B> {
    let classifier = blank::<B>(model, images, seed);
    let mut observer = Stop(stop, Vec::new());
    train_observed(classifier, &data(images), config, seed, folder, &mut observer, &B::Device::default())
        .expect("trains")
}

fn finished<B: AutodiffBackend>(outcome: Outcome<B>) -> Trained<B> {
    match outcome {
        Outcome::Finished(trained) => trained,
        Outcome::Interrupted { epochs } => panic!("stopped after {epochs} epochs"),
    }
}

/// Asserts that two trainings ended alike but for rounding.
fn assert_alike<B: TrainingBackend>(what: &str, tolerance: f64, found: &Trained<B>, expected: &Trained<B>)
where
    B::InnerBackend: Kernels,
{
    for (found, expected) in found.history.iter().zip(&expected.history) {
        assert!((found.loss / expected.loss - 1.0).abs() < 1e-5, "{what}: {} and {}", found.loss, expected.loss);
        let bits = |record: &EpochRecord| {
            [Some(record.training_accuracy), record.validation_accuracy, Some(record.learning_rate)]
                .map(|number| number.map(f64::to_bits))
        };
        assert_eq!(bits(found), bits(expected), "{what}");
    }
    assert_eq!(found.history.len(), expected.history.len(), "{what}");
    let (found, expected) = (found.classifier.valid().tensors(), expected.classifier.valid().tensors());
    for (path, expected) in &expected {
        let length = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
        let apart = length(&mut found[path].iter::<f64>().zip(expected.iter::<f64>()).map(|(a, b)| a - b));
        let norm = length(&mut expected.iter::<f64>());
        // A bias before a normalization has a gradient of zero, of which only rounding is left.
        assert!(apart <= tolerance * norm.max(0.1), "{what}, {path}: {apart:e} of {norm:e}");
    }
}

#[test]
fn members_of_a_group_end_as_they_would_alone() {
    let patches = PatchMoeConfig { patch_size: 2, patches_per_expert: 4, ..moe(ExpertForm::Masked) };
    let models = [
        ClassifierConfig::PatchMoe(moe(ExpertForm::Masked)),
        ClassifierConfig::PatchMoe(moe(ExpertForm::Gathered)),
        ClassifierConfig::PatchMoe(PatchMoeConfig { expert_form: ExpertForm::Gathered, ..patches.clone() }),
        ClassifierConfig::PatchMoe(PatchMoeConfig { experts: 1, ..patches }),
        ClassifierConfig::WideResnet(WideResNetConfig { widen_factor: 1, ..Default::default() }),
    ];
    let sets = SEEDS.map(|seed| shapes(60, seed));
    // One step; and three, of which the last is smaller. Rounding grows where rectifiers change sides, least in the masked
    // form (`docs/backends.md`).
    let one_step = models.iter().map(|model| (model, 60, 2e-6));
    for (model, batch, tolerance) in one_step.chain([(&models[0], 24, 1e-3)]) {
        let config = config(1, batch);
        let mut observers = SEEDS.map(|_| Stop(usize::MAX, Vec::new()));
        let members = SEEDS.into_iter().zip(&sets).zip(&mut observers).map(|((seed, images), observer)| Member {
            classifier: blank::<Host>(model, images, seed),
            data: data(images),
            seed,
            checkpoints: None,
            observer,
        });
        let group = train_group(members.collect(), &config, &FlexDevice).expect("trains");
        assert_eq!(group.len(), 3);
        for ((seed, images), found) in SEEDS.into_iter().zip(&sets).zip(group) {
            let expected = finished(alone::<Host>(model, images, &config, seed, None, usize::MAX));
            assert_alike(&format!("seed {seed}, batch {batch} of {model:?}"), tolerance, &finished(found), &expected);
        }
        assert!(observers.iter().all(|observer| observer.1 == [0]), "every member is followed");
    }
}

#[test]
fn a_group_goes_on_from_checkpoints_of_single_trainings() {
    let model = ClassifierConfig::PatchMoe(moe(ExpertForm::Masked));
    let sets = SEEDS.map(|seed| shapes(48, seed));
    let folders = SEEDS.map(|_| tempfile::tempdir().expect("a folder"));
    // The second is an epoch ahead of the others, the third is done.
    for (member, stop) in [(1, 1), (2, usize::MAX)] {
        alone::<Host>(&model, &sets[member], &config(2, 24), SEEDS[member], Some(folders[member].path()), stop);
    }
    let group = |observers: &mut [Stop; 3]| {
        let each = SEEDS.into_iter().zip(&sets).zip(&folders).zip(observers);
        let members = each.map(|(((seed, images), folder), observer)| Member {
            classifier: blank::<Host>(&model, images, seed),
            data: data(images),
            seed,
            checkpoints: Some(folder.path()),
            observer,
        });
        train_group(members.collect(), &config(2, 24), &FlexDevice).expect("trains")
    };
    let mut observers = [Stop(1, Vec::new()), Stop(usize::MAX, Vec::new()), Stop(usize::MAX, Vec::new())];
    let stopped = group(&mut observers);
    assert_eq!(observers.map(|observer| observer.1), [vec![0], vec![], vec![]], "the first is behind");
    let epochs = stopped.iter().map(|outcome| match outcome {
        Outcome::Interrupted { epochs } => *epochs,
        Outcome::Finished(_) => panic!("the first stops all"),
    });
    assert_eq!(epochs.collect::<Vec<_>>(), [1, 1, 2]);
    let mut observers = SEEDS.map(|_| Stop(usize::MAX, Vec::new()));
    let ended = group(&mut observers);
    assert_eq!(observers.map(|observer| observer.1), [vec![1], vec![1], vec![]]);
    for ((seed, images), found) in SEEDS.into_iter().zip(&sets).zip(ended) {
        let expected = finished(alone::<Host>(&model, images, &config(2, 24), seed, None, usize::MAX));
        assert_alike(&format!("seed {seed}"), 1e-3, &finished(found), &expected);
    }
}

#[test]
fn a_group_of_unlike_trainings_is_refused() {
    let (one, other) = (shapes(48, 0), shapes(50, 0));
    let masked = ClassifierConfig::PatchMoe(moe(ExpertForm::Masked));
    let gathered = ClassifierConfig::PatchMoe(moe(ExpertForm::Gathered));
    let refused = |second: &ClassifierConfig, images: &ImageSet| {
        let mut observers = [Stop(usize::MAX, Vec::new()), Stop(usize::MAX, Vec::new())];
        let [first_observer, second_observer] = &mut observers;
        let member = |model: &ClassifierConfig, images| blank::<Host>(model, images, 0);
        let members = vec![
            Member {
                classifier: member(&masked, &one),
                data: data(&one),
                seed: 0,
                checkpoints: None,
                observer: first_observer,
            },
            Member {
                classifier: member(second, images),
                data: data(images),
                seed: 1,
                checkpoints: None,
                observer: second_observer,
            },
        ];
        match train_group(members, &config(1, 24), &FlexDevice) {
            Err(error @ TrainError::Group(_)) => error.to_string(),
            other => panic!("{}", other.map_or_else(|error| error.to_string(), |_| "trains".into())),
        }
    };
    assert_eq!(refused(&masked, &other), "trainings of a group must have as many training images, of one size");
    assert_eq!(refused(&gathered, &one), "trainings of a group must have classifiers of one structure");
}
