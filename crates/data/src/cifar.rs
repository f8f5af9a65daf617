use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use crate::pickle::Pickle;
use crate::{DataError, ImageSet, ImageShape};

/// Records read by one task: their bytes (786 KiB) and the pixels made of them stay in a core's cache.
const RECORDS_PER_TASK: usize = 256;

/// Bytes of one colour plane.
const PLANE: usize = 32 * 32;

/// What a record of a CIFAR binary file holds: label bytes, then the red, the green and the blue plane, each 32x32 by
/// rows (<https://www.cs.toronto.edu/~kriz/cifar.html>, "Binary version").
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordLayout {
    /// Bytes before the pixels.
    label_bytes: usize,
    /// Which of them is the label we use.
    label_at: usize,
    /// Under which keys the "Python version" keeps them.
    keys: &'static [&'static str],
}

impl RecordLayout {
    /// One label byte; CIFAR-10 and everything stored like it.
    pub(crate) const CIFAR10: Self = Self { label_bytes: 1, label_at: 0, keys: &["labels"] };
    /// A coarse and a fine label byte, of which the fine one counts.
    pub(crate) const CIFAR100: Self = Self { label_bytes: 2, label_at: 1, keys: &["coarse_labels", "fine_labels"] };

    pub(crate) fn record_size(self) -> usize {
        self.label_bytes + ImageShape::RGB_32.size()
    }
}

/// A file of images, on the disk or unpacked.
#[derive(Debug)]
pub(crate) enum Batch {
    /// A file of records.
    File(PathBuf),
    /// Records in memory, and the file they are from.
    Memory(PathBuf, Vec<u8>),
}

impl Batch {
    /// The file at `path`: as it is if it holds records, in memory if it is one of the "Python version".
    pub(crate) fn open(path: PathBuf, layout: RecordLayout) -> Result<Self, DataError> {
        let mut first = [0];
        let is_pickled = fs_err::File::open(&path)?.read(&mut first)? == 1 && is_pickle(&first);
        if is_pickled { Self::of(path.clone(), fs_err::read(path)?, layout) } else { Ok(Self::File(path)) }
    }

    /// What `bytes` hold, records or a pickle of the "Python version".
    pub(crate) fn of(path: PathBuf, bytes: Vec<u8>, layout: RecordLayout) -> Result<Self, DataError> {
        let records = if is_pickle(&bytes) { records_of_pickle(&path, &bytes, layout)? } else { bytes };
        Ok(Self::Memory(path, records))
    }

    fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Memory(path, _) => path,
        }
    }

    fn length(&self) -> Result<u64, DataError> {
        match self {
            Self::File(path) => Ok(fs_err::metadata(path)?.len()),
            Self::Memory(_, records) => Ok(records.len() as u64),
        }
    }
}

/// Whether a file begins like a pickle; no record does, for no class has the number 128.
fn is_pickle(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x80)
}

/// The records that a batch of the "Python version" holds: rows of planes, and labels in a list of their own.
fn records_of_pickle(path: &Path, bytes: &[u8], layout: RecordLayout) -> Result<Vec<u8>, DataError> {
    let corrupt = |offset, found, expected| DataError::Corrupt { path: path.to_owned(), offset, found, expected };
    let pickle = Pickle::read(bytes).map_err(|error| corrupt(error.offset, error.found, error.expected))?;
    let missing =
        |key: &str| corrupt(0, format!("no {key:?} in the pickle"), format!("one with {}", layout.keys.join(", ")));
    let data = pickle.get("data").ok_or_else(|| missing("data"))?;
    let row = ImageShape::RGB_32.size();
    let expected = || format!("rows of {row} bytes under \"data\"");
    let rows = match pickle.rows(data) {
        Ok((rows, length)) if length == row => rows,
        Ok((_, length)) => return Err(corrupt(0, format!("rows of {length} bytes"), expected())),
        Err(found) => return Err(corrupt(0, found, expected())),
    };
    let count = rows.len() / row;
    let mut records = vec![0; count * layout.record_size()];
    for (record, row) in records.chunks_exact_mut(layout.record_size()).zip(rows.chunks_exact(row)) {
        record[layout.label_bytes..].copy_from_slice(row);
    }
    for (at, key) in layout.keys.iter().enumerate() {
        let labels = pickle.get(key).ok_or_else(|| missing(key))?;
        let expected = || format!("{count} labels under {key:?}");
        let labels = pickle.numbers(labels).map_err(|found| corrupt(0, found, expected()))?;
        if labels.len() != count {
            return Err(corrupt(0, format!("{} labels", labels.len()), expected()));
        }
        for (record, &label) in records.chunks_exact_mut(layout.record_size()).zip(&labels) {
            record[at] = u8::try_from(label).map_err(|_| corrupt(0, format!("label {label}"), expected()))?;
        }
    }
    Ok(records)
}

/// Reads the records of `batches`, in that order, into one set.
pub(crate) fn read_records(
    batches: &[Batch],
    layout: RecordLayout,
    classes: Arc<[String]>,
) -> Result<ImageSet, DataError> {
    let record_size = layout.record_size();
    let mut counts = Vec::with_capacity(batches.len());
    for batch in batches {
        counts.push(count_records(batch.path(), batch.length()?, record_size)?);
    }
    let total: usize = counts.iter().sum();
    let size = ImageShape::RGB_32.size();
    let mut pixels = vec![0; total * size];
    let mut labels = vec![0; total];

    let mut tasks = Vec::new();
    let (mut pixels_left, mut labels_left) = (pixels.as_mut_slice(), labels.as_mut_slice());
    for (batch, &count) in batches.iter().zip(&counts) {
        for first in (0..count).step_by(RECORDS_PER_TASK) {
            let records = RECORDS_PER_TASK.min(count - first);
            let (pixels, rest) = pixels_left.split_at_mut(records * size);
            pixels_left = rest;
            let (labels, rest) = labels_left.split_at_mut(records);
            labels_left = rest;
            tasks.push((batch, first, pixels, labels));
        }
    }
    let task_bytes = RECORDS_PER_TASK.min(total) * record_size;
    tasks.into_par_iter().try_for_each_init(
        || vec![0; task_bytes],
        |buffer, (batch, first, pixels, labels)| {
            let (start, length) = (first * record_size, labels.len() * record_size);
            match batch {
                Batch::File(path) => {
                    let buffer = &mut buffer[..length];
                    let mut file = fs_err::File::open(path)?;
                    file.seek(SeekFrom::Start(start as u64))?;
                    file.read_exact(buffer)?;
                    unpack_records(buffer, layout, pixels, labels);
                }
                Batch::Memory(_, records) => unpack_records(&records[start..start + length], layout, pixels, labels),
            }
            Ok::<(), DataError>(())
        },
    )?;

    let mut first = 0;
    for (batch, &count) in batches.iter().zip(&counts) {
        check_labels(batch.path(), &labels[first..first + count], layout, classes.len())?;
        first += count;
    }
    tracing::debug!(images = total, files = batches.len(), "read records");
    ImageSet::new(ImageShape::RGB_32, pixels, labels, classes)
}

/// How many records a file of `length` bytes has.
fn count_records(path: &Path, length: u64, record_size: usize) -> Result<usize, DataError> {
    let excess = length % record_size as u64;
    if length == 0 || excess != 0 {
        return Err(DataError::Corrupt {
            path: path.to_owned(),
            offset: length - excess,
            found: if length == 0 {
                "an empty file".to_owned()
            } else {
                format!("{excess} bytes after the last record")
            },
            expected: format!("a whole number of records of {record_size} bytes"),
        });
    }
    Ok((length / record_size as u64) as usize)
}

/// Splits whole records into labels and interleaved pixels.
fn unpack_records(records: &[u8], layout: RecordLayout, pixels: &mut [u8], labels: &mut [u8]) {
    let images = pixels.chunks_exact_mut(3 * PLANE);
    for ((record, image), label) in records.chunks_exact(layout.record_size()).zip(images).zip(labels) {
        *label = record[layout.label_at];
        let (red, rest) = record[layout.label_bytes..].split_at(PLANE);
        let (green, blue) = rest.split_at(PLANE);
        for (((pixel, &red), &green), &blue) in image.chunks_exact_mut(3).zip(red).zip(green).zip(blue) {
            pixel[0] = red;
            pixel[1] = green;
            pixel[2] = blue;
        }
    }
}

fn check_labels(path: &Path, labels: &[u8], layout: RecordLayout, classes: usize) -> Result<(), DataError> {
    match labels.iter().position(|&label| usize::from(label) >= classes) {
        None => Ok(()),
        Some(index) => Err(DataError::Corrupt {
            path: path.to_owned(),
            offset: (index * layout.record_size() + layout.label_at) as u64,
            found: format!("label {} in record {index}", labels[index]),
            expected: format!("a label from 0 to {}", classes - 1),
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::labels;

    fn read(bytes: &[u8], layout: RecordLayout, classes: &[&str]) -> Result<ImageSet, DataError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("batch.bin");
        fs_err::write(&path, bytes).unwrap();
        read_records(&[Batch::open(path, layout)?], layout, labels::owned(classes))
    }

    fn record(label: &[u8]) -> Vec<u8> {
        // Red is 1, green counts columns from 100, blue is the row.
        let planes = [
            vec![1; PLANE],
            (0..PLANE).map(|i| 100 + (i % 32) as u8).collect(),
            (0..PLANE).map(|i| (i / 32) as u8).collect(),
        ];
        [label.to_vec(), planes.concat()].concat()
    }

    #[test]
    fn planes_become_pixels() {
        let set = read(&[record(&[3]), record(&[9])].concat(), RecordLayout::CIFAR10, &labels::CIFAR10).unwrap();
        assert_eq!(set.labels(), [3, 9]);
        assert_eq!(set.image(1).pixel(5, 7), [1, 107, 5]);
        assert_eq!(set.image(0).pixel(31, 31), [1, 131, 31]);
    }

    #[test]
    fn cifar100_uses_the_fine_label() {
        let set = read(&record(&[19, 99]), RecordLayout::CIFAR100, &labels::CIFAR100).unwrap();
        assert_eq!(set.labels(), [99]);
        assert_eq!(set.image(0).pixel(0, 1), [1, 101, 0]);
    }

    #[test]
    fn many_records_of_several_files_keep_their_order() {
        let directory = tempfile::tempdir().unwrap();
        let mut next = 0_u32;
        let files: Vec<Batch> = [300, 1, 257]
            .iter()
            .enumerate()
            .map(|(number, &count)| {
                let path = directory.path().join(number.to_string());
                let mut bytes = Vec::new();
                for _ in 0..count {
                    bytes.push((next % 10) as u8);
                    bytes.extend(std::iter::repeat_n((next % 251) as u8, 3 * PLANE));
                    next += 1;
                }
                fs_err::write(&path, bytes).unwrap();
                Batch::open(path, RecordLayout::CIFAR10).unwrap()
            })
            .collect();
        let set = read_records(&files, RecordLayout::CIFAR10, labels::owned(&labels::CIFAR10)).unwrap();
        assert_eq!(set.len(), 558);
        for index in 0..558 {
            assert_eq!(usize::from(set.label(index)), index % 10);
            assert!(set.pixels(index).iter().all(|&pixel| usize::from(pixel) == index % 251));
        }
    }

    #[test]
    fn a_truncated_file_is_reported_where_it_breaks_off() {
        let mut bytes = [record(&[3]), record(&[9])].concat();
        bytes.truncate(3073 + 58);
        let error = read(&bytes, RecordLayout::CIFAR10, &labels::CIFAR10).unwrap_err().to_string();
        assert!(error.ends_with("batch.bin is corrupt at byte 3073: found 58 bytes after the last record, expected a whole number of records of 3073 bytes"), "{error}");
    }

    #[test]
    fn a_label_out_of_range_is_reported_with_its_offset() {
        let bytes = [record(&[3]), record(&[10])].concat();
        let error = read(&bytes, RecordLayout::CIFAR10, &labels::CIFAR10).unwrap_err().to_string();
        assert!(
            error.ends_with("corrupt at byte 3073: found label 10 in record 1, expected a label from 0 to 9"),
            "{error}"
        );
        let error = read(&record(&[0, 100]), RecordLayout::CIFAR100, &labels::CIFAR100).unwrap_err().to_string();
        assert!(
            error.ends_with("corrupt at byte 1: found label 100 in record 0, expected a label from 0 to 99"),
            "{error}"
        );
    }

    #[test]
    fn an_empty_and_a_missing_file_are_errors() {
        let error = read(&[], RecordLayout::CIFAR10, &labels::CIFAR10).unwrap_err().to_string();
        assert!(error.contains("found an empty file"), "{error}");
        let error = Batch::open("no/such/file.bin".into(), RecordLayout::CIFAR10);
        assert!(error.unwrap_err().to_string().contains("no/such/file.bin"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..7000), fine: bool) {
            let (layout, names) = if fine { (RecordLayout::CIFAR100, &labels::CIFAR100[..]) } else { (RecordLayout::CIFAR10, &labels::CIFAR10[..]) };
            match read(&bytes, layout, names) {
                Ok(set) => prop_assert_eq!(set.len() * layout.record_size(), bytes.len()),
                Err(error) => prop_assert!(matches!(error, DataError::Corrupt { .. }), "{error}"),
            }
        }

        #[test]
        fn whole_records_of_any_bytes_are_read_or_refused(labels in prop::collection::vec(0_u8..12, 1..4), pixel: u8) {
            let bytes: Vec<u8> = labels.iter().flat_map(|&label| [vec![label], vec![pixel; 3072]].concat()).collect();
            let result = read(&bytes, RecordLayout::CIFAR10, &labels::CIFAR10);
            prop_assert_eq!(result.is_ok(), labels.iter().all(|&label| label < 10));
        }
    }
}
