//! Records the compiler, which is part of what makes a result repeatable.

use std::env;
use std::process::Command;

fn main() {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().ok().filter(|output| output.status.success());
    let version =
        version.map_or_else(|| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let setting = |name: &str, value: &str| {
        // Cargo reads build scripts' standard output.
        let mut stdout = std::io::stdout();
        std::io::Write::write_all(&mut stdout, format!("cargo:rustc-env={name}={value}\n").as_bytes())
    };
    setting("PATCHDOOR_RUSTC", &version).expect("cargo reads this");
    setting("PATCHDOOR_TARGET", &env::var("TARGET").unwrap_or_default()).expect("cargo reads this");
    setting("PATCHDOOR_RUSTFLAGS", &env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default().replace('\u{1f}', " "))
        .expect("cargo reads this");
}
