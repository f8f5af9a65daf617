//! What people meet in the field: results that outlive their images, failed defenses, signals, terminals, odd files.

#![allow(clippy::case_sensitive_file_extension_comparisons, reason = "these are ends of our own folders' names")]

use std::path::{Path, PathBuf};

use patchdoor_tests::{Bench, Finished, SMALL};
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Folders below `runs` with such names, sorted.
fn folders(bench: &Bench, is_wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(bench.path().join("runs")).into_iter().flatten();
    let paths = entries.map(|entry| entry.expect("readable").path());
    let mut found: Vec<PathBuf> = paths
        .filter(|path| path.is_dir() && is_wanted(&path.file_name().unwrap_or_default().to_string_lossy()))
        .collect();
    found.sort();
    found
}

fn modified(path: &Path) -> std::time::SystemTime {
    std::fs::metadata(path)
        .and_then(|file| file.modified())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A folder of tiny pictures of two classes, each of one grey.
fn write_folder(bench: &Bench, salt: u8, test_of: &[&str]) {
    for (split, classes) in [("train", &["ant", "bee"][..]), ("test", test_of)] {
        for class in classes {
            let folder = bench.path().join("pictures").join(split).join(class);
            std::fs::create_dir_all(&folder).expect("writable");
            for number in 0..12_u8 {
                let shade = number.wrapping_mul(17).wrapping_add(salt).wrapping_add(class.len() as u8);
                std::fs::write(folder.join(format!("{number:02}.png")), png(shade)).expect("writable");
            }
        }
    }
}

/// An 8x8 picture of one grey, stored without compression.
fn png(shade: u8) -> Vec<u8> {
    let crc = |bytes: &[u8]| {
        !bytes.iter().fold(!0_u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
        })
    };
    let chunk = |name: &[u8], data: &[u8]| {
        let body = [name, data].concat();
        [&(data.len() as u32).to_be_bytes()[..], &body, &crc(&body).to_be_bytes()].concat()
    };
    let rows: Vec<u8> = (0..8).flat_map(|_| [0; 1].into_iter().chain([shade; 8])).collect();
    let (low, high) = rows.iter().fold((1_u32, 0_u32), |(low, high), &byte| {
        let low = (low + u32::from(byte)) % 65521;
        (low, (high + low) % 65521)
    });
    let length = rows.len() as u16;
    let stored = [&[0x78, 1, 1][..], &length.to_le_bytes(), &(!length).to_le_bytes(), &rows].concat();
    let data = [&stored[..], &(high << 16 | low).to_be_bytes()].concat();
    let head = [&8_u32.to_be_bytes()[..], &8_u32.to_be_bytes(), &[8, 0, 0, 0, 0]].concat();
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(b"IHDR", &head), chunk(b"IDAT", &data), chunk(b"IEND", b"")].concat()
}

/// An experiment on the folder.
const FOLDER: &str = r#"
dataset.folder = { path = "pictures", size = 8 }
[data]
validation-fraction = 0
[poisoning]
rate = 0.25
target-class = "bee"
[trigger.square]
size = 2
[model.patch-moe]
widen-factor = 1
experts = 2
patches-per-expert = 1
[training]
epochs = 1
batch-size = 8
learning-rate = 0.05
"#;

fn refused_for_other_images(finished: &Finished) {
    assert!(finished.err().contains("was begun on other images"), "{}", finished.err());
}

#[test]
fn a_finished_run_is_not_shown_for_other_images() {
    let bench = Bench::new();
    write_folder(&bench, 0, &["ant", "bee"]);
    bench.file("folder.toml", FOLDER);
    let first = bench.run(&["run", "folder.toml"]).expect(0);
    assert!(first.out().contains("target class 1 (bee)") && first.err().contains("target class 1 (bee)"));
    assert_eq!(bench.run(&["run", "folder.toml"]).expect(0).out(), first.out());
    write_folder(&bench, 3, &["ant", "bee"]);
    let refused = bench.run(&["run", "folder.toml"]).expect(2);
    refused_for_other_images(&refused);
    assert_eq!(refused.out(), "", "no number of the old images is shown");
    bench.run(&["run", "folder.toml", "--fresh"]).expect(0);
    assert_eq!(folders(&bench, |name| name.ends_with(".old-1")).len(), 1);
    // Clean twins of the old images are not those of the new ones.
    assert_eq!(std::fs::read_dir(bench.path().join("runs/twins")).expect("twins").count(), 2);
    // Without its images a result can still be shown, and says so.
    std::fs::rename(bench.path().join("pictures"), bench.path().join("elsewhere")).expect("renamed");
    let shown = bench.run(&["run", "folder.toml", "--set", "poisoning.target-class=1"]).expect(0);
    assert!(shown.err().contains("its images are not here"), "{}", shown.err());
}

#[test]
fn a_sweep_never_mixes_images_in_one_table() {
    let bench = Bench::new();
    write_folder(&bench, 0, &["ant", "bee"]);
    let axes = |rates: &str| format!("{FOLDER}[[sweep.axes]]\nfield = \"poisoning.rate\"\nvalues = {rates}\n");
    bench.file("sweep.toml", &axes("[0.25, 0.5]"));
    bench.run(&["run", "sweep.toml", "--seeds", "0"]).expect(0);
    write_folder(&bench, 3, &["ant", "bee"]);
    refused_for_other_images(&bench.run(&["run", "sweep.toml"]).expect(2));
    // Another seed of the same points would stand in one table with the old ones, and so would another point.
    refused_for_other_images(&bench.run(&["run", "sweep.toml", "--seeds", "1"]).expect(2));
    bench.file("sweep.toml", &axes("[0.25, 0.5, 0.75]"));
    refused_for_other_images(&bench.run(&["run", "sweep.toml"]).expect(2));
    assert_eq!(folders(&bench, |name| name.contains(".sweep")).len(), 1, "nothing was tabulated");
    // Afresh with other seeds, those of the old images are left out.
    bench.file("sweep.toml", &axes("[0.25, 0.5]"));
    bench.run(&["run", "sweep.toml", "--seeds", "1", "--fresh"]).expect(0);
    let table = json(&read(&folders(&bench, |name| name.contains(".sweep"))[0].join("table.json")));
    assert_eq!(table["points"][0]["metrics"][0]["values"].as_object().map(serde_json::Map::len), Some(1), "{table}");
}

#[test]
fn a_run_is_of_the_picture_it_was_computed_with() {
    let bench = Bench::new();
    std::fs::write(bench.path().join("face.png"), png(10)).expect("writable");
    let text = SMALL.replace(
        "[trigger.square]\nsize = 4\nanchor = \"lower-right\"\nvalue = 255",
        "[trigger.blend]\npattern.picture = { path = \"face.png\" }",
    );
    bench.file("picture.toml", &text.replace("epochs = 4", "epochs = 1"));
    bench.run(&["run", "picture.toml"]).expect(0);
    bench.run(&["run", "picture.toml"]).expect(0);
    std::fs::write(bench.path().join("face.png"), png(200)).expect("writable");
    let refused = bench.run(&["run", "picture.toml"]).expect(2);
    assert!(refused.err().contains("was begun with another face.png"), "{}", refused.err());
}

/// Two defenses of one name: the first always diverges, the second never.
const DEFENDED: &str = r#"
[[defenses]]
label = "A"
fine-tuning = { training = { epochs = 1, learning-rate = 1e30 } }

[[defenses]]
label = "A"
fine-tuning = { training = { epochs = 1, learning-rate = 0.01 } }
"#;

#[test]
fn a_failed_defense_is_a_failure_and_is_repeated_alone() {
    let bench = Bench::new();
    bench.file(
        "defended.toml",
        &format!("{}{DEFENDED}", SMALL.replace("[0]", "[0, 1]").replace("epochs = 4", "epochs = 1")),
    );
    let finished = bench.run(&["run", "defended.toml"]).expect(1);
    for words in ["A of seed 0 failed: loss became", "A (2)"] {
        assert!(finished.out().contains(words), "no {words:?} in\n{}", finished.out());
    }
    assert!(finished.err().contains("--retry-failed"), "{}", finished.err());
    // The row of the failed defense has no seed behind it, the other two.
    let row = |label: &str| {
        let line = finished.out().lines().find(|line| line.starts_with(label)).map(str::to_owned);
        line.unwrap_or_else(|| panic!("no {label} in\n{}", finished.out()))
    };
    assert_eq!(row("A  ").split_whitespace().nth(1), Some("0"), "{}", row("A  "));
    assert_eq!(row("A (2)").split_whitespace().nth(2), Some("2"), "{}", row("A (2)"));
    let listed = bench.run(&["list"]).expect(0);
    assert!(listed.out().contains("A of seed 1 failed: loss became"), "{}", listed.out());
    bench.run(&["run", "defended.toml"]).expect(1);

    let run = folders(&bench, |name| name.starts_with("defended-"))[0].clone();
    let written = |path: &str| modified(&run.join(path));
    let kept = ["seed-0/weights.safetensors", "seed-0/defenses/1-fine-tuning/result.json"];
    let whole = kept.map(|path| read_bytes(&run.join(path)));
    let before = written("seed-0/defenses/0-fine-tuning/result.json");
    let again = bench.run(&["run", "defended.toml", "--retry-failed"]).expect(1);
    assert_eq!(again.err().matches("backdoored: trained before").count(), 2, "{}", again.err());
    assert_eq!(again.err().matches("A: failed").count(), 2, "{}", again.err());
    assert!(!again.err().contains("A: clean accuracy"), "what finished is not repeated: {}", again.err());
    assert_eq!(kept.map(|path| read_bytes(&run.join(path))), whole);
    assert!(written("seed-0/defenses/0-fine-tuning/result.json") > before, "what failed was repeated");
    assert_eq!(folders(&bench, |name| name.contains(".old-")).len(), 1, "what failed before is kept");
    assert!(folders(&bench, |name| name.contains(".copy") || name.contains(".partial")).is_empty());
}

fn read_bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_mean_has_the_number_of_its_own_seeds_beside_it() {
    let bench = Bench::new();
    // This rate of learning diverges with some of the seeds.
    let text =
        SMALL.replace("train = 240", "train = 256").replace("epochs = 4", "epochs = 1").replace("[0]", "[0, 1, 2, 3]")
            + "[[defenses]]\nfine-tuning.training = { epochs = 2, learning-rate = 2000.0 }\n"
            + "[[sweep.axes]]\nfield = \"poisoning.target-class\"\nvalues = [0]\n";
    bench.file("sweep.toml", &text);
    let finished = bench.run(&["run", "sweep.toml"]);
    let folder = folders(&bench, |name| name.contains(".sweep"))[0].clone();
    let csv = read(&folder.join("table.csv"));
    let count = |name: &str| {
        let line = csv.lines().find(|line| line.split(',').nth(2) == Some(name)).map(str::to_owned);
        line.map_or_else(|| "0".to_owned(), |line| line.split(',').nth(3).unwrap_or_default().to_owned())
    };
    let (_, of_defense) =
        finished.out().split_once("\nfine-tuning: mean").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap_or_default();
    if count("fine-tuning/clean-accuracy") == "0" {
        assert!(finished.code() == Some(1));
    } else {
        let row = of_defense.lines().find(|line| line.starts_with("0 ")).expect("a row").to_owned();
        assert_eq!(row.split_whitespace().nth(1), Some(count("fine-tuning/clean-accuracy").as_str()), "{row}\n{csv}");
    }
    assert_eq!(count("clean-accuracy"), "4");
    let failed = 4 - count("fine-tuning/clean-accuracy").parse::<usize>().expect("a number");
    assert_eq!(finished.code(), Some(i32::from(failed > 0)), "{}", finished.err());
    for line in csv.lines().skip(1).filter(|line| line.contains("asr") || line.contains("accuracy,")) {
        let ends = line.rsplit(',').take(2).filter(|end| !end.is_empty());
        for end in ends.map(|end| end.parse::<f64>().expect("a number")) {
            assert!((0.0..=1.0).contains(&end) || line.contains("drop"), "{line}");
        }
    }
}

#[test]
fn a_rate_above_its_class_is_refused_by_check_dry_run_and_run_with_its_place() {
    let bench = Bench::new();
    let text = SMALL
        .replace("target-class = 0", "target-class = 0\nlabel-rule.clean-label = {}")
        .replace("rate = 0.1", "rate = 0.2");
    let text = text.replace("[trigger.square]\nsize = 4\nanchor = \"lower-right\"\nvalue = 255", "[trigger.sig]");
    bench.file("over.toml", &text);
    for arguments in [&["check", "over.toml"][..], &["run", "over.toml"], &["run", "over.toml", "--dry-run"]] {
        let refused = bench.run(arguments).expect(2);
        for words in ["over.toml:6:8", "rate is 0.2, which poisons 43 images", "images of class 0"] {
            assert!(refused.err().contains(words), "no {words:?} in\n{}", refused.err());
        }
    }
    let source = "[[sweep.axes]]\nfield = \"poisoning.rate\"\nvalues = [0.05, 0.2]\n";
    bench.file("sweep.toml", &format!("{}{source}", text.replace("rate = 0.2", "rate = 0.05")));
    let refused = bench.run(&["run", "sweep.toml"]).expect(2);
    assert!(refused.err().contains("in the point rate = 0.2"), "{}", refused.err());
    assert_eq!(bench.entries(), ["over.toml", "sweep.toml"]);
}

#[test]
fn test_images_that_cannot_show_the_attack_are_noted_before_and_in_the_results() {
    let bench = Bench::new();
    write_folder(&bench, 0, &["bee"]);
    bench.file("folder.toml", FOLDER);
    let finished = bench.run(&["run", "folder.toml"]).expect(0);
    let note = "no test image can show the attack: all 12 are of the target class 1 (bee)";
    assert!(finished.err().contains(note), "{}", finished.err());
    assert!(finished.out().replace("\n  ", " ").contains("no test image can show the attack"), "{}", finished.out());
    let summary = json(&read(&bench.run_directory().join("summary.json")));
    assert!(summary["notes"].to_string().contains(note), "{summary}");
    assert_eq!(summary["target"], "1 (bee)");
}

#[test]
fn a_damaged_clean_twin_is_trained_anew_before_its_victim() {
    let bench = Bench::new();
    bench.file("small.toml", &SMALL.replace("epochs = 4", "epochs = 1"));
    bench.run(&["run", "small.toml"]).expect(0);
    let twins = bench.path().join("runs/twins");
    let hash = std::fs::read_dir(&twins).expect("twins").next().expect("one").expect("readable").path();
    let weights = hash.join("seed-0/weights.safetensors");
    let whole = read_bytes(&weights);
    for (damage, rate) in [(&whole[..whole.len() / 2], "0.2"), (&[], "0.3")] {
        std::fs::write(&weights, damage).expect("writable");
        let other = format!("poisoning.rate={rate}");
        let again = bench.run(&["run", "small.toml", "--set", &other]).expect(0);
        let (warned, trained) = (again.err().find("clean twin is trained anew"), again.err().find("backdoored: epoch"));
        assert!(warned.is_some() && trained.is_none_or(|trained| warned < Some(trained)), "{}", again.err());
        assert_eq!(read_bytes(&weights), whole, "the same weights as before");
    }
    assert!(hash.join("seed-0.old-2").exists(), "what was damaged is kept");
}

#[test]
fn a_run_without_a_readable_summary_is_listed_as_damaged() {
    let bench = Bench::new();
    bench.file("small.toml", &SMALL.replace("epochs = 4", "epochs = 1"));
    bench.run(&["run", "small.toml"]).expect(0);
    let summary = bench.run_directory().join("summary.json");
    std::fs::write(&summary, "").expect("writable");
    let line = |bench: &Bench| {
        let listed = bench.run(&["list"]).expect(0).out();
        listed.lines().find(|line| line.starts_with("runs/small-")).map(str::to_owned).unwrap_or(listed)
    };
    assert!(line(&bench).contains("damaged: ") && line(&bench).contains("--fresh"), "{}", line(&bench));
    std::fs::remove_file(&summary).expect("removed");
    assert!(line(&bench).contains("damaged: it has no summary.json"), "{}", line(&bench));
}

#[test]
fn minus_zero_is_the_same_run_as_zero_and_the_threads_are_those_used() {
    let bench = Bench::new();
    bench.file("small.toml", &SMALL.replace("epochs = 4", "epochs = 1"));
    let run = |rate: &str| {
        let mut command = bench.command(&["run", "small.toml", "--set", rate]);
        let status = command.env("RAYON_NUM_THREADS", "1").status().expect("starts");
        assert!(status.success());
    };
    run("poisoning.rate=0.0");
    run("poisoning.rate=-0.0");
    let environment = json(&read(&bench.run_directory().join("environment.json")));
    assert_eq!(environment["threads"], 1);
}

#[test]
fn messages_about_odd_files_and_folders_say_what_to_do() {
    let bench = Bench::new();
    let utf16: Vec<u8> = std::iter::once(0xfeff).chain(SMALL.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    std::fs::write(bench.path().join("utf16.toml"), utf16).expect("writable");
    let said = bench.run(&["run", "utf16.toml"]).expect(2).err();
    assert!(said.contains("UTF-16") && said.contains("save it as UTF-8"), "{said}");
    let long = format!("{}.toml", "n".repeat(240));
    std::fs::write(bench.path().join(&long), SMALL).expect("writable");
    let said = bench.run(&["check", &long]).expect(2).err();
    assert!(said.contains("at most 200") && said.contains("rename the file"), "{said}");
    #[cfg(unix)]
    {
        bench.file("small.toml", SMALL);
        std::os::unix::fs::symlink("gone", bench.path().join("link")).expect("linked");
        let said = bench.run(&["run", "small.toml", "--out", "link"]).expect(2).err();
        assert!(said.contains("is a link to gone, which is not there; make that folder"), "{said}");
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use super::*;
    use std::process::{Command, Stdio};

    /// Runs the runner in a shell that sets something up first.
    fn in_shell(bench: &Bench, setup: &str, arguments: &str) -> std::process::Output {
        let script = format!("{setup}; exec {} {arguments}", patchdoor_tests::runner().display());
        let mut command = Command::new("sh");
        command.args(["-c", &script]).current_dir(bench.path()).stdin(Stdio::null()).env_remove("PATCHDOOR_DATA");
        command.output().expect("sh starts")
    }

    #[test]
    fn a_signal_that_is_ignored_at_the_start_stays_ignored() {
        for signal in ["HUP", "INT", "TERM"] {
            let bench = Bench::new();
            bench.file("long.toml", &SMALL.replace("epochs = 4", "epochs = 12"));
            // The sender waits until a training has begun.
            let sender = format!(
                "trap '' {signal}; (until ls runs/twins/*/*/checkpoint >/dev/null 2>&1; do sleep 0.01; done; kill -{signal} $$) & :"
            );
            let output = in_shell(&bench, &sender, "run long.toml --offline");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "{signal}: {said}");
            assert!(!said.contains("interrupted"), "{signal}: {said}");
        }
    }

    #[test]
    fn a_signal_that_is_not_ignored_ends_the_epoch_though_another_is() {
        let bench = Bench::new();
        bench.file("long.toml", &SMALL.replace("epochs = 4", "epochs = 60"));
        let sender =
            "trap '' HUP; (until ls runs/twins/*/*/checkpoint >/dev/null 2>&1; do sleep 0.01; done; kill -TERM $$) & :";
        let output = in_shell(&bench, sender, "run long.toml --offline");
        assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn a_full_standard_output_is_an_error_that_says_what_to_do() {
        let bench = Bench::new();
        bench.file("small.toml", &SMALL.replace("epochs = 4", "epochs = 1"));
        let output = in_shell(&bench, ":", "run small.toml --offline >/dev/full");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("the same command shows it again") && said.contains("results: runs/small-"), "{said}");
    }

    #[test]
    fn a_dumb_terminal_gets_no_escape_sequences() {
        let bench = Bench::new();
        bench.file("bad.toml", &SMALL.replace("rate = 0.1", "rate = 7"));
        let script = |settings: &str| {
            let runner = patchdoor_tests::runner().display().to_string();
            let run = format!("{settings} {runner} run bad.toml; {settings} {runner} list -v");
            let output = Command::new("script").args(["-qec", &run, "/dev/null"]).current_dir(bench.path()).output();
            output.ok().map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        };
        // Where there is no `script`, there is no terminal to try.
        let Some(smart) = script("env -u NO_COLOR TERM=xterm") else { return };
        assert!(smart.contains('\u{1b}'), "{smart}");
        for settings in ["env -u NO_COLOR TERM=dumb", "env TERM=xterm NO_COLOR=1"] {
            let plain = script(settings).unwrap_or_default();
            assert!(plain.contains("poisoning.rate is 7") && !plain.contains('\u{1b}'), "{settings}: {plain}");
        }
    }
}
