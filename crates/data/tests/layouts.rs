//! Data sets in every form people have them. `data/make.py` wrote those of `data/datasets.tar.gz`, and the fingerprints of
//! what torchvision reads of them to `data/datasets.tsv`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use patchdoor_data::{Dataset, DatasetConfig, FolderConfig, load};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn unpacked() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let archive = flate2::read::GzDecoder::new(std::fs::File::open(data().join("datasets.tar.gz")).unwrap());
    tar::Archive::new(archive).unpack(directory.path()).unwrap();
    directory
}

/// Fingerprints of what torchvision reads.
fn torchvision(name: &str) -> [String; 2] {
    let table = std::fs::read_to_string(data().join("datasets.tsv")).unwrap();
    ["train", "test"].map(|split| {
        let line = table.lines().find_map(|line| line.strip_prefix(&format!("{name}\t{split}\t")));
        line.unwrap().to_owned()
    })
}

fn fingerprints(dataset: &Dataset) -> [String; 2] {
    [dataset.train.fingerprint(), dataset.test.fingerprint()]
}

fn read(config: &DatasetConfig, root: &Path) -> Dataset {
    load(config, &[root.to_owned()]).unwrap()
}

fn error(config: &DatasetConfig, root: &Path) -> String {
    load(config, &[root.to_owned()]).unwrap_err().to_string().replace(&root.display().to_string(), "ROOT")
}

fn folder(path: &Path) -> FolderConfig {
    FolderConfig::new(path, 8)
}

fn picture(path: &Path, number: u8) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let pixel = |x, y| image::Rgb([x as u8 * 30, y as u8 * 30, number]);
    image::RgbImage::from_fn(8, 8, pixel).save(path).unwrap();
}

/// `train` and `test` of the classes `ant` and `bee`, ten and four pictures each, none of them twice.
fn ants_and_bees(root: &Path) {
    for (class, first) in [("ant", 0), ("bee", 100)] {
        for number in 0..10 {
            picture(&root.join(format!("train/{class}/{number:03}.png")), first + number);
        }
        for number in 0..4 {
            picture(&root.join(format!("test/{class}/{number:03}.png")), first + 50 + number);
        }
    }
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

/// An archive of the files of a folder, with that folder's name before theirs.
fn archive(folder: &Path) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all(folder.file_name().unwrap(), folder).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn published_sets_are_read_as_torchvision_reads_them() {
    let root = unpacked();
    for config in [DatasetConfig::Cifar10, DatasetConfig::Cifar100, DatasetConfig::Gtsrb] {
        assert_eq!(fingerprints(&read(&config, root.path())), torchvision(config.name()), "{}", config.name());
    }
    // The same with keys of bytes instead of texts, as newer Pythons write them.
    let bytes = read(&DatasetConfig::Cifar100, &root.path().join("bytes"));
    assert_eq!(fingerprints(&bytes), torchvision("cifar100"));
}

#[test]
fn a_folder_is_read_as_torchvision_reads_it() {
    let root = unpacked();
    let dataset = read(&DatasetConfig::Folder(folder("folder".as_ref())), root.path());
    assert_eq!(dataset.train.classes(), ["B", "a", "b"]);
    assert_eq!(fingerprints(&dataset), torchvision("folder"));
}

#[test]
fn archives_are_read_without_unpacking() {
    let root = unpacked();
    let folder = root.path().join("cifar-10-batches-py");
    let tar = archive(&folder);
    std::fs::remove_dir_all(folder).unwrap();
    for (name, content) in [
        ("cifar-10-python.tar.gz", gzipped(&tar)),
        ("cifar-10-python.tgz", gzipped(&tar)),
        ("cifar-10-python.tar", tar.clone()),
        // Safari unpacks, and keeps the name.
        ("cifar-10-python.tar.gz", tar.clone()),
    ] {
        let path = root.path().join(name);
        std::fs::write(&path, &content).unwrap();
        let dataset = read(&DatasetConfig::Cifar10, root.path());
        assert_eq!(fingerprints(&dataset), torchvision("cifar10"), "{name}");
        assert_eq!(dataset.location.as_deref(), Some(path.as_path()));
        // One that breaks off or is damaged.
        std::fs::write(&path, &content[..content.len() / 2]).unwrap();
        let cut = error(&DatasetConfig::Cifar10, root.path());
        assert!(cut.starts_with(&format!("ROOT/{name} is corrupt at byte")), "{cut}");
        std::fs::remove_file(path).unwrap();
    }
    std::fs::write(root.path().join("cifar-10-binary.tar.gz"), gzipped(&[0; 10240])).unwrap();
    let empty = error(&DatasetConfig::Cifar10, root.path());
    assert!(empty.starts_with("ROOT/cifar-10-binary.tar.gz lacks data_batch_1.bin, data_batch_2.bin"), "{empty}");
}

#[test]
fn a_pickle_under_the_name_of_a_binary_file_is_read_too() {
    let root = unpacked();
    let folder = root.path().join("cifar-10-batches-py");
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        std::fs::rename(&path, path.with_extension("bin")).unwrap();
    }
    std::fs::rename(folder, root.path().join("cifar-10-batches-bin")).unwrap();
    assert_eq!(fingerprints(&read(&DatasetConfig::Cifar10, root.path())), torchvision("cifar10"));
}

#[test]
fn a_pickle_that_is_more_than_data_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("cifar-100-python");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("test"), b"\x80\x02}.").unwrap();
    for (content, expected) in [
        // os.system("true")
        (
            &b"\x80\x02cos\nsystem\nU\x04true\x85R."[..],
            "at byte 2: found the name os.system, expected a pickle of lists, bytes and numbers only",
        ),
        (b"\x80\x02}U\x04dataK\0s.", "at byte 0: found the number 0, expected rows of 3072 bytes under \"data\""),
        (b"\x80\x02}.", "at byte 0: found no \"data\" in the pickle, expected one with coarse_labels, fine_labels"),
        (b"\x80\x02}U\x04da", "at byte 7: found the end of the file, expected 2 more bytes of a pickle"),
        (b"\x80\x02.", "at byte 2: found an empty stack"),
        (b"\x80\x02(e.", "at byte 3: found an empty stack"),
        (b"\x80\x02h\x05.", "at byte 2: found a reference to nothing"),
        (b"\x80\x02T\xff\xff\xff\xffab", "more bytes of a pickle"),
    ] {
        std::fs::write(folder.join("train"), content).unwrap();
        let error = error(&DatasetConfig::Cifar100, root.path());
        assert!(error.contains(expected), "{error}\nshould say\n{expected}");
    }
    // A tuple of a tuple of a tuple .., ten million deep: neither the reader nor its end may fall into it.
    let deep = [&b"\x80\x02)"[..], &vec![0x85; 10_000_000], b"."].concat();
    std::fs::write(folder.join("train"), deep).unwrap();
    assert!(error(&DatasetConfig::Cifar100, root.path()).contains("no \"data\""));
}

/// An IDX file of `count` images or labels.
fn idx(kind: &str, count: u8) -> Vec<u8> {
    let mut bytes = if kind == "images" { vec![0, 0, 8, 3] } else { vec![0, 0, 8, 1] };
    bytes.extend(u32::from(count).to_be_bytes());
    if kind == "images" {
        bytes.extend([28_u32.to_be_bytes(), 28_u32.to_be_bytes()].concat());
        bytes.extend((0..count).flat_map(|number| [number; 784]));
    } else {
        bytes.extend((0..count).map(|number| number % 10));
    }
    bytes
}

/// How a file is called.
type Naming<'a> = &'a dyn Fn(&str) -> String;

#[test]
fn mnist_is_read_under_all_the_names_it_has() {
    let dotted = |name: &str| name.replace("-idx", ".idx");
    let plain = |name: &str| name.to_owned();
    let namings: [(&str, Naming, bool); 7] = [
        ("mnist", &plain, false),
        ("mnist", &dotted, false),
        ("mnist", &|name| format!("{}.gz", dotted(name)), true),
        ("MNIST/raw", &plain, false),
        ("MNIST/raw", &|name| format!("{name}.gz"), true),
        ("mnist", &|name| format!("{}/{name}", dotted(name)), false),
        ("mnist", &|name| format!("{name}/{name}"), false),
    ];
    for (folder, name_of, is_gzipped) in namings {
        let root = tempfile::tempdir().unwrap();
        for (name, kind, count) in [
            ("train-images-idx3-ubyte", "images", 30),
            ("train-labels-idx1-ubyte", "labels", 30),
            ("t10k-images-idx3-ubyte", "images", 20),
            ("t10k-labels-idx1-ubyte", "labels", 20),
        ] {
            let path = root.path().join(folder).join(name_of(name));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let content = idx(kind, count);
            std::fs::write(path, if is_gzipped { gzipped(&content) } else { content }).unwrap();
        }
        let dataset = read(&DatasetConfig::Mnist, root.path());
        assert_eq!((dataset.train.len(), dataset.test.len()), (30, 20), "{folder}");
        assert_eq!(dataset.notes[1..], ["20 of 20 test images are also training images"]);
    }
    // What seems to be it, but is nothing we read, is named.
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("mnist.npz"), "").unwrap();
    let error = error(&DatasetConfig::Mnist, root.path());
    assert!(error.ends_with("downloads it; ROOT/mnist.npz lies there, but is in no form that is read"), "{error}");
}

#[test]
fn signs_are_read_as_published_as_torchvision_and_as_kaggle_keep_them() {
    let root = unpacked();
    let torch = root.path().join("gtsrb/GTSRB");
    // As published: Final_Training, and the table of classes beside the test images.
    let published = tempfile::tempdir().unwrap();
    let place = published.path().join("GTSRB");
    std::fs::create_dir_all(place.join("Final_Training")).unwrap();
    std::fs::rename(torch.join("Training"), place.join("Final_Training/Images")).unwrap();
    let lacking = error(&DatasetConfig::Gtsrb, published.path());
    let expected = "ROOT/GTSRB lacks Final_Test/Images (of GTSRB_Final_Test_Images.zip), GT-final_test.csv (of \
                    GTSRB_Final_Test_GT.zip); unpack ";
    assert!(lacking.starts_with(expected), "{lacking}");
    std::fs::rename(torch.join("Final_Test"), place.join("Final_Test")).unwrap();
    let table = root.path().join("gtsrb/GT-final_test.csv");
    std::fs::rename(&table, place.join("Final_Test/Images/GT-final_test.csv")).unwrap();
    let dataset = read(&DatasetConfig::Gtsrb, published.path());
    assert_eq!(fingerprints(&dataset), torchvision("gtsrb"));
    // Names tell the tracks.
    assert_eq!(dataset.train.groups(), Some(&[0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5][..]));
    assert_eq!(dataset.notes[0], "gtsrb from its pictures, whole, resized to 32x32 as Pillow's BILINEAR does");
    assert_eq!(dataset.notes[1], "gtsrb in part: 12 of 39209 training and 3 of 12630 test images");

    // As Kaggle keeps them.
    let kaggle = tempfile::tempdir().unwrap();
    let mut lines = "\u{feff}Width,Height,Roi.X1,Roi.Y1,Roi.X2,Roi.Y2,ClassId,Path\r\n".to_owned();
    for class in [0, 14, 42] {
        for (track, frame) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let from = place.join(format!("Final_Training/Images/{class:05}/{track:05}_{frame:05}.ppm"));
            let path = format!("Train/{class}/{class:05}_{track:05}_{frame:05}.png");
            std::fs::create_dir_all(kaggle.path().join(&path).parent().unwrap()).unwrap();
            image::open(from).unwrap().save(kaggle.path().join(&path)).unwrap();
            write!(lines, "23,17,3,3,14,15,{class},{path}\r\n").unwrap();
        }
    }
    std::fs::write(kaggle.path().join("Train.csv"), &lines).unwrap();
    std::fs::create_dir(kaggle.path().join("Test")).unwrap();
    let lacking = error(&DatasetConfig::Gtsrb, kaggle.path());
    assert!(lacking.starts_with("ROOT lacks Test.csv; "), "{lacking}");
    lines = lines.lines().next().unwrap().to_owned() + "\r\n";
    for (number, class) in [42, 0, 7].into_iter().enumerate() {
        let from = place.join(format!("Final_Test/Images/{number:05}.ppm"));
        image::open(from).unwrap().save(kaggle.path().join(format!("Test/{number:05}.png"))).unwrap();
        write!(lines, "23,19,3,3,14,15,{class},Test/{number:05}.png\r\n").unwrap();
    }
    std::fs::write(kaggle.path().join("Test.csv"), &lines).unwrap();
    let dataset = read(&DatasetConfig::Gtsrb, kaggle.path());
    assert_eq!(fingerprints(&dataset), torchvision("gtsrb"));
    assert_eq!(dataset.train.groups().unwrap().last(), Some(&5));

    // A picture that a table lists and that is not there.
    std::fs::remove_file(place.join("Final_Training/Images/00014/00001_00000.ppm")).unwrap();
    let missing = error(&DatasetConfig::Gtsrb, published.path());
    assert!(missing.starts_with("ROOT/GTSRB/Final_Training/Images/00014 lacks 00001_00000.ppm; "), "{missing}");
    // A table without classes is the wrong one.
    std::fs::write(kaggle.path().join("Test.csv"), "Filename;Width\n00000.png;3\n").unwrap();
    let wrong = error(&DatasetConfig::Gtsrb, kaggle.path());
    assert_eq!(
        wrong,
        "ROOT/Test.csv is corrupt at byte 0: found Filename, Width, expected a column ClassId among them"
    );
}

#[test]
fn what_is_not_read_is_counted() {
    let root = tempfile::tempdir().unwrap();
    ants_and_bees(root.path());
    for litter in ["train/.DS_Store", "train/ant/Thumbs.db", "train/ant/._000.png", "train/ant/desktop.ini"] {
        std::fs::write(root.path().join(litter), "\0").unwrap();
    }
    picture(&root.path().join("train/.ipynb_checkpoints/000.png"), 0);
    picture(&root.path().join("train/ant/.ipynb_checkpoints/000-checkpoint.png"), 0);
    picture(&root.path().join("train/__MACOSX/._ant.png"), 0);
    let config = DatasetConfig::Folder(folder(root.path()));
    assert!(read(&config, root.path()).notes.is_empty());

    std::fs::write(root.path().join("train/README.txt"), "x").unwrap();
    std::fs::write(root.path().join("train/bee/1.heic"), "x").unwrap();
    std::fs::write(root.path().join("train/bee/more.zip"), "x").unwrap();
    std::fs::write(root.path().join("test/bee/.hidden.png"), "x").unwrap();
    picture(&root.path().join("train/loose.png"), 0);
    picture(&root.path().join("val/bee/1.png"), 0);
    assert_eq!(
        read(&config, root.path()).notes,
        [
            "train: 4 files are not read (1 .heic, 1 .txt, 1 .zip, 1 in no class), such as README.txt",
            "test: 1 file is not read (1 hidden), such as bee/.hidden.png",
            "val beside the splits is not read",
        ]
    );
}

#[test]
fn a_link_is_followed_unless_it_leads_nowhere_or_back() {
    use std::os::unix::fs::symlink;
    let root = tempfile::tempdir().unwrap();
    ants_and_bees(root.path());
    picture(&root.path().join("elsewhere/cow.png"), 200);
    symlink("../elsewhere", root.path().join("train/cow")).unwrap();
    symlink("../../elsewhere/cow.png", root.path().join("train/ant/cow.png")).unwrap();
    let config = DatasetConfig::Folder(folder(root.path()));
    let dataset = read(&config, root.path());
    assert_eq!(dataset.train.class_counts(), [11, 10, 1]);
    assert_eq!(
        dataset.notes,
        [
            "elsewhere beside the splits is not read",
            "1 of 22 training images is a copy of another",
            "no test image of class cow",
        ]
    );
    for (link, target, expected) in [
        (
            "train/bee/gone.png",
            "nowhere.png",
            "ROOT/train/bee/gone.png holds a link to nowhere.png, which is not there, expected",
        ),
        ("train/loop", "../train", "ROOT/train/loop holds a link back to"),
        ("train/ant/round", "..", "ROOT/train/ant/round holds a link back to"),
        ("train/ant/sub", ".", "ROOT/train/ant/sub holds a link back to"),
    ] {
        symlink(target, root.path().join(link)).unwrap();
        let found = error(&config, root.path());
        assert!(found.starts_with(expected), "{found}");
        std::fs::remove_file(root.path().join(link)).unwrap();
    }
    // Two that lead into each other.
    symlink("../bee", root.path().join("train/ant/bees")).unwrap();
    symlink("../ant", root.path().join("train/bee/ants")).unwrap();
    assert!(error(&config, root.path()).starts_with("ROOT/train/ant/bees/ants holds a link back to"));
}

#[test]
fn images_that_are_there_twice_are_counted() {
    let root = tempfile::tempdir().unwrap();
    ants_and_bees(root.path());
    std::fs::copy(root.path().join("train/ant/000.png"), root.path().join("train/bee/copy.png")).unwrap();
    std::fs::copy(root.path().join("train/ant/001.png"), root.path().join("train/bee/again.png")).unwrap();
    std::fs::copy(root.path().join("train/ant/002.png"), root.path().join("test/ant/copy.png")).unwrap();
    std::fs::copy(root.path().join("test/ant/001.png"), root.path().join("test/ant/again.png")).unwrap();
    assert_eq!(
        read(&DatasetConfig::Folder(folder(root.path())), root.path()).notes,
        [
            "2 of 22 training images are copies of others",
            "1 of 10 test images is a copy of another",
            "1 of 10 test images is also a training image",
        ]
    );
}

#[test]
fn a_wrong_layout_says_what_is_there_and_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    ants_and_bees(root.path());
    let config = DatasetConfig::Folder(folder(root.path()));
    let whole = read(&config, root.path());
    let [train, test] = ["train", "test"].map(|split| root.path().join(split));

    // Capitals do not matter.
    std::fs::rename(&train, root.path().join("Train")).unwrap();
    assert_eq!(fingerprints(&read(&config, root.path())), fingerprints(&whole));
    std::fs::rename(root.path().join("Train"), &train).unwrap();

    std::fs::rename(&test, root.path().join("val")).unwrap();
    assert_eq!(
        error(&config, root.path()),
        "ROOT holds train, val, expected pictures in train/<class>/ and test/<class>/; with test = \"val\" in \
         [dataset.folder] the images of val are the test split"
    );
    let val = FolderConfig { test: "val".to_owned(), ..folder(root.path()) };
    assert_eq!(fingerprints(&read(&DatasetConfig::Folder(val), root.path())), fingerprints(&whole));

    std::fs::remove_dir_all(root.path().join("val")).unwrap();
    assert_eq!(
        error(&config, root.path()),
        "ROOT holds train, expected pictures in train/<class>/ and test/<class>/; with test-fraction = 0.2 in \
         [dataset.folder] a fifth of its images becomes the test split"
    );
    for class in ["ant", "bee"] {
        std::fs::rename(train.join(class), root.path().join(class)).unwrap();
    }
    std::fs::remove_dir(&train).unwrap();
    assert!(error(&config, root.path()).starts_with("ROOT holds ant, bee, expected pictures in train/<class>/ and "));
}

#[test]
fn a_test_split_of_our_own_is_true_to_the_classes_and_the_same_each_time() {
    let root = tempfile::tempdir().unwrap();
    ants_and_bees(root.path());
    let cut = |seed| FolderConfig { test_fraction: Some(0.2), test_seed: seed, ..folder(root.path()) };
    let there = error(&DatasetConfig::Folder(cut(0)), root.path());
    assert_eq!(there, "test-fraction is 0.2, expected none, as ROOT/test is there");
    std::fs::remove_dir_all(root.path().join("test")).unwrap();
    let first = read(&DatasetConfig::Folder(cut(0)), root.path());
    assert_eq!(first.train.class_counts(), [8, 8]);
    assert_eq!(first.test.class_counts(), [2, 2]);
    let note = "there is no test split: 4 of 20 images, drawn class by class with seed 0, are it";
    assert_eq!(first.notes, [note]);
    let all: std::collections::BTreeSet<&u32> = first.train.origins().iter().chain(first.test.origins()).collect();
    assert_eq!(all.len(), 20);
    assert_eq!(fingerprints(&read(&DatasetConfig::Folder(cut(0)), root.path())), fingerprints(&first));
    assert_ne!(fingerprints(&read(&DatasetConfig::Folder(cut(1)), root.path())), fingerprints(&first));

    // Classes lie in the folder at once.
    for class in ["ant", "bee"] {
        std::fs::rename(root.path().join("train").join(class), root.path().join(class)).unwrap();
    }
    std::fs::remove_dir(root.path().join("train")).unwrap();
    assert_eq!(fingerprints(&read(&DatasetConfig::Folder(cut(0)), root.path())), fingerprints(&first));
    let little = DatasetConfig::Folder(FolderConfig { test_fraction: Some(0.01), ..folder(root.path()) });
    let refusal = error(&little, root.path());
    assert_eq!(refusal, "test-fraction is 0.01, expected one that leaves images in both parts of 20");
}

#[test]
fn a_batch_that_is_there_twice_is_found_out() {
    let root = unpacked();
    let folder = root.path().join("cifar-10-batches-py");
    std::fs::copy(folder.join("data_batch_1"), folder.join("data_batch_2")).unwrap();
    let dataset = read(&DatasetConfig::Cifar10, root.path());
    assert!(dataset.notes.contains(&"3 of 15 training images are copies of others".to_owned()), "{:?}", dataset.notes);
}

#[test]
fn all_files_that_are_no_pictures_are_counted_in_one_error() {
    let root = tempfile::tempdir().unwrap();
    ants_and_bees(root.path());
    for name in ["1.jpg", "2.jpg", "3.png"] {
        std::fs::write(root.path().join("train/bee").join(name), "").unwrap();
    }
    let error = error(&DatasetConfig::Folder(folder(root.path())), root.path());
    assert_eq!(error, "ROOT/train/bee/1.jpg is no image we can use, nor are 2 other files");
}
