//! Runs that are stopped and go on.
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use patchdoor_tests::{Bench, SMALL};

/// Long enough to be stopped in its middle.
fn longer() -> String {
    SMALL.replace("epochs = 4", "epochs = 12")
}

fn weights(bench: &Bench) -> Vec<u8> {
    std::fs::read(bench.run_directory().join("seed-0/weights.safetensors")).expect("weights are saved")
}

fn uninterrupted() -> Vec<u8> {
    let bench = Bench::new();
    bench.file("longer.toml", &longer());
    bench.run(&["run", "longer.toml"]).expect(0);
    weights(&bench)
}

/// Starts a run and returns once the backdoored model has a checkpoint.
fn start_until_checkpoint(bench: &Bench) -> Child {
    bench.file("longer.toml", &longer());
    let mut command = bench.command(&["run", "longer.toml"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the runner starts");
    let start = Instant::now();
    while !walk(bench.path()).iter().any(|path| is_checkpoint(path)) {
        assert!(child.try_wait().expect("it is ours").is_none(), "the run ended before a checkpoint was seen");
        assert!(start.elapsed() < Duration::from_mins(2), "no checkpoint appeared");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

/// Whether this is the state of a complete checkpoint of the backdoored model, not of its clean twin.
fn is_checkpoint(path: &Path) -> bool {
    let epoch = path.parent().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default();
    path.ends_with("state.json")
        && epoch.strip_prefix("epoch-").is_some_and(|number| number.parse::<usize>().is_ok())
        && path.components().all(|part| part.as_os_str() != "twins")
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    paths.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().expect("kill starts");
    assert!(sent.success());
}

#[test]
fn a_killed_run_ends_with_the_weights_of_an_uninterrupted_one() {
    let bench = Bench::new();
    let mut child = start_until_checkpoint(&bench);
    signal(&child, "-KILL");
    assert!(!child.wait().expect("it ends").success(), "it was killed before it finished");
    assert!(!bench.run_directory().join("summary.json").exists());

    let resumed = bench.run(&["run", "longer.toml"]).expect(0);
    assert!(resumed.err().contains("backdoored: goes on after epoch"), "it says that it resumes:\n{}", resumed.err());
    assert_eq!(weights(&bench), uninterrupted());
}

#[test]
fn an_interrupted_run_saves_says_how_to_resume_and_resumes() {
    let bench = Bench::new();
    let child = start_until_checkpoint(&bench);
    signal(&child, "-INT");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("same command"), "it says how to resume:\n{said}");
    bench.run(&["run", "longer.toml"]).expect(0);
    assert_eq!(weights(&bench), uninterrupted());
}

#[test]
fn two_processes_do_not_share_a_run() {
    let bench = Bench::new();
    let mut child = start_until_checkpoint(&bench);
    let second = bench.run(&["run", "longer.toml"]);
    signal(&child, "-KILL");
    child.wait().expect("it ends");
    assert_ne!(second.code(), Some(0), "{}", second.err());
    assert!(second.err().contains("another"), "{}", second.err());
}
