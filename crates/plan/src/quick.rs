use crate::classes::most_for_classes;
use crate::config::ExperimentConfig;
use crate::counts::split_of;
use crate::facts::DatasetFacts;

/// Shrinks an experiment to seconds, keeping every code path it takes.
///
/// Quick means "at most": of a data set that has fewer images than these, as far as `facts` tell, all are used.
pub(crate) fn make_quick(config: &mut ExperimentConfig, facts: &DatasetFacts) {
    config.seeds.truncate(1);
    let there = facts.training_images.map(|images| split_of(images, config.data.validation_fraction).1);
    let least = |numbers: [Option<usize>; 3]| numbers.into_iter().flatten().min().unwrap_or(usize::MAX);
    let training = least([config.data.training_images, there, Some(400)]);
    config.data.training_images = Some(training);
    config.data.test_images = Some(least([config.data.test_images, facts.test_images, Some(200)]));
    if config.poisoning.rate > 0.0 && config.poisoning.count(training) == 0 {
        config.poisoning.rate = 1.5 / training as f64;
    }
    if let Some(rate) = most_for_classes(config, facts) {
        config.poisoning.rate = config.poisoning.rate.min(rate);
    }
    if let Some(evasion) = &mut config.evasion {
        evasion.make_quick();
    }
    if let Some(certification) = &mut config.certification {
        certification.make_quick();
    }
    config.training.epochs = config.training.epochs.min(2);
    config.training.batch_size = config.training.batch_size.min(64);
    config.defenses.iter_mut().for_each(|defender| defender.make_quick(training));
    if let Some(crafted) = &mut config.crafted {
        crafted.kind_mut().make_quick();
    }
    config.model.network_mut().make_quick();
    if let Some(controlled) = &mut config.controlled {
        controlled.kind_mut().make_quick();
    }
}
