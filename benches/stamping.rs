//! Drawing a poisoning plan and carrying it out with each trigger.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use patchdoor_benches::{SHAPE, images};
use patchdoor_data::{PoisoningConfig, PoisoningPlan, stream, trigger_test_images};
use patchdoor_triggers::{SquareConfig, TriggerConfig};

const IMAGES: usize = 5000;

/// Every kind of trigger in its default form; a new variant gets an entry.
fn triggers() -> Vec<TriggerConfig> {
    vec![TriggerConfig::Square(SquareConfig::default())]
}

fn poisoning() -> PoisoningConfig {
    PoisoningConfig { rate: 0.1, ..PoisoningConfig::default() }
}

fn stamping(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stamping");
    group.throughput(Throughput::Elements(IMAGES as u64));
    group.bench_function("plan", |bencher| {
        let set = images(IMAGES);
        bencher.iter(|| black_box(PoisoningPlan::draw(&poisoning(), &set, 7).expect("enough images")));
    });
    for config in triggers() {
        let trigger = || config.build(SHAPE).expect("the default fits CIFAR's images");
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("one image", config.name()), |bencher| {
            let (set, trigger, mut rng) = (images(1), trigger(), stream(7, "trigger"));
            let image = set.image(0);
            bencher.iter(|| black_box(trigger.stamp(&image, &mut rng)));
        });
        group.throughput(Throughput::Elements(IMAGES as u64));
        group.bench_function(BenchmarkId::new("training images", config.name()), |bencher| {
            let (set, trigger) = (images(IMAGES), trigger());
            let plan = PoisoningPlan::draw(&poisoning(), &set, 7).expect("enough images");
            bencher.iter(|| black_box(plan.apply(&set, trigger.as_ref(), 7)));
        });
        group.bench_function(BenchmarkId::new("test images", config.name()), |bencher| {
            let (set, trigger) = (images(IMAGES), trigger());
            bencher.iter(|| black_box(trigger_test_images(&set, &poisoning(), trigger.as_ref(), 7)));
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = Criterion::default().sample_size(20); targets = stamping }
criterion_main!(benches);
