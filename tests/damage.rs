//! Files of finished and of unfinished runs that are damaged: never a panic, never other numbers with exit code 0.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use patchdoor_tests::{Bench, Finished, SMALL, copy, files};
use serde_json::Value;

/// A run with everything that is read back: a surrogate, a twin, routing after every epoch, and a defense.
fn everything() -> String {
    let small = SMALL.replace("train = 240, test = 60", "train = 120, test = 40");
    format!(
        "{small}\n[placement]\ngrid = 8\ncells.most-selected = {{ count = 2 }}\n\n[surrogate]\nseed-offset = 1\n\n\
         [routing]\nper-epoch = true\nper-epoch-images = 20\n\n\
         [[defenses]]\nfine-tuning = {{ training = {{ epochs = 2 }} }}\n"
    )
}

/// What a file is made into.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Emptied,
    /// Half of it is there.
    Truncated,
    /// One bit is another, at this place in the file.
    Flipped(f64),
}

const DAMAGES: [Damage; 4] = [Damage::Emptied, Damage::Truncated, Damage::Flipped(0.2), Damage::Flipped(0.7)];

impl Damage {
    fn of(self, whole: &[u8]) -> Vec<u8> {
        let at = |share: f64| ((whole.len() as f64 * share) as usize).min(whole.len() - 1);
        match self {
            Self::Emptied => Vec::new(),
            Self::Truncated => whole[..whole.len() / 2].to_vec(),
            Self::Flipped(share) => {
                let mut flipped = whole.to_vec();
                flipped[at(share)] ^= 1;
                flipped
            }
        }
    }
}

/// The numbers of a run that depend neither on the clock nor on what else the process held.
fn numbers(finished: &Finished) -> String {
    let document: Value = serde_json::from_str(&finished.out()).expect("--json prints JSON");
    let mut run = document["runs"][0].clone();
    let measured = &mut run["seeds"][0]["outcome"]["finished"];
    for clock in ["training-seconds", "images-per-second"] {
        measured[clock] = Value::Null;
    }
    measured["defenses"][0]["outcome"]["finished"]["seconds"] = Value::Null;
    measured["defenses"][0]["peak-memory"] = Value::Null;
    for cost in ["seconds", "peak-memory"] {
        run["defenses"][0]["metrics"][cost] = Value::Null;
    }
    run.to_string()
}

/// Runs again and makes sure that the numbers are those expected, or that the program says why it does not go on.
fn check(bench: &Bench, expected: &str, what: &str) -> bool {
    let again = bench.run(&["run", "all.toml", "--json"]);
    let code = again.code();
    assert!(!again.err().contains("panicked"), "{what}: {}", again.err());
    if code == Some(0) {
        assert_eq!(numbers(&again), expected, "{what}: {}", again.err());
        return true;
    }
    assert!(matches!(code, Some(1 | 2)), "{what}: {code:?} {}", again.err());
    assert!(again.err().contains("error: "), "{what}: {}", again.err());
    false
}

#[test]
fn a_damaged_file_of_a_finished_run_is_an_error_or_changes_nothing() {
    let bench = Bench::new();
    bench.file("all.toml", &everything());
    let expected = numbers(&bench.run(&["run", "all.toml", "--json"]).expect(0));
    let mut refused = Vec::new();
    let all = files(&bench.path().join("runs"));
    assert!(all.len() > 20, "{all:?}");
    for path in all {
        let whole = fs::read(&path).expect("readable");
        for damage in DAMAGES {
            fs::write(&path, damage.of(&whole)).expect("writable");
            if !check(&bench, &expected, &format!("{} {damage:?}", path.display())) {
                refused.push(path.file_name().unwrap_or_default().to_owned());
            }
        }
        fs::write(&path, whole).expect("writable");
    }
    assert_eq!(refused.iter().filter(|name| *name == "summary.json").count(), 4, "{refused:?}");
}

#[test]
fn damaged_clean_models_are_trained_anew_with_a_warning() {
    let bench = Bench::new();
    bench.file("all.toml", &everything());
    let expected = numbers(&bench.run(&["run", "all.toml", "--json"]).expect(0));
    let folder = bench.run_directory();
    let twins = bench.path().join("runs/twins");
    for path in files(&twins).iter().filter(|path| !path.ends_with("metrics.jsonl") && !path.ends_with("config.toml")) {
        for damage in DAMAGES {
            let aside = bench.path().join(format!("aside-{}", bench.entries().len()));
            if folder.exists() {
                fs::rename(&folder, aside).expect("renames");
            }
            let whole = fs::read(path).expect("readable");
            fs::write(path, damage.of(&whole)).expect("writable");
            let what = format!("{} {damage:?}", path.display());
            let again = bench.run(&["run", "all.toml", "--json"]).expect(0);
            assert_eq!(numbers(&again), expected, "{what}: {}", again.err());
            // One line of the list may be damaged and the others still tell that the model is whole.
            let is_anew = again.err().contains("is trained anew");
            assert!(is_anew || path.ends_with("SHA256SUMS"), "{what}: a damaged clean model was used: {}", again.err());
        }
    }
}

/// Changes the first digit of the first share of that name in a file that stays valid JSON.
fn change_a_digit(path: &Path, name: &str) {
    let text = fs::read_to_string(path).expect("readable");
    let before = format!("\"{name}\": 0.");
    let at = text.find(&before).expect("a share") + before.len();
    let other = if text[at..].starts_with('9') { "8" } else { "9" };
    fs::write(path, format!("{}{other}{}", &text[..at], &text[at + 1..])).expect("writable");
}

#[test]
fn a_digit_changed_in_a_result_is_not_read_as_the_result() {
    let bench = Bench::new();
    bench.file("all.toml", &everything());
    bench.run(&["run", "all.toml"]).expect(0);
    change_a_digit(&bench.run_directory().join("summary.json"), "mean");
    let shown = bench.run(&["run", "all.toml"]).expect(1);
    assert!(shown.err().contains("summary.json is damaged"), "{}", shown.err());

    // A new run with the same clean twin.
    let twins = files(&bench.path().join("runs/twins"));
    let result = twins.iter().find(|path| path.ends_with("seed-0/result.json")).expect("the twin has a result");
    change_a_digit(result, "clean-accuracy");
    let again = bench.run(&["run", "all.toml", "--fresh"]).expect(0);
    assert!(
        again.err().contains("is trained anew") && again.err().contains("result.json is damaged"),
        "{}",
        again.err()
    );
}

/// Stops a run after the second checkpoint of the backdoored classifier, and returns its folder.
fn interrupted(bench: &Bench) -> PathBuf {
    let mut command = bench.command(&["run", "all.toml", "--json"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the runner starts");
    let start = Instant::now();
    let is_there = |path: &Path| path.ends_with("seed-0/checkpoint/epoch-0002/manifest.json");
    loop {
        let runs = bench.path().join("runs");
        let victims = if runs.is_dir() { files_while_written(&runs) } else { Vec::new() };
        if victims.iter().any(|path| is_there(path) && !path.components().any(|part| part.as_os_str() == "twins")) {
            break;
        }
        assert!(child.try_wait().expect("it is ours").is_none(), "the run ended before it was stopped");
        assert!(start.elapsed() < Duration::from_mins(3), "no checkpoint appeared");
        std::thread::sleep(Duration::from_millis(2));
    }
    let killed = Command::new("kill").args(["-KILL", &child.id().to_string()]).status().expect("kill starts");
    assert!(killed.success());
    child.wait().expect("it ends");
    bench.run_directory()
}

/// Files below a folder in which another process writes.
fn files_while_written(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    paths.flat_map(|path| if path.is_dir() { files_while_written(&path) } else { vec![path] }).collect()
}

#[test]
fn a_damaged_file_of_an_unfinished_run_is_an_error_or_changes_nothing() {
    let bench = Bench::new();
    bench.file("all.toml", &everything().replace("epochs = 4", "epochs = 6"));
    let folder = interrupted(&bench);
    let kept = bench.path().join("kept");
    copy(&folder, &kept);
    let restore = || {
        for entry in fs::read_dir(bench.path().join("runs")).expect("readable") {
            let path = entry.expect("readable").path();
            if !path.ends_with("twins") && !path.ends_with("locks") {
                fs::remove_dir_all(path).expect("removed");
            }
        }
        copy(&kept, &folder);
    };
    let expected = numbers(&bench.run(&["run", "all.toml", "--json"]).expect(0));
    for path in files(&kept) {
        let whole = fs::read(&path).expect("readable");
        for damage in [Damage::Emptied, Damage::Truncated, Damage::Flipped(0.6)] {
            restore();
            let target = folder.join(path.strip_prefix(&kept).expect("below"));
            fs::write(&target, damage.of(&whole)).expect("writable");
            check(&bench, &expected, &format!("{} {damage:?}", target.display()));
        }
    }
}
