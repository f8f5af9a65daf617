use std::ffi::OsString;
use std::process::ExitCode;

use clap::Args;

use crate::bench_against::{Comparison, Selection, compare};
use crate::bench_gate;
use crate::bench_pytorch::{self, PytorchArguments};
use crate::bench_statistics::FEWEST_ROUNDS;
use crate::run::{become_process, cargo, root};

/// Ratio of times over which a comparison fails.
const THRESHOLD: f64 = 1.15;

/// What `cargo xtask bench` takes.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only these subjects, the files in `benches/`: routing, stamping, ...
    #[arg(value_name = "SUBJECT")]
    subjects: Vec<String>,

    /// Compare with this commit, branch or tag, in turns, and fail if a benchmark has become slower
    #[arg(long, value_name = "GITREF", conflicts_with = "criterion")]
    against: Option<String>,

    /// Compare only benchmarks whose name contains this
    #[arg(long, value_name = "TEXT", requires = "against", conflicts_with = "gate")]
    filter: Option<String>,

    /// Compare the few benchmarks that stand for all with the previous main, as continuous integration does
    #[arg(long, conflicts_with_all = ["subjects", "criterion"])]
    gate: bool,

    /// Fail if the time, new to old, is above this with 97.5 % confidence [default: 1.15, with --gate 1.25]
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    threshold: Option<f64>,

    /// How often old and new take turns
    #[arg(long, value_name = "NUMBER", default_value_t = 8, value_parser = rounds)]
    rounds: usize,

    #[command(flatten)]
    pytorch: PytorchArguments,

    /// Options of criterion, such as `--save-baseline before`
    #[arg(last = true, value_name = "CRITERION OPTIONS")]
    criterion: Vec<OsString>,
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse::<f64>().map_err(|error| error.to_string())?;
    if ratio >= 1.0 && ratio.is_finite() { Ok(ratio) } else { Err("a ratio is at least 1".to_owned()) }
}

fn rounds(text: &str) -> Result<usize, String> {
    let rounds = text.parse::<usize>().map_err(|error| error.to_string())?;
    if (FEWEST_ROUNDS..=100).contains(&rounds) {
        Ok(rounds)
    } else {
        Err(format!("{FEWEST_ROUNDS} to 100 rounds: fewer give no interval"))
    }
}

/// Runs the benchmarks, or compares them with another revision's.
pub(crate) fn bench(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { subjects, against, filter, gate, threshold, rounds, pytorch, criterion } = arguments;
    if pytorch.pytorch {
        return bench_pytorch::compare(&pytorch);
    }
    if gate {
        return bench_gate::run(against.as_deref(), threshold.unwrap_or(bench_gate::THRESHOLD), rounds);
    }
    if let Some(revision) = against {
        let selection = filter.map_or(Selection::All, Selection::Containing);
        let threshold = threshold.unwrap_or(THRESHOLD);
        return compare(&Comparison { revision, subjects, selection, threshold, rounds });
    }
    let mut command = cargo();
    command.current_dir(root()).args(["bench", "--package", "patchdoor-benches"]);
    for subject in subjects {
        command.arg("--bench").arg(subject);
    }
    command.arg("--").args(criterion);
    become_process(command)
}
