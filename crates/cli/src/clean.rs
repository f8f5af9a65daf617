use std::collections::BTreeSet;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::anyhow;
use clap::Args;
use fs_err as fs;
use patchdoor_record::{lock, set_aside};

use crate::output::{Stop, print, say};

/// Seconds of a day.
const DAY: f64 = 86_400.0;

/// What is removed.
#[derive(Debug, Args)]
#[command(
    after_help = "Removed are runs that were begun and not finished, what was moved aside (NAME.old-1), and clean twins and \
                  surrogates that no run refers to; the latter only where nothing unfinished is left that may still need \
                  them. Finished runs stay, unless their age is given. What another process works on stays. Without --yes \
                  it asks; where nobody can be asked, it only says what it would remove.\n\n\
                  Exit codes: 0 done, 2 unusable folder.\n\n\
                  Examples:\n  cargo xtask clean\n  cargo xtask clean --older-than 30 --yes"
)]
pub struct CleanArguments {
    /// Where results are
    #[arg(long, value_name = "DIR", default_value = "runs")]
    pub out: PathBuf,

    /// Finished runs and sweeps, too, that nothing was written to for so many days
    #[arg(long, value_name = "DAYS", value_parser = days)]
    pub older_than: Option<f64>,

    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

fn days(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(days) if (0.0..=100_000.0).contains(&days) => Ok(days),
        Ok(_) => Err("0 to 100000".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// A folder that can go.
#[derive(Debug, PartialEq)]
struct Rest {
    path: PathBuf,
    /// Name of the lock that its owner would hold.
    lock: String,
    why: &'static str,
    bytes: u64,
}

/// Removes what no result needs, after asking.
///
/// # Errors
/// If the folder cannot be read, or something in it not be removed.
pub fn clean(arguments: &CleanArguments) -> Result<(), Stop> {
    let out = &arguments.out;
    if !out.is_dir() {
        return Err(Stop::unusable(anyhow!("there is no folder {}", out.display())));
    }
    let age = arguments.older_than.map(|days| Duration::from_secs_f64(days * DAY));
    let rests = rests(out, age, SystemTime::now()).map_err(Stop::unusable)?;
    if rests.is_empty() {
        return print(&format!("nothing below {} can go\n", out.display()));
    }
    for rest in &rests {
        print(&format!("{:>9}  {}  {}\n", megabytes(rest.bytes), rest.path.display(), rest.why))?;
    }
    let all = format!("{} in {} folders", megabytes(rests.iter().map(|rest| rest.bytes).sum()), rests.len());
    if !arguments.yes {
        if !io::stdin().is_terminal() {
            return print(&format!("{all}; nothing was removed, --yes removes them\n"));
        }
        say(&format!("remove {all}? [y/N]"));
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map_err(Stop::failed)?;
        if !["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
            return print("nothing was removed\n");
        }
    }
    let mut removed = 0;
    for rest in &rests {
        // Held until the folder is gone: whoever wanted to go on with it meanwhile finds nothing, and begins anew.
        let Some(_lock) = lock(out, &rest.lock).map_err(Stop::unusable)? else {
            say(&format!("{} stays: another process works on it", rest.path.display()));
            continue;
        };
        fs::remove_dir_all(&rest.path).map_err(Stop::failed)?;
        removed += rest.bytes;
    }
    // A configuration without a twin left needs no folder.
    for folder in folders(&out.join("twins")).map_err(Stop::unusable)? {
        let _ = std::fs::remove_dir(folder);
    }
    print(&format!("removed {}\n", megabytes(removed)))
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// What can go, sorted by path.
fn rests(out: &Path, age: Option<Duration>, now: SystemTime) -> io::Result<Vec<Rest>> {
    let mut rests = Vec::new();
    let mut kept = Vec::new();
    let mut is_unfinished = false;
    for path in folders(out)? {
        let name = name_of(&path);
        let is_done = path.join("summary.json").is_file() || path.join("table.json").is_file();
        // Somebody's folder may be called like one of ours.
        let is_ours = is_done || path.join("config.toml").is_file() || path.join("environment.json").is_file();
        let why = if let Some(owner) = set_aside(&name).filter(|_| is_ours) {
            Some((owner.to_owned(), "was moved aside"))
        } else if let Some(owner) = name.strip_suffix(".partial").filter(|_| is_ours) {
            Some((owner.to_owned(), "unfinished"))
        } else if is_done && is_older(&path, age, now)? {
            Some((name.clone(), "old"))
        } else {
            None
        };
        let Some((owner, why)) = why else {
            kept.push(path);
            continue;
        };
        // A run that is going on is no rest of one.
        if why == "unfinished" && is_locked(out, &owner) {
            is_unfinished = true;
            kept.push(path);
            continue;
        }
        rests.push(Rest { bytes: bytes_below(&path)?, lock: owner, why, path });
    }
    if !is_unfinished {
        let needed = kept.iter().map(|run| twins_in(run)).collect::<io::Result<Vec<_>>>()?.concat();
        let needed = needed.into_iter().collect::<BTreeSet<_>>();
        for configuration in folders(&out.join("twins"))? {
            let hash = name_of(&configuration);
            for path in folders(&configuration)? {
                let name = name_of(&path);
                let lock = format!("twin-{hash}-{}", name.trim_end_matches(".partial"));
                let reference = format!("twins/{hash}/{name}");
                if !needed.contains(&reference) && !is_locked(out, &lock) {
                    rests.push(Rest { bytes: bytes_below(&path)?, lock, why: "no run refers to it", path });
                }
            }
        }
    }
    rests.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(rests)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The folders in a folder; none where there is no folder. Links lead elsewhere, and are none.
fn folders(parent: &Path) -> io::Result<Vec<PathBuf>> {
    if !parent.is_dir() {
        return Ok(Vec::new());
    }
    let mut folders = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            folders.push(entry.path());
        }
    }
    folders.sort();
    Ok(folders)
}

/// Whether nothing in a folder itself was written for so long.
fn is_older(folder: &Path, age: Option<Duration>, now: SystemTime) -> io::Result<bool> {
    let Some(age) = age else { return Ok(false) };
    for entry in fs::read_dir(folder)? {
        let written = entry?.metadata()?.modified()?;
        if now.duration_since(written).unwrap_or_default() < age {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether another process works on what has this lock. Asking makes no lock.
fn is_locked(out: &Path, name: &str) -> bool {
    let file = std::fs::File::open(out.join("locks").join(format!("{name}.lock")));
    file.is_ok_and(|file| matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock)))
}

/// The twins and surrogates that a run's records name.
fn twins_in(run: &Path) -> io::Result<Vec<String>> {
    let mut twins = Vec::new();
    for entry in fs::read_dir(run)? {
        let path = entry?.path();
        if path.is_dir() {
            twins.extend(twins_in(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "json") {
            let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
            twins.extend(text.split('"').filter(|part| part.starts_with("twins/")).map(str::to_owned));
        }
    }
    Ok(twins)
}

fn bytes_below(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            bytes += bytes_below(&entry.path())?;
        } else if kind.is_file() {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(out: &Path, file: &str, text: &str) {
        let path = out.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A finished run with a twin, one that was moved aside with another twin, an unfinished one, and a folder of somebody's.
    fn example() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path();
        write(out, "a-1/summary.json", "{}");
        write(out, "a-1/seed-0/result.json", r#"{ "clean-twin": { "folder": "twins/aa/seed-0" } }"#);
        write(out, "a-1.old-1/summary.json", "{}");
        write(out, "a-1.old-1/seed-0/result.json", r#"{ "folder": "twins/bb/seed-0" }"#);
        write(out, "b-2.partial/config.toml", "x");
        write(out, "mine.partial/thesis.tex", "x");
        write(out, "mine.old-1/thesis.tex", "x");
        write(out, "notes/ideas.txt", "x");
        write(out, "twins/aa/seed-0/weights", "12");
        write(out, "twins/aa/seed-1/weights", "123");
        write(out, "twins/bb/seed-0/weights", "1234");
        folder
    }

    fn found(out: &Path, age: Option<Duration>) -> Vec<String> {
        let rests = rests(out, age, SystemTime::now()).unwrap();
        rests.iter().map(|rest| rest.path.strip_prefix(out).unwrap().display().to_string()).collect()
    }

    #[test]
    fn what_no_result_needs_can_go_and_nothing_else() {
        let folder = example();
        let expected = ["a-1.old-1", "b-2.partial", "twins/aa/seed-1", "twins/bb/seed-0"];
        assert_eq!(found(folder.path(), None), expected);
        let arguments = CleanArguments { out: folder.path().to_owned(), older_than: None, yes: true };
        clean(&arguments).unwrap();
        assert!(found(folder.path(), None).is_empty());
        for kept in [
            "a-1/summary.json",
            "mine.partial/thesis.tex",
            "mine.old-1/thesis.tex",
            "notes/ideas.txt",
            "twins/aa/seed-0/weights",
        ] {
            assert!(folder.path().join(kept).is_file(), "{kept}");
        }
        assert!(!folder.path().join("twins/bb").exists(), "an empty folder is left");
    }

    #[test]
    fn without_consent_nothing_goes() {
        let folder = example();
        // Tests have no terminal to answer from.
        clean(&CleanArguments { out: folder.path().to_owned(), older_than: None, yes: false }).unwrap();
        assert_eq!(found(folder.path(), None).len(), 4);
        assert!(clean(&CleanArguments { out: folder.path().join("none"), older_than: None, yes: true }).is_err());
    }

    #[test]
    fn a_run_that_goes_on_stays_with_all_twins() {
        let folder = example();
        let _held = lock(folder.path(), "b-2").unwrap().expect("it is free");
        assert_eq!(found(folder.path(), None), ["a-1.old-1"]);
    }

    #[test]
    fn a_twin_in_the_making_stays() {
        let folder = example();
        let _held = lock(folder.path(), "twin-aa-seed-1").unwrap().expect("it is free");
        assert!(!found(folder.path(), None).contains(&"twins/aa/seed-1".to_owned()));
    }

    #[test]
    fn finished_runs_go_by_age_alone() {
        let folder = example();
        assert!(!found(folder.path(), Some(Duration::from_hours(1))).contains(&"a-1".to_owned()));
        let old = found(folder.path(), Some(Duration::ZERO));
        // With the run goes the need for its twin.
        assert!(old.contains(&"a-1".to_owned()) && old.contains(&"twins/aa/seed-0".to_owned()), "{old:?}");
        assert!(!old.contains(&"notes".to_owned()), "{old:?}");
    }

    #[test]
    fn ages_are_read() {
        assert_eq!(days("0.5"), Ok(0.5));
        for text in ["-1", "x", "1e9"] {
            assert!(days(text).is_err(), "{text}");
        }
    }
}
