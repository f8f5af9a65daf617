//! Sweeps from their file to their tables.

use std::path::{Path, PathBuf};

use patchdoor_record::ResultTable;
use patchdoor_tests::{Bench, Finished, SMALL};
use serde_json::Value;

/// Two rates and two sizes, on the shapes, with a clean twin for each seed.
fn sweep() -> String {
    let axes = r#"
[[sweep.axes]]
field = "poisoning.rate"
values = [0.05, 0.1]

[[sweep.axes]]
name = "square"
variants = [
    { label = "small", set = { "trigger.square.size" = 2 } },
    { label = "large", set = { trigger.square.size = 6, "trigger.square.value" = 0 } },
]
"#;
    SMALL.replace("epochs = 4", "epochs = 1").replace("train = 240", "train = 120") + axes
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Folders below `runs` whose names end in that way, sorted.
fn folders(bench: &Bench, holds: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(bench.path().join("runs")).expect("there are runs");
    let paths = entries.map(|entry| entry.expect("readable").path());
    let mut found: Vec<PathBuf> = paths.filter(|path| path.is_dir() && holds(path)).collect();
    found.sort();
    found
}

fn tables(bench: &Bench) -> PathBuf {
    let mut found = folders(bench, |path| path.extension().is_some_and(|extension| extension == "sweep"));
    assert_eq!(found.len(), 1, "one sweep: {found:?}");
    found.remove(0)
}

fn table(bench: &Bench) -> Value {
    json(&std::fs::read_to_string(tables(bench).join("table.json")).expect("a table"))
}

fn runs(bench: &Bench) -> Vec<PathBuf> {
    folders(bench, |path| path.join("summary.json").exists())
}

/// When every result was written.
fn times(bench: &Bench) -> Vec<std::time::SystemTime> {
    let times = runs(bench).into_iter().map(|run| std::fs::metadata(run.join("summary.json")));
    times.map(|file| file.and_then(|file| file.modified()).expect("a file has a time")).collect()
}

/// The lines that announce runs.
fn announced(finished: &Finished) -> Vec<String> {
    finished.err().lines().filter(|line| line.starts_with("run ")).map(str::to_owned).collect()
}

#[test]
fn a_sweep_runs_seed_after_seed_shares_its_twins_and_tabulates_everything() {
    let bench = Bench::new();
    bench.file("sweep.toml", &sweep());
    let finished = bench.run(&["run", "sweep.toml", "--seeds", "3,1"]).expect(0);
    let said = announced(&finished);
    let order = ["rate = 0.05, square = small", "rate = 0.05, square = large", "rate = 0.1, square = small"];
    assert_eq!(said.len(), 8, "{said:#?}");
    for (number, line) in said.iter().enumerate() {
        let seed = if number < 4 { "seed 3" } else { "seed 1" };
        assert!(line.starts_with(&format!("run {} of 8: ", number + 1)) && line.contains(seed), "{line}");
        let point = order.get(number % 4).unwrap_or(&"rate = 0.1, square = large");
        assert!(line.contains(point), "{line}");
    }
    assert!(finished.err().contains("0 finished; 8 to compute, 2 clean twins to train"), "{}", finished.err());
    assert_eq!(finished.err().matches("clean twin trained before").count(), 6, "{}", finished.err());
    assert_eq!(runs(&bench).len(), 8);

    let table = table(&bench);
    assert_eq!(table["seeds"], serde_json::json!([1, 3]));
    assert_eq!(table["axes"], serde_json::json!(["rate", "square"]));
    let labels: Vec<_> = table["points"].as_array().expect("points").iter().map(|point| &point["label"]).collect();
    assert_eq!(labels, ["0.05, small", "0.05, large", "0.1, small", "0.1, large"]);
    for (point, poisoned) in table["points"].as_array().expect("points").iter().zip([5.0, 5.0, 10.0, 10.0]) {
        let metric = |name: &str| {
            let metrics = point["metrics"].as_array().expect("metrics");
            metrics.iter().find(|metric| metric["name"] == name).unwrap_or_else(|| panic!("no {name} in {point}"))
        };
        // 120 images, a tenth held out: 108 for training, int(0.05 * 108) = 5 and int(0.1 * 108) = 10 poisoned.
        assert_eq!(metric("poisoned-images")["mean"], poisoned);
        let asr = metric("asr");
        let values: Vec<f64> = ["1", "3"].map(|seed| asr["values"][seed].as_f64().expect("a share")).into();
        assert!((asr["mean"].as_f64().expect("a share") - f64::midpoint(values[0], values[1])).abs() < 1e-12);
        assert_eq!(asr["count"], 2);
        assert!(asr["interval-95"].is_array() && asr["standard-deviation"].is_number());
        for (seed, run) in point["runs"].as_object().expect("runs") {
            let path = bench.path().join("runs").join(run.as_str().expect("a name"));
            let summary = json(&std::fs::read_to_string(path.join("summary.json")).expect("a summary"));
            assert_eq!(summary["seeds"][0]["seed"].to_string(), *seed);
            assert_eq!(summary["seeds"][0]["outcome"]["finished"]["asr"], asr["values"][seed]);
        }
    }
    let read = |name: &str| std::fs::read_to_string(tables(&bench).join(name)).expect(name);
    assert_eq!(finished.out(), read("table.txt"));
    assert!(read("table.md").contains("| rate | square | n | poisoned | CA | CAD | ASR | twin's ASR | RA |"));
    let csv = read("table.csv");
    assert!(
        csv.starts_with("point,rate,square,metric,n,mean,standard-deviation,interval-low,interval-high\n"),
        "{csv}"
    );
    assert!(csv.contains("\"0.1, large\",0.1,large,asr,2,"), "{csv}");
    let config = std::fs::read_to_string(runs(&bench)[0].join("config.toml")).expect("a configuration");
    assert!(config.contains("# Point of its sweep: rate = ") && !config.contains("[sweep]"), "{config}");
}

#[test]
fn a_point_is_the_same_experiment_as_its_file_written_out() {
    let bench = Bench::new();
    bench.file("sweep.toml", &sweep());
    bench
        .run(&["run", "sweep.toml", "--set", "sweep.axes=[{ field = \"trigger.square.size\", values = [3] }]"])
        .expect(0);
    let of_sweep = runs(&bench);
    let text = std::fs::read_to_string(of_sweep[0].join("config.toml")).expect("a configuration");
    bench.file("alone.toml", &text);
    bench.run(&["run", "alone.toml"]).expect(0);
    let all = runs(&bench);
    let hash = |path: &Path| path.to_string_lossy().rsplit('-').next().map(str::to_owned);
    assert_eq!(all.len(), 2);
    assert_eq!(hash(&all[0]), hash(&all[1]));
    let weights = |run: &Path| std::fs::read(run.join("seed-0/weights.safetensors")).expect("weights");
    assert_eq!(weights(&all[0]), weights(&all[1]));
}

#[test]
fn another_seed_recomputes_nothing_and_stands_in_the_same_table() {
    let bench = Bench::new();
    bench.file("sweep.toml", &sweep());
    bench.run(&["run", "sweep.toml"]).expect(0);
    let before = times(&bench);
    let shown = bench.run(&["run", "sweep.toml"]).expect(0);
    assert!(announced(&shown).is_empty() && shown.err().contains("4 finished; 0 to compute"), "{}", shown.err());
    let more = bench.run(&["run", "sweep.toml", "--seeds", "0,1"]).expect(0);
    assert_eq!(announced(&more).len(), 4, "{}", more.err());
    let mut after = times(&bench);
    after.retain(|time| before.contains(time));
    assert_eq!(after.len(), 4, "the first seed's results are as they were");
    assert_eq!(table(&bench)["seeds"], serde_json::json!([0, 1]));
    // Asked for the new seed alone, the table still has both.
    bench.run(&["run", "sweep.toml", "--seeds", "1"]).expect(0);
    assert_eq!(table(&bench)["seeds"], serde_json::json!([0, 1]));
    assert_eq!(table(&bench)["points"][0]["metrics"][0]["count"], 2);
}

#[test]
fn a_point_that_fails_does_not_stop_the_others_and_is_retried_when_asked() {
    let bench = Bench::new();
    let text = sweep().replace(
        "field = \"poisoning.rate\"\nvalues = [0.05, 0.1]",
        "field = \"training.learning-rate\"\nvalues = [1e30, 0.05]",
    );
    bench.file("sweep.toml", &text);
    let finished = bench.run(&["run", "sweep.toml"]).expect(1);
    assert_eq!(announced(&finished).len(), 4, "{}", finished.err());
    assert!(finished.err().contains("failed: learning-rate = 1e30, square = small, seed 0"), "{}", finished.err());
    assert!(finished.err().contains("loss became"), "{}", finished.err());
    let table = table(&bench);
    assert!(table["points"][0]["failed"]["0"].as_str().is_some_and(|reason| reason.contains("loss became")));
    assert_eq!(table["points"][2]["metrics"][0]["count"], 1);

    let again = bench.run(&["run", "sweep.toml"]).expect(1);
    assert!(announced(&again).is_empty(), "a failed run is not tried again unasked: {}", again.err());
    let retried = bench.run(&["run", "sweep.toml", "--retry-failed"]).expect(1);
    assert_eq!(announced(&retried).len(), 2, "{}", retried.err());
    let aside = folders(&bench, |path| path.to_string_lossy().contains(".old-"));
    assert_eq!(aside.len(), 2, "what failed before is kept: {aside:?}");
}

#[test]
fn an_interrupted_sweep_goes_on_where_it_was() {
    let bench = Bench::new();
    bench.file("sweep.toml", &sweep().replace("epochs = 1", "epochs = 3"));
    bench.run(&["run", "sweep.toml", "--set", "training.epochs=3"]).expect(0);
    let whole = runs(&bench);
    // What an interruption leaves: some runs finished, one begun, the others missing.
    std::fs::remove_dir_all(&whole[1]).expect("removable");
    let begun = format!("{}.partial", whole[2].display());
    std::fs::rename(&whole[2], &begun).expect("renamable");
    std::fs::remove_file(Path::new(&begun).join("summary.json")).expect("removable");
    let dry = bench.run(&["run", "sweep.toml", "--dry-run"]).expect(0);
    assert!(dry.out().contains("2 finished, 1 begun; 2 to compute"), "{}", dry.out());
    let finished = bench.run(&["run", "sweep.toml"]).expect(0);
    assert_eq!(announced(&finished).len(), 2, "{}", finished.err());
    assert_eq!(runs(&bench), whole);
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_sweep_after_the_epoch_and_the_same_command_goes_on() {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    let bench = Bench::new();
    bench.file("sweep.toml", &sweep().replace("epochs = 1", "epochs = 8"));
    let mut child = bench.command(&["run", "sweep.toml"]);
    let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the runner starts");
    let start = Instant::now();
    while !bench.path().join("runs").exists() || runs(&bench).is_empty() {
        assert!(start.elapsed() < Duration::from_mins(2), "no run was finished");
        std::thread::sleep(Duration::from_millis(5));
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill starts");
    assert!(sent.success());
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("the same command goes on from there"), "{said}");
    // What is there is tabulated all the same.
    let finished = runs(&bench).len();
    assert!((1..4).contains(&finished) && table(&bench)["points"][0]["metrics"][0]["count"] == 1, "{said}");

    let before = times(&bench);
    let rest = bench.run(&["run", "sweep.toml"]).expect(0);
    assert_eq!(announced(&rest).len(), 4 - finished, "{}", rest.err());
    let after = times(&bench);
    assert!(after.len() == 4 && before.iter().all(|time| after.contains(time)), "nothing was computed again");
}

#[test]
fn a_dry_run_shows_the_points_and_computes_nothing() {
    let bench = Bench::new();
    bench.file("sweep.toml", &sweep());
    let dry = bench.run(&["run", "sweep.toml", "--seeds", "0,1", "--dry-run", "--backend", "flex"]).expect(0);
    let lines: Vec<_> = dry.out().lines().map(str::to_owned).collect();
    assert_eq!(lines[0], "sweep: 4 points of rate (2) x square (2), seeds 0, 1: 8 runs");
    assert_eq!(lines[1], "  0 finished; 8 to compute, 2 clean twins to train");
    // Ten trainings of 108 images, each with three predictions of 60 at a third of the cost, and two more after the one epoch of
    // each of eight victims: (10 * 168 + 8 * 40) / 2000 = 1.
    assert_eq!(lines[2], "  at most about 1 s: 2000 images/s assumed for widen factor 1 on two cores");
    assert!(lines[3].starts_with("  on flex (") && lines[3].contains("tables go to runs/sweep-"), "{}", lines[3]);
    assert_eq!(lines[4], "  rate = 0.05, square = small  seed 0 to do, seed 1 to do");
    assert!(lines[8].starts_with("  memory on the device about "), "{}", lines[8]);
    assert_eq!(lines.len(), 9);
    assert_eq!(bench.entries(), ["sweep.toml"]);
    let document = bench.run(&["run", "sweep.toml", "--dry-run", "--json"]).expect(0);
    assert_eq!(json(&document.out())["sweeps"][0]["to-compute"], 4);
}

#[test]
fn an_impossible_point_is_refused_before_anything_runs() {
    let bench = Bench::new();
    bench.file("sweep.toml", &sweep().replace("[0.05, 0.1]", "[0.05, 1.7]"));
    let refused = bench.run(&["run", "sweep.toml"]).expect(2);
    for words in ["poisoning.rate is 1.7", "a fraction in [0, 1]", "sweep.toml:24:17", "rate = 1.7, square = small"] {
        assert!(refused.err().contains(words), "no {words:?} in\n{}", refused.err());
    }
    assert_eq!(bench.entries(), ["sweep.toml"]);
}

#[test]
fn json_has_the_table_of_a_sweep() {
    let bench = Bench::new();
    bench.file("sweep.toml", &sweep());
    let finished = bench.run(&["run", "sweep.toml", "--json", "--quick"]).expect(0);
    let document = json(&finished.out());
    assert_eq!(document["runs"], serde_json::json!([]));
    assert_eq!(document["sweeps"][0]["points"].as_array().map(Vec::len), Some(4));
    assert_eq!(document["sweeps"][0]["quick"], true);
}

#[test]
fn the_triggers_of_a_sweep_are_drawn_once_each_and_never_over_another_sheet() {
    let bench = Bench::new();
    bench.file("sweep.toml", &sweep());
    let drawn = bench.run(&["triggers", "sweep.toml", "--out", "sheets", "--images", "2"]).expect(0);
    // The rate changes no trigger, so two of four points are drawn.
    let rows =
        ["sheets/sweep-triggers.png", "  rate = 0.05, square = small: PSNR ", "  rate = 0.05, square = large: PSNR "];
    let drawn = drawn.out();
    let lines = drawn.lines().collect::<Vec<_>>();
    assert_eq!(lines.len(), rows.len(), "{lines:?}");
    assert!(lines.iter().zip(rows).all(|(line, row)| line.starts_with(row)), "{lines:?}");
    let sheet = bench.path().join("sheets/sweep-triggers.png");
    let before = std::fs::read(&sheet).expect("a sheet");
    assert!(before.starts_with(b"\x89PNG"));
    let again = bench.run(&["triggers", "sweep.toml", "--out", "sheets"]).expect(0);
    assert!(again.out().starts_with("sheets/sweep-triggers-2.png\n"), "{}", again.out());
    assert_eq!(std::fs::read(&sheet).expect("a sheet"), before);
}

/// Writes down that the sweep was computed by these commits, whatever this tree is like; returns what it said before.
fn computed_by(bench: &Bench, commits: &[&str]) -> Vec<String> {
    let entries = std::fs::read_dir(bench.path().join("runs")).expect("there are runs");
    let folders = entries.map(|entry| entry.expect("readable").path());
    let folder = folders.filter(|path| path.to_string_lossy().ends_with(".sweep")).last().expect("a sweep");
    let mut table = ResultTable::read(&folder).expect("as written").expect("a table");
    let before = std::mem::replace(&mut table.commits, commits.iter().map(|commit| (*commit).to_owned()).collect());
    table.write(&folder).expect("it can be written");
    before
}

#[test]
fn results_are_collected_written_down_and_checked() {
    let bench = Bench::new();
    bench.file("rates.toml", &sweep());
    bench.run(&["run", "rates.toml", "--seeds", "0,1"]).expect(0);
    let claims = "[[claims]]\nid = \"C1\"\nclaim = \"it works\"\npaper = \"100 %\"\nchanges-our-mind = \"-\"\n\
                  sentence = \"We have {rates/0.1, large/clean-twin-asr}.\"\n\
                  tables = [{ result = \"rates\", columns = [\"poisoned-images\", \"asr\"] }]\n";
    bench.file("claims.toml", claims);
    let where_ = ["--claims", "claims.toml", "--results", "results", "--page", "RESULTS.md"];
    let results = |more: &[&str]| bench.run(&[&["results"], &where_[..], more].concat());

    let missing = results(&[]).expect(2);
    assert!(missing.err().contains("there is no result \"rates\""), "{}", missing.err());
    let commits = computed_by(&bench, &["0123456789abcdef", "fedcba9876543210 (changed)"]);
    assert!(commits.len() <= 1, "runs and their clean twins are of one build: {commits:?}");
    let mixed = results(&["--collect", "runs"]).expect(2);
    for words in [".sweep has mixed builds", "fedcba9876543210 (changed)", "nothing was collected"] {
        assert!(mixed.err().contains(words), "no {words:?} in\n{}", mixed.err());
    }
    assert!(!bench.path().join("results").exists());
    computed_by(&bench, &["0123456789abcdef"]);
    let collected = results(&["--collect", "runs"]).expect(0);
    assert_eq!(collected.out(), "results/rates.json: 2 seeds\nRESULTS.md written\n");
    let page = std::fs::read_to_string(bench.path().join("RESULTS.md")).expect("a page");
    assert!(page.contains("% (n = 2).") && page.contains("| 0.1 | large | 2 | 10 | "), "{page}");
    let copy = std::fs::read_to_string(bench.path().join("results/rates.json")).expect("a copy");
    let machine = bench.path().to_string_lossy().into_owned();
    assert!(!copy.contains(&machine) && !page.contains(&machine), "no path of this machine");

    results(&["--check"]).expect(0);
    bench.file("RESULTS.md", "something else");
    let stale = results(&["--check"]).expect(1);
    assert!(stale.err().contains("not up to date"), "{}", stale.err());
    assert_eq!(std::fs::read_to_string(bench.path().join("RESULTS.md")).expect("a page"), "something else");
}

#[test]
fn sweeps_are_listed_with_how_far_they_are() {
    let bench = Bench::new();
    bench.file("sweep.toml", &sweep());
    bench.run(&["run", "sweep.toml", "--quick"]).expect(0);
    let listed = bench.run(&["list"]).expect(0);
    let line =
        listed.out().lines().find(|line| line.contains(".sweep")).map(str::to_owned).expect("the sweep is listed");
    assert!(line.contains("quick") && line.contains("sweep of 4 points: 4 of 4 runs finished"), "{line}");
}

#[test]
fn what_defenses_and_routers_came_to_is_tabulated_too() {
    let bench = Bench::new();
    let defended = "\n[routing]\nfigures = false\n[[defenses]]\nfine-tuning = { training = { epochs = 1 } }\n";
    bench.file("sweep.toml", &(sweep() + defended));
    let finished = bench.run(&["run", "sweep.toml", "--quick"]).expect(0);
    assert!(finished.out().contains("\nfine-tuning: mean"), "{}", finished.out());
    let table = table(&bench);
    let run = table["points"][0]["runs"]["0"].as_str().expect("a run").to_owned();
    let path = bench.path().join("runs").join(run).join("summary.json");
    let summary = json(&std::fs::read_to_string(path).expect("a summary"));
    let measured = &summary["seeds"][0]["outcome"]["finished"];
    let metrics = table["points"][0]["metrics"].as_array().expect("metrics");
    let value = |name: &str| &metrics.iter().find(|metric| metric["name"] == name).expect(name)["values"]["0"];
    let defense = &measured["defenses"][0]["outcome"]["finished"];
    assert_eq!(value("fine-tuning/clean-accuracy"), &defense["after"]["clean-accuracy"]);
    assert_eq!(value("fine-tuning/defense-effectiveness"), &defense["defense-effectiveness"]);
    assert_eq!(value("routing/load-entropy"), &measured["routing"]["victim"]["clean"]["load-entropy"]);
    assert_eq!(value("routing, by chance/trigger-capture"), &measured["routing"]["chance-capture"]);
}
