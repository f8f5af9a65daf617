//! Memory of this process, which no other test may use meanwhile.
#![cfg(target_os = "linux")]

use burn::backend::Autodiff;
use burn_flex::{Flex, FlexDevice};
use patchdoor_data::{AugmentationConfig, DatasetConfig, ShapesConfig, load, stream};
use patchdoor_model::{ClassifierConfig, InputShape, PatchMoeConfig};
use patchdoor_train::{BatchNormStatistics, Outcome, TrainingConfig, TrainingData, train};

/// Megabytes of memory this process holds.
fn resident_megabytes() -> f64 {
    let status = fs_err::read_to_string("/proc/self/status").expect("Linux describes processes");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("memory is described");
    line.trim().trim_end_matches("kB").trim().parse::<f64>().expect("a number") / 1024.0
}

#[test]
fn recomputing_statistics_keeps_no_feature_maps() {
    let shapes = DatasetConfig::Shapes(ShapesConfig { train: 640, test: 10, seed: 0 });
    let images = load(&shapes, &[]).expect("shapes need no file").train;
    let input = InputShape { height: 32, width: 32, channels: 3 };
    let model = ClassifierConfig::PatchMoe(PatchMoeConfig { widen_factor: 1, ..Default::default() });
    let data = TrainingData { training: &images, validation: None, augmentation: &AugmentationConfig::default() };
    let training_with = |batch_norm_statistics| {
        let classifier = model.init::<Autodiff<Flex>>(input, 10, &mut stream(0, "weights"), &FlexDevice);
        let config = TrainingConfig { epochs: 1, batch_size: 32, batch_norm_statistics, ..Default::default() };
        let classifier = classifier.expect("the configuration is valid");
        let trained = train(classifier, &data, &config, 0, None, &mut (), &FlexDevice).expect("training succeeds");
        assert!(matches!(trained, Outcome::Finished(_)));
    };
    // Steps fill the allocator's pools; a pass that kept its maps would hold some 300 megabytes more.
    training_with(BatchNormStatistics::Running);
    let before = resident_megabytes();
    training_with(BatchNormStatistics::Recomputed);
    let grown = resident_megabytes() - before;
    assert!(grown < 60.0, "{grown} MB more are held after a pass that should hold nothing");
}
