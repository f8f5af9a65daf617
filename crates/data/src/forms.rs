//! In which forms people have the published data sets: as archives, unpacked, as torchvision and as Kaggle keep them.

use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::DataError;
use crate::catalog::CatalogEntry;
use crate::cifar::{Batch, RecordLayout};
use crate::gtsrb_files::{self, SignFiles};
use crate::idx;

/// Where a data set lies, and how it is kept there.
#[derive(Debug)]
pub(crate) struct Found {
    /// The folder or the archive.
    pub(crate) location: PathBuf,
    pub(crate) form: Form,
}

/// How a data set is kept.
#[derive(Debug)]
pub(crate) enum Form {
    /// Files of records or pickles in a folder.
    Batches(&'static [&'static str]),
    /// The same in an archive.
    Archive(&'static [&'static str]),
    /// IDX files.
    Idx,
    /// The traffic signs as single pictures.
    Signs(SignFiles),
}

/// Endings of archives: as published, and as browsers shorten or unpack them.
const ARCHIVE_ENDINGS: [&str; 3] = [".tar.gz", ".tgz", ".tar"];

const CIFAR10_PYTHON: [&str; 6] =
    ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"];

const CIFAR100_PYTHON: [&str; 2] = ["train", "test"];

impl CatalogEntry {
    /// Folders, archives and the files in them, in the order in which they are looked for below a data folder.
    fn forms(&self) -> Vec<(String, Form)> {
        let mut forms: Vec<(String, Form)> = Vec::new();
        let is_idx = self.files == idx::FILES;
        let form = || if is_idx { Form::Idx } else { Form::Batches(self.files) };
        forms.push((self.folder.to_owned(), form()));
        let archives: [(&str, &'static [&'static str]); 2] = match self.name {
            "cifar10" => {
                forms.push(("cifar-10-batches-py".to_owned(), Form::Batches(&CIFAR10_PYTHON)));
                [("cifar-10-binary", self.files), ("cifar-10-python", &CIFAR10_PYTHON)]
            }
            "cifar100" => {
                forms.push(("cifar-100-python".to_owned(), Form::Batches(&CIFAR100_PYTHON)));
                [("cifar-100-binary", self.files), ("cifar-100-python", &CIFAR100_PYTHON)]
            }
            "mnist" => {
                forms.extend(["MNIST/raw", "MNIST"].map(|folder| (folder.to_owned(), Form::Idx)));
                return forms;
            }
            "fashion-mnist" => {
                forms.extend(["FashionMNIST/raw", "FashionMNIST"].map(|folder| (folder.to_owned(), Form::Idx)));
                return forms;
            }
            _ => return forms,
        };
        for (archive, files) in archives {
            forms.extend(ARCHIVE_ENDINGS.map(|ending| (format!("{archive}{ending}"), Form::Archive(files))));
        }
        forms
    }

    /// Finds the data set in the first of `roots` that has it whole, in any form; a root may also be its folder itself.
    ///
    /// # Errors
    ///
    /// [`DataError::Missing`] if no root has any form of it, [`DataError::Incomplete`] if those that do lack files of it.
    pub(crate) fn find(&self, roots: &[PathBuf]) -> Result<Found, DataError> {
        let mut looked_in = Vec::new();
        let mut incomplete = None;
        for root in roots {
            for (number, (name, form)) in self.forms().into_iter().enumerate() {
                let location = if root.ends_with(&name) { root.clone() } else { root.join(&name) };
                if number == 0 {
                    looked_in.push(location.clone());
                }
                let missing = match &form {
                    Form::Batches(files) if location.is_dir() => missing_files(&location, files),
                    Form::Idx if location.is_dir() => idx::missing_files(&location),
                    Form::Archive(_) if location.is_file() => Vec::new(),
                    _ => continue,
                };
                if missing.is_empty() {
                    return Ok(Found { location, form });
                }
                incomplete.get_or_insert((location, missing));
            }
            if self.name == "gtsrb" {
                match gtsrb_files::find(root) {
                    Some(Ok(signs)) => return Ok(Found { location: signs.location.clone(), form: Form::Signs(signs) }),
                    Some(Err(lack)) => drop(incomplete.get_or_insert(lack)),
                    None => {}
                }
            }
        }
        let how_to_get = self.how_to_get();
        if let Some((directory, missing)) = incomplete {
            return Err(DataError::Incomplete { directory, missing, how_to_get });
        }
        let how_to_get = how_to_get + &self.lying_there(roots);
        Err(DataError::Missing { dataset: self.name.to_owned(), looked_in, how_to_get })
    }

    /// Names what lies in `roots` and seems to be of this data set, but in no form we read.
    fn lying_there(&self, roots: &[PathBuf]) -> String {
        let letters = |name: &str| name.to_lowercase().replace(['-', '_', ' '], "");
        let wanted = letters(self.name);
        let is_other = |name: &str| match self.name {
            "cifar10" => name.contains("cifar100"),
            "mnist" => name.contains("fashion") || name.contains("emnist") || name.contains("kmnist"),
            _ => false,
        };
        let names = roots.iter().flat_map(|root| std::fs::read_dir(root).into_iter().flatten().flatten());
        let mut found: Vec<String> = names
            .filter(|entry| {
                let name = letters(&entry.file_name().to_string_lossy());
                !name.starts_with('.') && name.contains(&wanted) && !is_other(&name)
            })
            .map(|entry| entry.path().display().to_string())
            .collect();
        found.sort_unstable();
        if found.is_empty() {
            return String::new();
        }
        let lies = if found.len() == 1 { "lies there, but is" } else { "lie there, but are" };
        format!("; {} {lies} in no form that is read", found.join(", "))
    }
}

/// Names of the files that `directory` lacks.
pub(crate) fn missing_files(directory: &Path, files: &[&str]) -> Vec<String> {
    files.iter().filter(|file| !directory.join(file).is_file()).map(|&file| file.to_owned()).collect()
}

/// Opens the batches of a data set, in the order of `files`.
pub(crate) fn batches(
    entry: &CatalogEntry,
    found: &Found,
    layout: RecordLayout,
) -> Result<(Vec<Batch>, Batch), DataError> {
    let mut batches = match found.form {
        Form::Batches(files) => files
            .iter()
            .map(|file| Batch::open(found.location.join(file), layout))
            .collect::<Result<Vec<_>, DataError>>()?,
        Form::Archive(files) => unpack(&found.location, files, &entry.how_to_get())?
            .into_iter()
            .zip(files)
            .map(|(bytes, file)| Batch::of(found.location.join(file), bytes, layout))
            .collect::<Result<Vec<_>, DataError>>()?,
        Form::Idx | Form::Signs(_) => unreachable!("this data set is no set of batches"),
    };
    let test = batches.pop().expect("a data set has at least two files");
    Ok((batches, test))
}

/// The largest file we unpack into memory; a batch has 31 MB, and CIFAR-100's training images 154.
const LARGEST: u64 = 1 << 30;

/// Unpacks `files` of a `.tar` or `.tar.gz` into memory, in whatever folder they lie there.
fn unpack(archive: &Path, files: &[&str], how_to_get: &str) -> Result<Vec<Vec<u8>>, DataError> {
    let damaged = |error: io::Error| match error.kind() {
        // What tar and flate2 report for damaged data; errors of the disk stay as they are.
        io::ErrorKind::InvalidInput
        | io::ErrorKind::InvalidData
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::Other => DataError::Corrupt {
            path: archive.to_owned(),
            offset: fs_err::metadata(archive).map_or(0, |file| file.len()),
            found: format!("a damaged archive ({error})"),
            expected: "a whole .tar or .tar.gz".to_owned(),
        },
        _ => error.into(),
    };
    let mut file = BufReader::with_capacity(1 << 16, fs_err::File::open(archive)?);
    let is_gzipped = file.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    let reader: Box<dyn Read> = if is_gzipped { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut found: Vec<Option<Vec<u8>>> = vec![None; files.len()];
    let mut tar = tar::Archive::new(reader);
    for entry in tar.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        if !entry.header().entry_type().is_file() || entry.size() > LARGEST {
            continue;
        }
        let name = entry.path().map_err(damaged)?.file_name().map(|name| name.to_string_lossy().into_owned());
        if let Some(at) = files.iter().position(|&file| Some(file) == name.as_deref()) {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(damaged)?;
            if bytes.len() as u64 != entry.size() {
                return Err(damaged(io::ErrorKind::UnexpectedEof.into()));
            }
            found[at] = Some(bytes);
        }
    }
    // The checksum stands at the end.
    io::copy(&mut tar.into_inner(), &mut io::sink()).map_err(damaged)?;
    let missing = files.iter().zip(&found).filter(|(_, bytes)| bytes.is_none());
    let missing: Vec<String> = missing.map(|(&file, _)| file.to_owned()).collect();
    if !missing.is_empty() {
        let how_to_get = how_to_get.to_owned();
        return Err(DataError::Incomplete { directory: archive.to_owned(), missing, how_to_get });
    }
    Ok(found.into_iter().flatten().collect())
}
