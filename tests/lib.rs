//! What the whole-program tests share: the built runner, in a temporary folder, without the caller's
//! data or settings.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

/// Builds the runner once per test program, with the profile of the tests, and returns its path.
///
/// # Panics
/// If it does not compile.
pub fn runner() -> &'static Path {
    static RUNNER: OnceLock<PathBuf> = OnceLock::new();
    RUNNER.get_or_init(|| {
        let test = std::env::current_exe().expect("a running test has a path");
        // target/PROFILE/deps/test
        let profile = test.ancestors().nth(2).expect("tests lie two folders below the target folder");
        let mut build = Command::new(env!("CARGO"));
        // All of the workspace, as the tests themselves were built: with one package alone other features
        // would be chosen, and much compiled again.
        build.args(["build", "--quiet", "--workspace", "--all-targets"]);
        // These describe the package under test; build scripts that watch them would run again, and much with them.
        for (name, _) in std::env::vars_os() {
            if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                build.env_remove(name);
            }
        }
        if profile.ends_with("release") {
            build.arg("--release");
        }
        let status = build.current_dir(workspace()).status().expect("cargo starts");
        assert!(status.success(), "the runner compiles");
        profile.join("patchdoor")
    })
}

/// The folder of the workspace.
///
/// # Panics
/// Never: this package lies in it.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies in the workspace")
}

/// What a JSON file holds.
///
/// # Panics
/// If it cannot be read or is none.
pub fn json_of(file: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Every file below a folder that is not empty, but for locks, sorted.
///
/// # Panics
/// If the folder cannot be read.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a readable folder") {
            let path = entry.expect("readable").path();
            match path.is_dir() {
                true if path.ends_with("locks") => {}
                true => folders.push(path),
                false => found.push(path),
            }
        }
    }
    found.retain(|path| std::fs::metadata(path).is_ok_and(|file| file.len() > 0));
    found.sort();
    found
}

/// Copies the files of a folder.
///
/// # Panics
/// If they cannot be read or written.
pub fn copy(from: &Path, to: &Path) {
    for path in files(from) {
        let target = to.join(path.strip_prefix(from).expect("below"));
        std::fs::create_dir_all(target.parent().expect("below a folder")).expect("made");
        std::fs::copy(path, target).expect("copied");
    }
}

/// A temporary folder to run experiments in, without images and without a way to fetch any.
#[derive(Debug)]
pub struct Bench {
    folder: TempDir,
    /// The runner; built for the tests if it is not given.
    program: Option<PathBuf>,
}

impl Bench {
    /// An empty folder.
    ///
    /// # Panics
    /// If none can be made.
    #[allow(clippy::new_without_default, reason = "making a folder is no default")]
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder"), program: None }
    }

    /// An empty folder for a runner that is built already.
    ///
    /// # Panics
    /// If no folder can be made.
    pub fn of(program: &str) -> Self {
        Self { program: Some(program.into()), ..Self::new() }
    }

    /// Writes a file and returns its name.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn file<'a>(&self, name: &'a str, text: &str) -> &'a str {
        std::fs::write(self.path().join(name), text).expect("the folder is writable");
        name
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The runner in this folder, with plain output and a proxy that refuses every download.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.program.as_deref().unwrap_or_else(|| runner()));
        command.args(arguments).current_dir(self.path()).stdin(Stdio::null());
        command.env_remove("PATCHDOOR_DATA").env("NO_COLOR", "1");
        for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env(name, "http://127.0.0.1:9");
        }
        command
    }

    /// Runs the runner to its end.
    ///
    /// # Panics
    /// If it does not start.
    pub fn run(&self, arguments: &[&str]) -> Finished {
        Finished(self.command(arguments).output().expect("the runner starts"))
    }

    /// Names of everything in the folder, hidden files too, sorted.
    ///
    /// # Panics
    /// If the folder cannot be read.
    pub fn entries(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path()).expect("the folder is readable");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The only folder below `runs` that holds a run.
    ///
    /// # Panics
    /// If there is not exactly one.
    pub fn run_directory(&self) -> PathBuf {
        let runs = std::fs::read_dir(self.path().join("runs")).expect("there are runs");
        let mut found: Vec<PathBuf> = runs
            .map(|entry| entry.expect("readable").path())
            .filter(|path| path.join("config.toml").exists())
            .collect();
        assert_eq!(found.len(), 1, "one run: {found:?}");
        found.remove(0)
    }
}

/// What a finished runner left.
#[derive(Debug)]
pub struct Finished(Output);

impl Finished {
    /// Exit code.
    pub fn code(&self) -> Option<i32> {
        self.0.status.code()
    }

    /// Standard output.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    /// Standard error.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    /// Returns itself if the exit code is `code`.
    ///
    /// # Panics
    /// With both outputs if it is another.
    #[allow(clippy::return_self_not_must_use, reason = "a check whose subject is often not needed again")]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code(), Some(code), "\n--- stdout\n{}\n--- stderr\n{}", self.out(), self.err());
        self
    }
}

/// An experiment on the built-in shapes that takes a second or two.
pub const SMALL: &str = r#"
dataset.shapes = { train = 240, test = 60, seed = 0 }
seeds = [0]

[poisoning]
rate = 0.1
target-class = 0

[trigger.square]
size = 4
anchor = "lower-right"
value = 255

[model.patch-moe]
widen-factor = 1

[training]
epochs = 4
batch-size = 32
learning-rate = 0.05
"#;
