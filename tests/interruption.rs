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
    start_until_checkpoint_of(bench, &longer(), 1)
}

/// Starts a run of `text` and returns once the backdoored model has so many checkpoints.
fn start_until_checkpoint_of(bench: &Bench, text: &str, checkpoints: usize) -> Child {
    bench.file("longer.toml", text);
    let mut command = bench.command(&["run", "longer.toml"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the runner starts");
    let start = Instant::now();
    while walk(bench.path()).iter().filter(|path| is_checkpoint(path)).count() < checkpoints {
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

/// The newest checkpoint of the backdoored model and its epochs.
fn newest_checkpoint(bench: &Bench) -> (usize, PathBuf) {
    let states = walk(bench.path()).into_iter().filter(|path| is_checkpoint(path));
    let folders = states.map(|state| state.parent().expect("it lies in a folder").to_owned());
    let numbered =
        folders.map(|folder| (folder.to_string_lossy().rsplit('-').next().unwrap_or_default().parse(), folder));
    numbered.filter_map(|(epochs, folder)| Some((epochs.ok()?, folder))).max().expect("there is a checkpoint")
}

fn epochs_of(file: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("it is JSON"));
    lines.map(|line| line["epoch"].as_u64().expect("a number")).collect()
}

#[test]
fn a_run_with_a_damaged_checkpoint_warns_and_ends_with_the_same_weights_and_every_line_once() {
    let straight = uninterrupted();
    let bench = Bench::new();
    let text = format!("{}\n[routing]\nper-epoch = true\nper-epoch-images = 20\nfigures = false\n", longer());
    let mut child = start_until_checkpoint_of(&bench, &text, 2);
    signal(&child, "-KILL");
    child.wait().expect("it ends");

    let (epochs, newest) = newest_checkpoint(&bench);
    let weights_file = newest.join("classifier.bin");
    let mut contents = std::fs::read(&weights_file).expect("the checkpoint is whole");
    let middle = contents.len() / 2;
    contents[middle] ^= 4;
    std::fs::write(&weights_file, contents).expect("the folder is writable");

    let resumed = bench.run(&["run", "longer.toml"]).expect(0);
    let said = resumed.err();
    assert!(said.contains("warning: longer seed 0, backdoored: checkpoint"), "{said}");
    assert!(said.contains(&format!("epoch-{epochs:04}.refused has a damaged classifier.bin")), "{said}");
    assert!(said.contains(&format!("goes on after epoch {} of 12", epochs - 1)), "{said}");
    assert_eq!(weights(&bench), straight);
    let seed = bench.run_directory().join("seed-0");
    for file in ["metrics.jsonl", "routing/epochs.jsonl", "curves.jsonl"] {
        assert_eq!(epochs_of(&seed.join(file)), (0..12).collect::<Vec<_>>(), "{file}");
    }
    assert!(!seed.join("checkpoint").exists());
}
