use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::RecordError;
use crate::files::write_whole;

/// The list of checksums in each folder, in the form that `sha256sum --check` reads.
const SUMS: &str = "SHA256SUMS";

/// What a line of the list begins with that has the checksum of a file before it was last written.
const BEFORE: &str = "# before: ";

/// The checksums of the files in one folder.
///
/// A file that is written again has two: the list is written first, so that a process that is killed between the two
/// leaves a file that one of them fits.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sums {
    /// Name, checksum, checksum before; sorted by name.
    entries: Vec<(String, String, Option<String>)>,
}

impl Sums {
    /// Reads the list of a folder; an empty one if there is none.
    fn read(folder: &Path) -> Result<Self, RecordError> {
        let path = folder.join(SUMS);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error.into()),
        };
        let text = String::from_utf8_lossy(&bytes);
        let mut sums = Self::default();
        for (number, line) in text.lines().enumerate() {
            let wrong = || RecordError::Checksums { path: path.clone(), line: number + 1, found: line.to_owned() };
            let (before, entry) = line.strip_prefix(BEFORE).map_or((false, line), |entry| (true, entry));
            let (sum, name) = entry.split_once("  ").ok_or_else(wrong)?;
            if sum.len() != 64 || !sum.bytes().all(|byte| byte.is_ascii_hexdigit()) || name.is_empty() {
                return Err(wrong());
            }
            if before {
                let known = sums.entries.iter_mut().find(|(known, _, _)| known == name).ok_or_else(wrong)?;
                known.2 = Some(sum.to_owned());
            } else {
                sums.entries.push((name.to_owned(), sum.to_owned(), None));
            }
        }
        Ok(sums)
    }

    fn write(&self, folder: &Path) -> io::Result<()> {
        let mut text = String::new();
        for (name, sum, before) in &self.entries {
            text.extend([sum, "  ", name, "\n"]);
            if let Some(before) = before {
                text.extend([BEFORE, before, "  ", name, "\n"]);
            }
        }
        write_whole(&folder.join(SUMS), text.as_bytes())
    }

    fn set(&mut self, name: &str, sum: String) {
        match self.entries.binary_search_by(|(known, _, _)| known.as_str().cmp(name)) {
            Ok(at) => {
                let (_, current, before) = &mut self.entries[at];
                if *current != sum {
                    *before = Some(std::mem::replace(current, sum));
                }
            }
            Err(at) => self.entries.insert(at, (name.to_owned(), sum, None)),
        }
    }

    fn check(&self, path: &Path, name: &str, found: String) -> Result<(), RecordError> {
        let Some((_, current, before)) = self.entries.iter().find(|(known, _, _)| known == name) else {
            return Err(RecordError::Unsealed { path: path.to_owned() });
        };
        if found == *current || before.as_ref() == Some(&found) {
            return Ok(());
        }
        Err(RecordError::Damaged { path: path.to_owned(), expected: current.clone(), found })
    }
}

/// Folder and name of a file.
fn place(path: &Path) -> (PathBuf, String) {
    let folder = path.parent().map(Path::to_owned).unwrap_or_default();
    (folder, path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default())
}

fn sum_of(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |text, byte| text + &format!("{byte:02x}"))
}

/// Writes a file whole or not at all, and its SHA-256 into `SHA256SUMS` beside it.
///
/// One process at a time may write to a folder; [`lock`](crate::lock) sees to that.
///
/// # Errors
/// If one of the two cannot be written, or the list that is there cannot be understood.
pub fn write_sealed(path: &Path, contents: &[u8]) -> Result<(), RecordError> {
    let (folder, name) = place(path);
    let mut sums = Sums::read(&folder)?;
    sums.set(&name, sum_of(contents));
    sums.write(&folder)?;
    Ok(write_whole(path, contents)?)
}

/// Writes a value as indented JSON; as [`write_sealed`].
///
/// # Errors
/// Those of [`write_sealed`].
pub fn write_sealed_json(path: &Path, value: &impl Serialize) -> Result<(), RecordError> {
    let mut text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    text.push('\n');
    write_sealed(path, text.as_bytes())
}

/// Writes values as one line of JSON each; as [`write_sealed`].
///
/// # Errors
/// Those of [`write_sealed`].
pub fn write_sealed_json_lines<T: Serialize>(
    path: &Path,
    values: impl IntoIterator<Item = T>,
) -> Result<(), RecordError> {
    let mut text = String::new();
    for value in values {
        text.push_str(&serde_json::to_string(&value).map_err(io::Error::other)?);
        text.push('\n');
    }
    write_sealed(path, text.as_bytes())
}

/// Notes the SHA-256 of a file that somebody else has just written, such as a classifier's weights.
///
/// # Errors
/// If the file cannot be read, or the list not be understood or written.
pub fn seal(path: &Path) -> Result<(), RecordError> {
    let (folder, name) = place(path);
    let mut sums = Sums::read(&folder)?;
    sums.set(&name, sum_of(&fs::read(path)?));
    Ok(sums.write(&folder)?)
}

/// Reads a file that [`write_sealed`] wrote or [`seal`] noted.
///
/// # Errors
/// If it cannot be read, is not as it was written, or nothing says how it was written.
pub fn read_sealed(path: &Path) -> Result<Vec<u8>, RecordError> {
    let bytes = fs::read(path)?;
    let (folder, name) = place(path);
    Sums::read(&folder)?.check(path, &name, sum_of(&bytes))?;
    Ok(bytes)
}

/// Makes sure that a file is as it was written, for those who read it by other means.
///
/// # Errors
/// Those of [`read_sealed`].
pub fn check_sealed(path: &Path) -> Result<(), RecordError> {
    read_sealed(path).map(|_| ())
}

/// Whether a file is there and its checksum is noted, right or wrong.
///
/// Without a checksum it is a file that a killed process had not yet noted, and is written again.
///
/// # Errors
/// If the list cannot be understood.
pub fn is_sealed(path: &Path) -> Result<bool, RecordError> {
    let (folder, name) = place(path);
    Ok(path.is_file() && Sums::read(&folder)?.entries.iter().any(|(known, _, _)| *known == name))
}

/// Reads a value that [`write_sealed_json`] wrote.
///
/// # Errors
/// Those of [`read_sealed`], and if the file holds something else.
pub fn read_sealed_json<T: DeserializeOwned>(path: &Path) -> Result<T, RecordError> {
    let malformed = |source| RecordError::Malformed { path: path.to_owned(), source };
    serde_json::from_slice(&read_sealed(path)?).map_err(malformed)
}

/// Reads values that [`write_sealed_json_lines`] wrote.
///
/// # Errors
/// Those of [`read_sealed`], and if a line holds something else.
pub fn read_sealed_json_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, RecordError> {
    let malformed = |source| RecordError::Malformed { path: path.to_owned(), source };
    let bytes = read_sealed(path)?;
    let lines = bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).map_err(malformed)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result.json");
        write_sealed_json(&path, &[1.5, 0.1]).unwrap();
        assert_eq!(read_sealed_json::<Vec<f64>>(&path).unwrap(), [1.5, 0.1]);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(matches!(read_sealed(&path), Err(RecordError::Damaged { .. })), "{length} bytes");
        }
        for bit in 0..8 * whole.len() {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, flipped).unwrap();
            assert!(matches!(read_sealed(&path), Err(RecordError::Damaged { .. })), "bit {bit}");
        }
        fs::write(&path, whole).unwrap();
        assert!(read_sealed(&path).is_ok());
    }

    #[test]
    fn a_damaged_list_of_checksums_never_lets_a_file_pass_that_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        write_sealed(&path, b"as trained").unwrap();
        let sums = fs::read(folder.path().join(SUMS)).unwrap();
        fs::write(&path, b"as trainee").unwrap();
        for bit in 0..8 * sums.len() {
            let mut flipped = sums.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(folder.path().join(SUMS), flipped).unwrap();
            assert!(read_sealed(&path).is_err(), "bit {bit}");
        }
        for length in 0..sums.len() {
            fs::write(folder.path().join(SUMS), &sums[..length]).unwrap();
            assert!(read_sealed(&path).is_err(), "{length} bytes");
        }
        fs::remove_file(folder.path().join(SUMS)).unwrap();
        assert!(matches!(read_sealed(&path), Err(RecordError::Unsealed { .. })));
    }

    #[test]
    fn a_file_that_a_killed_process_did_not_rewrite_still_fits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("epochs.jsonl");
        write_sealed_json_lines(&path, [1]).unwrap();
        let before = fs::read(&path).unwrap();
        write_sealed_json_lines(&path, [1, 2]).unwrap();
        assert_eq!(read_sealed_json_lines::<u32>(&path).unwrap(), [1, 2]);
        // The list is written before the file is.
        fs::write(&path, &before).unwrap();
        assert_eq!(read_sealed_json_lines::<u32>(&path).unwrap(), [1]);
        write_sealed_json_lines(&path, [1, 3]).unwrap();
        fs::write(&path, &before).unwrap();
        assert!(matches!(read_sealed(&path), Err(RecordError::Damaged { .. })), "two versions back");
    }

    #[test]
    fn the_list_is_one_that_sha256sum_reads() {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in [("b", "2"), ("a", "1"), ("a", "")] {
            write_sealed(&folder.path().join(name), content.as_bytes()).unwrap();
        }
        let text = fs::read_to_string(folder.path().join(SUMS)).unwrap();
        // SHA-256 of nothing, of "1" and of "2".
        assert_eq!(
            text,
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  a\n\
             # before: 6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b  a\n\
             d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35  b\n"
        );
        assert!(is_sealed(&folder.path().join("a")).unwrap());
        fs::write(folder.path().join("c"), "3").unwrap();
        assert!(!is_sealed(&folder.path().join("c")).unwrap());
        seal(&folder.path().join("c")).unwrap();
        assert_eq!(read_sealed(&folder.path().join("c")).unwrap(), b"3");
    }
}
