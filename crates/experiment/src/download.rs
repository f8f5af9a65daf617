use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use patchdoor_data::catalog::{self, CatalogEntry};
use patchdoor_data::fetch::{self, FetchError};

use crate::console::{Console, Watch};

/// Downloads a data set to its folder below `into`, showing how far it is, until `stop` is set; returns the folder.
///
/// # Errors
/// Those of [`patchdoor_data::fetch::fetch`].
pub fn fetch(entry: &CatalogEntry, into: &Path, stop: &AtomicBool, console: Console) -> Result<PathBuf, FetchError> {
    if let Some(archive) = entry.archives.first() {
        let size = entry.archives.iter().map(|archive| archive.size).sum::<u64>() as f64 / 1e6;
        let from = archive.urls.first().map_or("", String::as_str);
        console.say(format!("fetching {} ({size:.0} MB) from {from} to {}", entry.name, into.display()));
    }
    let bar = console.bytes(entry.name);
    let mut progress = |done: u64, total: u64| {
        bar.set_length(total);
        bar.set_position(done);
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let result = fetch::fetch(entry, into, &mut progress);
    bar.finish_and_clear();
    result
}

/// Downloads a data set that a run lacks into the first of the roots; says in words why it could not.
pub(crate) fn fetch_missing(name: &str, roots: &[PathBuf], watch: Watch<'_>) -> Result<(), String> {
    let (Some(entry), Some(root)) = (catalog::entry(name), roots.first()) else {
        return Err("it has no download".into());
    };
    if !entry.is_fetchable() {
        return Err("it has no plain download".into());
    }
    fetch(&entry, root, watch.stop, watch.console).map(|_| ()).map_err(|error| {
        let causes = std::iter::successors(std::error::Error::source(&error), |&error| error.source());
        std::iter::once(error.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
    })
}
