use patchdoor_defenses::{ActionKind, DefendedClassifier, DefenseError, Need};
use patchdoor_model::Part;

use crate::amount::CleanAmount;
use crate::config::ExperimentConfig;
use crate::counts::ImageCounts;
use crate::defender::DefenderConfig;
use crate::problem::Problem;
use crate::training_checks::check_diversity;

/// Every value of the `[[defenses]]` tables that cannot be, as far as the images are known.
pub(crate) fn check_defenses(config: &ExperimentConfig, counts: Option<ImageCounts>) -> Vec<Problem> {
    let network = config.model.network();
    let classifier = DefendedClassifier {
        name: network.name(),
        experts: network.experts(),
        routers_learn: network.learning_parts().contains(&Part::Router),
        has_batch_norm: network.has_batch_norm(),
    };
    let mut problems = Vec::new();
    let none_held_out =
        config.data.validation_fraction == 0.0 || counts.and_then(|counts| counts.validation) == Some(0);
    for (index, defender) in config.defenses.iter().enumerate() {
        let table = format!("defenses.{index}");
        let own = format!("{table}.{}", defender.defense.name());
        problems.extend(from_defense(&own, defender.defense.validate(&classifier)));
        let training = defender.defense.as_defense().training();
        problems.extend(training.and_then(|training| check_diversity(&format!("{own}.training"), training, network)));
        problems.extend(check_tuning(defender, &table, none_held_out));
        if defender.twin && !config.clean_twin {
            problems.push(Problem {
                field: format!("{table}.twin"),
                found: "true".into(),
                allowed: "false, because clean-twin = false leaves no twin".into(),
            });
        }
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
        if defender.defense.needs(Need::ValidationImages) && none_held_out {
            problems.push(Problem {
                field: "data.validation-fraction".into(),
                found: config.data.validation_fraction.to_string(),
                allowed: format!("enough for validation images, on which {own} chooses"),
            });
        }
    }
    problems
}

/// What is wrong with the choice of a defense's strength; `table` is the defense's place among the others.
fn check_tuning(defender: &DefenderConfig, table: &str, none_held_out: bool) -> Vec<Problem> {
    let Some(tune) = defender.tune else { return Vec::new() };
    let field = format!("{table}.tune");
    let name = defender.defense.name();
    let mut problems = from_defense(&field, tune.validate()).collect::<Vec<_>>();
    let has_none = || defender.defense.as_defense().strengths().is_none();
    let refused = if defender.defense.kind() != ActionKind::Repair || has_none() {
        Some(format!("no tune, because {name} has no strength to choose, or chooses it itself"))
    } else {
        none_held_out.then(|| format!("data.validation-fraction above 0, because {name} is tuned on validation images"))
    };
    problems.extend(refused.map(|allowed| Problem { field, found: "given".into(), allowed }));
    problems
}

/// The problems that a table of the defenses crate finds with itself, with the table's path in front.
fn from_defense(table: &str, errors: Vec<DefenseError>) -> impl Iterator<Item = Problem> {
    errors.into_iter().map(move |error| match error {
        DefenseError::InvalidField { field, found, allowed } => {
            let field = if field.is_empty() { table.to_owned() } else { format!("{table}.{field}") };
            Problem { field, found, allowed }
        }
        other => Problem { field: table.to_owned(), found: other.to_string(), allowed: "a valid defense".into() },
    })
}

#[cfg(test)]
mod tests {
    use patchdoor_defenses::{DefenseConfig, FinePruning, Need, TuneConfig};
    use patchdoor_train::TrainingConfig;

    use crate::{DefenderSet, Plan, PlanOptions};

    const GOOD: &str = "dataset = \"cifar10\"\n[trigger.square]\n[model.patch-moe]\n";

    fn plan(text: &str) -> Result<Plan, crate::ConfigErrors> {
        Plan::from_text("a.toml", &format!("{GOOD}{text}"), &PlanOptions::default())
    }

    #[test]
    fn a_twin_that_is_not_trained_cannot_be_defended() {
        let table = "[[defenses]]\ntwin = true\npruning-series = {}\n";
        assert!(plan(table).expect("valid").config().defenses[0].twin);
        let text = format!("clean-twin = false\n{GOOD}{table}");
        let refused = Plan::from_text("a.toml", &text, &PlanOptions::default()).expect_err("no twin").to_string();
        assert!(refused.contains("defenses.0.twin is true, expected false"), "{refused}");
    }

    #[test]
    fn a_strength_is_tuned_where_there_is_one_and_images_to_choose_on() {
        let said = |text: &str| plan(text).expect_err("it is refused").to_string();
        let tuned = plan("[[defenses]]\ntune = true\nfine-tuning = {}\n").expect("valid");
        let defender = &tuned.config().defenses[0];
        assert_eq!(
            (defender.tune, defender.most_epochs(&TrainingConfig::default())),
            (Some(TuneConfig::default()), 25)
        );
        assert_eq!(
            Plan::from_text("a.toml", &tuned.to_toml(), &PlanOptions::default()).unwrap().config(),
            tuned.config()
        );
        let text = "[[defenses]]\ntune = { max-accuracy-drop = 0.1 }\nfine-tuning = {}\n";
        assert_eq!(plan(text).unwrap().config().defenses[0].tune, Some(TuneConfig { max_accuracy_drop: 0.1 }));
        assert_eq!(plan("[[defenses]]\ntune = false\nstrip = {}\n").unwrap().config().defenses[0].tune, None);
        let detector = said("[[defenses]]\ntune = true\nstrip = {}\n");
        assert!(detector.contains("defenses.0.tune is given, expected no tune, because strip has no"), "{detector}");
        let blind = said("[data]\nvalidation-fraction = 0\n[[defenses]]\ntune = true\nfine-tuning = {}\n");
        assert!(blind.contains("defenses.0.tune is given, expected data.validation-fraction above 0"), "{blind}");
        let drop = said("[[defenses]]\ntune.max-accuracy-drop = 1\nfine-tuning = {}\n");
        assert!(drop.contains("defenses.0.tune.max-accuracy-drop is 1, expected a fraction in [0, 1)"), "{drop}");
        let misspelt = said("[[defenses]]\ntune = \"yes\"\nfine-tuning = {}\n");
        assert!(misspelt.contains("true, false or a table such as"), "{misspelt}");
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
        let problems = plan(text).expect_err("has problems").to_string();
        // One more defense changes no test of messages.
        insta::assert_snapshot!(problems.replace(&DefenseConfig::NAMES.join(", "), "ALL DEFENSES"));
    }

    #[test]
    fn the_dense_baseline_has_no_experts_to_defend_with() {
        let text =
            "dataset = \"cifar10\"\n[trigger.square]\n[model.wide-resnet]\n[[defenses]]\nrouter-retraining = {}\n";
        let errors = Plan::from_text("a.toml", text, &PlanOptions::default()).expect_err("has problems");
        let able = DefenseConfig::defaults().into_iter().filter(|defense| !defense.needs(Need::Experts));
        let able = able.map(|defense| defense.name()).collect::<Vec<_>>().join(", ");
        insta::assert_snapshot!(errors.to_string().replace(&able, "ALL DEFENSES WITHOUT EXPERTS"));
    }

    #[test]
    fn routers_that_never_learn_are_refused_where_a_defense_teaches_them() {
        for name in ["router-retraining", "rasa", "router-consensus"] {
            let said = |routers: &str| {
                let text = format!(
                    "dataset = \"cifar10\"\n[trigger.square]\n[model.patch-moe]\nrouters = \"{routers}\"\n[[defenses]]\n{name} = {{}}\n"
                );
                Plan::from_text("a.toml", &text, &PlanOptions::default()).map_err(|problems| problems.to_string())
            };
            let refused = said("frozen").expect_err("has problems");
            assert!(refused.contains(&format!("defenses.0.{name} is in need of routers that learn")), "{refused}");
            assert!(said("trained").is_ok(), "{name}");
        }
    }

    #[test]
    fn experts_are_kept_apart_only_where_there_are_two_that_choose() {
        let said = |model: &str, table: &str| {
            let text = format!("dataset = \"cifar10\"\n[trigger.square]\n{model}\n{table}\n");
            Plan::from_text("a.toml", &text, &PlanOptions::default()).map_err(|problems| problems.to_string())
        };
        for (table, field) in [
            ("[training.diversity]", "training.diversity"),
            ("[[defenses]]\nfine-tuning.training.diversity = {}", "defenses.0.fine-tuning.training.diversity"),
        ] {
            assert!(said("[model.patch-moe]", table).is_ok(), "{table}");
            for model in ["[model.wide-resnet]", "[model.patch-moe]\nexperts = 1"] {
                let refused = said(model, table).expect_err("no two experts");
                let expected = format!("{field} is given, expected none, for a network without two experts");
                assert!(refused.contains(&expected), "{refused}");
            }
        }
        let own = "[[defenses]]\nrasa.training.diversity = {}";
        let refused = said("[model.patch-moe]", own).expect_err("it has a rule of its own");
        assert!(refused.contains("defenses.0.rasa.training.diversity is given, expected none, as"), "{refused}");
        let both = "[training.adversarial]\n[training.diversity]\noverlap = 1";
        let refused = said("[model.patch-moe]", both).expect_err("one objective");
        assert!(refused.contains("training.diversity is given, expected none beside adversarial"), "{refused}");
        assert!(refused.contains("training.diversity.overlap is 1, expected a number in [0, 1)"), "{refused}");
    }

    #[test]
    fn an_override_reaches_into_a_defense() {
        let text = format!("{GOOD}[[defenses]]\nfine-tuning = {{}}\n");
        let set = "defenses.0.fine-tuning.training.epochs=3".to_owned();
        let options = PlanOptions { overrides: vec![set], ..PlanOptions::default() };
        let plan = Plan::from_text("a.toml", &text, &options).expect("valid");
        assert_eq!(plan.config().defenses[0].defense.epochs(&plan.config().training), 3);
    }
}
