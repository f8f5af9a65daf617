use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use serde_json::Value;

use crate::bench_against::{Comparison, PACKAGE, Selection, compare, git, metadata, resolve};
use crate::run::root;

/// Ratio of times, new to old, over which continuous integration fails. The same sources built twice differ by up to a
/// tenth, because code and data lie at other addresses.
pub(crate) const THRESHOLD: f64 = 1.25;

/// Files in `benches/` that hold the benchmarks of the gate. The fewer, the less is built for the other revision.
const SUBJECTS: [&str; 3] = ["batching", "kernels", "stamping"];

/// Benchmarks that stand for all others: what an experiment spends its time in, at a few seconds each.
const BENCHMARKS: [&str; 10] = [
    "batching/crop and flip",
    "batch norm relu/32x32x16/both",
    "convolution/before experts/both",
    "convolution/group 1/both",
    "experts/4 of 64 channels/both",
    "network/evaluation/1",
    "network/training step/1",
    "network/training step/2",
    "network/training step, gathered/1",
    "stamping/training images/square",
];

/// Compares speed with the previous main, or says why there is nothing to compare.
///
/// What makes a comparison impossible (no such revision, a shallow clone) or needless is said and is no failure.
pub(crate) fn run(against: Option<&str>, threshold: f64, rounds: usize) -> anyhow::Result<ExitCode> {
    let head = resolve("HEAD")?;
    let mut revision = None;
    if let Some(named) = against {
        revision = resolve(named)?;
        if revision.is_none() {
            say(&format!("git knows no revision {named:?} here; taking the previous main"));
        }
    }
    let folders = measured_folders(&metadata(&root())?, &root());
    if revision.is_none() {
        revision = previous_main(head.as_deref(), &folders)?;
    }
    let Some(revision) = revision else {
        say("skipped: no earlier commit is here to compare with (a shallow clone, or the first commit)");
        return Ok(ExitCode::SUCCESS);
    };
    let changed = git(&root()).args(["diff", "--quiet", &revision, "--"]).args(&folders).status();
    if changed.context("cannot start git")?.success() {
        say(&format!("skipped: nothing that is timed has changed since {revision}"));
        return Ok(ExitCode::SUCCESS);
    }
    say(&format!("comparing with {revision}"));
    compare(&Comparison {
        revision,
        subjects: SUBJECTS.map(str::to_owned).to_vec(),
        selection: Selection::Named(&BENCHMARKS),
        threshold,
        rounds,
    })
}

/// Where this branch left the main one; on the main branch, what it was before the last commit or merge that changed
/// anything timed: commits of documents or results after it do not hide it.
fn previous_main(head: Option<&str>, folders: &BTreeSet<PathBuf>) -> anyhow::Result<Option<String>> {
    for main in ["origin/main", "main"] {
        let output = git(&root()).args(["merge-base", "HEAD", main]).output().context("cannot start git")?;
        let base = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if output.status.success() && Some(base.as_str()) != head {
            return Ok(Some(base));
        }
    }
    let mut log = git(&root());
    log.args(["log", "-1", "--first-parent", "--format=%H", "HEAD", "--"]).args(folders);
    let output = log.output().context("cannot start git")?;
    let last = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    resolve(&if last.is_empty() { "HEAD^1".into() } else { format!("{last}^1") })
}

/// What the benchmarks are built from: their own package, those of the workspace it depends on, and what all share.
fn measured_folders(metadata: &Value, root: &Path) -> BTreeSet<PathBuf> {
    let packages = metadata["packages"].as_array().map_or(&[][..], Vec::as_slice);
    let mut folders: BTreeSet<PathBuf> = ["Cargo.toml", "Cargo.lock", ".cargo"].map(PathBuf::from).into();
    let mut waiting = vec![PACKAGE];
    while let Some(name) = waiting.pop() {
        let Some(package) = packages.iter().find(|package| package["name"] == name) else { continue };
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        let Some(folder) = manifest.parent().and_then(|folder| folder.strip_prefix(root).ok()) else { continue };
        if folders.insert(folder.to_owned()) {
            let dependencies = package["dependencies"].as_array().into_iter().flatten();
            let own = dependencies.filter(|dependency| dependency["path"].is_string());
            waiting.extend(own.filter_map(|dependency| dependency["name"].as_str()));
        }
    }
    folders
}

fn say(line: &str) {
    // Nobody is left to be told that nobody listens.
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_benchmarks_are_built_from_counts() {
        let folders = measured_folders(&metadata(&root()).unwrap(), &root());
        for folder in ["benches", "crates/kernels", "crates/model", "crates/train", "crates/data", "Cargo.lock"] {
            assert!(folders.contains(Path::new(folder)), "{folder} is not among {folders:?}");
        }
        for folder in ["crates/experiment", "xtask", "tests"] {
            assert!(!folders.contains(Path::new(folder)), "{folder} is among {folders:?}");
        }
    }

    #[test]
    fn the_gate_takes_only_benchmarks_of_its_subjects() {
        let manifest = std::fs::read_to_string(root().join("benches").join("Cargo.toml")).unwrap();
        for subject in SUBJECTS {
            assert!(manifest.contains(&format!("path = \"{subject}.rs\"")), "benches/{subject}.rs is no bench");
        }
    }
}
