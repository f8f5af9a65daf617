use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;

use crate::bench_statistics::median;
use crate::run::{cargo, root};

/// What `cargo xtask bench --pytorch` takes.
#[derive(Debug, Args)]
pub(crate) struct PytorchArguments {
    /// Time the network in turns with the same one in `PyTorch` (installed from the net under `target/` unless there)
    #[arg(long, conflicts_with_all = ["subjects", "against", "gate", "criterion"])]
    pub(crate) pytorch: bool,

    /// Widen factors to time
    #[arg(long, value_name = "FACTOR", num_args = 1.., default_values_t = [1, 2, 4, 10], requires = "pytorch")]
    widen: Vec<usize>,

    /// Threads of either program [default: all cores]
    #[arg(long, value_name = "NUMBER", requires = "pytorch")]
    threads: Option<usize>,

    /// How often the programs take turns
    #[arg(long, value_name = "NUMBER", default_value_t = 3, requires = "pytorch", value_parser = turns)]
    turns: usize,

    /// A Python that has `PyTorch`, instead of the environment under `target/`
    #[arg(long, value_name = "PROGRAM", requires = "pytorch")]
    python: Option<PathBuf>,
}

fn turns(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(turns @ 1..=100) => Ok(turns),
        Ok(_) => Err("1 to 100 turns".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// What one process says of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Measured {
    /// Images per second of training steps.
    training: f64,
    /// Images per second of evaluation.
    evaluation: f64,
    /// Resident memory before there was a network, in MiB.
    before: f64,
    /// The most resident memory, in MiB.
    peak: f64,
}

impl Measured {
    /// Reads `.. training 735.0, evaluation 5900.0 images/s, memory 12 MiB before, 600 MiB at most`.
    fn read(line: &str) -> Option<Self> {
        let after = |word: &str| -> Option<f64> {
            let rest = &line[line.find(word)? + word.len()..];
            let rest = rest.trim_start();
            let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(rest.len());
            rest[..end].parse().ok()
        };
        Some(Self {
            training: after("training")?,
            evaluation: after("evaluation")?,
            before: after("memory")?,
            peak: after("before,")?,
        })
    }
}

/// A form in which the network is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Form {
    program: Program,
    /// Products in bf16; else in f32.
    bf16: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Ours,
    /// `last`: channels last in memory, else first; ours has one layout.
    Pytorch {
        compiled: bool,
        last: bool,
    },
}

impl Form {
    /// Both of ours, then those of `PyTorch`: eager and compiled, in f32 and with bf16 autocast, channels last and first.
    fn all() -> Vec<Self> {
        let ours = [false, true].map(|bf16| Self { program: Program::Ours, bf16 });
        let theirs = (0..8).map(|bits| Self {
            program: Program::Pytorch { compiled: bits & 2 > 0, last: bits & 4 == 0 },
            bf16: bits & 1 > 0,
        });
        ours.into_iter().chain(theirs).collect()
    }

    fn is_ours(self) -> bool {
        self.program == Program::Ours
    }

    fn precision(self) -> &'static str {
        if self.bf16 { "bf16" } else { "f32" }
    }

    fn name(self) -> String {
        match self.program {
            Program::Ours => format!("ours {}", self.precision()),
            Program::Pytorch { compiled, last } => {
                let way = if compiled { "compiled" } else { "eager" };
                format!("PyTorch {way} {}, channels {}", self.precision(), if last { "last" } else { "first" })
            }
        }
    }

    /// Whether a machine may lack what it takes: f32 runs everywhere, but bf16 of ours takes instructions, and compiling
    /// a compiler.
    fn may_fail(self) -> bool {
        match self.program {
            Program::Ours => self.bf16,
            Program::Pytorch { compiled, .. } => compiled,
        }
    }

    fn command(self, ours: &Path, python: &Path, threads: usize) -> Command {
        match self.program {
            Program::Ours => {
                let mut command = Command::new(ours);
                command.args(self.bf16.then_some("--bf16"));
                command
            }
            Program::Pytorch { compiled, last } => {
                let mut command = Command::new(python);
                command.arg(root().join("benches").join("pytorch").join("pmoe.py"));
                command.args(["--layout", if last { "last" } else { "first" }, "--threads"]).arg(threads.to_string());
                command.args(["--precision", self.precision()]).args(compiled.then_some("--compile"));
                command
            }
        }
    }
}

/// What a form measured, turn by turn; nothing if it cannot run here.
type Timings = Vec<(Form, Vec<Measured>)>;

/// Times our network and `PyTorch`'s in turns, each in all its forms, and prints them with ratios of the best ones.
pub(crate) fn compare(arguments: &PytorchArguments) -> anyhow::Result<ExitCode> {
    let threads = match arguments.threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism().context("cannot count the cores")?.get(),
    };
    let python = match &arguments.python {
        Some(python) => python.clone(),
        None => environment()?,
    };
    let ours = build()?;
    let mut report = heading(threads, arguments.turns);
    for &widen in &arguments.widen {
        let mut timings: Timings = Form::all().into_iter().map(|form| (form, Vec::new())).collect();
        for turn in 0..arguments.turns {
            say(&format!("widen factor {widen}, turn {} of {}", turn + 1, arguments.turns));
            if turn % 2 == 1 {
                timings.reverse();
            }
            for (form, measured) in &mut timings {
                if measured.len() < turn {
                    continue; // It could not run before.
                }
                let mut command = form.command(&ours, &python, threads);
                command.arg(widen.to_string());
                command.env("RAYON_NUM_THREADS", threads.to_string()).env("OMP_NUM_THREADS", threads.to_string());
                match run(command) {
                    Ok(timing) => measured.push(timing),
                    Err(error) if form.may_fail() => {
                        say(&format!("left out: {}: {error:#}", form.name()));
                        measured.clear();
                    }
                    Err(error) => return Err(error),
                }
            }
            if turn % 2 == 1 {
                timings.reverse();
            }
        }
        timings.retain(|(_, measured)| measured.len() == arguments.turns);
        write_rows(&mut report, widen, &timings);
    }
    // Nobody is left to be told that nobody listens.
    let _ = std::io::stdout().write_all(report.as_bytes());
    Ok(ExitCode::SUCCESS)
}

/// The Python of an environment with `PyTorch` under the target folder, made unless it is there.
fn environment() -> anyhow::Result<PathBuf> {
    let folder = root().join("target").join("pytorch");
    let python =
        if cfg!(windows) { folder.join("Scripts").join("python.exe") } else { folder.join("bin").join("python") };
    if has_pytorch(&python) {
        return Ok(python);
    }
    say(&format!(
        "PyTorch is not in {}: making a virtual environment there and installing it (about 200 MB to fetch from \
         download.pytorch.org; if that cannot be reached, 3 GB from PyPI). --python takes one that has it.",
        folder.display()
    ));
    let system = if cfg!(windows) { "python" } else { "python3" };
    let made = Command::new(system).args(["-m", "venv"]).arg(&folder).status();
    if !made.with_context(|| format!("cannot start {system}"))?.success() {
        bail!("{system} cannot make a virtual environment in {}", folder.display());
    }
    // The package index's own builds for Linux carry CUDA; PyTorch's index has those without.
    let cpu = ["--index-url", "https://download.pytorch.org/whl/cpu", "--extra-index-url", "https://pypi.org/simple"];
    for index in [&cpu[..], &[]] {
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "torch", "numpy"]).args(index);
        if pip.status().context("cannot start pip")?.success() && has_pytorch(&python) {
            return Ok(python);
        }
    }
    bail!("pip cannot install torch into {}", folder.display())
}

fn has_pytorch(python: &Path) -> bool {
    let tried = Command::new(python).args(["-c", "import torch"]).stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

/// The program that times our network.
fn build() -> anyhow::Result<PathBuf> {
    say("building our program");
    let output = cargo()
        .current_dir(root())
        .args(["build", "--release", "--workspace", "--example", "pmoe"])
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the example `pmoe` of benches does not build");
    }
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    lines.lines().find_map(built_example).context("cargo does not say where the example `pmoe` is")
}

fn built_example(line: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    let is_ours = message["target"]["name"] == "pmoe";
    message["executable"].as_str().filter(|_| is_ours).map(PathBuf::from)
}

fn run(mut command: Command) -> anyhow::Result<Measured> {
    let output = command.stderr(Stdio::inherit()).output().context("cannot start a program to time")?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().find_map(Measured::read) {
        Some(measured) if output.status.success() => Ok(measured),
        _ => bail!("{command:?} gave no timing:\n{text}"),
    }
}

fn heading(threads: usize, turns: usize) -> String {
    format!(
        "Images per second on {threads} threads, batch 128, medians of {turns} turns, and MiB that the network adds at most; \
         in brackets MiB before there is one.\nRatios are ours to PyTorch's best form, within a turn: median, least and \
         greatest.\n"
    )
}

/// The middle of a form's values.
fn middle(measured: &[Measured], value: fn(&Measured) -> f64) -> f64 {
    let mut values: Vec<f64> = measured.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    median(&values)
}

fn write_rows(report: &mut String, widen: usize, timings: &Timings) {
    type Value = fn(&Measured) -> f64;
    let rates: [(&str, Value); 2] =
        [("training", |measured| measured.training), ("evaluation", |measured| measured.evaluation)];
    // Writing to a string cannot fail.
    let _ = writeln!(report, "\nwiden {widen:<34} {:>9} {:>11} {:>13}", "training", "evaluation", "memory");
    for (form, measured) in timings {
        let memory = format!(
            "{:.0} ({:.0})",
            middle(measured, |measured| measured.peak - measured.before),
            middle(measured, |measured| measured.before)
        );
        let [training, evaluation] = rates.map(|(_, value)| middle(measured, value));
        let _ = writeln!(report, "{:<40} {training:>9.1} {evaluation:>11.1} {memory:>13}", form.name());
    }
    for (what, in_f32) in [("f32", true), ("best form", false)] {
        for (name, value) in rates {
            let best = |ours: bool| {
                let those = timings.iter().filter(|(form, _)| form.is_ours() == ours && !(in_f32 && form.bf16));
                those.max_by(|(_, left), (_, right)| middle(left, value).total_cmp(&middle(right, value)))
            };
            let (Some((our_form, ours)), Some((their_form, theirs))) = (best(true), best(false)) else { continue };
            let mut ratios: Vec<f64> =
                ours.iter().zip(theirs).map(|(ours, theirs)| value(ours) / value(theirs)).collect();
            ratios.sort_by(f64::total_cmp);
            let _ = writeln!(
                report,
                "{what}, {name}: {:.2} ({:.2} to {:.2}), {} to {}",
                median(&ratios),
                ratios[0],
                ratios[ratios.len() - 1],
                our_form.name(),
                their_form.name(),
            );
        }
    }
}

fn say(line: &str) {
    // Nobody is left to be told that nobody listens.
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(training: f64, evaluation: f64, peak: f64) -> Measured {
        Measured { training, evaluation, before: 10.0, peak }
    }

    #[test]
    fn what_the_programs_print_is_read() {
        let line = "widen  1: training  2165.0, evaluation  8010.5 images/s, memory 12 MiB before, 600 MiB at most";
        let expected = Measured { training: 2165.0, evaluation: 8010.5, before: 12.0, peak: 600.0 };
        assert_eq!(Measured::read(line), Some(expected));
        assert_eq!(Measured::read("widen  1: training  2165.0 images/s"), None);
    }

    #[test]
    fn every_form_is_timed_once() {
        let names: Vec<String> = Form::all().into_iter().map(Form::name).collect();
        assert_eq!(names.len(), 10);
        assert_eq!(names[..3], ["ours f32", "ours bf16", "PyTorch eager f32, channels last"]);
        assert!(names.contains(&"PyTorch compiled bf16, channels first".to_owned()));
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
    }

    #[test]
    fn ratios_are_taken_within_a_turn_and_to_the_best_form() {
        let ours = |bf16| Form { program: Program::Ours, bf16 };
        let pytorch = |bf16, compiled, last| Form { program: Program::Pytorch { compiled, last }, bf16 };
        let timings = vec![
            (ours(false), vec![measured(200.0, 900.0, 110.0), measured(100.0, 500.0, 110.0)]),
            (ours(true), vec![measured(300.0, 900.0, 110.0), measured(200.0, 600.0, 110.0)]),
            (pytorch(false, false, true), vec![measured(100.0, 300.0, 210.0), measured(50.0, 200.0, 210.0)]),
            (pytorch(false, true, false), vec![measured(90.0, 600.0, 260.0), measured(40.0, 250.0, 260.0)]),
            (pytorch(true, false, true), vec![measured(150.0, 100.0, 160.0), measured(160.0, 100.0, 160.0)]),
        ];
        let mut report = String::new();
        write_rows(&mut report, 4, &timings);
        let lines: Vec<&str> = report.lines().collect();
        assert_eq!(lines[2], "ours f32                                     150.0       700.0      100 (10)");
        let ratios = [
            "f32, training: 2.00 (2.00 to 2.00), ours f32 to PyTorch eager f32, channels last",
            "f32, evaluation: 1.75 (1.50 to 2.00), ours f32 to PyTorch compiled f32, channels first",
            "best form, training: 1.62 (1.25 to 2.00), ours bf16 to PyTorch eager bf16, channels last",
            "best form, evaluation: 1.95 (1.50 to 2.40), ours bf16 to PyTorch compiled f32, channels first",
        ];
        assert_eq!(lines[lines.len() - 4..], ratios);
    }
}
