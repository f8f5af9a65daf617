use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use patchdoor_record::{RecordError, read_sealed};

/// What a run's `config.toml` says; every default is written out there.
///
/// # Errors
/// If it is not as it was written.
pub(crate) fn read_config(folder: &Path) -> Result<toml::Table, RecordError> {
    let path = folder.join("config.toml");
    let text = read_sealed(&path)?;
    let table = String::from_utf8_lossy(&text).parse::<toml::Table>();
    Ok(table.map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?)
}

/// A run's configuration by the whole keys of its values.
///
/// # Errors
/// If it is not as it was written.
pub(crate) fn flat_config(folder: &Path) -> Result<BTreeMap<String, String>, RecordError> {
    Ok(flattened(&read_config(folder)?))
}

/// Every value of a configuration by its whole key, such as `training.epochs` or `defenses[0].data`.
pub(crate) fn flattened(config: &toml::Table) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    for (key, value) in config {
        flatten(value, &whole_key("", key), &mut values);
    }
    values
}

/// Every value below a key.
fn flatten(value: &toml::Value, key: &str, into: &mut BTreeMap<String, String>) {
    match value {
        toml::Value::Table(table) if !table.is_empty() => {
            for (name, value) in table {
                flatten(value, &whole_key(key, name), into);
            }
        }
        toml::Value::Array(list) if list.iter().any(toml::Value::is_table) => {
            for (index, value) in list.iter().enumerate() {
                flatten(value, &format!("{key}[{index}]"), into);
            }
        }
        value => {
            into.insert(key.to_owned(), value.to_string());
        }
    }
}

/// The key of a name in the table of that key, which is empty for the whole configuration.
fn whole_key(table: &str, name: &str) -> String {
    let is_bare = name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_');
    let name = if is_bare { name.to_owned() } else { format!("{name:?}") };
    if table.is_empty() { name } else { format!("{table}.{name}") }
}

/// The main choices of an experiment in words, each with its kind, by which runs are grouped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Setup {
    pub(crate) dataset: String,
    pub(crate) attack: Choice,
    pub(crate) model: Choice,
}

/// A choice: what was chosen, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Choice {
    /// Such as `square`.
    pub(crate) kind: String,
    /// The kind with the settings that are most often varied, such as `square, rate 0.02`.
    pub(crate) words: String,
}

impl Setup {
    /// What a configuration chooses; what it does not say is left empty.
    pub(crate) fn of(config: &toml::Table) -> Self {
        let trigger = ["trigger", "crafted", "controlled"]
            .iter()
            .find_map(|table| config.get(*table))
            .map(kind)
            .unwrap_or_default();
        let poisoning = config.get("poisoning");
        let rate = poisoning.and_then(|poisoning| poisoning.get("rate")).map(|rate| format!("rate {rate}"));
        let rule = poisoning.and_then(|poisoning| poisoning.get("label-rule")).map(kind);
        let cells = config.get("placement").and_then(|placement| placement.get("cells")).map(kind);
        let cells = cells.filter(|cells| cells != "all").map(|cells| format!("cells {cells}"));
        let details = [rate, rule.filter(|rule| rule != "all-to-one"), cells];

        let network = config.get("model").map(kind).unwrap_or_default();
        let settings = config.get("model").and_then(|model| model.get(&network));
        let setting = |key: &str| settings.and_then(|settings| settings.get(key));
        let varied = [
            setting("widen-factor").map(|factor| format!("widen {factor}")),
            setting("experts").map(|experts| format!("{experts} experts")),
            setting("patches-per-expert").map(|patches| format!("{patches} patches each")),
        ];
        Self {
            dataset: config.get("dataset").map(kind).unwrap_or_default(),
            attack: Choice::of(trigger, details),
            model: Choice::of(network, varied),
        }
    }
}

impl Choice {
    fn of(kind: String, details: [Option<String>; 3]) -> Self {
        let named = (!kind.is_empty()).then(|| kind.clone());
        let words = named.into_iter().chain(details.into_iter().flatten()).collect::<Vec<_>>().join(", ");
        Self { kind, words }
    }
}

/// The name of what was chosen: `"cifar10"`, or the key of a table such as `shapes = { train = 240 }`.
fn kind(choice: &toml::Value) -> String {
    match choice {
        toml::Value::String(name) => name.clone(),
        toml::Value::Table(table) => table.keys().next().cloned().unwrap_or_default(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_most_often_varied_stands_beside_its_kind() {
        let text = "[dataset.shapes]\ntrain = 240\n[poisoning]\nrate = 0.02\nlabel-rule = \"all-to-all\"\n[trigger.square]\nsize = 4\n\
                    [placement.cells.most-selected]\ncount = 4\n[model.patch-moe]\nwiden-factor = 1\nexperts = 4\n\
                    patches-per-expert = 16\n";
        let setup = Setup::of(&text.parse().unwrap());
        assert_eq!(setup.dataset, "shapes");
        assert_eq!((setup.attack.kind.as_str(), setup.model.kind.as_str()), ("square", "patch-moe"));
        assert_eq!(setup.attack.words, "square, rate 0.02, all-to-all, cells most-selected");
        assert_eq!(setup.model.words, "patch-moe, widen 1, 4 experts, 16 patches each");
    }

    #[test]
    fn what_a_configuration_does_not_say_is_left_out() {
        let text = "dataset = \"cifar10\"\n[poisoning]\nlabel-rule = \"all-to-one\"\n[placement]\ncells = \"all\"\n\
                    [model.wide-resnet]\nwiden-factor = 2\n";
        let setup = Setup::of(&text.parse().unwrap());
        assert_eq!(setup.dataset, "cifar10");
        assert_eq!(setup.attack, Choice::default());
        assert_eq!(setup.model.words, "wide-resnet, widen 2");
        assert_eq!(Setup::of(&toml::Table::new()), Setup::default());
    }

    #[test]
    fn an_attacker_who_controls_the_training_has_a_kind_too() {
        let setup = Setup::of(&"[poisoning]\nrate = 0.1\n[controlled.lira]\n".parse().unwrap());
        assert_eq!(setup.attack.words, "lira, rate 0.1");
    }

    #[test]
    fn every_value_has_its_whole_key() {
        let text = "seeds = [0, 1]\n[trigger.square]\n[a.\"b c\"]\nd = 1\n[[defenses]]\ndata = \"clean\"\n";
        let found = flattened(&text.parse().unwrap());
        let expected =
            [("a.\"b c\".d", "1"), ("defenses[0].data", "\"clean\""), ("seeds", "[0, 1]"), ("trigger.square", "{}")];
        assert_eq!(found, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
        assert!(flattened(&toml::Table::new()).is_empty());
    }
}
