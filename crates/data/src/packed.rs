//! Data sets packed without loss, to be carried to other machines.
//!
//! A packed data set is one file. It restores the data set's files to the byte, so everything else reads them as ever:
//! pixels, labels and fingerprints are the same. 32x32 records are coded by prediction and an adaptive range coder, which
//! takes 1.5 kB an image of CIFAR-10 (deflated residuals of the same prediction take 1.8, lossless WebP 1.7 to 2.0).
//! Other files are deflated.
//!
//! # Format
//! `MAGIC`, the length of the data set's name (one byte), its name, then until the end of the file for each file of the data set: the length of its name (one byte), its name,
//! label bytes per record (one byte; 255 for a deflated file), its length (`u64`), the SHA-256 of name, label bytes and
//! contents, the number of blocks (`u32`) and for each its length (`u32`) and bytes. Numbers are little-endian. A block holds `RECORDS_PER_BLOCK` records,
//! the last one the rest. Nothing else is stored, so the same files give the same bytes.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use fs_err as fs;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::catalog::CatalogEntry;
use crate::error::invalid;
use crate::range_coder::{Decoder, Encoder, SymbolModel};
use crate::{DataError, catalog, idx};

/// The first bytes of a packed data set.
const MAGIC: &[u8; 8] = b"PDPACK1\n";

/// Records coded together; blocks are coded and read beside each other.
const RECORDS_PER_BLOCK: usize = 2500;

/// Says that a file is deflated and not made of records.
const DEFLATED: u8 = 255;

/// Side of an image.
const SIDE: usize = 32;

/// Bytes of one colour plane.
const PLANE: usize = SIDE * SIDE;

/// No file of a data set is longer; a damaged length must not take all memory.
const LONGEST: u64 = 1 << 32;

/// Packs a data set that is in one of the folders `roots`, with at most so many training images.
///
/// Training images are left out at the end of every training file, in equal shares.
///
/// # Errors
/// If there is no such data set, it is in none of the folders, or it cannot be cut so: only the records of CIFAR come in
/// random order.
pub fn pack(name: &str, roots: &[PathBuf], training_images: Option<usize>) -> Result<Vec<u8>, DataError> {
    let entry = catalog::entry(name).ok_or_else(|| {
        let known = catalog::catalog().iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ");
        invalid("dataset", name, format!("one made of files: {known}"))
    })?;
    let directory = entry.locate(roots)?;
    let label_bytes = match entry.name {
        "cifar100" => Some(2),
        "cifar10" | "gtsrb" => Some(1),
        _ => None,
    };
    let training_files = entry.files.iter().filter(|file| !file.starts_with("test")).count();
    let kept = match training_images {
        None => None,
        Some(images) if !entry.name.starts_with("cifar") => {
            return Err(invalid("images", images, format!("all of {name}: its images are ordered by class")));
        }
        Some(images) if images < training_files => {
            return Err(invalid("images", images, format!("at least {training_files}")));
        }
        Some(images) => Some(images / training_files),
    };
    let mut packed = MAGIC.to_vec();
    packed.push(name.len() as u8);
    packed.extend(name.as_bytes());
    for file in entry.files {
        let path = if entry.files == idx::FILES { idx::find(&directory, file) } else { None }
            .unwrap_or_else(|| directory.join(file));
        let mut contents = fs::read(&path)?;
        if let (Some(kept), Some(label_bytes), false) = (kept, label_bytes, file.starts_with("test")) {
            contents.truncate(kept * (usize::from(label_bytes) + 3 * PLANE));
        }
        add_file(&mut packed, &path, &contents, label_bytes)?;
    }
    // A reconstruction's list of images that are not the original pixels: results must go on to say so.
    let lossy = directory.join("lossy_images.csv");
    if lossy.is_file() {
        let contents = fs::read(&lossy)?;
        add_file(&mut packed, &lossy, &contents, None)?;
    }
    Ok(packed)
}

/// Restores a packed data set to its folder below `root`; returns its name and that folder.
///
/// # Errors
/// If the file is damaged, or the folder exists: it is never overwritten.
pub fn unpack(file: &Path, root: &Path) -> Result<(&'static str, PathBuf), DataError> {
    let (entry, files) = read(file, &fs::read(file)?)?;
    let directory = root.join(entry.folder);
    if directory.exists() {
        return Err(DataError::Exists { path: directory });
    }
    let unfinished = root.join(format!("{}.partial", entry.folder));
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    fs::create_dir_all(&unfinished)?;
    for (name, contents) in files {
        fs::write(unfinished.join(name), contents)?;
    }
    fs::rename(&unfinished, &directory)?;
    Ok((entry.name, directory))
}

fn add_file(packed: &mut Vec<u8>, path: &Path, contents: &[u8], label_bytes: Option<u8>) -> Result<(), DataError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let record_size = label_bytes.map(|label_bytes| usize::from(label_bytes) + 3 * PLANE);
    // A file that is no whole number of records is kept as it is: whether it is corrupt is for its reader to say.
    let layout = label_bytes.zip(record_size).filter(|(_, size)| contents.len().is_multiple_of(*size));
    packed.push(name.len() as u8);
    packed.extend(name.as_bytes());
    packed.push(layout.map_or(DEFLATED, |(label_bytes, _)| label_bytes));
    packed.extend((contents.len() as u64).to_le_bytes());
    packed.extend(checksum(&name, layout.map_or(DEFLATED, |(label_bytes, _)| label_bytes), contents));
    let blocks: Vec<Vec<u8>> = if let Some((label_bytes, size)) = layout {
        contents
            .par_chunks(RECORDS_PER_BLOCK * size)
            .map(|records| encode_records(records, usize::from(label_bytes)))
            .collect()
    } else {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(contents)?;
        vec![encoder.finish()?]
    };
    packed.extend((blocks.len() as u32).to_le_bytes());
    for block in blocks {
        packed.extend((block.len() as u32).to_le_bytes());
        packed.extend(block);
    }
    Ok(())
}

/// What is stored to tell whether a file comes back as it was.
fn checksum(name: &str, label_bytes: u8, contents: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(name).chain_update([label_bytes]).chain_update(contents).finalize().into()
}

/// What is left to read of a packed file.
struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], DataError> {
        let left = &self.bytes[self.at..];
        if left.len() < count {
            return Err(
                self.corrupt(format!("{} bytes to the end of the file", left.len()), format!("{count} of {what}"))
            );
        }
        self.at += count;
        Ok(&left[..count])
    }

    fn number(&mut self, bytes: usize, what: &str) -> Result<u64, DataError> {
        let taken = self.take(bytes, what)?;
        Ok(taken.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn corrupt(&self, found: impl Into<String>, expected: impl Into<String>) -> DataError {
        let (found, expected) = (found.into(), expected.into());
        DataError::Corrupt { path: self.path.to_owned(), offset: self.at as u64, found, expected }
    }
}

/// Names and contents of files.
type Files = Vec<(String, Vec<u8>)>;

/// The files of a packed data set, checked against their SHA-256.
fn read(path: &Path, bytes: &[u8]) -> Result<(CatalogEntry, Files), DataError> {
    let mut reader = Reader { path, bytes, at: 0 };
    if reader.take(MAGIC.len(), "the mark of a packed data set")? != MAGIC {
        reader.at = 0;
        return Err(reader.corrupt("other bytes", "the mark of a packed data set"));
    }
    let length = reader.number(1, "a name's length")? as usize;
    let name = String::from_utf8_lossy(reader.take(length, "a name")?).into_owned();
    let Some(entry) = catalog::entry(&name) else {
        return Err(reader.corrupt(format!("the name {name:?}"), "a data set made of files"));
    };
    let mut files = Vec::new();
    while reader.at < bytes.len() {
        let start = reader.at;
        let length = reader.number(1, "a name's length")? as usize;
        let name = String::from_utf8_lossy(reader.take(length, "a name")?).into_owned();
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', ':']) {
            reader.at = start;
            return Err(reader.corrupt(format!("the file name {name:?}"), "a plain file name"));
        }
        let label_bytes = reader.take(1, "the layout")?[0];
        let length = reader.number(8, "a length")?;
        let sum = reader.take(32, "a SHA-256")?;
        let count = reader.number(4, "the number of blocks")? as usize;
        let record_size = usize::from(label_bytes) + 3 * PLANE;
        let per_block = RECORDS_PER_BLOCK * record_size;
        let is_deflated = label_bytes == DEFLATED;
        let blocks_expected = if is_deflated { 1 } else { (length as usize).div_ceil(per_block) };
        if length > LONGEST || count != blocks_expected || !(is_deflated || length.is_multiple_of(record_size as u64)) {
            reader.at = start;
            return Err(
                reader.corrupt(format!("{name} of {length} bytes in {count} blocks"), "a length that fits its blocks")
            );
        }
        let mut blocks = Vec::new();
        for _ in 0..count {
            let size = reader.number(4, "a block's length")? as usize;
            blocks.push(reader.take(size, "a block")?);
        }
        let length = length as usize;
        let contents = if is_deflated {
            let mut contents = Vec::new();
            // What does not inflate has another sum than the one stored.
            let _ = ZlibDecoder::new(blocks[0]).take(length as u64).read_to_end(&mut contents);
            contents
        } else {
            let mut contents = vec![0; length];
            contents.par_chunks_mut(per_block).zip(blocks).for_each(|(records, block)| {
                decode_records(block, records, usize::from(label_bytes));
            });
            contents
        };
        if checksum(&name, label_bytes, &contents)[..] != *sum {
            reader.at = start;
            return Err(reader.corrupt(format!("{name} with another SHA-256 than was stored"), "an undamaged file"));
        }
        files.push((name, contents));
    }
    Ok((entry, files))
}

/// Activities of a pixel's surroundings from which on the next context is taken: with 9 contexts the residuals of
/// CIFAR-10 take 8 % less than with one, with 12 nothing less.
const ACTIVITIES: [i32; 8] = [3, 6, 10, 16, 24, 36, 54, 90];

/// What has been learnt of a block's symbols: labels, and residuals in their plane and context.
struct Models {
    labels: Vec<SymbolModel>,
    residuals: Vec<SymbolModel>,
}

impl Models {
    fn new(label_bytes: usize) -> Self {
        let models = |count: usize| vec![SymbolModel::default(); count];
        Self { labels: models(label_bytes), residuals: models(3 * (ACTIVITIES.len() + 1)) }
    }
}

/// A plane as far as it is known: green, red minus green, blue minus green, and what each pixel differed by from its
/// prediction.
struct Planes {
    values: [[i32; PLANE]; 3],
    residuals: [[i32; PLANE]; 3],
}

impl Planes {
    fn new() -> Self {
        Self { values: [[0; PLANE]; 3], residuals: [[0; PLANE]; 3] }
    }

    /// The prediction of a pixel from those before it (the median edge detector of LOCO-I, Weinberger et al. 2000), and
    /// the number of the model for what it differs by.
    fn predict(&self, plane: usize, pixel: usize) -> (i32, usize) {
        let (values, residuals) = (&self.values[plane], &self.residuals[plane]);
        let (row, column) = (pixel / SIDE, pixel % SIDE);
        let has_upper = row > 0;
        let upper_or = |otherwise: i32, back: usize| if has_upper { values[pixel - back] } else { otherwise };
        let left = if column > 0 { values[pixel - 1] } else { upper_or(0, SIDE) };
        let upper = upper_or(left, SIDE);
        let upper_left = if column > 0 { upper_or(upper, SIDE + 1) } else { upper };
        let upper_right = if column + 1 < SIDE { upper_or(upper, SIDE - 1) } else { upper };
        let prediction = if upper_left >= left.max(upper) {
            left.min(upper)
        } else if upper_left <= left.min(upper) {
            left.max(upper)
        } else {
            left + upper - upper_left
        };
        let mut activity = (left - upper_left).abs() + (upper_left - upper).abs() + (upper - upper_right).abs();
        if column > 0 {
            activity += residuals[pixel - 1].abs();
        }
        if has_upper {
            activity += residuals[pixel - SIDE].abs();
        }
        // Where one plane surprised, the next one does.
        activity += match plane {
            0 => 0,
            1 => self.residuals[0][pixel].abs(),
            _ => self.residuals[0][pixel].abs() / 2 + 2 * self.residuals[1][pixel].abs(),
        };
        let context = ACTIVITIES.iter().filter(|&&bound| activity >= bound).count();
        (prediction, plane * (ACTIVITIES.len() + 1) + context)
    }
}

/// The byte as the plane's range has it: green from 0 to 255, differences from -128 to 127.
fn in_range(plane: usize, byte: u8) -> i32 {
    if plane == 0 { i32::from(byte) } else { i32::from(byte as i8) }
}

fn encode_records(records: &[u8], label_bytes: usize) -> Vec<u8> {
    let mut models = Models::new(label_bytes);
    let mut encoder = Encoder::new();
    let mut planes = Planes::new();
    for record in records.chunks_exact(label_bytes + 3 * PLANE) {
        let (labels, pixels) = record.split_at(label_bytes);
        for (&label, model) in labels.iter().zip(&mut models.labels) {
            encoder.encode(model, label);
        }
        for plane in 0..3 {
            for pixel in 0..PLANE {
                let green = pixels[PLANE + pixel];
                let byte = match plane {
                    0 => green,
                    1 => pixels[pixel].wrapping_sub(green),
                    _ => pixels[2 * PLANE + pixel].wrapping_sub(green),
                };
                let (prediction, model) = planes.predict(plane, pixel);
                let residual = byte.wrapping_sub(prediction as u8);
                encoder.encode(&mut models.residuals[model], residual);
                planes.values[plane][pixel] = in_range(plane, byte);
                planes.residuals[plane][pixel] = i32::from(residual as i8);
            }
        }
    }
    encoder.finish()
}

/// Any bytes give some records; whether they are the right ones, their SHA-256 tells.
fn decode_records(block: &[u8], records: &mut [u8], label_bytes: usize) {
    let mut models = Models::new(label_bytes);
    let mut decoder = Decoder::new(block);
    let mut planes = Planes::new();
    for record in records.chunks_exact_mut(label_bytes + 3 * PLANE) {
        let (labels, pixels) = record.split_at_mut(label_bytes);
        for (label, model) in labels.iter_mut().zip(&mut models.labels) {
            *label = decoder.decode(model);
        }
        for plane in 0..3 {
            for pixel in 0..PLANE {
                let (prediction, model) = planes.predict(plane, pixel);
                let residual = decoder.decode(&mut models.residuals[model]);
                let byte = (prediction as u8).wrapping_add(residual);
                planes.values[plane][pixel] = in_range(plane, byte);
                planes.residuals[plane][pixel] = i32::from(residual as i8);
                match plane {
                    0 => pixels[PLANE + pixel] = byte,
                    1 => pixels[pixel] = byte.wrapping_add(pixels[PLANE + pixel]),
                    _ => pixels[2 * PLANE + pixel] = byte.wrapping_add(pixels[PLANE + pixel]),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{DatasetConfig, load};

    /// A CIFAR-10 folder of few images below a new folder: noise, a ramp and flat ones.
    fn small() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("cifar-10-batches-bin");
        fs::create_dir(&folder).unwrap();
        for (number, file) in catalog::entry("cifar10").unwrap().files.iter().enumerate() {
            let mut contents = Vec::new();
            for image in 0..4 + number {
                contents.push(((image * 3 + number) % 10) as u8);
                contents.extend((0..3 * PLANE).map(|at| match image % 3 {
                    0 => (at * at * 31 + at * 7 + number) as u8,
                    1 => (at / 4) as u8,
                    _ => 200,
                }));
            }
            fs::write(folder.join(file), contents).unwrap();
        }
        fs::write(folder.join("lossy_images.csv"), "file,index,label\ntest_batch.bin,0,9\n").unwrap();
        root
    }

    fn packed(root: &Path, images: Option<usize>) -> PathBuf {
        let file = root.join("cifar10.packed");
        fs::write(&file, pack("cifar10", &[root.to_owned()], images).unwrap()).unwrap();
        file
    }

    #[test]
    fn a_data_set_comes_back_to_the_byte() {
        let root = small();
        let file = packed(root.path(), None);
        let other = tempfile::tempdir().unwrap();
        let (name, folder) = unpack(&file, other.path()).unwrap();
        assert_eq!(name, "cifar10");
        let original = root.path().join("cifar-10-batches-bin");
        for entry in fs::read_dir(&original).unwrap() {
            let name = entry.unwrap().file_name();
            assert_eq!(fs::read(original.join(&name)).unwrap(), fs::read(folder.join(&name)).unwrap(), "{name:?}");
        }
        let both = [root.path(), other.path()].map(|root| load(&DatasetConfig::Cifar10, &[root.to_owned()]).unwrap());
        assert_eq!(both[0].train.fingerprint(), both[1].train.fingerprint());
        assert_eq!(both[0].notes, both[1].notes);
        // Nothing is overwritten.
        assert!(matches!(unpack(&file, other.path()), Err(DataError::Exists { .. })));
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let root = small();
        let twice = [(); 2].map(|()| pack("cifar10", &[root.path().to_owned()], None).unwrap());
        assert_eq!(twice[0], twice[1]);
    }

    #[test]
    fn training_images_are_left_out_in_equal_shares_and_no_test_image() {
        let root = small();
        let file = packed(root.path(), Some(14));
        let other = tempfile::tempdir().unwrap();
        unpack(&file, other.path()).unwrap();
        let [whole, part] =
            [root.path(), other.path()].map(|root| load(&DatasetConfig::Cifar10, &[root.to_owned()]).unwrap());
        // 14 images of five files: two of each.
        assert_eq!((part.train.len(), part.test.len()), (10, whole.test.len()));
        assert_eq!(part.train.pixels(2), whole.train.pixels(4));
    }

    #[test]
    fn what_cannot_be_packed_is_refused() {
        let text = |result: Result<Vec<u8>, DataError>| result.unwrap_err().to_string();
        assert!(text(pack("shapes", &[], None)).starts_with("dataset is shapes, expected one made of files: cifar10"));
        assert!(text(pack("cifar10", &["nowhere".into()], None)).contains("was not found"));
        let root = small();
        assert_eq!(text(pack("cifar10", &[root.path().to_owned()], Some(4))), "images is 4, expected at least 5");
    }

    #[test]
    fn damage_is_noticed_wherever_it_is() {
        let root = small();
        let file = packed(root.path(), None);
        let bytes = fs::read(&file).unwrap();
        let (_, files) = read(&file, &bytes).unwrap();
        for at in (0..300).chain((300..bytes.len()).step_by(97)) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            // The decoder does not need the very last bytes of a block: those may differ without harm.
            assert!(read(&file, &damaged).map_or(true, |(_, read)| read == files), "byte {at} changed unnoticed");
        }
        for length in [0, 7, 8 + 8 + 10, bytes.len() / 2, bytes.len() - 1] {
            assert!(matches!(read(&file, &bytes[..length]), Err(DataError::Corrupt { .. })), "{length}");
        }
    }

    /// Real images, if they are there. Only tests read the environment.
    #[test]
    #[allow(clippy::print_stderr, reason = "a test says that it skips")]
    fn real_images_take_at_most_1600_bytes_each() {
        let root = PathBuf::from(std::env::var_os("PATCHDOOR_DATA").unwrap_or_else(|| "../../../shared/data".into()));
        let batch = root.join("cifar-10-batches-bin/data_batch_1.bin");
        let Ok(contents) = fs::read(batch) else {
            eprintln!("skipped: no CIFAR-10 in {}, set PATCHDOOR_DATA", root.display());
            return;
        };
        let records = &contents[..2500 * 3073];
        let block = encode_records(records, 1);
        assert!(block.len() < 2500 * 1600, "{} bytes for 2500 images", block.len());
        let mut back = vec![0; records.len()];
        decode_records(&block, &mut back, 1);
        assert!(back == records);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn any_records_come_back(seed: u64, count in 1_usize..4, label_bytes in 1_usize..3, smooth: bool) {
            let size = label_bytes + 3 * PLANE;
            let mut state = seed | 1;
            let records: Vec<u8> = (0..count * size).map(|at| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                if smooth { (at / 7) as u8 ^ (state & 1) as u8 } else { state as u8 }
            }).collect();
            let mut back = vec![0; records.len()];
            decode_records(&encode_records(&records, label_bytes), &mut back, label_bytes);
            prop_assert!(back == records);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let bytes = [MAGIC.as_slice(), &bytes].concat();
            if let Err(error) = read(Path::new("x"), &bytes) {
                prop_assert!(matches!(error, DataError::Corrupt { .. }), "{error}");
            }
        }
    }
}
