//! Losses with the fast kernels and without, in a process of its own: in which order burn's stock operations add, and so how they
//! round, depends on what other threads do beside them.

use std::ops::ControlFlow;

use burn::backend::Autodiff;
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::{NdArray, NdArrayDevice};
use patchdoor_data::{AugmentationConfig, DatasetConfig, ShapesConfig, load, stream};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::{ClassifierConfig, ExpertForm, InputShape, PatchMoeConfig};
use patchdoor_train::{
    BatchNormStatistics, BatchProgress, CosineConfig, OptimizerConfig, ScheduleConfig, SgdConfig, TrainingConfig,
    TrainingData, TrainingObserver, train,
};

/// Keeps the loss of every step.
#[derive(Default)]
struct Losses(Vec<f64>);

impl TrainingObserver for Losses {
    fn batch_done(&mut self, progress: &BatchProgress) -> ControlFlow<()> {
        self.0.push(progress.loss.expect("the host knows every loss"));
        ControlFlow::Continue(())
    }
}

/// The loss of each of twelve steps of a small network on a backend.
fn loss_curve<B: TrainingBackend>(expert_form: ExpertForm, rate: f64, device: &B::Device) -> Vec<f64> {
    let model = PatchMoeConfig { widen_factor: 1, patches_per_expert: 64, expert_form, ..Default::default() };
    let input = InputShape { height: 32, width: 32, channels: 3 };
    let classifier = ClassifierConfig::PatchMoe(model).init::<B>(input, 10, &mut stream(0, "weights"), device);
    let config = DatasetConfig::Shapes(ShapesConfig { train: 24, test: 10, seed: 0 });
    let images = load(&config, &[]).expect("shapes need no file").train;
    let data = TrainingData {
        training: &images,
        validation: None,
        augmentation: &AugmentationConfig { crop_padding: 2, flip: true },
    };
    let optimizer = OptimizerConfig::Sgd(SgdConfig { momentum: 0.0, nesterov: false, weight_decay: 0.0 });
    let config = TrainingConfig {
        epochs: 4,
        batch_size: 8,
        learning_rate: rate,
        optimizer,
        schedule: ScheduleConfig::Cosine(CosineConfig::default()),
        batch_norm_statistics: BatchNormStatistics::Recomputed,
        ..TrainingConfig::default()
    };
    let mut losses = Losses::default();
    train(classifier.expect("the configuration is valid"), &data, &config, 0, None, &mut losses, device)
        .expect("training succeeds");
    losses.0
}

/// The fast kernels against their default bodies in stock operations, which burn's other CPU backend has.
///
/// Both compute in `f32` (relative rounding 6e-8) and add in another order, so losses differ by roundings, and every
/// step multiplies the difference, since rectifiers open and close by it. The stock side rounds by chance: in 40 curves the
/// fifth loss was 4e-7, 2e-6 or, one time in ten, 1.0e-5 off, the twelfth 7e-5 and less. An error is in every curve, so the
/// closest of three counts. A learning rate that is off by a thousandth, as if every gradient were, moves the
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
        let draw = |_| {
            let stock = loss_curve::<Autodiff<NdArray>>(form, rate, &NdArrayDevice::default());
            assert_eq!((fast.len(), stock.len()), (12, 12));
            apart(&fast, &stock)
        };
        let differences = (0..3)
            .map(draw)
            .reduce(|closest, other| if largest(&other[..5]) < largest(&closest[..5]) { other } else { closest });
        let differences = differences.expect("three curves");
        assert!(largest(&differences[..1]) <= 1e-6, "{form:?}: {differences:?}");
        assert!(largest(&differences[..5]) <= 1e-5, "{form:?}: {differences:?}");
        assert!(largest(&differences) <= 3e-4, "{form:?}: {differences:?}");

        let wrong = loss_curve::<Autodiff<Flex>>(form, rate * 1.001, &FlexDevice);
        // Both of these add in the same order always, so that no chance rounding hides the error.
        let differences = apart(&wrong, &fast);
        assert!(largest(&differences[..5]) > 1e-5, "an error of a thousandth goes unnoticed: {differences:?}");
    }
}
