use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostics::{Diagnostic, Position};

/// The text of an experiment with its overrides, and where each of its fields stands.
///
/// Positions count bytes in one imaginary text: the file, then each override after a line break.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    file: String,
    pub(crate) text: String,
    overrides: Vec<Override>,
    pub(crate) places: BTreeMap<String, Place>,
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
pub(crate) struct Place {
    pub(crate) key: Range<usize>,
    pub(crate) value: Range<usize>,
}

impl Document {
    /// Parses an experiment and its overrides, and applies these; no table if the text is not TOML.
    pub(crate) fn open<'i>(
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
    pub(crate) fn path_at(&self, root: &DeTable<'_>, span: &Range<usize>) -> Option<String> {
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
pub(crate) fn index(table: &DeTable<'_>, path: &str, places: &mut BTreeMap<String, Place>) {
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

pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The values of the overrides as documents, for [`parse_override`] to borrow from.
pub(crate) fn value_documents(overrides: &[String]) -> Vec<String> {
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
pub(crate) fn set<'i>(table: &mut DeTable<'i>, path: &[Key], value: Spanned<DeValue<'i>>) {
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

pub(crate) fn one_of(allowed: &[String]) -> String {
    match allowed {
        [only] => only.clone(),
        _ => format!("one of {}", allowed.join(", ")),
    }
}
