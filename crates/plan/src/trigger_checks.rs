use patchdoor_attacks::{AttackError, CraftedConfig};
use patchdoor_data::ImageShape;
use patchdoor_model::{ClassifierConfig, InputShape, NetworkConfig};
use patchdoor_triggers::TriggerError;

use crate::config::ExperimentConfig;
use crate::facts::choice_name;
use crate::problem::Problem;

/// Problems of the trigger, made with a model or not, and of where it lies.
pub(crate) fn check_trigger(config: &ExperimentConfig, images: ImageShape, classes: usize) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut shape = images;
    if let Some(placement) = config.trigger_placement() {
        let found = placement.validate_for(shape, classes);
        if found.is_empty() {
            shape = placement.trigger_shape(shape);
        }
        problems.extend(from_trigger("placement", found));
    }
    let (rule, placement) = (&config.poisoning.label_rule, config.placement.as_ref());
    if let Some(trigger) = config.trigger() {
        let table = match &config.controlled {
            Some(controlled) => format!("controlled.{}.trigger.{}", controlled.name(), trigger.name()),
            None => format!("trigger.{}", trigger.name()),
        };
        problems.extend(from_trigger(&table, trigger.validate(shape)));
        problems.extend(from_trigger("", trigger.validate_use(images, rule, placement)));
    }
    if let Some(crafted) = &config.crafted {
        let crafting = crafted.kind();
        problems.extend(from_attack(&table_of(crafted), crafting.validate(images)));
        problems.extend(from_attack("", crafting.refuse(rule, placement)));
        if config.poisoning.selection.asks_surrogate() {
            problems.push(Problem {
                field: "poisoning.selection".into(),
                found: format!("{} beside a crafted trigger", choice_name(&config.poisoning.selection)),
                allowed: "a selection that asks no surrogate".into(),
            });
        }
    }
    problems
}

fn table_of(crafted: &CraftedConfig) -> String {
    format!("crafted.{}", crafted.name())
}

/// Problems of the surrogate that the victim does not have, and of what is asked of it.
pub(crate) fn check_surrogate(config: &ExperimentConfig, input: InputShape, classes: usize) -> Vec<Problem> {
    let Some((surrogate, ClassifierConfig::PatchMoe(model))) = config.surrogate_in_use() else { return Vec::new() };
    let own = surrogate.validate(&config.model, input, classes);
    let mut problems = from_attack("surrogate", own).collect::<Vec<_>>();
    let valid = model.validate(input, classes).is_empty();
    if let Some(crafted) = config.crafted.as_ref().filter(|crafted| crafted.kind().needs_routers()) {
        problems.extend(from_attack(&table_of(crafted), crafted.kind().refuse_mixture(&model)));
        if valid && model.patches_per_expert == model.patches(input) {
            problems.push(Problem {
                field: table_of(crafted),
                found: format!("made by routers whose experts select all {} patches alike", model.patches_per_expert),
                allowed: "fewer patches in surrogate.patches-per-expert".into(),
            });
        }
    }
    let Some((placement, selected)) = config.placement.as_ref().and_then(|p| Some((p, p.surrogate()?))) else {
        return problems;
    };
    let cells = format!("placement.cells.{}", choice_name(&placement.cells));
    if let Some(expert) = selected.expert
        && expert >= model.experts
    {
        problems.push(Problem {
            field: format!("{cells}.expert"),
            found: expert.to_string(),
            allowed: format!("0 to {}, the surrogate's experts", model.experts.saturating_sub(1)),
        });
    }
    if valid && model.patches_per_expert == model.patches(input) {
        problems.push(Problem {
            field: cells,
            found: format!("asked of a surrogate whose experts select all {} patches alike", model.patches_per_expert),
            allowed: "other cells, or fewer patches in surrogate.patches-per-expert".into(),
        });
    }
    problems
}

/// The problems a table of the triggers crate finds with itself, with the table's path in front if there is one.
fn from_trigger(table: &str, errors: Vec<TriggerError>) -> impl Iterator<Item = Problem> {
    errors.into_iter().map(move |error| match error {
        TriggerError::InvalidField { field, found, allowed } => {
            let field = if table.is_empty() { field.to_owned() } else { format!("{table}.{field}") };
            Problem { field, found, allowed }
        }
        other => Problem { field: table.to_owned(), found: other.to_string(), allowed: "a valid table".into() },
    })
}

/// The problems a table of the attacks crate finds with itself, with the table's path in front if there is one.
pub(crate) fn from_attack(table: &str, errors: Vec<AttackError>) -> impl Iterator<Item = Problem> {
    errors.into_iter().map(move |error| match error {
        AttackError::InvalidField { field, found, allowed } => {
            let parts = [table, field.as_str()].into_iter().filter(|part| !part.is_empty());
            Problem { field: parts.collect::<Vec<_>>().join("."), found, allowed }
        }
        other => Problem { field: table.to_owned(), found: other.to_string(), allowed: "a valid table".into() },
    })
}

#[cfg(test)]
mod tests {
    use crate::{Plan, PlanOptions};

    fn said(text: &str) -> String {
        let text = format!("dataset = \"shapes\"\n{text}[model.patch-moe]\n");
        let plan = Plan::from_text("a.toml", &text, &PlanOptions::default());
        plan.err().map_or_else(String::new, |error| error.to_string())
    }

    #[test]
    fn an_experiment_has_a_trigger_or_a_crafted_one() {
        let clean = "[poisoning]\nlabel-rule.clean-label = {}\n";
        assert_eq!(said(&format!("{clean}[crafted.label-consistent]\n")), "");
        let both = said(&format!("{clean}[trigger.square]\n[crafted.label-consistent]\n"));
        assert!(both.contains("crafted stands beside trigger, expected exactly one attack"), "{both}");
        let neither = said(clean);
        assert!(neither.contains("trigger is missing") && neither.contains("[crafted.label-consistent]"), "{neither}");
        let misspelt = said("[crafted.label-consistant]\n");
        assert!(misspelt.contains("did you mean label-consistent?"), "{misspelt}");
        assert!(misspelt.contains("1 problem") || !misspelt.contains("missing"), "{misspelt}");
    }

    #[test]
    fn what_makes_no_sense_with_a_crafted_trigger_is_refused_with_the_reason() {
        let found = said("[crafted.label-consistent]\nsteps = 0\n[placement]\ncells.block = { size = 2 }\n");
        assert!(found.contains("crafted.label-consistent.steps is 0, expected 1 or more"), "{found}");
        assert!(found.contains("poisoning.label-rule is all-to-one (the default), expected clean-label"), "{found}");
        assert!(found.contains("placement is given, expected no placement: its checkers lie in the four"), "{found}");
    }

    #[test]
    fn a_crafted_trigger_is_another_run_with_the_same_twin_and_survives_being_written_out() {
        let plan = |table: &str| {
            let text = format!(
                "dataset = \"shapes\"\n[poisoning]\nlabel-rule.clean-label = {{}}\n{table}\n[model.wide-resnet]\n"
            );
            Plan::from_text("a.toml", &text, &PlanOptions::default()).expect("valid")
        };
        let (fixed, crafted) = (plan("[trigger.sig]"), plan("[crafted.label-consistent]"));
        assert_ne!(fixed.hash("flex"), crafted.hash("flex"));
        assert_eq!(fixed.twin_hash("flex", ""), crafted.twin_hash("flex", ""));
        let again = Plan::from_text("a.toml", &crafted.to_toml(), &PlanOptions::default()).expect("valid");
        assert_eq!(again.config(), crafted.config());
        let (_, surrogate) = crafted.surrogate().expect("it is made with one");
        assert_eq!(surrogate.twin_hash("flex", ""), crafted.twin_hash("flex", ""), "the twin of a dense victim");
        assert!(fixed.surrogate().is_none());
    }
}
