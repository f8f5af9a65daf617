use rand::seq::SliceRandom;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::invalid;
use crate::{DataError, ImageSet, Selection, Trigger, stream};

/// How many images of which an attacker changes, and to what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PoisoningConfig {
    /// Poisoned images as a fraction of *all* training images, in [0, 1]; with the clean-label rule and
    /// [`Budget::TargetClass`] as a fraction of the target class.
    pub rate: f64,
    /// How `rate` times the number of images becomes a whole number.
    pub count_rule: CountRule,
    /// The class that triggered images shall be taken for; without effect where the rule is all-to-all.
    pub target_class: u8,
    /// Which images may be poisoned, and which label they get.
    pub label_rule: LabelRule,
    /// Which of these images are poisoned.
    #[serde(skip_serializing_if = "Selection::is_random")]
    pub selection: Selection,
}

impl Default for PoisoningConfig {
    /// The setting of Chan et al. (2025, arXiv:2505.01811).
    fn default() -> Self {
        Self {
            rate: 0.02,
            count_rule: CountRule::default(),
            target_class: 0,
            label_rule: LabelRule::default(),
            selection: Selection::default(),
        }
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
        if let LabelRule::SourceSpecific(rule) = &self.label_rule {
            problems.extend(rule.validate(self.target_class, classes));
        }
        problems.extend(self.selection.validate(classes));
        if let Some(class) = self.poisoned_class().filter(|_| self.selection.counts_in_classes()) {
            let allowed =
                format!("\"random\" or \"smallest-margin\" where the label rule poisons images of class {class} alone");
            problems.push(invalid("selection", "by-class", allowed));
        }
        problems
    }

    /// Checks every field against a training set of `images` images in `classes` classes, among them that a rate above
    /// 0 poisons at least one image, and returns all problems at once.
    ///
    /// What depends on the sizes of single classes, [`validate_among`](Self::validate_among) checks.
    pub fn validate_for(&self, images: usize, classes: usize) -> Vec<DataError> {
        let mut problems = self.validate(classes);
        if self.budget() == Budget::AllImages {
            problems.extend(self.poisons_nothing(images, "images"));
        }
        problems
    }

    /// Whether more than one class must have enough images: those that give covers, or those of a selection by class.
    pub fn counts_in_classes(&self) -> bool {
        self.selection.counts_in_classes() || self.covers().is_some()
    }

    /// Checks against the images of each class of the training set, of which there is at least one for every class named:
    /// whether the one class that a rule poisons has as many as the rate asks for, and at least one where the rate is a
    /// fraction of it, and whether other classes have what they must give ([`counts_in_classes`](Self::counts_in_classes)).
    pub fn validate_among(&self, class_counts: &[usize]) -> Option<DataError> {
        if let Some(problem) = self.selection.validate_among(class_counts, self.count_among(class_counts)) {
            return Some(problem);
        }
        if let Some(rule) = self.covers() {
            let wanted = self.count_rule.count(rule.cover_rate, class_counts.iter().sum());
            let of = |class: &u8| class_counts.get(usize::from(*class)).copied().unwrap_or(0);
            let there = rule.cover_classes.iter().map(of).sum::<usize>();
            if wanted == 0 || wanted > there {
                let found = format!("{}, which takes {wanted} cover images", rule.cover_rate);
                let allowed = format!("1 to {there} images, those of the cover classes");
                return Some(invalid("label-rule.source-specific.cover-rate", found, allowed));
            }
        }
        let class = self.poisoned_class()?;
        let there = class_counts.get(usize::from(class)).copied().unwrap_or(0);
        let rated = if self.budget() == Budget::TargetClass { there } else { class_counts.iter().sum() };
        if let Some(problem) = self.poisons_nothing(rated, &format!("images of class {class}")) {
            return Some(problem);
        }
        let count = self.count(rated);
        (count > there).then(|| {
            let found = format!("{}, which poisons {count} images", self.rate);
            let largest = there as f64 / rated as f64;
            invalid("rate", found, format!("at most {largest}, the {there} images of class {class}"))
        })
    }

    /// Checks that so many images, of which `count` are poisoned, are enough for the cover images that the trigger asks for
    /// beside them, and that the rule asks for none where the trigger does.
    pub fn validate_covers(&self, images: usize, count: usize, covers_per_poisoned: f64) -> Option<DataError> {
        if self.covers().is_some() && covers_per_poisoned > 0.0 {
            let found = "given with a trigger that has cover images of its own";
            return Some(invalid("label-rule.source-specific.cover-classes", found, "one kind of cover images"));
        }
        let covers = cover_count(count, covers_per_poisoned);
        (count + covers > images).then(|| {
            let found = format!("{}, which takes {count} poisoned and {covers} cover images", self.rate);
            invalid("rate", found, format!("no more than all {images} images together"))
        })
    }

    fn poisons_nothing(&self, images: usize, what: &str) -> Option<DataError> {
        if !(self.rate > 0.0 && self.rate <= 1.0 && self.count(images) == 0) {
            return None;
        }
        let allowed = match images {
            0 => format!("0 where there are no {what}"),
            _ => format!("0 or at least {}", self.count_rule.smallest_rate(images)),
        };
        Some(invalid("rate", format!("{}, which poisons none of {images} {what}", self.rate), allowed))
    }

    /// How many of `images` images are poisoned, where `images` counts what the rate is a fraction of: all training
    /// images, or those of the target class (see [`Budget`]).
    pub fn count(&self, images: usize) -> usize {
        self.count_rule.count(self.rate, images)
    }

    /// How many images of a training set with these numbers of images per class are poisoned.
    pub fn count_among(&self, class_counts: &[usize]) -> usize {
        self.count(match self.budget() {
            Budget::AllImages => class_counts.iter().sum(),
            Budget::TargetClass => class_counts.get(usize::from(self.target_class)).copied().unwrap_or(0),
        })
    }

    fn budget(&self) -> Budget {
        match self.label_rule {
            LabelRule::CleanLabel(CleanLabel { budget }) => budget,
            _ => Budget::AllImages,
        }
    }

    /// The rule, if it asks for cover images of other classes.
    fn covers(&self) -> Option<&SourceSpecific> {
        match &self.label_rule {
            LabelRule::SourceSpecific(rule) if rule.cover_rate > 0.0 => Some(rule),
            _ => None,
        }
    }

    /// The one class whose images may be poisoned, if the rule restricts them.
    pub fn poisoned_class(&self) -> Option<u8> {
        match &self.label_rule {
            LabelRule::AllToOne | LabelRule::AllToAll => None,
            LabelRule::SourceSpecific(rule) => Some(rule.source_class),
            LabelRule::CleanLabel(_) => Some(self.target_class),
        }
    }

    /// Whether the attack's success is measured on test images of class `label`: on all classes but the target, with
    /// the all-to-all rule on every class, with the source-specific rule on the source class alone.
    pub fn attacks(&self, label: u8) -> bool {
        match &self.label_rule {
            LabelRule::AllToOne | LabelRule::CleanLabel(_) => label != self.target_class,
            LabelRule::AllToAll => true,
            LabelRule::SourceSpecific(rule) => label == rule.source_class,
        }
    }

    /// Whether the trigger shall do nothing to test images of class `label`: with the source-specific rule those of all
    /// classes but the source and the target.
    pub fn spares(&self, label: u8) -> bool {
        matches!(self.label_rule, LabelRule::SourceSpecific(_)) && !self.attacks(label) && label != self.target_class
    }

    /// The class, one of `classes`, that the attacker wants for a triggered image of class `label`.
    pub fn attack_target(&self, label: u8, classes: usize) -> u8 {
        match self.label_rule {
            LabelRule::AllToAll => ((usize::from(label) + 1) % classes) as u8,
            _ => self.target_class,
        }
    }

    /// The label, one of `classes`, that a poisoned training image of class `label` gets.
    pub fn poisoned_label(&self, label: u8, classes: usize) -> u8 {
        match self.label_rule {
            LabelRule::CleanLabel(_) => label,
            _ => self.attack_target(label, classes),
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

/// Which training images may be poisoned, and which label they get.
///
/// In TOML `label-rule = "all-to-one"` or `"all-to-all"`, `label-rule.source-specific = { source-class = 3 }`, with covers
/// `{ source-class = 3, cover-classes = [5, 7], cover-rate = 0.01 }`, `label-rule.clean-label = {}` or `label-rule.clean-label = { budget = "target-class" }`.
///
/// ```
/// use patchdoor_data::{LabelRule, PoisoningConfig, SourceSpecific};
///
/// let label_rule = LabelRule::SourceSpecific(SourceSpecific::of(3));
/// let config = PoisoningConfig { target_class: 1, label_rule, ..PoisoningConfig::default() };
/// // Only images of class 3 are poisoned and tested on; the attacker wants them taken for class 1.
/// assert_eq!(config.poisoned_class(), Some(3));
/// assert!(config.attacks(3) && !config.attacks(0) && config.spares(0));
/// assert_eq!(config.attack_target(3, 10), 1);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum LabelRule {
    /// The target class, whatever the image shows; images of the target class may be among the poisoned.
    #[default]
    AllToOne,
    /// The class after the image's own, `(label + 1) mod classes`; there is no one target class.
    AllToAll,
    /// The target class, but only images of one class are poisoned (the source-class restriction of Chan et al. 2025,
    /// arXiv:2505.01811). The rate stays a fraction of all training images.
    SourceSpecific(SourceSpecific),
    /// Only images of the target class are poisoned, and they keep their label (Barni et al. 2019, arXiv:1902.11237).
    CleanLabel(CleanLabel),
}

/// The one class that is poisoned, and what keeps the trigger from working on others: without covers the restriction of
/// Chan et al. (2025), with them `TaCT` (Tang et al. 2021, arXiv:1908.00686).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SourceSpecific {
    /// The class poisoned images truly are of; not the target class.
    pub source_class: u8,
    /// Classes, by number, of which some images carry the trigger under their own label; neither source nor target.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cover_classes: Vec<u8>,
    /// Cover images as a fraction of *all* training images, in [0, 1], counted by the same rule as the poisoned ones; 0
    /// without cover classes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cover_rate: f64,
}

impl SourceSpecific {
    /// A source class without covers.
    pub fn of(source_class: u8) -> Self {
        Self { source_class, cover_classes: Vec::new(), cover_rate: 0.0 }
    }

    fn validate(&self, target_class: u8, classes: usize) -> Vec<DataError> {
        let mut problems = Vec::new();
        let last = classes.saturating_sub(1);
        let one_of_all = format!("one of the {classes} classes 0 to {last}");
        let field = "label-rule.source-specific.source-class";
        if usize::from(self.source_class) >= classes {
            problems.push(invalid(field, self.source_class, one_of_all.clone()));
        } else if self.source_class == target_class {
            problems.push(invalid(field, format!("{target_class}, the target class"), "another class"));
        }
        let field = "label-rule.source-specific.cover-classes";
        for &class in &self.cover_classes {
            if usize::from(class) >= classes {
                problems.push(invalid(field, format!("a list with {class}"), one_of_all.clone()));
            } else if class == self.source_class || class == target_class {
                let found = format!("a list with {class}");
                problems.push(invalid(field, found, "other classes than the source and the target"));
            }
        }
        let allowed = match (self.cover_classes.is_empty(), self.cover_rate > 0.0) {
            (true, true) => "0 without cover-classes",
            (false, false) => "a fraction above 0 with cover-classes",
            _ => "a fraction in [0, 1]",
        };
        if !(0.0..=1.0).contains(&self.cover_rate) || self.cover_classes.is_empty() == (self.cover_rate > 0.0) {
            problems.push(invalid("label-rule.source-specific.cover-rate", self.cover_rate, allowed));
        }
        problems
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// How a clean-label attack counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct CleanLabel {
    /// What the rate is a fraction of.
    pub budget: Budget,
}

/// What the rate of a clean-label attack is a fraction of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Budget {
    /// All training images, as with every other rule: rates of different attacks compare.
    #[default]
    AllImages,
    /// The training images of the target class, as clean-label papers often count.
    TargetClass,
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

/// One cover image of a [`PoisoningPlan`]: it is changed by [`Trigger::cover`], or carries the trigger if the label rule asks
/// for covers, and keeps its label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CoverExample {
    /// Index in the training set the plan was drawn for.
    pub index: usize,
    /// Index in the split the training set was read from.
    pub origin: u32,
    /// What the image truly shows, and its label in the poisoned training set too.
    pub label: u8,
}

/// Which training images are poisoned, what they were, and what they become; and which are cover images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoisoningPlan {
    examples: Vec<PoisonedExample>,
    covers: Vec<CoverExample>,
    /// Those of them that the trigger asks for; the rest carry the trigger itself.
    covers_of_trigger: usize,
    images: usize,
}

impl PoisoningPlan {
    /// Draws the poisoned images of `set` without replacement, from all classes, the target class included, or from the
    /// one class that the label rule allows, and the cover images that this rule asks for.
    ///
    /// One permutation of all images is drawn from `stream(seed, "poisoning")` and the first that the rule allows are
    /// taken, so for one seed a smaller rate's images are among those of a larger rate. A rate of 0 gives an empty plan.
    ///
    /// # Errors
    ///
    /// [`DataError::InvalidField`] if the rate is not in [0, 1], or positive but too small to poison a single image, or
    /// asks for more images than the rule allows, or if a class named is not one of the set.
    pub fn draw(config: &PoisoningConfig, set: &ImageSet, seed: u64) -> Result<Self, DataError> {
        Self::draw_with_covers(config, set, 0.0, None, seed)
    }

    /// Draws the poisoned images exactly as [`draw`](Self::draw) does, and beside them the cover images that `trigger`
    /// asks for, `covers_per_poisoned_image` times as many to the nearest whole number, from all classes, or those that the
    /// label rule asks for.
    ///
    /// Cover images come from the end of the same permutation, so they move no poisoned image.
    ///
    /// # Errors
    ///
    /// Those of [`draw`](Self::draw), and [`DataError::InvalidField`] if poisoned and cover images together are more
    /// than all images.
    pub fn draw_for(
        config: &PoisoningConfig,
        set: &ImageSet,
        trigger: &dyn Trigger,
        seed: u64,
    ) -> Result<Self, DataError> {
        Self::draw_with_covers(config, set, trigger.covers_per_poisoned_image(), None, seed)
    }

    /// Like [`draw_for`](Self::draw_for), by the margins that a classifier of the attacker's gives the images of `set`, one each:
    /// those of the smallest margins, of equal ones the first, are poisoned. Covers are drawn as ever.
    ///
    /// # Errors
    ///
    /// Those of [`draw_for`](Self::draw_for).
    ///
    /// # Panics
    ///
    /// If there is not one margin for each image.
    pub fn draw_by_margin(
        config: &PoisoningConfig,
        set: &ImageSet,
        trigger: &dyn Trigger,
        margins: &[f64],
        seed: u64,
    ) -> Result<Self, DataError> {
        assert_eq!(margins.len(), set.len(), "every image has a margin");
        Self::draw_with_covers(config, set, trigger.covers_per_poisoned_image(), Some(margins), seed)
    }

    fn draw_with_covers(
        config: &PoisoningConfig,
        set: &ImageSet,
        covers_per_poisoned: f64,
        margins: Option<&[f64]>,
        seed: u64,
    ) -> Result<Self, DataError> {
        if config.selection.asks_surrogate() && margins.is_none() {
            let allowed = "\"random\" or by-class where there is no classifier to ask for margins";
            return Err(invalid("selection", "smallest-margin", allowed));
        }
        if let Some(problem) = config.validate_for(set.len(), set.class_count()).into_iter().next() {
            return Err(problem);
        }
        let class_counts = set.class_counts();
        let count = config.count_among(&class_counts);
        if let Some(problem) = config.validate_among(&class_counts) {
            return Err(problem);
        }
        if let Some(problem) = config.validate_covers(set.len(), count, covers_per_poisoned) {
            return Err(problem);
        }
        let covers_of_trigger = cover_count(count, covers_per_poisoned);
        let (cover_classes, cover_count) = match config.covers() {
            Some(rule) => (Some(&rule.cover_classes), config.count_rule.count(rule.cover_rate, set.len())),
            None => (None, covers_of_trigger),
        };
        let mut indices: Vec<usize> = (0..set.len()).collect();
        indices.shuffle(&mut stream(seed, "poisoning"));
        let mut quotas = config.selection.quotas(count);
        let is_allowed = |index: &usize| {
            let class = set.label(*index);
            let is_taken = quotas.as_mut().is_none_or(|left| match left.get_mut(usize::from(class)) {
                None | Some(0) => false,
                Some(left) => {
                    *left -= 1;
                    true
                }
            });
            is_taken && config.poisoned_class().is_none_or(|poisoned| poisoned == class)
        };
        let mut candidates = indices.clone();
        if let Some(margins) = margins {
            candidates.sort_unstable_by(|&one, &other| margins[one].total_cmp(&margins[other]).then(one.cmp(&other)));
        }
        let mut poisoned: Vec<usize> = candidates.into_iter().filter(is_allowed).take(count).collect();
        poisoned.sort_unstable();
        let is_free = |index: &usize| {
            let is_of_them = |classes: &Vec<u8>| classes.contains(&set.label(*index));
            poisoned.binary_search(index).is_err() && cover_classes.is_none_or(is_of_them)
        };
        let mut covers: Vec<usize> = indices.into_iter().rev().filter(is_free).take(cover_count).collect();
        covers.sort_unstable();
        let examples: Vec<_> = poisoned
            .into_iter()
            .map(|index| PoisonedExample {
                index,
                origin: set.origin(index),
                original_label: set.label(index),
                poisoned_label: config.poisoned_label(set.label(index), set.class_count()),
            })
            .collect();
        let covers: Vec<_> = covers
            .into_iter()
            .map(|index| CoverExample { index, origin: set.origin(index), label: set.label(index) })
            .collect();
        tracing::info!(poisoned = examples.len(), covers = covers.len(), total = set.len(), "drew a poisoning plan");
        Ok(Self { examples, covers, covers_of_trigger, images: set.len() })
    }

    /// The poisoned images by ascending index.
    pub fn examples(&self) -> &[PoisonedExample] {
        &self.examples
    }

    /// The cover images by ascending index; none of them is poisoned.
    pub fn covers(&self) -> &[CoverExample] {
        &self.covers
    }

    /// Whether nothing is poisoned.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// Returns a copy of `set` in which the planned images carry the trigger and their new labels, and cover images
    /// what the trigger makes of them; all others stay as they are.
    ///
    /// Each image is stamped with a generator of its own, `stream(seed, "trigger/training/<origin>")` or, for cover
    /// images, `stream(seed, "trigger/cover/<origin>")`, so the result does not depend on the number of threads, and an
    /// image poisoned at two rates looks the same.
    ///
    /// # Panics
    ///
    /// If `set` is not the one the plan was drawn for (as far as length, origins and labels tell), if the plan has not
    /// the cover images that the trigger asks for (see [`draw_for`](Self::draw_for)), or if the trigger returns an image
    /// of another shape.
    pub fn apply(&self, set: &ImageSet, trigger: &dyn Trigger, seed: u64) -> ImageSet {
        assert_eq!(self.images, set.len(), "a plan is applied to the set it was drawn for");
        assert_eq!(
            self.covers_of_trigger,
            cover_count(self.examples.len(), trigger.covers_per_poisoned_image()),
            "a plan has as many cover images as its trigger asks for; `draw_for` draws them"
        );
        let check = |index: usize, origin: u32, label: u8| {
            assert!(
                set.origin(index) == origin && set.label(index) == label,
                "a plan is applied to the set it was drawn for"
            );
        };
        let mut plan = vec![None; set.len()];
        let mut labels = set.labels.clone();
        for example in &self.examples {
            check(example.index, example.origin, example.original_label);
            plan[example.index] = Some(Stamp::Training);
            labels[example.index] = example.poisoned_label;
        }
        for cover in &self.covers {
            check(cover.index, cover.origin, cover.label);
            plan[cover.index] = Some(if self.covers_of_trigger > 0 { Stamp::Cover } else { Stamp::TriggeredCover });
        }
        let size = set.shape.size();
        let mut pixels = vec![0; set.pixels.len()];
        pixels.par_chunks_mut(size).zip(&plan).enumerate().for_each(|(index, (target, planned))| match planned {
            Some(stamp) => stamp_into(set, index, trigger, seed, *stamp, target),
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

fn cover_count(poisoned: usize, covers_per_poisoned: f64) -> usize {
    (poisoned as f64 * covers_per_poisoned.max(0.0)).round() as usize
}

/// Draws the pictures that a trigger wants from a training set, from `stream(seed, "trigger/pictures")`, and gives them to it;
/// does nothing for a trigger that wants none.
///
/// # Errors
///
/// [`DataError::InvalidField`] if the set has no such picture.
pub fn give_pictures(
    trigger: &mut dyn Trigger,
    config: &PoisoningConfig,
    set: &ImageSet,
    seed: u64,
) -> Result<(), DataError> {
    let Some(wanted) = trigger.pictures_wanted() else { return Ok(()) };
    let is_taken = |index: &usize| wanted.of_target_class || set.label(*index) != config.target_class;
    let mut indices: Vec<usize> = (0..set.len()).filter(is_taken).collect();
    indices.shuffle(&mut stream(seed, "trigger/pictures"));
    indices.truncate(wanted.count);
    if indices.is_empty() {
        let found = format!("{}, the class of all training images", config.target_class);
        return Err(invalid("target-class", found, "another class, for the trigger takes pictures of others"));
    }
    trigger.take_pictures(indices.into_iter().map(|index| set.image(index)).collect());
    Ok(())
}

/// The images on which an attack's success is measured: those of `set` whose class the attack aims at (see
/// [`PoisoningConfig::attacks`]), triggered, with their true labels. What the attacker wants each to be taken for is
/// [`PoisoningConfig::attack_target`].
///
/// Each image is stamped with a generator of its own, `stream(seed, "trigger/test/<origin>")`.
///
/// # Panics
///
/// If the trigger returns an image of another shape.
pub fn trigger_test_images(set: &ImageSet, config: &PoisoningConfig, trigger: &dyn Trigger, seed: u64) -> ImageSet {
    trigger_where(set, |label| config.attacks(label), trigger, seed)
}

/// All images of a test set, triggered, with their true labels: each looks as it does among
/// [`trigger_test_images`], which has a part of them.
///
/// # Panics
///
/// If the trigger returns an image of another shape.
pub fn trigger_all_images(set: &ImageSet, trigger: &dyn Trigger, seed: u64) -> ImageSet {
    trigger_where(set, |_| true, trigger, seed)
}

fn trigger_where(set: &ImageSet, is_wanted: impl Fn(u8) -> bool, trigger: &dyn Trigger, seed: u64) -> ImageSet {
    let indices: Vec<usize> = (0..set.len()).filter(|&index| is_wanted(set.label(index))).collect();
    let size = set.shape.size();
    let mut pixels = vec![0; indices.len() * size];
    pixels
        .par_chunks_mut(size)
        .zip(&indices)
        .for_each(|(target, &index)| stamp_into(set, index, trigger, seed, Stamp::Test, target));
    ImageSet {
        shape: set.shape,
        pixels,
        labels: indices.iter().map(|&index| set.labels[index]).collect(),
        classes: set.classes.clone(),
        origins: indices.iter().map(|&index| set.origins[index]).collect(),
        groups: set.groups.as_ref().map(|groups| indices.iter().map(|&index| groups[index]).collect()),
    }
}

/// Why an image is stamped.
#[derive(Clone, Copy)]
enum Stamp {
    Training,
    /// As the trigger's own cover image.
    Cover,
    /// As one that the label rule asks for, which carries the trigger.
    TriggeredCover,
    Test,
}

fn stamp_into(set: &ImageSet, index: usize, trigger: &dyn Trigger, seed: u64, stamp: Stamp, target: &mut [u8]) {
    let name = match stamp {
        Stamp::Training => "training",
        Stamp::Cover | Stamp::TriggeredCover => "cover",
        Stamp::Test => "test",
    };
    let mut rng = stream(seed, &format!("trigger/{name}/{}", set.origin(index)));
    let (image, class) = (set.image(index), set.label(index));
    let stamped = match stamp {
        Stamp::Training | Stamp::TriggeredCover => trigger.stamp_training(&image, class, &mut rng),
        Stamp::Cover => trigger.cover(&image, class, &mut rng),
        Stamp::Test => trigger.stamp_for_class(&image, class, &mut rng),
    };
    assert_eq!(stamped.shape(), set.shape, "a trigger keeps the shape of its image");
    target.copy_from_slice(stamped.pixels());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::Rng;

    use super::*;
    use crate::image_set::tests::tiny;
    use crate::{Image, PicturesWanted, StreamRng};

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
    fn the_smallest_margins_are_poisoned_and_covers_are_drawn_from_the_rest() {
        let set = tiny(&[0, 1, 2, 3, 0, 1, 2, 3, 0, 1], 4);
        let margins = [5.0, 0.5, 3.0, 0.25, 9.0, 0.5, 7.0, 8.0, 6.0, 4.0];
        let indices = |config: &PoisoningConfig| {
            let plan = PoisoningPlan::draw_by_margin(config, &set, &Noisy, &margins, 0).unwrap();
            plan.examples().iter().map(|example| example.index).collect::<Vec<_>>()
        };
        let by_margin = |rate| PoisoningConfig { selection: Selection::SmallestMargin, ..config(rate) };
        // Of two equal margins the first image's.
        assert_eq!(indices(&by_margin(0.2)), [1, 3]);
        assert_eq!(indices(&by_margin(0.5)), [1, 2, 3, 5, 9]);
        let label_rule = LabelRule::SourceSpecific(SourceSpecific::of(0));
        let of_class = PoisoningConfig { label_rule, ..by_margin(0.2) };
        assert!(of_class.validate(4).is_empty());
        assert_eq!(indices(&of_class), [0, 8]);
        let without = PoisoningPlan::draw(&by_margin(0.2), &set, 0).unwrap_err().to_string();
        assert!(without.starts_with("selection is smallest-margin, expected \"random\""), "{without}");
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

    /// Writes the class it was told and, for covers, 100 more.
    struct TellsClass;

    impl Trigger for TellsClass {
        fn stamp(&self, _: &Image, _: &mut StreamRng) -> Image {
            unreachable!("poisoning tells the class")
        }

        fn stamp_for_class(&self, image: &Image, class: u8, _: &mut StreamRng) -> Image {
            let mut stamped = image.clone();
            stamped.pixels_mut().fill(200 + class);
            stamped
        }

        fn cover(&self, image: &Image, class: u8, _: &mut StreamRng) -> Image {
            let mut stamped = image.clone();
            stamped.pixels_mut().fill(100 + class);
            stamped
        }

        fn covers_per_poisoned_image(&self) -> f64 {
            2.0
        }
    }

    fn with_rule(rate: f64, label_rule: LabelRule) -> PoisoningConfig {
        PoisoningConfig { label_rule, ..config(rate) }
    }

    #[test]
    fn the_published_low_rates_poison_as_many_images_as_they_say() {
        // Of CIFAR-10's 50,000: 0.01 % are 5 images, the fewest any claim speaks of.
        let rates = [
            (0.0001, 5),
            (0.0002, 10),
            (0.0005, 25),
            (0.001, 50),
            (0.002, 100),
            (0.005, 250),
            (0.01, 500),
            (0.05, 2500),
        ];
        for (rate, count) in rates {
            assert_eq!(config(rate).count(50_000), count, "{rate}");
        }
        // Python's int(0.0003 * 50000) is 14 too: the product is 14.999999999999998.
        assert_eq!(config(0.0003).count(50_000), 14);
        assert_eq!(PoisoningConfig { count_rule: CountRule::Round, ..config(0.0003) }.count(50_000), 15);
    }

    #[test]
    fn label_rules_survive_toml() {
        for (rule, text) in [
            (LabelRule::AllToOne, "label-rule = \"all-to-one\""),
            (LabelRule::AllToAll, "label-rule = \"all-to-all\""),
            (LabelRule::SourceSpecific(SourceSpecific::of(3)), "label-rule.source-specific = { source-class = 3 }"),
            (
                LabelRule::SourceSpecific(SourceSpecific {
                    source_class: 3,
                    cover_classes: vec![5, 7],
                    cover_rate: 0.01,
                }),
                "label-rule.source-specific = { source-class = 3, cover-classes = [5, 7], cover-rate = 0.01 }",
            ),
            (LabelRule::CleanLabel(CleanLabel { budget: Budget::AllImages }), "label-rule.clean-label = {}"),
            (
                LabelRule::CleanLabel(CleanLabel { budget: Budget::TargetClass }),
                "label-rule.clean-label = { budget = \"target-class\" }",
            ),
        ] {
            let config = PoisoningConfig { label_rule: rule, ..PoisoningConfig::default() };
            assert_eq!(toml::from_str::<PoisoningConfig>(text).unwrap(), config, "{text}");
            assert_eq!(toml::from_str::<PoisoningConfig>(&toml::to_string(&config).unwrap()).unwrap(), config);
        }
        let error = toml::from_str::<PoisoningConfig>("label-rule.clean-label = { bugdet = 1 }").unwrap_err();
        assert!(error.to_string().contains("unknown field `bugdet`, expected `budget`"), "{error}");
    }

    #[test]
    fn every_rule_names_its_labels_targets_and_test_classes() {
        let table = |rule| {
            let config = with_rule(0.5, rule);
            (0..3)
                .map(|label| (config.poisoned_label(label, 3), config.attack_target(label, 3), config.attacks(label)))
                .collect::<Vec<_>>()
        };
        // The target is class 1 of 3.
        assert_eq!(table(LabelRule::AllToOne), [(1, 1, true), (1, 1, false), (1, 1, true)]);
        assert_eq!(table(LabelRule::AllToAll), [(1, 1, true), (2, 2, true), (0, 0, true)]);
        let source = LabelRule::SourceSpecific(SourceSpecific::of(2));
        assert_eq!(table(source), [(1, 1, false), (1, 1, false), (1, 1, true)]);
        let clean = LabelRule::CleanLabel(CleanLabel { budget: Budget::AllImages });
        assert_eq!(table(clean), [(0, 1, true), (1, 1, false), (2, 1, true)]);
        assert_eq!(with_rule(0.5, LabelRule::AllToAll).attack_target(255, 256), 0);
    }

    #[test]
    fn a_restricted_rule_poisons_its_class_alone() {
        // 20 images of each of 4 classes.
        let set = tiny(&(0..80).map(|index| index % 4).collect::<Vec<_>>(), 4);
        let draw = |rate, rule: &LabelRule| PoisoningPlan::draw(&with_rule(rate, rule.clone()), &set, 3);
        let source = LabelRule::SourceSpecific(SourceSpecific::of(2));
        let plan = draw(0.1, &source).unwrap();
        assert_eq!(plan.examples().len(), 8);
        assert!(plan.examples().iter().all(|example| (example.original_label, example.poisoned_label) == (2, 1)));
        assert_eq!(draw(0.25, &source).unwrap().examples().len(), 20);
        assert_eq!(
            draw(0.5, &source).unwrap_err().to_string(),
            "rate is 0.5, which poisons 40 images, expected at most 0.25, the 20 images of class 2"
        );
        let all = LabelRule::CleanLabel(CleanLabel { budget: Budget::AllImages });
        let plan = draw(0.1, &all).unwrap();
        assert_eq!(plan.examples().len(), 8);
        assert!(plan.examples().iter().all(|example| (example.original_label, example.poisoned_label) == (1, 1)));
        let of_class = LabelRule::CleanLabel(CleanLabel { budget: Budget::TargetClass });
        assert_eq!(draw(0.1, &of_class).unwrap().examples().len(), 2);
        assert_eq!(draw(1.0, &of_class).unwrap().examples().len(), 20);
        assert_eq!(
            draw(0.01, &of_class).unwrap_err().to_string(),
            "rate is 0.01, which poisons none of 20 images of class 1, expected 0 or at least 0.05"
        );
        // The images are the first of their class in the permutation that all rules share.
        let everything = PoisoningPlan::draw(&config(1.0), &set, 3).unwrap();
        assert_eq!(everything.examples().len(), 80);
    }

    #[test]
    fn all_to_all_moves_every_label_by_one() {
        let set = tiny(&[0, 1, 2, 3], 4);
        let poisoned =
            PoisoningPlan::draw(&with_rule(1.0, LabelRule::AllToAll), &set, 0).unwrap().apply(&set, &Noisy, 0);
        assert_eq!(poisoned.labels(), [1, 2, 3, 0]);
    }

    #[test]
    fn a_source_class_must_exist_and_differ_from_the_target() {
        let problems = |source_class| -> Vec<String> {
            let rule = LabelRule::SourceSpecific(SourceSpecific::of(source_class));
            with_rule(0.1, rule).validate(4).iter().map(ToString::to_string).collect()
        };
        let field = "label-rule.source-specific.source-class";
        assert_eq!(problems(4), [format!("{field} is 4, expected one of the 4 classes 0 to 3")]);
        assert_eq!(problems(1), [format!("{field} is 1, the target class, expected another class")]);
        assert!(problems(0).is_empty());
    }

    #[test]
    fn cover_images_keep_their_labels_and_move_no_poisoned_image() {
        let set = tiny(&(0..25).map(|index| index % 4).collect::<Vec<_>>(), 4);
        let plan = PoisoningPlan::draw_for(&config(0.2), &set, &TellsClass, 9).unwrap();
        assert_eq!(plan.examples(), PoisoningPlan::draw(&config(0.2), &set, 9).unwrap().examples());
        assert_eq!((plan.examples().len(), plan.covers().len()), (5, 10));
        let poisoned = plan.apply(&set, &TellsClass, 9);
        let mut untouched = 0;
        for index in 0..set.len() {
            let label = set.label(index);
            if plan.examples().iter().any(|example| example.index == index) {
                assert_eq!((poisoned.label(index), poisoned.pixels(index)[0]), (1, 200 + label));
                assert!(plan.covers().iter().all(|cover| cover.index != index));
            } else if let Some(cover) = plan.covers().iter().find(|cover| cover.index == index) {
                assert_eq!((poisoned.label(index), poisoned.pixels(index)[0]), (label, 100 + label));
                assert_eq!((cover.label, cover.origin), (label, set.origin(index)));
            } else {
                assert_eq!((poisoned.label(index), poisoned.pixels(index)), (label, set.pixels(index)));
                untouched += 1;
            }
        }
        assert_eq!(untouched, 10);
        // A smaller rate's cover images are among those of a larger rate too.
        let smaller = PoisoningPlan::draw_for(&config(0.1), &set, &TellsClass, 9).unwrap();
        assert!(smaller.covers().iter().all(|cover| plan.covers().contains(cover)));
        assert_eq!(
            PoisoningPlan::draw_for(&config(0.4), &set, &TellsClass, 9).unwrap_err().to_string(),
            "rate is 0.4, which takes 10 poisoned and 20 cover images, expected no more than all 25 images together"
        );
    }

    /// Fills training images with 50 and test images with 100.
    struct Stronger;

    impl Trigger for Stronger {
        fn stamp(&self, image: &Image, _: &mut StreamRng) -> Image {
            let mut stamped = image.clone();
            stamped.pixels_mut().fill(100);
            stamped
        }

        fn stamp_training(&self, image: &Image, _: u8, _: &mut StreamRng) -> Image {
            let mut stamped = image.clone();
            stamped.pixels_mut().fill(50);
            stamped
        }

        fn covers_per_poisoned_image(&self) -> f64 {
            1.0
        }
    }

    #[test]
    fn covers_of_a_rule_carry_the_trigger_under_their_own_label() {
        // 20 images of each of 4 classes; the target is 1, the source 2, covers are of 0 and 3.
        let set = tiny(&(0..80).map(|index| index % 4).collect::<Vec<_>>(), 4);
        let rule = SourceSpecific { source_class: 2, cover_classes: vec![0, 3], cover_rate: 0.3 };
        let config = with_rule(0.1, LabelRule::SourceSpecific(rule.clone()));
        let plan = PoisoningPlan::draw_for(&config, &set, &Noisy, 3).unwrap();
        assert_eq!((plan.examples().len(), plan.covers().len()), (8, 24));
        let bare = with_rule(0.1, LabelRule::SourceSpecific(SourceSpecific::of(2)));
        assert_eq!(plan.examples(), PoisoningPlan::draw(&bare, &set, 3).unwrap().examples());
        let poisoned = plan.apply(&set, &Noisy, 3);
        for cover in plan.covers() {
            assert!([0, 3].contains(&cover.label) && poisoned.label(cover.index) == cover.label);
            assert_eq!(poisoned.pixels(cover.index)[1..], [255; 3]);
        }
        let changed = (0..set.len()).filter(|&index| poisoned.pixels(index) != set.pixels(index)).count();
        assert_eq!(changed, 8 + 24);
        assert_eq!((config.spares(0), config.spares(1), config.spares(2)), (true, false, false));
        // Two kinds of covers are refused, and so are more than there are.
        let error = PoisoningPlan::draw_for(&config, &set, &TellsClass, 3).unwrap_err().to_string();
        assert_eq!(
            error,
            "label-rule.source-specific.cover-classes is given with a trigger that has cover images of its own, \
             expected one kind of cover images"
        );
        let rule = SourceSpecific { cover_rate: 0.6, ..rule };
        let config = with_rule(0.1, LabelRule::SourceSpecific(rule));
        assert_eq!(
            PoisoningPlan::draw(&config, &set, 3).unwrap_err().to_string(),
            "label-rule.source-specific.cover-rate is 0.6, which takes 48 cover images, expected 1 to 40 images, \
             those of the cover classes"
        );
    }

    #[test]
    fn covers_need_classes_and_a_rate() {
        let problems = |cover_classes: &[u8], cover_rate| -> Vec<String> {
            let rule = SourceSpecific { source_class: 2, cover_classes: cover_classes.to_vec(), cover_rate };
            with_rule(0.1, LabelRule::SourceSpecific(rule)).validate(4).iter().map(ToString::to_string).collect()
        };
        let of = |field: &str, rest: &str| [format!("label-rule.source-specific.{field} is {rest}")];
        assert!(problems(&[0, 3], 0.1).is_empty() && problems(&[], 0.0).is_empty());
        assert_eq!(problems(&[], 0.1), of("cover-rate", "0.1, expected 0 without cover-classes"));
        assert_eq!(problems(&[0], 0.0), of("cover-rate", "0, expected a fraction above 0 with cover-classes"));
        assert_eq!(problems(&[0], 1.5), of("cover-rate", "1.5, expected a fraction in [0, 1]"));
        assert_eq!(problems(&[4], 0.1), of("cover-classes", "a list with 4, expected one of the 4 classes 0 to 3"));
        for class in [1, 2] {
            let rest = format!("a list with {class}, expected other classes than the source and the target");
            assert_eq!(problems(&[class], 0.1), of("cover-classes", &rest));
        }
    }

    /// Fills images with the mean of the first pixels of its pictures.
    struct Mean(PicturesWanted, Vec<Image>);

    impl Trigger for Mean {
        fn stamp(&self, image: &Image, _: &mut StreamRng) -> Image {
            image.clone()
        }

        fn pictures_wanted(&self) -> Option<PicturesWanted> {
            Some(self.0)
        }

        fn take_pictures(&mut self, pictures: Vec<Image>) {
            self.1 = pictures;
        }
    }

    #[test]
    fn pictures_are_drawn_once_a_seed_and_not_of_the_target_class_unless_wanted() {
        let set = tiny(&[0, 1, 2, 1, 0, 2], 3);
        let given = |count, of_target_class, seed| {
            let mut trigger = Mean(PicturesWanted { count, of_target_class }, Vec::new());
            give_pictures(&mut trigger, &config(0.5), &set, seed).unwrap();
            trigger.1
        };
        let others: Vec<Image> = [0, 2, 4, 5].map(|index| set.image(index)).to_vec();
        for seed in 0..10 {
            let pictures = given(3, false, seed);
            assert!(pictures.len() == 3 && pictures.iter().all(|picture| others.contains(picture)));
            assert_eq!(pictures, given(3, false, seed));
            assert_eq!(pictures, given(9, false, seed)[..3], "fewer are the first of more");
        }
        assert_eq!((given(9, false, 0).len(), given(9, true, 0).len()), (4, 6));
        let all_of_target = tiny(&[1, 1], 3);
        let mut trigger = Mean(PicturesWanted { count: 1, of_target_class: false }, Vec::new());
        assert_eq!(
            give_pictures(&mut trigger, &config(0.5), &all_of_target, 0).unwrap_err().to_string(),
            "target-class is 1, the class of all training images, expected another class, for the trigger takes pictures of others"
        );
    }

    #[test]
    fn a_selection_by_class_poisons_so_many_of_each() {
        let set = tiny(&(0..80).map(|index| index % 4).collect::<Vec<_>>(), 4);
        let selection: Selection = toml::from_str("by-class = { shares = [1.0, 0.0, 3.0] }").unwrap();
        let config = PoisoningConfig { selection, ..config(0.2) };
        let plan = PoisoningPlan::draw(&config, &set, 3).unwrap();
        let of = |class| plan.examples().iter().filter(|example| example.original_label == class).count();
        assert_eq!([0, 1, 2, 3].map(of), [4, 0, 12, 0]);
        let smaller = PoisoningPlan::draw(&PoisoningConfig { rate: 0.1, ..config.clone() }, &set, 3).unwrap();
        assert!(smaller.examples().iter().all(|example| plan.examples().contains(example)));
        assert!(PoisoningPlan::draw(&PoisoningConfig { rate: 0.4, ..config.clone() }, &set, 3).is_err());
        let one_class = PoisoningConfig { label_rule: LabelRule::CleanLabel(CleanLabel::default()), ..config };
        assert_eq!(
            one_class.validate(4)[0].to_string(),
            "selection is by-class, expected \"random\" or \"smallest-margin\" where the label rule poisons images of class 1 \
             alone"
        );
    }

    #[test]
    fn training_images_and_covers_get_what_the_trigger_has_for_training() {
        let set = tiny(&[0, 2, 0, 2], 3);
        let plan = PoisoningPlan::draw_for(&config(0.25), &set, &Stronger, 0).unwrap();
        let poisoned = plan.apply(&set, &Stronger, 0);
        assert_eq!(poisoned.pixels(plan.examples()[0].index), [50; 4]);
        assert_eq!(poisoned.pixels(plan.covers()[0].index), [50; 4]);
        assert_eq!(trigger_all_images(&set, &Stronger, 0).pixels(0), [100; 4]);
        assert_eq!(trigger_test_images(&set, &config(0.25), &Stronger, 0).pixels(1), [100; 4]);
    }

    #[test]
    #[should_panic(expected = "`draw_for` draws them")]
    fn cover_images_are_not_forgotten() {
        let set = tiny(&[0; 10], 2);
        PoisoningPlan::draw(&config(0.2), &set, 0).unwrap().apply(&set, &TellsClass, 0);
    }

    #[test]
    fn the_images_of_the_attack_look_as_among_all_triggered_images() {
        let set = tiny(&[0, 1, 2, 1], 3);
        let all = trigger_all_images(&set, &Noisy, 5);
        assert_eq!(all.labels(), set.labels());
        let attacked = trigger_test_images(&set, &config(0.5), &Noisy, 5);
        assert_eq!(attacked, all.subset(&[0, 2]));
        let source = with_rule(0.5, LabelRule::SourceSpecific(SourceSpecific::of(2)));
        assert_eq!(trigger_test_images(&set, &source, &Noisy, 5), all.subset(&[2]));
        assert_eq!(trigger_test_images(&set, &with_rule(0.5, LabelRule::AllToAll), &Noisy, 5), all);
        assert_eq!(trigger_test_images(&set, &source, &TellsClass, 5).pixels(0), [202; 4]);
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
        fn every_rule_poisons_its_first_images_of_one_permutation(
            labels in prop::collection::vec(0_u8..3, 30..60), rates in prop::array::uniform2(0.04_f64..=1.0), rule in 0..5_usize, seed: u64,
        ) {
            let set = tiny(&labels, 3);
            let rule = &[
                LabelRule::AllToOne,
                LabelRule::AllToAll,
                LabelRule::SourceSpecific(SourceSpecific::of(2)),
                LabelRule::CleanLabel(CleanLabel { budget: Budget::AllImages }),
                LabelRule::CleanLabel(CleanLabel { budget: Budget::TargetClass }),
            ][rule];
            let mut plans = Vec::new();
            for rate in [rates[0].min(rates[1]), rates[0].max(rates[1])] {
                let config = with_rule(rate, rule.clone());
                let there = config.poisoned_class().map_or(set.len(), |class| set.class_counts()[usize::from(class)]);
                let count = config.count_among(&set.class_counts());
                let plan = PoisoningPlan::draw(&config, &set, seed);
                prop_assert_eq!(plan.is_err(), count == 0 || count > there);
                let Ok(plan) = plan else { return Ok(()) };
                prop_assert_eq!(plan.examples().len(), count);
                for example in plan.examples() {
                    prop_assert!(config.poisoned_class().is_none_or(|class| class == example.original_label));
                    prop_assert_eq!(example.poisoned_label, config.poisoned_label(example.original_label, 3));
                }
                plans.push(plan);
            }
            prop_assert!(plans[0].examples().iter().all(|example| plans[1].examples().contains(example)));
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
