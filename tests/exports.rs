//! What other programs read of runs: event files, by the real `TensorBoard`.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use patchdoor_tests::{Bench, SMALL, workspace};
use serde_json::Value;

/// Prints the numbers of every event file's folder given, as one document: by folder, by tag, `[step, value]`.
const READ: &str = "
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
read = {}
for folder in sys.argv[1:]:
    events = EventAccumulator(folder)
    events.Reload()
    read[folder] = {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in events.Tags()['scalars']}
print(json.dumps(read))
";

/// A Python with `TensorBoard` under the target folder, installed from the net unless it is there; or why there is none.
fn python_with_tensorboard() -> Result<PathBuf, String> {
    let folder = workspace().join("target").join("tensorboard");
    let python = folder.join("bin").join("python");
    let succeeds = |command: &mut Command| {
        command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let has_it = || succeeds(Command::new(&python).args(["-c", "import tensorboard"]));
    if has_it() {
        return Ok(python);
    }
    if !succeeds(Command::new("python3").args(["-m", "venv"]).arg(&folder)) {
        return Err("python3 -m venv makes no environment".into());
    }
    let install = ["-m", "pip", "install", "--quiet", "--retries", "0", "--timeout", "15", "tensorboard==2.21.0"];
    if succeeds(Command::new(&python).args(install)) && has_it() {
        Ok(python)
    } else {
        Err("pip cannot install tensorboard".into())
    }
}

#[test]
#[allow(clippy::print_stderr, reason = "a test that skips says so")]
fn tensorboard_reads_the_training_of_each_seed() {
    let bench = Bench::new();
    bench.file("small.toml", &SMALL.replace("seeds = [0]", "seeds = [0, 1]"));
    bench.run(&["run", "small.toml"]).expect(0);
    let written = bench.run(&["report", "runs", "--export", "tensorboard"]).expect(0).out();
    let files = written.lines().map(|line| bench.path().join(line)).collect::<Vec<_>>();
    assert_eq!(files.len(), 2, "{written}");
    assert!(files.iter().all(|file| file.is_file()), "{written}");

    let python = match python_with_tensorboard() {
        Ok(python) => python,
        Err(reason) => {
            eprintln!("skipped: no TensorBoard to read them with: {reason}");
            return;
        }
    };
    let folders = files.iter().filter_map(|file| file.parent()).collect::<Vec<_>>();
    let output = Command::new(python).args(["-c", READ]).args(&folders).output().expect("Python starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: Value = serde_json::from_slice(&output.stdout).expect("one document");
    for folder in folders {
        let history = std::fs::read_to_string(folder.join("metrics.jsonl")).expect("readable");
        let of_seed = &read[folder.to_str().expect("UTF-8")];
        let epochs = history.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line is a document"));
        let epochs = epochs.collect::<Vec<_>>();
        for (tag, key) in [
            ("training/loss", "loss"),
            ("training/accuracy", "training-accuracy"),
            ("training/learning-rate", "learning-rate"),
            ("validation/accuracy", "validation-accuracy"),
        ] {
            let scalars = of_seed[tag].as_array().unwrap_or_else(|| panic!("no {tag} in {of_seed}"));
            assert_eq!(scalars.len(), epochs.len(), "{tag}");
            for (number, (scalar, epoch)) in scalars.iter().zip(&epochs).enumerate() {
                assert_eq!(scalar[0], number + 1, "{tag}");
                // TensorBoard has them in single precision.
                let [read, written] = [&scalar[1], &epoch[key]].map(|value| value.as_f64().expect("a number") as f32);
                assert_eq!(read.to_bits(), written.to_bits(), "{tag} of epoch {number}");
            }
        }
        assert_eq!(of_seed["curves/asr"].as_array().map(Vec::len), Some(epochs.len()), "{of_seed}");
        assert_eq!(of_seed["test/asr"].as_array().map(Vec::len), Some(1), "{of_seed}");
    }
}
