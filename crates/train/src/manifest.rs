use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Lengths and SHA-256 of the files in a folder, and a digest of its own, so that damage is seen before anything is read.
///
/// It lies in the folder as `manifest.json`. Whoever writes the folder writes it last; whoever reads the folder reads it
/// first and takes the other files through [`Manifest::read_file`], which hands out checked bytes only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manifest {
    files: BTreeMap<String, FileDigest>,
}

/// What is known of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct FileDigest {
    /// Its length.
    pub(crate) bytes: u64,
    /// Its SHA-256, 64 lower-case hexadecimal digits.
    pub(crate) sha256: String,
}

impl FileDigest {
    /// The digest of a file with these contents.
    pub(crate) fn of(contents: &[u8]) -> Self {
        Self { bytes: contents.len() as u64, sha256: sha256(contents) }
    }
}

/// `manifest.json` as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Sealed {
    files: BTreeMap<String, FileDigest>,
    /// SHA-256 of `files` as compact JSON.
    seal: String,
}

/// Why a folder or one of its files is not taken for what was written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    /// A file is not there.
    #[error("lacks {name}")]
    Missing {
        /// The file's name.
        name: String,
    },
    /// The manifest is no manifest, or not the one that was written.
    #[error("has a damaged manifest")]
    Manifest,
    /// The manifest does not speak of a file.
    #[error("has a manifest without {name}")]
    Unlisted {
        /// The file's name.
        name: String,
    },
    /// A file is shorter or longer than it was.
    #[error("has {found} bytes of {name}, expected {expected}")]
    Length {
        /// The file's name.
        name: String,
        /// Its length when it was written.
        expected: u64,
        /// Its length now.
        found: u64,
    },
    /// A file has other bytes than it had.
    #[error("has a damaged {name}: its SHA-256 differs from the one noted when it was written")]
    Contents {
        /// The file's name.
        name: String,
    },
    /// A file could not be read, which says nothing about what is in it.
    #[error("reading {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Manifest {
    /// The name it has in its folder.
    pub(crate) const FILE: &str = "manifest.json";

    /// Notes a file by what is written into it.
    pub(crate) fn insert(&mut self, name: &str, contents: &[u8]) {
        self.files.insert(name.to_owned(), FileDigest::of(contents));
    }

    /// The contents of `manifest.json`.
    ///
    /// # Panics
    /// Never: names and numbers can be written as JSON.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let sealed = Sealed { files: self.files.clone(), seal: self.seal() };
        let mut text = serde_json::to_vec_pretty(&sealed).expect("names and numbers can be written as JSON");
        text.push(b'\n');
        text
    }

    /// Reads the manifest of a folder.
    ///
    /// # Errors
    /// If it is missing, damaged or cannot be read.
    pub(crate) fn read(folder: &Path) -> Result<Self, ManifestError> {
        let text = read(folder, Self::FILE)?;
        let Sealed { files, seal } = serde_json::from_slice(&text).map_err(|_| ManifestError::Manifest)?;
        let manifest = Self { files };
        if seal == manifest.seal() { Ok(manifest) } else { Err(ManifestError::Manifest) }
    }

    /// Reads a file of the folder; the bytes that are returned are those that were checked.
    ///
    /// # Errors
    /// If it is missing, not listed, cannot be read, or is not what was written.
    pub(crate) fn read_file(&self, folder: &Path, name: &str) -> Result<Vec<u8>, ManifestError> {
        let Some(expected) = self.files.get(name) else {
            return Err(ManifestError::Unlisted { name: name.into() });
        };
        let contents = read(folder, name)?;
        let found = contents.len() as u64;
        if found != expected.bytes {
            return Err(ManifestError::Length { name: name.into(), expected: expected.bytes, found });
        }
        if sha256(&contents) != expected.sha256 {
            return Err(ManifestError::Contents { name: name.into() });
        }
        Ok(contents)
    }

    fn seal(&self) -> String {
        sha256(&serde_json::to_vec(&self.files).expect("names and numbers can be written as JSON"))
    }
}

fn read(folder: &Path, name: &str) -> Result<Vec<u8>, ManifestError> {
    let path = folder.join(name);
    fs::read(&path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => ManifestError::Missing { name: name.into() },
        _ => ManifestError::Io { path, source },
    })
}

fn sha256(contents: &[u8]) -> String {
    Sha256::digest(contents).iter().fold(String::with_capacity(64), |text, byte| format!("{text}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with the file `abc`, which holds these three letters, and its manifest.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut manifest = Manifest::default();
        manifest.insert("abc", b"abc");
        fs::write(folder.path().join("abc"), b"abc").expect("the folder is writable");
        fs::write(folder.path().join(Manifest::FILE), manifest.to_json()).expect("the folder is writable");
        folder
    }

    fn read_abc(folder: &Path) -> Result<Vec<u8>, ManifestError> {
        Manifest::read(folder)?.read_file(folder, "abc")
    }

    #[test]
    fn digests_are_those_of_the_standard() {
        // FIPS 180-2, appendix B.1.
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(FileDigest::of(b"abc"), FileDigest { bytes: 3, sha256: sha256.into() });
        assert_eq!(read_abc(folder().path()).expect("it is whole"), b"abc");
    }

    #[test]
    fn no_flipped_bit_of_a_manifest_changes_what_is_read() {
        let folder = folder();
        let path = folder.path().join(Manifest::FILE);
        let whole = fs::read(&path).expect("just written");
        let mut refused = 0;
        for bit in 0..8 * whole.len() {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, damaged).expect("the folder is writable");
            match read_abc(folder.path()) {
                Ok(contents) => assert_eq!(contents, b"abc"),
                Err(ManifestError::Manifest) => refused += 1,
                Err(error) => panic!("bit {bit}: {error}"),
            }
        }
        // At most a space between two words may become another space.
        assert!(refused > 8 * whole.len() - 20, "{refused} of {}", 8 * whole.len());
    }

    #[test]
    fn every_damage_has_its_error() {
        let error = |change: &dyn Fn(&Path)| {
            let folder = folder();
            change(folder.path());
            read_abc(folder.path()).expect_err("it is damaged").to_string()
        };
        let write = |name: &str, contents: &[u8]| {
            error(&|folder| fs::write(folder.join(name), contents).expect("the folder is writable"))
        };
        let remove = |name: &str| error(&|folder| fs::remove_file(folder.join(name)).expect("it is there"));
        assert_eq!(remove("abc"), "lacks abc");
        assert_eq!(remove(Manifest::FILE), "lacks manifest.json");
        assert_eq!(write("abc", b"ab"), "has 2 bytes of abc, expected 3");
        assert_eq!(
            write("abc", b"abb"),
            "has a damaged abc: its SHA-256 differs from the one noted when it was written"
        );
        assert_eq!(write(Manifest::FILE, b""), "has a damaged manifest");
        assert_eq!(write(Manifest::FILE, &Manifest::default().to_json()), "has a manifest without abc");
    }
}
