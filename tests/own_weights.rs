//! Defenses of weights that no run of the folder trained.

use std::path::{Path, PathBuf};

use patchdoor_tests::{Bench, SMALL, files, json_of};

/// The defender's images: none that the classifier's training needs to have seen.
const IMAGES: &str = "dataset.shapes = { train = 240, test = 60, seed = 3 }\n";

const REPAIRS: &str = "[[defenses]]\nclean-fraction = 0.5\nfine-tuning = { training = { epochs = 1, batch-size = 32 } }\n\n\
                       [[defenses]]\npruning-series = { fractions = [0.0] }\n";

/// A folder with the weights of a small run, `w.safetensors`, and nothing else of the run.
fn bench() -> Bench {
    let bench = Bench::new();
    bench.file("small.toml", SMALL);
    bench.run(&["run", "small.toml"]).expect(0);
    let weights = bench.run_directory().join("seed-0/weights.safetensors");
    std::fs::rename(weights, bench.path().join("w.safetensors")).expect("moved");
    std::fs::remove_dir_all(bench.path().join("runs")).expect("removed");
    bench
}

/// The only folder of results.
fn results(bench: &Bench) -> PathBuf {
    let folders = std::fs::read_dir(bench.path().join("runs/defended")).expect("results");
    let folders = folders.map(|entry| entry.expect("readable").path());
    let folders = folders.filter(|path| !path.ends_with("locks")).collect::<Vec<_>>();
    assert_eq!(folders.len(), 1, "{folders:?}");
    folders[0].clone()
}

fn without_metadata(file: &Path) -> Vec<u8> {
    let bytes = std::fs::read(file).expect("weights");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let mut header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&bytes[8..8 + length]).expect("JSON");
    header.remove("__metadata__").expect("it describes itself");
    let header = serde_json::to_vec(&header).expect("JSON");
    [&(header.len() as u64).to_le_bytes()[..], &header, &bytes[8 + length..]].concat()
}

#[test]
fn weights_are_repaired_measured_and_left_as_they_are() {
    let bench = bench();
    let before = std::fs::read(bench.path().join("w.safetensors")).expect("weights");
    bench.file("mine.toml", &format!("{IMAGES}{REPAIRS}"));
    let command = ["defend", "--weights", "w.safetensors", "--defense", "mine.toml"];
    let finished = bench.run(&command).expect(0);
    assert!(finished.out().contains("undefended") && finished.out().contains("fine-tuning"), "{}", finished.out());
    assert!(!finished.out().contains("attack success"), "nobody knows a trigger: {}", finished.out());
    let folder = results(&bench);
    let result = json_of(&folder.join("defended.json"));
    let [tuned, pruned] = result["defenses"].as_array().expect("defenses").as_slice() else { panic!("{result}") };
    assert_eq!(tuned["clean-images"], 108, "half of 216 training images");
    let measured = &tuned["outcome"]["finished"];
    assert!(measured["after"]["clean-accuracy"].is_number() && measured["seconds"].is_number(), "{measured}");
    assert!(measured["after"]["asr"].is_null() && measured["defense-effectiveness"].is_null(), "{measured}");
    // Nothing pruned is the same classifier, and its file can be defended in turn.
    let unpruned = &pruned["outcome"]["finished"];
    assert_eq!(unpruned["after"], result["before"]);
    assert_eq!(std::fs::read(bench.path().join("w.safetensors")).expect("weights"), before);
    let repaired = folder.join("defenses/0-fine-tuning/weights.safetensors");
    assert_ne!(std::fs::read(&repaired).expect("repaired"), before);

    // The same command shows what is there; another file of defenses or other weights go elsewhere.
    let again = bench.run(&command).expect(0);
    assert!(again.err().contains("finished earlier"), "{}", again.err());
    assert_eq!(again.out(), finished.out());
    let repaired = repaired.display().to_string();
    bench.run(&["defend", "--weights", &repaired, "--defense", "mine.toml", "--out", "second"]).expect(0);
    let of_repaired = files(&bench.path().join("second")).into_iter().find(|path| path.ends_with("defended.json"));
    let of_repaired = json_of(&of_repaired.expect("results"));
    assert_eq!(of_repaired["before"], measured["after"], "what one command measured the next one finds");
    assert!(!bench.run(&["list"]).expect(0).out().contains("damaged"));
}

#[test]
fn a_trigger_in_the_file_is_measured_and_an_experiment_serves_as_it_is() {
    let bench = bench();
    bench.file("attacked.toml", &format!("{SMALL}{REPAIRS}"));
    let finished =
        bench.run(&["defend", "--weights", "w.safetensors", "--defense", "attacked.toml", "--json"]).expect(0);
    let result: serde_json::Value = serde_json::from_str(&finished.out()).expect("one document");
    assert_eq!(result["knows-trigger"], true);
    assert!(result["before"]["asr"].is_number(), "{result}");
    assert!(result["defenses"][0]["outcome"]["finished"]["after"]["asr"].is_number(), "{result}");
}

#[test]
fn foreign_weights_need_a_structure_from_elsewhere() {
    let bench = bench();
    let foreign = without_metadata(&bench.path().join("w.safetensors"));
    std::fs::write(bench.path().join("foreign.safetensors"), foreign).expect("written");
    bench.file("mine.toml", &format!("{IMAGES}{REPAIRS}"));
    let command = ["defend", "--weights", "foreign.safetensors", "--defense", "mine.toml"];
    let refused = bench.run(&command).expect(2);
    assert!(refused.err().contains("does not say what network it belongs to; give --model FILE"), "{}", refused.err());
    bench.file("empty.toml", "");
    let refused = bench.run(&[&command[..], &["--model", "empty.toml"]].concat()).expect(2);
    assert!(refused.err().contains("empty.toml has no [model] table"), "{}", refused.err());
    bench.file("other.toml", "[model.patch-moe]\nwiden-factor = 2\n");
    let refused = bench.run(&[&command[..], &["--model", "other.toml"]].concat()).expect(2);
    assert!(refused.err().contains("foreign.safetensors is F32"), "{}", refused.err());
    bench.run(&[&command[..], &["--model", "small.toml"]].concat()).expect(0);
    bench.file("whole.toml", &format!("{SMALL}{REPAIRS}"));
    bench.run(&["defend", "--weights", "foreign.safetensors", "--defense", "whole.toml"]).expect(0);
}

#[test]
fn detectors_write_a_line_for_every_image_and_inspectors_one_for_every_class() {
    let bench = bench();
    bench.file("detectors.toml", &format!("{IMAGES}[[defenses]]\nscale-up = {{}}\n"));
    // Two pictures to judge; any will do.
    bench.file("small-export.toml", SMALL);
    bench.run(&["data", "export", "small-export.toml", "--to", "exported"]).expect(0);
    let pictures = files(&bench.path().join("exported"))
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "png"));
    std::fs::create_dir_all(bench.path().join("incoming/below")).expect("made");
    for (from, to) in pictures.zip(["incoming/a.png", "incoming/below/b.png"]) {
        std::fs::copy(from, bench.path().join(to)).expect("copied");
    }
    let command = ["detect", "--weights", "w.safetensors", "--defense", "detectors.toml", "--images", "incoming"];
    let finished = bench.run(&command).expect(0);
    assert!(finished.out().contains("scale-up"), "{}", finished.out());
    let folder = results(&bench).join("defenses/0-scale-up");
    let of_folder = std::fs::read_to_string(folder.join("images.csv")).expect("a table");
    let lines = of_folder.lines().collect::<Vec<_>>();
    assert_eq!(lines.len(), 3, "{of_folder}");
    assert_eq!(lines[0], "image,score,flagged");
    assert!(lines[1].starts_with("a.png,") && lines[2].starts_with("below/b.png,"), "{of_folder}");
    assert!(lines[1].ends_with(",true") || lines[1].ends_with(",false"), "{of_folder}");
    let of_test = std::fs::read_to_string(folder.join("scores.csv")).expect("a table");
    assert_eq!((of_test.lines().count(), of_test.lines().next()), (61, Some("image,score,flagged")));

    bench.file("inspectors.toml", &format!("{IMAGES}[[defenses]]\nmm-bd = {{ starts = 2, steps = 3 }}\n"));
    let finished = bench.run(&["inspect", "--weights", "w.safetensors", "--defense", "inspectors.toml"]).expect(0);
    let classes = finished.out().lines().filter(|line| line.starts_with("class ")).count();
    assert_eq!(classes, 10, "{}", finished.out());
    assert!(finished.out().contains("flagged"), "{}", finished.out());
}

#[test]
fn what_cannot_be_defended_says_why_before_anything_is_written() {
    let bench = bench();
    bench.file("mine.toml", &format!("{IMAGES}{REPAIRS}"));
    bench.file("broken.safetensors", "no weights");
    let refused = |weights: &str, file: &str, command: &str| {
        let refused = bench.run(&[command, "--weights", weights, "--defense", file]).expect(2);
        refused.err()
    };
    let said = refused("gone.safetensors", "mine.toml", "defend");
    assert!(said.contains("gone.safetensors"), "{said}");
    let said = refused("broken.safetensors", "mine.toml", "defend");
    assert!(said.contains("broken.safetensors"), "{said}");
    let said = refused("w.safetensors", "gone.toml", "defend");
    assert!(said.contains("gone.toml"), "{said}");
    let said = refused("w.safetensors", "mine.toml", "detect");
    assert!(said.contains("defenses.0.fine-tuning is for cargo xtask defend"), "{said}");
    assert!(said.contains("expected one of strip"), "{said}");
    bench.file("dense.toml", "[model.wide-resnet]\nwiden-factor = 1\n");
    bench.file("experts.toml", &format!("{IMAGES}[[defenses]]\nrouter-retraining = {{}}\n"));
    let command = ["defend", "--weights", "w.safetensors", "--defense", "experts.toml", "--model", "dense.toml"];
    let said = bench.run(&command).expect(2);
    assert!(said.err().contains("router-retraining is in need of experts"), "{}", said.err());
    let command = ["defend", "--weights", "w.safetensors", "--defense", "mine.toml", "--model", "dense.toml"];
    let said = bench.run(&command).expect(2);
    assert!(said.err().contains("belongs to patch-moe"), "{}", said.err());
    let left = files(&bench.path().join("runs"));
    assert!(left.iter().all(|path| !path.ends_with("defended.json")), "{left:?}");
}
