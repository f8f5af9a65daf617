#![allow(
    clippy::doc_markdown,
    rustdoc::broken_intra_doc_links,
    reason = "the comments are the help text, which is read as it is"
)]

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use patchdoor_cli::{
    CleanArguments, CompareArguments, ListArguments, NetworksArguments, ReportArguments, ResultsArguments,
};
use patchdoor_experiment::BackendChoice;
use patchdoor_plan::Precision;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Trains patch-level mixtures of experts with a backdoor, and measures what it does.
#[derive(Debug, Parser)]
#[command(
    name = "patchdoor",
    bin_name = "cargo xtask",
    version,
    styles = STYLES,
    max_term_width = 100,
    after_help = "Examples:\n  cargo xtask run experiments/badnets.toml\n  \
                  cargo xtask run experiments/badnets.toml --quick --set poisoning.rate=0.05"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// End when standard input does, and after this epoch when a line comes: what a study does with its children
    #[arg(long, global = true, hide = true)]
    pub(crate) tied: bool,

    /// Say more on standard error: runs, -vv epochs, -vvv batches (PATCHDOOR_LOG takes a filter)
    #[arg(short, long, global = true, display_order = 100, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run experiments, go on with interrupted ones, show finished ones
    Run(RunArguments),
    /// Check experiment files without running them
    Check(CheckArguments),
    /// Repair weights of your own with the defenses of a file
    #[command(
        after_help = "FILE has a dataset and [[defenses]] tables, as an experiment has (docs/defenses.md), and may be one; what it \
                      says of training is left aside. Repaired weights and results go to a folder in DIR. The same command shows \
                      finished ones and goes on with interrupted ones.\n\n\
                      Exit codes: 0 done, 1 a defense failed, 2 unusable weights, file or images, 130 interrupted.\n\n\
                      Examples:\n  cargo xtask defend --weights mine.safetensors --defense mine.toml\n  \
                      cargo xtask defend --weights mine.safetensors --model network.toml --defense mine.toml"
    )]
    Defend(OwnWeightsArguments),
    /// Score images with weights of your own and the detectors of a file
    #[command(
        after_help = "Every detector writes a CSV file: image, score, flagged. Thresholds come from validation images, which \
                      data.validation-fraction holds out of the training split.\n\n\
                      Examples:\n  cargo xtask detect --weights mine.safetensors --defense detectors.toml\n  \
                      cargo xtask detect --weights mine.safetensors --defense detectors.toml --images incoming"
    )]
    Detect(DetectArguments),
    /// Look for the target of a backdoor in weights of your own with the inspectors of a file
    #[command(after_help = "Prints the statistic of every class, and which classes are flagged.\n\n\
                      Examples:\n  cargo xtask inspect --weights mine.safetensors --defense inspectors.toml\n  \
                      cargo xtask inspect --weights mine.safetensors --defense inspectors.toml --json")]
    Inspect(OwnWeightsArguments),
    /// List the experiments there are and the runs of them
    List(ListArguments),
    /// List, fetch and export images
    #[command(
        subcommand_required = true,
        arg_required_else_help = true,
        after_help = "Examples:\n  cargo xtask data list\n  cargo xtask data fetch cifar10"
    )]
    Data(DataArguments),
    /// Remove what no result needs: unfinished runs, what was moved aside, twins that no run refers to
    Clean(CleanArguments),
    /// Show how runs or sweeps differ: configurations, and numbers seed by seed
    Compare(CompareArguments),
    /// Tell backdoored networks from clean ones by what their routers select in untouched images
    Networks(NetworksArguments),
    /// Show the tables of finished runs and sweeps, and draw their figures and pages
    Report(ReportArguments),
    /// Collect results to be committed, and write RESULTS.md from them
    Results(ResultsArguments),
    /// Draw what triggers do to images: original, triggered, ten times the difference
    Triggers(TriggersArguments),
    /// Say what this machine offers to experiments, and what each lack means
    Doctor(DoctorArguments),
    /// Measure at the authors' scale within a time limit, the most valuable first
    #[command(
        subcommand_required = true,
        arg_required_else_help = true,
        after_help = "Examples:\n  cargo xtask study paper --minutes 8 --backend cuda\n  \
                      cargo xtask study speed --widen 1 --seconds 10"
    )]
    Study(StudyArguments),
    /// Print what completes this program's command line in a shell
    #[command(
        after_help = "Examples:\n  patchdoor completions bash > ~/.local/share/bash-completion/completions/patchdoor\n  \
                      patchdoor completions fish > ~/.config/fish/completions/patchdoor.fish"
    )]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page
    #[command(
        after_help = "Examples:\n  patchdoor manual > ~/.local/share/man/man1/patchdoor.1\n  patchdoor manual | man -l -"
    )]
    Manual,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Results: a table on standard output, and a folder in DIR for each experiment, named for it and for \
                  what it depends on. The same command shows a finished run and goes on with an interrupted one. A file \
                  with [sweep] is a run for each point and seed, and a table of all (docs/sweeps.md).\n\n\
                  Exit codes: 0 done, 1 a run failed, 2 unusable command line or configuration, 130 interrupted.\n\n\
                  Examples:\n  cargo xtask run experiments/badnets.toml\n  \
                  cargo xtask run experiments/badnets.toml --quick --set poisoning.rate=0.05"
)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct RunArguments {
    /// Experiment files
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,

    /// What to compute with
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    pub(crate) backend: BackendChoice,

    /// Compute precision = "bf16" also on a processor without AVX512-BF16: the same numbers, far more slowly
    #[arg(long)]
    pub(crate) emulate_bf16: bool,

    #[command(flatten)]
    pub(crate) changes: Changes,

    /// Print what would run, as a configuration with every default or as the points of a sweep, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Where results go
    #[arg(long, value_name = "DIR", default_value = "runs")]
    pub(crate) out: PathBuf,

    /// Print the results as one JSON document
    #[arg(long)]
    pub(crate) json: bool,

    /// Compute anew; an earlier run is moved aside, not lost. Clean twins are kept: they lie in DIR/twins
    #[arg(long)]
    pub(crate) fresh: bool,

    /// Compute anew what failed, seeds and defenses, and nothing else; what they left is moved aside
    #[arg(long)]
    pub(crate) retry_failed: bool,

    #[command(flatten)]
    pub(crate) images: ImageArguments,
}

/// What is changed about experiment files.
#[derive(Debug, Args)]
pub(crate) struct Changes {
    /// Other seeds than the file's, as in 0,1,2
    #[arg(long, value_delimiter = ',', value_name = "SEEDS")]
    pub(crate) seeds: Option<Vec<u64>>,

    /// Change a value of the file, as in training.epochs=5; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,

    /// Take seconds instead of minutes: few images, two epochs, a thin network, one seed
    #[arg(long)]
    pub(crate) quick: bool,
}

/// Where images come from.
#[derive(Debug, Args)]
pub(crate) struct ImageArguments {
    /// Where images are looked for first; then in PATCHDOOR_DATA, then in data/
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,

    /// Do not fetch missing images
    #[arg(long)]
    pub(crate) offline: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cargo xtask check\n  cargo xtask check experiments/badnets.toml --set poisoning.rate=2"
)]
pub(crate) struct CheckArguments {
    /// Experiment files; all of experiments/ if none is given
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,

    #[command(flatten)]
    pub(crate) changes: Changes,
}

/// Weights that need not come from a run, and what to do with them.
#[derive(Debug, Args)]
pub(crate) struct OwnWeightsArguments {
    /// The classifier's weights, a safetensors file; those of a run say themselves what network they belong to
    #[arg(long, value_name = "WEIGHTS")]
    pub(crate) weights: PathBuf,

    /// A file with dataset and [[defenses]]; its [trigger], if it has one, measures attack success and is shown to no defense
    #[arg(long, value_name = "FILE")]
    pub(crate) defense: PathBuf,

    /// A file whose [model] table describes the network, for weights that do not say it [default: the table of --defense]
    #[arg(long, value_name = "FILE")]
    pub(crate) model: Option<PathBuf>,

    /// Change a value of the file of defenses, as in data.test-images=500; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,

    /// What to compute with
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    pub(crate) backend: BackendChoice,

    /// Where results go
    #[arg(long, value_name = "DIR", default_value = "runs/defended")]
    pub(crate) out: PathBuf,

    /// Print the results as one JSON document
    #[arg(long)]
    pub(crate) json: bool,

    /// Compute anew; earlier results are moved aside, not lost
    #[arg(long)]
    pub(crate) fresh: bool,

    #[command(flatten)]
    pub(crate) source: ImageArguments,
}

#[derive(Debug, Args)]
pub(crate) struct DetectArguments {
    #[command(flatten)]
    pub(crate) own: OwnWeightsArguments,

    /// A folder of pictures to score besides the test images; folders in it are looked through
    #[arg(long, value_name = "FOLDER")]
    pub(crate) images: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "A sheet has a row for each trigger, each point of a sweep with its own. Nothing is overwritten: a second \
                  sheet gets a number.\n\n\
                  Examples:\n  cargo xtask triggers experiments/badnets.toml\n  \
                  cargo xtask triggers experiments/sweep.toml --out sheets --images 4"
)]
pub(crate) struct TriggersArguments {
    /// Experiment files
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,

    /// Where sheets go
    #[arg(long, value_name = "DIR", default_value = "runs/triggers")]
    pub(crate) out: PathBuf,

    /// How many test images
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub(crate) images: u16,

    /// Change a value of the file, as in trigger.square.size=2; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,

    #[command(flatten)]
    pub(crate) source: ImageArguments,
}

#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0, also where something is missing; 2, the backend asked for cannot be used.\n\n\
                  Examples:\n  cargo xtask doctor\n  cargo xtask doctor --backend cuda --json")]
pub(crate) struct DoctorArguments {
    /// What shall be computed with
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    pub(crate) backend: BackendChoice,

    /// Where images are looked for first; then in PATCHDOOR_DATA, then in data/
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,

    /// Where results would go
    #[arg(long, value_name = "DIR", default_value = "runs")]
    pub(crate) out: PathBuf,

    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StudyArguments {
    #[command(subcommand)]
    pub(crate) command: StudyCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StudyCommand {
    /// Check, time and train at the authors' scale, step by step, and end within a time limit
    #[command(
        after_help = "Every step has a time limit of its own; its results are written when it ends. The same command \
                      goes on with what is not done. What is worth keeping is in DIR/keep, in less than 16 MiB: \
                      report.md there says what ran, what did not, and why.\n\n\
                      Exit codes: 0 nothing failed, 1 a step failed, 2 unusable command line or machine, 130 interrupted.\n\n\
                      Examples:\n  cargo xtask study paper --minutes 8 --backend cuda\n  \
                      cargo xtask study paper --minutes 3 --tiny --backend flex"
    )]
    Paper(PaperArguments),
    /// Compare every operation and its gradients with the CPU's
    #[command(
        after_help = "Examples:\n  cargo xtask study operations\n  cargo xtask study operations --backend cuda --json"
    )]
    Operations {
        /// What to compute with
        #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
        backend: BackendChoice,
        /// What the operands of products are rounded to; the CPU has f32 and bf16
        #[arg(long, value_name = "PRECISION", default_value = "f32", value_parser = precision)]
        precision: Precision,
        /// Relative distance up to which they agree [default: f32 1e-5, tf32 3e-3, bf16 3e-2]
        #[arg(long, value_name = "NUMBER")]
        tolerance: Option<f64>,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Time training steps of the paper's network
    #[command(after_help = "Examples:\n  cargo xtask study speed --widen 1 --seconds 10\n  \
                      cargo xtask study speed --widen 10 --backend cuda --json")]
    Speed {
        /// What to compute with
        #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
        backend: BackendChoice,
        /// Widen factor
        #[arg(long, value_name = "FACTOR", default_value_t = 10)]
        widen: usize,
        /// What the operands of products are rounded to; the CPU has f32 and bf16
        #[arg(long, value_name = "PRECISION", default_value = "f32", value_parser = precision)]
        precision: Precision,
        /// Images of a step
        #[arg(long, value_name = "N", default_value_t = 128, value_parser = positive)]
        batch: usize,
        /// Seeds trained step by step together
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
        seeds: usize,
        /// Steps of a timed stretch
        #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive)]
        steps: usize,
        /// How long to go on
        #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = seconds)]
        seconds: f64,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct PaperArguments {
    /// Minutes after which it has ended, whatever is done by then
    #[arg(long, value_name = "M", value_parser = minutes)]
    pub(crate) minutes: f64,

    /// What to compute with
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    pub(crate) backend: BackendChoice,

    /// What trainings round the operands of products to; the CPU has f32 and bf16 [default: tf32 on a GPU]
    #[arg(long, value_name = "PRECISION", value_parser = precision)]
    pub(crate) precision: Option<Precision>,

    /// Where images are looked for first; then in PATCHDOOR_DATA, then in data/
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,

    /// Where everything goes
    #[arg(long, value_name = "DIR", default_value = "study")]
    pub(crate) out: PathBuf,

    /// A Python with PyTorch to compare with
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    pub(crate) python: PathBuf,

    /// The same steps with few images, a thin network and short timings: a rehearsal whose numbers mean nothing
    #[arg(long)]
    pub(crate) tiny: bool,
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(number @ 1..=65536) => Ok(number),
        Ok(_) => Err("1 to 65536".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn between(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let number = text.parse::<f64>().map_err(|error| error.to_string())?;
    if (least..=most).contains(&number) { Ok(number) } else { Err(format!("{least} to {most}")) }
}

fn precision(text: &str) -> Result<Precision, String> {
    let all = [Precision::F32, Precision::Tf32, Precision::Bf16];
    all.into_iter().find(|precision| precision.name() == text).ok_or_else(|| "f32, tf32 or bf16".to_owned())
}

fn minutes(text: &str) -> Result<f64, String> {
    between(text, 0.1, 100_000.0)
}

fn seconds(text: &str) -> Result<f64, String> {
    between(text, 0.0, 100_000.0)
}

#[derive(Debug, Args)]
pub(crate) struct DataArguments {
    #[command(subcommand)]
    pub(crate) command: DataCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Say which data sets are there, verify them, and say how to get the others
    #[command(after_help = "Examples:\n  cargo xtask data list\n  cargo xtask data list --data /mnt/images")]
    List {
        /// Where images are looked for first; then in PATCHDOOR_DATA, then in data/
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
    },
    /// Download data sets, verify their checksums, unpack them
    #[command(
        after_help = "Examples:\n  cargo xtask data fetch cifar10\n  cargo xtask data fetch mnist fashion-mnist --data /mnt/images"
    )]
    Fetch {
        /// Data sets
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Where they go [default: PATCHDOOR_DATA, then data/]
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
    },
    /// Write the poisoned training images of an experiment to files, for other tools
    #[command(after_help = "Examples:\n  cargo xtask data export experiments/badnets.toml --to poisoned\n  \
                      cargo xtask data export experiments/badnets.toml --to poisoned --format cifar10 --seed 1")]
    Export(ExportArguments),
    /// Pack a data set into one small file without loss, to carry it to another machine
    #[command(after_help = "Examples:\n  cargo xtask data pack cifar10 --to cifar10.packed\n  \
                      cargo xtask data pack cifar10 --to cifar10.packed --images 20000")]
    Pack {
        /// Data set
        #[arg(value_name = "NAME")]
        name: String,
        /// File to write; it must not exist
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        /// At most so many training images [default: all]
        #[arg(long, value_name = "N")]
        images: Option<usize>,
        /// Where images are looked for first; then in PATCHDOOR_DATA, then in data/
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
    },
    /// Restore a packed data set to the byte
    #[command(after_help = "Examples:\n  cargo xtask data unpack cifar10.packed\n  \
                      cargo xtask data unpack cifar10.packed --data /mnt/images")]
    Unpack {
        /// What `pack` wrote
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Where it goes [default: PATCHDOOR_DATA, then data/]
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ExportArguments {
    /// Experiment file
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// Folder to make; it must not exist
    #[arg(long, value_name = "DIR")]
    pub(crate) to: PathBuf,

    /// How images are written
    #[arg(long, value_enum, default_value_t = ExportFormat::Png)]
    pub(crate) format: ExportFormat,

    /// The seed whose images are written [default: the experiment's first]
    #[arg(long)]
    pub(crate) seed: Option<u64>,

    /// Change a value of the file, as in poisoning.rate=0.05; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,

    #[command(flatten)]
    pub(crate) images: ImageArguments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// A folder of PNG files for each class, and a CSV file of those poisoned
    Png,
    /// CIFAR-10 binary records
    Cifar10,
}

impl From<ExportFormat> for patchdoor_data::export::ExportFormat {
    fn from(format: ExportFormat) -> Self {
        match format {
            ExportFormat::Png => Self::PngFolder,
            ExportFormat::Cifar10 => Self::Cifar10Binary,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn help(path: &[&str]) -> String {
        let mut command = Arguments::command().term_width(100);
        command.build();
        let mut command = &mut command;
        for name in path {
            command = command.find_subcommand_mut(name).expect("the subcommand exists");
        }
        command.render_long_help().to_string()
    }

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn help_ends_with_two_examples() {
        let paths: [&[&str]; 23] = [
            &[],
            &["run"],
            &["check"],
            &["list"],
            &["data"],
            &["data", "fetch"],
            &["data", "export"],
            &["report"],
            &["results"],
            &["triggers"],
            &["doctor"],
            &["study"],
            &["study", "paper"],
            &["study", "operations"],
            &["study", "speed"],
            &["data", "pack"],
            &["data", "unpack"],
            &["clean"],
            &["completions"],
            &["manual"],
            &["defend"],
            &["detect"],
            &["inspect"],
        ];
        for path in paths {
            let text = help(path);
            let (_, examples) = text.split_once("Examples:\n").expect("help has examples");
            assert_eq!(examples.trim_end().lines().count(), 2, "{path:?}");
        }
    }

    #[test]
    fn help_of_the_program() {
        insta::assert_snapshot!(help(&[]));
    }

    #[test]
    fn help_of_run() {
        insta::assert_snapshot!(help(&["run"]));
    }

    #[test]
    fn help_of_check() {
        insta::assert_snapshot!(help(&["check"]));
    }

    #[test]
    fn help_of_defend() {
        insta::assert_snapshot!(help(&["defend"]));
    }

    #[test]
    fn help_of_detect() {
        insta::assert_snapshot!(help(&["detect"]));
    }

    #[test]
    fn help_of_inspect() {
        insta::assert_snapshot!(help(&["inspect"]));
    }

    #[test]
    fn help_of_data() {
        insta::assert_snapshot!(help(&["data"]));
    }
}
