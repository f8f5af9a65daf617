//! Bundles: written, carried, unpacked and used without anything else.
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use patchdoor_tests::{Bench, json_of, runner};

/// A CIFAR-10 folder of 400 images below `images`, and what it holds.
fn images(bench: &Bench) -> PathBuf {
    let folder = bench.path().join("images/cifar-10-batches-bin");
    std::fs::create_dir_all(&folder).expect("made");
    let files = [1, 2, 3, 4, 5].map(|batch| format!("data_batch_{batch}.bin"));
    for (number, file) in files.iter().map(String::as_str).chain(["test_batch.bin"]).enumerate() {
        let mut contents = Vec::new();
        for image in 0..if number < 5 { 60 } else { 100 } {
            let class = (image % 10) as u8;
            contents.push(class);
            // Each class has its brightness and its stripes, and every image its own noise.
            contents.extend((0..3072_usize).map(|at| {
                let noise = (at * 31 + image * 17 + number * 7 + at * at % 13) % 23;
                20 * class + if at / 32 % (usize::from(class) + 2) == 0 { 40 } else { 0 } + noise as u8 / 2
            }));
        }
        std::fs::write(folder.join(file), contents).expect("written");
    }
    bench.path().join("images")
}

/// `cargo xtask bundle`, by the program that the runner was built beside.
fn bundle(bench: &Bench, images: &Path, more: &[&str]) -> Output {
    let xtask = runner().parent().expect("a folder").join("xtask");
    let mut command = Command::new(xtask);
    command.current_dir(bench.path()).args(["bundle", "--backend", "flex", "--data", "cifar10", "--roots"]).arg(images);
    command.arg("--program").arg(runner()).args(more);
    command.output().expect("xtask starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Starts the bundle in an empty environment.
fn start(bundle: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("/bin/sh");
    command.arg(bundle.join("start.sh")).args(arguments).env_clear().current_dir("/");
    command.output().expect("sh starts")
}

fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            files.extend(contents(&path));
        } else {
            files.push((path.clone(), std::fs::read(&path).expect("a file")));
        }
    }
    files.sort();
    files
}

#[test]
fn a_bundle_runs_an_experiment_on_its_images_in_an_empty_environment() {
    let bench = Bench::new();
    let images = images(&bench);
    let output = bundle(&bench, &images, &["--out", "plain"]);
    assert!(output.status.success(), "{}", said(&output));
    let elsewhere = tempfile::tempdir().expect("a folder");
    let carried = elsewhere.path().join("carried");
    std::fs::rename(bench.path().join("plain"), &carried).expect("the same disk");
    std::fs::remove_dir_all(&images).expect("ours");

    let out = elsewhere.path().join("runs");
    let out = out.to_str().expect("UTF-8");
    let arguments =
        ["run", "experiments/paper/badnets-white.toml", "--quick", "--backend", "flex", "--json", "--out", out];
    let output = start(&carried, &arguments);
    assert!(output.status.success(), "{}", said(&output));
    let file = elsewhere.path().join("result.json");
    std::fs::write(&file, &output.stdout).expect("writable");
    let run = &json_of(&file)["runs"][0];
    assert_eq!(run["dataset"], "cifar10");
    assert!(run["substitution"].is_null(), "the bundled images were used: {run}");
    // The second call unpacks nothing, and the program finds its bundle's experiments.
    let output = start(&carried, &["check"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("experiments/paper/fine-tuning.toml"));
}

#[test]
fn images_come_back_to_the_byte_from_a_bundle_in_parts() {
    let bench = Bench::new();
    let images = images(&bench);
    let output = bundle(&bench, &images, &["--split", "2M", "--out", "parts"]);
    assert!(output.status.success(), "{}", said(&output));
    let folder = bench.path().join("parts");
    let files = contents(&folder);
    assert!(files.iter().all(|(_, contents)| contents.len() <= 2_000_000));
    assert!(files.len() > 4, "more than one part");
    let output = start(&folder, &["data", "list"]);
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(listed.contains("parts/data/cifar-10-batches-bin"), "{listed}{}", said(&output));
    let restored = contents(&folder.join("data/cifar-10-batches-bin"));
    let original = contents(&images.join("cifar-10-batches-bin"));
    assert_eq!(restored.len(), 6);
    for ((_, restored), (path, original)) in restored.iter().zip(&original) {
        assert!(restored == original, "{}", path.display());
    }
}

#[test]
fn the_same_inputs_give_the_same_bundle_and_none_is_overwritten() {
    let bench = Bench::new();
    let images = images(&bench);
    for out in ["one", "two"] {
        let output = bundle(&bench, &images, &["--out", out]);
        assert!(output.status.success(), "{}", said(&output));
    }
    let [one, two] = ["one", "two"].map(|name| {
        let folder = bench.path().join(name);
        let files = contents(&folder).into_iter();
        files
            .map(|(path, contents)| (path.strip_prefix(&folder).expect("in it").to_owned(), contents))
            .collect::<Vec<_>>()
    });
    assert!(one == two);
    let output = bundle(&bench, &images, &["--out", "one"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("one exists already"), "{}", said(&output));
}

#[test]
fn a_damaged_or_incomplete_bundle_does_not_start() {
    let bench = Bench::new();
    let images = images(&bench);
    let output = bundle(&bench, &images, &["--split", "2M", "--out", "parts"]);
    assert!(output.status.success(), "{}", said(&output));
    let folder = bench.path().join("parts");
    let part = folder.join("bundle.tar.part-001");
    let whole = std::fs::read(&part).expect("a part");
    let mut damaged = whole.clone();
    damaged[1000] ^= 1;
    std::fs::write(&part, damaged).expect("writable");
    let output = start(&folder, &["check"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("bundle.tar.part-001: FAILED"), "{}", said(&output));
    assert!(!folder.join("bin").exists(), "nothing was unpacked");
    std::fs::remove_file(&part).expect("ours");
    let output = start(&folder, &["check"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("the bundle is damaged or incomplete"), "{}", said(&output));
    std::fs::write(&part, whole).expect("writable");
    assert!(start(&folder, &["check"]).status.success(), "whole again, it starts");
}
