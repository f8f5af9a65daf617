//! Runs with controls: routings exchanged, experts silenced, parts trained alone, routers frozen.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use patchdoor_tests::{Bench, SMALL, json_of};
use serde_json::Value;

/// The tensors of a weights file, by name.
fn tensors(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = std::fs::read(path).expect("the weights are there");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header: BTreeMap<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).expect("a header of JSON");
    let of = |entry: &Value| -> Vec<u8> {
        let ends: [u64; 2] = serde_json::from_value(entry["data_offsets"].clone()).expect("two numbers");
        bytes[8 + length..][ends[0] as usize..ends[1] as usize].to_vec()
    };
    header.iter().filter(|(name, _)| *name != "__metadata__").map(|(name, entry)| (name.clone(), of(entry))).collect()
}

/// The tensors of the backdoored classifier and of its clean twin.
fn victim_and_twin(bench: &Bench) -> [BTreeMap<String, Vec<u8>>; 2] {
    let directory = bench.run_directory();
    let result = json_of(&directory.join("seed-0/result.json"));
    let twin = result["outcome"]["finished"]["clean-twin"]["folder"].as_str().expect("there is a twin").to_owned();
    let folders = [directory.join("seed-0"), bench.path().join("runs").join(twin)];
    folders.map(|folder| tensors(&folder.join("weights.safetensors")))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn exchanged_routings_and_silenced_experts_are_measured_shown_and_change_nothing_else() {
    let run = |routing: &str| {
        let bench = Bench::new();
        bench.file("small.toml", &format!("{SMALL}\n[routing]\nfigures = false\n{routing}"));
        let finished = bench.run(&["run", "small.toml"]).expect(0);
        (json_of(&bench.run_directory().join("seed-0/result.json"))["outcome"]["finished"].clone(), finished.out())
    };
    let (plain, _) = run("");
    let (measured, said) = run("swap = true\naudit = true\nblocking = true\n");
    for name in ["clean-accuracy", "asr", "robust-accuracy", "clean-twin", "reach", "classes"] {
        assert_eq!(plain[name], measured[name], "{name}");
    }
    assert_eq!(plain["routing"]["victim"], measured["routing"]["victim"]);
    assert_eq!((&plain["routing"]["swap"], &plain["routing"]["audit"]), (&Value::Null, &Value::Null));

    // The 4x4 square in the lower right corner: one cell, which nine patches see.
    let reach = &measured["reach"];
    assert_eq!([&reach["cells"], &reach["patches"]], [&Value::from(1.0), &Value::from(9.0)], "{reach}");
    let swap = &measured["routing"]["swap"];
    assert_eq!((&swap["own"]["clean-accuracy"], &swap["own"]["asr"]), (&measured["clean-accuracy"], &measured["asr"]));
    let [own, other] =
        ["own", "other-version"].map(|row| ["asr", "asr-untriggered"].map(|name| number(&swap[row][name])));
    let effect = own[0] - own[1];
    let expected = (effect >= 0.1).then(|| [(own[0] - other[0]) / effect, (other[1] - own[1]) / effect]);
    let shares = ["mediated-by-routing", "carried-by-routing"].map(|name| swap[name].as_f64());
    assert_eq!(shares, expected.map_or([None; 2], |shares| shares.map(Some)));

    let audit = &measured["routing"]["audit"];
    let rows = |name: &str| audit[name].as_array().expect("a list").len();
    assert_eq!(["random-routers", "alone", "silenced", "silenced-in-any-order"].map(rows), [5, 4, 3, 3]);
    // All but the expert that contributes least are silenced: it is alone.
    let last = audit["order"][3].as_u64().expect("a number") as usize;
    assert_eq!(audit["silenced"][2], audit["alone"][last]);

    let blocking = &measured["routing"]["blocking"];
    assert_eq!(blocking["together"].as_array().map(Vec::len), Some(5), "{blocking}");
    for row in [
        "routing of the other version",
        "random routers",
        "expert 3 alone",
        "3 of 4 experts silenced, any order",
        "16 most needed pairs blocked",
        "16 random pairs blocked",
    ] {
        assert!(said.contains(row), "{row} in {said}");
    }
}

#[test]
fn a_victim_that_trains_only_routers_keeps_all_else_of_its_twin_and_resumes_to_the_same_weights() {
    let text = format!(
        "{}\n[victim]\nstart = \"clean-twin\"\nparts = [\"router\"]\n",
        SMALL.replace("epochs = 4", "epochs = 12")
    );
    let straight = Bench::new();
    straight.file("gates.toml", &text);
    let said = straight.run(&["run", "gates.toml"]).expect(0).err();
    assert!(said.contains("the backdoored classifier starts from its clean twin and trains only router"), "{said}");
    let [victim, twin] = victim_and_twin(&straight);
    for (name, data) in &victim {
        assert_eq!(data == &twin[name], name != "router.weight", "{name}");
    }

    let resumed = Bench::new();
    resumed.file("gates.toml", &text);
    let mut child = resumed.command(&["run", "gates.toml"]).stderr(Stdio::null()).spawn().expect("it starts");
    let start = Instant::now();
    let has_checkpoint = || {
        let folders = std::fs::read_dir(resumed.path().join("runs")).into_iter().flatten().flatten();
        let mut states = folders.map(|folder| folder.path().join("seed-0/checkpoint/epoch-0003/state.json"));
        states.any(|state| state.is_file())
    };
    while !has_checkpoint() {
        assert!(child.try_wait().expect("it is ours").is_none(), "the run ended before it was killed");
        assert!(start.elapsed() < Duration::from_mins(5), "no checkpoint was left");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().expect("it is ours");
    child.wait().expect("it ends");
    let said = resumed.run(&["run", "gates.toml"]).expect(0).err();
    assert!(said.contains("goes on after epoch"), "{said}");
    assert_eq!(victim_and_twin(&resumed)[0], victim);
}

#[test]
fn frozen_routers_are_the_same_in_twin_and_victim_and_after_a_defense() {
    let bench = Bench::new();
    let text = SMALL.replace("[model.patch-moe]", "[model.patch-moe]\nrouters = \"frozen\"");
    bench.file("frozen.toml", &format!("{text}\n[[defenses]]\nfine-tuning = {{ training = {{ epochs = 1 }} }}\n"));
    bench.run(&["run", "frozen.toml"]).expect(0);
    let [victim, twin] = victim_and_twin(&bench);
    let defended = tensors(&bench.run_directory().join("seed-0/defenses/0-fine-tuning/weights.safetensors"));
    for other in [&twin, &defended] {
        assert_eq!(victim["router.weight"], other["router.weight"]);
        assert_ne!(victim["head.weight"], other["head.weight"]);
    }
}

#[test]
fn a_dense_network_runs_with_all_but_routing_and_is_refused_where_there_is_none() {
    let dense = |table: &str| {
        let bench = Bench::new();
        let text = SMALL.replace("[model.patch-moe]", "[model.wide-resnet]");
        let text = text.lines().filter(|line| !line.starts_with("experts") && !line.starts_with("patches-per-expert"));
        bench.file("dense.toml", &format!("{}\n{table}", text.collect::<Vec<_>>().join("\n")));
        bench
    };
    let bench = dense(
        "[placement]\ncells.most-selected = { count = 4 }\n[victim]\nstart = \"clean-twin\"\nparts = [\"head\"]\n",
    );
    bench.run(&["run", "dense.toml"]).expect(0);
    let [victim, twin] = victim_and_twin(&bench);
    assert!(
        victim["head.weight"] != twin["head.weight"] && victim["group3.conv2.weight"] == twin["group3.conv2.weight"]
    );
    for (table, said) in [
        ("[routing]\nswap = true\n", "routing is asked of model.wide-resnet"),
        ("[victim]\nparts = [\"router\"]\n", "victim.parts is [router], expected one or more of trunk, head"),
        ("[[defenses]]\nrouter-retraining = {}\n", "wide-resnet has none"),
    ] {
        let refused = dense(table).run(&["run", "dense.toml"]).expect(2).err();
        assert!(refused.contains(said), "{refused}");
    }
}

#[test]
fn experts_that_take_every_patch_choose_no_cells_and_run_with_the_rest() {
    let all = SMALL.replace("[model.patch-moe]", "[model.patch-moe]\npatches-per-expert = 64");
    let bench = Bench::new();
    let chosen = "[placement]\ncells.most-selected = { count = 4 }\n";
    bench.file("all.toml", &format!("{all}\n{chosen}"));
    let said = bench.run(&["run", "all.toml"]).expect(2).err();
    let expected = "asked of a surrogate whose experts select all 64 patches alike";
    assert!(said.contains(expected), "{said}");
    bench.file(
        "all.toml",
        &format!("{all}\n{chosen}\n[surrogate]\npatches-per-expert = 16\n[routing]\nswap = true\naudit = true\n"),
    );
    bench.run(&["run", "all.toml"]).expect(0);
    let result = json_of(&bench.run_directory().join("seed-0/result.json"));
    let swap = &result["outcome"]["finished"]["routing"]["swap"];
    // Whatever image it was, all patches were selected.
    assert_eq!(swap["other-version-selections"], swap["own"]);
}
