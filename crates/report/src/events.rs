//! The only file that knows the format of `TensorBoard`'s event files.
//!
//! A file is a sequence of records: length, its checksum, data, their checksum (`TFRecord`, `tensorflow/core/lib/io/record_writer.h`).
//! The data are messages `Event` in protocol buffers (`tensorboard/compat/proto/event.proto`, `summary.proto`), of which these
//! few fields are enough; so no library is needed. The one there is, `tensorboard-rs`, had its last release in 2022.

use std::path::{Path, PathBuf};

use patchdoor_metrics::EpochRecord;
use patchdoor_record::{
    CURVES, CurvePoint, Environment, MetricInfo, RecordError, RunSummary, SEED_NUMBERS, SeedResult, read_sealed_json,
    write_whole,
};

use crate::history::{HISTORY, History, histories};

/// Writes the training of every seed of a run as an event file of `TensorBoard` into the seed's folder, and returns their paths:
/// loss, accuracies and learning rate by epoch, counted from 1, the attack by epoch as far as it was followed, and at the last epoch
/// what was measured on all test images.
///
/// Times are those of the training: when the run was started, and the seconds of its epochs.
///
/// # Errors
/// If a record is not as it was written, or a file cannot be written.
pub fn write_events(folder: &Path, run: &RunSummary) -> Result<Vec<PathBuf>, RecordError> {
    let environment: Environment = read_sealed_json(&folder.join("environment.json"))?;
    let followed: Vec<History<CurvePoint>> = histories(folder, run, CURVES)?;
    let mut written = Vec::new();
    for History { seed, epochs } in histories::<EpochRecord>(folder, run, HISTORY)? {
        let Some(result) = run.seeds.iter().find(|result| result.seed == seed) else { continue };
        let points = followed.iter().find(|history| history.seed == seed).map_or(&[][..], |history| &history.epochs);
        // TensorBoard looks for this word in names.
        let name = format!("seed-{seed}/events.out.tfevents.{}.patchdoor", environment.started);
        let path = folder.join(name);
        write_whole(&path, &events(environment.started as f64, &epochs, points, result))?;
        written.push(path);
    }
    Ok(written)
}

/// The event file of one seed whose run was started at that time, in seconds since 1970.
fn events(started: f64, epochs: &[EpochRecord], followed: &[CurvePoint], seed: &SeedResult) -> Vec<u8> {
    let mut file = Vec::new();
    let mut version = Message::default();
    version.double(1, started);
    version.bytes(3, b"brain.Event:2");
    record(&mut file, &version.0);
    let mut time = started;
    for epoch in epochs {
        time += epoch.seconds;
        let mut scalars = vec![
            ("training/loss".to_owned(), epoch.loss),
            ("training/accuracy".to_owned(), epoch.training_accuracy),
            ("training/learning-rate".to_owned(), epoch.learning_rate),
        ];
        scalars.extend(epoch.validation_accuracy.map(|value| ("validation/accuracy".to_owned(), value)));
        if let Some(point) = followed.iter().find(|point| point.epoch == epoch.epoch) {
            let measured = [
                ("clean-accuracy", Some(point.clean_accuracy)),
                ("asr", point.asr),
                ("robust-accuracy", point.robust_accuracy),
            ];
            scalars.extend(measured.into_iter().filter_map(|(name, value)| Some((format!("curves/{name}"), value?))));
        }
        record(&mut file, &event(time, epoch.epoch + 1, &scalars));
    }
    if let (Some(last), Some(measured)) = (epochs.last(), seed.measurements()) {
        let of = |(name, of): &(&str, fn(&patchdoor_record::Measurements) -> Option<f64>)| {
            let is_shown = MetricInfo::of(name).is_some_and(|info| info.is_shown);
            Some((format!("test/{name}"), of(measured).filter(|_| is_shown)?))
        };
        let scalars = SEED_NUMBERS.iter().filter_map(of).collect::<Vec<_>>();
        record(&mut file, &event(time, last.epoch + 1, &scalars));
    }
    file
}

/// A message `Event` with a summary of numbers.
fn event(time: f64, step: usize, scalars: &[(String, f64)]) -> Vec<u8> {
    let mut summary = Message::default();
    for (tag, value) in scalars {
        let mut scalar = Message::default();
        scalar.bytes(1, tag.as_bytes());
        scalar.float(2, *value as f32);
        summary.bytes(1, &scalar.0);
    }
    let mut event = Message::default();
    event.double(1, time);
    event.integer(2, step as u64);
    event.bytes(5, &summary.0);
    event.0
}

/// A message of protocol buffers in the making.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn integer(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.varint(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    /// Seven bits at a time, the lowest first; the eighth says that more follow.
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// Adds a record to a file.
fn record(file: &mut Vec<u8>, data: &[u8]) {
    let length = (data.len() as u64).to_le_bytes();
    file.extend(length);
    file.extend(masked(crc32c(&length)).to_le_bytes());
    file.extend(data);
    file.extend(masked(crc32c(data)).to_le_bytes());
}

/// A checksum as it stands in records: rotated, and moved by a constant, because checksums of checksums are weak.
fn masked(checksum: u32) -> u32 {
    checksum.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C: the polynomial of Castagnoli, lowest bit first (RFC 3720, appendix B.4).
fn crc32c(data: &[u8]) -> u32 {
    let step = |rest: u32, _| (rest >> 1) ^ (0x82f6_3b78 * (rest & 1));
    !data.iter().fold(!0, |checksum, &byte| (0..8).fold(checksum ^ u32::from(byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_table::tests::seed;

    fn epoch(epoch: usize, validation: Option<f64>) -> EpochRecord {
        EpochRecord {
            epoch,
            learning_rate: 0.1,
            loss: 0.5,
            training_accuracy: 0.75,
            validation_accuracy: validation,
            seconds: 2.0,
            images_per_second: 1.0,
        }
    }

    /// The data of each record, whose checksums are right.
    fn records(mut file: &[u8]) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        while !file.is_empty() {
            let number = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
            let length = number(0) as usize;
            assert_eq!((number(4), number(8)), (0, masked(crc32c(&file[..8]))));
            assert_eq!(number(12 + length), masked(crc32c(&file[12..12 + length])));
            records.push(file[12..12 + length].to_vec());
            file = &file[16 + length..];
        }
        records
    }

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720, B.4: 32 bytes of zeros, of ones, ascending; and the check value of the catalogue of CRCs.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn numbers_of_many_bits_take_several_bytes() {
        let mut message = Message::default();
        // 300 = 2 * 128 + 44: 0xac, 0x02 (the example of the documentation of protocol buffers).
        message.integer(1, 300);
        assert_eq!(message.0, [0x08, 0xac, 0x02]);
    }

    #[test]
    fn a_file_has_its_version_and_an_event_for_each_epoch_and_for_the_test() {
        let epochs = [epoch(0, Some(0.5)), epoch(1, None)];
        // Followed at every second epoch, where no image was attacked.
        let point = CurvePoint { epoch: 1, images: 10, clean_accuracy: 0.5, asr: None, robust_accuracy: None };
        let found = records(&events(1_000.0, &epochs, &[point], &seed(0, 0.69, 0.96)));
        assert_eq!(found.len(), 1 + 2 + 1);
        assert!(found[0].ends_with(b"brain.Event:2"));
        // wall_time = 1004.0 and step = 2 of the second epoch.
        assert_eq!(found[2][0], 0x09);
        assert_eq!(found[2][1..9], 1_004.0_f64.to_le_bytes());
        assert_eq!(found[2][9..11], [0x10, 2]);
        let has = |record: &[u8], tag: &str| record.windows(tag.len()).any(|part| part == tag.as_bytes());
        assert!(has(&found[1], "validation/accuracy") && !has(&found[2], "validation/accuracy"));
        assert!(has(&found[2], "curves/clean-accuracy") && !has(&found[2], "curves/asr"));
        assert!(!has(&found[1], "curves/clean-accuracy"));
        assert!(has(&found[3], "test/asr") && !has(&found[3], "test/asr-all-classes"));
        // tag "training/loss", then the number as a float.
        let mut loss = b"training/loss\x15".to_vec();
        loss.extend(0.5_f32.to_le_bytes());
        assert!(found[1].windows(loss.len()).any(|part| part == loss));
    }

    #[test]
    fn a_training_that_came_to_nothing_has_no_event_of_its_own() {
        assert_eq!(records(&events(0.0, &[], &[], &seed(0, 0.69, 0.96))).len(), 1);
    }
}
