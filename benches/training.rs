//! One step of training, from stored pixels to updated weights, and evaluation.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::hint::black_box;

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use patchdoor_benches::classifier;
use patchdoor_data::{AugmentationConfig, DatasetConfig, ImageSet, ShapesConfig, load};
use patchdoor_model::PatchMoeConfig;
use patchdoor_train::{TrainingConfig, TrainingData, predict, train};

/// Images of one step; smaller than in experiments so that a sample takes a fraction of a second.
const BATCH: usize = 32;

fn shapes() -> ImageSet {
    let config = DatasetConfig::Shapes(ShapesConfig { train: BATCH, test: 10, seed: 0 });
    load(&config, &[]).expect("built in").train
}

fn training(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("training");
    group.throughput(Throughput::Elements(BATCH as u64));
    for widen_factor in [1, 2] {
        let config = PatchMoeConfig { widen_factor, ..Default::default() };
        group.bench_function(BenchmarkId::new("step", format!("widen {widen_factor}")), |bencher| {
            let classifier = classifier::<Autodiff<Flex>>(config.clone(), &FlexDevice);
            let images = shapes();
            let augmentation = AugmentationConfig { crop_padding: 4, flip: true };
            let data = TrainingData { training: &images, validation: None, augmentation: &augmentation };
            // An epoch of one batch is one step.
            let training = TrainingConfig { epochs: 1, batch_size: BATCH, ..TrainingConfig::default() };
            bencher.iter_batched(
                || classifier.clone(),
                |classifier| {
                    let outcome = train(classifier, &data, &training, 0, None, &mut (), &FlexDevice);
                    Autodiff::<Flex>::sync(&FlexDevice).expect("a backend without queue");
                    outcome.expect("one step does not diverge")
                },
                BatchSize::PerIteration,
            );
        });
        group.bench_function(BenchmarkId::new("evaluation", format!("widen {widen_factor}")), |bencher| {
            let (classifier, images) = (classifier::<Flex>(config.clone(), &FlexDevice), shapes());
            bencher.iter(|| black_box(predict(&classifier, &images, BATCH, &FlexDevice)));
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = Criterion::default().sample_size(20); targets = training }
criterion_main!(benches);
