use patchdoor_model::{ClassifierConfig, Part};
use serde::{Deserialize, Serialize};

use crate::problem::Problem;

/// What is different about the training of the backdoored classifier, besides its images; nothing if not given. Its clean
/// twin is trained as `[training]` says, from random weights and in all parts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct VictimConfig {
    /// Which weights it begins with.
    pub start: Start,
    /// The parts that learn; all if not given. The others keep their weights and running statistics bit for bit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parts: Option<Vec<Part>>,
}

/// Which weights a training begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// Those that the seed draws.
    #[default]
    Random,
    /// Those of the clean twin of the same seed, after its training.
    CleanTwin,
}

impl VictimConfig {
    /// Whether it is trained like its twin.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What is different, in words; `None` if nothing is.
    pub fn in_words(&self) -> Option<String> {
        let names =
            self.parts.as_ref().map(|parts| parts.iter().map(|part| part.name()).collect::<Vec<_>>().join(", "));
        match (self.start, names) {
            (Start::Random, None) => None,
            (Start::CleanTwin, None) => Some("starts from its clean twin".to_owned()),
            (Start::Random, Some(names)) => Some(format!("trains only {names}")),
            (Start::CleanTwin, Some(names)) => Some(format!("starts from its clean twin and trains only {names}")),
        }
    }

    /// Every value that cannot be.
    pub(crate) fn check(&self, model: &ClassifierConfig, clean_twin: bool) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.start == Start::CleanTwin && !clean_twin {
            problems.push(Problem {
                field: "clean-twin".into(),
                found: "false".into(),
                allowed: "true, because the victim starts from its clean twin".into(),
            });
        }
        let network = model.network();
        let learning = network.learning_parts();
        let Some(parts) = &self.parts else { return problems };
        let written = |parts: &[Part]| parts.iter().map(|part| part.name()).collect::<Vec<_>>().join(", ");
        let is_repeated = parts.iter().enumerate().any(|(index, part)| parts[..index].contains(part));
        if parts.is_empty() || is_repeated || parts.iter().any(|part| !learning.contains(part)) {
            problems.push(Problem {
                field: "victim.parts".into(),
                found: format!("[{}]", written(parts)),
                allowed: format!(
                    "one or more of {}, each once: the parts of this model.{} that learn",
                    written(learning),
                    network.name()
                ),
            });
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use crate::{ConfigErrors, Plan, PlanOptions};

    const GOOD: &str = "dataset = \"shapes\"\n[trigger.square]\n[model.patch-moe]\n";

    fn plan(text: &str) -> Result<Plan, ConfigErrors> {
        Plan::from_text("a.toml", text, &PlanOptions::default())
    }

    #[test]
    fn a_victim_that_starts_elsewhere_is_another_run_with_the_same_twin() {
        let plain = plan(GOOD).unwrap();
        let written_out = plan(&format!("{GOOD}[victim]\nstart = \"random\"\n")).unwrap();
        assert_eq!(plain.hash("flex"), written_out.hash("flex"), "that is what happens anyway");
        let mut hashes = vec![plain.hash("flex")];
        for table in ["start = \"clean-twin\"", "parts = [\"router\"]", "parts = [\"trunk\", \"experts\", \"head\"]"] {
            let other = plan(&format!("{GOOD}[victim]\n{table}\n")).unwrap();
            assert!(!hashes.contains(&other.hash("flex")), "{table}");
            hashes.push(other.hash("flex"));
            assert_eq!(plain.twin_hash("flex", ""), other.twin_hash("flex", ""), "{table}");
            assert_eq!(plan(&other.to_toml()).unwrap().config(), other.config(), "{table}");
        }
    }

    #[test]
    fn parts_that_never_learn_and_a_twin_that_is_not_trained_are_refused() {
        let text = "dataset = \"shapes\"\nclean-twin = false\n[victim]\nstart = \"clean-twin\"\nparts = [\"router\"]\n\
                    [trigger.square]\n[model.patch-moe]\nrouters = \"frozen\"\n[[defenses]]\nrouter-retraining = {}\n";
        insta::assert_snapshot!(plan(text).expect_err("has problems"), @r#"
        error: clean-twin is false, expected true, because the victim starts from its clean twin
         --> a.toml:2:14
          |
        2 | clean-twin = false
          |              ^^^^^

        error: victim.parts is [router], expected one or more of trunk, experts, head, each once: the parts of this model.patch-moe that learn
         --> a.toml:5:9
          |
        5 | parts = ["router"]
          |         ^^^^^^^^^^

        error: defenses.0.router-retraining is in need of routers that learn, and patch-moe has none, expected another defense, or routers = "trained"
          --> a.toml:10:21
           |
        10 | router-retraining = {}
           |                     ^^
        "#);
        let refused = |parts: &str, model: &str| {
            let text = format!("dataset = \"shapes\"\n[victim]\nparts = {parts}\n[trigger.square]\n[model.{model}]\n");
            plan(&text).is_err()
        };
        assert!(refused("[]", "patch-moe") && refused("[\"head\", \"head\"]", "patch-moe"));
        assert!(refused("[\"experts\"]", "wide-resnet") && !refused("[\"trunk\", \"head\"]", "wide-resnet"));
    }
}
