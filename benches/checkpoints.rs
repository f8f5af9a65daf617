//! Writing and reading weights, and going on from a checkpoint. Times of writing include flushing to the disk.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::hint::black_box;
use std::path::Path;

use burn::backend::Autodiff;
use burn_flex::{Flex, FlexDevice};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use patchdoor_benches::{INPUT, classifier, images};
use patchdoor_data::{AugmentationConfig, ImageSet};
use patchdoor_model::{Classifier, PatchMoeConfig, WeightsDescription, load_weights, save_weights};
use patchdoor_train::{Outcome, TrainingConfig, TrainingData, train};

/// Images trained on, the fewest that make a batch.
const IMAGES: usize = 2;

fn config() -> PatchMoeConfig {
    PatchMoeConfig { widen_factor: 2, ..PatchMoeConfig::default() }
}

fn description(classifier: &Classifier<Flex>) -> WeightsDescription {
    let classes = (0..classifier.classes()).map(|class| class.to_string()).collect();
    WeightsDescription { config: classifier.config(), classes, input: INPUT }
}

/// One epoch, saved in or resumed from a folder.
fn epoch(classifier: Classifier<Autodiff<Flex>>, set: &ImageSet, folder: &Path) -> Outcome<Autodiff<Flex>> {
    let data = TrainingData { training: set, validation: None, augmentation: &AugmentationConfig::default() };
    let training = TrainingConfig { epochs: 1, batch_size: IMAGES, ..TrainingConfig::default() };
    train(classifier, &data, &training, 0, Some(folder), &mut (), &FlexDevice).expect("a writable temporary folder")
}

fn checkpoints(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checkpoints");
    let bytes = Throughput::Bytes(4 * classifier::<Flex>(config(), &FlexDevice).parameters() as u64);
    group.throughput(bytes);
    group.bench_function("write weights", |bencher| {
        let classifier = classifier::<Flex>(config(), &FlexDevice);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("weights.safetensors");
        bencher
            .iter(|| save_weights(&classifier, &description(&classifier), &path).expect("a writable temporary folder"));
    });
    group.bench_function("read weights", |bencher| {
        let classifier = classifier::<Flex>(config(), &FlexDevice);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("weights.safetensors");
        save_weights(&classifier, &description(&classifier), &path).expect("a writable temporary folder");
        bencher.iter_batched(
            || classifier.clone(),
            |classifier| black_box(load_weights(classifier, &path).expect("just written")),
            BatchSize::PerIteration,
        );
    });
    group.bench_function("resume from a checkpoint", |bencher| {
        let classifier = classifier::<Autodiff<Flex>>(config(), &FlexDevice);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let set = images(IMAGES);
        // The only epoch is done, so that training again reads the checkpoint and ends.
        epoch(classifier.clone(), &set, folder.path());
        bencher.iter_batched(
            || classifier.clone(),
            |classifier| black_box(epoch(classifier, &set, folder.path())),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group! { name = benches; config = Criterion::default().sample_size(20); targets = checkpoints }
criterion_main!(benches);
