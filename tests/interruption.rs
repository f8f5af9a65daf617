//! Runs that are stopped and go on.
#![cfg(unix)]

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
    let child = bench
        .command(&["run", "longer.toml"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the runner starts");
    let start = Instant::now();
    loop {
        let found = walk(bench.path()).into_iter().any(|path| {
            let path = path.to_string_lossy();
            !path.contains("twins")
                && path.contains("epoch-")
                && path.ends_with("state.json")
                && !path.contains("partial")
        });
        if found {
            return child;
        }
        assert!(start.elapsed() < Duration::from_secs(300), "no checkpoint appeared");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
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
    assert!(resumed.err().contains("resum"), "it says that it resumes:\n{}", resumed.err());
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
