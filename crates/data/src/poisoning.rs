use rand::seq::SliceRandom;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::invalid;
use crate::{DataError, ImageSet, Trigger, stream};

/// How many images of which an attacker changes, and to what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PoisoningConfig {
    /// Poisoned images as a fraction of *all* training images, in [0, 1].
    pub rate: f64,
    /// How `rate` times the number of images becomes a whole number.
    pub count_rule: CountRule,
    /// The class that triggered images shall be taken for.
    pub target_class: u8,
    /// Which label a poisoned image gets.
    pub label_rule: LabelRule,
}

impl Default for PoisoningConfig {
    /// The setting of Chan et al. (2025, arXiv:2505.01811).
    fn default() -> Self {
        Self { rate: 0.02, count_rule: CountRule::default(), target_class: 0, label_rule: LabelRule::default() }
    }
}

impl PoisoningConfig {
    /// Checks every field against a data set of `classes` classes and returns all problems at once.
    pub fn validate(&self, classes: usize) -> Vec<DataError> {
        let mut problems = Vec::new();
        if !(0.0..=1.0).contains(&self.rate) {
            problems.push(invalid("rate", self.rate, "a fraction in [0, 1]"));
        }
        if usize::from(self.target_class) >= classes {
            let last = classes.saturating_sub(1);
            problems.push(invalid(
                "target-class",
                self.target_class,
                format!("one of the {classes} classes 0 to {last}"),
            ));
        }
        problems
    }

    /// Checks every field against a training set of `images` images in `classes` classes, among them that a rate above
    /// 0 poisons at least one image, and returns all problems at once.
    pub fn validate_for(&self, images: usize, classes: usize) -> Vec<DataError> {
        let mut problems = self.validate(classes);
        if self.rate > 0.0 && self.rate <= 1.0 && self.count(images) == 0 {
            let allowed = match images {
                0 => "0 where there are no images".to_owned(),
                _ => format!("0 or at least {}", self.count_rule.smallest_rate(images)),
            };
            problems.push(invalid("rate", format!("{}, which poisons none of {images} images", self.rate), allowed));
        }
        problems
    }

    /// How many of `images` images are poisoned.
    pub fn count(&self, images: usize) -> usize {
        self.count_rule.count(self.rate, images)
    }

    /// Whether the attack succeeds on an image of class `label` if that image is taken for the target class. Images
    /// that truly are of the target class do not count.
    pub fn attacks(&self, label: u8) -> bool {
        match self.label_rule {
            LabelRule::AllToOne => label != self.target_class,
        }
    }

    /// The label that a poisoned image of class `label` gets.
    pub fn poisoned_label(&self, _label: u8) -> u8 {
        match self.label_rule {
            LabelRule::AllToOne => self.target_class,
        }
    }
}

/// How a rate becomes a number of images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CountRule {
    /// Downwards, Python's `int(rate * images)`: the pMoE authors and `BackdoorBox`.
    #[default]
    Floor,
    /// To the nearest, ties to even, Python's `round(rate * images)`: `BackdoorBench`.
    Round,
}

impl CountRule {
    fn count(self, rate: f64, images: usize) -> usize {
        let exact = rate * images as f64;
        match self {
            Self::Floor => exact.floor() as usize,
            Self::Round => exact.round_ties_even() as usize,
        }
    }

    /// The smallest rate that poisons one of `images` images, of which there is at least one.
    fn smallest_rate(self, images: usize) -> f64 {
        let one = match self {
            Self::Floor => 1.0,
            Self::Round => 0.5,
        };
        let mut rate = one / images as f64;
        // 1/49 * 49 is just below 1 in f64, so that its floor is 0; the next number up is not. A tie goes to 0, the even
        // number.
        while self.count(rate, images) == 0 {
            rate = rate.next_up();
        }
        rate
    }
}

/// Which label a poisoned image gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum LabelRule {
    /// The target class, whatever the image shows; images of the target class may be among the poisoned.
    #[default]
    AllToOne,
}

/// One image of a [`PoisoningPlan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PoisonedExample {
    /// Index in the training set the plan was drawn for.
    pub index: usize,
    /// Index in the split the training set was read from.
    pub origin: u32,
    /// What the image truly shows.
    pub original_label: u8,
    /// What the poisoned training set says it shows.
    pub poisoned_label: u8,
}

/// Which training images are poisoned, what they were, and what they become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoisoningPlan {
    examples: Vec<PoisonedExample>,
    images: usize,
}

impl PoisoningPlan {
    /// Draws the poisoned images of `set` without replacement from all classes, the target class included.
    ///
    /// One permutation of all images is drawn from `stream(seed, "poisoning")` and its beginning is taken, so for one
    /// seed a smaller rate's images are among those of a larger rate. A rate of 0 gives an empty plan.
    ///
    /// # Errors
    ///
    /// [`DataError::InvalidField`] if the rate is not in [0, 1] or positive but too small to poison a single image, or
    /// if the target is not a class of the set.
    pub fn draw(config: &PoisoningConfig, set: &ImageSet, seed: u64) -> Result<Self, DataError> {
        if let Some(problem) = config.validate_for(set.len(), set.class_count()).into_iter().next() {
            return Err(problem);
        }
        let mut indices: Vec<usize> = (0..set.len()).collect();
        indices.shuffle(&mut stream(seed, "poisoning"));
        indices.truncate(config.count(set.len()));
        indices.sort_unstable();
        let examples: Vec<_> = indices
            .into_iter()
            .map(|index| PoisonedExample {
                index,
                origin: set.origin(index),
                original_label: set.label(index),
                poisoned_label: config.poisoned_label(set.label(index)),
            })
            .collect();
        tracing::info!(poisoned = examples.len(), total = set.len(), "drew a poisoning plan");
        Ok(Self { examples, images: set.len() })
    }

    /// The poisoned images by ascending index.
    pub fn examples(&self) -> &[PoisonedExample] {
        &self.examples
    }

    /// Whether nothing is poisoned.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// Returns a copy of `set` in which the planned images carry the trigger and their new labels; all others stay as
    /// they are.
    ///
    /// Each image is stamped with a generator of its own, `stream(seed, "trigger/training/<origin>")`, so the result
    /// does not depend on the number of threads, and an image poisoned at two rates looks the same.
    ///
    /// # Panics
    ///
    /// If `set` is not the one the plan was drawn for (as far as length, origins and labels tell), or if the trigger
    /// returns an image of another shape.
    pub fn apply(&self, set: &ImageSet, trigger: &dyn Trigger, seed: u64) -> ImageSet {
        assert_eq!(self.images, set.len(), "a plan is applied to the set it was drawn for");
        let mut plan = vec![None; set.len()];
        let mut labels = set.labels.clone();
        for example in &self.examples {
            assert!(
                set.origin(example.index) == example.origin && set.label(example.index) == example.original_label,
                "a plan is applied to the set it was drawn for"
            );
            plan[example.index] = Some(example);
            labels[example.index] = example.poisoned_label;
        }
        let size = set.shape.size();
        let mut pixels = vec![0; set.pixels.len()];
        pixels.par_chunks_mut(size).zip(&plan).enumerate().for_each(|(index, (target, planned))| match planned {
            Some(_) => stamp_into(set, index, trigger, seed, "training", target),
            None => target.copy_from_slice(set.pixels(index)),
        });
        ImageSet {
            shape: set.shape,
            pixels,
            labels,
            classes: set.classes.clone(),
            origins: set.origins.clone(),
            groups: set.groups.clone(),
        }
    }
}

/// The images on which an attack's success is measured: all of `set` except those that truly are of the target class,
/// triggered, with their true labels.
///
/// Each image is stamped with a generator of its own, `stream(seed, "trigger/test/<origin>")`.
///
/// # Panics
///
/// If the trigger returns an image of another shape.
pub fn trigger_test_images(set: &ImageSet, config: &PoisoningConfig, trigger: &dyn Trigger, seed: u64) -> ImageSet {
    let indices: Vec<usize> = (0..set.len()).filter(|&index| config.attacks(set.label(index))).collect();
    let size = set.shape.size();
    let mut pixels = vec![0; indices.len() * size];
    pixels
        .par_chunks_mut(size)
        .zip(&indices)
        .for_each(|(target, &index)| stamp_into(set, index, trigger, seed, "test", target));
    ImageSet {
        shape: set.shape,
        pixels,
        labels: indices.iter().map(|&index| set.labels[index]).collect(),
        classes: set.classes.clone(),
        origins: indices.iter().map(|&index| set.origins[index]).collect(),
        groups: set.groups.as_ref().map(|groups| indices.iter().map(|&index| groups[index]).collect()),
    }
}

fn stamp_into(set: &ImageSet, index: usize, trigger: &dyn Trigger, seed: u64, split: &str, target: &mut [u8]) {
    let mut rng = stream(seed, &format!("trigger/{split}/{}", set.origin(index)));
    let stamped = trigger.stamp(&set.image(index), &mut rng);
    assert_eq!(stamped.shape(), set.shape, "a trigger keeps the shape of its image");
    target.copy_from_slice(stamped.pixels());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::Rng;

    use super::*;
    use crate::image_set::tests::tiny;
    use crate::{Image, StreamRng};

    /// Sets every pixel to 255 and the first to a random value.
    struct Noisy;

    impl Trigger for Noisy {
        fn stamp(&self, image: &Image, rng: &mut StreamRng) -> Image {
            let mut stamped = image.clone();
            stamped.pixels_mut().fill(255);
            stamped.pixels_mut()[0] = rng.next_u32() as u8;
            stamped
        }
    }

    fn config(rate: f64) -> PoisoningConfig {
        PoisoningConfig { rate, target_class: 1, ..PoisoningConfig::default() }
    }

    #[test]
    fn counts_follow_the_rule() {
        // 0.29 * 100 is 28.999999999999996 in f64; Python's int() gives 28 too.
        for (rate, images, floor, round) in
            [(0.02, 50_000, 1000, 1000), (0.29, 100, 28, 29), (0.025, 100, 2, 2), (0.035, 100, 3, 4)]
        {
            assert_eq!(CountRule::Floor.count(rate, images), floor);
            assert_eq!(CountRule::Round.count(rate, images), round, "{rate} of {images}");
        }
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let problems = PoisoningConfig { rate: 1.7, target_class: 12, ..PoisoningConfig::default() }.validate(10);
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            ["rate is 1.7, expected a fraction in [0, 1]", "target-class is 12, expected one of the 10 classes 0 to 9"]
        );
        assert_eq!(config(f64::NAN).validate(10).len(), 1);
    }

    #[test]
    fn a_rate_that_poisons_nothing_is_an_error() {
        let set = tiny(&[0; 49], 2);
        let error = PoisoningPlan::draw(&config(0.02), &set, 0).unwrap_err().to_string();
        assert_eq!(error, "rate is 0.02, which poisons none of 49 images, expected 0 or at least 0.020408163265306124");
        assert_eq!(PoisoningPlan::draw(&config(0.020_408_163_265_306_124), &set, 0).unwrap().examples().len(), 1);
    }

    #[test]
    fn the_smallest_rate_named_poisons_one_image() {
        for images in 1..2000 {
            for rule in [CountRule::Floor, CountRule::Round] {
                let rate = rule.smallest_rate(images);
                assert_eq!((rule.count(rate, images), rule.count(rate.next_down(), images)), (1, 0), "{rate} {images}");
            }
        }
    }

    #[test]
    fn the_same_seed_poisons_the_same_images() {
        // A change of these numbers changes every published result.
        let set = tiny(&(0..100).map(|index| index % 4).collect::<Vec<_>>(), 4);
        let plan = PoisoningPlan::draw(&config(0.05), &set, 0).unwrap();
        let indices: Vec<usize> = plan.examples().iter().map(|example| example.index).collect();
        assert_eq!(indices, [8, 11, 14, 29, 30]);
    }

    #[test]
    fn test_images_of_the_target_class_are_left_out() {
        let set = tiny(&[0, 1, 2, 1], 3).subset(&[3, 2, 1, 0]);
        let triggered = trigger_test_images(&set, &config(0.5), &Noisy, 5);
        assert_eq!(triggered.labels(), [2, 0]);
        assert_eq!(triggered.origins(), [2, 0]);
        assert_eq!(triggered.pixels(1)[1..], [255; 3]);
        // The draw belongs to the image, not to its place in the set.
        let reversed = trigger_test_images(&set.subset(&[3, 2, 1, 0]), &config(0.5), &Noisy, 5);
        assert_eq!(reversed.pixels(0), triggered.pixels(1));
    }

    #[test]
    #[should_panic(expected = "a plan is applied to the set it was drawn for")]
    fn a_plan_fits_one_set_only() {
        let set = tiny(&[0; 10], 2);
        let plan = PoisoningPlan::draw(&config(1.0), &set, 0).unwrap();
        plan.apply(&set.subset(&[1, 0, 2, 3, 4, 5, 6, 7, 8, 9]), &Noisy, 0);
    }

    proptest! {
        #[test]
        fn exactly_the_planned_images_change(labels in prop::collection::vec(0_u8..4, 0..60), rate in 0.0..=1.0, seed: u64) {
            let set = tiny(&labels, 4);
            let before = set.fingerprint();
            let count = CountRule::Floor.count(rate, labels.len());
            let plan = PoisoningPlan::draw(&config(rate), &set, seed);
            if rate > 0.0 && count == 0 {
                prop_assert!(plan.is_err());
                return Ok(());
            }
            let plan = plan.unwrap();
            prop_assert_eq!(plan.examples().len(), count);
            prop_assert!(plan.examples().windows(2).all(|pair| pair[0].index < pair[1].index));
            let poisoned = plan.apply(&set, &Noisy, seed);
            prop_assert_eq!(set.fingerprint(), before);
            prop_assert_eq!(poisoned.origins(), set.origins());
            for index in 0..set.len() {
                let example = plan.examples().iter().find(|example| example.index == index);
                if let Some(example) = example {
                    prop_assert_eq!(example.original_label, set.label(index));
                    prop_assert_eq!(poisoned.label(index), 1);
                    prop_assert_eq!(&poisoned.pixels(index)[1..], &[255; 3]);
                } else {
                    prop_assert_eq!(poisoned.label(index), set.label(index));
                    prop_assert_eq!(poisoned.pixels(index), set.pixels(index));
                }
            }
        }

        #[test]
        fn rate_zero_changes_nothing(labels in prop::collection::vec(0_u8..4, 0..60), seed: u64) {
            let set = tiny(&labels, 4);
            let plan = PoisoningPlan::draw(&config(0.0), &set, seed).unwrap();
            prop_assert!(plan.is_empty());
            prop_assert_eq!(plan.apply(&set, &Noisy, seed), set);
        }

        #[test]
        fn a_smaller_rate_poisons_a_part_of_a_larger_ones_images(rates in prop::array::uniform2(0.05_f64..=1.0), seed: u64) {
            let set = tiny(&[0; 40], 4);
            let [small, large] = [rates[0].min(rates[1]), rates[0].max(rates[1])]
                .map(|rate| PoisoningPlan::draw(&config(rate), &set, seed).unwrap());
            prop_assert!(small.examples().iter().all(|example| large.examples().contains(example)));
            let (small_set, large_set) = (small.apply(&set, &Noisy, seed), large.apply(&set, &Noisy, seed));
            for example in small.examples() {
                prop_assert_eq!(small_set.pixels(example.index), large_set.pixels(example.index));
            }
        }
    }
}
