use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

/// Help texts of the runner, as its tests keep them, so that asking for help compiles nothing.
const HELP: [(&str, &str); 6] = [
    ("run", include_str!("../../crates/cli/src/patchdoor/snapshots/patchdoor__arguments__tests__help_of_run.snap")),
    ("check", include_str!("../../crates/cli/src/patchdoor/snapshots/patchdoor__arguments__tests__help_of_check.snap")),
    ("data", include_str!("../../crates/cli/src/patchdoor/snapshots/patchdoor__arguments__tests__help_of_data.snap")),
    (
        "defend",
        include_str!("../../crates/cli/src/patchdoor/snapshots/patchdoor__arguments__tests__help_of_defend.snap"),
    ),
    (
        "detect",
        include_str!("../../crates/cli/src/patchdoor/snapshots/patchdoor__arguments__tests__help_of_detect.snap"),
    ),
    (
        "inspect",
        include_str!("../../crates/cli/src/patchdoor/snapshots/patchdoor__arguments__tests__help_of_inspect.snap"),
    ),
];

/// Builds the runner and becomes it.
pub(crate) fn run(command: &str, arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    if arguments.first().is_some_and(|first| first == "--help" || first == "-h")
        && let Some((_, snapshot)) = HELP.iter().find(|(name, _)| *name == command)
    {
        let text = snapshot.splitn(3, "---\n").last().unwrap_or(snapshot);
        // Nobody is left to be told that nobody listens.
        let _ = std::io::stdout().write_all(text.as_bytes());
        return Ok(ExitCode::SUCCESS);
    }
    let feature = match command {
        "run" | "study" | "defend" | "detect" | "inspect" => usable_feature(arguments),
        // It says itself what a GPU lacks; with one, only a build with CUDA can look at it closely.
        "doctor" => feature(arguments).map(|feature| feature.filter(|&name| name != "cuda" || has_nvidia_driver())),
        _ => Ok(None),
    };
    let feature = match feature {
        Ok(feature) => feature,
        Err(problem) => {
            let _ = writeln!(std::io::stderr(), "error: {problem}");
            return Ok(ExitCode::from(2));
        }
    };
    if let Some(announcement) = announcement(feature) {
        let _ = writeln!(std::io::stderr(), "{announcement}");
    }
    let built = runner("build", feature).status().context("cannot start cargo")?;
    if !built.success() {
        return Ok(exit_code(built.code()));
    }
    let mut runner = runner("run", feature);
    runner.arg("--quiet").arg("--").arg(command).args(arguments);
    become_process(runner)
}

/// What a first build is about to do, and for how long; nothing where there is a program already.
fn announcement(feature: Option<&str>) -> Option<String> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let program = target.join("release").join(format!("patchdoor{}", std::env::consts::EXE_SUFFIX));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (!program.exists()).then(|| first_build(feature, cores))
}

/// CPU minutes that a first build takes on a server's core, without and with CUDA.
const BUILD: [f64; 2] = [10.0, 17.0];
/// Cores that it uses to the full, at most: crates wait for each other.
const MOST_CORES: usize = 6;

fn first_build(feature: Option<&str>, cores: usize) -> String {
    let minutes = BUILD[usize::from(feature == Some("cuda"))] / cores.clamp(1, MOST_CORES) as f64;
    let minutes = minutes.ceil();
    format!(
        "first Patchdoor is compiled, once: about {minutes:.0} minute{} on {cores} core{}; then the command starts",
        if minutes > 1.0 { "s" } else { "" },
        if cores > 1 { "s" } else { "" },
    )
}

/// Builds the program that only looks at results, which takes seconds, and becomes it.
pub(crate) fn look(command: &str, arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    let mut cargo = cargo();
    cargo.arg("run").arg("--manifest-path").arg(root().join("Cargo.toml"));
    cargo.args(["--release", "--package", "patchdoor-cli", "--no-default-features", "--bin", "patchdoor-report"]);
    if exports_parquet(arguments) {
        cargo.args(["--features", "parquet"]);
    }
    cargo.arg("--quiet").arg("--").arg(command).args(arguments);
    become_process(cargo)
}

/// Whether a table is asked for in the form whose library nobody else compiles.
fn exports_parquet(arguments: &[OsString]) -> bool {
    let is_pair = |pair: &[OsString]| pair[0] == "--export" && pair[1] == "parquet";
    arguments.iter().any(|argument| argument == "--export=parquet") || arguments.windows(2).any(is_pair)
}

/// Cargo on this workspace, wherever it is called from.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Cargo describes this package to this program. Inherited, that would look like a change to build scripts that ask to
    // be run again when it changes (ring's does), and everything above them would be built again.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&*name);
        }
    }
    command
}

/// The folder of the workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies in the workspace").to_owned()
}

/// `cargo build` or `cargo run` for the runner.
fn runner(verb: &str, feature: Option<&str>) -> Command {
    let mut command = cargo();
    command.arg(verb).arg("--manifest-path").arg(root().join("Cargo.toml"));
    command.args(["--release", "--package", "patchdoor-cli", "--bin", "patchdoor"]);
    if let Some(feature) = feature {
        command.args(["--features", feature]);
    }
    command
}

/// The Cargo feature for the backend asked for; flex is always built.
fn feature(arguments: &[OsString]) -> anyhow::Result<Option<&'static str>> {
    let mut backend = OsStr::new("auto").to_owned();
    let mut rest = arguments.iter().map_while(|argument| (argument != "--").then(|| argument.to_string_lossy()));
    while let Some(argument) = rest.next() {
        if argument == "--backend" {
            backend = rest.next().map_or_else(OsString::new, |value| value.into_owned().into());
        } else if let Some(value) = argument.strip_prefix("--backend=") {
            backend = value.into();
        }
    }
    Ok(match backend.to_string_lossy().as_ref() {
        "auto" if has_nvidia_driver() => Some("cuda"),
        "auto" | "flex" => None,
        "cuda" => Some("cuda"),
        "ndarray" => Some("ndarray"),
        other => bail!("there is no backend {other:?}; --backend takes auto, cuda, flex or ndarray"),
    })
}

/// Like [`feature`], but refuses a GPU that cannot be here before minutes are spent compiling for it.
fn usable_feature(arguments: &[OsString]) -> anyhow::Result<Option<&'static str>> {
    let feature = feature(arguments)?;
    if feature == Some("cuda") && !has_nvidia_driver() {
        bail!("--backend is cuda, but this machine has no NVIDIA driver; expected flex, ndarray or auto");
    }
    Ok(feature)
}

/// Whether this machine seems to have an NVIDIA GPU; the runner looks closer.
fn has_nvidia_driver() -> bool {
    let places = [
        "/proc/driver/nvidia/version",
        "/dev/nvidia0",
        "/usr/lib/wsl/lib/libcuda.so.1",
        "C:\\Windows\\System32\\nvcuda.dll",
    ];
    places.iter().any(|place| Path::new(place).exists())
}

/// Replaces this process, so that Ctrl-C and the exit code are the other's.
#[cfg(unix)]
pub(crate) fn become_process(mut command: Command) -> anyhow::Result<ExitCode> {
    use std::os::unix::process::CommandExt;

    Err(command.exec()).context("cannot start cargo")
}

/// Waits for the other process and passes its exit code on; Ctrl-C reaches both.
#[cfg(not(unix))]
pub(crate) fn become_process(mut command: Command) -> anyhow::Result<ExitCode> {
    let status = command.status().context("cannot start cargo")?;
    Ok(exit_code(status.code()))
}

/// The exit code of a process, 1 if it has none.
pub(crate) fn exit_code(code: Option<i32>) -> ExitCode {
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feature_of(line: &str) -> Option<&'static str> {
        feature(&line.split(' ').map(OsString::from).collect::<Vec<_>>()).expect("a known backend")
    }

    #[test]
    fn the_backend_picks_the_feature() {
        assert_eq!(feature_of("a.toml --backend ndarray"), Some("ndarray"));
        assert_eq!(feature_of("--backend=cuda a.toml"), Some("cuda"));
        assert_eq!(feature_of("a.toml --backend flex"), None);
        assert!(feature(&["--backend".into(), "tpu".into()]).is_err());
    }

    #[test]
    fn the_library_for_parquet_is_compiled_for_those_who_ask_for_it() {
        let asks = |line: &str| exports_parquet(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(asks("runs/a --export parquet") && asks("--export=parquet runs/a"));
        assert!(!asks("runs/parquet --export csv") && !asks("parquet"));
    }

    #[test]
    fn a_first_build_says_how_long_it_takes() {
        let two = first_build(None, 2);
        assert_eq!(two, "first Patchdoor is compiled, once: about 5 minutes on 2 cores; then the command starts");
        assert!(first_build(Some("cuda"), 2).contains("about 9 minutes"));
        assert!(first_build(None, 64).contains("about 2 minutes on 64 cores"));
    }

    #[test]
    fn help_needs_no_compilation() {
        for (command, snapshot) in HELP {
            let text = snapshot.splitn(3, "---\n").last().expect("splitting gives a part");
            assert!(text.contains(&format!("Usage: cargo xtask {command}")), "{text}");
        }
    }
}
