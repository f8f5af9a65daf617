use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use patchdoor_data::class_names_of;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::ExperimentConfig;
use crate::diagnostics::{Diagnostic, nearest};
use crate::document::Document;

/// Fields that are a class, by number or by name, and the number that stands in for a name until the classes are known.
/// No two are the same, so that none is refused for being another's.
const FIELDS: [(&[&str], u8); 2] =
    [(&["poisoning", "target-class"], 255), (&["poisoning", "label-rule", "source-specific", "source-class"], 254)];

/// Whether a field is a class.
pub(crate) fn is_class(field: &str) -> bool {
    FIELDS.iter().any(|(path, _)| path.join(".") == field)
}

/// Names of classes that the images will tell the numbers of, by dotted path.
pub(crate) type ClassNames = BTreeMap<String, String>;

impl Document {
    /// Replaces the names of classes by their numbers, so that nothing else knows of names. Those of a folder, whose
    /// classes are known when it is read, are returned, and count as unread until then.
    pub(crate) fn number_classes(
        &self,
        root: &mut DeTable<'_>,
        problems: &mut Vec<Diagnostic>,
        unread: &mut BTreeSet<String>,
    ) -> ClassNames {
        let dataset = dataset_name(root);
        let mut names = ClassNames::new();
        for (path, stand_in) in FIELDS {
            let Some(value) = value_at(root, path) else { continue };
            let DeValue::String(name) = value.get_ref() else { continue };
            let field = path.join(".");
            let known = dataset.as_deref().and_then(class_names_of);
            let number = match known.map(|known| position(name, known)) {
                Some(Ok(number)) => number,
                Some(Err(WrongName { allowed, help })) => {
                    let message = format!("{field} is {name:?}, expected {allowed}");
                    problems.push(self.diagnostic(&field, message, value.span(), help));
                    unread.insert(field);
                    stand_in
                }
                None => {
                    names.insert(field.clone(), name.to_string());
                    unread.insert(field);
                    stand_in
                }
            };
            *value.get_mut() = integer(number);
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
        rule.source_class = number;
    }
}

#[cfg(test)]
mod tests {
    use crate::{DatasetFacts, Plan, PlanOptions};

    fn plan(text: &str) -> Result<Plan, crate::ConfigErrors> {
        Plan::from_text("a.toml", &format!("{text}[trigger.square]\n[model.patch-moe]\n"), &PlanOptions::default())
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
    fn a_folders_classes_get_their_numbers_from_its_images() {
        let text = "dataset.folder = { path = \"a\" }\n[poisoning]\ntarget-class = \"2\"\n\
                    label-rule.source-specific = { source-class = \"10\" }\n";
        let unread = plan(text).unwrap_or_else(|errors| panic!("{errors}"));
        // It can be written down and read again before its images are there.
        let again = Plan::from_text("a.toml", &unread.to_toml(), &PlanOptions::default()).unwrap();
        assert_eq!(again.hash("flex"), unread.hash("flex"));
        assert!(unread.to_toml().contains("target-class = \"2\""), "{}", unread.to_toml());
        let facts = |names: [&str; 3]| DatasetFacts {
            training_images: Some(600),
            test_images: Some(60),
            classes: Some(3),
            class_names: Some(names.map(str::to_owned).into()),
            class_counts: Some([[200; 3].into(), [20; 3].into()]),
            ..DatasetFacts::published(&unread.config().dataset)
        };
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
