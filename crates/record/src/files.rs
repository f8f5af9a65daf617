use std::io::{self, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;

/// Writes a file under a temporary name beside it, then renames it, so that nobody ever sees half of it.
///
/// # Errors
/// If it cannot be written or renamed.
pub fn write_whole(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().map(ToOwned::to_owned).unwrap_or_default();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let mut file = fs::File::create(&temporary)?;
    file.write_all(contents)?;
    file.sync_all()?;
    drop(file);
    fs::rename(temporary, path)
}

/// Moves a file or folder to the first free of `NAME.old-1`, `NAME.old-2` and so on; returns where to.
///
/// # Errors
/// If it cannot be renamed.
///
/// # Panics
/// Never: numbers do not end.
pub fn move_aside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    for number in 1.. {
        let aside = path.with_file_name(format!("{name}.old-{number}"));
        if !aside.exists() {
            fs::rename(path, &aside)?;
            return Ok(aside);
        }
    }
    unreachable!("numbers do not end")
}

/// Whose name it was before [`move_aside`] changed it; `None` for any other name.
pub fn set_aside(name: &str) -> Option<&str> {
    let (owner, number) = name.rsplit_once(".old-")?;
    number.parse::<u32>().is_ok().then_some(owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_leaves_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result.json");
        write_whole(&path, b"1").unwrap();
        write_whole(&path, b"2").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "2");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn moving_aside_never_replaces_what_was_moved_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        for content in ["first", "second"] {
            fs::write(&path, content).unwrap();
            move_aside(&path).unwrap();
        }
        assert_eq!(fs::read_to_string(folder.path().join("run.old-1")).unwrap(), "first");
        assert_eq!(fs::read_to_string(folder.path().join("run.old-2")).unwrap(), "second");
        assert_eq!((set_aside("run.old-2"), set_aside("run"), set_aside("run.old-x")), (Some("run"), None, None));
    }
}
