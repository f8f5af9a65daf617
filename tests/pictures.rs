//! Folders of pictures as people have them: what is wrong is refused before anything is written, what is left out is said.

use std::path::{Path, PathBuf};

use patchdoor_tests::{Bench, SMALL, workspace};

/// A picture of 8x8 pixels that only its number tells from others.
fn picture(path: &Path, number: u8) {
    std::fs::create_dir_all(path.parent().expect("a file in a folder")).expect("the folder is writable");
    let pixels = (0..64u8).flat_map(|at| [at * 4, 255 - at * 2, number]);
    std::fs::write(path, b"P6\n8 8\n255\n".iter().copied().chain(pixels).collect::<Vec<u8>>()).expect("writable");
}

/// Ten training and four test pictures each of ants and bees, all different, and an experiment on them.
fn ants_and_bees() -> Bench {
    let bench = Bench::new();
    for (class, first) in [("ant", 0), ("bee", 100)] {
        for number in 0..10 {
            picture(&bench.path().join(format!("pictures/train/{class}/{number}.ppm")), first + number);
        }
        for number in 0..4 {
            picture(&bench.path().join(format!("pictures/test/{class}/{number}.ppm")), first + 50 + number);
        }
    }
    let text = SMALL
        .replace(
            "dataset.shapes = { train = 240, test = 60, seed = 0 }",
            "dataset.folder = { path = \"pictures\", size = 8 }",
        )
        .replace("epochs = 4", "epochs = 1")
        .replace("batch-size = 32", "batch-size = 8")
        .replace("[model.patch-moe]", "[model.patch-moe]\nexperts = 2\npatches-per-expert = 1");
    bench.file("ants.toml", &text);
    bench
}

/// A photograph that Pillow wrote.
fn photograph() -> Vec<u8> {
    let path: PathBuf = workspace().join("crates/data/tests/data/pictures/half-colour.jpg");
    std::fs::read(path).expect("the picture is committed")
}

#[test]
fn a_half_downloaded_photograph_is_refused_by_name_before_anything_is_written() {
    let bench = ants_and_bees();
    let before = bench.entries();
    let file = photograph();
    for (content, reason) in [(&file[..file.len() / 2], "breaks off"), (&file[..200], "breaks off"), (&[], "is empty")]
    {
        std::fs::write(bench.path().join("pictures/train/bee/zzz.jpg"), content).expect("writable");
        for arguments in [&["run", "ants.toml"][..], &["run", "ants.toml", "--dry-run"]] {
            let said = bench.run(arguments).expect(2).err();
            assert!(said.contains("pictures/train/bee/zzz.jpg is no image we can use"), "{said}");
            assert_eq!(said.matches(reason).count(), 1, "{said}");
            assert!(!said.contains("\n\n"), "{said}");
        }
        assert_eq!(bench.entries(), before);
    }
    // One that only lacks its end is whole.
    std::fs::write(bench.path().join("pictures/train/bee/zzz.jpg"), &file[..file.len() - 2]).expect("writable");
    bench.run(&["run", "ants.toml", "--dry-run"]).expect(0);
}

#[test]
fn what_is_left_out_stands_in_the_terminal_and_in_the_results() {
    let bench = ants_and_bees();
    let pictures = bench.path().join("pictures");
    std::fs::write(pictures.join("train/ant/more.heic"), "?").expect("writable");
    std::fs::copy(pictures.join("train/ant/3.ppm"), pictures.join("test/ant/copy.ppm")).expect("writable");
    std::fs::remove_dir_all(pictures.join("test/bee")).expect("there are bees");
    let notes = [
        "train: 1 file is not read (1 .heic), such as ant/more.heic",
        "1 of 5 test images is also a training image",
        "no test image of class bee",
    ];
    let dry = bench.run(&["run", "ants.toml", "--dry-run"]).expect(0).out();
    let finished = bench.run(&["run", "ants.toml"]).expect(0);
    let summary = std::fs::read_to_string(bench.run_directory().join("summary.json")).expect("a run has a summary");
    let summary: serde_json::Value = serde_json::from_str(&summary).expect("valid JSON");
    let recorded = summary["notes"].as_array().expect("notes are a list");
    for note in notes {
        assert!(dry.contains(&format!("#   note: {note}\n")), "{dry}");
        assert!(finished.err().contains(&format!("note: {note}\n")), "{}", finished.err());
        assert!(recorded.iter().any(|recorded| recorded == note), "{summary}");
    }
}

#[test]
fn without_a_test_split_the_layout_is_explained_and_one_is_cut_if_asked_for() {
    let bench = ants_and_bees();
    let pictures = bench.path().join("pictures");
    std::fs::remove_dir_all(pictures.join("test")).expect("there is a test split");
    let said = bench.run(&["run", "ants.toml"]).expect(2).err();
    assert!(
        said.contains(
            "pictures holds train, expected pictures in train/<class>/ and test/<class>/; with test-fraction"
        ),
        "{said}"
    );
    let finished = bench.run(&["run", "ants.toml", "--set", "dataset.folder.test-fraction=0.2"]).expect(0);
    let note = "note: there is no test split: 4 of 20 images, drawn class by class with seed 0, are it";
    assert!(finished.err().contains(note), "{}", finished.err());
}

#[test]
fn a_picture_to_blend_in_that_is_none_is_refused_with_its_place() {
    let bench = ants_and_bees();
    let text = std::fs::read_to_string(bench.path().join("ants.toml")).expect("written above");
    let square = "[trigger.square]\nsize = 4\nanchor = \"lower-right\"\nvalue = 255\n";
    let blend = "[trigger.blend]\npattern.picture.path = \"picture.png\"\n";
    assert!(text.contains(square));
    bench.file("blend.toml", &text.replace(square, blend));
    let photograph = photograph();
    for (content, reason) in [(&b""[..], "the file is empty"), (&photograph[..300], "the file breaks off")] {
        std::fs::write(bench.path().join("picture.png"), content).expect("writable");
        for command in ["check", "run"] {
            let said = bench.run(&[command, "blend.toml"]).expect(2).err();
            let place = "pattern.picture.path is picture.png (";
            assert!(said.contains(place) && said.contains(reason), "{said}");
            assert!(said.contains("--> blend.toml:"), "{said}");
        }
    }
    std::fs::write(bench.path().join("picture.png"), photograph).expect("writable");
    bench.run(&["check", "blend.toml"]).expect(0);
}
