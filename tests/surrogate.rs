//! Cells chosen by the routers of a surrogate.

use std::path::Path;

use patchdoor_tests::{Bench, SMALL, json_of};
use serde_json::Value;

fn with_cells(cells: &str, more: &str) -> String {
    format!("{SMALL}\n[placement]\ngrid = 8\ncells.{cells}\n{more}")
}

fn surrogate_of(run: &Path) -> Value {
    let text = std::fs::read_to_string(run.join("seed-0/surrogate.json")).expect("a surrogate leaves its counts");
    serde_json::from_str(&text).expect("JSON")
}

/// Folders of clean models that were trained, twins and surrogates.
fn clean_models(bench: &Bench) -> usize {
    std::fs::read_dir(bench.path().join("runs/twins")).expect("clean models are kept").count()
}

#[test]
fn the_most_selected_cells_are_those_the_clean_twins_routers_take_most_often() {
    let bench = Bench::new();
    bench.file("small.toml", &with_cells("most-selected = { count = 3 }", ""));
    let finished = bench.run(&["run", "small.toml"]).expect(0);
    assert!(finished.err().contains("chosen by the clean twin's routers"), "{}", finished.err());
    // Three cells of 4x4 pixels.
    assert!(finished.err().contains("square trigger (48 of 1024 pixels)"), "{}", finished.err());
    assert_eq!(clean_models(&bench), 1, "the twin is the surrogate");

    let record = surrogate_of(&bench.run_directory());
    let result = json_of(&bench.run_directory().join("seed-0/result.json"));
    let chosen_cells = &result["outcome"]["finished"]["chosen-cells"];
    assert_eq!(chosen_cells["cells"], record["placement"]["cells"], "they are among the results");
    assert_eq!(chosen_cells["surrogate"], record["folder"]);
    let classes = record["selections"].as_array().expect("a list for each class");
    let count = |cell: usize| classes.iter().map(|class| class[cell].as_f64().unwrap_or(0.0)).sum::<f64>();
    let counts: Vec<f64> = (0..64).map(count).collect();
    // 216 images, four experts, sixteen patches each.
    assert!((counts.iter().sum::<f64>() - 216.0 * 64.0).abs() < 1e-6);
    let cells = record["placement"]["cells"]["list"].as_array().expect("named cells");
    let number = |cell: &Value| (8 * cell[0].as_u64().expect("a row") + cell[1].as_u64().expect("a column")) as usize;
    let chosen: Vec<usize> = cells.iter().map(number).collect();
    assert_eq!(chosen.len(), 3);
    let least_chosen = chosen.iter().map(|&cell| counts[cell]).fold(f64::INFINITY, f64::min);
    let most_left = (0..64).filter(|cell| !chosen.contains(cell)).map(|cell| counts[cell]).fold(0.0, f64::max);
    assert!(least_chosen >= most_left, "{least_chosen} against {most_left}");
}

#[test]
fn a_surrogate_of_other_images_needs_a_victim_that_leaves_it_enough() {
    let bench = Bench::new();
    let surrogate = "[surrogate]\nimages = \"others\"\n";
    bench.file("small.toml", &with_cells("most-selected = { count = 3 }", surrogate));
    let refused = bench.run(&["run", "small.toml"]).expect(2);
    assert!(
        refused.err().contains("data.training-images is not given (the default), expected at most "),
        "{}",
        refused.err()
    );
    assert_eq!(bench.entries(), ["small.toml"]);
    let finished = bench.run(&["run", "small.toml", "--set", "data.training-images=100"]).expect(0);
    assert!(finished.err().contains("one more training for each seed"), "{}", finished.err());
    assert_eq!(clean_models(&bench), 2, "the twin is not the surrogate");
}

#[test]
fn a_surrogate_that_differs_from_the_victim_is_trained_beside_the_twin() {
    let bench = Bench::new();
    let surrogate = "[surrogate]\nexperts = 2\npatches-per-expert = 8\nseed-offset = 100\ncounted-images = 50\n";
    bench.file("small.toml", &with_cells("least-selected = { count = 2, expert = 1, per-class = true }", surrogate));
    let finished = bench.run(&["run", "small.toml"]).expect(0);
    assert!(finished.err().contains("one more training for each seed"), "{}", finished.err());
    assert_eq!(clean_models(&bench), 2, "the twin and the surrogate");

    let record = surrogate_of(&bench.run_directory());
    assert_eq!(record["counted-images"], 50);
    let sum =
        record["selections"].as_array().into_iter().flatten().flat_map(|class| class.as_array().into_iter().flatten());
    // One of the experts, eight patches each.
    assert!((sum.filter_map(Value::as_f64).sum::<f64>() - 50.0 * 8.0).abs() < 1e-6);
    let lists = record["placement"]["cells"]["per-class"].as_array().expect("cells for each class");
    assert!(lists.len() == 10 && lists.iter().all(|cells| cells.as_array().is_some_and(|cells| cells.len() == 2)));
}

#[test]
fn a_surrogate_that_cannot_be_is_refused_before_anything_runs() {
    let bench = Bench::new();
    let surrogate = "[surrogate]\nexperts = 3\npatches-per-expert = 65\n";
    bench.file("bad.toml", &with_cells("most-selected = { count = 3, expert = 3 }", surrogate));
    let said = bench.run(&["run", "bad.toml"]).expect(2).err();
    assert!(said.contains("surrogate.patches-per-expert is 65, expected 1 to 64"), "{said}");
    assert!(said.contains("placement.cells.most-selected.expert is 3, expected 0 to 2"), "{said}");
    assert!(said.contains("2 problems"), "{said}");
    assert_eq!(bench.entries(), ["bad.toml"]);
}
