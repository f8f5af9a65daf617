//! Runs that look at what routers select.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use patchdoor_tests::{Bench, SMALL};
use serde_json::Value;

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The `f32` numbers of an array in a safetensors file, and its shape.
fn array(path: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(path).expect("the arrays are there");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("a header of JSON");
    let whole = |value: &Value| value.as_u64().expect("a whole number") as usize;
    let list = |value: &Value| value.as_array().expect("a list").iter().map(whole).collect::<Vec<_>>();
    assert_eq!(header[name]["dtype"], "F32", "{name} in {header}");
    let range = list(&header[name]["data_offsets"]);
    let data = &bytes[8 + length..][range[0]..range[1]];
    let numbers = data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")));
    (list(&header[name]["shape"]), numbers.collect())
}

#[test]
fn a_run_that_looks_at_routing_leaves_arrays_tables_figures_and_a_report() {
    let bench = Bench::new();
    bench.file("routing.toml", &format!("{SMALL}\n[routing]\nper-epoch = true\nper-epoch-images = 30\n"));
    let finished = bench.run(&["run", "routing.toml"]).expect(0);
    assert!(finished.out().contains("trigger capture"), "{}", finished.out());
    let directory = bench.run_directory();
    let folder = directory.join("seed-0/routing");

    // Ten classes of six images; 4 experts take 16 of 64 patches each.
    for name in ["victim", "clean-twin"] {
        let (shape, frequencies) = array(&folder.join("selections.safetensors"), &format!("{name}.frequency"));
        assert_eq!(shape, [2, 10, 4, 8, 8]);
        for (number, map) in frequencies.chunks_exact(64).enumerate() {
            let sum: f32 = map.iter().sum();
            assert!((sum - 16.0).abs() < 1e-3, "map {number} of {name} sums to {sum}");
        }
        for figure in [format!("{name}.svg"), format!("{name}-classes.svg")] {
            let text = std::fs::read_to_string(folder.join(&figure)).expect("a figure");
            assert!(text.starts_with("<svg") && text.ends_with("</svg>\n"), "{figure}");
        }
    }
    // The 4x4 square in the lower right corner changes one cell, and nine patches see it.
    let (_, marks) = array(&folder.join("selections.safetensors"), "triggered-patches");
    let count = |marks: &[f32]| marks.iter().filter(|&&share| share > 0.99).count();
    assert!(count(&marks[..64]) == 1 && marks[63] > 0.99, "{marks:?}");
    assert_eq!(count(&marks[64..]), 9, "{marks:?}");

    let table = std::fs::read_to_string(folder.join("statistics.csv")).expect("a table");
    assert!(table.starts_with("model,set,class,expert,statistic,value,low,high,chance,images\n"), "{table}");
    let rows = json(&folder.join("statistics.json"));
    assert_eq!(table.lines().count() - 1, rows.as_array().expect("rows").len());
    for row in rows.as_array().expect("rows") {
        let value = row["value"].as_f64().expect("a number");
        assert!((-1.0..=1.0).contains(&value), "{row}");
    }

    let epochs = std::fs::read_to_string(folder.join("epochs.jsonl")).expect("lines");
    let epochs: Vec<Value> = epochs.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(epochs.iter().map(|line| line["epoch"].as_u64()).collect::<Vec<_>>(), [0, 1, 2, 3].map(Some));
    assert!(epochs.iter().all(|line| line["images"] == 30));
    assert!(folder.join("epochs.svg").exists());
    let seeds = std::fs::read_to_string(directory.join("routing.svg")).expect("a figure over seeds");
    assert!(seeds.contains(">seed 0<") && seeds.contains(">twin, clean<"), "{seeds}");

    let summary = json(&directory.join("summary.json"));
    assert_eq!(summary["routing"]["trigger-capture"]["chance"], 0.25, "{}", summary["routing"]);
    let routing = &summary["seeds"][0]["outcome"]["finished"]["routing"];
    assert_eq!(routing["triggered-patches"], 1.0, "{routing}");
    assert!(routing["clean-twin"]["clean"]["intensity"]["auc"]["value"].is_number(), "{routing}");
}

#[test]
fn looking_at_routing_changes_no_weight_and_no_other_number() {
    let run = |text: &str| {
        let bench = Bench::new();
        bench.file("small.toml", text);
        bench.run(&["run", "small.toml"]).expect(0);
        let seed = bench.run_directory().join("seed-0");
        let weights = std::fs::read(seed.join("weights.safetensors")).expect("weights are saved");
        let result = json(&seed.join("result.json"));
        let measured = &result["outcome"]["finished"];
        (weights, ["clean-accuracy", "asr", "robust-accuracy", "clean-twin", "classes"].map(|n| measured[n].clone()))
    };
    assert_eq!(run(SMALL), run(&format!("{SMALL}\n[routing]\nper-epoch = true\n")));
}

#[test]
fn a_run_killed_amid_its_epochs_ends_with_the_lines_of_one_that_was_not() {
    let text =
        format!("{}\n[routing]\nper-epoch = true\nfigures = false\n", SMALL.replace("epochs = 4", "epochs = 12"));
    let run = |is_killed: bool| {
        let bench = Bench::new();
        bench.file("long.toml", &text);
        if is_killed {
            let mut child = bench.command(&["run", "long.toml"]).stderr(Stdio::null()).spawn().expect("it starts");
            let start = Instant::now();
            // The folder's name ends in `.partial` while the run is under way; three epochs are on record.
            while lines(&bench).is_none_or(|lines| lines.lines().count() < 3) {
                assert!(child.try_wait().expect("it is ours").is_none(), "the run ended before it was killed");
                assert!(start.elapsed() < Duration::from_mins(5), "no epoch ended");
                std::thread::sleep(Duration::from_millis(2));
            }
            child.kill().expect("it is ours");
            child.wait().expect("it ends");
        }
        bench.run(&["run", "long.toml"]).expect(0);
        lines(&bench).expect("a line for each epoch")
    };
    let (whole, resumed) = (run(false), run(true));
    assert_eq!(whole.lines().count(), 12);
    assert_eq!(whole, resumed);
}

/// The lines of `epochs.jsonl` in the only run there is, finished or not.
fn lines(bench: &Bench) -> Option<String> {
    let runs = std::fs::read_dir(bench.path().join("runs")).ok()?.filter_map(Result::ok);
    let mut found = runs.map(|run| run.path().join("seed-0/routing/epochs.jsonl")).filter(|path| path.is_file());
    std::fs::read_to_string(found.next()?).ok()
}

#[test]
fn without_poison_the_classifier_is_its_own_twin_and_quick_runs_look_too() {
    let bench = Bench::new();
    bench.file("clean.toml", &format!("{}\n[routing]\nfigures = false\n", SMALL.replace("rate = 0.1", "rate = 0.0")));
    bench.run(&["run", "clean.toml", "--quick"]).expect(0);
    let folder = bench.run_directory().join("seed-0");
    let routing = json(&folder.join("result.json"))["outcome"]["finished"]["routing"].clone();
    assert!(routing["victim"].is_object() && routing["clean-twin"].is_null(), "{routing}");
    assert!(!folder.join("routing/victim.svg").exists());
}

#[test]
fn routing_of_a_network_without_routers_is_refused() {
    let bench = Bench::new();
    let text = format!("{}\n[routing]\n", SMALL.replace("patch-moe", "wide-resnet"));
    bench.file("dense.toml", &text);
    let finished = bench.run(&["run", "dense.toml"]).expect(2);
    let place = format!("dense.toml:{}:1", text.lines().count());
    assert!(finished.err().contains(&place), "{}", finished.err());
    assert!(finished.err().contains("model.patch-moe"), "{}", finished.err());
}

/// Of networks so small and so little trained nothing can be said; the test is about which of them are read and which refused.
#[test]
fn networks_are_told_apart_by_their_routing_and_others_refused() {
    let bench = Bench::new();
    let short = SMALL.replace("epochs = 4", "epochs = 1").replace("rate = 0.1\n", "");
    let routed = |seeds: &str| format!("{}\n[routing]\nfigures = false\n", short.replace("[0]", seeds));
    let axes = "\n[[sweep.axes]]\nname = \"trigger\"\nvariants = [\n    { label = \"square\", set = {} },\n    \
                { label = \"small\", set = { trigger = { art-pattern = {} } } },\n    \
                { label = \"blend\", set = { trigger = { blend = {} } } },\n]\n";
    bench.file("victims.toml", &(routed("[0, 1, 2]") + axes));
    let clean = routed("[3, 4, 5]").replace("[poisoning]\n", "[poisoning]\nrate = 0.0\n");
    bench.file("clean.toml", &clean.replace("clean-twin = true\n", ""));
    bench.file("longer.toml", &routed("[6]").replace("epochs = 1", "epochs = 2"));
    bench.run(&["run", "victims.toml", "clean.toml", "longer.toml"]).expect(0);

    let runs = || {
        let entries = std::fs::read_dir(bench.path().join("runs")).expect("there are runs");
        let mut runs = entries.map(|entry| entry.expect("readable").path()).collect::<Vec<_>>();
        runs.retain(|run| run.join("summary.json").is_file());
        runs.sort();
        runs.into_iter().map(|run| run.to_str().expect("UTF-8").to_owned()).collect::<Vec<_>>()
    };
    let (longer, same): (Vec<_>, Vec<_>) = runs().into_iter().partition(|run| run.contains("/longer"));
    let call = |runs: &[String], more: &[&str]| {
        let arguments = std::iter::once("networks").chain(runs.iter().map(String::as_str)).chain(more.iter().copied());
        bench.run(&arguments.collect::<Vec<_>>())
    };
    let found = call(&same, &["--folds", "3", "--json"]).expect(0).out();
    let found: Value = serde_json::from_str(&found).expect("one document");
    let attacks = found["attacks"].as_array().expect("a list");
    assert!(attacks.len() == 3 && attacks.iter().all(|attack| attack["networks"] == 3), "{found}");
    // The twins of three seeds count once each, whatever the attack, and so do three clean networks.
    assert_eq!((&found["clean"], &found["seeds"]), (&Value::from(6), &Value::from(6)), "{found}");
    assert_eq!(found["single"].as_object().map(serde_json::Map::len), Some(13), "{found}");
    let area = found["held-out"]["area"]["value"].as_f64().expect("a number");
    assert!((0.0..=1.0).contains(&area), "{found}");
    let text = call(&same, &["--folds", "3"]).expect(0).out();
    assert!(text.contains("9 backdoored networks of 3 attacks and 6 clean ones, of 6 seeds"), "{text}");
    assert!(text.contains("one of 3 parts") && text.contains("mean over attacks"), "{text}");

    let mixed = [same.clone(), longer].concat();
    let refused = call(&mixed, &["--folds", "3"]).expect(2).err();
    assert!(refused.contains("training.epochs is ") && refused.contains("attack and seed alone"), "{refused}");
    let few = same.into_iter().filter(|run| !run.contains("/clean")).collect::<Vec<_>>();
    let refused = call(&few, &["--folds", "5"]).expect(2).err();
    assert!(refused.contains("too few"), "{refused}");
}
