use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::bench_statistics::{Interval, median};
use crate::run::{cargo, root};

pub(crate) const PACKAGE: &str = "patchdoor-benches";

/// Criterion's quickest sensible measurement: the least time of ten samples is what a round is about, criterion's own
/// statistics are not used.
const QUICK: [&str; 9] =
    ["--noplot", "--warm-up-time", "0.1", "--measurement-time", "0.3", "--sample-size", "10", "--nresamples", "1001"];

/// What is compared with what, and how strictly.
pub(crate) struct Comparison {
    /// The old revision.
    pub(crate) revision: String,
    /// Bench targets; all if empty.
    pub(crate) subjects: Vec<String>,
    /// Which benchmarks of these to compare.
    pub(crate) selection: Selection,
    /// Ratio of times, new to old, over which a comparison fails.
    pub(crate) threshold: f64,
    /// Pairs of timings.
    pub(crate) rounds: usize,
}

/// Some of the benchmarks in the bench targets.
pub(crate) enum Selection {
    /// All of them.
    All,
    /// Those whose names contain a text.
    Containing(String),
    /// Those of these names, each of which must be there.
    Named(&'static [&'static str]),
}

impl Selection {
    fn has(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Containing(text) => name.contains(text.as_str()),
            Self::Named(names) => names.contains(&name),
        }
    }

    /// The name that is asked for and not among the benchmarks.
    fn missing<'a>(&self, benchmarks: impl Iterator<Item = &'a Benchmark>) -> Option<&'static str> {
        let Self::Named(names) = self else { return None };
        let found: BTreeSet<&str> = benchmarks.map(|(_, name)| name.as_str()).collect();
        names.iter().copied().find(|name| !found.contains(name))
    }
}

/// Name of a benchmark together with the bench target it is in.
type Benchmark = (String, String);

/// One of the two programs compared.
struct Side {
    /// Where the sources are.
    directory: PathBuf,
    /// Where criterion writes.
    scratch: PathBuf,
    benchmarks: BTreeMap<Benchmark, PathBuf>,
}

/// Times this checkout and another revision in turns.
///
/// Absolute times on a shared machine mean nothing: both programs are built, and every benchmark is measured old, new,
/// new, old, .. within seconds. Benchmarks that seem slower are measured for as many rounds again before they fail.
pub(crate) fn compare(comparison: &Comparison) -> anyhow::Result<ExitCode> {
    let workspace = root().join("target").join("against");
    let tree = workspace.join("tree");
    let Some(commit) = resolve(&comparison.revision)? else {
        say(&format!("error: git knows no revision {:?}", comparison.revision));
        return Ok(ExitCode::from(2));
    };
    check_out(&commit, &tree)?;
    if bench_targets(&metadata(&tree)?).is_empty() {
        say(&format!("{} has no benchmarks; there is nothing to compare", comparison.revision));
        return Ok(ExitCode::SUCCESS);
    }
    set_apart(&tree)?;
    let target = PathBuf::from(metadata(&root())?["target_directory"].as_str().context("no target directory")?);
    // This checkout first: if it does not build, nothing else needs to be.
    let new = Side::build(root(), workspace.join("new"), &target, comparison)?;
    if let Some(name) = comparison.selection.missing(new.benchmarks.keys()) {
        bail!("there is no benchmark {name:?} to compare");
    }
    let old = Side::build(tree, workspace.join("old"), &target, comparison)?;

    let names: BTreeSet<&Benchmark> = old.benchmarks.keys().chain(new.benchmarks.keys()).collect();
    let (both, alone): (Vec<&Benchmark>, Vec<&Benchmark>) =
        names.into_iter().partition(|name| old.benchmarks.contains_key(*name) && new.benchmarks.contains_key(*name));
    if both.is_empty() {
        say("no benchmark is in both revisions; there is nothing to compare");
    }
    let mut pairs: BTreeMap<&Benchmark, Vec<[f64; 2]>> = BTreeMap::new();
    let mut suspects = both;
    for attempt in ["", ", again"] {
        for (number, name) in suspects.iter().enumerate() {
            say(&format!("{:>3}/{} {}{attempt}", number + 1, suspects.len(), name.1));
            let pairs = pairs.entry(name).or_default();
            for round in 0..comparison.rounds {
                pairs.push(measure_pair(&old, &new, name, round % 2 == 1)?);
            }
        }
        suspects.retain(|name| Verdict::of(&pairs[name], comparison.threshold) == Verdict::Slower);
    }

    let mut report = table(&pairs, comparison.threshold);
    for name in alone {
        let side = if new.benchmarks.contains_key(name) { "here" } else { comparison.revision.as_str() };
        writeln!(report, "skipped: {} is only in {side}", name.1)?;
    }
    // Nobody is left to be told that nobody listens.
    let _ = std::io::stdout().write_all(report.as_bytes());
    if suspects.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let slower = suspects.len();
    say(&format!("{slower} of {} benchmarks became slower than {} allows", pairs.len(), comparison.threshold));
    Ok(ExitCode::FAILURE)
}

/// Git in a folder. Where git calls a hook it names a repository in the environment, which would then be meant wherever
/// git runs: checking out the other revision would change this checkout.
pub(crate) fn git(directory: &Path) -> Command {
    let mut command = Command::new("git");
    command.current_dir(directory);
    for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX"] {
        command.env_remove(name);
    }
    command
}

/// The commit that a revision names, if there is one.
pub(crate) fn resolve(revision: &str) -> anyhow::Result<Option<String>> {
    let output = git(&root())
        .args(["rev-parse", "--verify", "--quiet", "--end-of-options"])
        .arg(format!("{revision}^{{commit}}"))
        .output()
        .context("cannot start git")?;
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned()))
}

/// Puts the files of a commit into a git worktree, leaving alone those that are right already, so that cargo does not
/// build them again.
fn check_out(commit: &str, tree: &Path) -> anyhow::Result<()> {
    let git = |directory: &Path, arguments: &[&str]| -> anyhow::Result<bool> {
        Ok(git(directory).args(arguments).status().context("cannot start git")?.success())
    };
    if tree.join(".git").exists() && git(tree, &["checkout", "--quiet", "--force", "--detach", commit])? {
        return Ok(());
    }
    if tree.exists() {
        std::fs::remove_dir_all(tree).context("cannot remove the broken worktree in target/against")?;
    }
    let path = tree.to_str().context("the path of this checkout is not UTF-8")?;
    // The worktree may be registered still if someone removed the target folder.
    if git(&root(), &["worktree", "prune"])? && git(&root(), &["worktree", "add", "--quiet", "--detach", path, commit])?
    {
        return Ok(());
    }
    bail!("git cannot check out {commit} into {path}")
}

/// Gives the packages of the worktree a version of their own.
///
/// Both checkouts build into one target folder, so that they share the compiled dependencies. Cargo tells packages apart
/// by name, version and place *within* their workspace: without a difference it would take the one checkout's libraries
/// for the other's.
fn set_apart(tree: &Path) -> anyhow::Result<()> {
    let path = tree.join("Cargo.toml");
    let manifest = std::fs::read_to_string(&path).context("cannot read the manifest of the other revision")?;
    let Some(manifest) = with_marked_version(&manifest) else {
        bail!("the manifest of the other revision gives no version in [workspace.package]");
    };
    std::fs::write(&path, manifest).context("cannot write the manifest of the other revision")
}

/// The manifest with a mark appended to the version that all members share.
fn with_marked_version(manifest: &str) -> Option<String> {
    let table = manifest.find("[workspace.package]")?;
    let start = table + manifest[table..].find("\nversion = \"")? + "\nversion = \"".len();
    let end = start + manifest[start..].find('"')?;
    let separator = if manifest[start..end].contains('+') { "." } else { "+" };
    Some(format!("{}{separator}against{}", &manifest[..end], &manifest[end..]))
}

/// What cargo says about a workspace.
pub(crate) fn metadata(directory: &Path) -> anyhow::Result<Value> {
    let output = cargo()
        .current_dir(directory)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    serde_json::from_slice(&output.stdout).context("cargo cannot describe the workspace")
}

/// Names of the bench targets in what `cargo metadata` says.
fn bench_targets(metadata: &Value) -> Vec<&str> {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let targets =
        packages.filter(|package| package["name"] == PACKAGE).filter_map(|package| package["targets"].as_array());
    targets.flatten().filter(|target| is_bench(target)).filter_map(|target| target["name"].as_str()).collect()
}

fn is_bench(target: &Value) -> bool {
    target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "bench"))
}

/// The program that a line of cargo's JSON output announces, with the name of its target.
fn built_bench(line: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(line).ok()?;
    let target = &message["target"];
    let executable = message["executable"].as_str().filter(|_| is_bench(target))?;
    Some((target["name"].as_str()?.to_owned(), executable.into()))
}

impl Side {
    fn build(directory: PathBuf, scratch: PathBuf, target: &Path, comparison: &Comparison) -> anyhow::Result<Self> {
        let metadata = metadata(&directory)?;
        let subjects: Vec<&str> = bench_targets(&metadata)
            .into_iter()
            .filter(|name| comparison.subjects.is_empty() || comparison.subjects.iter().any(|subject| subject == name))
            .collect();
        let mut side = Self { directory, scratch, benchmarks: BTreeMap::new() };
        if subjects.is_empty() {
            return Ok(side);
        }
        say(&format!("building the benchmarks of {}", side.directory.display()));
        let output = cargo()
            .current_dir(&side.directory)
            .env("CARGO_TARGET_DIR", target)
            // As continuous integration builds them: `cargo bench` would compile all of it a second time.
            .args(["test", "--release", "--workspace", "--no-run", "--message-format", "json-render-diagnostics"])
            .args(subjects.iter().flat_map(|subject| ["--bench", subject]))
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start cargo")?;
        if !output.status.success() {
            bail!("the benchmarks of {} do not build", side.directory.display());
        }
        for (subject, program) in String::from_utf8_lossy(&output.stdout).lines().filter_map(built_bench) {
            let listing = Command::new(&program)
                .current_dir(&side.directory)
                .args(["--bench", "--list", "--format", "terse"])
                .output()
                .with_context(|| format!("cannot start {}", program.display()))?;
            for name in listed(&String::from_utf8_lossy(&listing.stdout)) {
                if comparison.selection.has(name) {
                    side.benchmarks.insert((subject.clone(), name.to_owned()), program.clone());
                }
            }
        }
        Ok(side)
    }

    /// Seconds per iteration of a benchmark, the least of a few samples: what disturbs a timing makes it longer.
    fn measure(&self, benchmark: &Benchmark) -> anyhow::Result<f64> {
        let (_, name) = benchmark;
        if self.scratch.exists() {
            std::fs::remove_dir_all(&self.scratch).context("cannot clear criterion's folder")?;
        }
        let output = Command::new(&self.benchmarks[benchmark])
            .current_dir(&self.directory)
            .env("CRITERION_HOME", &self.scratch)
            .args(["--bench", "--exact", name])
            .args(QUICK)
            .output()
            .with_context(|| format!("cannot start the program of {name}"))?;
        let sample = find_sample(&self.scratch).and_then(|path| std::fs::read_to_string(path).ok());
        let Some(seconds) = sample.as_deref().and_then(least_seconds).filter(|_| output.status.success()) else {
            bail!("{name} of {} failed:\n{}", self.directory.display(), String::from_utf8_lossy(&output.stderr));
        };
        Ok(seconds)
    }
}

/// Names in the terse listing of a criterion program.
fn listed(listing: &str) -> impl Iterator<Item = &str> {
    listing.lines().filter_map(|line| line.strip_suffix(": benchmark"))
}

/// The only sample below a folder of criterion's: `<benchmark>/new/sample.json`.
fn find_sample(folder: &Path) -> Option<PathBuf> {
    for entry in std::fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        if path.ends_with("new/sample.json") {
            return Some(path);
        }
        if let Some(found) = path.is_dir().then(|| find_sample(&path)).flatten() {
            return Some(found);
        }
    }
    None
}

/// Least time of one iteration in a sample of criterion's, which holds nanoseconds.
fn least_seconds(sample: &str) -> Option<f64> {
    let sample: Value = serde_json::from_str(sample).ok()?;
    let (iterations, times) = (sample["iters"].as_array()?, sample["times"].as_array()?);
    let each = iterations.iter().zip(times).filter_map(|(count, time)| Some(time.as_f64()? / count.as_f64()? / 1e9));
    each.filter(|&seconds| seconds > 0.0 && seconds.is_finite()).min_by(f64::total_cmp)
}

/// Old and new time of one round.
fn measure_pair(old: &Side, new: &Side, benchmark: &Benchmark, new_first: bool) -> anyhow::Result<[f64; 2]> {
    if new_first {
        let new = new.measure(benchmark)?;
        Ok([old.measure(benchmark)?, new])
    } else {
        Ok([old.measure(benchmark)?, new.measure(benchmark)?])
    }
}

/// What an interval means for a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// All of it lies above the threshold.
    Slower,
    /// All of it lies below the threshold's reciprocal.
    Faster,
    /// Neither.
    Alike,
}

impl Verdict {
    fn of(pairs: &[[f64; 2]], threshold: f64) -> Self {
        match Interval::of(pairs) {
            Some(interval) if interval.low > threshold => Self::Slower,
            Some(interval) if interval.high < 1.0 / threshold => Self::Faster,
            _ => Self::Alike,
        }
    }
}

fn table(pairs: &BTreeMap<&Benchmark, Vec<[f64; 2]>>, threshold: f64) -> String {
    let width = pairs.keys().map(|name| name.1.len()).max().unwrap_or(0).max("benchmark".len());
    let mut table = format!(
        "{:<width$}  {:>9}  {:>9}  {:>5}  {:^13}  rounds\n",
        "benchmark", "old", "new", "ratio", "95 % interval"
    );
    for (name, pairs) in pairs {
        let Some(Interval { low, middle, high }) = Interval::of(pairs) else { continue };
        let [old, new] = [0, 1].map(|side| {
            let mut times: Vec<f64> = pairs.iter().map(|pair| pair[side]).collect();
            times.sort_by(f64::total_cmp);
            shown(median(&times))
        });
        let verdict = match Verdict::of(pairs, threshold) {
            Verdict::Slower => "  SLOWER",
            Verdict::Faster => "  faster",
            Verdict::Alike => "",
        };
        let (name, rounds) = (&name.1, pairs.len());
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "{name:<width$}  {old:>9}  {new:>9}  {middle:>5.2}  {low:>5.2} .. {high:<5.2}  {rounds:>6}{verdict}"
        );
    }
    table
}

/// A time with a unit in which it has one to three digits before the point.
fn shown(seconds: f64) -> String {
    match seconds {
        1.0.. => format!("{seconds:.2} s"),
        1e-3.. => format!("{:.2} ms", seconds * 1e3),
        1e-6.. => format!("{:.2} us", seconds * 1e6),
        _ => format!("{:.2} ns", seconds * 1e9),
    }
}

fn say(line: &str) {
    // Nobody is left to be told that nobody listens.
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_workspace_version_is_marked() {
        let manifest = "[package]\nversion = \"9\"\n[workspace.package]\nversion = \"0.1.0\"\nedition = \"2024\"\n";
        let marked =
            "[package]\nversion = \"9\"\n[workspace.package]\nversion = \"0.1.0+against\"\nedition = \"2024\"\n";
        assert_eq!(with_marked_version(manifest).as_deref(), Some(marked));
        let marked = with_marked_version("[workspace.package]\nversion = \"1.0.0+nightly\"\n").unwrap();
        assert!(marked.contains("\"1.0.0+nightly.against\""), "{marked}");
        assert_eq!(with_marked_version("[package]\nversion = \"9\"\n"), None);
    }

    #[test]
    fn the_manifest_of_this_workspace_can_be_marked() {
        let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
        assert!(with_marked_version(&manifest).is_some());
    }

    #[test]
    fn selections_choose_by_name_and_notice_what_is_missing() {
        let benchmark = |name: &str| ("kernels".to_owned(), name.to_owned());
        let there = [benchmark("network/training step/1"), benchmark("network/training step/10")];
        assert!(Selection::All.has("x") && Selection::Containing("step".to_owned()).has("network/training step/1"));
        assert!(!Selection::Containing("evaluation".to_owned()).has("network/training step/1"));
        let named = Selection::Named(&["network/training step/1"]);
        assert!(named.has("network/training step/1") && !named.has("network/training step/10"));
        assert_eq!(named.missing(there.iter()), None);
        let named = Selection::Named(&["network/training step/1", "network/training step/2"]);
        assert_eq!(named.missing(there.iter()), Some("network/training step/2"));
    }

    #[test]
    fn bench_targets_are_found_in_metadata() {
        let metadata = serde_json::json!({ "packages": [
            { "name": "patchdoor-data", "targets": [{ "name": "other", "kind": ["bench"] }] },
            { "name": PACKAGE, "targets": [{ "name": "lib", "kind": ["lib"] }, { "name": "routing", "kind": ["bench"] }] },
        ] });
        assert_eq!(bench_targets(&metadata), ["routing"]);
        assert!(bench_targets(&serde_json::json!({ "packages": [] })).is_empty());
    }

    #[test]
    fn built_programs_are_found_in_what_cargo_says() {
        let bench = r#"{"reason":"compiler-artifact","target":{"name":"routing","kind":["bench"]},"executable":"/t/routing-1"}"#;
        assert_eq!(built_bench(bench), Some(("routing".to_owned(), "/t/routing-1".into())));
        let library = r#"{"reason":"compiler-artifact","target":{"name":"x","kind":["lib"]},"executable":null}"#;
        assert_eq!(built_bench(library), None);
        assert_eq!(built_bench("not JSON"), None);
    }

    #[test]
    fn listings_and_samples_of_criterion_are_read() {
        let names: Vec<&str> = listed("a/b: benchmark\nc d/e: benchmark\n\nGnuplot not found\n").collect();
        assert_eq!(names, ["a/b", "c d/e"]);
        let sample = r#"{"sampling_mode":"Linear","iters":[1.0,2.0,3.0],"times":[5000000.0,4000000.0,9000000.0]}"#;
        assert_eq!(least_seconds(sample), Some(0.002));
        assert_eq!(least_seconds("{}"), None);
    }

    #[test]
    fn a_seeded_slowdown_is_marked_and_an_equal_program_is_not() {
        let name = |text: &str| ("routing".to_owned(), text.to_owned());
        let (slowed, equal, quick) = (name("routing/slowed"), name("routing/equal"), name("routing/quick"));
        let noise = [1.0, 1.02, 1.6, 0.99, 1.01, 1.03, 1.0, 0.98];
        let pairs = |ratio: f64| -> Vec<[f64; 2]> {
            noise.iter().zip(noise.iter().rev()).map(|(old, new)| [old * 1e-3, new * ratio * 1e-3]).collect()
        };
        assert_eq!(Verdict::of(&pairs(1.5), 1.15), Verdict::Slower);
        assert_eq!(Verdict::of(&pairs(1.0), 1.15), Verdict::Alike);
        assert_eq!(Verdict::of(&pairs(0.5), 1.15), Verdict::Faster);
        let pairs = BTreeMap::from([(&slowed, pairs(1.5)), (&equal, pairs(1.0)), (&quick, pairs(0.5))]);
        let lines: Vec<String> = table(&pairs, 1.15).lines().map(str::to_owned).collect();
        assert_eq!(lines[0], "benchmark             old        new  ratio  95 % interval  rounds");
        assert!(
            lines[1].starts_with("routing/equal     1.01 ms    1.01 ms   1.00") && lines[1].ends_with('8'),
            "{lines:?}"
        );
        assert!(lines[2].ends_with("faster") && lines[3].ends_with("SLOWER"), "{lines:?}");
    }
}
