use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Context;

use crate::run::{cargo, exit_code, root};

/// Folders in which the Vulkan loader looks for drivers.
const DRIVERS: [&str; 3] = ["/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/etc/vulkan/icd.d"];

/// Folders in which Debian, Fedora and others keep libraries.
const LIBRARIES: [&str; 5] =
    ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib"];

/// Which tests to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Run whole networks, trainings and programs there too, as the nightly job does, and not only the kernels
    #[arg(long)]
    all: bool,

    /// Fail where the driver is missing, instead of saying so and passing
    #[arg(long)]
    required: bool,
}

/// Tests what CUDA runs on Mesa's software Vulkan, or says why it cannot.
pub(crate) fn vulkan(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let driver = match software_driver() {
        Ok(driver) => driver,
        Err(missing) => {
            let hint = "Debian has both: apt-get install mesa-vulkan-drivers libvulkan1";
            let (word, code) =
                if arguments.required { ("error", ExitCode::from(2)) } else { ("skipped", ExitCode::SUCCESS) };
            crate::ci::say(&format!("{word}: {missing}. {hint}"));
            return Ok(code);
        }
    };
    for mut command in tests(arguments.all, &driver) {
        let status = command.status().context("cannot start cargo")?;
        if !status.success() {
            return Ok(exit_code(status.code()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The tests of the kernels; of all packages that know the backend: files of their own, and in the libraries those whose names
/// have the word. In a folder of their own: the backend turns on features of burn, and all of it would be compiled again, here and at the
/// next ordinary build.
fn tests(all: bool, driver: &Path) -> Vec<Command> {
    let files: (&[&str], &[&str]) = (&["--test", "vulkan", "--test", "vulkan_precision"], &[]);
    let (kinds, packages): (&[_], &[_]) = if all {
        let packages = &["patchdoor-kernels", "patchdoor-model", "patchdoor-train", "patchdoor-cli"];
        (&[files, (&["--lib"], &["vulkan"])], packages)
    } else {
        (&[files], &["patchdoor-kernels"])
    };
    let commands = kinds.iter().map(|(chosen, filter)| {
        let mut command = cargo();
        command.current_dir(root()).args(["test", "--profile", "vulkan", "--features", "vulkan"]).args(*chosen);
        command.args(packages.iter().flat_map(|package| ["--package", package]));
        command.arg("--target-dir").arg(target().join("vulkan"));
        command.arg("--").args(*filter).args(all.then_some("--include-ignored"));
        // The loader would take any GPU of the machine first.
        command.env("VK_DRIVER_FILES", driver).env("VK_ICD_FILENAMES", driver);
        command
    });
    commands.collect()
}

fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where the description of Mesa's software driver, lavapipe, lies; or what is missing.
fn software_driver() -> Result<PathBuf, String> {
    let named = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"].into_iter().find_map(env::var_os);
    let folders: Vec<&Path> = DRIVERS.iter().map(Path::new).collect();
    let Some(driver) = named.map(PathBuf::from).or_else(|| lavapipe_in(&folders)) else {
        return Err(format!("there is no lvp_icd*.json of Mesa's software Vulkan driver in {}", DRIVERS.join(", ")));
    };
    let searched: Vec<PathBuf> = env::split_paths(&env::var_os("LD_LIBRARY_PATH").unwrap_or_default())
        .chain(LIBRARIES.map(PathBuf::from))
        .collect();
    if !searched.iter().any(|folder| folder.join("libvulkan.so.1").exists()) {
        return Err(format!("there is no libvulkan.so.1 in LD_LIBRARY_PATH, {}", LIBRARIES.join(", ")));
    }
    Ok(driver)
}

/// The first such description by its name.
fn lavapipe_in(folders: &[&Path]) -> Option<PathBuf> {
    let entries = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten();
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let is_lavapipe = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("lvp_icd") && name.ends_with(".json")
    };
    paths.filter(is_lavapipe).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_software_driver_is_told_from_a_gpus() {
        let folder = env::temp_dir().join(format!("patchdoor-drivers-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let write = |name: &str| std::fs::write(folder.join(name), "{}").expect("it is writable");
        for name in ["nvidia_icd.json", "intel_icd.x86_64.json", "lvp_icd.txt"] {
            write(name);
        }
        assert_eq!(lavapipe_in(&[&folder, Path::new("/nowhere")]), None);
        write("lvp_icd.x86_64.json");
        assert_eq!(lavapipe_in(&[Path::new("/nowhere"), &folder]), Some(folder.join("lvp_icd.x86_64.json")));
        std::fs::remove_dir_all(&folder).expect("it is ours");
    }

    #[test]
    fn tests_on_vulkan_leave_the_ordinary_build_alone() {
        let [few, all] = [false, true].map(|all| super::tests(all, Path::new("/driver.json")));
        assert!(few.len() < all.len());
        for command in few.into_iter().chain(all) {
            let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
            let folder = arguments.iter().position(|argument| argument == "--target-dir").expect("it names a folder");
            assert!(arguments[folder + 1].ends_with("vulkan"), "{arguments:?}");
        }
    }
}
