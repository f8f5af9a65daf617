use patchdoor_data::{DataError, DatasetConfig};
use patchdoor_model::ModelError;
use patchdoor_train::{TrainError, input_shape};

use crate::classes::check_classes;
use crate::config::ExperimentConfig;
use crate::controlled_checks::check_controlled;
use crate::counts::{counts, split_of};
use crate::defense_checks::check_defenses;
use crate::evasion::EvasionConfig;
use crate::facts::{DatasetFacts, choice_name};
use crate::problem::Problem;
use crate::training_checks::check_diversity;
use crate::trigger_checks::{check_surrogate, check_trigger};

/// Every value of the configuration that cannot be, as far as the images are known.
pub(crate) fn check(config: &ExperimentConfig, facts: Option<&DatasetFacts>) -> Vec<Problem> {
    let mut problems = check_own_fields(config);
    problems.extend(config.curves.check());
    problems.extend(config.evasion.iter().flat_map(EvasionConfig::check));
    let input = facts.map(|facts| input_shape(facts.shape));
    problems.extend(config.routing.iter().flat_map(|routing| routing.check(&config.model, input)));
    problems.extend(config.certification.iter().flat_map(|certification| certification.check(&config.model, input)));
    problems.extend(config.victim.check(&config.model, config.clean_twin));
    problems.extend(match facts {
        Some(facts) => check_fit(config, facts),
        None => from_data("poisoning", config.poisoning.validate(MOST_CLASSES)).collect(),
    });
    if problems.is_empty()
        && let Some(facts) = facts
    {
        problems.extend(from_data("poisoning", check_classes(config, facts).into_iter().collect()));
    }
    problems.extend(check_defenses(config, facts.map(|facts| counts(config, facts))));
    for error in config.training.validate() {
        if let TrainError::InvalidField { field, found, allowed } = error {
            problems.push(Problem { field: format!("training.{field}"), found, allowed });
        }
    }
    problems.extend(check_diversity("training", &config.training, config.model.network()));
    problems
}

/// Labels are bytes.
const MOST_CLASSES: usize = 256;

/// Checks the fields of this crate that can be checked without knowing the images.
fn check_own_fields(config: &ExperimentConfig) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut expect = |holds: bool, field: &str, found: String, allowed: String| {
        if !holds {
            problems.push(Problem { field: field.into(), found, allowed });
        }
    };
    let seeds = &config.seeds;
    let mut distinct = seeds.clone();
    distinct.sort_unstable();
    distinct.dedup();
    expect(
        !seeds.is_empty() && distinct.len() == seeds.len(),
        "seeds",
        format!("{seeds:?}"),
        "at least one seed, none of them twice".into(),
    );
    let data = &config.data;
    let fraction = data.validation_fraction;
    expect(
        (0.0..=0.5).contains(&fraction),
        "data.validation-fraction",
        fraction.to_string(),
        "a fraction in [0, 0.5]".into(),
    );
    for (field, count) in [("data.training-images", data.training_images), ("data.test-images", data.test_images)] {
        expect(count != Some(0), field, "0".into(), "1 or more".into());
    }
    for (name, value) in config.expected.unwrap_or_default().numbers() {
        let lowest = if name == "clean-accuracy-drop" { -1.0 } else { 0.0 };
        let allowed = format!("a share in [{lowest}, 1]");
        expect((lowest..=1.0).contains(&value), &format!("expected.{name}"), value.to_string(), allowed);
    }
    problems
}

/// Checks that everything fits the images.
fn check_fit(config: &ExperimentConfig, facts: &DatasetFacts) -> Vec<Problem> {
    let mut problems = Vec::new();
    let data = &config.data;
    if let Some((wanted, there)) = data.test_images.zip(facts.test_images)
        && wanted > there
    {
        let allowed = format!("at most {there}, the images of the test split");
        problems.push(Problem { field: "data.test-images".into(), found: wanted.to_string(), allowed });
    }
    let fraction_holds = (0.0..=0.5).contains(&data.validation_fraction);
    if let Some((wanted, there)) = data.training_images.zip(facts.training_images)
        && fraction_holds
    {
        let (held_out, most) = split_of(there, data.validation_fraction);
        let allowed = match held_out {
            0 => format!("at most {most}, the images of the training split"),
            _ => format!("at most {most}, what {held_out} validation images leave of {there}"),
        };
        if wanted > most {
            problems.push(Problem { field: "data.training-images".into(), found: wanted.to_string(), allowed });
        }
    }
    problems.extend(check_other_images(config, facts));
    let classes = facts.classes.unwrap_or(MOST_CLASSES);
    let poisoning = match counts(config, facts).training {
        Some(images) if images > 0 && fraction_holds => config.poisoning.validate_for(images, classes),
        _ => config.poisoning.validate(classes),
    };
    problems.extend(from_data("poisoning", poisoning));
    let dataset = match config.dataset {
        DatasetConfig::Shapes(_) | DatasetConfig::Folder(_) => format!("dataset.{}", config.dataset.name()),
        _ => "dataset".into(),
    };
    problems.extend(from_data(&dataset, config.dataset.validate()));
    problems.extend(from_data("data.augmentation", data.augmentation.validate(facts.shape)));

    let input = input_shape(facts.shape);
    let table = format!("model.{}", choice_name(&config.model));
    problems.extend(config.model.validate(input, classes).into_iter().map(|error| match error {
        // The images are the data set's; nothing in the model's table can mend them.
        ModelError::InvalidField { field: "input" | "classes", found, allowed } => {
            Problem { field: "dataset".into(), found: format!("{}, with {found}", config.dataset.name()), allowed }
        }
        ModelError::InvalidField { field, found, allowed } => {
            Problem { field: format!("{table}.{field}"), found, allowed }
        }
        other => Problem { field: table.clone(), found: other.to_string(), allowed: "a valid model".into() },
    }));
    problems.extend(check_trigger(config, facts.shape, classes));
    problems.extend(check_surrogate(config, input, classes));
    problems.extend(check_controlled(config, facts.shape));
    problems
}

/// A surrogate that shares no image with its victim needs as many images as that leaves.
fn check_other_images(config: &ExperimentConfig, facts: &DatasetFacts) -> Option<Problem> {
    let (surrogate, _) = config.surrogate_in_use()?;
    if surrogate.images.is_all() {
        return None;
    }
    let wanted = config.data.training_images;
    let most = facts.training_images.map(|there| {
        // Of what the victim leaves, the surrogate holds out its share too: v <= (there - v) (1 - f).
        let kept = 1.0 - config.data.validation_fraction.clamp(0.0, 0.5);
        (there as f64 * kept / (1.0 + kept)).floor() as usize
    });
    if wanted.is_some_and(|wanted| most.is_none_or(|most| wanted <= most)) {
        return None;
    }
    let allowed = most.map_or("about half of the images".to_owned(), |most| format!("at most {most}"));
    Some(Problem {
        field: "data.training-images".into(),
        found: wanted.map_or("not given".into(), |wanted| wanted.to_string()),
        allowed: format!("{allowed}, so that the surrogate has as many others (surrogate.images = \"others\")"),
    })
}

/// The problems a table of the data crate finds with itself, with the table's path in front.
fn from_data(table: &str, errors: Vec<DataError>) -> impl Iterator<Item = Problem> {
    errors.into_iter().map(move |error| match error {
        DataError::InvalidField { field, found, allowed } => {
            Problem { field: format!("{table}.{field}"), found, allowed }
        }
        other => Problem { field: table.to_owned(), found: other.to_string(), allowed: "a valid table".into() },
    })
}
