//! Training on a device of its own: a Vulkan driver that needs no GPU stands in for one.

use std::ops::ControlFlow;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn_flex::Flex;
use patchdoor_data::{AugmentationConfig, DatasetConfig, ImageSet, ShapesConfig, load, stream};
use patchdoor_kernels::{TrainingBackend, Vulkan};
use patchdoor_model::{Classifier, ClassifierConfig, ExpertForm, PatchMoeConfig, WideResNetConfig};
use patchdoor_train::{
    AdamConfig, BatchProgress, ClassifierObserver, EpochRecord, Member, OptimizerConfig, Outcome, SgdConfig, Trained,
    TrainingConfig, TrainingData, TrainingObserver, input_shape, predict, predict_with_routing, train, train_group,
};

type Host = Autodiff<Flex>;
type Device = Autodiff<Vulkan>;

const AUGMENTATION: AugmentationConfig = AugmentationConfig { crop_padding: 4, flip: true };

fn shapes(train: usize) -> ImageSet {
    load(&DatasetConfig::Shapes(ShapesConfig { train, test: 10, seed: 0 }), &[]).expect("drawn").train
}

fn pmoe() -> ClassifierConfig {
    ClassifierConfig::PatchMoe(PatchMoeConfig { widen_factor: 1, ..Default::default() })
}

fn momentum() -> OptimizerConfig {
    OptimizerConfig::Sgd(SgdConfig { momentum: 0.9, nesterov: true, weight_decay: 5e-4 })
}

/// Stops after so many epochs, and sees which losses are told within one.
struct Stop {
    after: usize,
    told: Vec<Option<f64>>,
}

impl TrainingObserver for Stop {
    fn batch_done(&mut self, progress: &BatchProgress) -> ControlFlow<()> {
        self.told.push(progress.loss);
        ControlFlow::Continue(())
    }

    fn epoch_done(&mut self, record: &EpochRecord) -> ControlFlow<()> {
        if record.epoch + 1 == self.after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

fn training<B: TrainingBackend>(
    model: &ClassifierConfig,
    images: &ImageSet,
    config: &TrainingConfig,
    folder: Option<&std::path::Path>,
    observer: &mut Stop,
) -> Outcome<B> {
    let device = B::Device::default();
    let classifier = model.init::<B>(input_shape(images.shape()), 10, &mut stream(0, "weights"), &device);
    let data = TrainingData { training: images, validation: None, augmentation: &AUGMENTATION };
    train(classifier.expect("valid"), &data, config, 0, folder, observer, &device).expect("trains")
}

fn trained<B: TrainingBackend>(model: &ClassifierConfig, images: &ImageSet, config: &TrainingConfig) -> Trained<B> {
    match training::<B>(model, images, config, None, &mut Stop { after: usize::MAX, told: Vec::new() }) {
        Outcome::Finished(trained) => trained,
        Outcome::Interrupted { .. } => unreachable!("nothing stops it"),
    }
}

#[test]
fn the_first_step_is_the_hosts() {
    let images = shapes(64);
    let dense = ClassifierConfig::WideResnet(WideResNetConfig { widen_factor: 1, ..Default::default() });
    for model in [pmoe(), dense] {
        let config = TrainingConfig { epochs: 1, batch_size: 64, learning_rate: 0.01, ..Default::default() };
        let (device, host) = (trained::<Device>(&model, &images, &config), trained::<Host>(&model, &images, &config));
        let (found, expected) = (&device.history[0], &host.history[0]);
        assert!((found.loss / expected.loss - 1.0).abs() < 1e-6, "{} and {}", found.loss, expected.loss);
        assert_eq!(found.training_accuracy, expected.training_accuracy);
        let (found, expected) = (device.classifier.valid().tensors(), host.classifier.valid().tensors());
        for (path, expected) in &expected {
            let length = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
            let apart = length(&mut found[path].iter::<f64>().zip(expected.iter::<f64>()).map(|(a, b)| a - b));
            let norm = length(&mut expected.iter::<f64>());
            // A bias before a normalization has a gradient of zero, of which only rounding is left.
            assert!(apart <= 2e-5 * norm.max(0.1), "{path}: {apart:e} of {norm:e}");
        }
    }
}

/// Never stops, and looks at nothing.
struct Blind;

impl TrainingObserver for Blind {}

impl ClassifierObserver<Device> for Blind {
    fn classifier_trained(&mut self, _classifier: &Classifier<Device>, _record: &EpochRecord) {}
}

#[test]
fn members_of_a_group_end_as_they_would_alone() {
    let images = shapes(32);
    let gathered = PatchMoeConfig { widen_factor: 1, expert_form: ExpertForm::Gathered, ..Default::default() };
    let dense = ClassifierConfig::WideResnet(WideResNetConfig { widen_factor: 1, ..Default::default() });
    let config = TrainingConfig { epochs: 1, batch_size: 32, learning_rate: 0.01, ..Default::default() };
    for model in [pmoe(), ClassifierConfig::PatchMoe(gathered), dense] {
        let device = <Device as burn::tensor::backend::BackendTypes>::Device::default();
        let mut observers = [Blind, Blind, Blind];
        let members = observers.iter_mut().zip(0..).map(|(observer, seed)| {
            let classifier = model.init::<Device>(input_shape(images.shape()), 10, &mut stream(0, "weights"), &device);
            let data = TrainingData { training: &images, validation: None, augmentation: &AUGMENTATION };
            // The first has the seed of the training alone, and the others have other orders and draws.
            Member { classifier: classifier.expect("valid"), data, seed, checkpoints: None, observer }
        });
        let mut group = train_group(members.collect(), &config, &device).expect("trains");
        let Outcome::Finished(found) = group.remove(0) else { panic!("nothing stops it") };
        let expected = trained::<Device>(&model, &images, &config);
        assert!((found.history[0].loss / expected.history[0].loss - 1.0).abs() < 1e-6);
        let (found, expected) = (found.classifier.valid().tensors(), expected.classifier.valid().tensors());
        for (path, expected) in &expected {
            let length = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
            let apart = length(&mut found[path].iter::<f64>().zip(expected.iter::<f64>()).map(|(a, b)| a - b));
            assert!(apart <= 2e-5 * length(&mut expected.iter::<f64>()).max(0.1), "{path}: {apart:e}");
        }
    }
}

#[test]
fn predictions_and_selections_are_the_hosts() {
    let images = shapes(70);
    let config = TrainingConfig { epochs: 1, batch_size: 32, ..Default::default() };
    let host = trained::<Host>(&pmoe(), &images, &config).classifier.valid();
    let device = <Vulkan as burn::tensor::backend::BackendTypes>::Device::default();
    let fresh = pmoe().init::<Vulkan>(input_shape(images.shape()), 10, &mut stream(0, "weights"), &device);
    let copy = fresh.expect("valid").with_tensors(host.tensors());
    let flex = burn_flex::FlexDevice;
    assert_eq!(predict(&copy, &images, 32, &device), predict(&host, &images, 32, &flex));
    let (found, expected) =
        (predict_with_routing(&copy, &images, 32, &device), predict_with_routing(&host, &images, 32, &flex));
    assert_eq!(found.classes, expected.classes);
    let (found, expected) = (found.selections.expect("it routes"), expected.selections.expect("it routes"));
    let same = found.indices().iter().zip(expected.indices()).filter(|(a, b)| a == b).count();
    // Near ties may go either way where rounding differs.
    assert!(same * 100 >= expected.indices().len() * 99, "{same} of {} selected alike", expected.indices().len());
}

#[test]
fn an_interrupted_training_ends_with_the_same_bits() {
    let images = shapes(96);
    let adam = OptimizerConfig::Adam(AdamConfig::default());
    for (optimizer, learning_rate) in [(momentum(), 0.05), (OptimizerConfig::default(), 0.05), (adam, 1e-3)] {
        let config = TrainingConfig { epochs: 3, batch_size: 32, learning_rate, optimizer, ..Default::default() };
        let straight = trained::<Device>(&pmoe(), &images, &config);
        let folder = tempfile::tempdir().expect("a folder");
        let mut stop = Stop { after: 1, told: Vec::new() };
        let outcome = training::<Device>(&pmoe(), &images, &config, Some(folder.path()), &mut stop);
        assert!(matches!(outcome, Outcome::Interrupted { epochs: 1 }));
        assert_eq!(stop.told, [None; 3], "no loss is read within an epoch");
        let mut go_on = Stop { after: usize::MAX, told: Vec::new() };
        let Outcome::Finished(resumed) = training::<Device>(&pmoe(), &images, &config, Some(folder.path()), &mut go_on)
        else {
            panic!("nothing stops it");
        };
        assert_eq!(go_on.told.len(), 6, "two epochs are left");
        let (straight_loss, resumed_loss) = (straight.history[2].loss, resumed.history[2].loss);
        assert_eq!(straight_loss.to_bits(), resumed_loss.to_bits(), "{config:?}");
        assert_eq!(straight.classifier.valid().tensors(), resumed.classifier.valid().tensors());
    }
}
