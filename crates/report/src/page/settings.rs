use std::collections::BTreeMap;

use super::entry::Entry;
use crate::compare::config_differences;

/// Tables of a configuration that say what the attacker does; the rate of poisoning stands in the words of the attack.
const ATTACK: [&str; 7] = ["trigger", "crafted", "controlled", "placement", "poisoning", "surrogate", "victim"];

/// Parts of a configuration that say what is measured of a classifier, or expected; they change none.
const MEASURED: [&str; 7] = ["defenses", "routing", "curves", "evasion", "certification", "expected", "clean-twin"];

/// Runs that can be compared: on the same data set, with the same structure of the classifier and as many epochs.
pub(crate) struct Setting<'a> {
    /// What they have in common, in words; no two settings have the same.
    pub(crate) title: String,
    pub(crate) runs: Vec<Attacked<'a>>,
}

/// A run in its setting.
pub(crate) struct Attacked<'a> {
    pub(crate) entry: &'a Entry,
    /// Its attack in words, with all that tells it from other runs of the setting.
    pub(crate) attack: String,
}

/// Every run whose configuration can be read, in its setting; sweeps have their runs. Sorted by setting and attack.
pub(crate) fn settings(entries: &[Entry]) -> Vec<Setting<'_>> {
    let mut found: BTreeMap<(String, BTreeMap<String, String>), Vec<&Entry>> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| !entry.is_sweep() && !entry.config.is_empty()) {
        found.entry((title(entry), in_common(entry))).or_default().push(entry);
    }
    let keys = found.keys().cloned().collect::<Vec<_>>();
    let titles = keys.iter().map(|(title, config)| {
        // What the words do not say of the structure.
        let like = keys.iter().filter(|(other, _)| other == title).map(|(_, config)| config).collect::<Vec<_>>();
        let own = like.iter().position(|other| *other == config).unwrap_or(0);
        joined(title, &apart(&like, |_| true)[own])
    });
    titles.zip(found.into_values()).map(|(title, runs)| Setting { title, runs: attacked(&runs) }).collect()
}

/// Runs with their attacks, sorted by them.
fn attacked<'a>(runs: &[&'a Entry]) -> Vec<Attacked<'a>> {
    let is_of = |tables: &[&str], key: &str| tables.contains(&key.split(['.', '[']).next().unwrap_or_default());
    // Single triggers are told apart by their settings, all runs by the rest.
    let all = apart(&configs(runs), |key| !is_of(&ATTACK, key) && !is_of(&MEASURED, key));
    let mut kinds: BTreeMap<Option<&str>, Vec<(&'a Entry, &str)>> = BTreeMap::new();
    for (&entry, rest) in runs.iter().zip(&all) {
        kinds.entry(entry.attacks.first().map(|attack| attack.kind.as_str())).or_default().push((entry, rest));
    }
    let mut attacked = Vec::new();
    for of_kind in kinds.into_values() {
        let entries = of_kind.iter().map(|(entry, _)| *entry).collect::<Vec<_>>();
        let own = apart(&configs(&entries), |key| is_of(&ATTACK, key) && key != "poisoning.rate");
        attacked.extend(of_kind.iter().zip(&own).map(|((entry, rest), own)| {
            let words = entry.attacks.first().map_or("no attack", |attack| &attack.words);
            Attacked { entry, attack: joined(&joined(words, own), rest) }
        }));
    }
    attacked.sort_by(|a, b| (&a.attack, &a.entry.listed.path).cmp(&(&b.attack, &b.entry.listed.path)));
    attacked
}

fn configs<'a>(runs: &[&'a Entry]) -> Vec<&'a BTreeMap<String, String>> {
    runs.iter().map(|run| &run.config).collect()
}

/// The part of a configuration that runs of one setting have in common, with the data set that was really used.
fn in_common(entry: &Entry) -> BTreeMap<String, String> {
    let is_common = |key: &str| {
        key.starts_with("model.")
            || key.starts_with("dataset.")
            || key == "data.training-images"
            || key == "training.epochs"
    };
    let mut common = entry.config.clone();
    common.retain(|key, _| is_common(key));
    common.insert("dataset".into(), entry.datasets.join(", "));
    common
}

fn title(entry: &Entry) -> String {
    let of = |key: &str| entry.config.get(key);
    let images = of("data.training-images").map(|images| format!(", {images} training images")).unwrap_or_default();
    let dataset = if entry.datasets.is_empty() { "data set not known".into() } else { entry.datasets.join(", ") };
    let model = entry.models.first().map_or("model not known", |model| &model.words);
    let epochs = of("training.epochs").map(|epochs| format!("; {epochs} epochs")).unwrap_or_default();
    format!("{dataset}{images}; {model}{epochs}")
}

fn joined(words: &str, more: &str) -> String {
    if more.is_empty() { words.to_owned() } else { format!("{words}; {more}") }
}

/// What tells configurations apart, of each in words: those of their keys that are looked at and that not all have with the same
/// value.
pub(crate) fn apart(configs: &[&BTreeMap<String, String>], is_looked_at: impl Fn(&str) -> bool) -> Vec<String> {
    let mut differences = config_differences(configs);
    differences.retain(|difference| is_looked_at(&difference.key));
    let of = |run: usize| {
        let words = differences.iter().map(|difference| match &difference.values[run] {
            Some(value) => format!("{} = {value}", difference.key),
            None => format!("no {}", difference.key),
        });
        words.collect::<Vec<_>>().join(", ")
    };
    (0..configs.len()).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::super::entry::tests::{CONFIG, damaged, entry_of, sweep};
    use super::*;
    use crate::run_table::tests::{run, seed};

    fn with(name: &str, config: &str) -> Entry {
        entry_of(name, config, run("badnets", vec![seed(0, 0.69, 0.96)]))
    }

    fn attacks<'a>(setting: &'a Setting<'_>) -> Vec<&'a str> {
        setting.runs.iter().map(|run| run.attack.as_str()).collect()
    }

    #[test]
    fn runs_of_one_trigger_say_what_tells_them_apart_and_no_more() {
        let square = |size: usize, rest: &str| CONFIG.replace("square]", &format!("square]\nsize = {size}{rest}"));
        let entries = [
            with("a", &square(4, "")),
            with("b", &square(5, "\n[defenses]\nnone = true\n[training]\nlearning-rate = 0.2")),
            with("c", &CONFIG.replace("trigger.square", "trigger.warp")),
        ];
        let settings = settings(&entries);
        assert_eq!(settings.len(), 1);
        assert_eq!(
            attacks(&settings[0]),
            [
                "square, rate 0.02; trigger.square.size = 4; no training.learning-rate",
                "square, rate 0.02; trigger.square.size = 5; training.learning-rate = 0.2",
                "warp, rate 0.02; no training.learning-rate",
            ]
        );
    }

    #[test]
    fn other_images_structures_and_lengths_are_other_settings() {
        let epochs = |epochs: usize| format!("{CONFIG}[training]\nepochs = {epochs}\n");
        let mut stand_in = with("d", &epochs(4));
        stand_in.datasets = vec!["shapes".into()];
        let entries = [
            with("a", &epochs(4)),
            with("b", &epochs(5)),
            with("c", &epochs(4).replace("experts = 4", "experts = 4\ngate = \"softmax\"")),
            stand_in,
            with("e", &epochs(4)),
        ];
        let settings = settings(&entries);
        let found = settings.iter().map(|setting| (setting.title.as_str(), setting.runs.len())).collect::<Vec<_>>();
        assert_eq!(
            found,
            [
                ("cifar10; patch-moe, 4 experts; 4 epochs; model.patch-moe.gate = \"softmax\"", 1),
                ("cifar10; patch-moe, 4 experts; 4 epochs; no model.patch-moe.gate", 2),
                ("cifar10; patch-moe, 4 experts; 5 epochs", 1),
                ("shapes; patch-moe, 4 experts; 4 epochs", 1),
            ]
        );
        assert_eq!(attacks(&settings[1]), ["square, rate 0.02"; 2], "two runs of the same are two rows");
    }

    #[test]
    fn what_has_no_configuration_is_in_no_setting() {
        assert!(settings(&[damaged(), sweep()]).is_empty());
        let clean = with("a", "dataset = \"cifar10\"\n[model.patch-moe]\nexperts = 4\n");
        assert_eq!(attacks(&settings(&[damaged(), clean])[0]), ["no attack"]);
    }
}
