use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use crate::axes::{Axes, Outline};
use crate::class_names::{ClassNames, is_class};
use crate::config::ExperimentConfig;
use crate::diagnostics::{Diagnostic, nearest};
use crate::document::{Document, index, join, one_of, set, value_documents};

/// What reading a document gives: the configuration where it could be made out, and every problem.
pub(crate) struct Reading {
    pub(crate) document: Document,
    pub(crate) config: Option<ExperimentConfig>,
    pub(crate) problems: Vec<Diagnostic>,
    /// Dotted paths whose values are not the user's, because what stood there could not be read.
    pub(crate) unread: BTreeSet<String>,
    /// Names of classes that the images will tell the numbers of.
    pub(crate) class_names: ClassNames,
}

impl Reading {
    /// Nothing but problems.
    fn none(document: Document, problems: Vec<Diagnostic>) -> Self {
        Self { document, config: None, problems, unread: BTreeSet::new(), class_names: ClassNames::new() }
    }
}

/// The tables of which exactly one says what the attack is.
const ATTACKS: &[&str] = &["trigger", "crafted", "controlled"];

fn given_words(given: &[&&str]) -> String {
    given.iter().map(|table| format!("[{table}]")).collect::<Vec<_>>().join(" and ")
}

/// The table that makes several experiments of one file.
const SWEEP: &str = "sweep";

/// What an experiment says of a training, which no defense of finished weights looks at, and attacks that are made by training, which
/// cannot be measured there.
const OF_TRAINING: [&str; 10] = [
    "clean-twin",
    "training",
    "victim",
    "curves",
    "routing",
    "evasion",
    "certification",
    "expected",
    "crafted",
    "controlled",
];

impl Document {
    /// Reads an experiment and applies the overrides to it in order.
    ///
    /// A value that cannot be read is reported, taken out, and reading goes on without it, so that all
    /// problems are found at once.
    pub(crate) fn read(file: &str, text: &str, overrides: &[String]) -> Reading {
        let values = value_documents(overrides);
        let (mut document, root, mut problems) = Self::open(file, text, overrides, &values);
        let Some(mut root) = root else {
            return Reading::none(document, problems);
        };
        index(&root, "", &mut document.places);
        if let Some((key, _)) = root.remove_entry(SWEEP) {
            let help = Some("take one point of it: a file without [sweep]".to_owned());
            let message = format!("{SWEEP} describes several experiments, expected one here");
            problems.push(document.diagnostic(SWEEP, message, key.span(), help));
        }
        document.finish(&mut root, problems)
    }

    /// Like [`Self::read`], of a file of defenses for a classifier that is known already: what it says of training and of
    /// the model is left aside, and where it has no trigger a stand-in takes its place; whether it has one.
    pub(crate) fn read_defenses(file: &str, text: &str, overrides: &[String]) -> (Reading, bool) {
        let values = value_documents(overrides);
        let (mut document, root, problems) = Self::open(file, text, overrides, &values);
        let Some(mut root) = root else {
            return (Reading::none(document, problems), false);
        };
        for table in OF_TRAINING {
            root.remove(table);
        }
        root.remove("model");
        let knows_trigger = root.contains_key("trigger");
        if !knows_trigger {
            // Without a trigger they are about nothing.
            for table in ["poisoning", "placement", "surrogate"] {
                root.remove(table);
            }
        }
        index(&root, "", &mut document.places);
        for field in ["trigger", "model"] {
            if let Some(value) = stand_in(field).filter(|_| !root.contains_key(field)) {
                root.insert(Spanned::new(0..0, Cow::Borrowed(field)), value);
            }
        }
        (document.finish(&mut root, problems), knows_trigger)
    }

    /// Reads what `[sweep]` says of an experiment; without problems and without an outline if there is no such table, or
    /// if the text is no TOML at all.
    pub(crate) fn read_outline(file: &str, text: &str, overrides: &[String]) -> (Option<Outline>, Vec<Diagnostic>) {
        let values = value_documents(overrides);
        let (document, root, _) = Self::open(file, text, overrides, &values);
        let table = root.and_then(|mut root| root.remove(SWEEP));
        match table.map(|table| Axes::read(&document, &table)) {
            None => (None, Vec::new()),
            Some(Ok(axes)) => (Some(axes.outline(&document)), Vec::new()),
            Some(Err(problems)) => (None, problems),
        }
    }

    /// Like [`Self::read`], for one point of the experiment's sweep: what the sweep sets there replaces what the file and
    /// the overrides say, and problems with it point at it. Only for a sweep that [`Self::read_outline`] could read.
    pub(crate) fn read_point(file: &str, text: &str, overrides: &[String], point: usize) -> Reading {
        let values = value_documents(overrides);
        let (mut document, root, mut problems) = Self::open(file, text, overrides, &values);
        let Some(mut root) = root else {
            return Reading::none(document, problems);
        };
        let table = root.remove(SWEEP);
        match table.as_ref().map(|table| Axes::read(&document, table)) {
            Some(Ok(axes)) => {
                for setting in axes.settings(point) {
                    set(&mut root, &setting.path, setting.value.clone());
                }
            }
            Some(Err(found)) => problems.extend(found),
            None => {}
        }
        index(&root, "", &mut document.places);
        document.finish(&mut root, problems)
    }

    /// Makes a configuration of what was read.
    fn finish(mut self, root: &mut DeTable<'_>, mut problems: Vec<Diagnostic>) -> Reading {
        let mut unread = BTreeSet::new();
        self.expect_one_attack(root, &mut problems, &mut unread);
        let class_names = self.number_classes(root, &mut problems, &mut unread);
        let config = self.deserialize(root, &mut problems, &mut unread);
        Reading { document: self, config, problems, unread, class_names }
    }

    /// Reports an experiment without an attack, and one with two.
    fn expect_one_attack(&self, root: &mut DeTable<'_>, problems: &mut Vec<Diagnostic>, unread: &mut BTreeSet<String>) {
        let given = ATTACKS.iter().filter(|table| root.contains_key(**table)).collect::<Vec<_>>();
        if given.is_empty() {
            problems.push(self.missing("trigger", ""));
            root.extend(stand_in("trigger").map(|value| (Spanned::new(0..0, Cow::Borrowed("trigger")), value)));
            unread.insert("trigger".into());
        }
        for table in given.iter().skip(1) {
            let message = format!("{table} stands beside {}, expected exactly one attack", given[0]);
            let span = self.places.get(**table).map_or(0..0, |place| place.key.clone());
            problems.push(self.diagnostic(
                table,
                message,
                span,
                Some(format!("remove one of {}", given_words(&given))),
            ));
        }
    }

    /// Deserializes, taking out what cannot be read until the rest can.
    fn deserialize(
        &self,
        root: &mut DeTable<'_>,
        problems: &mut Vec<Diagnostic>,
        unread: &mut BTreeSet<String>,
    ) -> Option<ExperimentConfig> {
        // Each round takes out at least one key, so the bound only guards against an error in this loop.
        for _ in 0..1000 {
            let whole = Spanned::new(0..self.text.len(), root.clone());
            let error = match ExperimentConfig::deserialize(toml::de::Deserializer::from(whole)) {
                Ok(config) => return Some(config),
                Err(error) => error,
            };
            let complaint = Complaint::parse(error.message());
            let path = error.span().and_then(|span| self.path_at(root, &span)).unwrap_or_default();
            if let Complaint::Missing { field } = &complaint {
                let missing = join(&path, field);
                if !unread.iter().any(|gone| gone == &missing || gone.starts_with(&format!("{missing}."))) {
                    problems.push(self.missing(&missing, &path));
                }
                if path.is_empty() {
                    // A stand-in lets reading go on; no check looks at what it holds.
                    root.insert(Spanned::new(0..0, Cow::Owned(field.clone())), stand_in(field)?);
                    unread.insert(missing);
                    continue;
                }
            } else if !unread.iter().any(|gone| gone.starts_with(&format!("{path}."))) || path.is_empty() {
                let span = error.span().unwrap_or(0..0);
                problems.push(self.complain(&path, &complaint, span));
            }
            if path.is_empty() || !take_out(root, &path) {
                return None;
            }
            unread.insert(path);
        }
        None
    }

    fn missing(&self, field: &str, table: &str) -> Diagnostic {
        let help = match field {
            "dataset" => Some("write dataset = \"cifar10\", or \"shapes\", which needs no files"),
            "trigger" => Some("write [trigger.square], or [crafted.label-consistent], which is made with a model"),
            "model" => Some("write [model.patch-moe]"),
            _ => None,
        };
        let span = self.places.get(table).map_or(0..0, |place| place.key.clone());
        self.diagnostic(field, format!("{field} is missing"), span, help.map(Into::into))
    }

    /// Turns what serde says into our words, with the path in front.
    fn complain(&self, path: &str, complaint: &Complaint, span: Range<usize>) -> Diagnostic {
        let (message, help) = match complaint {
            Complaint::UnknownKey { allowed, .. } if allowed.is_empty() => {
                (format!("{path} is not a known key, expected none here"), None)
            }
            Complaint::UnknownKey { word, allowed } => {
                let help =
                    nearest(word, allowed.iter().map(String::as_str)).map(|near| format!("did you mean {near}?"));
                (format!("{path} is not a known key, expected {}", one_of(allowed)), help)
            }
            Complaint::UnknownVariant { word, allowed } => {
                let help =
                    nearest(word, allowed.iter().map(String::as_str)).map(|near| format!("did you mean {near}?"));
                // The word is the last part of the path where it is a key and its value where it is a string.
                let field = path.strip_suffix(&format!(".{word}")).unwrap_or(path);
                (format!("{field} is {word:?}, expected {}", one_of(allowed)), help)
            }
            Complaint::Wrong { found, expected } => {
                let found = self.source_of(&span).unwrap_or_else(|| found.clone());
                if expected == "newtype variant" || expected == "struct variant" {
                    let variant = found.trim_matches(['"', '\'']).to_owned();
                    (
                        format!("{path} is {found}, expected a table"),
                        Some(format!("write [{path}.{variant}], or {path} = {{ {variant} = {{}} }}")),
                    )
                } else if is_class(path) {
                    let of_many = if path.ends_with("-classes") { "a list of classes, each" } else { "a class," };
                    (format!("{path} is {found}, expected {of_many} by its number in 0..=255 or by its name"), None)
                } else {
                    (format!("{path} is {found}, expected {}", in_words(expected)), None)
                }
            }
            Complaint::Missing { field } => (format!("{} is missing", join(path, field)), None),
            Complaint::Other(message) if message.contains("0 elements") => {
                (format!("{path} is an empty table, expected one choice in it, as in [{path}.NAME]"), None)
            }
            Complaint::Other(message) if message.contains("more than 1 element") => {
                (format!("{path} has several tables, expected exactly one"), None)
            }
            Complaint::Other(message) if message.contains("wanted string or table") => {
                let found = self.source_of(&span).unwrap_or_default();
                (format!("{path} is {found}, expected a name or a table"), None)
            }
            Complaint::Other(message) if path.is_empty() => (message.clone(), None),
            Complaint::Other(message) => (format!("{path}: {message}"), None),
        };
        self.diagnostic(path, message, span, help)
    }
}

/// Removes the entry at a dotted path.
fn take_out(table: &mut DeTable<'_>, path: &str) -> bool {
    // A quoted key may hold dots itself, so every split is tried.
    let splits = path.match_indices('.').map(|(dot, _)| dot).collect::<Vec<_>>();
    for dot in splits {
        let (key, rest) = (&path[..dot], &path[dot + 1..]);
        let taken = match table.get_mut(key).map(Spanned::get_mut) {
            Some(DeValue::Table(inner)) => take_out(inner, rest),
            Some(DeValue::Array(items)) => take_out_of_array(items, key, rest) || table.remove(key).is_some(),
            _ => false,
        };
        if taken {
            return true;
        }
    }
    table.remove(path).is_some()
}

/// Removes the entry at a path that begins with an item's number. An item that is unreadable as a whole gives way to a
/// stand-in, so that the others keep their numbers.
fn take_out_of_array(items: &mut DeArray<'_>, key: &str, path: &str) -> bool {
    let (number, rest) = path.split_once('.').map_or((path, None), |(number, rest)| (number, Some(rest)));
    let Some(item) = number.parse().ok().and_then(|number: usize| items.get_mut(number)) else { return false };
    match (item.get_mut(), rest) {
        (DeValue::Table(inner), Some(rest)) => take_out(inner, rest),
        (_, None) => stand_in(key).is_some_and(|stand_in| {
            *item.get_mut() = stand_in.into_inner();
            true
        }),
        _ => false,
    }
}

/// A readable value for a top-level field that is missing, or for an item of an array of tables.
fn stand_in(field: &str) -> Option<Spanned<DeValue<'static>>> {
    let text = match field {
        "dataset" => "dataset = \"shapes\"",
        "trigger" => "trigger = { square = {} }",
        "model" => "model = { patch-moe = {} }",
        "defenses" => "defenses = { fine-tuning = {} }",
        _ => return None,
    };
    let mut table = DeTable::parse(text).expect("the stand-ins are TOML").into_inner();
    table.remove(field)
}

/// What a deserialization error says, taken apart.
#[derive(Debug, PartialEq)]
enum Complaint {
    UnknownKey { word: String, allowed: Vec<String> },
    UnknownVariant { word: String, allowed: Vec<String> },
    Missing { field: String },
    Wrong { found: String, expected: String },
    Other(String),
}

impl Complaint {
    /// Understands the sentences of serde's `Error` trait; another sentence is passed on as it is.
    fn parse(message: &str) -> Self {
        let quoted = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        let words = |text: &str| {
            let mut words = quoted(text);
            let first = if words.is_empty() { String::new() } else { words.remove(0) };
            (first, words)
        };
        if message.starts_with("unknown field ") {
            let (word, allowed) = words(message);
            return Self::UnknownKey { word, allowed };
        }
        if message.starts_with("unknown variant ") {
            let (word, allowed) = words(message);
            return Self::UnknownVariant { word, allowed };
        }
        if message.starts_with("missing field ") {
            return Self::Missing { field: words(message).0 };
        }
        let wrong = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
        if let Some((found, expected)) = wrong.and_then(|rest| rest.rsplit_once(", expected ")) {
            return Self::Wrong { found: found.replace('`', ""), expected: expected.to_owned() };
        }
        Self::Other(message.to_owned())
    }
}

/// Rust's type names in the words of a TOML file.
fn in_words(expected: &str) -> String {
    match expected {
        "f32" | "f64" => "a number",
        "u8" => "a whole number in 0..=255",
        "u32" => "a whole number in 0..=4294967295",
        "usize" | "u64" => "a whole number, 0 or more",
        "a boolean" => "true or false",
        "a sequence" => "an array",
        "string" | "a string" => "a string",
        other if other.starts_with("struct ") => "a table",
        other => other,
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "dataset = \"shapes\"\n[trigger.square]\n[model.patch-moe]\n";

    fn problems(text: &str, overrides: &[&str]) -> String {
        let overrides = overrides.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let reading = Document::read("a.toml", text, &overrides);
        reading.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n")
    }

    #[test]
    fn every_unreadable_field_is_reported_at_once() {
        let text = r#"
dataset = "cifar11"
seeds = [0, "one"]
colour = "red"

[poisoning]
rat = 0.02
target-class = 300

[trigger.sqare]

[model.patch-moe]
experts = "four"

[training]
epochs = -1
schedule = "cosine"
"#;
        // One more trigger changes no test of messages.
        let triggers = patchdoor_triggers::TriggerConfig::NAMES.join(", ");
        insta::assert_snapshot!(problems(text, &[]).replace(&triggers, "ALL TRIGGERS"));
    }

    #[test]
    fn a_missing_table_does_not_hide_other_problems() {
        insta::assert_snapshot!(problems("[poisoning]\nrat = 1\n", &[]));
    }

    #[test]
    fn several_syntax_errors_are_reported_at_once() {
        insta::assert_snapshot!(problems("dataset = \nseeds = [0\n", &[]));
    }

    #[test]
    fn an_override_replaces_a_value_and_takes_bare_words() {
        let set = ["training.epochs=3", "dataset=cifar10", "data.when-missing=shapes", "model={wide-resnet={}}"];
        let reading = Document::read("a.toml", GOOD, &set.map(str::to_owned));
        assert!(reading.problems.is_empty(), "{:?}", reading.problems);
        let config = reading.config.expect("reads");
        assert_eq!(config.training.epochs, 3);
        assert_eq!(config.dataset, patchdoor_data::DatasetConfig::Cifar10);
        assert!(matches!(config.model, patchdoor_model::ClassifierConfig::WideResnet(_)));
    }

    #[test]
    fn a_problem_in_an_override_points_at_the_override() {
        let set = ["training.epoch=3", "poisoning.rate=lots", "no equals sign", "trigger.square.size=[1"];
        insta::assert_snapshot!(problems(GOOD, &set));
    }

    #[test]
    fn a_default_that_does_not_fit_is_shown_at_its_table() {
        let reading = Document::read("a.toml", GOOD, &[]);
        let problem = reading.document.problem("model.patch-moe.patches-per-expert", "16", "1 to 4");
        insta::assert_snapshot!(problem);
    }
}
