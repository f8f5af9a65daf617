use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::run::{cargo, exit_code, root};

/// One thing that continuous integration does.
struct Step {
    name: &'static str,
    /// What it runs; the speed is compared with a revision.
    command: fn(Option<&str>) -> Command,
}

/// The steps, cheapest first. All that compile burn do so with the release profile and for the whole workspace with
/// its tests: with one set of features it is compiled once (and checked once, for clippy and the documentation).
const STEPS: [Step; 12] = [
    Step { name: "format", command: |_| with(cargo(), &["fmt", "--all", "--check"]) },
    Step {
        name: "clippy",
        command: |_| {
            with(cargo(), &["clippy", "--release", "--workspace", "--all-targets", "--", "--deny", "warnings"])
        },
    },
    Step {
        name: "docs",
        command: |_| {
            let mut command = with(cargo(), &["doc", "--release", "--workspace", "--no-deps"]);
            command.env("RUSTDOCFLAGS", "--deny warnings");
            command
        },
    },
    Step { name: "build", command: |_| with(cargo(), &["build", "--release", "--workspace", "--all-targets"]) },
    Step { name: "check", command: |_| with(program("patchdoor"), &["check"]) },
    Step { name: "results", command: |_| with(program("patchdoor-report"), &["results", "--check"]) },
    Step {
        name: "tests",
        command: |_| with(cargo(), &["test", "--release", "--workspace", "--lib", "--bins", "--tests"]),
    },
    // Its library is a feature that no other step turns on, and changes no feature of theirs.
    Step {
        name: "parquet",
        command: |_| {
            with(cargo(), &["test", "--release", "--package", "patchdoor-report", "--features", "parquet", "parquet"])
        },
    },
    Step { name: "doc-tests", command: |_| with(cargo(), &["test", "--release", "--workspace", "--doc"]) },
    Step {
        name: "quick-run",
        command: |_| {
            let arguments = ["run", "experiments/badnets.toml", "--quick", "--fresh", "--out", "target/ci-runs"];
            with(program("patchdoor"), &arguments)
        },
    },
    // As a test, criterion runs each benchmark once.
    Step { name: "benches", command: |_| with(cargo(), &["test", "--release", "--workspace", "--bench", "*"]) },
    Step {
        name: "speed",
        command: |against| {
            let mut command = with(cargo(), &["xtask", "bench", "--gate"]);
            command.args(against.into_iter().flat_map(|revision| ["--against", revision]));
            command
        },
    },
];

/// Names of the steps, in order.
pub(crate) fn step_names() -> Vec<&'static str> {
    STEPS.iter().map(|step| step.name).collect()
}

/// Runs the steps, or those named, until one fails; says how long each took.
pub(crate) fn ci(only: &[String], against: Option<&str>) -> anyhow::Result<ExitCode> {
    let mut times: Vec<(&str, Duration, bool)> = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for step in STEPS.iter().filter(|step| only.is_empty() || only.iter().any(|name| name == step.name)) {
        let mut command = (step.command)(against);
        say(&format!("\n==> {}: {}", step.name, shown(&command)));
        let start = Instant::now();
        let status = command.current_dir(root()).status().with_context(|| format!("cannot start {}", step.name))?;
        times.push((step.name, start.elapsed(), status.success()));
        if !status.success() {
            code = exit_code(status.code());
            break;
        }
    }
    say("");
    for (name, time, passed) in &times {
        say(&format!("{name:<10} {:>7.1} s  {}", time.as_secs_f64(), if *passed { "ok" } else { "FAILED" }));
    }
    let total = times.iter().map(|(_, time, _)| time).sum::<Duration>();
    say(&format!("{:<10} {:>7.1} s", "in all", total.as_secs_f64()));
    Ok(code)
}

fn with(mut command: Command, arguments: &[&str]) -> Command {
    command.args(arguments);
    command
}

/// A program of ours, built by the step before.
fn program(name: &str) -> Command {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Command::new(target.join("release").join(format!("{name}{}", std::env::consts::EXE_SUFFIX)))
}

fn shown(command: &Command) -> String {
    let arguments = command.get_args().map(|argument| argument.to_string_lossy().into_owned());
    let program = Path::new(command.get_program()).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    std::iter::once(program).chain(arguments).collect::<Vec<_>>().join(" ")
}

pub(crate) fn say(line: &str) {
    // Nobody is left to be told that nobody listens.
    let _ = writeln!(std::io::stderr(), "{line}");
}
