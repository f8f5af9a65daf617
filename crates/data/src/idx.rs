use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::{DataError, ImageSet, ImageShape, labels};

/// Type and dimensions of a file of images: unsigned bytes (8) in three dimensions.
const IMAGES_MAGIC: u32 = 0x0000_0803;

/// Type and dimensions of a file of labels: unsigned bytes (8) in one dimension.
const LABELS_MAGIC: u32 = 0x0000_0801;

/// The largest file we read into memory; far above MNIST's 47 MB, and below what a forged header could ask for.
const LARGEST: u64 = 1 << 32;

/// The four files of MNIST and its successors, in the order training images, training labels, test images, test labels.
/// Each may end in `.gz` too.
pub(crate) const FILES: [&str; 4] =
    ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"];

/// Reads both splits; images must be 28x28.
pub(crate) fn read_directory(directory: &Path, classes: &[&str]) -> Result<(ImageSet, ImageSet), DataError> {
    let [train_images, train_labels, test_images, test_labels] =
        FILES.map(|file| find(directory, file).unwrap_or_else(|| directory.join(file)));
    Ok((read_split(&train_images, &train_labels, classes)?, read_split(&test_images, &test_labels, classes)?))
}

/// Names of the files that `directory` lacks under any of their names.
pub(crate) fn missing_files(directory: &Path) -> Vec<String> {
    FILES.into_iter().filter(|file| find(directory, file).is_none()).map(str::to_owned).collect()
}

/// An IDX file as it lies in `directory`: with or without `.gz`, as `train-images.idx3-ubyte` (what the archives on
/// Kaggle and some unpackers write), or in a folder of the file's name.
pub(crate) fn find(directory: &Path, file: &str) -> Option<PathBuf> {
    let dotted = file.replace("-idx", ".idx");
    let names = [file.to_owned(), format!("{file}.gz"), dotted.clone(), format!("{dotted}.gz")];
    let plain = names.iter().map(|name| directory.join(name)).find(|path| path.is_file());
    plain.or_else(|| {
        let folders = names.iter().map(|name| directory.join(name)).filter(|path| path.is_dir());
        let inside = folders.flat_map(|folder| names.iter().map(move |name| folder.join(name)));
        inside.into_iter().find(|path| path.is_file())
    })
}

/// Reads images and their labels (<http://yann.lecun.com/exdb/mnist/>, "File formats").
fn read_split(images: &Path, labels_path: &Path, classes: &[&str]) -> Result<ImageSet, DataError> {
    let shape = ImageShape { height: 28, width: 28, channels: 1 };
    let (dimensions, pixels) = read_idx::<3>(images, IMAGES_MAGIC)?;
    let [count, height, width] = dimensions;
    if [height, width] != [28, 28] {
        return Err(DataError::Corrupt {
            path: images.to_owned(),
            offset: 8,
            found: format!("images of {height}x{width}"),
            expected: "images of 28x28".to_owned(),
        });
    }
    let ([label_count], labels) = read_idx::<1>(labels_path, LABELS_MAGIC)?;
    if label_count != count {
        return Err(DataError::Corrupt {
            path: labels_path.to_owned(),
            offset: 4,
            found: format!("{label_count} labels"),
            expected: format!("{count}, the number of images in {}", images.display()),
        });
    }
    if let Some(index) = labels.iter().position(|&label| usize::from(label) >= classes.len()) {
        return Err(DataError::Corrupt {
            path: labels_path.to_owned(),
            offset: 8 + index as u64,
            found: format!("label {}", labels[index]),
            expected: format!("a label from 0 to {}", classes.len() - 1),
        });
    }
    ImageSet::new(shape, pixels, labels, labels::owned(classes))
}

/// Reads a file of unsigned bytes in `D` dimensions: magic number, sizes (four bytes each, most significant first), data.
fn read_idx<const D: usize>(path: &Path, magic: u32) -> Result<([u32; D], Vec<u8>), DataError> {
    let corrupt = |offset: u64, found: String, expected: String| DataError::Corrupt {
        path: path.to_owned(),
        offset,
        found,
        expected,
    };
    let mut reader = open(path)?;
    let mut header = Vec::new();
    let header_size = 4 + 4 * D;
    read_up_to(&mut reader, header_size as u64, &mut header, path)?;
    if header.is_empty() {
        return Err(corrupt(0, "an empty file".to_owned(), format!("an IDX header of {header_size} bytes")));
    }
    let word = |index: usize| {
        header.get(4 * index..4 * index + 4).map(|bytes| u32::from_be_bytes(bytes.try_into().expect("four bytes")))
    };
    match word(0) {
        Some(found) if found != magic => {
            return Err(corrupt(0, format!("magic number {found:#010x}"), format!("{magic:#010x}")));
        }
        _ if header.len() < header_size => {
            let length = header.len();
            return Err(corrupt(
                length as u64,
                "the end of the file".to_owned(),
                format!("an IDX header of {header_size} bytes"),
            ));
        }
        _ => {}
    }
    let dimensions: [u32; D] = std::array::from_fn(|index| word(index + 1).expect("the header is complete"));
    let size = dimensions.iter().try_fold(1_u64, |product, &size| product.checked_mul(size.into()));
    let Some(size) = size.filter(|size| (1..=LARGEST).contains(size)) else {
        return Err(corrupt(4, format!("sizes {dimensions:?}"), format!("sizes whose product is 1 to {LARGEST}")));
    };
    let mut data = Vec::new();
    // One byte more than announced shows whether the file goes on.
    read_up_to(&mut reader, size + 1, &mut data, path)?;
    if data.len() as u64 != size {
        let is_long = data.len() as u64 > size;
        return Err(corrupt(
            header_size as u64 + size.min(data.len() as u64),
            if is_long { "more bytes".to_owned() } else { "the end of the file".to_owned() },
            format!("{} after {size} bytes of data", if is_long { "the end" } else { "it only" }),
        ));
    }
    Ok((dimensions, data))
}

/// Opens a file and, if it begins like a gzip file, unpacks it.
fn open(path: &Path) -> Result<Box<dyn Read>, DataError> {
    let mut file = BufReader::new(fs_err::File::open(path)?);
    let is_gzipped = std::io::BufRead::fill_buf(&mut file)?.starts_with(&[0x1f, 0x8b]);
    Ok(if is_gzipped { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) })
}

fn read_up_to(reader: &mut dyn Read, limit: u64, bytes: &mut Vec<u8>, path: &Path) -> Result<(), DataError> {
    reader.take(limit).read_to_end(bytes).map(drop).map_err(|error| match error.kind() {
        // What flate2 reports for damaged data; errors of the disk stay as they are.
        std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => {
            DataError::Corrupt {
                path: path.to_owned(),
                offset: bytes.len() as u64,
                found: format!("damaged gzip data ({error})"),
                expected: "a whole gzip file".to_owned(),
            }
        }
        _ => error.into(),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn idx(magic: u32, dimensions: &[u32], data: &[u8]) -> Vec<u8> {
        let mut bytes = magic.to_be_bytes().to_vec();
        for size in dimensions {
            bytes.extend(size.to_be_bytes());
        }
        bytes.extend(data);
        bytes
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(images: &[u8], labels: &[u8]) -> Result<ImageSet, DataError> {
        let directory = tempfile::tempdir().unwrap();
        let [images_path, labels_path] = ["images", "labels"].map(|name| directory.path().join(name));
        fs_err::write(&images_path, images).unwrap();
        fs_err::write(&labels_path, labels).unwrap();
        read_split(&images_path, &labels_path, &labels::MNIST)
    }

    fn good_images() -> Vec<u8> {
        idx(IMAGES_MAGIC, &[2, 28, 28], &[vec![1; 784], vec![2; 784]].concat())
    }

    fn good_labels() -> Vec<u8> {
        idx(LABELS_MAGIC, &[2], &[3, 9])
    }

    #[test]
    fn plain_and_gzipped_files_hold_the_same() {
        let plain = read(&good_images(), &good_labels()).unwrap();
        assert_eq!(plain.labels(), [3, 9]);
        assert_eq!(plain.pixels(1), [2; 784]);
        assert_eq!(plain.shape(), ImageShape { height: 28, width: 28, channels: 1 });
        assert_eq!(read(&gzip(&good_images()), &gzip(&good_labels())).unwrap(), plain);
    }

    #[test]
    fn every_kind_of_damage_is_named_with_its_offset() {
        let (images, labels) = (good_images(), good_labels());
        let end = images.len();
        for (images, labels, expected) in [
            (
                labels.clone(),
                labels.clone(),
                "images is corrupt at byte 0: found magic number 0x00000801, expected 0x00000803",
            ),
            (
                vec![],
                labels.clone(),
                "images is corrupt at byte 0: found an empty file, expected an IDX header of 16 bytes",
            ),
            (
                images[..9].to_vec(),
                labels.clone(),
                "images is corrupt at byte 9: found the end of the file, expected an IDX header of 16 bytes",
            ),
            (
                images[..end - 1].to_vec(),
                labels.clone(),
                "images is corrupt at byte 1583: found the end of the file, expected it only after 1568 bytes of data",
            ),
            (
                [&images[..], &[0]].concat(),
                labels.clone(),
                "images is corrupt at byte 1584: found more bytes, expected the end after 1568 bytes of data",
            ),
            (idx(IMAGES_MAGIC, &[u32::MAX; 3], &[]), labels.clone(), "expected sizes whose product is 1 to 4294967296"),
            (
                idx(IMAGES_MAGIC, &[1, 2, 2], &[0; 4]),
                labels.clone(),
                "images is corrupt at byte 8: found images of 2x2, expected images of 28x28",
            ),
            (
                images.clone(),
                idx(LABELS_MAGIC, &[3], &[0; 3]),
                "labels is corrupt at byte 4: found 3 labels, expected 2, the number of images in ",
            ),
            (
                images.clone(),
                idx(LABELS_MAGIC, &[2], &[0, 10]),
                "labels is corrupt at byte 9: found label 10, expected a label from 0 to 9",
            ),
            (gzip(&images)[..40].to_vec(), labels.clone(), "damaged gzip data"),
        ] {
            let error = read(&images, &labels).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}\nshould say\n{expected}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..900), start in 0_usize..4) {
            let start = match start {
                0 => vec![],
                1 => vec![0x1f, 0x8b, 8, 0],
                2 => IMAGES_MAGIC.to_be_bytes().to_vec(),
                _ => idx(IMAGES_MAGIC, &[1, 28, 28], &[]),
            };
            let images = [start, bytes].concat();
            if let Ok(set) = read(&images, &idx(LABELS_MAGIC, &[1], &[4])) {
                prop_assert_eq!(set.len(), 1);
            }
            prop_assert!(read(&good_images(), &images).is_err());
        }

        #[test]
        fn flipped_bits_of_a_gzip_file_never_panic(byte in 0_usize..60, bit in 0..8) {
            let mut bytes = gzip(&good_images());
            let byte = byte.min(bytes.len() - 1);
            bytes[byte] ^= 1_u8 << bit;
            let _ = read(&bytes, &good_labels());
        }
    }
}
