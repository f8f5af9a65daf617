//! Poisoned data for other tools: a folder of PNG files, or the files of the CIFAR-10 binary distribution.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{CoverExample, DataError, ImageSet, ImageShape, PoisonedExample, PoisoningPlan};

/// Batches of training images in the CIFAR-10 distribution.
const BATCHES: usize = 5;

/// What is exported.
#[derive(Clone, Copy, Debug)]
pub struct Export<'a> {
    /// Training images, as [`PoisoningPlan::apply`] returned them.
    pub train: &'a ImageSet,
    /// The plan they were poisoned by.
    pub plan: &'a PoisoningPlan,
    /// Untouched test images.
    pub test: &'a ImageSet,
    /// Triggered test images with their true labels, on which the attack's success is measured.
    pub triggered_test: &'a ImageSet,
}

/// In which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExportFormat {
    /// `train/`, `test/` and `triggered-test/`, each with a folder per class, `3-cat`, and in it one PNG file per image,
    /// named for its index. `dataset.folder` reads `train` and `test` back.
    PngFolder,
    /// `data_batch_1.bin` to `data_batch_5.bin`, `test_batch.bin`, `triggered_test_batch.bin` and `batches.meta.txt`, in
    /// the layout of CIFAR-10's binary version; for 32x32 RGB images only.
    Cifar10Binary,
}

/// One line of `poisoned.csv`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct PoisonedLine {
    index: usize,
    origin: u32,
    original_label: u8,
    poisoned_label: u8,
    file: String,
    record: Option<usize>,
    role: Role,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Role {
    Poisoned,
    Cover,
}

/// Writes the images and the plan, `poisoned.csv`, to the new folder `into`.
///
/// The table has a line per poisoned training image and then one per cover image: its index, its origin in the source
/// split, both labels, its file, in the binary form its record in that file, and its role, `poisoned` or `cover`. All is written under a temporary name beside `into` and renamed at
/// the end.
///
/// # Errors
///
/// [`DataError::Exists`] if `into` exists, [`DataError::Inconsistent`] if the form cannot hold images of this shape or
/// so few, and what goes wrong while writing.
pub fn export(export: &Export, format: ExportFormat, into: &Path) -> Result<(), DataError> {
    if into.exists() {
        return Err(DataError::Exists { path: into.to_owned() });
    }
    let shape = export.train.shape();
    let problem = match format {
        ExportFormat::PngFolder if !matches!(shape.channels, 1 | 3) => Some("images of 1 or 3 channels for PNG"),
        ExportFormat::Cifar10Binary if shape != ImageShape::RGB_32 => Some("32x32x3 images for CIFAR-10's format"),
        ExportFormat::Cifar10Binary if export.train.len() < BATCHES => Some("at least 5 images for CIFAR-10's format"),
        _ => None,
    };
    if let Some(expected) = problem {
        return Err(DataError::Inconsistent {
            found: format!("{} images of {shape}", export.train.len()),
            expected: expected.to_owned(),
        });
    }
    let name = into.file_name().unwrap_or_default().to_string_lossy();
    let temporary = into.with_file_name(format!(".{name}.partial"));
    if temporary.exists() {
        fs_err::remove_dir_all(&temporary)?;
    }
    fs_err::create_dir_all(&temporary)?;
    let written = match format {
        ExportFormat::PngFolder => write_folder(export, &temporary),
        ExportFormat::Cifar10Binary => write_cifar10(export, &temporary),
    };
    let result = written.and_then(|()| Ok(fs_err::rename(&temporary, into)?));
    if result.is_err() {
        // The error that brought us here is the one to report.
        let _ = fs_err::remove_dir_all(&temporary);
    }
    result
}

fn write_folder(export: &Export, directory: &Path) -> Result<(), DataError> {
    for (split, set) in [("train", export.train), ("test", export.test), ("triggered-test", export.triggered_test)] {
        for (label, count) in set.class_counts().into_iter().enumerate() {
            if count > 0 {
                fs_err::create_dir_all(directory.join(split).join(class_folder(set, label)))?;
            }
        }
        (0..set.len())
            .into_par_iter()
            .try_for_each(|index| write_png(set, index, &directory.join(png_file(split, set, index))))?;
    }
    write_table(export.plan, directory, |index| (png_file("train", export.train, index), None))
}

fn write_png(set: &ImageSet, index: usize, path: &Path) -> Result<(), DataError> {
    let color = if set.shape().channels == 1 { image::ExtendedColorType::L8 } else { image::ExtendedColorType::Rgb8 };
    let ImageShape { height, width, .. } = set.shape();
    let format = image::ImageFormat::Png;
    image::save_buffer_with_format(path, set.pixels(index), width as u32, height as u32, color, format)
        .map_err(|source| DataError::ImageNotWritten { path: path.to_owned(), source })
}

/// `train/3-cat/00017.png`, with as many digits as the largest index needs, so that names sort like numbers.
fn png_file(split: &str, set: &ImageSet, index: usize) -> String {
    let digits = set.len().saturating_sub(1).to_string().len();
    format!("{split}/{}/{index:0digits$}.png", class_folder(set, usize::from(set.label(index))))
}

/// Label and name of a class, so that folders sort like labels and the name is fit for any file system.
fn class_folder(set: &ImageSet, label: usize) -> String {
    let digits = (set.class_count() - 1).to_string().len();
    let name = &set.classes()[label];
    let name: String = name.chars().map(|c| if c.is_alphanumeric() || c == '-' { c } else { '_' }).collect();
    format!("{label:0digits$}-{name}")
}

fn write_cifar10(export: &Export, directory: &Path) -> Result<(), DataError> {
    for batch in 0..BATCHES {
        let (start, end) = batch_range(export.train.len(), batch);
        write_records(export.train, start..end, &directory.join(batch_file(batch)))?;
    }
    write_records(export.test, 0..export.test.len(), &directory.join("test_batch.bin"))?;
    let triggered = export.triggered_test;
    write_records(triggered, 0..triggered.len(), &directory.join("triggered_test_batch.bin"))?;
    fs_err::write(directory.join("batches.meta.txt"), export.train.classes().join("\n") + "\n")?;
    write_table(export.plan, directory, |index| {
        let batch = (0..BATCHES)
            .find(|&batch| index < batch_range(export.train.len(), batch).1)
            .expect("the last batch ends with the last image");
        (batch_file(batch), Some(index - batch_range(export.train.len(), batch).0))
    })
}

fn batch_file(batch: usize) -> String {
    format!("data_batch_{}.bin", batch + 1)
}

/// First and one past the last image of a batch; sizes differ by one at most, and none is empty.
fn batch_range(images: usize, batch: usize) -> (usize, usize) {
    (images * batch / BATCHES, images * (batch + 1) / BATCHES)
}

fn write_records(set: &ImageSet, indices: std::ops::Range<usize>, path: &Path) -> Result<(), DataError> {
    let mut bytes = Vec::with_capacity(indices.len() * (1 + set.shape().size()));
    for index in indices {
        bytes.push(set.label(index));
        for channel in 0..3 {
            bytes.extend(set.pixels(index).iter().skip(channel).step_by(3));
        }
    }
    Ok(fs_err::write(path, bytes)?)
}

fn write_table(
    plan: &PoisoningPlan,
    directory: &Path,
    place: impl Fn(usize) -> (String, Option<usize>),
) -> Result<(), DataError> {
    let path: PathBuf = directory.join("poisoned.csv");
    let failed = |source| DataError::Table { path: path.clone(), source };
    let mut writer = csv::Writer::from_writer(fs_err::File::create(&path)?);
    let poisoned = plan.examples().iter().map(|example| (*example, Role::Poisoned));
    let covers = plan.covers().iter().map(|&CoverExample { index, origin, label }| {
        (PoisonedExample { index, origin, original_label: label, poisoned_label: label }, Role::Cover)
    });
    for (PoisonedExample { index, origin, original_label, poisoned_label }, role) in poisoned.chain(covers) {
        let (file, record) = place(index);
        let line = PoisonedLine { index, origin, original_label, poisoned_label, file, record, role };
        writer.serialize(line).map_err(failed)?;
    }
    Ok(writer.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        DatasetConfig, FolderConfig, Image, PoisoningConfig, ShapesConfig, StreamRng, Trigger, load,
        trigger_test_images,
    };

    struct White;

    impl Trigger for White {
        fn stamp(&self, image: &Image, _rng: &mut StreamRng) -> Image {
            let mut stamped = image.clone();
            stamped.pixel_mut(0, 0).fill(255);
            stamped
        }

        fn covers_per_poisoned_image(&self) -> f64 {
            0.5
        }
    }

    fn with_export(check: impl FnOnce(&Export, &Path)) {
        let dataset = load(&DatasetConfig::Shapes(ShapesConfig { train: 63, test: 12, seed: 1 }), &[]).unwrap();
        let config = PoisoningConfig { rate: 0.1, target_class: 3, ..PoisoningConfig::default() };
        let plan = PoisoningPlan::draw_for(&config, &dataset.train, &White, 0).unwrap();
        let train = plan.apply(&dataset.train, &White, 0);
        let triggered_test = &trigger_test_images(&dataset.test, &config, &White, 0);
        let export = Export { train: &train, plan: &plan, test: &dataset.test, triggered_test };
        check(&export, tempfile::tempdir().unwrap().path());
    }

    #[test]
    fn a_folder_is_read_back_the_same() {
        with_export(|data, directory| {
            let into = directory.join("poisoned");
            export(data, ExportFormat::PngFolder, &into).unwrap();
            let read = load(&DatasetConfig::Folder(FolderConfig::new(into.clone(), 32)), &[]).unwrap();
            assert_eq!(read.train.classes()[3], "3-frame");
            assert_eq!(read.train.class_counts(), data.train.class_counts());
            // Read back by class, images stand in the order of (label, index).
            let mut order: Vec<usize> = (0..data.train.len()).collect();
            order.sort_by_key(|&index| (data.train.label(index), index));
            assert_eq!(read.train.all_pixels(), data.train.subset(&order).all_pixels());
            let table = fs_err::read_to_string(into.join("poisoned.csv")).unwrap();
            assert_eq!(table.lines().next().unwrap(), "index,origin,original-label,poisoned-label,file,record,role");
            assert_eq!(table.lines().count(), 1 + 6 + 3);
            for (line, cover) in table.lines().skip(1 + 6).zip(data.plan.covers()) {
                let class = format!("{}-", cover.label);
                assert!(
                    line.starts_with(&format!("{0},{0},{1},{1},train/{class}", cover.index, cover.label)),
                    "{line}"
                );
                assert!(line.ends_with(",,cover"), "{line}");
            }
            for (line, example) in table.lines().skip(1).zip(data.plan.examples()) {
                let file = format!("train/3-frame/{:02}.png", example.index);
                assert_eq!(line, format!("{0},{0},{1},3,{file},,poisoned", example.index, example.original_label));
                assert!(into.join(file).is_file());
            }
            let triggered = fs_err::read_dir(into.join("triggered-test")).unwrap().count();
            assert_eq!(triggered, 9);
        });
    }

    #[test]
    fn the_binary_form_is_read_back_the_same() {
        with_export(|data, directory| {
            let into = directory.join("cifar-10-batches-bin");
            export(data, ExportFormat::Cifar10Binary, &into).unwrap();
            let read = load(&DatasetConfig::Cifar10, &[directory.to_owned()]).unwrap();
            assert_eq!(read.train.labels(), data.train.labels());
            assert_eq!(read.train.all_pixels(), data.train.all_pixels());
            assert_eq!(read.test.all_pixels(), data.test.all_pixels());
            let sizes = (0..BATCHES).map(|batch| fs_err::metadata(into.join(batch_file(batch))).unwrap().len() / 3073);
            assert_eq!(sizes.collect::<Vec<_>>(), [12, 13, 12, 13, 13]);
            let table = fs_err::read_to_string(into.join("poisoned.csv")).unwrap();
            for (line, example) in table.lines().skip(1).zip(data.plan.examples()) {
                let fields: Vec<&str> = line.split(',').collect();
                let bytes = fs_err::read(into.join(fields[4])).unwrap();
                let record = &bytes[fields[5].parse::<usize>().unwrap() * 3073..][..3073];
                assert_eq!((record[0], record[1]), (3, 255));
                assert_eq!(record[2], data.train.image(example.index).pixel(0, 1)[0]);
            }
        });
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_half_written_stays() {
        with_export(|data, directory| {
            let into = directory.join("there");
            fs_err::create_dir(&into).unwrap();
            let error = export(data, ExportFormat::PngFolder, &into).unwrap_err();
            assert!(error.to_string().ends_with("there exists already; it is never overwritten"), "{error}");
            let few = data.train.subset(&[0, 1]);
            let export_few = Export { train: &few, ..*data };
            let error = export(&export_few, ExportFormat::Cifar10Binary, &directory.join("new")).unwrap_err();
            assert_eq!(
                error.to_string(),
                "a set of images has 2 images of 32x32x3, expected at least 5 images for CIFAR-10's format"
            );
            // A file where a folder should go.
            fs_err::write(directory.join("file"), "").unwrap();
            assert!(export(data, ExportFormat::PngFolder, &directory.join("file/new")).is_err());
            assert_eq!(fs_err::read_dir(directory).unwrap().count(), 2);
        });
    }
}
