use serde::{Deserialize, Serialize};

use crate::problem::Problem;

/// How the backdoored classifier is followed through its training on test images: accuracy, attack success rate and robust
/// accuracy after epochs. For display alone: nothing is chosen by these numbers, no random stream is drawn from, and no weight
/// depends on them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct CurvesConfig {
    /// Epochs from one look to the next; the last epoch always has one. With 0 nobody looks.
    pub every: usize,
    /// Test images to look at, a stratified draw, the same for every seed; all if there are fewer.
    pub images: usize,
}

impl Default for CurvesConfig {
    /// Ours. Two passes over 500 images cost about as much as training on 333, 0.7 % of an epoch of CIFAR-10 and 4 % of one of
    /// 8,000 images; a rate of one half is then known to 4.4 points (95 %), enough to see a backdoor come up.
    fn default() -> Self {
        Self { every: 1, images: 500 }
    }
}

impl CurvesConfig {
    /// Whether it is what happens anyway.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the classifier is looked at after an epoch, counted from 0, of so many.
    pub fn looks_after(&self, epoch: usize, epochs: usize) -> bool {
        self.every > 0 && ((epoch + 1).is_multiple_of(self.every) || epoch + 1 == epochs)
    }

    /// How often it is looked at in so many epochs.
    pub fn looks(&self, epochs: usize) -> usize {
        if self.every == 0 { 0 } else { epochs.div_ceil(self.every) }
    }

    /// Predictions of a whole training, given the test images as far as their number is known: each look takes every image
    /// untouched and triggered.
    pub fn predictions(&self, epochs: usize, test: Option<usize>) -> usize {
        2 * self.looks(epochs) * self.images.min(test.unwrap_or(usize::MAX))
    }

    /// Every value that cannot be.
    pub(crate) fn check(&self) -> Vec<Problem> {
        let none = (self.images == 0).then(|| Problem {
            field: "curves.images".into(),
            found: "0".into(),
            allowed: "1 or more, or curves.every = 0".into(),
        });
        none.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConfigErrors, Plan, PlanOptions};

    const GOOD: &str = "dataset = \"shapes\"\n[trigger.square]\n[model.patch-moe]\n";

    fn plan(text: &str) -> Result<Plan, ConfigErrors> {
        Plan::from_text("a.toml", text, &PlanOptions::default())
    }

    #[test]
    fn every_kth_epoch_and_the_last_are_looked_at() {
        let epochs_with = |every: usize, epochs: usize| {
            let curves = CurvesConfig { every, images: 10 };
            let looked = (0..epochs).filter(|&epoch| curves.looks_after(epoch, epochs)).collect::<Vec<_>>();
            assert_eq!(looked.len(), curves.looks(epochs), "every {every} of {epochs}");
            looked
        };
        assert_eq!(epochs_with(1, 3), [0, 1, 2]);
        assert_eq!(epochs_with(3, 7), [2, 5, 6]);
        assert_eq!(epochs_with(3, 6), [2, 5]);
        assert_eq!(epochs_with(10, 4), [3]);
        assert_eq!(epochs_with(0, 4), [0; 0]);
        // Three looks at 10 images, or at the 4 there are, each untouched and triggered.
        let curves = CurvesConfig { every: 3, images: 10 };
        assert_eq!((curves.predictions(7, None), curves.predictions(7, Some(4))), (60, 24));
    }

    #[test]
    fn what_happens_anyway_is_the_same_run_as_before_and_the_twin_never_depends_on_it() {
        let plain = plan(GOOD).unwrap();
        assert_eq!(plain.config().curves, CurvesConfig::default());
        let written_out = plan(&format!("{GOOD}[curves]\nevery = 1\nimages = 500\n")).unwrap();
        assert_eq!(plain.hash("flex"), written_out.hash("flex"));
        let off = plan(&format!("{GOOD}[curves]\nevery = 0\n")).unwrap();
        assert_ne!(plain.hash("flex"), off.hash("flex"), "it leaves other files");
        assert_eq!(plain.twin_hash("flex", ""), off.twin_hash("flex", ""));
        assert_eq!(plan(&off.to_toml()).unwrap().config(), off.config());
    }

    #[test]
    fn no_images_are_refused_with_their_place() {
        insta::assert_snapshot!(plan(&format!("{GOOD}[curves]\nimages = 0\n")).expect_err("no images"), @r"
        error: curves.images is 0, expected 1 or more, or curves.every = 0
         --> a.toml:5:10
          |
        5 | images = 0
          |          ^
        ");
    }
}
