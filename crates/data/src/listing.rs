//! What lies in a folder of images: pictures, classes, and what is neither.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::DataError;
use crate::picture::ENDINGS;

/// Files that programs leave behind; nobody means them as images. Files that begin with `._` are of this kind too.
const LITTER: [&str; 14] = [
    ".ds_store",
    ".directory",
    ".gitattributes",
    ".gitignore",
    ".gitkeep",
    ".keep",
    ".localized",
    ".nomedia",
    ".picasa.ini",
    "desktop.ini",
    "ehthumbs.db",
    "icon\r",
    "picasa.ini",
    "thumbs.db",
];

/// Folders of the same kind.
const LITTER_FOLDERS: [&str; 10] = [
    "$recycle.bin",
    "@eadir",
    "__macosx",
    ".appledouble",
    ".git",
    ".ipynb_checkpoints",
    ".spotlight-v100",
    ".thumbnails",
    ".trashes",
    "__pycache__",
];

/// The pictures below the folder of a split, and what else lies there.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Their files and labels: class by class, and in a class folder by folder, as `ImageFolder` of torchvision orders them.
    pub(crate) pictures: Vec<(PathBuf, u8)>,
    /// The split's folder.
    root: PathBuf,
    /// How many entries of each kind are not read.
    left: BTreeMap<String, usize>,
    /// The first of them.
    first_left: Option<PathBuf>,
}

impl Listing {
    /// Looks through the folders of `classes` below `directory`; links are followed. A class may have no folder there.
    ///
    /// # Errors
    ///
    /// [`DataError::BadFolder`] if a class has a folder without a picture, or if a link leads nowhere or back to a folder
    /// that holds it.
    pub(crate) fn of(directory: &Path, classes: &[String]) -> Result<Self, DataError> {
        let mut listing = Self { root: directory.to_owned(), ..Self::default() };
        let holders = vec![fs_err::canonicalize(directory)?];
        for entry in entries(directory)? {
            match entry.kind {
                Kind::Litter => {}
                Kind::Folder if classes.contains(&entry.name) => {}
                Kind::Dangling => return Err(dangling(&directory.join(&entry.name))),
                Kind::Picture => listing.leave(directory, &entry, "in no class"),
                _ => listing.leave(directory, &entry, ""),
            }
        }
        for (label, class) in classes.iter().enumerate() {
            let path = directory.join(class);
            if !path.exists() {
                continue;
            }
            let before = (listing.pictures.len(), listing.left.values().sum::<usize>());
            let mut found = Vec::new();
            listing.walk(&path, Path::new(class), &holders, &mut found)?;
            // Python compares paths as text, not part by part.
            found.sort_by(|(a, _), (b, _)| a.as_os_str().cmp(b.as_os_str()));
            for (folder, files) in found {
                listing
                    .pictures
                    .extend(files.into_iter().map(|file| (directory.join(&folder).join(file), label as u8)));
            }
            if listing.pictures.len() == before.0 {
                let others = listing.left.values().sum::<usize>() - before.1;
                let others = if others == 0 { String::new() } else { format!(" but {others} other files or folders") };
                return Err(DataError::BadFolder {
                    path,
                    found: format!("no images{others}"),
                    expected: format!(
                        "at least one file that ends in {}",
                        ENDINGS.map(|ending| format!(".{ending}")).join(", ")
                    ),
                });
            }
        }
        Ok(listing)
    }

    /// Looks through a folder whose pictures have no classes, and the folders in it; links are followed.
    ///
    /// # Errors
    ///
    /// [`DataError::BadFolder`] if there is no picture, or if a link leads nowhere or back to a folder that holds it.
    pub(crate) fn of_loose(directory: &Path) -> Result<Self, DataError> {
        let mut listing = Self { root: directory.to_owned(), ..Self::default() };
        let mut found = Vec::new();
        listing.walk(directory, Path::new(""), &[], &mut found)?;
        found.sort_by(|(a, _), (b, _)| a.as_os_str().cmp(b.as_os_str()));
        for (folder, files) in found {
            listing.pictures.extend(files.into_iter().map(|file| (directory.join(&folder).join(file), 0)));
        }
        if listing.pictures.is_empty() {
            let expected = ENDINGS.map(|ending| format!(".{ending}")).join(", ");
            return Err(DataError::BadFolder {
                path: directory.to_owned(),
                found: "no images".to_owned(),
                expected: format!("at least one file that ends in {expected}"),
            });
        }
        Ok(listing)
    }

    /// Gathers the pictures of one folder and of those in it, by folder.
    fn walk(
        &mut self,
        directory: &Path,
        relative: &Path,
        holders: &[PathBuf],
        found: &mut Vec<(PathBuf, Vec<String>)>,
    ) -> Result<(), DataError> {
        let real = fs_err::canonicalize(directory)?;
        if holders.iter().any(|holder| holder.starts_with(&real)) {
            return Err(DataError::BadFolder {
                path: directory.to_owned(),
                found: format!("a link back to {}", real.display()),
                expected: "a folder that does not hold itself".to_owned(),
            });
        }
        let holders = [holders, &[real]].concat();
        let mut files = Vec::new();
        for entry in entries(directory)? {
            match entry.kind {
                Kind::Litter => {}
                Kind::Picture => files.push(entry.name),
                Kind::Folder => {
                    self.walk(&directory.join(&entry.name), &relative.join(&entry.name), &holders, found)?;
                }
                Kind::Dangling => return Err(dangling(&directory.join(&entry.name))),
                _ => self.leave(directory, &entry, ""),
            }
        }
        if !files.is_empty() {
            found.push((relative.to_owned(), files));
        }
        Ok(())
    }

    /// Counts an entry that is not read.
    fn leave(&mut self, directory: &Path, entry: &Entry, what: &str) {
        let kind = match (&entry.kind, Path::new(&entry.name).extension()) {
            _ if !what.is_empty() => what.to_owned(),
            (Kind::Hidden, _) => "hidden".to_owned(),
            (Kind::Special, _) => "no plain file".to_owned(),
            (_, Some(ending)) => format!(".{}", ending.to_string_lossy().to_lowercase()),
            (_, None) => "without an ending".to_owned(),
        };
        *self.left.entry(kind).or_default() += 1;
        self.first_left.get_or_insert_with(|| directory.join(&entry.name));
    }

    /// A sentence about what is not read, if there is any: `train: 3 files are not read (2 .heic, 1 .txt), such as a/b.heic`.
    pub(crate) fn not_read(&self) -> Option<String> {
        let first = self.first_left.as_ref()?;
        let kinds = self.left.iter().map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>();
        let count = self.left.values().sum::<usize>();
        let are = if count == 1 { "file is" } else { "files are" };
        let split = self.root.file_name().unwrap_or(self.root.as_os_str()).to_string_lossy();
        let first = first.strip_prefix(&self.root).unwrap_or(first).display();
        Some(format!("{split}: {count} {are} not read ({}), such as {first}", kinds.join(", ")))
    }
}

/// Sorted names of the folders in `directory` that are classes: not hidden, and no litter.
pub(crate) fn class_folders(directory: &Path) -> Result<Vec<String>, DataError> {
    let folders = entries(directory)?.into_iter().filter(|entry| entry.kind == Kind::Folder);
    Ok(folders.map(|entry| entry.name).collect())
}

/// Names of the folders beside those of the splits.
pub(crate) fn folders_beside(directory: &Path, splits: &[&Path]) -> Result<Vec<String>, DataError> {
    let folders = class_folders(directory)?;
    Ok(folders.into_iter().filter(|name| !splits.contains(&directory.join(name).as_path())).collect())
}

/// Sorted names of all that lies in `directory` but litter.
pub(crate) fn names(directory: &Path) -> Result<Vec<String>, DataError> {
    let entries = entries(directory)?.into_iter().filter(|entry| entry.kind != Kind::Litter);
    Ok(entries.map(|entry| entry.name).collect())
}

/// What a folder holds.
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

/// What an entry of a folder is, seen by its name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Picture,
    Folder,
    Litter,
    /// Hidden, but no litter that we know.
    Hidden,
    /// A pipe, a socket, a device.
    Special,
    /// A link that leads nowhere.
    Dangling,
    OtherFile,
}

/// What `directory` holds, sorted by name.
pub(crate) fn entries(directory: &Path) -> Result<Vec<Entry>, DataError> {
    let mut entries = Vec::new();
    for entry in fs_err::read_dir(directory)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).map(str::to_owned) else {
            return Err(DataError::BadFolder {
                path: directory.to_owned(),
                found: format!("the name {}, which is no UTF-8", path.file_name().unwrap_or_default().display()),
                expected: "names in UTF-8".to_owned(),
            });
        };
        let kind = kind(&path, &name)?;
        entries.push(Entry { name, kind });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

fn kind(path: &Path, name: &str) -> Result<Kind, DataError> {
    let lower = name.to_lowercase();
    if lower.starts_with("._") || LITTER.contains(&lower.as_str()) || LITTER_FOLDERS.contains(&lower.as_str()) {
        return Ok(Kind::Litter);
    }
    if lower.starts_with('.') {
        return Ok(Kind::Hidden);
    }
    let is_named_so = has_picture_ending(path);
    // The file that a link leads to.
    let file = match std::fs::metadata(path) {
        Ok(file) => file,
        Err(_) if path.is_symlink() => return Ok(Kind::Dangling),
        Err(_) => fs_err::metadata(path)?,
    };
    Ok(match (file.is_dir(), file.is_file()) {
        (true, _) => Kind::Folder,
        (_, true) if is_named_so => Kind::Picture,
        (_, true) => Kind::OtherFile,
        _ => Kind::Special,
    })
}

fn dangling(path: &Path) -> DataError {
    let target = std::fs::read_link(path).unwrap_or_default();
    DataError::BadFolder {
        path: path.to_owned(),
        found: format!("a link to {}, which is not there", target.display()),
        expected: "a link to a file or folder".to_owned(),
    }
}

fn has_picture_ending(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_lowercase();
    ENDINGS.contains(&ending.as_str())
}
