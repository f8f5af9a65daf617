use std::io::Write;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::record::{BinBytesRecorder, FullPrecisionSettings, Recorder};
use burn::tensor::backend::AutodiffBackend;
use fs_err as fs;
use patchdoor_model::Classifier;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::optimizer::Optimizer;
use crate::{EpochRecord, TrainError, TrainingConfig};

/// What a checkpoint belongs to; it resumes no other training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Identity {
    pub(crate) training: TrainingConfig,
    pub(crate) seed: u64,
    pub(crate) data: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct State {
    schema: u32,
    /// Digest of the classifier's structure: weights are stored by position, so that another build's may not be read.
    layout: String,
    identity: Identity,
    history: Vec<EpochRecord>,
}

/// The one field that every layout of `state.json` has.
#[derive(Deserialize)]
struct Schema {
    schema: u32,
}

const SCHEMA: u32 = 2;

/// A folder with the state after the last finished epoch, `epoch-0007/`.
///
/// A checkpoint is written beside its final name, flushed to the disk and renamed, so that it is
/// there whole or not at all; only then the one before is removed. Random streams need no state:
/// every epoch derives its own from seed and epoch.
pub(crate) struct CheckpointDirectory {
    path: PathBuf,
    identity: Identity,
}

/// What training goes on from.
pub(crate) struct Resumed<B: AutodiffBackend> {
    pub(crate) classifier: Classifier<B>,
    pub(crate) optimizer: Optimizer<B>,
    pub(crate) history: Vec<EpochRecord>,
}

impl CheckpointDirectory {
    pub(crate) fn open(path: &Path, identity: Identity) -> Result<Self, TrainError> {
        fs::create_dir_all(path)?;
        Ok(Self { path: path.into(), identity })
    }

    pub(crate) fn save<B: AutodiffBackend>(
        &self,
        classifier: &Classifier<B>,
        optimizer: &Optimizer<B>,
        history: &[EpochRecord],
    ) -> Result<(), TrainError> {
        let name = format!("epoch-{:04}", history.len());
        let (partial, finished) = (self.path.join(format!("{name}.partial")), self.path.join(&name));
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        fs::create_dir(&partial)?;
        let recorder = BinBytesRecorder::<FullPrecisionSettings>::new();
        let weights = Recorder::<B>::record(&recorder, classifier.clone().into_record(), ())
            .map_err(|error| self.problem(&name, error))?;
        write_durably(&partial.join("classifier.bin"), &weights)?;
        let steps = optimizer.to_bytes().map_err(|error| self.problem(&name, error))?;
        write_durably(&partial.join("optimizer.bin"), &steps)?;
        let layout = layout_of(classifier);
        let state = State { schema: SCHEMA, layout, identity: self.identity.clone(), history: history.to_vec() };
        let state = serde_json::to_vec_pretty(&state).map_err(|error| self.problem(&name, error))?;
        write_durably(&partial.join("state.json"), &state)?;
        fs::rename(&partial, &finished)?;
        // The rename itself must survive a loss of power before the older checkpoint goes.
        fs::File::open(&self.path)?.sync_all()?;
        for (epochs, folder) in self.finished()? {
            if epochs != history.len() {
                fs::remove_dir_all(folder)?;
            }
        }
        Ok(())
    }

    /// Loads the newest checkpoint into a classifier and an optimiser of the same configuration.
    pub(crate) fn resume<B: AutodiffBackend>(
        &self,
        classifier: Classifier<B>,
        optimizer: Optimizer<B>,
        device: &B::Device,
    ) -> Result<Option<Resumed<B>>, TrainError> {
        let Some((epochs, folder)) = self.finished()?.into_iter().max_by_key(|&(epochs, _)| epochs) else {
            return Ok(None);
        };
        let name = format!("epoch-{epochs:04}");
        let state = fs::read(folder.join("state.json"))?;
        let Schema { schema } = serde_json::from_slice(&state).map_err(|error| self.problem(&name, error))?;
        if schema != SCHEMA {
            return Err(self.problem(&name, format!("has layout {schema}, expected {SCHEMA}; {OTHER_BUILD}")));
        }
        let state: State = serde_json::from_slice(&state).map_err(|error| self.problem(&name, error))?;
        if state.history.len() != epochs {
            return Err(self.problem(&name, format!("has {} epochs", state.history.len())));
        }
        if state.layout != layout_of(&classifier) {
            return Err(self.problem(&name, format!("holds a classifier of another structure; {OTHER_BUILD}")));
        }
        if state.identity != self.identity {
            return Err(self.problem(&name, "belongs to another training; remove it or train elsewhere"));
        }
        let recorder = BinBytesRecorder::<FullPrecisionSettings>::new();
        let weights = fs::read(folder.join("classifier.bin"))?;
        let record = Recorder::<B>::load(&recorder, weights, device).map_err(|error| self.problem(&name, error))?;
        let steps = fs::read(folder.join("optimizer.bin"))?;
        let optimizer = optimizer.load_bytes(steps, device).map_err(|error| self.problem(&name, error))?;
        Ok(Some(Resumed { classifier: classifier.load_record(record), optimizer, history: state.history }))
    }

    /// Epochs of the newest checkpoint, 0 without any.
    pub(crate) fn epochs(&self) -> Result<usize, TrainError> {
        Ok(self.finished()?.into_iter().map(|(epochs, _)| epochs).max().unwrap_or(0))
    }

    fn finished(&self) -> Result<Vec<(usize, PathBuf)>, TrainError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let epochs = name.to_str().and_then(|name| name.strip_prefix("epoch-")).and_then(|n| n.parse().ok());
            found.extend(epochs.map(|epochs| (epochs, entry.path())));
        }
        Ok(found)
    }

    #[allow(clippy::needless_pass_by_value, reason = "map_err hands errors over by value")]
    fn problem(&self, name: &str, reason: impl ToString) -> TrainError {
        TrainError::Checkpoint { path: self.path.join(name), reason: reason.to_string() }
    }
}

/// What to do about a checkpoint that this build cannot read.
const OTHER_BUILD: &str = "another build of this program wrote it: let that build finish the training, or remove the checkpoint to begin again";

/// Differs between classifiers whose records differ, such as those of two builds of which one has a field more.
fn layout_of<B: AutodiffBackend>(classifier: &Classifier<B>) -> String {
    let digest = Sha256::digest(format!("{classifier}"));
    digest.iter().take(8).fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let mut file = fs::File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(())
}
