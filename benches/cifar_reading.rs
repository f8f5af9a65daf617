//! Reading CIFAR's binary files.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use patchdoor_benches::{SHAPE, bytes};
use patchdoor_data::{DatasetConfig, load};

const RECORDS_PER_FILE: usize = 1000;

/// Writes a file of noise whose label bytes are all in range.
fn write_records(path: &Path, label_bytes: usize) {
    let size = label_bytes + SHAPE.size();
    let mut records = bytes("records", RECORDS_PER_FILE * size);
    for record in records.chunks_exact_mut(size) {
        record[..label_bytes].iter_mut().for_each(|label| *label %= 10);
    }
    std::fs::write(path, records).expect("a file in a temporary folder");
}

fn cifar_reading(criterion: &mut Criterion) {
    let cifar10 = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"];
    let cifar100 = ["train", "test"];
    let sets = [
        (DatasetConfig::Cifar10, "cifar-10-batches-bin", &cifar10[..], 1),
        (DatasetConfig::Cifar100, "cifar-100-binary", &cifar100[..], 2),
    ];
    let mut group = criterion.benchmark_group("cifar_reading");
    for (config, folder, files, label_bytes) in sets {
        group.throughput(Throughput::Elements((files.len() * RECORDS_PER_FILE) as u64));
        group.bench_function(config.name(), |bencher| {
            let root = tempfile::tempdir().expect("a temporary folder");
            let folder = root.path().join(folder);
            std::fs::create_dir(&folder).expect("a folder in a temporary folder");
            for file in files {
                write_records(&folder.join(file).with_extension("bin"), label_bytes);
            }
            let roots = [root.path().to_owned()];
            bencher.iter(|| black_box(load(&config, &roots).expect("all files are there")));
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = Criterion::default().sample_size(20); targets = cifar_reading }
criterion_main!(benches);
