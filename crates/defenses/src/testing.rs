//! What the tests of the defenses share: small models whose filters answer what is asked of them.

use std::collections::BTreeMap;

use burn::backend::Autodiff;
use burn::tensor::TensorData;
use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use patchdoor_data::{DatasetConfig, ImageSet, ShapesConfig, load, stream};
use patchdoor_model::{Classifier, ClassifierConfig, InputShape, PatchMoeConfig};
use patchdoor_train::{BatchNormStatistics, TrainingConfig};

use crate::{DefenderData, ModelRepair, RepairWork, Repaired};

pub(crate) type Learner = Autodiff<Flex>;

pub(crate) fn shapes(count: usize) -> ImageSet {
    let config = DatasetConfig::Shapes(ShapesConfig { train: count, test: 10, seed: 0 });
    load(&config, &[]).expect("shapes need no file").train
}

/// Four experts of 16 filters over 64 channels, routers that differ.
fn fresh<B: Backend<Device = FlexDevice>>() -> Classifier<B> {
    let config = PatchMoeConfig { widen_factor: 1, gate_init_std: 0.1, ..Default::default() };
    let input = InputShape { height: 32, width: 32, channels: 3 };
    ClassifierConfig::PatchMoe(config).init(input, 10, &mut stream(0, "weights"), &FlexDevice).expect("valid")
}

fn with_biases<B: Backend<Device = FlexDevice>>(classifier: Classifier<B>, biases: &[f32]) -> Classifier<B> {
    let experts = biases.chunks(16).enumerate();
    let tensors = experts.map(|(e, biases)| (format!("experts.{e}.conv.bias"), TensorData::new(biases.to_vec(), [16])));
    classifier.with_tensors(tensors.collect())
}

/// A classifier whose filters answer these constants to everything.
pub(crate) fn constant_filters<B: Backend<Device = FlexDevice>>(biases: &[f32]) -> Classifier<B> {
    let zeros = (0..4).map(|e| (format!("experts.{e}.conv.weight"), TensorData::zeros::<f32, _>([16, 64, 1, 1])));
    with_biases(fresh::<B>().with_tensors(zeros.collect()), biases)
}

/// A classifier in which filter f of each expert answers 10 f and a little of its own, and every feature is alive: a
/// filter whose normalization shifts below zero takes no gradient once its output is constant.
pub(crate) fn ascending_filters() -> Classifier<Learner> {
    let biases: Vec<f32> = (0..64u8).map(|filter| 10.0 * f32::from(filter % 16)).collect();
    alive(with_biases(fresh(), &biases))
}

/// The classifier with the last normalization's shifts at one half.
pub(crate) fn alive(classifier: Classifier<Learner>) -> Classifier<Learner> {
    classifier.with_tensors([("norm.beta".to_owned(), TensorData::new(vec![0.5f32; 64], [64]))].into())
}

/// Few epochs, enough that everything that may learn does.
pub(crate) fn quick_training() -> TrainingConfig {
    TrainingConfig {
        epochs: 2,
        batch_size: 20,
        learning_rate: 0.05,
        batch_norm_statistics: BatchNormStatistics::Recomputed,
        ..Default::default()
    }
}

pub(crate) fn repair_with(
    defense: &impl ModelRepair<Learner>,
    classifier: Classifier<Learner>,
    validation: Option<&ImageSet>,
) -> Repaired<Learner> {
    let clean = shapes(40);
    let data = DefenderData { clean: &clean, validation };
    let mut work = RepairWork { data, seed: 0, checkpoints: None, observer: &mut () };
    defense.repair(classifier, &mut work, &FlexDevice).expect("nothing fails")
}

pub(crate) fn tensor(classifier: &Classifier<Learner>, name: &str) -> Vec<f32> {
    classifier.tensors()[name].iter::<f32>().collect()
}

pub(crate) fn bits(classifier: &Classifier<Learner>) -> BTreeMap<String, Vec<u32>> {
    let bits = |data: TensorData| data.iter::<f32>().map(f32::to_bits).collect();
    classifier.tensors().into_iter().map(|(name, data)| (name, bits(data))).collect()
}
