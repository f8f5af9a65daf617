//! Bad input: one clear message, exit code 2, nothing written.

use patchdoor_tests::{Bench, SMALL};

/// Runs a file that must be refused and returns what the runner says.
fn refused(text: &str, arguments: &[&str]) -> String {
    let bench = Bench::new();
    bench.file("bad.toml", text);
    let all: Vec<&str> = ["run", "bad.toml"].iter().chain(arguments).copied().collect();
    let finished = bench.run(&all).expect(2);
    assert_eq!(bench.entries(), ["bad.toml"], "nothing is written");
    assert_eq!(finished.out(), "", "messages go to stderr");
    finished.err()
}

#[test]
fn all_problems_are_reported_at_once_with_their_places() {
    let text = SMALL
        .replace("rate = 0.1", "rate = 1.7")
        .replace("target-class = 0", "target-class = 12")
        .replace("size = 4", "size = 40")
        .replace("widen-factor = 1", "widen-factor = 1\npatches-per-expert = 70");
    let said = refused(&text, &[]);
    for (field, line) in [("rate", 6), ("target-class", 7), ("size", 10), ("patches-per-expert", 16)] {
        assert!(said.contains(field), "no {field} in\n{said}");
        assert!(said.contains(&format!("bad.toml:{line}:")), "no line {line} in\n{said}");
    }
    for value in ["1.7", "12", "40", "70"] {
        assert!(said.contains(value), "no {value} in\n{said}");
    }
}

#[test]
fn an_unknown_key_gets_the_nearest_known_one() {
    let said = refused(&SMALL.replace("batch-size", "batchsize"), &[]);
    assert!(said.contains("batchsize") && said.contains("batch-size"), "{said}");
}

#[test]
fn a_wrong_type_is_refused() {
    let said = refused(&SMALL.replace("epochs = 4", "epochs = \"four\""), &[]);
    assert!(said.contains("bad.toml:18:10") && said.contains("epochs"), "{said}");
}

#[test]
fn a_rate_that_poisons_nothing_is_refused() {
    let said = refused(&SMALL.replace("rate = 0.1", "rate = 0.0001"), &[]);
    assert!(said.contains("0.0001") && said.contains("poison"), "{said}");
}

#[test]
fn a_precision_that_the_cpu_has_not_is_refused() {
    let message = refused(&format!("precision = \"tf32\"\n{SMALL}"), &["--backend", "flex"]);
    assert!(
        message.contains("precision is \"tf32\", expected \"f32\" or \"bf16\" on the CPU; a GPU has tf32 and bf16 too"),
        "{message}"
    );
    assert!(message.contains("bad.toml:1:13"), "{message}");
}

#[test]
fn an_override_is_blamed_itself() {
    let said = refused(SMALL, &["--set", "training.epochs=0"]);
    assert!(said.contains("--set") && said.contains("epochs"), "{said}");
}

#[test]
fn a_missing_file_is_named() {
    let bench = Bench::new();
    let finished = bench.run(&["run", "nowhere.toml"]).expect(2);
    assert!(finished.err().contains("nowhere.toml"), "{}", finished.err());
    assert!(bench.entries().is_empty());
}

#[test]
fn an_output_that_cannot_be_written_is_refused_before_any_work() {
    let bench = Bench::new();
    bench.file("small.toml", SMALL);
    bench.file("taken", "a file, not a folder");
    let finished = bench.run(&["run", "small.toml", "--out", "taken/below"]).expect(2);
    assert!(finished.err().contains("taken"), "{}", finished.err());
    assert_eq!(bench.entries(), ["small.toml", "taken"]);
}

#[test]
fn a_backend_that_is_not_there_is_refused() {
    // Either this build has no CUDA backend or, where it has one, a machine without GPU refuses.
    if std::path::Path::new("/dev/nvidia0").exists() {
        eprint_skip("a GPU is here");
        return;
    }
    let said = refused(SMALL, &["--backend", "cuda"]);
    assert!(said.contains("cuda"), "{said}");
}

#[allow(clippy::print_stderr, reason = "a skipped test says so")]
fn eprint_skip(why: &str) {
    eprintln!("skipped: {why}");
}

#[test]
fn a_damaged_data_set_is_refused_with_place_and_reason() {
    let bench = Bench::new();
    let folder = bench.path().join("data/cifar-10-batches-bin");
    std::fs::create_dir_all(&folder).expect("the folder is writable");
    for name in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"] {
        std::fs::write(folder.join(format!("{name}.bin")), vec![0u8; 3073 * 2 + 100]).expect("writable");
    }
    let text = SMALL.replace("dataset.shapes = { train = 240, test = 60, seed = 0 }", "dataset = \"cifar10\"");
    bench.file("cifar.toml", &text);
    let finished = bench.run(&["run", "cifar.toml"]);
    assert!(matches!(finished.code(), Some(1 | 2)), "{}", finished.err());
    assert!(finished.err().contains("data_batch_1.bin") && finished.err().contains("3073"), "{}", finished.err());
}
