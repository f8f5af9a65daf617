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

/// Times our network and `PyTorch`'s in turns and prints both with their ratios.
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
    let script = root().join("benches").join("pytorch").join("pmoe.py");
    let mut report = heading(threads, arguments.turns);
    for &widen in &arguments.widen {
        // Ours, channels last, channels first.
        let mut measured: [Vec<Measured>; 3] = Default::default();
        for turn in 0..arguments.turns {
            say(&format!("widen factor {widen}, turn {} of {}", turn + 1, arguments.turns));
            let mut order = [0, 1, 2];
            if turn % 2 == 1 {
                order.reverse();
            }
            for program in order {
                let mut command = if program == 0 { Command::new(&ours) } else { Command::new(&python) };
                if program > 0 {
                    let layout = if program == 1 { "last" } else { "first" };
                    command.arg(&script).args(["--layout", layout, "--threads"]).arg(threads.to_string());
                }
                command.arg(widen.to_string());
                command.env("RAYON_NUM_THREADS", threads.to_string()).env("OMP_NUM_THREADS", threads.to_string());
                measured[program].push(run(command)?);
            }
        }
        write_rows(&mut report, widen, &measured);
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
        "Images per second on {threads} threads, batch 128, medians of {turns} turns; ratios ours to PyTorch, least to \
         greatest of a turn.\nPyTorch in the better of its two layouts. Memory: MiB before there is a network + what the \
         network adds at most.\n\n{:<6} {:<11} {:>8} {:>8}  {:<22} ratio\n",
        "widen", "", "ours", "PyTorch", "layout"
    )
}

fn write_rows(report: &mut String, widen: usize, [ours, last, first]: &[Vec<Measured>; 3]) {
    type Value = fn(&Measured) -> f64;
    let middle = |side: &[Measured], value: Value| {
        let mut values: Vec<f64> = side.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        median(&values)
    };
    let rates: [(&str, Value); 2] =
        [("training", |measured| measured.training), ("evaluation", |measured| measured.evaluation)];
    for (name, value) in rates {
        let (layout, best) = if middle(first, value) > middle(last, value) {
            ("channels first", first)
        } else {
            ("channels last", last)
        };
        let mut ratios: Vec<f64> = ours.iter().zip(best).map(|(ours, theirs)| value(ours) / value(theirs)).collect();
        ratios.sort_by(f64::total_cmp);
        // Writing to a string cannot fail.
        let _ = writeln!(
            report,
            "{widen:<6} {name:<11} {:>8.1} {:>8.1}  {layout:<22} {:.2}  ({:.2} to {:.2})",
            middle(ours, value),
            middle(best, value),
            median(&ratios),
            ratios[0],
            ratios[ratios.len() - 1],
        );
    }
    let added: Value = |measured| measured.peak - measured.before;
    let before: Value = |measured| measured.before;
    let (layout, theirs) =
        if middle(first, added) < middle(last, added) { ("channels first", first) } else { ("channels last", last) };
    let memory = |side: &[Measured]| format!("{:.0} + {:.0}", middle(side, before), middle(side, added));
    let _ = writeln!(
        report,
        "{widen:<6} {:<11} {:>8} {:>8}  {layout:<22} {:.2}",
        "memory",
        memory(ours),
        memory(theirs),
        middle(ours, added) / middle(theirs, added)
    );
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
    fn ratios_are_taken_within_a_turn_and_to_the_better_layout() {
        let ours = vec![measured(200.0, 900.0, 110.0), measured(100.0, 500.0, 110.0)];
        let last = vec![measured(100.0, 300.0, 210.0), measured(50.0, 200.0, 210.0)];
        let first = vec![measured(90.0, 600.0, 260.0), measured(40.0, 250.0, 260.0)];
        let mut report = String::new();
        write_rows(&mut report, 4, &[ours, last, first]);
        let lines: Vec<&str> = report.lines().collect();
        assert_eq!(lines[0], "4      training       150.0     75.0  channels last          2.00  (2.00 to 2.00)");
        assert_eq!(lines[1], "4      evaluation     700.0    425.0  channels first         1.75  (1.50 to 2.00)");
        assert_eq!(lines[2], "4      memory      10 + 100 10 + 200  channels last          0.50");
    }
}
