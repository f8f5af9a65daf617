//! Augmentation of training images. Assembly into tensors is part of `training`, which alone can see it.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use patchdoor_benches::{SHAPE, images};
use patchdoor_data::{AugmentationConfig, stream};

const IMAGES: usize = 1024;

fn batching(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("batching");
    group.throughput(Throughput::Elements(IMAGES as u64));
    let augmentations = [("as they are", 0, false), ("flip", 0, true), ("crop", 4, false), ("crop and flip", 4, true)];
    for (name, crop_padding, flip) in augmentations {
        group.bench_function(name, |bencher| {
            let augmentation = AugmentationConfig { crop_padding, flip };
            let (set, mut rng, mut target) = (images(IMAGES), stream(7, "augmentation"), vec![0; SHAPE.size()]);
            bencher.iter(|| {
                for index in 0..IMAGES {
                    augmentation.apply(SHAPE, set.pixels(index), &mut target, &mut rng);
                    black_box(&mut target);
                }
            });
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = Criterion::default().sample_size(20); targets = batching }
criterion_main!(benches);
