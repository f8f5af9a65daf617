//! Studies that end in time, are stopped and go on.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use patchdoor_tests::{Bench, json_of};
use serde_json::Value;

const PAPER: [&str; 6] = ["study", "paper", "--tiny", "--backend", "flex", "--minutes"];

fn paper(minutes: &str) -> Vec<&str> {
    // No Python: whether a machine has PyTorch must not matter.
    [&PAPER[..], &[minutes, "--python", "no-such-python"]].concat()
}

fn record(bench: &Bench) -> Value {
    json_of(&bench.path().join("study/keep/study.json"))
}

fn outcome(bench: &Bench, step: &str) -> String {
    record(bench)["steps"][step]["outcome"].as_str().unwrap_or("not begun").to_owned()
}

fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("readable").path());
    entries.map(|path| if path.is_dir() { bytes_below(&path) } else { path.metadata().expect("a file").len() }).sum()
}

#[test]
fn a_tiny_study_does_every_step_and_a_second_call_none_again() {
    let bench = Bench::new();
    let first = bench.run(&paper("10")).expect(0);
    assert_eq!(first.out().trim(), "study/keep/report.md");
    let report = std::fs::read_to_string(bench.path().join("study/keep/report.md")).expect("a report");
    for text in ["its numbers mean nothing", "Trainings of 2 epochs", "there is no no-such-python", "| 1 | ours, f32 |"]
    {
        assert!(report.contains(text), "no {text:?} in\n{report}");
    }
    for step in ["doctor", "operations", "quick", "speed-1", "fine-tuning", "published-square", "lowest-rate"] {
        assert_eq!(outcome(&bench, step), "done", "{step}:\n{report}");
    }
    let numbers = &record(&bench)["steps"]["fine-tuning"]["numbers"];
    for name in ["asr", "clean-accuracy-drop", "fine-tuning on clean images: asr"] {
        assert!(numbers[name].is_f64(), "no {name} in {numbers}");
    }
    let label = "random: asr";
    assert!(record(&bench)["steps"]["lowest-rate"]["numbers"][label].is_f64(), "controls are measured");
    assert!(bytes_below(&bench.path().join("study/keep")) < 16 << 20);

    let before = record(&bench);
    let begun = Instant::now();
    let second = bench.run(&paper("10")).expect(0);
    assert!(begun.elapsed() < Duration::from_secs(10), "nothing was computed again");
    assert_eq!(second.err().matches("done before").count(), 7, "{}", second.err());
    assert_eq!(before["steps"]["fine-tuning"], record(&bench)["steps"]["fine-tuning"]);
}

#[test]
fn a_study_without_time_says_so_and_ends() {
    let bench = Bench::new();
    let begun = Instant::now();
    // Six seconds, of which three are kept for the end: some steps fit, the trainings do not.
    bench.run(&paper("0.1")).expect(0);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let report = std::fs::read_to_string(bench.path().join("study/keep/report.md")).expect("a report");
    assert_eq!(outcome(&bench, "lowest-rate"), "skipped", "{report}");
    assert!(report.contains("no time is left") || report.contains("s are left"), "{report}");
}

#[test]
fn a_study_of_other_settings_is_not_mixed_in() {
    let bench = Bench::new();
    bench.run(&paper("0.1")).expect(0);
    let file = bench.path().join("study/keep/study.json");
    let text = std::fs::read_to_string(&file).expect("a record").replace("\"flex\"", "\"cuda\"");
    std::fs::write(&file, text).expect("writable");
    let refused = bench.run(&paper("0.1")).expect(2);
    assert!(refused.err().contains("backend is cuda there, flex now"), "{}", refused.err());
}

fn start(bench: &Bench) -> Child {
    bench.command(&paper("10")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts")
}

/// Waits until a training of the study has begun to leave something.
fn wait_for_training(bench: &Bench) {
    let begun = Instant::now();
    let has_begun = || {
        let entries = std::fs::read_dir(bench.path().join("study/runs")).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .any(|name| name.starts_with("fine-tuning"))
    };
    while !has_begun() {
        assert!(begun.elapsed() < Duration::from_mins(3), "no training began");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(target_os = "linux")]
fn children_of(parent: u32) -> Vec<u32> {
    let stat = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let processes = std::fs::read_dir("/proc").expect("Linux has it").flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    let is_child = |&id: &u32| {
        let parent_of = stat(id).and_then(|text| text.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<u32>().ok());
        parent_of == Some(parent)
    };
    ids.filter(is_child).collect()
}

#[cfg(target_os = "linux")]
#[test]
fn a_killed_study_leaves_no_process_and_goes_on() {
    let bench = Bench::new();
    let mut child = start(&bench);
    wait_for_training(&bench);
    let children = children_of(child.id());
    assert!(!children.is_empty(), "a step is running");
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    let begun = Instant::now();
    let lives = |id: &u32| {
        let text = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        !text.is_empty() && !text.contains(") Z ")
    };
    while children.iter().any(lives) {
        assert!(begun.elapsed() < Duration::from_secs(10), "its child outlived it");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(outcome(&bench, "speed-1"), "done", "what was done is recorded");
    let speed = record(&bench)["steps"]["speed-1"].clone();

    let second = bench.run(&paper("10")).expect(0);
    assert!(second.err().contains("images/s in training, widen 1, f32: done before"), "{}", second.err());
    assert_eq!(record(&bench)["steps"]["speed-1"], speed);
    assert_eq!(outcome(&bench, "lowest-rate"), "done");
}

#[cfg(unix)]
#[test]
fn an_interrupted_study_saves_says_so_and_goes_on() {
    let bench = Bench::new();
    let child = start(&bench);
    wait_for_training(&bench);
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill starts");
    assert!(sent.success());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130));
    assert!(bench.path().join("study/keep/report.md").exists());
    bench.run(&paper("10")).expect(0);
    assert_eq!(outcome(&bench, "lowest-rate"), "done");
}
