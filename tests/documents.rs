//! Examples in the documents are experiments that can be run, and links lead somewhere.

use std::path::PathBuf;

use patchdoor_tests::{Bench, workspace};

/// The TOML examples of a document, each with the line it begins on.
fn examples(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (number, line) in text.lines().enumerate() {
        match (&mut open, line) {
            (None, "```toml") => open = Some((number + 2, String::new())),
            (Some(_), "```") => found.extend(open.take()),
            (Some((_, example)), line) => {
                example.push_str(line);
                example.push('\n');
            }
            (None, _) => {}
        }
    }
    found
}

/// The README and everything in `docs`.
fn documents() -> Vec<PathBuf> {
    let folder = std::fs::read_dir(workspace().join("docs")).expect("there are documents");
    let folder = folder.map(|entry| entry.expect("readable").path());
    let folder = folder.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    std::iter::once(workspace().join("README.md")).chain(folder).collect()
}

#[test]
fn every_link_in_the_documents_leads_to_a_file() {
    let mut checked = 0;
    let others = ["ARCHITECTURE.md", "CHANGELOG.md", "RESULTS.md"].map(|name| workspace().join(name));
    for document in documents().into_iter().chain(others) {
        let text = std::fs::read_to_string(&document).expect("a document is text");
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://") && !link.starts_with('#')) {
            let file = link.split('#').next().unwrap_or(link);
            let is_there = document.parent().is_some_and(|folder| folder.join(file).exists());
            assert!(is_there, "{}: {link}", document.display());
            checked += 1;
        }
    }
    assert!(checked >= 20, "only {checked} links were found");
}

#[test]
fn every_example_in_the_documents_is_accepted() {
    let mut checked = 0;
    for document in documents() {
        let text = std::fs::read_to_string(&document).expect("a document is text");
        for (line, example) in examples(&text) {
            let bench = Bench::new();
            // Fragments leave out what they do not show; no images are there but the built-in ones.
            let shapes = "dataset.shapes = { train = 20000, test = 60, seed = 0 }";
            let mut example = example.replace("dataset = \"cifar10\"", shapes);
            if !example.contains("dataset") {
                example.insert_str(0, &format!("{shapes}\n"));
            }
            let attacks = &["[trigger.", "[crafted.", "[controlled."][..];
            let defaults = [(attacks, "[trigger.square]"), (&["[model."], "[model.patch-moe]")];
            for (tables, default) in defaults {
                if !tables.iter().any(|table| example.contains(table)) {
                    example.push_str(default);
                    example.push('\n');
                }
            }
            bench.file("example.toml", &example);
            let finished = bench.run(&["run", "example.toml", "--dry-run"]);
            assert_eq!(finished.code(), Some(0), "{}:{line}\n{example}\n{}", document.display(), finished.err());
            checked += 1;
        }
    }
    assert!(checked >= 10, "only {checked} examples were found");
}
