use std::path::PathBuf;

use patchdoor_record::{ImagesUsed, RecordError, write_sealed_json_lines};
use patchdoor_train::EpochRecord;
use serde::Serialize;

/// Where the epochs of one training are written down; `metrics.jsonl`.
#[derive(Clone, Debug)]
pub(crate) struct HistoryFile<'a> {
    pub(crate) path: PathBuf,
    pub(crate) seed: u64,
    pub(crate) images: &'a ImagesUsed,
}

/// One line of it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct EpochLine<'a> {
    seed: u64,
    #[serde(flatten)]
    images: &'a ImagesUsed,
    #[serde(flatten)]
    epoch: &'a EpochRecord,
}

impl HistoryFile<'_> {
    /// Writes the epochs, a line of JSON each, in place of those that are there.
    pub(crate) fn write(&self, history: &[EpochRecord]) -> Result<(), RecordError> {
        let line = |epoch| EpochLine { seed: self.seed, images: self.images, epoch };
        write_sealed_json_lines(&self.path, history.iter().map(line))
    }
}
