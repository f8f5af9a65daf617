use burn::record::{BinBytesRecorder, FullPrecisionSettings, Record, Recorder};
use burn::tensor::backend::Backend;
use patchdoor_train::ObjectiveState;
use serde::Serialize;
use serde::de::DeserializeOwned;

type Bytes = BinBytesRecorder<FullPrecisionSettings>;

/// The record of a module or an optimiser as bytes.
pub(super) fn to_bytes<B: Backend, R: Record<B>>(record: R) -> Result<Vec<u8>, String> {
    Recorder::<B>::record(&Bytes::new(), record, ()).map_err(|error| error.to_string())
}

/// What [`to_bytes`] was given.
pub(super) fn from_bytes<B: Backend, R: Record<B>>(bytes: Vec<u8>, device: &B::Device) -> Result<R, String> {
    Recorder::<B>::load(&Bytes::new(), bytes, device).map_err(|error| error.to_string())
}

/// What a checkpoint keeps of an attack that learns no network: its name and configuration, and what it has seen.
pub(super) fn written(
    name: &str,
    config: &impl Serialize,
    course: &impl Serialize,
) -> Result<Option<ObjectiveState>, String> {
    let config = serde_json::to_string(config).map_err(|error| error.to_string())?;
    let contents = serde_json::to_vec(course).map_err(|error| error.to_string())?;
    Ok(Some(ObjectiveState { identity: format!("{name} {config}"), contents }))
}

/// What [`written`] was told that it has seen.
pub(super) fn read<T: DeserializeOwned>(contents: &[u8]) -> Result<T, String> {
    serde_json::from_slice(contents).map_err(|error| error.to_string())
}

/// Parts behind each other, each after its length.
pub(super) fn join<const PARTS: usize>(parts: [Vec<u8>; PARTS]) -> Vec<u8> {
    parts.into_iter().flat_map(|part| [(part.len() as u64).to_le_bytes().to_vec(), part].concat()).collect()
}

/// The parts that [`join`] was given.
pub(super) fn split<const PARTS: usize>(contents: &[u8]) -> Result<[Vec<u8>; PARTS], String> {
    let mut rest = contents;
    let mut parts = Vec::new();
    for _ in 0..PARTS {
        let (length, after) = rest.split_first_chunk().ok_or("is cut short")?;
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|error| error.to_string())?;
        let (part, after) = after.split_at_checked(length).ok_or("is cut short")?;
        parts.push(part.to_vec());
        rest = after;
    }
    parts.try_into().map_err(|_| "has other parts".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back_and_what_is_cut_short_is_refused() {
        let joined = join([vec![1, 2, 3], Vec::new(), vec![4]]);
        assert_eq!(split(&joined).unwrap(), [vec![1, 2, 3], Vec::new(), vec![4]]);
        assert!(split::<3>(&joined[..joined.len() - 1]).is_err());
        assert!(split::<4>(&joined).is_err());
    }
}
