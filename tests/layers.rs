//! The doors between crates and between files open one way, as ARCHITECTURE.md draws them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use patchdoor_tests::workspace;

/// What each crate may depend on among ours, outside of its tests.
const DOORS: [(&str, &[&str]); 13] = [
    ("data", &[]),
    ("metrics", &[]),
    ("kernels", &[]),
    ("triggers", &["data"]),
    ("model", &["kernels"]),
    ("train", &["data", "kernels", "metrics", "model"]),
    ("defenses", &["data", "kernels", "metrics", "model", "train"]),
    ("attacks", &["data", "kernels", "model", "train", "triggers"]),
    ("plan", &["attacks", "data", "defenses", "model", "train", "triggers"]),
    ("record", &["metrics"]),
    (
        "experiment",
        &["attacks", "data", "defenses", "kernels", "metrics", "model", "plan", "record", "train", "triggers"],
    ),
    ("report", &["metrics", "record"]),
    ("cli", &["data", "experiment", "plan", "record", "report"]),
];

/// Crates that compile no tensor library.
const WITHOUT_BURN: [&str; 5] = ["data", "metrics", "triggers", "record", "report"];

fn manifest(krate: &str) -> toml::Table {
    let path = workspace().join("crates").join(krate).join("Cargo.toml");
    fs::read_to_string(path).expect("readable").parse().expect("a manifest is TOML")
}

#[test]
fn crates_depend_only_on_those_below_them() {
    let folders = fs::read_dir(workspace().join("crates")).expect("readable");
    let folders = folders.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned());
    assert_eq!(
        folders.collect::<BTreeSet<_>>(),
        DOORS.iter().map(|(krate, _)| (*krate).to_owned()).collect(),
        "every crate has its doors"
    );
    for (krate, allowed) in DOORS {
        let manifest = manifest(krate);
        let dependencies = manifest["dependencies"].as_table().expect("a table");
        for name in dependencies.keys() {
            if let Some(other) = name.strip_prefix("patchdoor-") {
                assert!(allowed.contains(&other), "{krate} depends on {other}");
            }
            assert!(!WITHOUT_BURN.contains(&krate) || !name.starts_with("burn"), "{krate} depends on {name}");
        }
    }
}

#[test]
fn the_program_that_looks_at_results_compiles_no_tensor_library() {
    let tree = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO"));
        command.current_dir(workspace()).args(["tree", "--package", "patchdoor-cli", "--edges", "normal,build"]);
        let output = command.args(["--prefix", "none"]).args(arguments).output().expect("cargo starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.starts_with("burn")).count()
    };
    assert_eq!(tree(&["--no-default-features"]), 0);
    assert_ne!(tree(&[]), 0, "the program that runs experiments does");
}

/// The modules of a crate's library by their paths, such as `routing::analysis`, with their text outside of tests and comments.
fn modules(source: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![source.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.insert(module_of(&path, source), without_tests(&fs::read_to_string(&path).expect("readable")));
            }
        }
    }
    found
}

fn module_of(path: &Path, source: &Path) -> String {
    let path: PathBuf = path.strip_prefix(source).expect("below").with_extension("");
    let parts = path.iter().map(|part| part.to_string_lossy().into_owned()).collect::<Vec<_>>();
    parts.join("::").trim_end_matches("::mod").to_owned()
}

fn without_tests(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let code = code.split("#[cfg(test)]\npub(crate) mod ").next().unwrap_or_default();
    code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The paths that a text names below `crate::` and `super::`, the latter resolved from the module that the text is.
fn named_paths(module: &str, text: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for (start, root) in text.match_indices("crate::").chain(text.match_indices("super::")) {
        let before = text[..start].chars().next_back();
        if before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_' || letter == ':') {
            continue;
        }
        let mut prefix = Vec::new();
        if root == "super::" {
            prefix = module.split("::").map(str::to_owned).collect();
            prefix.pop();
        }
        expand(&text[start + root.len()..], &prefix, &mut paths);
    }
    paths
}

/// The paths in the beginning of a text, such as `a::{b, c::d}`; returns how much of it they take.
fn expand(text: &str, prefix: &[String], paths: &mut Vec<Vec<String>>) -> usize {
    let mut path = prefix.to_vec();
    let mut at = 0;
    loop {
        let rest = &text[at..];
        if rest.starts_with('{') {
            at += 1;
            while !text[at..].starts_with('}') && at < text.len() {
                let skipped = text[at..].find(|letter: char| !letter.is_whitespace() && letter != ',').unwrap_or(0);
                at += skipped;
                if text[at..].starts_with('}') {
                    break;
                }
                at += expand(&text[at..], &path, paths).max(1);
            }
            return at + 1;
        }
        let length = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(rest.len());
        match &rest[..length] {
            "super" => drop(path.pop()),
            "self" => {}
            word => path.push(word.to_owned()),
        }
        at += length;
        if length == 0 || !text[at..].starts_with("::") {
            paths.push(path);
            return at;
        }
        at += 2;
    }
}

/// What the root of a crate, or of a folder of it, hands on: names and the modules they are defined in.
fn handed_on(root: &str, text: &str) -> BTreeMap<String, Vec<String>> {
    let prefix = root.split("::").filter(|part| !part.is_empty() && *part != "lib").map(str::to_owned);
    let prefix = prefix.collect::<Vec<_>>();
    let mut paths = Vec::new();
    for (start, keyword) in text.match_indices("pub use ").chain(text.match_indices("pub(crate) use ")) {
        expand(text[start + keyword.len()..].trim_start(), &prefix, &mut paths);
    }
    paths.into_iter().filter_map(|path| Some((path.last()?.clone(), path))).collect()
}

/// Which modules each module of a crate imports from.
fn imports(modules: &BTreeMap<String, String>) -> BTreeMap<&str, BTreeSet<&str>> {
    let hands: BTreeMap<&str, BTreeMap<String, Vec<String>>> =
        modules.iter().map(|(module, text)| (module.as_str(), handed_on(module, text))).collect();
    let owner = |path: &[String]| -> Option<&str> {
        let mut path = path.to_vec();
        // A name may be handed on several times before it is where it is defined.
        for _ in 0..4 {
            let longest = (0..=path.len()).rev().find_map(|length| {
                let module = path[..length].join("::");
                let module = if module.is_empty() { "lib".to_owned() } else { module };
                modules.get_key_value(&module).map(|(module, _)| (module.as_str(), length))
            });
            let (module, length) = longest?;
            match path.get(length).and_then(|name| hands[module].get(name)) {
                Some(further) => path.clone_from(further),
                None => return (module != "lib").then_some(module),
            }
        }
        None
    };
    let of = |(module, text): (&'_ String, &String)| {
        let found = named_paths(module, text).into_iter().filter_map(|path| owner(&path));
        found.filter(|other| other != module).collect::<BTreeSet<_>>()
    };
    // Roots only hand on.
    let own = modules.iter().filter(|(module, _)| !["lib", "main"].contains(&module.as_str()));
    own.map(|entry| (entry.0.as_str(), of(entry))).collect()
}

/// A circle of modules that import each other, if there is one.
fn circle<'a>(imports: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Option<Vec<&'a str>> {
    let mut left = imports.clone();
    // Takes away those that import nothing that is left, until nothing changes.
    loop {
        let done = left.iter().filter(|(_, others)| others.iter().all(|other| !left.contains_key(other)));
        let done = done.map(|(module, _)| *module).collect::<Vec<_>>();
        if done.is_empty() {
            return (!left.is_empty()).then(|| left.into_keys().collect());
        }
        for module in done {
            left.remove(module);
        }
    }
}

#[test]
fn no_files_of_a_crate_import_each_other_in_a_circle() {
    for (krate, _) in DOORS {
        let modules = modules(&workspace().join("crates").join(krate).join("src"));
        let imports = imports(&modules);
        assert!(
            modules.len() < 4 || imports.values().any(|others| !others.is_empty()),
            "{krate} has no imports at all"
        );
        assert_eq!(circle(&imports), None, "files of {krate} in a circle, or above one");
    }
}

#[test]
fn a_circle_is_found_through_names_that_a_root_hands_on() {
    let text = |module: &str, text: &str| (module.to_owned(), text.to_owned());
    let lib = text("lib", "mod a;\nmod b;\npub use a::A;\npub use b::{B, C};\n");
    let straight = [lib.clone(), text("a", "use crate::{B};"), text("b", "pub struct B;")];
    assert_eq!(circle(&imports(&straight.into())), None);
    let round = [lib.clone(), text("a", "use crate::{\n    B,\n};"), text("b", "fn f(a: &crate::a::A) {}")];
    assert_eq!(circle(&imports(&round.into())), Some(vec!["a", "b"]));
    let nested = [lib, text("a", "use crate::b::c::D;"), text("b", "mod c;"), text("b::c", "use super::super::a::A;")];
    assert_eq!(circle(&imports(&nested.into())), Some(vec!["a", "b::c"]));
    assert_eq!(without_tests("a // b\n#[cfg(test)]\nmod tests { use crate::c; }"), "a ");
}
