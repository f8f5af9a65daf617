//! The program on software Vulkan, which runs what CUDA runs.
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use patchdoor_tests::{Bench, workspace};
use serde_json::Value;

/// Complete checkpoints below a folder.
fn checkpoints(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let paths: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    paths
        .iter()
        .map(|path| if path.is_dir() { checkpoints(path) } else { usize::from(path.ends_with("state.json")) })
        .sum()
}

fn epochs(bench: &Bench) -> Vec<Value> {
    let file = bench.run_directory().join("seed-0/metrics.jsonl");
    let text = std::fs::read_to_string(file).expect("the run leaves a history");
    text.lines().map(|line| serde_json::from_str(line).expect("it is JSON")).collect()
}

#[test]
fn a_quick_run_on_vulkan_goes_on_where_it_was_killed_and_learns_as_on_flex() {
    let experiment = workspace().join("experiments/badnets.toml").to_string_lossy().into_owned();
    let run = |backend| ["run", &experiment, "--quick", "--set", "seeds=[0]", "--backend", backend];
    let bench = Bench::of(env!("CARGO_BIN_EXE_patchdoor"));
    let mut child = bench.command(&run("vulkan")).stderr(Stdio::null()).spawn().expect("the runner starts");
    let start = Instant::now();
    while checkpoints(bench.path()) == 0 {
        assert!(child.try_wait().expect("it is ours").is_none(), "the run ended before a checkpoint was seen");
        assert!(start.elapsed() < Duration::from_mins(4), "no checkpoint appeared");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().expect("it runs");
    child.wait().expect("it ends");

    let resumed = bench.run(&run("vulkan")).expect(0);
    assert!(resumed.err().contains("goes on after epoch"), "it says that it resumes:\n{}", resumed.err());
    let summary = std::fs::read_to_string(bench.run_directory().join("summary.json")).expect("a summary");
    let summary: Value = serde_json::from_str(&summary).expect("it is JSON");
    assert_eq!(summary["backend"], "vulkan");

    let cpu = Bench::of(env!("CARGO_BIN_EXE_patchdoor"));
    cpu.run(&run("flex")).expect(0);
    let (found, expected) = (epochs(&bench), epochs(&cpu));
    assert_eq!(found.len(), expected.len(), "every epoch is there once");
    let loss = |epochs: &[Value]| epochs[0]["loss"].as_f64().expect("a number");
    let (found, expected) = (loss(&found), loss(&expected));
    assert!((found - expected).abs() < 0.02 * expected, "loss of the first epoch: {found}, on flex {expected}");
}

#[test]
fn the_vulkan_backend_is_no_choice_of_the_users() {
    let bench = Bench::of(env!("CARGO_BIN_EXE_patchdoor"));
    let help = bench.run(&["run", "--help"]).expect(0).out();
    assert!(help.contains("flex") && !help.contains("vulkan"), "{help}");
}
