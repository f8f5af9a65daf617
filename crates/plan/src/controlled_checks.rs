use patchdoor_data::ImageShape;

use crate::config::ExperimentConfig;
use crate::problem::Problem;
use crate::trigger_checks::from_attack;

/// What is wrong with the table of an attack that controls the training, and what it makes no sense with.
pub(crate) fn check_controlled(config: &ExperimentConfig, shape: ImageShape) -> Vec<Problem> {
    let Some(controlled) = &config.controlled else { return Vec::new() };
    let table = format!("controlled.{}", controlled.name());
    let kind = controlled.kind();
    let own = from_attack(&table, kind.validate(shape));
    let refused = kind.refuse(&config.poisoning.label_rule, config.placement.as_ref(), &config.model);
    let data = &config.data;
    let held_out = (kind.needs_validation() && data.validation_fraction == 0.0).then(|| Problem {
        field: "data.validation-fraction".into(),
        found: "0".into(),
        allowed: format!("more, because {} looks at images that are held out", controlled.name()),
    });
    let still = (kind.needs_still_images() && !data.augmentation.is_none()).then(|| Problem {
        field: "data.augmentation".into(),
        found: "given".into(),
        allowed: format!("none, because {} has to know which patches a trigger touches", controlled.name()),
    });
    let own = own.chain(held_out).chain(still);
    own.chain(from_attack("", refused)).collect()
}

#[cfg(test)]
mod tests {
    use crate::{ConfigErrors, Plan, PlanOptions};

    fn plan(text: &str) -> Result<Plan, ConfigErrors> {
        Plan::from_text("a.toml", &format!("dataset = \"shapes\"\n[model.patch-moe]\n{text}"), &PlanOptions::default())
    }

    #[test]
    fn an_attack_in_the_place_of_a_trigger_is_another_run_with_the_same_twin() {
        let (plain, own) = (plan("[trigger.square]\n").unwrap(), plan("[controlled.input-aware]\n").unwrap());
        assert_eq!((own.config().attack_name(), own.config().trigger()), ("input-aware", None));
        assert_ne!(plain.hash("flex"), own.hash("flex"));
        assert_eq!(plain.twin_hash("flex", ""), own.twin_hash("flex", ""));
        assert_eq!(Plan::from_text("a.toml", &own.to_toml(), &PlanOptions::default()).unwrap().config(), own.config());
    }

    #[test]
    fn no_attack_two_attacks_and_what_makes_no_sense_are_refused_with_the_reason() {
        let said = |text: &str| plan(text).expect_err("it has problems").to_string();
        assert!(said("").contains("trigger is missing"));
        let two = said("[trigger.square]\n[controlled.input-aware]\n");
        assert!(
            two.contains("controlled stands beside trigger, expected exactly one attack") && two.contains("a.toml:4")
        );
        let placed = said("[controlled.input-aware]\n[placement]\ncells.block = { size = 1 }\n");
        assert!(placed.contains("placement is given, expected no placement, because a generator chooses"), "{placed}");
        let dense = said("[controlled.input-aware]\nmask-density = 1.0\ngenerator.channels = 0\n");
        assert!(dense.contains("controlled.input-aware.mask-density is 1, expected a number in (0, 1)"), "{dense}");
        assert!(dense.contains("controlled.input-aware.generator.channels is 0, expected 1 or more"), "{dense}");
        let of_all = said("[controlled.ssdt]\n");
        assert!(
            of_all
                .contains("poisoning.label-rule is without a source class (the default), expected \"source-specific\""),
            "{of_all}"
        );
        let dose = said("[data]\nvalidation-fraction = 0\n[controlled.dose.trigger.square]\nsize = 99\n");
        assert!(dose.contains("data.validation-fraction is 0, expected more, because dose looks at images"), "{dose}");
        assert!(dose.contains("controlled.dose.trigger.square.size is 99"), "{dose}");
        let moved = said("[data]\naugmentation.flip = true\n[controlled.forced-routing]\n");
        assert!(
            moved.contains("data.augmentation is given, expected none, because forced-routing has to know"),
            "{moved}"
        );
        assert!(plan("[poisoning]\nlabel-rule.source-specific = { source-class = 1 }\n[controlled.ssdt]\n").is_ok());
    }
}
