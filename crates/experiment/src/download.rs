use std::path::PathBuf;
use patchdoor_data::DatasetConfig;
use crate::progress::Console;
/// x
#[derive(Debug, thiserror::Error)]
pub enum FetchError {}
/// x
pub fn fetch() {}
pub(crate) fn fetch_missing(_dataset: &DatasetConfig, _roots: &[PathBuf], _console: Console) -> Result<(), String> { Err("x".into()) }
