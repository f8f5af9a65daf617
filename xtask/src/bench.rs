use std::ffi::OsString;
use std::process::ExitCode;

use clap::Args;

use crate::bench_against::{Comparison, compare};
use crate::bench_statistics::FEWEST_ROUNDS;
use crate::run::{become_process, cargo, root};

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
    #[arg(long, value_name = "TEXT", requires = "against")]
    filter: Option<String>,

    /// Fail if the time, new to old, is above this with 97.5 % confidence
    #[arg(long, value_name = "RATIO", default_value_t = 1.15, value_parser = ratio)]
    threshold: f64,

    /// How often old and new take turns
    #[arg(long, value_name = "NUMBER", default_value_t = 8, value_parser = rounds)]
    rounds: usize,

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
    let Arguments { subjects, against, filter, threshold, rounds, criterion } = arguments;
    if let Some(revision) = against {
        return compare(&Comparison { revision, subjects, filter, threshold, rounds });
    }
    let mut command = cargo();
    command.current_dir(root()).args(["bench", "--package", "patchdoor-benches"]);
    for subject in subjects {
        command.arg("--bench").arg(subject);
    }
    command.arg("--").args(criterion);
    become_process(command)
}
