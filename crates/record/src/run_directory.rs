use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::files::move_aside;
use crate::{RecordError, RunSummary, read_summary};

/// Where one run writes, guarded against a second process.
///
/// While a run is unfinished its folder is `NAME.partial`; finishing renames it to `NAME`, which is
/// never written to again.
#[derive(Debug)]
pub struct RunDirectory {
    finished: PathBuf,
    partial: PathBuf,
    _lock: File,
}

/// The last file of a run.
const SUMMARY: &str = "summary.json";

/// What becomes of a run that is there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Again {
    /// It stays as it is.
    #[default]
    No,
    /// All of it is computed anew; what is there is moved aside.
    Fresh,
    /// What failed of it is computed anew: what is there is moved aside, and what did not fail is taken over.
    Failed,
}

/// What is found where a run wants to write.
#[derive(Debug)]
pub enum Opened {
    /// The same run, finished earlier.
    Finished(PathBuf),
    /// A folder to write to, new or left by an interrupted run.
    Ready(RunDirectory),
}

/// What can go wrong with the folder of a run.
#[derive(Debug, thiserror::Error)]
pub enum RunDirectoryError {
    /// Another process writes there.
    #[error("{} is being written by another process; wait for it, or give another folder with --out", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// A folder on the way is a link to nothing.
    #[error(
        "cannot write to {}: {} is a link to {}, which is not there; make that folder, or give another one with --out",
        path.display(), link.display(), target.display()
    )]
    DanglingLink {
        /// The folder.
        path: PathBuf,
        /// The link.
        link: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// What a run left cannot be taken over.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The folder cannot be made or written to.
    #[error("cannot write to {}; give another folder with --out, or mend this one", path.display())]
    Unwritable {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl RunDirectory {
    /// The folder of the finished run of this name, if there is one.
    pub fn finished(out: &Path, name: &str) -> Option<PathBuf> {
        Self::finished_with(out, name, SUMMARY)
    }

    /// The same of work whose last file is another.
    pub fn finished_with(out: &Path, name: &str, last: &str) -> Option<PathBuf> {
        let path = out.join(name);
        path.join(last).is_file().then_some(path)
    }

    /// Opens the folder of the run `name` below `out`, making it if need be.
    ///
    /// # Errors
    /// If another process is at the same run, or nothing can be written there.
    pub fn open(out: &Path, name: &str, again: Again) -> Result<Opened, RunDirectoryError> {
        Self::open_with(out, name, again, SUMMARY)
    }

    /// The same of work whose last file is another; [`Again::Failed`] is for runs alone.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(out: &Path, name: &str, again: Again, last: &str) -> Result<Opened, RunDirectoryError> {
        let unwritable = |path: &Path| {
            let path = path.to_owned();
            move |source| RunDirectoryError::Unwritable { path, source }
        };
        let finished = out.join(name);
        let partial = out.join(format!("{name}.partial"));
        let lock = lock(out, name)?.ok_or_else(|| RunDirectoryError::Busy { path: partial.clone() })?;
        let aside = |path: &Path| -> Result<(), RunDirectoryError> {
            if path.exists() {
                let aside = move_aside(path).map_err(unwritable(path))?;
                tracing::info!(from = %path.display(), to = %aside.display(), "moved aside");
            }
            Ok(())
        };
        let is_finished = Self::finished_with(out, name, last).is_some();
        let summary = (again == Again::Failed && is_finished).then(|| read_summary(&finished));
        if let Some(Ok(summary)) = &summary {
            if summary.is_complete() {
                return Ok(Opened::Finished(finished));
            }
            // A process that is killed here leaves the finished run, or both.
            aside(&partial)?;
            take_over(&finished, summary, &partial)?;
            aside(&finished)?;
        } else if again == Again::Fresh || matches!(summary, Some(Err(_))) {
            aside(&finished)?;
            aside(&partial)?;
        } else if is_finished {
            return Ok(Opened::Finished(finished));
        } else if finished.exists() {
            // Something that is not a finished run: not ours to write to, and not to be lost.
            move_aside(&finished).map_err(unwritable(&finished))?;
        }
        fs::create_dir_all(&partial).map_err(unwritable(&partial))?;
        Ok(Opened::Ready(Self { finished, partial, _lock: lock }))
    }

    /// The folder to write to.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// The folder's name once the run is finished.
    pub fn finished_path(&self) -> &Path {
        &self.finished
    }

    /// Gives the folder its final name and returns it.
    ///
    /// # Errors
    /// If the folder cannot be renamed.
    pub fn finish(self) -> io::Result<PathBuf> {
        fs::rename(&self.partial, &self.finished)?;
        Ok(self.finished)
    }
}

/// The nearest folder above a path, or the path itself, that is a link to nothing, and where it leads.
fn dangling_link(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let link = path.ancestors().find(|path| path.is_symlink() && !path.exists())?;
    Some((link.to_owned(), std::fs::read_link(link).unwrap_or_default()))
}

/// Copies what did not fail of a finished run to a new folder: all of it but its summary, seeds that failed, and of the
/// other seeds their results and the defenses that failed.
fn take_over(finished: &Path, summary: &RunSummary, into: &Path) -> Result<(), RecordError> {
    let mut failed = vec![PathBuf::from("summary.json")];
    for seed in &summary.seeds {
        let folder = PathBuf::from(format!("seed-{}", seed.seed));
        let Some(measured) = seed.measurements() else {
            failed.push(folder);
            continue;
        };
        let defenses = measured.defenses.iter().enumerate().filter(|(_, defense)| defense.failure().is_some());
        let defenses = defenses.map(|(index, defense)| defense_folder(&folder, index, &defense.name));
        let defenses = defenses.collect::<Vec<_>>();
        if !defenses.is_empty() {
            failed.push(folder.join("result.json"));
            failed.extend(defenses);
        }
    }
    let copy = into.with_extension("copy");
    if copy.exists() {
        fs::remove_dir_all(&copy)?;
    }
    copy_but(finished, &copy, &failed)?;
    Ok(fs::rename(copy, into)?)
}

/// Copies a folder but for these paths in it.
fn copy_but(from: &Path, to: &Path, left_out: &[PathBuf]) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let name = PathBuf::from(path.file_name().unwrap_or_default());
        if left_out.contains(&name) {
            continue;
        }
        if path.is_dir() {
            let below = left_out.iter().filter_map(|path| path.strip_prefix(&name).ok().map(Path::to_owned));
            copy_but(&path, &to.join(&name), &below.collect::<Vec<_>>())?;
        } else {
            fs::copy(&path, to.join(&name))?;
        }
    }
    Ok(())
}

/// The folder of a defense of a seed, below the seed's folder.
pub fn defense_folder(seed: &Path, index: usize, name: &str) -> PathBuf {
    seed.join("defenses").join(format!("{index}-{name}"))
}

/// Takes the lock of a name below `out`; `None` if another process has it. The lock ends with the file.
///
/// # Errors
/// If the file of the lock cannot be made.
pub fn lock(out: &Path, name: &str) -> Result<Option<File>, RunDirectoryError> {
    let locks = out.join("locks");
    let path = locks.join(format!("{name}.lock"));
    let unwritable = |source| RunDirectoryError::Unwritable { path: path.clone(), source };
    if let Some((link, target)) = dangling_link(&locks) {
        return Err(RunDirectoryError::DanglingLink { path: out.to_owned(), link, target });
    }
    fs::create_dir_all(&locks).map_err(unwritable)?;
    let file = File::options().create(true).append(true).open(&path).map_err(unwritable)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(source)) => Err(unwritable(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(opened: Opened) -> RunDirectory {
        match opened {
            Opened::Ready(directory) => directory,
            Opened::Finished(path) => panic!("{} is finished", path.display()),
        }
    }

    #[test]
    fn an_unfinished_run_is_found_again_and_a_finished_one_is_not_reopened() {
        let out = tempfile::tempdir().unwrap();
        let first = ready(RunDirectory::open(out.path(), "a-12345678", Again::No).unwrap());
        fs::write(first.path().join("left"), "here").unwrap();
        drop(first);
        let second = ready(RunDirectory::open(out.path(), "a-12345678", Again::No).unwrap());
        assert!(second.path().join("left").exists());
        assert!(RunDirectory::finished(out.path(), "a-12345678").is_none());
        fs::write(second.path().join("summary.json"), "{}").unwrap();
        let finished = second.finish().unwrap();
        assert_eq!(finished, out.path().join("a-12345678"));
        assert!(matches!(RunDirectory::open(out.path(), "a-12345678", Again::No).unwrap(), Opened::Finished(_)));
    }

    #[test]
    fn fresh_moves_the_old_run_aside_and_loses_nothing() {
        let out = tempfile::tempdir().unwrap();
        let first = ready(RunDirectory::open(out.path(), "a", Again::No).unwrap());
        fs::write(first.path().join("summary.json"), "old").unwrap();
        first.finish().unwrap();
        let second = ready(RunDirectory::open(out.path(), "a", Again::Fresh).unwrap());
        assert_eq!(fs::read_dir(second.path()).unwrap().count(), 0);
        assert_eq!(fs::read_to_string(out.path().join("a.old-1/summary.json")).unwrap(), "old");
    }

    #[test]
    fn a_second_process_is_turned_away() {
        let out = tempfile::tempdir().unwrap();
        let _first = ready(RunDirectory::open(out.path(), "a", Again::No).unwrap());
        let error = RunDirectory::open(out.path(), "a", Again::No).unwrap_err();
        assert!(matches!(error, RunDirectoryError::Busy { .. }));
    }

    #[cfg(unix)]
    #[test]
    fn an_output_that_is_a_link_to_nothing_is_an_error_that_says_so() {
        let out = tempfile::tempdir().unwrap();
        let link = out.path().join("link");
        std::os::unix::fs::symlink("gone", &link).unwrap();
        for folder in [link.clone(), link.join("below")] {
            let said = RunDirectory::open(&folder, "a", Again::No).unwrap_err().to_string();
            assert!(said.contains("is a link to gone, which is not there; make that folder"), "{said}");
        }
        fs::create_dir(out.path().join("gone")).unwrap();
        ready(RunDirectory::open(&link, "a", Again::No).unwrap());
    }

    #[test]
    fn an_output_that_is_a_file_is_an_error_that_names_it() {
        let out = tempfile::tempdir().unwrap();
        let file = out.path().join("file");
        fs::write(&file, "").unwrap();
        let error = RunDirectory::open(&file, "a", Again::No).unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
    }
}
