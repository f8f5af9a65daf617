use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::files::move_aside;

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
    /// The folder cannot be made or written to.
    #[error("cannot write to {}", path.display())]
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
        let path = out.join(name);
        path.join("summary.json").is_file().then_some(path)
    }

    /// Opens the folder of the run `name` below `out`, making it if need be. With `fresh`, what is there
    /// already is moved aside first.
    ///
    /// # Errors
    /// If another process is at the same run, or nothing can be written there.
    pub fn open(out: &Path, name: &str, fresh: bool) -> Result<Opened, RunDirectoryError> {
        let unwritable = |path: &Path| {
            let path = path.to_owned();
            move |source| RunDirectoryError::Unwritable { path, source }
        };
        let finished = out.join(name);
        let partial = out.join(format!("{name}.partial"));
        let lock = lock(out, name)?.ok_or_else(|| RunDirectoryError::Busy { path: partial.clone() })?;
        if fresh {
            for path in [&finished, &partial] {
                if path.exists() {
                    let aside = move_aside(path).map_err(unwritable(path))?;
                    tracing::info!(from = %path.display(), to = %aside.display(), "moved aside");
                }
            }
        } else if Self::finished(out, name).is_some() {
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

/// Takes the lock of a name below `out`; `None` if another process has it. The lock ends with the file.
///
/// # Errors
/// If the file of the lock cannot be made.
pub fn lock(out: &Path, name: &str) -> Result<Option<File>, RunDirectoryError> {
    let locks = out.join("locks");
    let path = locks.join(format!("{name}.lock"));
    let unwritable = |source| RunDirectoryError::Unwritable { path: path.clone(), source };
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
        let first = ready(RunDirectory::open(out.path(), "a-12345678", false).unwrap());
        fs::write(first.path().join("left"), "here").unwrap();
        drop(first);
        let second = ready(RunDirectory::open(out.path(), "a-12345678", false).unwrap());
        assert!(second.path().join("left").exists());
        assert!(RunDirectory::finished(out.path(), "a-12345678").is_none());
        fs::write(second.path().join("summary.json"), "{}").unwrap();
        let finished = second.finish().unwrap();
        assert_eq!(finished, out.path().join("a-12345678"));
        assert!(matches!(RunDirectory::open(out.path(), "a-12345678", false).unwrap(), Opened::Finished(_)));
    }

    #[test]
    fn fresh_moves_the_old_run_aside_and_loses_nothing() {
        let out = tempfile::tempdir().unwrap();
        let first = ready(RunDirectory::open(out.path(), "a", false).unwrap());
        fs::write(first.path().join("summary.json"), "old").unwrap();
        first.finish().unwrap();
        let second = ready(RunDirectory::open(out.path(), "a", true).unwrap());
        assert_eq!(fs::read_dir(second.path()).unwrap().count(), 0);
        assert_eq!(fs::read_to_string(out.path().join("a.old-1/summary.json")).unwrap(), "old");
    }

    #[test]
    fn a_second_process_is_turned_away() {
        let out = tempfile::tempdir().unwrap();
        let _first = ready(RunDirectory::open(out.path(), "a", false).unwrap());
        let error = RunDirectory::open(out.path(), "a", false).unwrap_err();
        assert!(matches!(error, RunDirectoryError::Busy { .. }));
    }

    #[test]
    fn an_output_that_is_a_file_is_an_error_that_names_it() {
        let out = tempfile::tempdir().unwrap();
        let file = out.path().join("file");
        fs::write(&file, "").unwrap();
        let error = RunDirectory::open(&file, "a", false).unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
    }
}
