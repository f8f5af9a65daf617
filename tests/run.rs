//! Runs from their command to their files.

use std::io::Read;
use std::process::Stdio;

use patchdoor_tests::{Bench, SMALL, json_of, workspace};
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_run_directory_explains_itself() {
    let bench = Bench::new();
    bench.file("small.toml", SMALL);
    let finished = bench.run(&["run", "small.toml"]).expect(0);
    assert!(finished.out().contains("attack success rate (ASR)"), "{}", finished.out());
    assert!(finished.err().contains("216 training images, 21 of them poisoned"), "it says what it will do");

    let directory = bench.run_directory();
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).expect(name);
    assert_eq!(json(&read("summary.json"))["schema"], 2);
    let environment = json(&read("environment.json"));
    assert_eq!(environment["backend"], "flex");
    assert!(environment["burn"].as_str().is_some_and(|version| version.starts_with("0.21")));
    // 240 images, a tenth held out: 216 for training, int(0.1 * 216) = 21 poisoned.
    let poisoned = read("seed-0/poisoned-indices.csv");
    assert_eq!(poisoned.lines().count(), 1 + 21, "{poisoned}");
    assert!(poisoned.lines().skip(1).all(|line| line.split(',').nth(3) == Some("0")), "all become class 0");
    assert_eq!(read("seed-0/metrics.jsonl").lines().count(), 4, "one line per epoch");
    assert!(directory.join("seed-0/weights.safetensors").exists());
    assert!(!directory.join("seed-0/checkpoint").exists(), "a finished seed keeps no checkpoint");

    // The written configuration is complete: run again, it is the same experiment with the same result.
    let complete = read("config.toml");
    assert!(complete.contains("gate-order = \"softmax-then-select\""), "defaults are written out:\n{complete}");
}

#[test]
fn the_same_command_gives_the_same_weights() {
    let weights = || {
        let bench = Bench::new();
        bench.file("small.toml", SMALL);
        bench.run(&["run", "small.toml"]).expect(0);
        std::fs::read(bench.run_directory().join("seed-0/weights.safetensors")).expect("weights are saved")
    };
    assert_eq!(weights(), weights());
}

#[test]
fn an_identical_finished_run_is_shown_and_fresh_keeps_the_old_one() {
    let bench = Bench::new();
    bench.file("small.toml", SMALL);
    let first = bench.run(&["run", "small.toml"]).expect(0);
    let written = || {
        let path = bench.run_directory().join("summary.json");
        std::fs::metadata(path).and_then(|file| file.modified()).expect("a finished run has a summary")
    };
    let before = written();
    let second = bench.run(&["run", "small.toml"]).expect(0);
    assert_eq!(before, written(), "nothing was computed again");
    assert_eq!(first.out(), second.out());

    let runs = || std::fs::read_dir(bench.path().join("runs")).expect("runs").count();
    let count = runs();
    bench.run(&["run", "small.toml", "--fresh"]).expect(0);
    assert!(runs() > count, "the old run was moved aside");
}

#[test]
fn a_run_with_curves_has_the_weights_and_the_numbers_of_one_without() {
    let of = |curves: &str| {
        let bench = Bench::new();
        bench.file("small.toml", &format!("{SMALL}\n[curves]\n{curves}\n"));
        let finished = bench.run(&["run", "small.toml", "--json"]).expect(0);
        let seed = bench.run_directory().join("seed-0");
        let weights = std::fs::read(seed.join("weights.safetensors")).expect("weights are saved");
        let mut result = json(&finished.out())["runs"][0]["seeds"][0]["outcome"]["finished"].clone();
        for clock in ["training-seconds", "images-per-second"] {
            result[clock] = Value::Null;
        }
        let lines = std::fs::read_to_string(seed.join("curves.jsonl")).unwrap_or_default();
        (weights, result, lines.lines().map(json).collect::<Vec<_>>(), finished.err())
    };
    let (weights, result, lines, said) = of("every = 3\nimages = 1000");
    let line = "for display, CA, ASR and RA on 60 test images after 2 of 4 epochs: 240 predictions, about 9.3 % of the training";
    assert!(said.contains(line), "240 of 3 * 216 * 4: {said}");
    assert_eq!(lines.iter().map(|line| line["epoch"].as_u64()).collect::<Vec<_>>(), [Some(2), Some(3)]);
    // All test images are among the thousand, so the last look sees what the results are made of.
    for number in ["clean-accuracy", "asr", "robust-accuracy"] {
        assert!(lines[1][number].is_number() && lines[1][number] == result[number], "{number}: {lines:?}");
    }
    assert_eq!(lines[1]["images"], 60);
    let (without, same, none, said) = of("every = 0");
    assert!(weights == without, "weights are the same bits");
    assert!(result == same, "{result}\n{same}");
    assert!(none.is_empty() && !said.contains("for display"), "{said}");
}

#[test]
fn json_is_one_document_and_everything_else_goes_to_stderr() {
    let bench = Bench::new();
    bench.file("small.toml", SMALL);
    let finished = bench.run(&["run", "small.toml", "--json", "--quick"]).expect(0);
    let document = json(&finished.out());
    let text = document.to_string();
    assert!(text.contains("clean-accuracy") && text.contains("\"quick\":true"), "{text}");
}

#[test]
fn a_training_that_diverges_ends_its_seed_with_the_reason() {
    let bench = Bench::new();
    bench.file("wild.toml", &SMALL.replace("learning-rate = 0.05", "learning-rate = 1e30").replace("[0]", "[0, 1]"));
    let finished = bench.run(&["run", "wild.toml"]).expect(1);
    assert!(finished.out().contains("loss became"), "{}", finished.out());
    let summary = json(&std::fs::read_to_string(bench.run_directory().join("summary.json")).expect("summary.json"));
    let seeds = summary["seeds"].as_array().expect("a list");
    assert_eq!(seeds.len(), 2, "the other seed went on");
    for seed in seeds {
        let reason = seed["outcome"]["failed"]["reason"].as_str().expect("a reason");
        assert!(reason.contains("loss became") && reason.contains("learning rate"), "{reason}");
    }
}

#[test]
fn a_dry_run_says_what_it_would_do_and_writes_nothing() {
    let bench = Bench::new();
    bench.file("small.toml", SMALL);
    let finished = bench.run(&["run", "small.toml", "--dry-run"]).expect(0);
    assert!(finished.out().contains("square trigger (16 of 1024 pixels)"), "{}", finished.out());
    let said = finished.out() + &finished.err();
    assert!(said.contains("2 trainings of 4 epochs"), "{said}");
    assert_eq!(bench.entries(), ["small.toml"]);
}

#[test]
fn without_images_and_network_the_shapes_stand_in_and_every_result_says_so() {
    let bench = Bench::new();
    let file = workspace().join("experiments/badnets.toml");
    let finished = bench.run(&["run", file.to_str().expect("a path in UTF-8"), "--quick"]).expect(0);
    assert!(finished.err().contains("shapes"), "{}", finished.err());
    assert!(finished.out().contains("shapes"), "{}", finished.out());
    let directory = bench.run_directory();
    for name in ["summary.json", "environment.json", "seed-0/poisoned-indices.csv", "seed-0/result.json"] {
        let text = std::fs::read_to_string(directory.join(name)).expect(name);
        assert!(text.contains("shapes"), "{name} does not say that shapes stood in:\n{text}");
    }
}

#[test]
fn without_images_and_without_a_stand_in_the_error_says_how_to_get_them() {
    let bench = Bench::new();
    bench.file(
        "cifar.toml",
        &SMALL.replace("dataset.shapes = { train = 240, test = 60, seed = 0 }", "dataset = \"cifar10\""),
    );
    let finished = bench.run(&["run", "cifar.toml"]).expect(2);
    for word in ["cifar10", "data/cifar-10-batches-bin", "data fetch", "when-missing"] {
        assert!(finished.err().contains(word), "no {word:?} in\n{}", finished.err());
    }
}

#[test]
fn every_published_experiment_checks() {
    let bench = Bench::new();
    let experiments = workspace().join("experiments");
    let files: Vec<String> = ["badnets.toml", "paper/badnets.toml", "paper/badnets-white.toml"]
        .map(|name| experiments.join(name).to_string_lossy().into_owned())
        .into();
    let arguments: Vec<&str> = std::iter::once("check").chain(files.iter().map(String::as_str)).collect();
    bench.run(&arguments).expect(0);
}

#[test]
fn a_closed_pipe_is_no_error() {
    let bench = Bench::new();
    let mut child =
        bench.command(&["data", "list"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    drop(child.stdout.take());
    let mut complaints = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut complaints).expect("readable");
    let status = child.wait().expect("it ends");
    assert!(!complaints.contains("panicked") && status.code().is_none_or(|code| code == 0), "{status}: {complaints}");
}

#[test]
fn certificates_are_measured_of_victim_and_twin_by_patches_and_by_pixels() {
    let bench = Bench::new();
    bench.file("certified.toml", &format!("{SMALL}\n[certification]\nimages = 20\npixel-masks = 2\n"));
    let finished = bench.run(&["run", "certified.toml"]).expect(0);
    assert!(finished.out().contains("accuracy, patches passed over by double masking"), "{}", finished.out());
    let result = json_of(&bench.run_directory().join("seed-0/result.json"));
    let certification = &result["outcome"]["finished"]["certification"];
    assert_eq!((&certification["images"], &certification["window"]), (&20.into(), &4.into()));
    for standing in [certification, &certification["clean-twin"]] {
        for (masks, level) in [(16, "routing"), (4, "pixels")] {
            let found = &standing[level];
            assert_eq!(found["masks"], masks, "{standing}");
            let share = |name: &str| found[name].as_f64().unwrap_or_else(|| panic!("{name}: {found}"));
            // Whoever is certified is decided right.
            assert!(share("certified-accuracy") <= share("accuracy"), "{found}");
            assert!((0.0..=1.0).contains(&share("asr")) && (0.0..=1.0).contains(&share("robust-accuracy")), "{found}");
        }
    }
}

#[test]
fn perturbations_are_measured_of_victim_and_twin_after_a_training_on_such() {
    let bench = Bench::new();
    let text = SMALL.replace("[training]\n", "[training]\nadversarial = { steps = 1 }\n");
    bench.file("hardened.toml", &format!("{text}\n[evasion]\nimages = 20\nsteps = 2\n"));
    let finished = bench.run(&["run", "hardened.toml"]).expect(0);
    assert!(finished.out().contains("accuracy under PGD, routing fixed"), "{}", finished.out());
    let result = json_of(&bench.run_directory().join("seed-0/result.json"));
    let evasion = &result["outcome"]["finished"]["evasion"];
    assert_eq!(evasion["images"], 20);
    for standing in [evasion, &evasion["clean-twin"]] {
        let share = |name: &str| standing[name].as_f64().unwrap_or_else(|| panic!("{name}: {standing}"));
        // Whoever withstands PGD is predicted right without it.
        assert!(share("pgd-accuracy") <= share("untouched-accuracy"), "{standing}");
        for name in ["fgsm-accuracy", "pgd-router-accuracy", "pgd-fixed-routing-accuracy"] {
            assert!((0.0..=1.0).contains(&share(name)), "{standing}");
        }
    }
    let plain = bench.file("plain.toml", SMALL);
    let planned = bench.run(&["run", plain, "--dry-run"]).expect(0);
    assert!(!planned.out().contains("adversarial") && !planned.out().contains("evasion"), "{}", planned.out());
}
