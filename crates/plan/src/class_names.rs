use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use patchdoor_data::class_names_of;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::ExperimentConfig;
use crate::diagnostics::{Diagnostic, nearest};
use crate::document::{Document, Place};

/// Fields that are a class, by number or by name, and the number that stands in for a name until the classes are known.
/// No two are the same, so that none is refused for being another's.
const FIELDS: [(&[&str], u8); 2] =
    [(&["poisoning", "target-class"], 255), (&["poisoning", "label-rule", "source-specific", "source-class"], 254)];

/// The field that is a list of classes, and the number that stands in for a name in its first place; the one before that does
/// in its second, and so on.
const LIST: (&[&str], u8) = (&["poisoning", "label-rule", "source-specific", "cover-classes"], 253);

/// Whether a field is a class, or a list of them.
pub(crate) fn is_class(field: &str) -> bool {
    FIELDS.iter().chain([&LIST]).any(|(path, _)| path.join(".") == field)
}

/// Names of classes that the images will tell the numbers of, by dotted path; places in a list are counted from 0.
pub(crate) type ClassNames = BTreeMap<String, String>;

impl Document {
    /// Replaces the names of classes by their numbers, so that nothing else knows of names. Those of a folder, whose
    /// classes are known when it is read, are returned, and count as unread until then.
    pub(crate) fn number_classes(
        &mut self,
        root: &mut DeTable<'_>,
        problems: &mut Vec<Diagnostic>,
        unread: &mut BTreeSet<String>,
    ) -> ClassNames {
        let dataset = dataset_name(root);
        let known = dataset.as_deref().and_then(class_names_of);
        let mut names = ClassNames::new();
        let mut number = |field: &str, value: &mut Spanned<DeValue<'_>>, stand_in: u8| {
            let DeValue::String(name) = value.get_ref() else { return };
            let number = match known.map(|known| position(name, known)) {
                Some(Ok(number)) => number,
                Some(Err(WrongName { allowed, help })) => {
                    let message = format!("{field} is {name:?}, expected {allowed}");
                    problems.push(self.diagnostic(field, message, value.span(), help));
                    unread.insert(field.to_owned());
                    stand_in
                }
                None => {
                    names.insert(field.to_owned(), name.to_string());
                    self.places.insert(field.to_owned(), Place { key: value.span(), value: value.span() });
                    unread.insert(field.to_owned());
                    stand_in
                }
            };
            *value.get_mut() = integer(number);
        };
        for (path, stand_in) in FIELDS {
            if let Some(value) = value_at(root, path) {
                number(&path.join("."), value, stand_in);
            }
        }
        let (path, first) = LIST;
        let list = path.join(".");
        if let Some(DeValue::Array(items)) = value_at(root, path).map(Spanned::get_mut) {
            for (place, value) in items.iter_mut().enumerate() {
                number(&format!("{list}.{place}"), value, first.saturating_sub(place.min(255) as u8));
            }
        }
        if unread.iter().any(|field| field.starts_with(&format!("{list}."))) {
            // Nor is it known how many cover images there are.
            let rate = list.replace("cover-classes", "cover-rate");
            unread.extend([list, rate]);
        }
        names
    }
}

/// The data set's name, as far as it can be made out.
fn dataset_name(root: &DeTable<'_>) -> Option<String> {
    match root.get("dataset")?.get_ref() {
        DeValue::String(name) => Some(name.to_string()),
        DeValue::Table(table) => table.keys().next().map(|name| name.get_ref().to_string()),
        _ => None,
    }
}

fn value_at<'a, 'i>(table: &'a mut DeTable<'i>, path: &[&str]) -> Option<&'a mut Spanned<DeValue<'i>>> {
    let (first, rest) = path.split_first()?;
    let value = table.get_mut(*first)?;
    match rest {
        [] => Some(value),
        _ => match value.get_mut() {
            DeValue::Table(inner) => value_at(inner, rest),
            _ => None,
        },
    }
}

/// A number as TOML's parser gives it, which borrows its digits.
fn integer(number: u8) -> DeValue<'static> {
    static NUMBERS: LazyLock<Vec<String>> =
        LazyLock::new(|| (0..=u8::MAX).map(|number| format!("v={number}")).collect());
    let table = DeTable::parse(&NUMBERS[usize::from(number)]).expect("a number is TOML").into_inner();
    table.into_iter().next().map(|(_, value)| value.into_inner()).expect("the table has the number")
}

/// What a name that no class has could be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WrongName {
    pub(crate) allowed: String,
    pub(crate) help: Option<String>,
}

/// The number of the class of that name.
pub(crate) fn position(name: &str, classes: &[impl AsRef<str>]) -> Result<u8, WrongName> {
    let position = classes.iter().position(|class| class.as_ref() == name);
    position.map(|number| number as u8).ok_or_else(|| {
        let names = classes.iter().map(AsRef::as_ref).collect::<Vec<_>>();
        let help = nearest(name, names.iter().copied()).map(|near| format!("did you mean {near:?}?"));
        WrongName { allowed: format!("a class by its number, or one of {}", names.join(", ")), help }
    })
}

/// Puts a class's number where the configuration has a stand-in.
pub(crate) fn set_class(config: &mut ExperimentConfig, field: &str, number: u8) {
    if field == FIELDS[0].0.join(".") {
        config.poisoning.target_class = number;
    } else if let patchdoor_data::LabelRule::SourceSpecific(rule) = &mut config.poisoning.label_rule {
        let place = field.strip_prefix(&LIST.0.join(".")).and_then(|rest| rest.strip_prefix('.'));
        match place.and_then(|place| place.parse::<usize>().ok()) {
            Some(place) => rule.cover_classes[place] = number,
            None => rule.source_class = number,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{DatasetFacts, Plan, PlanOptions};

    fn plan(text: &str) -> Result<Plan, crate::ConfigErrors> {
        Plan::from_text("a.toml", &format!("{text}[trigger.square]\n[model.patch-moe]\n"), &PlanOptions::default())
    }

    /// Those of a plan's data set when it turns out to have these classes, of 200 training and 20 test images each.
    fn facts<const CLASSES: usize>(plan: &Plan, names: [&str; CLASSES]) -> DatasetFacts {
        DatasetFacts {
            training_images: Some(200 * CLASSES),
            test_images: Some(20 * CLASSES),
            classes: Some(CLASSES),
            class_names: Some(names.map(str::to_owned).into()),
            class_counts: Some([[200; CLASSES].into(), [20; CLASSES].into()]),
            ..DatasetFacts::published(&plan.config().dataset)
        }
    }

    #[test]
    fn a_class_by_its_name_is_the_same_experiment_as_by_its_number() {
        let of = |target: &str, source: &str| {
            let text = format!(
                "dataset = \"cifar10\"\n[poisoning]\ntarget-class = {target}\n\
                 label-rule.source-specific = {{ source-class = {source} }}\n"
            );
            plan(&text).unwrap_or_else(|errors| panic!("{errors}"))
        };
        assert_eq!(of("\"cat\"", "\"dog\"").hash("flex"), of("3", "5").hash("flex"));
        let plan = of("\"cat\"", "5");
        assert_eq!(plan.target_in_words(&DatasetFacts::published(&plan.config().dataset)).unwrap(), "3 (cat)");
    }

    #[test]
    fn a_name_that_no_class_has_is_a_problem_at_its_place() {
        let said = plan("dataset = \"cifar10\"\n[poisoning]\ntarget-class = \"cats\"\n").unwrap_err().to_string();
        assert!(
            said.contains("poisoning.target-class is \"cats\", expected a class by its number, or one of airplane"),
            "{said}"
        );
        assert!(said.contains("a.toml:3:16") && said.contains("did you mean \"cat\"?"), "{said}");
        let said = plan("dataset = \"cifar10\"\n[poisoning]\ntarget-class = 3.5\n").unwrap_err().to_string();
        assert!(said.contains("is 3.5, expected a class, by its number in 0..=255 or by its name"), "{said}");
    }

    #[test]
    fn cover_classes_have_names_too() {
        let rule = |covers: &str| {
            format!(
                "label-rule.source-specific = {{ source-class = \"dog\", cover-classes = {covers}, cover-rate = 0.01 }}\n"
            )
        };
        let of = |covers: &str| plan(&format!("dataset = \"cifar10\"\n[poisoning]\n{}", rule(covers)));
        let hash = |covers: &str| of(covers).unwrap_or_else(|errors| panic!("{errors}")).hash("flex");
        assert_eq!(hash("[\"cat\", 7, \"ship\"]"), hash("[3, 7, 8]"));
        let said = of("[\"cat\", \"shop\"]").unwrap_err().to_string();
        assert!(
            said.contains("cover-classes.1 is \"shop\", expected a class by its number, or one of airplane"),
            "{said}"
        );
        assert!(said.contains("did you mean \"ship\"?") && said.matches("expected").count() == 1, "{said}");
        let said = of("\"cat\"").unwrap_err().to_string();
        assert!(said.contains("cover-classes is \"cat\""), "{said}");

        // Of a folder, whose classes are known when it is read.
        let text = format!("dataset.folder = {{ path = \"a\" }}\n[poisoning]\n{}", rule("[\"cat\", \"ship\"]"));
        let unread = plan(&text).unwrap_or_else(|errors| panic!("{errors}"));
        let again = Plan::from_text("a.toml", &unread.to_toml(), &PlanOptions::default()).unwrap();
        assert_eq!(again.hash("flex"), unread.hash("flex"));
        assert!(unread.to_toml().contains("cover-classes = [\"cat\", \"ship\"]"), "{}", unread.to_toml());
        let facts = |names| facts(&unread, names);
        let read = unread.for_images(&facts(["ant", "cat", "dog", "ship"])).unwrap();
        let numbered = "label-rule.source-specific = { source-class = 2, cover-classes = [1, 3], cover-rate = 0.01 }\n";
        let numbered = plan(&format!("dataset.folder = {{ path = \"a\" }}\n[poisoning]\n{numbered}")).unwrap();
        assert_eq!(read.hash("flex"), numbered.hash("flex"));
        let said = unread.for_images(&facts(["ant", "cat", "dog", "shop"])).unwrap_err().to_string();
        assert!(said.contains("cover-classes.1 is \"ship\"") && said.contains("did you mean \"shop\"?"), "{said}");
    }

    #[test]
    fn a_folders_classes_get_their_numbers_from_its_images() {
        let text = "dataset.folder = { path = \"a\" }\n[poisoning]\ntarget-class = \"2\"\n\
                    label-rule.source-specific = { source-class = \"10\" }\n";
        let unread = plan(text).unwrap_or_else(|errors| panic!("{errors}"));
        // It can be written down and read again before its images are there.
        let again = Plan::from_text("a.toml", &unread.to_toml(), &PlanOptions::default()).unwrap();
        assert_eq!(again.hash("flex"), unread.hash("flex"));
        assert!(unread.to_toml().contains("target-class = \"2\""), "{}", unread.to_toml());
        let facts = |names| facts(&unread, names);
        let read = unread.for_images(&facts(["1", "10", "2"])).unwrap();
        assert_eq!((read.config().poisoning.target_class, read.config().poisoning.poisoned_class()), (2, Some(1)));
        let numbered = text.replace("\"2\"", "2").replace("\"10\"", "1");
        assert_eq!(read.hash("flex"), plan(&numbered).unwrap().hash("flex"));
        let said = unread.for_images(&facts(["1", "11", "3"])).unwrap_err().to_string();
        assert!(
            said.contains("poisoning.target-class is \"2\", expected a class by its number, or one of 1, 11, 3"),
            "{said}"
        );
        assert!(said.contains("source-class is \"10\"") && said.contains("a.toml:3:16"), "{said}");
        let same = text.replace("\"10\"", "\"2\"");
        assert!(
            plan(&same)
                .unwrap()
                .for_images(&facts(["1", "10", "2"]))
                .unwrap_err()
                .to_string()
                .contains("another class")
        );
    }
}
