use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::record::{BinBytesRecorder, FullPrecisionSettings, Recorder};
use fs_err as fs;
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::manifest::{Manifest, ManifestError};
use crate::optimizer::Optimizer;
use crate::{EpochRecord, TrainError, TrainingConfig};

/// What a checkpoint belongs to; it resumes no other training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Identity {
    pub(crate) training: TrainingConfig,
    pub(crate) seed: u64,
    pub(crate) data: String,
    /// What an objective with a state was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) objective: Option<String>,
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

const SCHEMA: u32 = 3;

/// A folder with the states after the last two finished epochs, `epoch-0006/` and `epoch-0007/`.
///
/// A checkpoint is written beside its final name, flushed to the disk and renamed, so that it is
/// there whole or not at all; only then the one but one before is removed. A manifest in it tells
/// whether its bytes are still those that were written. One that is damaged is moved aside to
/// `epoch-0007.refused` and stays until its epoch is saved again. Random streams need no state:
/// every epoch derives its own from seed and epoch.
pub(crate) struct CheckpointDirectory {
    path: PathBuf,
    identity: Identity,
}

/// Why a checkpoint cannot be used.
enum Unfit {
    /// It is damaged: an older one, or the start, leads to the same weights.
    Damaged(String),
    /// It is whole and not this training's, or cannot be read at all.
    Foreign(TrainError),
}

impl From<ManifestError> for Unfit {
    fn from(error: ManifestError) -> Self {
        match error {
            ManifestError::Io { source, .. } => Self::Foreign(source.into()),
            damage => Self::Damaged(damage.to_string()),
        }
    }
}

/// What training goes on from.
pub(crate) struct Resumed<B: TrainingBackend> {
    pub(crate) classifier: Classifier<B>,
    pub(crate) optimizer: Optimizer<B>,
    pub(crate) history: Vec<EpochRecord>,
    /// What the objective has learned, where it learns.
    pub(crate) objective: Option<Vec<u8>>,
}

impl CheckpointDirectory {
    pub(crate) fn open(path: &Path, identity: Identity) -> Result<Self, TrainError> {
        fs::create_dir_all(path)?;
        Ok(Self { path: path.into(), identity })
    }

    pub(crate) fn save<B: TrainingBackend>(
        &self,
        classifier: &Classifier<B>,
        optimizer: &Optimizer<B>,
        history: &[EpochRecord],
        objective: Option<Vec<u8>>,
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
        let steps = optimizer.to_bytes().map_err(|error| self.problem(&name, error))?;
        let layout = layout_of(classifier);
        let state = State { schema: SCHEMA, layout, identity: self.identity.clone(), history: history.to_vec() };
        let state = serde_json::to_vec_pretty(&state).map_err(|error| self.problem(&name, error))?;
        let mut manifest = Manifest::default();
        let objective = objective.map(|contents| (OBJECTIVE, contents));
        let files = [(CLASSIFIER, weights), (OPTIMIZER, steps), (STATE, state)].into_iter().chain(objective);
        for (file, contents) in files {
            write_durably(&partial.join(file), &contents)?;
            manifest.insert(file, &contents);
        }
        write_durably(&partial.join(Manifest::FILE), &manifest.to_json())?;
        fs::File::open(&partial)?.sync_all()?;
        fs::rename(&partial, &finished)?;
        // The rename itself must survive a loss of power before older checkpoints go.
        fs::File::open(&self.path)?.sync_all()?;
        for (epochs, folder) in self.folders("")? {
            if epochs + 1 < history.len() {
                fs::remove_dir_all(folder)?;
            }
        }
        for (epochs, folder) in self.folders(REFUSED)? {
            if epochs <= history.len() {
                fs::remove_dir_all(folder)?;
            }
        }
        Ok(())
    }

    /// Loads the newest undamaged checkpoint into a classifier and an optimiser of the same configuration.
    ///
    /// Damaged ones are moved aside; `refused` hears of each, where it lies now and what is wrong with it.
    pub(crate) fn resume<B: TrainingBackend>(
        &self,
        classifier: &Classifier<B>,
        optimizer: impl Fn() -> Optimizer<B>,
        device: &B::Device,
        mut refused: impl FnMut(&Path, &str),
    ) -> Result<Option<Resumed<B>>, TrainError> {
        let mut found = self.folders("")?;
        found.sort_unstable_by_key(|&(epochs, _)| std::cmp::Reverse(epochs));
        for (epochs, folder) in found {
            match self.load(epochs, &folder, classifier.clone(), optimizer(), device) {
                Ok(resumed) => return Ok(Some(resumed)),
                Err(Unfit::Foreign(error)) => return Err(error),
                Err(Unfit::Damaged(reason)) => {
                    let aside = self.path.join(format!("epoch-{epochs:04}{REFUSED}"));
                    if aside.exists() {
                        fs::remove_dir_all(&aside)?;
                    }
                    fs::rename(&folder, &aside)?;
                    tracing::warn!(checkpoint = %aside.display(), reason, "checkpoint refused");
                    refused(&aside, &reason);
                }
            }
        }
        Ok(None)
    }

    fn load<B: TrainingBackend>(
        &self,
        epochs: usize,
        folder: &Path,
        classifier: Classifier<B>,
        optimizer: Optimizer<B>,
        device: &B::Device,
    ) -> Result<Resumed<B>, Unfit> {
        let name = format!("epoch-{epochs:04}");
        let foreign = |reason: String| Unfit::Foreign(self.problem(&name, reason));
        let manifest = Manifest::read(folder);
        if let Err(ManifestError::Missing { .. }) = manifest
            && let Some(schema) = schema_of(folder).map_err(Unfit::Foreign)?
            && schema != SCHEMA
        {
            // Earlier builds wrote no manifest.
            return Err(foreign(other_schema(schema)));
        }
        let manifest = manifest?;
        let [weights, steps, state] = [CLASSIFIER, OPTIMIZER, STATE].map(|file| manifest.read_file(folder, file));
        let (weights, steps, state) = (weights?, steps?, state?);
        let Schema { schema } = serde_json::from_slice(&state).map_err(|error| foreign(error.to_string()))?;
        if schema != SCHEMA {
            return Err(foreign(other_schema(schema)));
        }
        let state: State = serde_json::from_slice(&state).map_err(|error| foreign(error.to_string()))?;
        if state.history.len() != epochs {
            return Err(foreign(format!("has {} epochs", state.history.len())));
        }
        if state.layout != layout_of(&classifier) {
            return Err(foreign(format!("holds a classifier of another structure; {OTHER_BUILD}")));
        }
        if state.identity != self.identity {
            return Err(foreign("belongs to another training; remove it or train elsewhere".into()));
        }
        let learns = self.identity.objective.is_some();
        let objective = learns.then(|| manifest.read_file(folder, OBJECTIVE)).transpose()?;
        let recorder = BinBytesRecorder::<FullPrecisionSettings>::new();
        let record = Recorder::<B>::load(&recorder, weights, device).map_err(|error| foreign(error.to_string()))?;
        let optimizer = optimizer.load_bytes(steps, device).map_err(|error| foreign(error.to_string()))?;
        Ok(Resumed { classifier: classifier.load_record(record), optimizer, history: state.history, objective })
    }

    /// Epochs of the newest checkpoint, 0 without any.
    pub(crate) fn epochs(&self) -> Result<usize, TrainError> {
        Ok(self.folders("")?.into_iter().map(|(epochs, _)| epochs).max().unwrap_or(0))
    }

    /// The folders `epoch-0007` and so on, with this ending; the empty one for checkpoints that count.
    fn folders(&self, ending: &str) -> Result<Vec<(usize, PathBuf)>, TrainError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("epoch-")?.strip_suffix(ending));
            found.extend(number.and_then(|number| number.parse().ok()).map(|epochs| (epochs, entry.path())));
        }
        Ok(found)
    }

    #[allow(clippy::needless_pass_by_value, reason = "map_err hands errors over by value")]
    pub(crate) fn problem(&self, name: &str, reason: impl ToString) -> TrainError {
        TrainError::Checkpoint { path: self.path.join(name), reason: reason.to_string() }
    }
}

const CLASSIFIER: &str = "classifier.bin";
const OPTIMIZER: &str = "optimizer.bin";
const STATE: &str = "state.json";
const OBJECTIVE: &str = "objective.bin";

/// What the name of a damaged checkpoint ends in, once it is moved aside.
const REFUSED: &str = ".refused";

/// What to do about a checkpoint that this build cannot read.
const OTHER_BUILD: &str = "another build of this program wrote it: let that build finish the training, or remove the checkpoint to begin again";

fn other_schema(found: u32) -> String {
    format!("has layout {found}, expected {SCHEMA}; {OTHER_BUILD}")
}

/// The layout that `state.json` speaks of; `None` if it is missing or says nothing of the kind.
fn schema_of(folder: &Path) -> Result<Option<u32>, TrainError> {
    match fs::read(folder.join(STATE)) {
        Ok(state) => Ok(serde_json::from_slice(&state).ok().map(|Schema { schema }| schema)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Differs between classifiers whose records differ, such as those of two builds of which one has a field more.
fn layout_of<B: TrainingBackend>(classifier: &Classifier<B>) -> String {
    let digest = Sha256::digest(format!("{classifier}"));
    digest.iter().take(8).fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let mut file = fs::File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(())
}
