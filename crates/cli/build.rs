//! Records the compiler and the commit, which are part of what makes a result repeatable.

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

fn main() -> io::Result<()> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../..");
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    set("RUSTC", &output(Command::new(rustc).arg("--version")).unwrap_or_else(|| "unknown".into()))?;
    set("TARGET", &env::var("TARGET").unwrap_or_default())?;
    set("RUSTFLAGS", &env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default().replace('\u{1f}', " "))?;

    let lock = std::fs::read(root.join("Cargo.lock")).unwrap_or_default();
    set("CARGO_LOCK", &Sha256::digest(&lock).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}")))?;
    set("BURN", &locked_version(&String::from_utf8_lossy(&lock), "burn").unwrap_or_default())?;

    // The source that is built, and the commit it is compared with.
    let git = |arguments: &[&str]| output(Command::new("git").arg("-C").arg(&root).args(arguments));
    set("COMMIT", &git(&["rev-parse", "HEAD"]).unwrap_or_default())?;
    let source = ["status", "--porcelain", "--", "crates", "Cargo.toml", "Cargo.lock", ".cargo"];
    set("DIRTY", git(&source).map_or("", |changes| if changes.is_empty() { "false" } else { "true" }))?;
    for path in ["crates", "Cargo.toml", "Cargo.lock", ".cargo"] {
        watch(&root.join(path))?;
    }
    // What git changes when it makes another commit the current one.
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name]) {
            watch(&root.join(path))?;
        }
    }
    Ok(())
}

/// Sets a variable for the program.
fn set(name: &str, value: &str) -> io::Result<()> {
    writeln!(io::stdout(), "cargo:rustc-env=PATCHDOOR_{name}={value}")
}

/// Has this script run again when a file, or one in a folder, changes. One that is not there would always count as changed.
fn watch(path: &Path) -> io::Result<()> {
    if path.exists() { writeln!(io::stdout(), "cargo:rerun-if-changed={}", path.display()) } else { Ok(()) }
}

/// What a command prints, if it succeeds.
fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The version of a package in `Cargo.lock`.
fn locked_version(lock: &str, package: &str) -> Option<String> {
    let after = lock.split_once(&format!("name = \"{package}\"\nversion = \""))?.1;
    after.split_once('"').map(|(version, _)| version.to_owned())
}
