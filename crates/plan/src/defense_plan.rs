use std::path::Path;

use patchdoor_defenses::{ActionKind, DefenseConfig};
use patchdoor_model::ClassifierConfig;
use serde::Deserialize;

use crate::defender::DefenderSet;
use crate::diagnostics::{ConfigErrors, Diagnostic};
use crate::document::Document;
use crate::plan::{Plan, PlanOptions, read_text};

/// A checked file of `[[defenses]]` for a classifier that is there already, with the defender's images.
///
/// It may be an experiment file, whose tables of training are then left aside, or hold `dataset` and `[[defenses]]` alone. A
/// `[trigger]` in it serves the measurement and nothing else.
///
/// ```
/// use patchdoor_defenses::ActionKind;
/// use patchdoor_model::{ClassifierConfig, PatchMoeConfig};
/// use patchdoor_plan::{DefensePlan, PlanOptions};
///
/// let text = "dataset = \"cifar10\"\n[[defenses]]\nfine-tuning = {}\n";
/// let model = ClassifierConfig::PatchMoe(PatchMoeConfig::default());
/// let plan = DefensePlan::from_text("mine.toml", text, &model, ActionKind::Repair, &PlanOptions::default()).unwrap();
/// assert!(!plan.knows_trigger());
///
/// // A repair scores no images.
/// assert!(DefensePlan::from_text("mine.toml", text, &model, ActionKind::Detect, &PlanOptions::default()).is_err());
/// ```
#[derive(Clone, Debug)]
pub struct DefensePlan {
    plan: Plan,
    knows_trigger: bool,
}

impl DefensePlan {
    /// Reads and checks a file of defenses of one kind for a classifier.
    ///
    /// # Errors
    /// Every problem of the file and the overrides at once.
    pub fn read(
        path: &Path,
        model: &ClassifierConfig,
        kind: ActionKind,
        options: &PlanOptions,
    ) -> Result<Self, ConfigErrors> {
        Self::from_text(path, &read_text(path)?, model, kind, options)
    }

    /// The same of a text that has been read; `path` names it in messages and in results.
    ///
    /// # Errors
    /// Every problem of the text and the overrides at once.
    pub fn from_text(
        path: impl AsRef<Path>,
        text: &str,
        model: &ClassifierConfig,
        kind: ActionKind,
        options: &PlanOptions,
    ) -> Result<Self, ConfigErrors> {
        let path = path.as_ref();
        let overrides = options.all_overrides();
        let (mut reading, knows_trigger) = Document::read_defenses(&path.display().to_string(), text, &overrides);
        if let Some(config) = &mut reading.config {
            config.model = model.clone();
            let is_unread = |index: usize| reading.unread.contains(&format!("defenses.{index}"));
            for (index, defender) in config.defenses.iter().enumerate().filter(|(index, _)| !is_unread(*index)) {
                let found_kind = defender.defense.kind();
                if found_kind != kind {
                    let field = format!("defenses.{index}.{}", defender.defense.name());
                    let found = format!("for cargo xtask {}: it {}", command(found_kind), found_kind.in_words());
                    let allowed = format!("one of {}", names_of(kind));
                    reading.problems.push(reading.document.problem(&field, &found, &allowed));
                }
                if defender.data == DefenderSet::Contaminated {
                    let allowed = "\"clean\": here nobody stamps the defender's images";
                    let field = format!("defenses.{index}.data");
                    reading.problems.push(reading.document.problem(&field, "\"contaminated\"", allowed));
                }
            }
            if config.defenses.is_empty() && reading.unread.is_empty() {
                let message =
                    format!("defenses is missing, expected [[defenses]] tables with one of {}", names_of(kind));
                reading.problems.push(reading.document.diagnostic("defenses", message, 0..0, None));
            }
        }
        let plan = Plan::from_reading(path, reading, overrides, false, None)?;
        Ok(Self { plan, knows_trigger })
    }

    /// The same as a plan: its trigger is a stand-in if [`Self::knows_trigger`] says so, and what it says of training is
    /// the default.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whether the file has a trigger to measure attack success with.
    pub fn knows_trigger(&self) -> bool {
        self.knows_trigger
    }
}

/// The command that takes defenses of a kind.
fn command(kind: ActionKind) -> &'static str {
    match kind {
        ActionKind::Repair => "defend",
        ActionKind::Detect => "detect",
        ActionKind::Filter | ActionKind::Train => "run, which has the training set",
        ActionKind::Inspect => "inspect",
    }
}

fn names_of(kind: ActionKind) -> String {
    let names = DefenseConfig::defaults().into_iter().filter(|defense| defense.kind() == kind);
    names.map(|defense| defense.name()).collect::<Vec<_>>().join(", ")
}

/// The structure that the `[model]` table of a file describes; `None` if it has no such table.
///
/// # Errors
/// If the file cannot be read or is no TOML, or the table describes no classifier.
pub fn model_of(path: &Path) -> Result<Option<ClassifierConfig>, ConfigErrors> {
    #[derive(Deserialize)]
    struct ModelOnly {
        model: Option<ClassifierConfig>,
    }
    let text = read_text(path)?;
    match toml::from_str::<ModelOnly>(&text) {
        Ok(ModelOnly { model }) => Ok(model),
        Err(error) => {
            let line = error.span().map_or(String::new(), |span| {
                format!(" (line {})", text[..span.start.min(text.len())].lines().count().max(1))
            });
            let message = format!("model cannot be read{line}: {}", error.message());
            Err(ConfigErrors { path: path.to_owned(), diagnostics: vec![Diagnostic::about_file(path, message)] })
        }
    }
}

#[cfg(test)]
mod tests {
    use patchdoor_model::{PatchMoeConfig, WideResNetConfig};

    use super::*;

    fn moe() -> ClassifierConfig {
        ClassifierConfig::PatchMoe(PatchMoeConfig::default())
    }

    fn plan(text: &str, model: &ClassifierConfig, kind: ActionKind) -> Result<DefensePlan, ConfigErrors> {
        DefensePlan::from_text("mine.toml", text, model, kind, &PlanOptions::default())
    }

    #[test]
    fn images_and_defenses_are_enough_and_an_experiment_is_taken_without_its_training() {
        let text = "dataset = \"cifar10\"\n[[defenses]]\nfine-tuning = {}\n";
        let bare = plan(text, &moe(), ActionKind::Repair).expect("valid");
        assert!(!bare.knows_trigger());
        assert_eq!(bare.plan().config().model, moe());
        let other = "[model.wide-resnet]\n[trigger.square]\n[victim]\nparts = [\"router\"]\n[training]\nepochs = 0\n";
        let full = plan(&format!("{text}{other}"), &moe(), ActionKind::Repair).expect("valid");
        assert!(full.knows_trigger());
        assert_eq!(full.plan().config().model, moe(), "the weights say what they are");
        assert_eq!(full.plan().config().victim, crate::VictimConfig::default());
    }

    #[test]
    fn wrong_kinds_stamped_images_and_missing_needs_are_found_at_once() {
        let text = "dataset = \"cifar10\"\n[[defenses]]\nstrip = {}\n\n[[defenses]]\ndata = \"contaminated\"\n\
                    fine-tuning = {}\n\n[[defenses]]\nrouter-retraining = {}\n";
        let dense = ClassifierConfig::WideResnet(WideResNetConfig::default());
        let said = plan(text, &dense, ActionKind::Repair).expect_err("three problems").to_string();
        assert!(
            said.contains("defenses.0.strip is for cargo xtask detect: it scores inputs, expected one of fine"),
            "{said}"
        );
        assert!(said.contains("defenses.1.data is \"contaminated\", expected \"clean\""), "{said}");
        assert!(said.contains("defenses.2.router-retraining is in need of experts"), "{said}");
    }

    #[test]
    fn a_file_without_defenses_says_what_could_stand_there() {
        let said = plan("dataset = \"cifar10\"\n", &moe(), ActionKind::Inspect).expect_err("none").to_string();
        assert!(said.contains("defenses is missing, expected [[defenses]] tables with one of mm-bd"), "{said}");
        let said = plan("dataset = \"cifar11\"\n", &moe(), ActionKind::Detect).expect_err("no such set").to_string();
        assert!(said.contains("cifar11"), "{said}");
    }
}
