//! Counts what a step of training asks of a GPU, on a driver without one.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, ensure};

use crate::ci::say;
use crate::run::{cargo, exit_code, root};

/// Kernels that a step of the smallest mixture launches, at most: what it launches now.
const LAUNCHES: usize = 111;
/// Numbers read back within a step. One would stop the device.
const READS: usize = 0;
/// Uploads of a step, at most: draws, labels and sizes.
const UPLOADS: usize = 9;
/// Seeds of a group, and the kernels that a step of all of them launches, at most.
const SEEDS: usize = 8;
const GROUP_LAUNCHES: usize = 289;
/// Modules that two epochs with validation load, at most.
const MODULES: usize = 50;

/// A training of the published mixture at widen factor 1, nine steps an epoch and one kernel that begins each.
const EXPERIMENT: &str = "clean-twin = false\ndataset.shapes = { train = 1280, test = 200 }\n\
                          model.patch-moe.widen-factor = 1\ntrigger.square = { size = 3 }\n\
                          training = { epochs = 2, batch-size = 128 }\npoisoning.rate = 0.02\n";
/// The kernel that makes a batch of images, and its blocks for 128 of 32x32x3 pixels.
const BATCH: &str = "launch 1536 take";

const DRIVER: &str = include_str!("fake_cuda.c");

/// Where to find what compiles kernels.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Folder of CUDA 13's include/ and of lib/ or lib64/ with NVRTC [default: `CUDA_PATH`, /usr/local/cuda, Python's nvidia/cu13]
    #[arg(long, value_name = "DIR")]
    cuda: Option<PathBuf>,

    /// Fail where NVRTC is missing, instead of saying so and passing
    #[arg(long)]
    required: bool,
}

/// What happened between the beginnings of two steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Step {
    launches: usize,
    reads: usize,
    uploads: usize,
}

/// Trains on a driver without a GPU, and compares what was asked of it with the most that may be.
pub(crate) fn launches(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let Some((cuda, library)) = arguments.cuda.clone().or_else(found).and_then(|folder| nvrtc_in(&folder)) else {
        let (word, code) =
            if arguments.required { ("error", ExitCode::from(2)) } else { ("skipped", ExitCode::SUCCESS) };
        say(&format!(
            "{word}: there is no NVRTC of CUDA 13. Python has it: pip install nvidia-cuda-nvrtc==13.0.* \
             nvidia-cuda-runtime==13.0.* nvidia-cuda-cccl==13.0.* nvidia-cuda-crt==13.0.*, then --cuda \
             SITE-PACKAGES/nvidia/cu13"
        ));
        return Ok(code);
    };
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from).join("cuda");
    let built = cargo()
        .current_dir(root())
        .args(["build", "--release", "--package", "patchdoor-cli", "--bin", "patchdoor", "--features", "cuda"])
        .arg("--target-dir")
        .arg(&target)
        .status()
        .context("cannot start cargo")?;
    if !built.success() {
        return Ok(exit_code(built.code()));
    }
    let folder = target.join("launches");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(folder.join("lib"))?;
    install_driver(&folder.join("lib"))?;
    for entry in std::fs::read_dir(&library)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("libnvrtc") {
            std::fs::copy(&path, folder.join("lib").join(&name))?;
        }
    }
    std::fs::write(folder.join("one.toml"), EXPERIMENT)?;
    std::fs::write(folder.join("cubecl.toml"), "[compilation]\ncache = { file = \"cache\" }\n")?;
    let program = target.join("release/patchdoor");
    let run = ["run", "one.toml", "--backend", "cuda", "--fresh", "--out", "runs"];
    let events = ask(&program, &run, &cuda, &folder)?;
    let compiled = bytes_below(&folder.join("cache"))?;
    ask(&program, &run, &cuda, &folder)?;
    let compiled_again = bytes_below(&folder.join("cache"))? - compiled;
    let seeds = SEEDS.to_string();
    let group = ["study", "speed", "--backend", "cuda", "--widen", "1", "--seeds", &seeds, "--seconds", "0"];
    let group_events = ask(&program, &group, &cuda, &folder)?;

    let (one, group) = (steps(&events, 1), steps(&group_events, SEEDS));
    for (steps, least) in [(&one, 12), (&group, 8)] {
        ensure!(steps.len() >= least, "only {} whole steps were seen", steps.len());
    }
    let most = |steps: &[Step], count: fn(&Step) -> usize| steps.iter().map(count).max().unwrap_or(0);
    let modules = events.lines().filter(|event| event.starts_with("module ")).count();
    let rows = [
        ("launches of a step", most(&one, |step| step.launches), LAUNCHES),
        ("reads of a step", most(&one, |step| step.reads), READS),
        ("uploads of a step", most(&one, |step| step.uploads), UPLOADS),
        ("launches of a step of eight seeds", most(&group, |step| step.launches), GROUP_LAUNCHES),
        ("reads of a step of eight seeds", most(&group, |step| step.reads), READS),
        ("modules", modules, MODULES),
        ("bytes compiled by a second run", usize::try_from(compiled_again)?, 0),
    ];
    for (what, counts) in
        [("one seed", kernels_of(&events, 5, 1)), ("eight seeds", kernels_of(&group_events, 5, SEEDS))]
    {
        say(&format!("kernels of a step, {what}"));
        for (kernel, count) in counts {
            say(&format!("{count:>5}  {kernel}"));
        }
    }
    for (what, found, most) in rows {
        say(&format!("{what}: {found}, at most {most}{}", if found > most { "  FAILED" } else { "" }));
    }
    Ok(if rows.iter().all(|(_, found, most)| found <= most) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where NVRTC usually lies.
fn found() -> Option<PathBuf> {
    let script = "import glob, sysconfig; print(sysconfig.get_paths()['purelib'] + '/nvidia/cu13')";
    let python = || {
        let output = Command::new("python3").args(["-c", script]).stderr(Stdio::null()).output().ok()?;
        Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
    };
    let places = [env::var_os("CUDA_PATH").map(PathBuf::from), Some("/usr/local/cuda".into()), python()];
    places.into_iter().flatten().find(|folder| nvrtc_in(folder).is_some())
}

/// A folder of CUDA and its folder of libraries, if NVRTC is there.
fn nvrtc_in(cuda: &Path) -> Option<(PathBuf, PathBuf)> {
    let has = |library: &Path| library.join("libnvrtc.so.13").exists();
    let library = ["lib64", "lib"].map(|name| cuda.join(name)).into_iter().find(|library| has(library))?;
    Some((cuda.to_owned(), library))
}

fn install_driver(folder: &Path) -> anyhow::Result<()> {
    let source = folder.join("driver.c");
    std::fs::write(&source, DRIVER)?;
    // Under its usual name of libcuda.so.1 NVRTC would load it too, and fail.
    let status = Command::new("cc")
        .args(["-O1", "-shared", "-fPIC", "-Wl,-soname,libfakecuda.so", "-o"])
        .arg(folder.join("libcuda.so"))
        .arg(&source)
        .status()
        .context("cannot start the C compiler")?;
    ensure!(status.success(), "the driver without a GPU does not compile");
    Ok(())
}

/// Runs a training and gives what was asked of the driver. Its numbers mean nothing, so it may well end as diverged.
fn ask(program: &Path, arguments: &[&str], cuda: &Path, folder: &Path) -> anyhow::Result<String> {
    let log = folder.join("events");
    if log.exists() {
        std::fs::remove_file(&log)?;
    }
    Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .env("LD_LIBRARY_PATH", folder.join("lib"))
        .env("CUDA_PATH", cuda)
        .env("FAKE_CUDA_LOG", &log)
        .env("HOME", folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    std::fs::read_to_string(&log).context("the driver without a GPU was not used")
}

/// The whole steps of a log, each with a batch of every seed: but for the first, which compiles, and those that end an epoch.
fn steps(events: &str, seeds: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut current: Option<Step> = None;
    let mut batches = 0;
    for event in events.lines() {
        batches += usize::from(event == BATCH);
        if event == BATCH && batches % seeds == 1 % seeds {
            steps.extend(current.replace(Step { launches: 1, ..Step::default() }));
            continue;
        }
        let Some(step) = &mut current else { continue };
        match event.split(' ').next() {
            Some("launch") => step.launches += 1,
            Some("read") => step.reads += 1,
            Some("upload") => step.uploads += 1,
            _ => {}
        }
    }
    // After an epoch's last step comes what looks at the classifier, and reads much: no part of a step.
    let usual = steps.iter().map(|step| step.reads).min().unwrap_or(0);
    steps.into_iter().skip(1).filter(|step| step.reads == usual).collect()
}

/// How often each kernel is launched in one step.
fn kernels_of(events: &str, step: usize, seeds: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    let from = events.lines().skip_while(|&event| event != BATCH);
    let mut seen = 0;
    for event in from {
        seen += usize::from(event == BATCH);
        if seen.div_ceil(seeds) == step + 1
            && let Some(kernel) = event.strip_prefix("launch ").and_then(|rest| rest.split(' ').nth(1))
        {
            *counts.entry(kernel.to_owned()).or_insert(0) += 1;
        }
    }
    counts
}

fn bytes_below(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { bytes_below(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_lie_between_batches() {
        let step = format!("{BATCH}\nlaunch 8 forward\nupload 64 \nmodule 100 \nlaunch 1 step\n");
        let with_read = format!("{BATCH}\nlaunch 8 forward\nread 8 \n");
        let events = format!("upload 10 \n{step}{step}{step}{with_read}{step}{BATCH}\n");
        let expected = Step { launches: 3, reads: 0, uploads: 1 };
        let found = steps(&events, 1);
        assert_eq!(found.len(), 3, "all whole steps but the first, which compiles, and those that end an epoch");
        assert!(found.iter().all(|step| *step == expected), "{found:?}");
        assert_eq!(
            kernels_of(&events, 1, 1),
            [("forward", 1), ("step", 1), ("take", 1)].map(|(k, n)| (k.to_owned(), n)).into()
        );
    }

    #[test]
    fn a_step_of_a_group_has_a_batch_of_every_seed() {
        let step = format!("{BATCH}\n{BATCH}\nlaunch 8 forward\n");
        let events = format!("{step}{step}{step}{BATCH}\n");
        assert_eq!(steps(&events, 2), [Step { launches: 3, reads: 0, uploads: 0 }; 2]);
        assert_eq!(kernels_of(&events, 1, 2), [("forward", 1), ("take", 2)].map(|(k, n)| (k.to_owned(), n)).into());
    }
}
