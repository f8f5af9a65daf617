//! Defenses from their tables to their files, interrupted and resumed.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use patchdoor_tests::{Bench, SMALL};
use serde_json::Value;

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Defenses that prune, that train and that do both, each as short as can be.
const ALL: &str = r#"
[[defenses]]
twin = true
fine-tuning = { training = { epochs = 1, batch-size = 32 } }

[[defenses]]
label = "as published"
data = "contaminated"
fine-pruning = { training = { epochs = 1, batch-size = 32 } }

[[defenses]]
clean-fraction = 0.25
stepwise-fine-pruning = { step-fraction = 0.25, training = { epochs = 1, batch-size = 32, learning-rate = 0.01 } }

[[defenses]]
twin = true
pruning-series = { fractions = [0.0, 0.5] }

[[defenses]]
clean-images = 100
expert-pruning = {}

[[defenses]]
router-retraining = { training = { epochs = 1, batch-size = 32 } }

[[defenses]]
expert-fine-tuning = { head = true, training = { epochs = 1, batch-size = 32 } }
"#;

#[test]
fn every_defense_starts_from_the_same_model_and_is_measured_before_and_after() {
    let bench = Bench::new();
    bench.file("defended.toml", &format!("{SMALL}{ALL}"));
    let finished = bench.run(&["run", "defended.toml"]).expect(0);
    assert!(finished.out().contains("defenses, in percent"), "{}", finished.out());
    for title in ["fine-tuning", "as published", "stepwise-fine-pruning", "expert-pruning", "32 of 64 filters"] {
        assert!(finished.out().contains(title), "no {title} in\n{}", finished.out());
    }

    let seed = bench.run_directory().join("seed-0");
    let measured = &json(&seed.join("result.json"))["outcome"]["finished"];
    let defenses = measured["defenses"].as_array().expect("defenses were measured");
    let names: Vec<&str> = defenses.iter().filter_map(|defense| defense["name"].as_str()).collect();
    assert_eq!(names.len(), 7);
    for (index, (name, defense)) in names.iter().zip(defenses).enumerate() {
        let folder = seed.join(format!("defenses/{index}-{name}"));
        assert_eq!(&json(&folder.join("result.json")), defense);
        assert!(folder.join("weights.safetensors").exists() && !folder.join("checkpoint").exists());
        let outcome = &defense["outcome"]["finished"];
        for field in ["clean-accuracy", "asr", "robust-accuracy"] {
            assert_eq!(outcome["before"][field], measured[field], "{name} starts from the backdoored model");
            assert!(outcome["after"][field].is_number(), "{name}: {outcome}");
        }
        let lines = std::fs::read_to_string(folder.join("metrics.jsonl")).expect("a history, be it empty");
        assert_eq!(Some(lines.lines().count() as u64), outcome["epochs"].as_u64());
    }
    // 216 training images, 21 of them poisoned; a quarter of them are 54.
    let counts = |index: usize| {
        let count = |field: &str| defenses[index][field].as_u64().expect(field);
        (count("clean-images"), count("contaminated-images"), count("validation-images"))
    };
    assert_eq!(counts(0), (216, 0, 24));
    assert_eq!(counts(1), (216, 21, 24));
    assert_eq!(counts(2), (54, 0, 24));
    assert_eq!(counts(4), (100, 0, 24));
    // Nothing pruned is nothing happened: DER and RIR are one half.
    let untouched = &defenses[3]["outcome"]["finished"]["series"][0];
    assert_eq!(untouched["after"], defenses[3]["outcome"]["finished"]["before"]);
    assert_eq!(untouched["defense-effectiveness"], 0.5);
    // The clean twin is defended alike: nothing pruned is the twin itself.
    for field in ["clean-accuracy", "asr"] {
        assert_eq!(untouched["clean-twin"][field], measured["clean-twin"][field], "{field}");
    }
    let fine_tuned = &defenses[0]["outcome"]["finished"]["clean-twin"];
    assert!(fine_tuned["asr"].is_number() && fine_tuned["largest-class-share"].is_number(), "{fine_tuned}");
    let of_twin = seed.join("defenses/0-fine-tuning/clean-twin");
    assert!(of_twin.join("metrics.jsonl").exists() && !of_twin.join("checkpoint").exists());
    assert!(defenses[1]["outcome"]["finished"].get("clean-twin").is_none(), "only where it is asked for");
    // The last fraction is kept: half of 4 times 16 filters.
    assert_eq!(defenses[3]["outcome"]["finished"]["series"][1]["pruned-filters"], 32);
    assert_eq!(defenses[3]["outcome"]["finished"]["after"], defenses[3]["outcome"]["finished"]["series"][1]["after"]);
}

#[test]
fn a_tuned_repair_is_the_strongest_that_the_validation_images_allow_and_says_what_it_tried() {
    let bench = Bench::new();
    let repair = "fine-tuning = { training = { epochs = 1, batch-size = 32, learning-rate = 0.05 } }";
    let tuned = format!("[[defenses]]\ntwin = true\ntune = {{ max-accuracy-drop = 0.99 }}\n{repair}\n");
    let dear = format!("[[defenses]]\nlabel = \"none to spare\"\ntune = {{ max-accuracy-drop = 0.0 }}\n{repair}\n");
    bench.file("tuned.toml", &format!("{SMALL}{tuned}{dear}"));
    let finished = bench.run(&["run", "tuned.toml"]).expect(0);
    assert!(finished.err().contains("5 epochs at most, as strong as validation images allow"), "{}", finished.err());
    assert!(finished.err().contains("training.learning-rate 0.5 taken"), "{}", finished.err());

    let defenses = bench.run_directory().join("seed-0/defenses");
    let measured = json(&defenses.join("0-fine-tuning/result.json"));
    assert_eq!(measured["peak-memory"].is_u64(), cfg!(target_os = "linux"), "{measured}");
    let tuning = &measured["outcome"]["finished"]["details"]["tuning"];
    assert_eq!((&tuning["field"], &tuning["value"]), (&"training.learning-rate".into(), &0.5.into()), "{tuning}");
    assert_eq!(tuning["tried"].as_array().map(Vec::len), Some(1), "almost all accuracy may go: {tuning}");
    let strength = defenses.join("0-fine-tuning/strength-0.5");
    assert!(strength.join("metrics.jsonl").exists() && !strength.join("checkpoint").exists());
    let of_twin = defenses.join("0-fine-tuning/clean-twin/strength-0.5");
    assert!(of_twin.join("metrics.jsonl").exists() && !of_twin.join("checkpoint").exists());

    let tuning = &json(&defenses.join("1-fine-tuning/result.json"))["outcome"]["finished"]["details"]["tuning"];
    let number = |value: &Value| value.as_f64().expect("a number");
    let tried = tuning["tried"].as_array().expect("at least one");
    let before = number(&tuning["accuracy-before"]);
    let (last, others) = tried.split_last().expect("at least one");
    assert!(others.iter().all(|other| number(&other["validation-accuracy"]) < before), "{tuning}");
    assert!(number(&last["validation-accuracy"]) >= before || tried.len() == 5, "{tuning}");
    assert_eq!(tuning["value"], last["value"]);
}

#[test]
fn a_quick_version_takes_every_defense() {
    let bench = Bench::new();
    bench.file("defended.toml", &format!("{SMALL}{ALL}"));
    let finished = bench.run(&["run", "defended.toml", "--quick"]).expect(0);
    assert!(finished.out().contains("defenses, in percent"), "{}", finished.out());
    let planned = bench.run(&["run", "defended.toml", "--dry-run"]).expect(0);
    assert!(planned.out().contains("then as published: 216 contaminated images, 1 epoch"), "{}", planned.out());
}

#[test]
fn without_validation_images_only_a_defense_that_chooses_on_them_is_refused() {
    let bench = Bench::new();
    let fine = "[data]\nvalidation-fraction = 0.0\n[[defenses]]\nfine-pruning = { training = { epochs = 1 } }\n";
    bench.file("fine.toml", &format!("{SMALL}{fine}"));
    bench.run(&["run", "fine.toml"]).expect(0);
    bench.file("refused.toml", &format!("{SMALL}{fine}[[defenses]]\nstepwise-fine-pruning = {{}}\n"));
    let refused = bench.run(&["run", "refused.toml"]).expect(2);
    assert!(refused.err().contains("data.validation-fraction is 0"), "{}", refused.err());
    assert!(refused.err().contains("defenses.1.stepwise-fine-pruning chooses"), "{}", refused.err());
}

#[test]
fn a_detector_is_measured_on_victim_and_twin_at_thresholds_from_validation_images() {
    let bench = Bench::new();
    let detectors = "[[defenses]]\ntwin = true\nscale-up = { factors = [2.0, 3.0] }\n[[defenses]]\nclean-images = 20\n\
                     strip = { overlays = 2 }\n";
    bench.file("detected.toml", &format!("{SMALL}{detectors}"));
    let finished = bench.run(&["run", "detected.toml"]).expect(0);
    assert!(finished.out().contains("detectors of triggered inputs, in percent"), "{}", finished.out());
    assert!(!finished.out().contains("defenses, in percent"), "there is no repair:\n{}", finished.out());
    assert!(finished.err().contains("scale-up: AUC "), "{}", finished.err());

    let seed = bench.run_directory().join("seed-0");
    let measured = &json(&seed.join("result.json"))["outcome"]["finished"];
    for (index, name) in ["scale-up", "strip"].into_iter().enumerate() {
        let folder = seed.join(format!("defenses/{index}-{name}"));
        let result = json(&folder.join("result.json"));
        assert_eq!(&measured["defenses"][index], &result);
        let detected = &result["outcome"]["detected"];
        let share = |value: &Value| value["value"].as_f64().is_some_and(|share| (0.0..=1.0).contains(&share));
        assert!(share(&detected["auc"]) && share(&detected["own-threshold"]["true-positive-rate"]), "{detected}");
        let rates = detected["at-rates"].as_array().expect("three rates");
        assert_eq!(rates.len(), 3);
        assert!(rates.iter().all(|rate| share(&rate["false-positive-rate"])), "{detected}");
        assert_eq!(detected.get("clean-twin").is_some(), index == 0, "only where it is asked for");
        // One line for each test image, and a heading.
        let scores = std::fs::read_to_string(folder.join("scores.csv")).expect("scores are kept");
        assert_eq!(scores.lines().count() as u64, measured["test-images"].as_u64().expect("a count") + 1);
        assert!(!folder.join("weights.safetensors").exists(), "nothing was changed");
    }

    bench.file("refused.toml", &format!("{SMALL}[data]\nvalidation-fraction = 0.0\n{detectors}"));
    let refused = bench.run(&["run", "refused.toml"]).expect(2);
    assert!(refused.err().contains("defenses.0.scale-up"), "{}", refused.err());
}

#[test]
fn a_filter_and_an_inspector_are_measured_against_what_was_poisoned() {
    let bench = Bench::new();
    let looks = "[[defenses]]\ntwin = true\nspectral-signatures = { retrain = true }\n[[defenses]]\nactivation-clustering = {}\n\
                 [[defenses]]\ntwin = true\nmm-bd = { starts = 1, steps = 2 }\n";
    bench.file("looked.toml", &format!("{SMALL}{looks}"));
    let finished = bench.run(&["run", "looked.toml"]).expect(0);
    for heading in ["filters of training sets, in percent", "inspectors of classifiers, in percent"] {
        assert!(finished.out().contains(heading), "{}", finished.out());
    }
    assert!(finished.err().contains("spectral-signatures: drops "), "{}", finished.err());
    assert!(finished.err().contains("mm-bd: flags "), "{}", finished.err());

    let seed = bench.run_directory().join("seed-0");
    let measured = &json(&seed.join("result.json"))["outcome"]["finished"];
    let filtered = &measured["defenses"][0]["outcome"]["filtered"];
    let count = |standing: &Value, field: &str| standing["outcome"][field].as_u64().expect("a count");
    // 216 training images, 21 of them poisoned.
    assert_eq!(count(filtered, "true-positives") + count(filtered, "false-negatives"), 21);
    assert_eq!(count(filtered, "false-positives") + count(filtered, "true-negatives"), 195);
    let twin = &filtered["clean-twin"];
    assert_eq!(count(twin, "false-positives") + count(twin, "true-negatives"), 216, "nothing is poisoned");
    for field in ["clean-accuracy", "asr"] {
        assert_eq!(filtered["retrained"]["before"][field], measured[field], "{field}");
        assert!(filtered["retrained"]["after"][field].is_number(), "{filtered}");
    }
    let folder = seed.join("defenses/0-spectral-signatures");
    assert!(folder.join("retrained/weights.safetensors").exists() && !folder.join("retrained/checkpoint").exists());
    let judged = std::fs::read_to_string(folder.join("scores.csv")).expect("judgements are kept");
    assert_eq!((judged.lines().count(), judged.matches(",true\n").count()), (217, 21));
    assert!(measured["defenses"][1]["outcome"]["filtered"].get("retrained").is_none(), "only where it is asked for");

    let inspected = &measured["defenses"][2]["outcome"]["inspected"];
    assert_eq!(inspected["scores"].as_array().map(Vec::len), Some(10));
    assert_eq!(inspected["clean-twin"]["scores"].as_array().map(Vec::len), Some(10));
    assert_eq!(inspected["targets"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_training_from_scratch_is_measured_beside_the_undefended_one_and_what_it_isolates_against_the_poisoning() {
    let bench = Bench::new();
    let trainings = "[[defenses]]\ntwin = true\nanti-backdoor-learning = { isolated-fraction = 0.1, isolation-epochs = 1, rest-epochs = 2, \
                     unlearning-epochs = 1 }\n[[defenses]]\ntrap-expert = { trap-epochs = 1 }\n";
    bench.file("trained.toml", &format!("{SMALL}{trainings}"));
    let planned = bench.run(&["run", "trained.toml", "--dry-run"]).expect(0);
    let said = "then anti-backdoor-learning: trained from scratch on the poisoned set, 4 epochs";
    assert!(planned.out().contains(said), "{}", planned.out());
    let finished = bench.run(&["run", "trained.toml"]).expect(0);
    assert!(finished.out().contains("trainings on the poisoned set, in percent"), "{}", finished.out());
    assert!(finished.err().contains("anti-backdoor-learning: clean accuracy "), "{}", finished.err());

    let seed = bench.run_directory().join("seed-0");
    let measured = &json(&seed.join("result.json"))["outcome"]["finished"];
    let trained = &measured["defenses"][0]["outcome"]["trained"];
    for field in ["clean-accuracy", "asr", "robust-accuracy"] {
        assert_eq!(trained["before"][field], measured[field], "{field}");
        assert!(trained["after"][field].is_number() && trained["clean-twin"][field].is_number(), "{trained}");
    }
    let phases = trained["phases"].as_array().expect("phases");
    let phases = phases.iter().map(|phase| (phase["images"].as_u64(), phase["epochs"].as_u64())).collect::<Vec<_>>();
    // A tenth of 216 training images, 21 of them poisoned, is set apart.
    assert_eq!(phases, [(Some(216), Some(1)), (Some(195), Some(2)), (Some(21), Some(1))]);
    let count = |standing: &Value, field: &str| standing["isolation"]["outcome"][field].as_u64().expect("a count");
    assert_eq!(count(trained, "true-positives") + count(trained, "false-positives"), 21);
    assert_eq!(count(trained, "true-positives") + count(trained, "false-negatives"), 21);
    assert_eq!(count(&trained["clean-twin"], "false-positives"), 21, "nothing is poisoned");
    let folder = seed.join("defenses/0-anti-backdoor-learning");
    assert!(folder.join("weights.safetensors").exists() && !folder.join("checkpoint").exists());
    assert!(!folder.join("clean-twin/checkpoint").exists());
    let lines = std::fs::read_to_string(folder.join("metrics.jsonl")).expect("a history");
    let epochs = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("a record")["epoch"].as_u64());
    assert_eq!(epochs.collect::<Vec<_>>(), (0..4).map(Some).collect::<Vec<_>>());
    let judged = std::fs::read_to_string(folder.join("scores.csv")).expect("judgements are kept");
    assert_eq!((judged.lines().count(), judged.matches(",true\n").count()), (217, 21));
    assert!(measured["defenses"][1]["outcome"]["trained"].get("clean-twin").is_none(), "only where it is asked for");
}

/// Two defenses, the second long enough to be stopped in its middle.
const LONG: &str = r"
[[defenses]]
pruning-series = { fractions = [0.5] }

[[defenses]]
fine-pruning = { keep-mask = true, training = { epochs = 30, batch-size = 32, learning-rate = 0.05 } }
";

/// Starts an experiment and interrupts it once there is an epoch in a folder of its first seed.
#[cfg(unix)]
fn interrupt(bench: &Bench, experiment: &str, checkpoint: &str) {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    let mut child = bench
        .command(&["run", experiment])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the runner starts");
    let start = Instant::now();
    let has_checkpoint = || {
        let Ok(runs) = std::fs::read_dir(bench.path().join("runs")) else { return false };
        let checkpoint = |run: PathBuf| run.join("seed-0").join(checkpoint);
        let mut folders = runs.filter_map(|entry| entry.ok().map(|entry| checkpoint(entry.path())));
        folders.any(|folder| {
            std::fs::read_dir(folder).is_ok_and(|mut epochs| {
                epochs.any(|epoch| epoch.is_ok_and(|epoch| !epoch.file_name().to_string_lossy().ends_with("partial")))
            })
        })
    };
    while !has_checkpoint() {
        assert!(child.try_wait().expect("it is ours").is_none(), "the run ended before a checkpoint was seen");
        assert!(start.elapsed() < Duration::from_mins(4), "no checkpoint appeared");
        std::thread::sleep(Duration::from_millis(2));
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill starts");
    assert!(sent.success());
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
}

fn weights(bench: &Bench, defense: &str) -> Vec<u8> {
    let path = bench.run_directory().join(format!("seed-0/defenses/{defense}/weights.safetensors"));
    std::fs::read(path).expect("weights are saved")
}

#[cfg(unix)]
#[test]
fn an_interrupted_defense_goes_on_and_finished_ones_are_not_repeated() {
    let bench = Bench::new();
    bench.file("long.toml", &format!("{SMALL}{LONG}"));
    interrupt(&bench, "long.toml", "defenses/1-fine-pruning/checkpoint");

    let first = |bench: &Bench| bench.run_directory().join("seed-0/defenses/0-pruning-series/result.json");
    let written = |path: &Path| -> SystemTime {
        std::fs::metadata(path).and_then(|file| file.modified()).expect("the first defense finished")
    };
    let before = written(&first(&bench));
    let resumed = bench.run(&["run", "long.toml"]).expect(0);
    assert!(resumed.err().contains("fine-pruning: goes on after epoch"), "{}", resumed.err());
    assert_eq!(written(&first(&bench)), before, "a finished defense is not repeated");

    let straight = Bench::new();
    straight.file("long.toml", &format!("{SMALL}{LONG}"));
    straight.run(&["run", "long.toml"]).expect(0);
    let [resumed, straight] = [&bench, &straight].map(|bench| weights(bench, "1-fine-pruning"));
    assert_eq!(resumed, straight, "the same weights as without an interruption");
}

#[cfg(unix)]
#[test]
fn an_interrupted_training_from_scratch_passes_over_its_finished_phases() {
    let training =
        "[[defenses]]\nanti-backdoor-learning = { isolation-epochs = 2, rest-epochs = 30, unlearning-epochs = 2 }\n";
    let bench = Bench::new();
    bench.file("long.toml", &format!("{SMALL}{training}"));
    interrupt(&bench, "long.toml", "defenses/0-anti-backdoor-learning/checkpoint/rest");
    let resumed = bench.run(&["run", "long.toml"]).expect(0);
    assert!(resumed.err().contains("anti-backdoor-learning: goes on after epoch 2 of 34"), "{}", resumed.err());

    let straight = Bench::new();
    straight.file("long.toml", &format!("{SMALL}{training}"));
    straight.run(&["run", "long.toml"]).expect(0);
    let [resumed, straight] = [&bench, &straight].map(|bench| weights(bench, "0-anti-backdoor-learning"));
    assert_eq!(resumed, straight, "the same weights as without an interruption");
}
