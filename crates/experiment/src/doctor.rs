//! What a machine offers to experiments, and what each lack means.

use std::path::{Path, PathBuf};

use patchdoor_data::presence::{DatasetState, status};
use serde::Serialize;

use crate::backend::{BackendChoice, built_in, processor, threads};
use crate::toolkit::{Search, Surroundings};

/// Something that experiments depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Finding {
    /// What was looked for.
    pub name: &'static str,
    /// Whether it is there.
    pub there: bool,
    /// What was found, or where it was looked for.
    pub found: String,
    /// What it means that it is missing or as it is, in one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub means: Option<String>,
}

/// All that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Diagnosis {
    /// In the order in which people read it.
    pub findings: Vec<Finding>,
    /// The backend that `--backend` leads to, if it can be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Why it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Looks at the machine as an experiment with this backend, these image folders and this results folder would.
pub fn diagnose(choice: BackendChoice, roots: &[PathBuf], out: &Path) -> Diagnosis {
    let mut findings = vec![backends()];
    findings.extend(gpu(&Surroundings::of_this_process()));
    findings.extend(processors());
    findings.extend([memory(), disk(out)]);
    findings.extend(data_sets(roots));
    let (backend, problem) = match choice.resolve() {
        Ok(backend) => {
            let fallback = backend.fallback().map_or_else(String::new, |reason| format!("; {reason}"));
            (Some(format!("{} ({}){fallback}", backend.name(), backend.device())), None)
        }
        Err(error) => (None, Some(error.to_string())),
    };
    Diagnosis { findings, backend, problem }
}

impl Diagnosis {
    /// A line for each finding, and what lacks mean beneath.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for Finding { name, there, found, means } in &self.findings {
            lines.push(format!("{} {name:<13} {found}", if *there { "ok     " } else { "missing" }));
            lines.extend(means.iter().map(|means| format!("{:<22}{means}", "")));
        }
        lines.extend(self.backend.iter().map(|backend| format!("computes on {backend}")));
        lines
    }
}

fn there(name: &'static str, found: impl Into<String>) -> Finding {
    Finding { name, there: true, found: found.into(), means: None }
}

fn missing(name: &'static str, found: impl Into<String>, means: impl Into<String>) -> Finding {
    Finding { name, there: false, found: found.into(), means: Some(means.into()) }
}

fn backends() -> Finding {
    let found = there("backends", built_in().join(", "));
    let lack = (!cfg!(feature = "cuda")).then(|| {
        "no cuda in this build: it cannot use a GPU; `cargo xtask run --backend cuda` and `cargo xtask bundle --backend \
         cuda` build it"
            .to_owned()
    });
    Finding { means: lack, ..found }
}

fn gpu(surroundings: &Surroundings<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let no_gpu = "experiments run on the CPU, at the authors' scale hundreds of times slower";
    #[cfg(feature = "cuda")]
    findings.push(match crate::gpu::driver_and_device() {
        Ok(gpu) => {
            let (major, minor) = gpu.compute_capability;
            let memory = gpu.memory as f64 / f64::from(1 << 30);
            there("GPU", format!("{}, {memory:.0} GiB, compute capability {major}.{minor}", gpu.name))
        }
        Err(reason) => missing("GPU", reason, no_gpu),
    });
    #[cfg(not(feature = "cuda"))]
    findings.push(match gpu_files() {
        Some(found) => there("GPU", found),
        None => missing("GPU", "no NVIDIA device in /proc/driver/nvidia/gpus or /dev/nvidia0", no_gpu),
    });
    let version = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
    findings.push(match version.as_deref().and_then(|text| text.lines().next()) {
        Some(line) => there("driver", line.trim().to_owned()),
        None => missing("driver", "no /proc/driver/nvidia/version", "without NVIDIA's driver no GPU can be used"),
    });
    findings.push(searched(
        "NVRTC",
        surroundings.nvrtc(),
        "kernels are compiled when first needed, so a GPU cannot be used without it",
        |path| format!("set LD_LIBRARY_PATH={}", path.parent().unwrap_or(path).display()),
    ));
    findings.push(searched(
        "CUDA headers",
        surroundings.headers(),
        "every kernel includes cuda_runtime.h, so a GPU cannot be used without it",
        |path| format!("set CUDA_PATH={}", path.display()),
    ));
    findings
}

#[cfg(not(feature = "cuda"))]
fn gpu_files() -> Option<String> {
    let models = std::fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten().filter_map(|entry| {
        let text = std::fs::read_to_string(entry.path().join("information")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("Model:").map(|model| model.trim().to_owned()))
    });
    let models = models.collect::<Vec<_>>();
    let is_device = Path::new("/dev/nvidia0").exists();
    if models.is_empty() { is_device.then(|| "/dev/nvidia0".to_owned()) } else { Some(models.join(", ")) }
}

/// What came of a search, with the places searched where nothing was found.
fn searched(name: &'static str, search: Search, lack: &str, remedy: impl Fn(&Path) -> String) -> Finding {
    let Search { found, elsewhere, looked_in } = search;
    if let Some(path) = found {
        return there(name, path.display().to_string());
    }
    let places = looked_in.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    let means = match elsewhere {
        Some(path) => format!("{} has it, but is not looked at: {}", path.display(), remedy(&path)),
        None => lack.to_owned(),
    };
    missing(name, format!("looked in {places}"), means)
}

fn processors() -> [Finding; 2] {
    let (used, offered) = (rayon::current_num_threads(), threads());
    let found = there("processor", format!("{}; {used} of them used", processor()));
    let means = (used < offered).then(|| "RAYON_NUM_THREADS asks for fewer threads than there are".to_owned());
    [Finding { means, ..found }, simd()]
}

#[cfg(target_arch = "x86_64")]
fn simd() -> Finding {
    let known = [
        ("AVX2", is_x86_feature_detected!("avx2")),
        ("FMA", is_x86_feature_detected!("fma")),
        ("AVX-512", is_x86_feature_detected!("avx512f")),
        ("AVX512-BF16", is_x86_feature_detected!("avx512bf16")),
    ];
    let names = known.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let [(_, avx2), (_, fma), (_, avx512), (_, bf16)] = known;
    if avx512 && fma {
        let means = "precision = \"bf16\" takes a GPU, or --emulate-bf16, which is slow".to_owned();
        return Finding { means: (!bf16).then_some(means), ..there("SIMD", names) };
    }
    if avx2 && fma {
        let means = "without AVX-512 the flex backend takes 8 numbers at a time instead of 16".to_owned();
        return Finding { means: Some(means), ..there("SIMD", names) };
    }
    let found = if names.is_empty() { "none of AVX2, FMA, AVX-512".to_owned() } else { format!("only {names}") };
    missing("SIMD", found, "the flex backend falls back to code for any processor, several times slower")
}

#[cfg(not(target_arch = "x86_64"))]
fn simd() -> Finding {
    there("SIMD", format!("what the compiler takes for granted on {}", std::env::consts::ARCH))
}

/// Below this the paper's network does not fit beside its images.
const ENOUGH_MEMORY: u64 = 8 << 30;

fn memory() -> Finding {
    let kibibytes = |text: &str, field: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with(field))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kibibytes| kibibytes << 10)
    };
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let Some((total, free)) = kibibytes(&text, "MemTotal:").zip(kibibytes(&text, "MemAvailable:")) else {
        return there("memory", "unknown on this system");
    };
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    let limit: Option<u64> = limit.filter(|limit| *limit < total);
    let limited =
        limit.map_or_else(String::new, |limit| format!(", of which this process may use {}", gibibytes(limit)));
    let found = format!("{}, {} free{limited}", gibibytes(total), gibibytes(free));
    let usable = limit.map_or(free, |limit| limit.min(free));
    let means = (usable < ENOUGH_MEMORY)
        .then(|| "a widen factor of 10 at batch 128 takes about 8 GiB on the CPU; thinner networks less".to_owned());
    Finding { means, ..there("memory", found) }
}

/// Below this a longer study may fill the disk with its checkpoints.
const ENOUGH_DISK: u64 = 2 << 30;

fn disk(out: &Path) -> Finding {
    // The folder may not be there yet; what is above it is on the same disk.
    let absolute = std::path::absolute(out).unwrap_or_else(|_| out.to_owned());
    let folder = absolute.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new(".")).to_owned();
    match free_bytes(&folder) {
        None => there("disk", format!("unknown at {}", folder.display())),
        Some(free) => {
            let means = (free < ENOUGH_DISK).then(|| {
                "checkpoints and weights of widen factor 10 take about 100 MB a training: it may fill up".to_owned()
            });
            Finding { means, ..there("disk", format!("{} free at {}", gibibytes(free), folder.display())) }
        }
    }
}

#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_folder: &Path) -> Option<u64> {
    None
}

fn gibibytes(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

fn data_sets(roots: &[PathBuf]) -> Vec<Finding> {
    let findings = status(roots).into_iter().map(|dataset| match dataset.state {
        DatasetState::BuiltIn => there(dataset.name, "built in"),
        DatasetState::Present(folder) => there(dataset.name, folder.display().to_string()),
        DatasetState::Incomplete(folder, files) => missing(
            dataset.name,
            format!("{} lacks {}", folder.display(), files.join(", ")),
            format!("experiments on {} cannot run; {}", dataset.name, dataset.how_to_get),
        ),
        DatasetState::Missing => {
            let places = roots.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(", ");
            let means = format!("experiments on {} cannot run; {}", dataset.name, dataset.how_to_get);
            missing(dataset.name, format!("not below {places}"), means)
        }
    });
    findings.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lack_says_in_one_line_what_it_means() {
        let diagnosis = diagnose(BackendChoice::Auto, &["no/such/folder".into()], Path::new("no/such/runs"));
        for finding in &diagnosis.findings {
            assert!(finding.there || finding.means.is_some(), "{finding:?}");
            assert!(!finding.means.iter().chain([&finding.found]).any(|text| text.contains('\n')), "{finding:?}");
        }
        let names = diagnosis.findings.iter().map(|finding| finding.name).collect::<Vec<_>>();
        let expected =
            ["backends", "GPU", "driver", "NVRTC", "CUDA headers", "processor", "SIMD", "memory", "disk", "shapes"];
        assert_eq!(names[..expected.len()], expected);
        let cifar10 = diagnosis.findings.iter().find(|finding| finding.name == "cifar10").expect("a finding");
        assert!(!cifar10.there && cifar10.found == "not below no/such/folder", "{cifar10:?}");
        assert!(diagnosis.backend.is_some() && diagnosis.problem.is_none());
    }

    #[test]
    fn a_library_that_is_not_looked_at_comes_with_its_remedy() {
        let search =
            Search { found: None, elsewhere: Some("/py/lib/libnvrtc.so.13".into()), looked_in: vec!["/lib".into()] };
        let finding = searched("NVRTC", search, "no", |path| path.parent().expect("a folder").display().to_string());
        assert!(!finding.there);
        assert_eq!(finding.found, "looked in /lib");
        assert_eq!(finding.means.as_deref(), Some("/py/lib/libnvrtc.so.13 has it, but is not looked at: /py/lib"));
    }
}
