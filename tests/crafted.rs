//! Triggers that are made with a trained model.

use std::path::Path;

use patchdoor_tests::{Bench, SMALL, json_of};

fn small(crafted: &str) -> String {
    let head = SMALL.replace("[trigger.square]\nsize = 4\nanchor = \"lower-right\"\nvalue = 255\n", crafted);
    assert!(head.contains("crafted"), "the trigger was replaced");
    head
}

fn label_consistent() -> String {
    small("label-rule.clean-label = {}\n[crafted.label-consistent]\nsteps = 5\n")
}

fn modified(path: &Path) -> std::time::SystemTime {
    std::fs::metadata(path).and_then(|file| file.modified()).expect("it is there")
}

#[test]
fn a_trigger_is_made_with_the_clean_twin_left_on_record_and_not_made_again() {
    let bench = Bench::new();
    bench.file("small.toml", &label_consistent());
    let finished = bench.run(&["run", "small.toml"]).expect(0);
    assert!(finished.err().contains("label-consistent trigger (36 of 1024 pixels)"), "{}", finished.err());
    assert!(finished.err().contains("the trigger is made with the clean twin"), "{}", finished.err());
    let twins = std::fs::read_dir(bench.path().join("runs/twins")).expect("clean models are kept").count();
    assert_eq!(twins, 1, "the twin is the surrogate");

    let run = bench.run_directory();
    let seed = run.join("seed-0");
    let record = json_of(&seed.join("crafted.json"));
    let result = json_of(&seed.join("result.json"));
    let crafted = &result["outcome"]["finished"]["crafted"];
    assert_eq!(crafted["reached"], record["reached"]);
    assert_eq!(crafted["surrogate"], result["outcome"]["finished"]["clean-twin"]["folder"]);
    assert!(seed.join("crafted.png").exists());
    // 21 poisoned images, original and replacement.
    let bytes = std::fs::metadata(seed.join("crafted-images.bin")).expect("replaced images").len();
    assert_eq!(bytes, result["poisoned-images"].as_u64().expect("a count") * 2 * 3072);

    // As if the run had been interrupted after its trigger was made: it goes on with it and gives the same numbers.
    let partial = Bench::new();
    partial.file("small.toml", &label_consistent());
    let folder =
        partial.path().join("runs").join(format!("{}.partial", run.file_name().expect("named").to_string_lossy()));
    patchdoor_tests::copy(&bench.path().join("runs/twins"), &partial.path().join("runs/twins"));
    for name in ["crafted.json", "crafted-images.bin"] {
        let to = folder.join("seed-0").join(name);
        std::fs::create_dir_all(folder.join("seed-0")).expect("made");
        std::fs::copy(seed.join(name), to).expect("copied");
    }
    let sums = std::fs::read_to_string(seed.join("SHA256SUMS")).expect("sums");
    let kept = sums.lines().filter(|line| line.contains("crafted")).collect::<Vec<_>>().join("\n") + "\n";
    std::fs::write(folder.join("seed-0/SHA256SUMS"), kept).expect("written");
    let before = modified(&folder.join("seed-0/crafted.json"));
    let resumed = partial.run(&["run", "small.toml"]).expect(0);
    assert!(!resumed.err().contains("made in"), "it was made before: {}", resumed.err());
    let again = partial.run_directory().join("seed-0");
    assert_eq!(modified(&again.join("crafted.json")), before);
    let measured = |folder: &Path| {
        let mut outcome = json_of(&folder.join("result.json"))["outcome"]["finished"].take();
        for timed in ["training-seconds", "images-per-second"] {
            outcome.as_object_mut().expect("a table").remove(timed);
        }
        outcome
    };
    assert_eq!(measured(&again), measured(&seed));
}

#[test]
fn a_damaged_trigger_is_an_error_and_no_number() {
    let bench = Bench::new();
    bench.file("small.toml", &label_consistent());
    bench.run(&["run", "small.toml"]).expect(0);
    let run = bench.run_directory();
    let partial = run.with_file_name(format!("{}.partial", run.file_name().expect("named").to_string_lossy()));
    std::fs::rename(&run, &partial).expect("renamed");
    for name in ["summary.json", "seed-0/result.json"] {
        std::fs::remove_file(partial.join(name)).expect("removed");
        let sums = partial.join(name).with_file_name("SHA256SUMS");
        let file = name.rsplit('/').next().expect("a name");
        let text = std::fs::read_to_string(&sums).expect("sums");
        let kept = text.lines().filter(|line| !line.ends_with(file)).collect::<Vec<_>>().join("\n") + "\n";
        std::fs::write(&sums, kept).expect("written");
    }
    let images = partial.join("seed-0/crafted-images.bin");
    let mut bytes = std::fs::read(&images).expect("read");
    bytes[7] ^= 1;
    std::fs::write(&images, bytes).expect("written");
    let refused = bench.run(&["run", "small.toml"]);
    assert_ne!(refused.code(), Some(0));
    assert!(refused.err().contains("crafted-images.bin"), "{}", refused.err());
}

#[test]
fn commands_that_train_nothing_say_that_the_trigger_needs_a_model() {
    let bench = Bench::new();
    bench.file("small.toml", &label_consistent());
    let said = "its trigger label-consistent is made with a trained model: run the experiment";
    let drawn = bench.run(&["triggers", "small.toml", "--out", "sheets"]).expect(0);
    assert!(drawn.err().contains(&format!("is not drawn: {said}")), "{}", drawn.err());
    let exported = bench.run(&["data", "export", "small.toml", "--to", "out"]).expect(2);
    assert!(exported.err().contains("is made with a trained model"), "{}", exported.err());
    assert_eq!(bench.run(&["run", "small.toml", "--dry-run"]).expect(0).code(), Some(0));
}
