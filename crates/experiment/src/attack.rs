use std::collections::BTreeSet;
use std::path::Path;

use patchdoor_data::{
    Image, ImageSet, PoisoningConfig, PoisoningPlan, StreamRng, Trigger, give_pictures, trigger_all_images,
};
use patchdoor_metrics::{AttackOutcome, ClassAccuracy, accuracy_per_class};
use patchdoor_plan::ExperimentConfig;
use patchdoor_record::{ClassMeasurements, ImagesUsed, write_sealed};
use patchdoor_triggers::PlacementConfig;
use serde::Serialize;

use crate::error::RunError;
use crate::halt::Step;

/// What the attacker does in one seed: his trigger, and the images he poisons with it.
pub(crate) struct Attack<'a> {
    pub(crate) config: &'a PoisoningConfig,
    pub(crate) trigger: Box<dyn Trigger>,
    pub(crate) poisoning: PoisoningPlan,
    seed: u64,
}

impl<'a> Attack<'a> {
    /// Builds the trigger in the cells of the placement, unless it is made already, and draws the images to poison, by margins
    /// where these are given.
    pub(crate) fn prepare(
        config: &'a ExperimentConfig,
        placement: Option<&PlacementConfig>,
        crafted: Option<Box<dyn Trigger>>,
        training: &ImageSet,
        margins: Option<&[f64]>,
        seed: u64,
    ) -> Step<Self> {
        let trigger = match crafted {
            Some(trigger) => trigger,
            None => build_trigger(config, placement, training, seed)?,
        };
        let (rule, added) = (&config.poisoning, trigger.as_ref());
        let poisoning = match margins {
            Some(margins) => PoisoningPlan::draw_by_margin(rule, training, added, margins, seed)?,
            None => PoisoningPlan::draw_for(rule, training, added, seed)?,
        };
        Ok(Self { config: &config.poisoning, trigger, poisoning, seed })
    }

    /// Takes over the trigger that was made in the training, if one was.
    pub(crate) fn take_made(&mut self, made: Option<Box<dyn Trigger>>) {
        if let Some(trigger) = made {
            self.trigger = trigger;
        }
    }

    /// The training images with the chosen ones poisoned.
    pub(crate) fn poison(&self, training: &ImageSet) -> ImageSet {
        self.poisoning.apply(training, self.trigger.as_ref(), self.seed)
    }

    /// All of these images with the trigger, under their true labels.
    pub(crate) fn trigger_all(&self, images: &ImageSet) -> ImageSet {
        trigger_all_images(images, self.trigger.as_ref(), self.seed)
    }

    /// Whether the attack on an image of that true class succeeds with that prediction; `None` if it is not attacked.
    pub(crate) fn succeeds(&self, predicted: u8, label: u8, classes: usize) -> Option<bool> {
        self.config.attacks(label).then(|| predicted == self.config.attack_target(label, classes))
    }

    /// The classes that the attacker wants images to be taken for, in rising order.
    pub(crate) fn targets(&self, classes: usize) -> Vec<usize> {
        let labels = (0..classes).filter_map(|label| u8::try_from(label).ok());
        let attacked = labels.filter(|&label| self.config.attacks(label));
        let targets = attacked.map(|label| usize::from(self.config.attack_target(label, classes)));
        targets.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// What the attack came to on triggered images, by its own label rule.
    pub(crate) fn outcome(&self, predicted: &[u8], labels: &[u8], classes: usize) -> AttackOutcome {
        let rule = |label| (self.config.attack_target(label, classes), self.config.attacks(label));
        AttackOutcome::by_rule(predicted, labels, rule)
    }

    /// The same and the clean accuracy for each class; `clean` and `triggered` are predictions for the same images.
    pub(crate) fn of_classes(&self, test: &ImageSet, clean: &[u8], triggered: &[u8]) -> Vec<ClassMeasurements> {
        let names = test.classes();
        let of_class = |counts: ClassAccuracy| {
            let pairs = triggered.iter().zip(test.labels()).filter(|(_, label)| **label == counts.class);
            let (predicted, labels): (Vec<u8>, Vec<u8>) = pairs.unzip();
            let attack = self.outcome(&predicted, &labels, names.len());
            ClassMeasurements {
                class: names[usize::from(counts.class)].clone(),
                images: counts.images,
                clean_accuracy: counts.accuracy(),
                asr: attack.attack_success_rate(),
                robust_accuracy: attack.robust_accuracy(),
            }
        };
        accuracy_per_class(clean, test.labels(), names.len()).into_iter().map(of_class).collect()
    }

    /// Of triggered images of classes that the trigger shall do nothing to, the share that is taken for the target.
    pub(crate) fn false_positive_rate(&self, predicted: &[u8], labels: &[u8], classes: usize) -> Option<f64> {
        let rule = |label| (self.config.attack_target(label, classes), self.config.spares(label));
        AttackOutcome::by_rule(predicted, labels, rule).attack_success_rate()
    }

    /// Writes down which images are poisoned; `poisoned-indices.csv`.
    pub(crate) fn write_poisoned(&self, path: &Path, used: &ImagesUsed) -> Step<()> {
        let dataset = match &used.substitution {
            Some(substitution) => format!("{} ({substitution})", used.dataset),
            None => used.dataset.clone(),
        };
        let mut table = csv::Writer::from_writer(Vec::new());
        for example in self.poisoning.examples() {
            table.serialize(PoisonedLine {
                index: example.index,
                origin: example.origin,
                original_label: example.original_label,
                poisoned_label: example.poisoned_label,
                role: "poisoned",
                dataset: &dataset,
            })?;
        }
        for cover in self.poisoning.covers() {
            table.serialize(PoisonedLine {
                index: cover.index,
                origin: cover.origin,
                original_label: cover.label,
                poisoned_label: cover.label,
                role: "cover",
                dataset: &dataset,
            })?;
        }
        let bytes = table.into_inner().map_err(csv::IntoInnerError::into_error)?;
        Ok(write_sealed(path, &bytes)?)
    }
}

/// One line of `poisoned-indices.csv`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct PoisonedLine<'a> {
    /// Index among the images trained on.
    index: usize,
    /// Index in the data set's training split.
    origin: u32,
    original_label: u8,
    poisoned_label: u8,
    /// `poisoned`, or `cover` for an image that is changed but keeps its label.
    role: &'static str,
    dataset: &'a str,
}

/// A trigger that is yet to be made in the training: images stay as they are.
struct Unmade;

impl Trigger for Unmade {
    fn stamp(&self, image: &Image, _rng: &mut StreamRng) -> Image {
        image.clone()
    }
}

/// The trigger of a seed, in the cells of a placement that waits for no surrogate, with the pictures that it is made with.
///
/// # Errors
/// If it is made with a model.
pub(crate) fn build_trigger(
    config: &ExperimentConfig,
    placement: Option<&PlacementConfig>,
    training: &ImageSet,
    seed: u64,
) -> Result<Box<dyn Trigger>, RunError> {
    let shape = training.shape();
    let Some(ordinary) = config.trigger() else {
        let made = config.crafted.is_none();
        return if made { Ok(Box::new(Unmade)) } else { Err(RunError::NeedsModel { name: config.attack_name() }) };
    };
    let mut trigger = match placement {
        Some(placement) => ordinary.build_placed(shape, placement, seed)?,
        None => ordinary.build_seeded(shape, seed)?,
    };
    give_pictures(trigger.as_mut(), &config.poisoning, training, seed)?;
    Ok(trigger)
}
