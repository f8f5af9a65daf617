use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use crate::ExperimentConfig;
use crate::diagnostics::{Diagnostic, Position, nearest};
use crate::sweep::{Axes, Outline};

/// The text of an experiment with its overrides, and where each of its fields stands.
///
/// Positions count bytes in one imaginary text: the file, then each override after a line break.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    file: String,
    text: String,
    overrides: Vec<Override>,
    places: BTreeMap<String, Place>,
}

/// One `--set a.b=c`.
#[derive(Clone, Debug)]
struct Override {
    argument: String,
    /// First byte in the imaginary text.
    start: usize,
}

/// Where a key and its value stand.
#[derive(Clone, Debug)]
struct Place {
    key: Range<usize>,
    value: Range<usize>,
}

/// What reading a document gives: the configuration where it could be made out, and every problem.
pub(crate) struct Reading {
    pub(crate) document: Document,
    pub(crate) config: Option<ExperimentConfig>,
    pub(crate) problems: Vec<Diagnostic>,
    /// Dotted paths whose values are not the user's, because what stood there could not be read.
    pub(crate) unread: BTreeSet<String>,
}

impl Document {
    /// Reads an experiment and applies the overrides to it in order.
    ///
    /// A value that cannot be read is reported, taken out, and reading goes on without it, so that all
    /// problems are found at once.
    pub(crate) fn read(file: &str, text: &str, overrides: &[String]) -> Reading {
        let values = value_documents(overrides);
        let (mut document, root, mut problems) = Self::open(file, text, overrides, &values);
        let Some(mut root) = root else {
            return Reading { document, config: None, problems, unread: BTreeSet::new() };
        };
        index(&root, "", &mut document.places);
        if let Some((key, _)) = root.remove_entry(SWEEP) {
            let help = Some("take one point of it: a file without [sweep]".to_owned());
            let message = format!("{SWEEP} describes several experiments, expected one here");
            problems.push(document.diagnostic(SWEEP, message, key.span(), help));
        }
        document.finish(&mut root, problems)
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
            return Reading { document, config: None, problems, unread: BTreeSet::new() };
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

    /// Parses an experiment and its overrides, and applies these; no table if the text is not TOML.
    fn open<'i>(
        file: &str,
        text: &'i str,
        overrides: &'i [String],
        values: &'i [String],
    ) -> (Self, Option<DeTable<'i>>, Vec<Diagnostic>) {
        let mut document =
            Self { file: file.into(), text: text.into(), overrides: Vec::new(), places: BTreeMap::new() };
        let mut problems = Vec::new();
        let (root, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            problems.push(document.diagnostic("", format!("not TOML: {}", error.message()), span, None));
        }
        if !problems.is_empty() {
            return (document, None, problems);
        }

        let mut root = root.into_inner();
        let mut start = text.len() + 1;
        for (argument, value) in overrides.iter().zip(values) {
            document.overrides.push(Override { argument: argument.clone(), start });
            match parse_override(argument, value, start) {
                Ok((path, value)) => set(&mut root, &path, value),
                Err(message) => {
                    let message = format!("--set {argument}: {message}");
                    let help = Some("write --set training.epochs=5 or --set dataset=shapes".to_owned());
                    problems.push(document.diagnostic("", message, start..start + argument.len(), help));
                }
            }
            start += argument.len() + 3;
        }
        (document, Some(root), problems)
    }

    /// Makes a configuration of what was read.
    fn finish(self, root: &mut DeTable<'_>, mut problems: Vec<Diagnostic>) -> Reading {
        let mut unread = BTreeSet::new();
        let config = self.deserialize(root, &mut problems, &mut unread);
        Reading { document: self, config, problems, unread }
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

    /// A problem with the value of a field; it stands at the field, or at the nearest table that would
    /// hold it.
    pub(crate) fn problem(&self, field: &str, found: &str, allowed: &str) -> Diagnostic {
        let mut message = format!("{field} is {found}, expected {allowed}");
        let span = if let Some(place) = self.places.get(field) {
            place.value.clone()
        } else {
            message = format!("{field} is {found} (the default), expected {allowed}");
            let mut ancestor = field;
            loop {
                match ancestor.rfind('.') {
                    Some(dot) => ancestor = &ancestor[..dot],
                    None => break 0..0,
                }
                if let Some(place) = self.places.get(ancestor) {
                    break place.key.clone();
                }
            }
        };
        self.diagnostic(field, message, span, None)
    }

    fn missing(&self, field: &str, table: &str) -> Diagnostic {
        let help = match field {
            "dataset" => Some("write dataset = \"cifar10\", or \"shapes\", which needs no files"),
            "trigger" => Some("write [trigger.square]"),
            "model" => Some("write [model.patch-moe] or [model.wide-resnet]"),
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

    /// The text of a span, in one line.
    pub(crate) fn line_of(&self, span: &Range<usize>) -> String {
        let (text, start, _) = self.origin_of(span.start);
        let source = text.get(span.start - start..span.end - start).unwrap_or_default();
        source.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The overrides' dotted keys, with where they stand.
    pub(crate) fn overridden(&self) -> impl Iterator<Item = (Vec<Key>, Range<usize>)> {
        self.overrides.iter().filter_map(|set| {
            let key = set.argument.split_once('=')?.0;
            Some((dotted_key(key, set.start)?, set.start..set.start + key.len()))
        })
    }

    /// The text of a span, if it fits in a message.
    pub(crate) fn source_of(&self, span: &Range<usize>) -> Option<String> {
        let (text, start, _) = self.origin_of(span.start);
        let source = text.get(span.start - start..span.end - start)?.trim();
        (!source.is_empty() && source.len() <= 60 && !source.contains('\n')).then(|| source.to_owned())
    }

    /// The text that holds a byte of the imaginary text, the byte it starts at, and its name.
    fn origin_of(&self, byte: usize) -> (&str, usize, &str) {
        match self.overrides.iter().rev().find(|set| set.start <= byte) {
            Some(set) => (&set.argument, set.start, "--set"),
            None => (&self.text, 0, &self.file),
        }
    }

    /// A message about a field, with its place.
    pub(crate) fn diagnostic(
        &self,
        field: &str,
        message: String,
        span: Range<usize>,
        help: Option<String>,
    ) -> Diagnostic {
        let (text, start, origin) = self.origin_of(span.start);
        let mut first = (span.start - start).min(text.len());
        while !text.is_char_boundary(first) {
            first -= 1;
        }
        let line_start = text[..first].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = text[first..].find('\n').map_or(text.len(), |newline| first + newline);
        let mut last = span.end.saturating_sub(start).clamp(first, line_end);
        while !text.is_char_boundary(last) {
            last -= 1;
        }
        let position = Position {
            origin: origin.to_owned(),
            line: text[..first].matches('\n').count() + 1,
            column: text[line_start..first].chars().count() + 1,
            text: text[line_start..line_end].trim_end_matches('\r').to_owned(),
            width: text[first..last.max(first)].chars().count().max(1),
        };
        Diagnostic { field: field.to_owned(), message, position: Some(position), help }
    }

    /// The dotted path of the innermost key or value that a span of the document covers or lies in.
    fn path_at(&self, root: &DeTable<'_>, span: &Range<usize>) -> Option<String> {
        let mut places = BTreeMap::new();
        index(root, "", &mut places);
        let exact = |range: &Range<usize>| range == span;
        let within = |range: &Range<usize>| range.start <= span.start && span.end <= range.end && !range.is_empty();
        let depth = |path: &str| path.matches('.').count();
        let candidates = |holds: &dyn Fn(&Place) -> bool| {
            let found = places.iter().filter(|(_, place)| holds(place));
            found.max_by_key(|(path, _)| depth(path)).map(|(path, _)| path.clone())
        };
        if *span == (0..self.text.len()) {
            return None;
        }
        candidates(&|place| exact(&place.key) || exact(&place.value))
            .or_else(|| candidates(&|place| within(&place.key) || within(&place.value)))
    }
}

/// Notes where each key below `path` stands.
fn index(table: &DeTable<'_>, path: &str, places: &mut BTreeMap<String, Place>) {
    for (key, value) in table {
        let path = join(path, key.get_ref());
        index_value(value, &path, places);
        places.insert(path, Place { key: key.span(), value: value.span() });
    }
}

/// Notes what lies in a value: the keys of a table, and of tables in an array, which are counted from 0.
fn index_value(value: &Spanned<DeValue<'_>>, path: &str, places: &mut BTreeMap<String, Place>) {
    match value.get_ref() {
        DeValue::Table(inner) => index(inner, path, places),
        DeValue::Array(items) => {
            let tables = items.iter().enumerate().filter(|(_, item)| matches!(item.get_ref(), DeValue::Table(_)));
            for (number, item) in tables {
                let path = join(path, &number.to_string());
                index_value(item, &path, places);
                places.insert(path, Place { key: item.span(), value: item.span() });
            }
        }
        _ => {}
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
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

/// The table that makes several experiments of one file.
const SWEEP: &str = "sweep";

/// The values of the overrides as documents, for [`parse_override`] to borrow from.
fn value_documents(overrides: &[String]) -> Vec<String> {
    overrides.iter().map(|argument| value_document(argument)).collect()
}

/// The value of `a.b=c` as a TOML document of its own, for [`parse_override`] to borrow from.
fn value_document(argument: &str) -> String {
    format!("v={}", argument.split_once('=').map_or("", |(_, value)| value))
}

/// Splits `a.b=c` into its path and its value, with positions counted from `start`.
fn parse_override<'i>(
    argument: &'i str,
    value_document: &'i str,
    start: usize,
) -> Result<(Vec<Key>, Spanned<DeValue<'i>>), String> {
    let Some((key, value)) = argument.split_once('=') else {
        return Err("expected KEY=VALUE".into());
    };
    let path = dotted_key(key, start).filter(|_| !argument.contains('\n'));
    let path = path.ok_or_else(|| format!("{key:?} is not a dotted key"))?;
    let offset = start + key.len() + 1;
    match DeTable::parse(value_document) {
        Ok(document) => {
            let mut document = document.into_inner();
            let value = document.remove("v").ok_or_else(|| format!("{value:?} is not a TOML value"))?;
            Ok((path, moved(value, offset)))
        }
        // A bare word is a string, so that `--set dataset=shapes` needs no quotes within quotes.
        Err(_) if !value.trim().is_empty() && !value.trim_start().starts_with(['"', '\'', '[', '{']) => {
            let text = DeValue::String(Cow::Borrowed(value.trim()));
            Ok((path, Spanned::new(offset..offset + value.len(), text)))
        }
        Err(error) => Err(format!("{value:?} is not a TOML value: {}", error.message())),
    }
}

/// The parts of a dotted key, with positions counted from `start`.
pub(crate) fn dotted_key(key: &str, start: usize) -> Option<Vec<Key>> {
    let document = format!("{key}=0");
    let table = DeTable::parse(&document).ok().filter(|_| !key.contains(['\n', '=']))?;
    let mut path = Vec::new();
    let mut table = table.get_ref();
    while let Some((name, inner)) = table.iter().next() {
        let span = start + name.span().start..start + name.span().end;
        path.push(Key { name: name.get_ref().to_string(), span });
        match inner.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    (!path.is_empty()).then_some(path)
}

/// One part of a dotted key.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) span: Range<usize>,
}

/// The same value with its positions counted from where it stands in the imaginary text.
fn moved(value: Spanned<DeValue<'_>>, offset: usize) -> Spanned<DeValue<'_>> {
    // The value's own document begins with `v=`.
    let place = |span: Range<usize>| (span.start + offset).saturating_sub(2)..(span.end + offset).saturating_sub(2);
    let span = place(value.span());
    let inner = match value.into_inner() {
        DeValue::Table(table) => {
            let entries = table.into_iter().map(|(key, value)| {
                let span = place(key.span());
                (Spanned::new(span, key.into_inner()), moved(value, offset))
            });
            DeValue::Table(entries.collect())
        }
        DeValue::Array(array) => DeValue::Array(array.into_iter().map(|item| moved(item, offset)).collect()),
        scalar => scalar,
    };
    Spanned::new(span, inner)
}

/// Puts a value at a path, making tables on the way and replacing what stood there.
fn set<'i>(table: &mut DeTable<'i>, path: &[Key], value: Spanned<DeValue<'i>>) {
    let (first, rest) = path.split_first().expect("a path has a part");
    if rest.is_empty() {
        table.remove(first.name.as_str());
        table.insert(Spanned::new(first.span.clone(), Cow::Owned(first.name.clone())), value);
        return;
    }
    // `defenses.0.x` reaches into the first table of an array.
    if let Some(DeValue::Array(items)) = table.get_mut(first.name.as_str()).map(Spanned::get_mut)
        && let Some(item) = rest[0].name.parse().ok().and_then(|number: usize| items.get_mut(number))
        && let (DeValue::Table(inner), false) = (item.get_mut(), rest.len() == 1)
    {
        set(inner, &rest[1..], value);
        return;
    }
    if !matches!(table.get(first.name.as_str()).map(Spanned::get_ref), Some(DeValue::Table(_))) {
        table.remove(first.name.as_str());
        let empty = Spanned::new(first.span.clone(), DeValue::Table(DeTable::new()));
        table.insert(Spanned::new(first.span.clone(), Cow::Owned(first.name.clone())), empty);
    }
    if let Some(DeValue::Table(inner)) = table.get_mut(first.name.as_str()).map(Spanned::get_mut) {
        set(inner, rest, value);
    }
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

pub(crate) fn one_of(allowed: &[String]) -> String {
    match allowed {
        [only] => only.clone(),
        _ => format!("one of {}", allowed.join(", ")),
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
        insta::assert_snapshot!(problems(text, &[]));
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
