use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostics::{Diagnostic, nearest};
use crate::document::{Document, Key, dotted_key, one_of};

/// Points beyond this number are taken for a mistake.
const MOST_POINTS: usize = 10_000;

/// How the values of several axes make points.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Combine {
    /// Each value with each of the others; the last axis changes fastest.
    #[default]
    Grid,
    /// The first values together, then the second ones, and so on.
    Zip,
}

/// `[sweep]` as it stands in a document: what it sets, and where.
#[derive(Debug)]
pub(crate) struct Axes<'i> {
    combine: Combine,
    axes: Vec<Axis<'i>>,
}

#[derive(Debug)]
struct Axis<'i> {
    name: String,
    variants: Vec<Variant<'i>>,
    /// Where its values stand.
    place: Range<usize>,
}

/// One value of an axis: what is set under one label.
#[derive(Debug)]
struct Variant<'i> {
    label: String,
    settings: Vec<Setting<'i>>,
    place: Range<usize>,
}

/// One field and what it is set to.
#[derive(Debug)]
pub(crate) struct Setting<'i> {
    pub(crate) path: Vec<Key>,
    pub(crate) value: Spanned<DeValue<'i>>,
}

impl Setting<'_> {
    fn field(&self) -> String {
        self.path.iter().map(|key| key.name.as_str()).collect::<Vec<_>>().join(".")
    }
}

/// `[sweep]` without its values: the names of its axes and what its points are called.
#[derive(Clone, Debug)]
pub(crate) struct Outline {
    /// Names of the axes, in their order, and how many values each has.
    pub(crate) axes: Vec<(String, usize)>,
    pub(crate) combine: Combine,
    pub(crate) points: Vec<PointOutline>,
    /// The text it was read from.
    pub(crate) document: Document,
}

/// What one point is called and what it sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PointOutline {
    /// The label of its value on each axis.
    pub(crate) labels: Vec<String>,
    /// `a.b=c`, in the order written.
    pub(crate) settings: Vec<String>,
    /// Where its value on each axis stands.
    pub(crate) places: Vec<Range<usize>>,
}

impl<'i> Axes<'i> {
    /// Reads the table `sweep`.
    ///
    /// # Errors
    /// Every problem of the table, with its place.
    pub(crate) fn read(document: &Document, table: &Spanned<DeValue<'i>>) -> Result<Self, Vec<Diagnostic>> {
        let mut reader = Reader { document, problems: Vec::new() };
        let axes = reader.axes(table);
        match axes {
            Some(axes) if reader.problems.is_empty() => Ok(axes),
            _ => Err(reader.problems),
        }
    }

    /// Which value each point takes on each axis.
    fn choices(&self) -> Vec<Vec<usize>> {
        let lengths = self.axes.iter().map(|axis| axis.variants.len()).collect::<Vec<_>>();
        match self.combine {
            Combine::Zip => (0..lengths[0]).map(|choice| vec![choice; lengths.len()]).collect(),
            Combine::Grid => lengths.iter().fold(vec![Vec::new()], |points, &length| {
                let with = |point: &Vec<usize>, choice| point.iter().copied().chain([choice]).collect::<Vec<_>>();
                points.iter().flat_map(|point| (0..length).map(move |choice| with(point, choice))).collect()
            }),
        }
    }

    fn variants_of(&self, choices: &[usize]) -> impl Iterator<Item = &Variant<'i>> {
        self.axes.iter().zip(choices.to_vec()).map(|(axis, choice)| &axis.variants[choice])
    }

    /// What is set at a point, in order.
    pub(crate) fn settings(&self, point: usize) -> impl Iterator<Item = &Setting<'i>> {
        let choices = self.choices().swap_remove(point);
        self.variants_of(&choices).collect::<Vec<_>>().into_iter().flat_map(|variant| &variant.settings)
    }

    /// Names and labels, which outlive the text.
    pub(crate) fn outline(&self, document: &Document) -> Outline {
        let written =
            |setting: &Setting<'_>| format!("{}={}", setting.field(), document.line_of(&setting.value.span()));
        let points = self.choices().into_iter().map(|choices| PointOutline {
            labels: self.variants_of(&choices).map(|variant| variant.label.clone()).collect(),
            settings: self.variants_of(&choices).flat_map(|variant| &variant.settings).map(written).collect(),
            places: self.variants_of(&choices).map(|variant| variant.place.clone()).collect(),
        });
        Outline {
            axes: self.axes.iter().map(|axis| (axis.name.clone(), axis.variants.len())).collect(),
            combine: self.combine,
            points: points.collect(),
            document: document.clone(),
        }
    }
}

/// Reads a table by hand, because its values are not for us to understand: they belong to any field.
struct Reader<'a> {
    document: &'a Document,
    problems: Vec<Diagnostic>,
}

impl Reader<'_> {
    fn complain(&mut self, field: &str, message: String, place: Range<usize>, help: Option<&str>) {
        self.problems.push(self.document.diagnostic(field, message, place, help.map(Into::into)));
    }

    fn expected<T>(&mut self, field: &str, found: &Spanned<DeValue<'_>>, allowed: &str) -> Option<T> {
        let found_text = self.document.source_of(&found.span()).unwrap_or_else(|| found.get_ref().type_str().into());
        self.complain(field, format!("{field} is {found_text}, expected {allowed}"), found.span(), None);
        None
    }

    fn known_keys(&mut self, path: &str, table: &DeTable<'_>, allowed: &[&str]) {
        for key in table.keys().filter(|key| !allowed.contains(&key.get_ref().as_ref())) {
            let field = format!("{path}.{}", key.get_ref());
            let allowed = allowed.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
            let near = nearest(key.get_ref(), allowed.iter().map(String::as_str));
            let help = near.map(|near| format!("did you mean {near}?"));
            let message = format!("{field} is not a known key, expected {}", one_of(&allowed));
            self.complain(&field, message, key.span(), help.as_deref());
        }
    }

    fn axes<'i>(&mut self, table: &Spanned<DeValue<'i>>) -> Option<Axes<'i>> {
        let Some(inner) = table.get_ref().as_table() else { return self.expected("sweep", table, "a table") };
        self.known_keys("sweep", inner, &["combine", "axes"]);
        let combine = match inner.get("combine") {
            None => Some(Combine::default()),
            Some(word) => match word.get_ref().as_str() {
                Some("grid") => Some(Combine::Grid),
                Some("zip") => Some(Combine::Zip),
                _ => self.expected("sweep.combine", word, "one of grid, zip"),
            },
        };
        let Some(list) = inner.get("axes") else {
            self.complain("sweep.axes", "sweep.axes is missing".into(), table.span(), Some("write [[sweep.axes]]"));
            return None;
        };
        let entries = list.get_ref().as_array().filter(|entries| !entries.is_empty());
        let Some(entries) = entries else {
            return self.expected("sweep.axes", list, "one axis or more, [[sweep.axes]]");
        };
        let read = entries.iter().enumerate().map(|(number, entry)| self.axis(number, entry)).collect::<Vec<_>>();
        let mut axes = Axes { combine: combine?, axes: read.into_iter().collect::<Option<Vec<_>>>()? };
        self.name(&mut axes);
        self.check(&axes);
        Some(axes)
    }

    fn axis<'i>(&mut self, number: usize, entry: &Spanned<DeValue<'i>>) -> Option<Axis<'i>> {
        let path = format!("sweep.axes[{number}]");
        let Some(table) = entry.get_ref().as_table() else { return self.expected(&path, entry, "a table") };
        self.known_keys(&path, table, &["field", "values", "name", "variants"]);
        let name = match table.get("name") {
            None => None,
            Some(name) => Some(self.word(&format!("{path}.name"), name)?),
        };
        let (variants, place) = match (table.get("field"), table.get("values"), table.get("variants")) {
            (Some(field), Some(values), None) => (self.values(&path, field, values), values.span()),
            (None, None, Some(variants)) => (self.variants(&path, variants), variants.span()),
            _ => {
                let help =
                    Some("an axis is field = \"training.epochs\" with values = [..], or name = \"..\" with variants");
                let message = format!("{path} has to have either field and values, or name and variants");
                self.complain(&path, message, entry.span(), help);
                return None;
            }
        };
        if table.get("variants").is_some() && name.is_none() {
            let message = format!("{path}.name is missing: an axis of variants needs one");
            self.complain(&format!("{path}.name"), message, entry.span(), Some("write name = \"placement\""));
            return None;
        }
        let name = name.unwrap_or_default();
        Some(Axis { name, variants: variants?, place })
    }

    /// A string of at least one letter.
    fn word(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Option<String> {
        match value.get_ref().as_str() {
            Some(word) if !word.trim().is_empty() && !word.contains('\n') => Some(word.trim().to_owned()),
            _ => self.expected(path, value, "a string in one line"),
        }
    }

    /// An axis over one field.
    fn values<'i>(
        &mut self,
        path: &str,
        field: &Spanned<DeValue<'i>>,
        values: &Spanned<DeValue<'i>>,
    ) -> Option<Vec<Variant<'i>>> {
        let key = match field.get_ref().as_str() {
            Some(key) => self.field(&format!("{path}.field"), key, field.span(), true),
            None => self.expected(&format!("{path}.field"), field, "a dotted field, as in \"training.epochs\""),
        };
        let list = values.get_ref().as_array().filter(|list| !list.is_empty());
        let Some(list) = list else {
            return self.expected(&format!("{path}.values"), values, "an array of one value or more");
        };
        let key = key?;
        let variant = |value: &Spanned<DeValue<'i>>| Variant {
            label: match value.get_ref().as_str() {
                Some(word) => word.to_owned(),
                None => self.document.line_of(&value.span()),
            },
            settings: vec![Setting { path: key.clone(), value: value.clone() }],
            place: value.span(),
        };
        Some(list.iter().map(variant).collect())
    }

    /// An axis whose values set any fields.
    fn variants<'i>(&mut self, path: &str, list: &Spanned<DeValue<'i>>) -> Option<Vec<Variant<'i>>> {
        let path = format!("{path}.variants");
        let entries = list.get_ref().as_array().filter(|entries| !entries.is_empty());
        let Some(entries) = entries else { return self.expected(&path, list, "an array of one table or more") };
        let read = entries.iter().enumerate().map(|(number, entry)| {
            let path = format!("{path}[{number}]");
            let Some(table) = entry.get_ref().as_table() else {
                return self.expected(&path, entry, "a table, as in { label = \"..\", set = { .. } }");
            };
            self.known_keys(&path, table, &["label", "set"]);
            let missing = |key: &str| format!("{path}.{key} is missing");
            let Some(label) = table.get("label") else {
                self.complain(&path, missing("label"), entry.span(), Some("write label = \"what it is called\""));
                return None;
            };
            let Some(set) = table.get("set") else {
                self.complain(&path, missing("set"), entry.span(), Some("write set = { \"poisoning.rate\" = 0.01 }"));
                return None;
            };
            let label = self.word(&format!("{path}.label"), label);
            let Some(fields) = set.get_ref().as_table() else {
                return self.expected(&format!("{path}.set"), set, "a table of fields and values");
            };
            let mut settings = Vec::new();
            self.settings(&format!("{path}.set"), &[], fields, &mut settings);
            // A table is sorted by its keys; what is written first is set first.
            settings.sort_by_key(|setting: &Setting<'_>| setting.value.span().start);
            Some(Variant { label: label?, settings, place: entry.span() })
        });
        read.collect::<Vec<_>>().into_iter().collect()
    }

    /// What a table of fields sets. Keys may be dotted, quoted or not; a table in braces is a value.
    fn settings<'i>(&mut self, path: &str, before: &[Key], fields: &DeTable<'i>, settings: &mut Vec<Setting<'i>>) {
        for (key, value) in fields {
            let Some(parts) = self.field(path, key.get_ref(), key.span(), before.is_empty()) else { continue };
            let whole = before.iter().cloned().chain(parts).collect::<Vec<_>>();
            match value.get_ref().as_table() {
                Some(inner) if !self.document.line_of(&value.span()).starts_with('{') => {
                    self.settings(path, &whole, inner, settings);
                }
                _ => settings.push(Setting { path: whole, value: value.clone() }),
            }
        }
    }

    /// The parts of a field's name that stands, quoted or bare, at a place.
    fn field(&mut self, path: &str, name: &str, place: Range<usize>, top: bool) -> Option<Vec<Key>> {
        let quoted = self.document.line_of(&place).starts_with(['"', '\'']);
        match dotted_key(name, place.start + usize::from(quoted)) {
            Some(parts) if top && ["seeds", "sweep"].contains(&parts[0].name.as_str()) => {
                let message = format!("{path} is {name:?}, expected any field but seeds and sweep");
                let help = (parts[0].name == "seeds").then_some("every point runs with all of the file's seeds");
                self.complain(path, message, place, help);
                None
            }
            Some(parts) => Some(parts),
            None => {
                let message = format!("{path} is {name:?}, expected a dotted field, as in \"training.epochs\"");
                self.complain(path, message, place, None);
                None
            }
        }
    }

    /// Gives an axis over one field the field's last part for a name, or all of it where that is taken.
    fn name(&mut self, axes: &mut Axes<'_>) {
        let field = |axis: &Axis<'_>| axis.variants[0].settings[0].field();
        let last = |axis: &Axis<'_>| field(axis).rsplit('.').next().unwrap_or_default().to_owned();
        let candidates = axes.axes.iter().map(|axis| if axis.name.is_empty() { last(axis) } else { axis.name.clone() });
        let candidates = candidates.collect::<Vec<_>>();
        for (axis, name) in axes.axes.iter_mut().zip(&candidates) {
            if axis.name.is_empty() {
                let taken = candidates.iter().filter(|candidate| *candidate == name).count() > 1;
                axis.name = if taken { field(axis) } else { name.clone() };
            }
        }
        for (number, axis) in axes.axes.iter().enumerate() {
            if axes.axes[..number].iter().any(|before| before.name == axis.name) {
                let field = format!("sweep.axes[{number}].name");
                let message = format!("{field} is {:?}, expected a name that no other axis has", axis.name);
                self.complain(&field, message, axis.place.clone(), None);
            }
        }
    }

    /// Checks what concerns several axes, or the overrides.
    fn check(&mut self, axes: &Axes<'_>) {
        let lengths = axes.axes.iter().map(|axis| axis.variants.len()).collect::<Vec<_>>();
        let points = match axes.combine {
            Combine::Grid => lengths.iter().try_fold(1_usize, |product, &length| product.checked_mul(length)),
            Combine::Zip => Some(lengths[0]),
        };
        if points.is_none_or(|points| points > MOST_POINTS) {
            let place = axes.axes[0].place.clone();
            let message = format!("sweep.axes make more than {MOST_POINTS} points, expected at most that many");
            self.complain("sweep.axes", message, place, None);
            return;
        }
        if axes.combine == Combine::Zip {
            for (number, axis) in axes.axes.iter().enumerate().filter(|(number, _)| lengths[*number] != lengths[0]) {
                let field = format!("sweep.axes[{number}]");
                let message = format!(
                    "{field} has {} values, expected {} as the first axis has: they are zipped",
                    lengths[number], lengths[0]
                );
                self.complain(&field, message, axis.place.clone(), None);
            }
        }
        if !self.problems.is_empty() {
            return;
        }
        self.check_fields(axes);
        let choices = axes.choices();
        let labels = choices.iter().map(|choices| {
            axes.variants_of(choices).map(|variant| variant.label.as_str()).collect::<Vec<_>>().join(", ")
        });
        let mut seen = std::collections::BTreeSet::new();
        let mut said = std::collections::BTreeSet::new();
        for (label, choices) in labels.zip(&choices) {
            if !seen.insert(label.clone()) {
                let last = axes.variants_of(choices).last().map_or(0..0, |variant| variant.place.clone());
                if said.insert(last.start) {
                    self.complain("sweep.axes", format!("two points of the sweep are called {label:?}"), last, None);
                }
            }
        }
    }

    /// No field may be set from two sides, for one of them would be lost.
    fn check_fields(&mut self, axes: &Axes<'_>) {
        let settings = |axis: &Axis<'_>| {
            let settings = axis.variants.iter().flat_map(|variant| &variant.settings);
            settings.map(|setting| (setting.field(), setting.path[0].span.clone())).collect::<Vec<_>>()
        };
        let within = |inner: &str, outer: &str| inner == outer || inner.starts_with(&format!("{outer}."));
        for (number, axis) in axes.axes.iter().enumerate() {
            let earlier = axes.axes[..number].iter().flat_map(settings).collect::<Vec<_>>();
            let clash = settings(axis)
                .into_iter()
                .find(|(field, _)| earlier.iter().any(|(other, _)| within(field, other) || within(other, field)));
            if let Some((field, place)) = clash {
                let message = format!("{field} is set by another axis too, expected a field of this axis alone");
                self.complain(&format!("sweep.axes[{number}]"), message, place, None);
            }
        }
        let swept = axes.axes.iter().flat_map(settings).collect::<Vec<_>>();
        for (path, place) in self.document.overridden().collect::<Vec<_>>() {
            let field = path.iter().map(|key| key.name.as_str()).collect::<Vec<_>>().join(".");
            if swept.iter().any(|(setting, _)| within(&field, setting)) {
                let help = Some("--set sweep.axes=[..] replaces the axes");
                self.complain(&field, format!("{field} is set by the sweep, so --set would be lost"), place, help);
            }
        }
    }
}
