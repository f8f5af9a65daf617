use patchdoor_data::{DataError, ImageSet, ImageShape, split, stratified_subset, stream};

use crate::config::ExperimentConfig;
use crate::counts::{counts, split_of, split_sizes};
use crate::facts::DatasetFacts;

/// Images that belong together at most: the frames of one GTSRB track.
const LARGEST_GROUP: f64 = 30.0;

/// What the images of single classes do not give: more poisoned or cover images than the classes have that a rule takes
/// them from, or more of both than there are; for any seed of the experiment.
///
/// Where images belong together, only what no seed can give is a problem: the rest shows in the images themselves.
pub(crate) fn check_classes(config: &ExperimentConfig, facts: &DatasetFacts) -> Option<DataError> {
    let poisoning = &config.poisoning;
    let counts = counts(config, facts);
    if let Some((training, poisoned)) = counts.training.zip(counts.poisoned)
        && let Some(problem) = poisoning.validate_covers(training, poisoned, config.covers_per_poisoned_image())
    {
        return Some(problem);
    }
    let [train, _] = facts.class_counts.as_ref()?;
    let training = counts.training?;
    let of_seeds =
        || config.seeds.iter().find_map(|&seed| poisoning.validate_among(&class_counts_of_seed(config, train, seed)));
    if poisoning.counts_in_classes() {
        // Of groups, the images themselves tell.
        return if facts.has_groups { None } else { of_seeds() };
    }
    let class = usize::from(poisoning.poisoned_class()?);
    let (fewest, most) = class_bounds(config, facts, class)?;
    // The rest is of other classes.
    let with = |images: usize| {
        let mut classes = vec![0; train.len().max(2)];
        classes[usize::from(class == 0)] = training.saturating_sub(images);
        classes[class] = images;
        poisoning.validate_among(&classes)
    };
    with(fewest)?;
    if facts.has_groups {
        return with(most);
    }
    of_seeds()
}

/// The largest rate that the images of the one class that is poisoned surely give; `None` if the rule restricts nothing,
/// or nothing is known.
pub(crate) fn most_for_classes(config: &ExperimentConfig, facts: &DatasetFacts) -> Option<f64> {
    let class = usize::from(config.poisoning.poisoned_class()?);
    let training = counts(config, facts).training.filter(|training| *training > 0)?;
    let (fewest, _) = class_bounds(config, facts, class)?;
    // Of one class that is rated by itself, all may be poisoned.
    let is_of_all = counts(config, facts).poisoned.is_some();
    is_of_all.then(|| fewest.max(1) as f64 / training as f64)
}

/// The fewest and the most images of a class that any seed trains on.
///
/// A class keeps what is not held out, rounded either way, and gives to a smaller training set its share: within half an
/// image of the same part of every class, and the sum of those halves moves that part.
fn class_bounds(config: &ExperimentConfig, facts: &DatasetFacts, class: usize) -> Option<(usize, usize)> {
    let [train, _] = facts.class_counts.as_ref()?;
    let images = *train.get(class)?;
    let fraction = config.data.validation_fraction;
    let (held_out, kept) = split_of(train.iter().sum(), fraction);
    let own = fraction * images as f64;
    let slack = if facts.has_groups && held_out > 0 { LARGEST_GROUP } else { 0.0 };
    let (least, most) = if held_out == 0 {
        (images as f64, images as f64)
    } else {
        let least = (images as f64 - own.floor() - 1.0 - slack).max(0.0);
        (least, (images as f64 - own.floor() + slack).min(images as f64))
    };
    let Some(wanted) = config.data.training_images else { return Some((least as usize, most as usize)) };
    let part = wanted as f64 / kept.max(1) as f64;
    let margin = 1.0 + 0.5 * train.len() as f64 * most / kept.max(1) as f64;
    let (least, most) = ((least * part - margin).max(0.0), (most * part + margin).min(most));
    Some((least.floor() as usize, most.ceil() as usize))
}

/// How many images of each class a seed trains on, where no images belong together: the draws are those of the seed, and
/// what they give of a class depends on the sizes of the classes alone.
fn class_counts_of_seed(config: &ExperimentConfig, train: &[usize], seed: u64) -> Vec<usize> {
    let set = without_pixels(train);
    let (training, _) = split::for_seed(&set, config.data.validation_fraction, split_sizes(&config.data), seed);
    set.subset(&training).class_counts()
}

/// Images of each class that are tested on.
fn test_counts(config: &ExperimentConfig, test: &[usize]) -> Vec<usize> {
    let Some(count) = config.data.test_images else { return test.to_vec() };
    let set = without_pixels(test);
    set.subset(&stratified_subset(&set, count, &mut stream(0, "test-images"))).class_counts()
}

/// Images of one black pixel, so many of each class.
fn without_pixels(counts: &[usize]) -> ImageSet {
    let labels = counts.iter().enumerate().flat_map(|(class, &count)| std::iter::repeat_n(class as u8, count));
    let labels = labels.collect::<Vec<_>>();
    let names = (0..counts.len()).map(|class| class.to_string()).collect::<Vec<_>>();
    let shape = ImageShape { height: 1, width: 1, channels: 1 };
    ImageSet::new(shape, vec![0; labels.len()], labels, names).expect("every label has a class and a pixel")
}

/// What a reader of the results must know about the classes, before anything is trained: a line each.
pub(crate) fn class_notes(config: &ExperimentConfig, facts: &DatasetFacts) -> Vec<String> {
    let Some([_, test]) = &facts.class_counts else { return Vec::new() };
    let counts = test_counts(config, test);
    let images: usize = counts.iter().sum();
    let attacked: usize =
        counts.iter().enumerate().filter(|(class, _)| config.poisoning.attacks(*class as u8)).map(|(_, n)| n).sum();
    if images == 0 || attacked > 0 {
        return Vec::new();
    }
    let whom = match config.poisoning.poisoned_class() {
        Some(class) if class != config.poisoning.target_class => {
            format!("none of {images} is of the source class {}", facts.class_in_words(class))
        }
        _ => format!("all {images} are of the target class {}", facts.class_in_words(config.poisoning.target_class)),
    };
    vec![format!("no test image can show the attack: {whom}, so there is no attack success rate")]
}

#[cfg(test)]
mod tests {
    use patchdoor_data::{Dataset, DatasetConfig, ShapesConfig, load};
    use proptest::prelude::*;

    use super::*;
    use crate::{Plan, PlanOptions};

    fn config(train: usize, more: &str) -> ExperimentConfig {
        let text = format!(
            "dataset.shapes = {{ train = {train}, test = 20 }}\nseeds = [0, 1, 2]\n[trigger.sig]\n[model.patch-moe]\n\
             [data]\n{more}"
        );
        toml::from_str(&text).unwrap_or_else(|error| panic!("{error}"))
    }

    fn shapes(train: usize) -> Dataset {
        load(&DatasetConfig::Shapes(ShapesConfig { train, test: 20, seed: 0 }), &[]).unwrap()
    }

    #[test]
    fn what_classes_cannot_give_is_refused_before_the_run() {
        let said = |poisoning: &str, trigger: &str| {
            let text =
                format!("dataset = \"cifar10\"\n[poisoning]\n{poisoning}\n[trigger.{trigger}]\n[model.patch-moe]\n");
            Plan::from_text("a.toml", &text, &PlanOptions::default())
                .err()
                .map_or_else(String::new, |error| error.to_string())
        };
        let covers = |rate: f64| {
            format!("label-rule.source-specific = {{ source-class = 1, cover-classes = [5], cover-rate = {rate} }}")
        };
        assert_eq!(said(&covers(0.05), "square"), "");
        // A class is a tenth of the images.
        let error = said(&covers(0.2), "square");
        assert!(error.contains("poisoning.label-rule.source-specific.cover-rate is 0.2, which takes"), "{error}");
        let error = said(&covers(0.05), "wanet");
        assert!(error.contains("cover-classes is given with a trigger that has cover images of its own"), "{error}");
        assert_eq!(said("rate = 0.05\nselection.by-class = { shares = [0, 1] }", "square"), "");
        let error = said("rate = 0.2\nselection.by-class = { shares = [0, 1] }", "square");
        assert!(error.contains("poisoning.selection.by-class.shares is a list by which"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn the_images_of_a_class_are_known_before_they_are_drawn(
            sizes in prop::collection::vec(0_usize..60, 2..8),
            fraction in 0.0..0.5_f64,
            part in prop::option::of(0.01..1.0_f64),
            seed in any::<u64>(),
        ) {
            let all: usize = sizes.iter().sum();
            let kept = split_of(all, fraction).1;
            prop_assume!(kept > 0);
            let mut config = config(100, "");
            config.data.validation_fraction = fraction;
            config.data.training_images = part.map(|part| ((kept as f64 * part) as usize).max(1));
            let counts = [sizes.clone().into(), sizes.clone().into()];
            let facts = DatasetFacts {
                class_counts: Some(counts),
                training_images: Some(all),
                ..DatasetFacts::published(&config.dataset)
            };
            // The same images in another order give as many of each class.
            let set = without_pixels(&sizes);
            let mut order: Vec<usize> = (0..all).collect();
            order.sort_by_key(|index| (index * 7919) % all.max(1));
            let (training, _) = split::for_seed(&set.subset(&order), fraction, split_sizes(&config.data), seed);
            let drawn = set.subset(&order).subset(&training).class_counts();
            prop_assert_eq!(&drawn, &class_counts_of_seed(&config, &sizes, seed));
            for (class, &images) in drawn.iter().enumerate() {
                let (fewest, most) = class_bounds(&config, &facts, class).unwrap();
                prop_assert!((fewest..=most).contains(&images), "{} not in {}..={}", images, fewest, most);
            }
        }
    }

    #[test]
    fn a_rate_is_refused_for_exactly_the_seeds_that_cannot_be_poisoned() {
        let images = shapes(256);
        for rate in [0.05, 0.098, 0.1, 0.102, 0.11, 0.2] {
            let mut config = config(256, "");
            config.poisoning.rate = rate;
            config.poisoning.label_rule = patchdoor_data::LabelRule::CleanLabel(patchdoor_data::CleanLabel::default());
            let facts = DatasetFacts::published(&config.dataset);
            assert_eq!(
                facts,
                DatasetFacts {
                    class_names: facts.class_names.clone(),
                    ..DatasetFacts::of(&images.train, &images.test)
                }
            );
            let drawn = config.seeds.iter().any(|&seed| {
                let (training, _) = split::for_seed(&images.train, 0.1, None, seed);
                patchdoor_data::PoisoningPlan::draw(&config.poisoning, &images.train.subset(&training), seed).is_err()
            });
            assert_eq!(check_classes(&config, &facts).is_some(), drawn, "{rate}");
        }
    }

    #[test]
    fn classes_of_published_sets_are_checked_with_their_place_before_images_are_read() {
        let text = "dataset = \"gtsrb\"\n[data]\ntraining-images = 1000\n[poisoning]\nrate = 0.1\n\
                    label-rule.clean-label = {}\n[trigger.sig]\n[model.patch-moe]\n";
        let options = PlanOptions::default();
        let said = Plan::from_text("a.toml", text, &options).unwrap_err().to_string();
        assert!(
            said.contains("poisoning.rate is 0.1, which poisons 100 images") && said.contains("a.toml:5:8"),
            "{said}"
        );
        Plan::from_text("a.toml", &text.replace("0.1", "0.002"), &options).unwrap();
        let covers = "dataset = \"cifar10\"\n[poisoning]\nrate = 0.5\n[trigger.wanet]\n[model.patch-moe]\n";
        let said = Plan::from_text("a.toml", covers, &options).unwrap_err().to_string();
        assert!(said.contains("22500 poisoned and 45000 cover images") && said.contains("a.toml:3:8"), "{said}");
        let source = "dataset = \"mnist\"\n[poisoning]\nrate = 0.2\ntarget-class = 1\n\
                      label-rule.source-specific = { source-class = 5 }\n[trigger.square]\n[model.patch-moe]\n\
                      patch-size = 7\npatches-per-expert = 1\n";
        let said = Plan::from_text("a.toml", source, &options).unwrap_err().to_string();
        assert!(said.contains("images of class 5"), "{said}");
    }

    #[test]
    fn a_quick_version_poisons_no_more_than_its_classes_give() {
        let text = "dataset = \"gtsrb\"\n[poisoning]\nrate = 0.004\nlabel-rule.clean-label = {}\n[trigger.sig]\n\
                    [model.patch-moe]\n";
        let options = PlanOptions { quick: true, ..PlanOptions::default() };
        let plan = Plan::from_text("a.toml", text, &options).unwrap_or_else(|errors| panic!("{errors}"));
        plan.check_against(&DatasetFacts::published(&plan.config().dataset)).unwrap();
        assert!(plan.config().poisoning.count(400) >= 1);
    }

    #[test]
    fn test_images_of_the_target_class_alone_are_noted() {
        let mut config = config(100, "");
        let counts = |test: [usize; 3]| [vec![10, 10, 10].into(), test.to_vec().into()];
        let names: Vec<String> = ["ant", "bee", "cat"].map(str::to_owned).to_vec();
        let facts = |test| DatasetFacts {
            class_counts: Some(counts(test)),
            class_names: Some(names.clone().into()),
            ..DatasetFacts::published(&config.dataset)
        };
        config.poisoning.target_class = 1;
        assert_eq!(
            class_notes(&config, &facts([0, 20, 0])),
            [
                "no test image can show the attack: all 20 are of the target class 1 (bee), so there is no attack success rate"
            ]
        );
        assert!(class_notes(&config, &facts([1, 20, 0])).is_empty());
        config.data.test_images = Some(3);
        assert_eq!(class_notes(&config, &facts([1, 200, 0])).len(), 1, "the one other image is not drawn");
        config.poisoning.label_rule = patchdoor_data::LabelRule::SourceSpecific(patchdoor_data::SourceSpecific::of(2));
        assert!(class_notes(&config, &facts([5, 5, 0]))[0].contains("none of 3 is of the source class 2 (cat)"));
    }
}
