use std::path::Path;

use patchdoor_record::{RecordError, RunSummary, read_sealed_json_lines};
use serde::de::DeserializeOwned;

/// Name of the file in a seed's folder with a line for each epoch of its training.
pub(crate) const HISTORY: &str = "metrics.jsonl";

/// What was seen after epochs of the training of one seed.
pub(crate) struct History<T> {
    pub(crate) seed: u64,
    pub(crate) epochs: Vec<T>,
}

/// The lines in a file of every seed that left it; a seed that failed at once left none.
pub(crate) fn histories<T: DeserializeOwned>(
    folder: &Path,
    run: &RunSummary,
    file: &str,
) -> Result<Vec<History<T>>, RecordError> {
    let mut histories = Vec::new();
    for seed in &run.seeds {
        let path = folder.join(format!("seed-{}/{file}", seed.seed));
        if path.is_file() {
            histories.push(History { seed: seed.seed, epochs: read_sealed_json_lines(&path)? });
        }
    }
    Ok(histories)
}
