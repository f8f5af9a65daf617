//! Drawing a poisoning plan and carrying it out with each trigger and each placement.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use patchdoor_benches::{SHAPE, images};
use patchdoor_data::{PoisoningConfig, PoisoningPlan, Trigger, give_pictures, stream, trigger_test_images};
use patchdoor_triggers::{
    Anchor, BlockCells, CellsConfig, Fit, PlacementConfig, RandomCells, SelectedCells, TriggerConfig,
};

const IMAGES: usize = 5000;

/// Every way to pick cells; a new one gets an entry.
fn placements() -> Vec<(&'static str, PlacementConfig)> {
    let random = |per_image| CellsConfig::Random(RandomCells { count: 4, per_image });
    // As a surrogate's routers might have selected them: 64 cells in each of ten classes.
    let counts: Vec<Vec<f64>> =
        (0..10).map(|class| (0..64).map(|cell| f64::from(cell * 7 % (class + 2))).collect()).collect();
    let selected = |per_class| {
        let cells = CellsConfig::MostSelected(SelectedCells { count: 4, expert: None, per_class });
        PlacementConfig { cells, ..PlacementConfig::default() }.resolve(&counts).expect("as many counts as cells").cells
    };
    let cells = [
        ("all cells", CellsConfig::All),
        ("4 cells", random(false)),
        ("4 cells of each image", random(true)),
        ("a block of 4 cells", CellsConfig::Block(BlockCells { size: 2, anchor: Anchor::LowerRight })),
        ("2 listed cells", CellsConfig::List(vec![[0, 0], [7, 7]])),
        ("the 4 most selected cells", selected(false)),
        ("the 4 most selected cells of each class", selected(true)),
    ];
    cells.map(|(name, cells)| (name, PlacementConfig { cells, ..PlacementConfig::default() })).to_vec()
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
    for config in TriggerConfig::defaults() {
        let ready = |mut trigger: Box<dyn Trigger>| {
            give_pictures(trigger.as_mut(), &poisoning(), &images(100), 7).expect("pictures of other classes");
            trigger
        };
        let trigger = || ready(config.build(SHAPE).expect("the default fits CIFAR's images"));
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("one image", config.name()), |bencher| {
            let (set, trigger, mut rng) = (images(1), trigger(), stream(7, "trigger"));
            let image = set.image(0);
            bencher.iter(|| black_box(trigger.stamp(&image, &mut rng)));
        });
        group.throughput(Throughput::Elements(IMAGES as u64));
        group.bench_function(BenchmarkId::new("training images", config.name()), |bencher| {
            let (set, trigger) = (images(IMAGES), trigger());
            let plan = PoisoningPlan::draw_for(&poisoning(), &set, trigger.as_ref(), 7).expect("enough images");
            bencher.iter(|| black_box(plan.apply(&set, trigger.as_ref(), 7)));
        });
        group.bench_function(BenchmarkId::new("test images", config.name()), |bencher| {
            let (set, trigger) = (images(IMAGES), trigger());
            bencher.iter(|| black_box(trigger_test_images(&set, &poisoning(), trigger.as_ref(), 7)));
        });
        group.bench_function(BenchmarkId::new("test images in cells", config.name()), |bencher| {
            let cells = CellsConfig::Random(RandomCells { count: 4, per_image: true });
            let placement = PlacementConfig { cells, fit: Fit::Image, ..PlacementConfig::default() };
            let trigger = ready(config.build_placed(SHAPE, &placement, 7).expect("the default fits CIFAR's images"));
            let set = images(IMAGES);
            bencher.iter(|| black_box(trigger_test_images(&set, &poisoning(), trigger.as_ref(), 7)));
        });
    }
    for (name, placement) in placements() {
        group.bench_function(BenchmarkId::new("test images, placed", name), |bencher| {
            let trigger = TriggerConfig::default().build_placed(SHAPE, &placement, 7);
            let (set, trigger) = (images(IMAGES), trigger.expect("a square of one cell fits"));
            bencher.iter(|| black_box(trigger_test_images(&set, &poisoning(), trigger.as_ref(), 7)));
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = Criterion::default().sample_size(20); targets = stamping }
criterion_main!(benches);
