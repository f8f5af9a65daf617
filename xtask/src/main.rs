//! Project commands, started by `cargo xtask`.
//!
//! This program stays light, so that it answers at once: it builds the runner with the feature of the
//! backend asked for, hands it the arguments, and passes its exit code on.

mod bench;
mod bench_against;
mod bench_gate;
mod bench_pytorch;
mod bench_statistics;
mod bundle;
mod ci;
mod launches;
mod run;
mod vulkan;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Project commands: run experiments, check, benchmark, continuous integration.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    max_term_width = 100,
    after_help = "The first run compiles for 5 to 10 minutes; after that it starts at once.\n\n\
                  Examples:\n  cargo xtask run experiments/badnets.toml\n  \
                  cargo xtask run experiments/badnets.toml --quick --set poisoning.rate=0.05"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run experiments, go on with interrupted ones, show finished ones (--help lists the options)
    #[command(disable_help_flag = true)]
    Run(Passed),
    /// Check experiment files without running them
    #[command(disable_help_flag = true)]
    Check(Passed),
    /// Repair weights of your own with the defenses of a file
    #[command(disable_help_flag = true)]
    Defend(Passed),
    /// Score images with weights of your own and the detectors of a file
    #[command(disable_help_flag = true)]
    Detect(Passed),
    /// Look for the target of a backdoor in weights of your own with the inspectors of a file
    #[command(disable_help_flag = true)]
    Inspect(Passed),
    /// List the experiments there are and the runs of them
    #[command(disable_help_flag = true)]
    List(Passed),
    /// List, fetch and export images
    #[command(disable_help_flag = true)]
    Data(Passed),
    /// Remove what no result needs: unfinished runs, what was moved aside, twins that no run refers to
    #[command(disable_help_flag = true)]
    Clean(Passed),
    /// Show how runs or sweeps differ: configurations, and numbers seed by seed
    #[command(disable_help_flag = true)]
    Compare(Passed),
    /// Tell backdoored networks from clean ones by what their routers select in untouched images
    #[command(disable_help_flag = true)]
    Networks(Passed),
    /// Show the tables of finished runs and sweeps, and draw their figures and pages
    #[command(disable_help_flag = true)]
    Report(Passed),
    /// Collect results to be committed, and write RESULTS.md from them
    #[command(disable_help_flag = true)]
    Results(Passed),
    /// Draw what triggers do to images: original, triggered, ten times the difference
    #[command(disable_help_flag = true)]
    Triggers(Passed),
    /// Say what this machine offers to experiments, and what each lack means
    #[command(disable_help_flag = true)]
    Doctor(Passed),
    /// Check, time and train at the authors' scale within a time limit, the most valuable first
    #[command(disable_help_flag = true)]
    Study(Passed),
    /// Print what completes the command line of the program, as a bundle has it, in a shell
    #[command(disable_help_flag = true)]
    Completions(Passed),
    /// Print the program's manual page
    #[command(disable_help_flag = true)]
    Manual(Passed),
    /// Write program, experiments and images for a machine without network and Rust
    #[command(after_help = "Examples:\n  cargo xtask bundle --backend cuda --data cifar10 --split 60M\n  \
                      cargo xtask bundle --backend flex --data cifar10 --images 20000 --out /tmp/bundle")]
    Bundle(bundle::Arguments),
    /// Do what continuous integration does, cheapest first, until something fails
    #[command(after_help = "Examples:\n  cargo xtask ci\n  cargo xtask ci format clippy")]
    Ci {
        /// Only these steps
        #[arg(value_name = "STEP", value_parser = clap::builder::PossibleValuesParser::new(ci::step_names()))]
        steps: Vec<String>,

        /// The revision to compare the speed with [default: where this branch left main, on main the commit before]
        #[arg(long, value_name = "GITREF")]
        against: Option<String>,
    },
    /// Count what a step of training asks of a GPU, on a driver without one
    Launches(launches::Arguments),
    /// Run the benchmarks, or compare them with another revision's or with `PyTorch`
    #[command(after_help = "Examples:\n  cargo xtask bench routing -- --save-baseline before\n  \
                      cargo xtask bench --against main --filter convolution\n  cargo xtask bench --pytorch --widen 1 2")]
    Bench(bench::Arguments),
    /// Test what CUDA runs on Mesa's software Vulkan, which needs no GPU (docs/backends.md)
    Vulkan(vulkan::Arguments),
}

/// Arguments that are passed on as they are.
#[derive(Debug, Args)]
struct Passed {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<OsString>,
}

fn main() -> anyhow::Result<ExitCode> {
    let Arguments { command } = Arguments::parse();
    match command {
        Command::Run(passed) => run::run("run", &passed.arguments),
        Command::Check(passed) => run::run("check", &passed.arguments),
        Command::Defend(passed) => run::run("defend", &passed.arguments),
        Command::Detect(passed) => run::run("detect", &passed.arguments),
        Command::Inspect(passed) => run::run("inspect", &passed.arguments),
        Command::List(passed) => run::look("list", &passed.arguments),
        Command::Data(passed) => run::run("data", &passed.arguments),
        Command::Clean(passed) => run::look("clean", &passed.arguments),
        Command::Compare(passed) => run::look("compare", &passed.arguments),
        Command::Networks(passed) => run::look("networks", &passed.arguments),
        Command::Report(passed) => run::look("report", &passed.arguments),
        Command::Results(passed) => run::look("results", &passed.arguments),
        Command::Triggers(passed) => run::run("triggers", &passed.arguments),
        Command::Doctor(passed) => run::run("doctor", &passed.arguments),
        Command::Study(passed) => run::run("study", &passed.arguments),
        Command::Completions(passed) => run::run("completions", &passed.arguments),
        Command::Manual(passed) => run::run("manual", &passed.arguments),
        Command::Bundle(arguments) => bundle::bundle(&arguments),
        Command::Ci { steps, against } => ci::ci(&steps, against.as_deref()),
        Command::Bench(arguments) => bench::bench(arguments),
        Command::Launches(arguments) => launches::launches(&arguments),
        Command::Vulkan(arguments) => vulkan::vulkan(&arguments),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn options_of_the_runner_are_passed_on() {
        let line = ["cargo xtask", "run", "a.toml", "--quick", "--backend", "flex", "--help"];
        let Command::Run(passed) = Arguments::parse_from(line).command else { panic!("not run") };
        assert_eq!(passed.arguments, ["a.toml", "--quick", "--backend", "flex", "--help"]);
    }
}
