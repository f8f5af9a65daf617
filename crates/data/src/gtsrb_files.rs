//! The traffic signs as single pictures: as published, as torchvision and as Kaggle keep them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::folder::read_pictures;
use crate::listing::{Kind, entries};
use crate::{DataError, ImageSet, ImageShape, labels};

/// Where the pictures and their tables lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SignFiles {
    /// The folder that holds all of it.
    pub(crate) location: PathBuf,
    /// Has one folder for each class.
    train: PathBuf,
    /// Lists the training images, where there is one table for all.
    train_table: Option<PathBuf>,
    test: PathBuf,
    /// Has the classes of the test images.
    test_table: PathBuf,
}

/// Folders below a data folder in which the pictures may lie, as the archives are unpacked.
const PLACES: [&str; 6] = ["GTSRB", "gtsrb/GTSRB", "gtsrb", "", "gtsrb-german-traffic-sign", "archive"];

/// The benchmark's table of the classes of its test images, which it publishes apart from them.
const TEST_TABLE: &str = "GT-final_test.csv";

/// Looks for the pictures below a data folder: those that are whole, or what lacks them first and what it lacks.
pub(crate) fn find(root: &Path) -> Option<Result<SignFiles, (PathBuf, Vec<String>)>> {
    let mut lacking = None;
    for location in PLACES.map(|place| if place.is_empty() { root.to_owned() } else { root.join(place) }) {
        match [as_published(&location), as_kaggle(&location)].into_iter().flatten().reduce(Result::or) {
            Some(Ok(files)) => return Some(Ok(files)),
            Some(Err(missing)) => drop(lacking.get_or_insert((location, missing))),
            None => {}
        }
    }
    lacking.map(Err)
}

/// `Final_Training/Images/00000/*.ppm` of the benchmark, `Training/00000/*.ppm` of torchvision, `Final_Test/Images/*.ppm` of
/// both.
fn as_published(location: &Path) -> Option<Result<SignFiles, Vec<String>>> {
    let train = ["Final_Training/Images", "Training"].map(|folder| location.join(folder));
    let train = train.into_iter().find(|folder| folder.is_dir());
    let test = Some(location.join("Final_Test/Images")).filter(|folder| folder.is_dir());
    if train.is_none() && test.is_none() {
        return None;
    }
    let places = [location.join("Final_Test/Images"), location.join("Final_Test"), location.to_owned()];
    let places = places.into_iter().chain(location.parent().map(Path::to_owned));
    let table = places.map(|place| place.join(TEST_TABLE)).find(|table| table.is_file());
    let names = [
        ("Final_Training/Images (of GTSRB_Final_Training_Images.zip)", train.is_none()),
        ("Final_Test/Images (of GTSRB_Final_Test_Images.zip)", test.is_none()),
        ("GT-final_test.csv (of GTSRB_Final_Test_GT.zip)", table.is_none()),
    ];
    Some(match (train, test, table) {
        (Some(train), Some(test), Some(test_table)) => {
            Ok(SignFiles { location: location.to_owned(), train, train_table: None, test, test_table })
        }
        _ => Err(lacked(&names)),
    })
}

/// `Train/0/*.png`, `Test/*.png`, `Train.csv` and `Test.csv`.
fn as_kaggle(location: &Path) -> Option<Result<SignFiles, Vec<String>>> {
    let train =
        ["Train", "train"].map(|folder| location.join(folder)).into_iter().find(|folder| folder.join("0").is_dir());
    let train = train?;
    let test = ["Test", "test"].map(|folder| location.join(folder)).into_iter().find(|folder| folder.is_dir());
    let [train_table, test_table] =
        ["Train.csv", "Test.csv"].map(|table| Some(location.join(table)).filter(|table| table.is_file()));
    let names = [("Test", test.is_none()), ("Test.csv", test_table.is_none())];
    Some(match (test, test_table) {
        (Some(test), Some(test_table)) => {
            Ok(SignFiles { location: location.to_owned(), train, train_table, test, test_table })
        }
        _ => Err(lacked(&names)),
    })
}

fn lacked(names: &[(&str, bool)]) -> Vec<String> {
    names.iter().filter(|(_, is_missing)| *is_missing).map(|(name, _)| (*name).to_owned()).collect()
}

/// A picture of a sign, and the table's line that names it.
struct Row {
    name: String,
    class: Option<String>,
    offset: u64,
}

/// Reads all pictures, brought to 32x32 as Pillow's bilinear filter does, the whole picture with its border: training
/// images by class, track and frame, test images in the order of their table.
pub(crate) fn read(files: &SignFiles) -> Result<(ImageSet, ImageSet, Vec<String>), DataError> {
    let mut left = Vec::new();
    let (train, groups) = training_files(files, &mut left)?;
    let test = test_files(files, &mut left)?;
    let set = |files: Vec<(PathBuf, u8)>| {
        let labels = files.iter().map(|&(_, label)| label).collect();
        let pixels = read_pictures(&files.into_iter().map(|(path, _)| path).collect::<Vec<_>>(), [32; 2])?;
        ImageSet::new(ImageShape::RGB_32, pixels, labels, labels::owned(&labels::GTSRB))
    };
    let train = set(train)?;
    let train = match groups {
        Some(groups) => train.with_groups(groups)?,
        None => train,
    };
    let mut notes = vec!["gtsrb from its pictures, whole, resized to 32x32 as Pillow's BILINEAR does".to_owned()];
    if let Some(first) = left.first() {
        let are = if left.len() == 1 { "file is" } else { "files are" };
        notes.push(format!("gtsrb: {} {are} not read, such as {}", left.len(), first.display()));
    }
    Ok((train, set(test)?, notes))
}

type Labelled = Vec<(PathBuf, u8)>;

/// Training images, and the number of each one's track if all names tell it.
fn training_files(files: &SignFiles, left: &mut Vec<PathBuf>) -> Result<(Labelled, Option<Vec<u32>>), DataError> {
    let mut classes = Vec::new();
    for entry in entries(&files.train)? {
        let path = files.train.join(&entry.name);
        match (entry.kind, class_of(&entry.name)) {
            (Kind::Folder, Some(class)) => classes.push((class, path)),
            (Kind::Folder, None) => {
                return Err(DataError::BadFolder {
                    path: files.train.clone(),
                    found: format!("the folder {}", entry.name),
                    expected: "folders with the numbers of classes, 0 to 42".to_owned(),
                });
            }
            (Kind::Litter, _) => {}
            _ => left.push(path),
        }
    }
    classes.sort();
    let mut images = Vec::new();
    let mut tracks = BTreeMap::new();
    let mut groups = Some(Vec::new());
    for (class, folder) in classes {
        let before = images.len();
        let mut names = BTreeSet::new();
        let mut tables = Vec::new();
        for entry in entries(&folder)? {
            let path = folder.join(&entry.name);
            match entry.kind {
                Kind::Picture => {
                    let next = tracks.len() as u32;
                    match (&mut groups, track_of(&entry.name)) {
                        (Some(groups), Some(track)) => groups.push(*tracks.entry((class, track)).or_insert(next)),
                        _ => groups = None,
                    }
                    names.insert(entry.name);
                    images.push((path, class));
                }
                Kind::Litter => {}
                Kind::OtherFile if entry.name.starts_with("GT-") && is_table(&entry.name) => tables.push(path),
                _ => left.push(path),
            }
        }
        if images.len() == before {
            let found = "no pictures".to_owned();
            return Err(DataError::BadFolder { path: folder, found, expected: "those of one class".to_owned() });
        }
        for table in tables {
            let missing = rows(&table, false)?.into_iter().map(|row| row.name).filter(|name| !names.contains(name));
            all_there(&folder, missing)?;
        }
    }
    if images.is_empty() {
        let (path, found) = (files.train.clone(), "no folder of a class".to_owned());
        return Err(DataError::BadFolder { path, found, expected: "00000 to 00042".to_owned() });
    }
    if let Some(table) = &files.train_table {
        let is_missing = |name: &String| !files.location.join(name).is_file();
        all_there(&files.location, rows(table, false)?.into_iter().map(|row| row.name).filter(is_missing))?;
    }
    Ok((images, groups))
}

/// An error if a table lists pictures that are not there.
fn all_there(directory: &Path, missing: impl Iterator<Item = String>) -> Result<(), DataError> {
    let mut missing: Vec<String> = missing.collect();
    if missing.is_empty() {
        return Ok(());
    }
    let count = missing.len();
    missing.truncate(3);
    if count > 3 {
        missing.push(format!("{} more that its table lists", count - 3));
    }
    let how_to_get = "unpack the archive once more".to_owned();
    Err(DataError::Incomplete { directory: directory.to_owned(), missing, how_to_get })
}

/// Test images in the order of their table.
fn test_files(files: &SignFiles, left: &mut Vec<PathBuf>) -> Result<Labelled, DataError> {
    let mut there = BTreeSet::new();
    for entry in entries(&files.test)? {
        let path = files.test.join(&entry.name);
        match entry.kind {
            Kind::Picture => drop(there.insert(entry.name)),
            Kind::Litter => {}
            Kind::OtherFile if is_table(&entry.name) => {}
            _ => left.push(path),
        }
    }
    let mut images = Vec::new();
    let mut missing = Vec::new();
    for Row { name, class, offset } in rows(&files.test_table, true)? {
        // Kaggle's table names the folder too.
        let name = name.rsplit('/').next().unwrap_or_default().to_owned();
        let class = class.unwrap_or_default();
        let Some(label) = class_of(&class) else {
            return Err(DataError::Corrupt {
                path: files.test_table.clone(),
                offset,
                found: format!("the class {class:?}"),
                expected: "a number from 0 to 42".to_owned(),
            });
        };
        if there.remove(&name) {
            images.push((files.test.join(name), label));
        } else {
            missing.push(name);
        }
    }
    all_there(&files.test, missing.into_iter())?;
    left.extend(there.into_iter().map(|name| files.test.join(name)));
    if images.is_empty() {
        let (path, found) = (files.test_table.clone(), "no line of an image".to_owned());
        return Err(DataError::Corrupt { path, offset: 0, found, expected: "one for each test image".to_owned() });
    }
    Ok(images)
}

/// The lines of a table; its fields are parted by semicolons, as published, or by commas, as on Kaggle.
fn rows(table: &Path, needs_class: bool) -> Result<Vec<Row>, DataError> {
    let text = fs_err::read(table)?;
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&text);
    let head = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let delimiter = if head.contains(&b';') { b';' } else { b',' };
    let corrupt = |offset: u64, found: String, expected: &str| DataError::Corrupt {
        path: table.to_owned(),
        offset,
        found,
        expected: expected.to_owned(),
    };
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).trim(csv::Trim::All).from_reader(text);
    let not_a_table = |error: csv::Error| {
        let offset = error.position().map_or(0, csv::Position::byte);
        corrupt(offset, error.to_string(), "a line with as many fields as the first")
    };
    let head = reader.headers().map_err(not_a_table)?.clone();
    let column = |names: &[&str]| head.iter().position(|field| names.contains(&field));
    let columns = || head.iter().collect::<Vec<_>>().join(", ");
    let name_at = column(&["Filename", "Path"]).ok_or_else(|| corrupt(0, columns(), "a column Filename or Path"))?;
    let class_at = column(&["ClassId"]);
    if needs_class && class_at.is_none() {
        return Err(corrupt(0, columns(), "a column ClassId among them"));
    }
    let row = |record: Result<csv::StringRecord, csv::Error>| {
        let record = record.map_err(not_a_table)?;
        Ok(Row {
            name: record[name_at].to_owned(),
            class: class_at.map(|at| record[at].to_owned()),
            offset: record.position().map_or(0, csv::Position::byte),
        })
    };
    reader.records().map(row).collect()
}

fn is_table(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|ending| ending.eq_ignore_ascii_case("csv"))
}

/// The class that a folder or a field of a table names: `00014` or `14`.
fn class_of(text: &str) -> Option<u8> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&class: &u8| is_number && usize::from(class) < labels::GTSRB.len())
}

/// The track of `00003_00017.ppm`, or of Kaggle's `00014_00003_00017.png`.
fn track_of(name: &str) -> Option<u32> {
    let (stem, _) = name.rsplit_once('.')?;
    let mut parts = stem.rsplit('_');
    let (_frame, track) = (parts.next()?.parse::<u32>().ok()?, parts.next()?);
    track.parse().ok()
}
