use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::SafeTensors;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::{ClassifierConfig, InputShape, ModelError};

/// What a weights file says about itself.
///
/// It stands in the file's header as text, so that any reader of safetensors can show it: `schema` and `program`,
/// `model`, `classes` and `image-shape` as JSON, `pixel-range`, and `sha256`, which covers the others and the tensors'
/// bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightsDescription {
    /// The classifier's configuration.
    pub config: ClassifierConfig,
    /// Names of the classes, in the order of the logits.
    pub classes: Vec<String>,
    /// The images it takes.
    pub input: InputShape,
}

/// Layout of the metadata.
const SCHEMA: &str = "1";
/// Range of the pixels that a classifier takes.
const PIXEL_RANGE: &str = "[0, 1]";

const KEYS: [&str; 7] = ["classes", "image-shape", "model", "pixel-range", "program", "schema", DIGEST];
const DIGEST: &str = "sha256";

impl WeightsDescription {
    /// The header's metadata over the bytes of all tensors.
    pub(crate) fn to_metadata(&self, tensors: &[u8]) -> BTreeMap<String, String> {
        fn json<T: Serialize>(value: &T) -> String {
            serde_json::to_string(value).expect("plain values have no text that JSON lacks")
        }
        let entries = [
            ("schema", SCHEMA.to_owned()),
            ("program", concat!("patchdoor ", env!("CARGO_PKG_VERSION")).to_owned()),
            ("model", json(&self.config)),
            ("classes", json(&self.classes)),
            ("image-shape", json(&self.input)),
            ("pixel-range", PIXEL_RANGE.to_owned()),
        ];
        let mut metadata: BTreeMap<_, _> = entries.map(|(key, value)| (key.to_owned(), value)).into();
        let digest = digest(&metadata, tensors);
        metadata.insert(DIGEST.to_owned(), digest);
        metadata
    }

    /// Reads what a file says of itself, and checks that nothing of it changed; `None` if it says nothing.
    pub(crate) fn of_file(path: &Path, bytes: &[u8]) -> Result<Option<Self>, ModelError> {
        let (length, header) =
            SafeTensors::read_metadata(bytes).map_err(|source| ModelError::Format { path: path.into(), source })?;
        let Some(metadata) = header.metadata() else { return Ok(None) };
        if KEYS.iter().all(|&key| !metadata.contains_key(key)) {
            return Ok(None);
        }
        let problem = |reason: String| ModelError::Description { path: path.into(), reason };
        let entry = |key: &str| metadata.get(key).ok_or_else(|| problem(format!("has no {key}")));
        let schema = entry("schema")?;
        if schema != SCHEMA {
            return Err(problem(format!(
                "has schema {schema}, expected {SCHEMA}; another version of this program wrote it"
            )));
        }
        let known: BTreeMap<String, String> = KEYS
            .iter()
            .filter(|&&key| key != DIGEST)
            .map(|&key| Ok((key.to_owned(), entry(key)?.clone())))
            .collect::<Result<_, ModelError>>()?;
        let (found, expected) = (digest(&known, &bytes[8 + length..]), entry(DIGEST)?);
        if found != *expected {
            return Err(problem(format!(
                "has sha256 {expected}, but what it holds has {found}: it was changed or damaged"
            )));
        }
        Ok(Some(Self {
            config: parsed(metadata, "model").map_err(problem)?,
            classes: parsed(metadata, "classes").map_err(problem)?,
            input: parsed(metadata, "image-shape").map_err(problem)?,
        }))
    }
}

fn parsed<T: DeserializeOwned>(metadata: &HashMap<String, String>, key: &str) -> Result<T, String> {
    let text = metadata.get(key).map_or("", String::as_str);
    serde_json::from_str(text).map_err(|error| format!("has {key} {text:?}: {error}"))
}

/// SHA-256 of the metadata, each key and value with its length before it, and of the tensors' bytes.
fn digest(metadata: &BTreeMap<String, String>, tensors: &[u8]) -> String {
    let mut hash = Sha256::new();
    for text in metadata.iter().flat_map(|(key, value)| [key, value]) {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    hash.update(tensors);
    hash.finalize().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// Two structures in words, each with what the other has otherwise.
pub(crate) fn told_apart(found: &ClassifierConfig, expected: &ClassifierConfig) -> (String, String) {
    let [ours, others] = [found, expected].map(|config| {
        let value = serde_json::to_value(config).expect("plain values have no text that JSON lacks");
        let fields = value.as_object().and_then(|tagged| tagged.values().next()?.as_object().cloned());
        fields.unwrap_or_default()
    });
    let told =
        |config: &ClassifierConfig, own: &serde_json::Map<_, serde_json::Value>, other: &serde_json::Map<_, _>| {
            let differing: Vec<String> = own
                .iter()
                .filter(|(field, value)| other.get(*field) != Some(value))
                .map(|(field, value): (&String, _)| format!("{field} = {value}"))
                .collect();
            format!("{} with {}", config.network().name(), differing.join(", "))
        };
    if found.network().name() == expected.network().name() {
        (told(found, &ours, &others), told(expected, &others, &ours))
    } else {
        let sized = |config: &ClassifierConfig| {
            format!("{} with widen-factor = {}", config.network().name(), config.widen_factor())
        };
        (sized(found), sized(expected))
    }
}
