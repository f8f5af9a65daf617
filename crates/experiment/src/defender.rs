use std::fmt;

use patchdoor_defenses::{DefenseConfig, DefenseError};
use serde::de::{self, MapAccess};
use serde::{Deserialize, Deserializer, Serialize};

use crate::ExperimentConfig;
use crate::checks::Problem;
use crate::plan::{ImageCounts, share_of};

/// One `[[defenses]]` table: what the defender does, and with which images.
///
/// The defense is the key of a table of its own, `fine-pruning = { pruned-fraction = 0.2 }`; exactly one stands beside
/// the keys of this struct.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DefenderConfig {
    /// What to call it in the report, instead of its name and images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The images it has.
    pub data: DefenderSet,
    /// How many of them; what the defense says if not given.
    #[serde(flatten)]
    pub amount: CleanAmount,
    /// What it does.
    #[serde(flatten)]
    pub defense: DefenseConfig,
}

/// The training images that a defender has. Their labels are always the true ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DefenderSet {
    /// Untouched images.
    #[default]
    Clean,
    /// The same, but where the attacker poisoned an image, the triggered one under its true label: what stamping in
    /// place left in the arrays of Chan et al. (2025, arXiv:2505.01811). Fitting it is unlearning.
    Contaminated,
}

impl DefenderSet {
    /// Its name, as a configuration writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Contaminated => "contaminated",
        }
    }
}

/// How much of the training images, without those held out for validation, a defender has: a stratified draw.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CleanAmount {
    /// A share, in (0, 1].
    CleanFraction(f64),
    /// A number of images.
    CleanImages(usize),
}

impl CleanAmount {
    /// Images out of `training`, at least one.
    pub fn count(self, training: usize) -> usize {
        match self {
            Self::CleanFraction(fraction) => share_of(training, fraction).clamp(1, training.max(1)),
            Self::CleanImages(images) => images,
        }
    }
}

/// The keys of a `[[defenses]]` table.
#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "kebab-case")]
enum Key {
    Label,
    Data,
    CleanFraction,
    CleanImages,
    FineTuning,
    FinePruning,
    StepwiseFinePruning,
    PruningSeries,
    ExpertPruning,
    RouterRetraining,
    ExpertFineTuning,
}

/// Written by hand because with `flatten` an error would point at the whole table instead of the key.
impl<'de> Deserialize<'de> for DefenderConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Visitor)
    }
}

struct Visitor;

impl<'de> de::Visitor<'de> for Visitor {
    type Value = DefenderConfig;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a table with one defense in it")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<DefenderConfig, A::Error> {
        let (mut label, mut data, mut fraction, mut images) = (None, DefenderSet::default(), None, None);
        let mut found: Vec<DefenseConfig> = Vec::new();
        while let Some(key) = map.next_key::<Key>()? {
            match key {
                Key::Label => label = Some(map.next_value()?),
                Key::Data => data = map.next_value()?,
                Key::CleanFraction => fraction = Some(map.next_value()?),
                Key::CleanImages => images = Some(map.next_value()?),
                Key::FineTuning => found.push(DefenseConfig::FineTuning(map.next_value()?)),
                Key::FinePruning => found.push(DefenseConfig::FinePruning(map.next_value()?)),
                Key::StepwiseFinePruning => found.push(DefenseConfig::StepwiseFinePruning(map.next_value()?)),
                Key::PruningSeries => found.push(DefenseConfig::PruningSeries(map.next_value()?)),
                Key::ExpertPruning => found.push(DefenseConfig::ExpertPruning(map.next_value()?)),
                Key::RouterRetraining => found.push(DefenseConfig::RouterRetraining(map.next_value()?)),
                Key::ExpertFineTuning => found.push(DefenseConfig::ExpertFineTuning(map.next_value()?)),
            }
        }
        if found.len() > 1 {
            let names = found.iter().map(DefenseConfig::name).collect::<Vec<_>>().join(", ");
            return Err(de::Error::custom(format!("holds {names}, expected one defense in each [[defenses]] table")));
        }
        let Some(defense) = found.pop() else {
            let names = DefenseConfig::NAMES.join(", ");
            return Err(de::Error::custom(format!("holds no defense, expected one of {names}")));
        };
        let amount = match (fraction, images) {
            (Some(_), Some(_)) => {
                return Err(de::Error::custom("holds clean-fraction and clean-images, expected one of them"));
            }
            (None, Some(images)) => CleanAmount::CleanImages(images),
            (Some(fraction), None) => CleanAmount::CleanFraction(fraction),
            (None, None) => CleanAmount::CleanFraction(defense.default_clean_fraction()),
        };
        Ok(DefenderConfig { label, data, amount, defense })
    }
}

impl DefenderConfig {
    /// What to call it in a report.
    pub fn title(&self) -> String {
        self.label.clone().unwrap_or_else(|| match self.data {
            DefenderSet::Clean => self.defense.name().to_owned(),
            DefenderSet::Contaminated => format!("{}, contaminated", self.defense.name()),
        })
    }

    /// Shrinks it to a second, keeping every code path it takes.
    pub(crate) fn make_quick(&mut self) {
        if let CleanAmount::CleanImages(images) = &mut self.amount {
            *images = (*images).min(200);
        }
        if let Some(training) = self.defense.training_mut() {
            training.epochs = training.epochs.min(1);
            training.batch_size = training.batch_size.min(64);
        }
        if let DefenseConfig::StepwiseFinePruning(defense) = &mut self.defense {
            defense.step_fraction = defense.step_fraction.max(0.2);
        }
    }
}

/// Every value of the `[[defenses]]` tables that cannot be, as far as the images are known.
pub(crate) fn check_defenses(config: &ExperimentConfig, counts: Option<ImageCounts>) -> Vec<Problem> {
    let experts = config.model.network().experts();
    let mut problems = Vec::new();
    for (index, defender) in config.defenses.iter().enumerate() {
        let table = format!("defenses.{index}");
        let own = format!("{table}.{}", defender.defense.name());
        problems.extend(defender.defense.validate(experts).into_iter().map(|error| match error {
            DefenseError::InvalidField { field, found, allowed } => {
                let field = if field.is_empty() { own.clone() } else { format!("{own}.{field}") };
                Problem { field, found, allowed }
            }
            other => Problem { field: own.clone(), found: other.to_string(), allowed: "a valid defense".into() },
        }));
        match defender.amount {
            CleanAmount::CleanFraction(fraction) if !(fraction > 0.0 && fraction <= 1.0) => problems.push(Problem {
                field: format!("{table}.clean-fraction"),
                found: fraction.to_string(),
                allowed: "a fraction in (0, 1]".into(),
            }),
            CleanAmount::CleanImages(images) => {
                let most = counts.and_then(|counts| counts.training);
                if images == 0 || most.is_some_and(|most| images > most) {
                    let allowed = most.map_or("1 or more".into(), |most| format!("1 to {most}, the training images"));
                    problems.push(Problem {
                        field: format!("{table}.clean-images"),
                        found: images.to_string(),
                        allowed,
                    });
                }
            }
            CleanAmount::CleanFraction(_) => {}
        }
        let none_held_out =
            config.data.validation_fraction == 0.0 || counts.and_then(|counts| counts.validation) == Some(0);
        if defender.defense.needs_validation() && none_held_out {
            problems.push(Problem {
                field: "data.validation-fraction".into(),
                found: config.data.validation_fraction.to_string(),
                allowed: format!("enough for validation images, on which {own} chooses"),
            });
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use patchdoor_defenses::FinePruning;

    use super::*;
    use crate::{Plan, PlanOptions};

    const GOOD: &str = "dataset = \"cifar10\"\n[trigger.square]\n[model.patch-moe]\n";

    fn plan(text: &str) -> Result<Plan, crate::ConfigErrors> {
        Plan::from_text("a.toml", &format!("{GOOD}{text}"), &PlanOptions::default())
    }

    #[test]
    fn a_defense_is_a_key_beside_its_images_and_its_label() {
        let text = "[[defenses]]\nlabel = \"theirs\"\ndata = \"contaminated\"\nclean-images = 500\n\
                    fine-pruning = { pruned-fraction = 0.2 }\n[[defenses]]\n[defenses.stepwise-fine-pruning]\n";
        let plan = plan(text).expect("valid");
        let [first, second] = plan.config().defenses.as_slice() else { panic!("two defenses") };
        assert_eq!((first.title().as_str(), first.data), ("theirs", DefenderSet::Contaminated));
        assert_eq!(first.amount.count(45_000), 500);
        let expected = FinePruning { pruned_fraction: 0.2, ..FinePruning::default() };
        assert_eq!(first.defense, DefenseConfig::FinePruning(expected));
        // The field's 5 % of 45,000 images.
        assert_eq!(second.amount.count(45_000), 2250);
        let again = Plan::from_text("a.toml", &plan.to_toml(), &PlanOptions::default()).expect("valid");
        assert_eq!(again.config(), plan.config());
    }

    #[test]
    fn problems_of_defenses_are_found_at_once_and_shown_where_they_stand() {
        let text = "\n[data]\nvalidation-fraction = 0.0\n\n[[defenses]]\ndata = \"clean\"\nclean-fraction = 1.5\n\
                    fine-pruning = { pruned-fraction = 2.0, training = { epochs = 0, learning-rate = 0.0 } }\n\n\
                    [[defenses]]\n[defenses.stepwise-fine-pruning]\nmax-accuracy-drop = -0.1\n\n\
                    [[defenses]]\nexpert-pruning = { experts = 4 }\nclean-images = 60000\n";
        insta::assert_snapshot!(plan(text).expect_err("has problems"));
    }

    #[test]
    fn unreadable_defenses_are_found_at_once_and_shown_where_they_stand() {
        let text = "\n[[defenses]]\nfine-prunning = {}\n\n[[defenses]]\n[defenses.fine-pruning]\nprunedfraction = 0.1\n\
                    score = \"raw\"\n[defenses.fine-pruning.training]\nepochs = \"five\"\n\n[[defenses]]\nlabel = \"none\"\n\n\
                    [[defenses]]\ndata = \"dirty\"\nfine-tuning = {}\nrouter-retraining = {}\n";
        insta::assert_snapshot!(plan(text).expect_err("has problems"));
    }

    #[test]
    fn the_dense_baseline_has_no_experts_to_defend_with() {
        let text =
            "dataset = \"cifar10\"\n[trigger.square]\n[model.wide-resnet]\n[[defenses]]\nrouter-retraining = {}\n";
        let errors = Plan::from_text("a.toml", text, &PlanOptions::default()).expect_err("has problems");
        insta::assert_snapshot!(errors);
    }

    #[test]
    fn an_override_reaches_into_a_defense() {
        let text = format!("{GOOD}[[defenses]]\nfine-tuning = {{}}\n");
        let set = "defenses.0.fine-tuning.training.epochs=3".to_owned();
        let options = PlanOptions { overrides: vec![set], ..PlanOptions::default() };
        let plan = Plan::from_text("a.toml", &text, &options).expect("valid");
        assert_eq!(plan.config().defenses[0].defense.epochs(), 3);
    }
}
