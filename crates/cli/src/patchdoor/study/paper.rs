use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fs_err as fs;
use patchdoor_cli::{Stop, print, say};
use patchdoor_experiment::Backend;
use patchdoor_plan::Precision;
use serde_json::Value;

use super::child::{Ending, run};
use super::keep::{keep, keep_autotune, shorten};
use super::record::{StepRecord, StudyRecord};
use super::report::report;
use super::steps::{
    EPOCHS, Step, Training, Work, load_of, numbers, overrides, source_file, speed_step, steps, training_precision,
};
use crate::arguments::PaperArguments;
use crate::build_facts::build_facts;
use crate::signals::stop_on_interrupt;

/// Time kept for what comes after the last step.
const RESERVE: Duration = Duration::from_secs(3);

/// A step with less time than this is not begun.
const LEAST: Duration = Duration::from_secs(2);

/// Seconds of an experiment besides its training: starting, reading images, compiling kernels, writing.
fn overhead(backend: &str, tiny: bool) -> f64 {
    match (backend, tiny) {
        (_, true) => 1.0,
        ("cuda", false) => 12.0,
        _ => 10.0,
    }
}

/// Carries out the steps of the study in their order, as far as the time goes.
pub(super) fn paper(arguments: &PaperArguments) -> Result<(), Stop> {
    let deadline = Instant::now() + Duration::from_secs_f64(arguments.minutes * 60.0);
    let backend = arguments.backend.resolve().map_err(Stop::unusable)?;
    if let Some(reason) = backend.fallback() {
        say(reason);
    }
    if let Some(precision) = arguments.precision {
        backend.check_precision(precision).map_err(Stop::unusable)?;
    }
    let study = Study::open(arguments, backend, deadline).map_err(Stop::Unusable)?;
    study.carry_out()
}

struct Study<'a> {
    arguments: &'a PaperArguments,
    backend: Backend,
    /// What trainings round to.
    precision: Precision,
    deadline: Instant,
    program: PathBuf,
    /// What is worth keeping.
    kept: PathBuf,
    record: StudyRecord,
    steps: Vec<Step>,
    stop: Arc<AtomicBool>,
}

impl<'a> Study<'a> {
    fn open(arguments: &'a PaperArguments, backend: Backend, deadline: Instant) -> anyhow::Result<Self> {
        let kept = arguments.out.join("keep");
        let build = build_facts();
        let commit = build.commit.unwrap_or_else(|| "of no commit".to_owned());
        let dirty = if build.dirty == Some(true) { ", changed" } else { "" };
        let precision = arguments.precision.unwrap_or_else(|| training_precision(backend.name()));
        let settings = BTreeMap::from([
            ("backend".to_owned(), backend.name().to_owned()),
            ("device".to_owned(), backend.device().to_owned()),
            ("precision".to_owned(), precision.name().to_owned()),
            ("program".to_owned(), format!("{} ({commit}{dirty})", build.patchdoor)),
            ("tiny".to_owned(), arguments.tiny.to_string()),
        ]);
        let record = StudyRecord::open(&kept.join("study.json"), settings)?;
        for folder in ["logs", "steps"] {
            fs::create_dir_all(kept.join(folder))?;
        }
        let stop = stop_on_interrupt().map_err(|_| anyhow::anyhow!("Ctrl-C cannot be listened to"))?;
        let steps = steps(backend.name(), arguments.tiny);
        let program = std::env::current_exe()?;
        Ok(Self { arguments, backend, precision, deadline, program, kept, record, steps, stop })
    }

    fn carry_out(mut self) -> Result<(), Stop> {
        for step in self.steps.clone() {
            if self.record.steps.get(&step.name).is_some_and(StepRecord::is_done) {
                say(&format!("{}: done before", step.title));
                continue;
            }
            if self.is_stopped() {
                break;
            }
            let begun = Instant::now();
            let mut outcome = self.attempt(&step);
            outcome.seconds = begun.elapsed().as_secs_f64();
            say(&format!("{}: {} {}", step.title, outcome.outcome, outcome.what));
            self.record.steps.insert(step.name.clone(), outcome);
            self.write(&[]).map_err(Stop::Failed)?;
        }
        keep_autotune(Path::new("cache"), &self.kept).map_err(Stop::Failed)?;
        let left_out = keep(&self.runs(), &self.kept).map_err(Stop::Failed)?;
        self.write(&left_out).map_err(Stop::Failed)?;
        print(&format!("{}\n", self.kept.join("report.md").display()))?;
        if self.is_stopped() {
            say("interrupted; the same command goes on from here");
            return Err(Stop::Interrupted);
        }
        let failed = self.record.steps.values().filter(|step| step.outcome == "failed").count();
        if failed > 0 { Err(Stop::failed(anyhow::anyhow!("{failed} steps failed"))) } else { Ok(()) }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn runs(&self) -> PathBuf {
        self.arguments.out.join("runs")
    }

    fn write(&self, left_out: &[String]) -> anyhow::Result<()> {
        self.record.write(&self.kept.join("study.json"))?;
        fs::write(self.kept.join("report.md"), report(&self.record, &self.steps, left_out))?;
        Ok(())
    }

    /// Time for steps.
    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now()).saturating_sub(RESERVE)
    }

    fn attempt(&mut self, step: &Step) -> StepRecord {
        if self.left() < LEAST {
            return skipped("no time is left");
        }
        let training = match step.work {
            Work::Training(training) => match self.epochs_for(training) {
                Ok(epochs) => Some((training, epochs)),
                Err(reason) => return skipped(reason),
            },
            _ => None,
        };
        let mut command = self.command(step, training);
        let output = self.kept.join("steps").join(format!("{}.json", step.name));
        let log = self.kept.join("logs").join(format!("{}.log", step.name));
        say(&format!("{} ..", step.title));
        let ending = match run(&mut command, self.left().min(step.limit), &self.stop, [&output, &log]) {
            Ok(ending) => ending,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return skipped(format!("there is no {}", command.get_program().display()));
            }
            Err(error) => return ended("failed", error.to_string()),
        };
        // A log that cannot be shortened is a log all the same.
        let _ = shorten(&log);
        let last = || last_line(&log);
        let document = fs::read_to_string(&output).ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
        let numbers = document.as_ref().map(|document| numbers(&step.work, document)).unwrap_or_default();
        let record = match ending {
            Ending::Code(Some(0)) if document.is_none() => ended("failed", "it printed no document"),
            Ending::Code(Some(0)) => ended("done", summary(&step.work, document.as_ref(), &numbers)),
            Ending::Code(Some(NO_PYTORCH)) if matches!(step.work, Work::Pytorch { .. }) => skipped(last()),
            Ending::Code(Some(code)) => ended("failed", format!("exit code {code}: {}", last())),
            Ending::Code(None) => ended("failed", format!("killed: {}", last())),
            Ending::TimedOut => ended("timed out", last()),
            Ending::Interrupted => ended("interrupted", last()),
        };
        StepRecord { numbers, ..record }
    }

    /// With how many epochs a training is run, or why it is not.
    fn epochs_for(&mut self, training: Training) -> Result<usize, String> {
        let tiny = self.arguments.tiny;
        let load = load_of(&source_file(training.file), training, tiny)?;
        let widen = if tiny { 1 } else { 10 };
        let measured = speed_step(widen, self.precision);
        let speed = self.record.steps.get(&measured).and_then(|step| step.numbers.get("images/s"));
        let (Some(&speed), left) = (speed, self.left().as_secs_f64()) else {
            return Err("nobody knows how long it would take: the speed was not measured".to_owned());
        };
        let overhead = overhead(self.backend.name(), tiny);
        let most = if tiny { 2 } else { EPOCHS };
        if let Some(epochs) = self.record.epochs {
            let needed = load.seconds(epochs, speed, overhead);
            // The first may have been begun, and how far it is, its checkpoint knows; if not, it is in the time to come.
            return if needed <= left || training.trains_twin {
                Ok(epochs)
            } else {
                Err(format!("{epochs} epochs need about {needed:.0} s, {left:.0} s are left"))
            };
        }
        match load.epochs_within(left, speed, overhead).min(most) {
            0 => {
                let needed = load.seconds(1, speed, overhead);
                Err(format!("one epoch needs about {needed:.0} s, {left:.0} s are left"))
            }
            epochs => {
                self.record.epochs = Some(epochs);
                // Known before it begins: killed in the middle, it goes on only with as many.
                self.write(&[]).map_err(|error| error.to_string())?;
                Ok(epochs)
            }
        }
    }

    fn command(&self, step: &Step, training: Option<(Training, usize)>) -> Command {
        let tiny = self.arguments.tiny;
        let mut command = Command::new(&self.program);
        let backend = ["--backend", self.backend.name()];
        match &step.work {
            Work::Doctor => {
                command.arg("doctor").args(backend).arg("--out").arg(&self.arguments.out);
                self.add_data(&mut command);
            }
            Work::Operations { precision } => {
                command.args(["study", "operations"]).args(backend).args(["--precision", precision.name()]);
            }
            Work::Quick => {
                command.arg("run").arg(source_file("experiments/badnets.toml")).args(["--quick", "--offline"]);
                command.args(backend).arg("--out").arg(self.runs());
                self.add_data(&mut command);
            }
            Work::Speed { widen, precision } => {
                command.args(["study", "speed"]).args(backend).args(["--widen", &widen.to_string()]);
                command.args(["--precision", precision.name()]);
                let [batch, steps, seconds] = match (tiny, self.backend.name()) {
                    (true, _) => ["16", "2", "0.2"],
                    (false, "cuda") => ["128", "64", "4"],
                    (false, _) => ["128", "4", "8"],
                };
                command.args(["--batch", batch, "--steps", steps, "--seconds", seconds]);
            }
            Work::Pytorch { widen, form } => {
                command = Command::new(&self.arguments.python);
                command.arg(source_file("benches/pytorch/pmoe.py")).args(["--json", "--tied", "--layout", "last"]);
                command.args(["--device", if self.backend.name() == "cuda" { "cuda" } else { "cpu" }]);
                command.args(["--precision", form.precision]);
                command.args(form.compiled.then_some("--compile"));
                command.args(if tiny { &["--batch", "16", "--runs", "2"][..] } else { &[] });
                command.arg(widen.to_string());
                return command;
            }
            Work::Training(_) => {
                let (training, epochs) = training.expect("its epochs are settled");
                command.arg("run").arg(source_file(training.file)).args(["--seeds", "0", "--offline"]);
                command.args(backend).arg("--out").arg(self.runs());
                command.args(tiny.then_some("--quick"));
                for change in overrides(epochs, self.precision, tiny) {
                    command.args(["--set", &change]);
                }
                self.add_data(&mut command);
            }
        }
        command.args(["--json", "--tied"]);
        command
    }

    fn add_data(&self, command: &mut Command) {
        if let Some(data) = &self.arguments.data {
            command.arg("--data").arg(data);
        }
    }
}

/// How `pmoe.py` ends where there is no `PyTorch`, or none for the device.
const NO_PYTORCH: i32 = 3;

fn ended(outcome: &str, what: impl Into<String>) -> StepRecord {
    StepRecord { outcome: outcome.to_owned(), what: what.into(), seconds: 0.0, numbers: BTreeMap::new() }
}

fn skipped(reason: impl Into<String>) -> StepRecord {
    ended("skipped", reason)
}

/// What a step said of its end: the last line that names a failure, else the last one.
fn last_line(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    reason_in(&text).to_owned()
}

fn reason_in(text: &str) -> &str {
    let mut lines = text.lines().rev().map(str::trim);
    let names_failure = |line: &&str| line.starts_with("failed:") || line.starts_with("error:");
    lines.clone().find(names_failure).or_else(|| lines.find(|line| !line.is_empty())).unwrap_or("it said nothing")
}

/// What a step came to in a few words.
fn summary(work: &Work, document: Option<&Value>, numbers: &BTreeMap<String, f64>) -> String {
    let number = |name: &str| numbers.get(name).copied();
    match work {
        Work::Doctor => document.and_then(|document| document["backend"].as_str()).unwrap_or_default().to_owned(),
        Work::Operations { .. } => {
            number("largest distance").map_or_else(String::new, |distance| format!("all agree, at most {distance:.1e}"))
        }
        Work::Speed { .. } | Work::Pytorch { .. } => {
            number("images/s").map_or_else(String::new, |speed| format!("{speed:.1} images/s"))
        }
        Work::Quick | Work::Training(_) => {
            let shown = ["clean-accuracy", "asr"].map(|name| number(name).map(|value| format!("{name} {value:.4}")));
            shown.into_iter().flatten().collect::<Vec<_>>().join(", ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_and_not_what_to_do_about_it() {
        let log = "run\nfailed: seed 0 failed: loss became NaN\n--retry-failed computes anew what failed\n\n";
        assert_eq!(reason_in(log), "failed: seed 0 failed: loss became NaN");
        assert_eq!(reason_in("one\n two \n\n"), "two");
        assert_eq!(reason_in("\n"), "it said nothing");
    }
}
