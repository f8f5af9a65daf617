use patchdoor_model::{ClassifierConfig, ExpertChoiceConfig, InputShape, patches_that_see};
use serde::{Deserialize, Serialize};

use crate::facts::choice_name;
use crate::problem::Problem;

/// How many of both classifiers' answers hold whatever stands in one square window of an image, by double masking (`PatchCleanser`,
/// Xiang et al. 2022, arXiv:2108.09135). For measurement alone; nothing is chosen by it.
///
/// A mask is a set of patches that every expert passes over: all patches that see a window. What the window shows has no part in the
/// answer then. Masks of pixels, as published, work on any network and are the control.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct CertificationConfig {
    /// Side of the window in pixels, 1 or more.
    pub window: usize,
    /// Test images to look at, a stratified draw, the same for every seed; all if there are fewer.
    pub images: usize,
    /// Masks of pixels along each side of an image, 2 or more; 0 leaves them out. They take one pass of the whole network for each mask
    /// and each two.
    pub pixel_masks: usize,
}

impl Default for CertificationConfig {
    /// The window of the published square; no masks of pixels. Six along a side are the authors' for them.
    fn default() -> Self {
        Self { window: 4, images: 1000, pixel_masks: 0 }
    }
}

impl CertificationConfig {
    /// The sets of patches that experts pass over; `None` for a network whose experts choose none.
    pub fn patch_masks(&self, model: &ClassifierConfig, input: InputShape) -> Option<Vec<Vec<u16>>> {
        Some(patches_that_see(model.network().expert_choice()?, input, self.window))
    }

    /// Where masks of pixels lie along a side of so many, and how long they are: as many as asked for, or fewer where fewer do, such that
    /// every window lies under one of them.
    pub fn pixel_mask_places(&self, length: usize) -> (Vec<usize>, usize) {
        let places = (length + 1).saturating_sub(self.window).max(1);
        let stride = places.div_ceil(self.pixel_masks.max(1));
        let long = (self.window + stride - 1).min(length);
        let last = length - long;
        let mut starts = (0..places).step_by(stride).map(|start| start.min(last)).collect::<Vec<_>>();
        starts.dedup();
        (starts, long)
    }

    /// Shortens it to a second.
    pub(crate) fn make_quick(&mut self) {
        self.images = self.images.min(20);
        self.pixel_masks = self.pixel_masks.min(2);
    }

    /// Every value that cannot be, as far as the images are known.
    pub(crate) fn check(&self, model: &ClassifierConfig, input: Option<InputShape>) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut refuse = |field: &str, found: String, allowed: String| {
            problems.push(Problem { field: field.into(), found, allowed });
        };
        let choice = model.network().expert_choice();
        if choice.is_none() && self.pixel_masks == 0 {
            let found = format!("asked of model.{}", choice_name(model));
            let allowed = "a model whose experts choose patches, such as model.patch-moe, or pixel-masks above 0";
            refuse("certification", found, allowed.into());
        }
        if self.images == 0 {
            refuse("certification.images", "0".into(), "1 or more".into());
        }
        if self.pixel_masks == 1 {
            refuse("certification.pixel-masks", "1".into(), "0 for none, or 2 or more".into());
        }
        let can = |window: usize| input.is_none_or(|input| can_certify(choice, input, window));
        if self.window == 0 || !can(self.window) {
            let most = (1..self.window).rev().find(|&window| can(window));
            let allowed = match most {
                _ if self.window == 0 => "1 or more pixels".into(),
                Some(most) => format!("1 to {most} pixels, so that two masks leave a patch to choose"),
                None => "no such table: two masks leave no patch to choose, however small the window".into(),
            };
            refuse("certification.window", self.window.to_string(), allowed);
        }
        problems
    }
}

/// Whether such a window fits, and every two masks leave a patch.
fn can_certify(choice: Option<&dyn ExpertChoiceConfig>, input: InputShape, window: usize) -> bool {
    if window > input.height.min(input.width) {
        return false;
    }
    let Some(choice) = choice else { return true };
    let masks = patches_that_see(choice, input, window);
    let (rows, columns) = choice.patch_grid(input);
    let covered = |first: &Vec<u16>, second: &Vec<u16>| {
        first.len() + second.iter().filter(|patch| !first.contains(patch)).count()
    };
    masks.iter().all(|first| masks.iter().all(|second| covered(first, second) < rows * columns))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Plan, PlanOptions};

    fn said(text: &str) -> Result<Plan, String> {
        let text = format!("dataset = \"shapes\"\n[trigger.square]\n{text}\n");
        Plan::from_text("a.toml", &text, &PlanOptions::default()).map_err(|problems| problems.to_string())
    }

    #[test]
    fn a_run_that_measures_certificates_is_another_with_the_same_twin() {
        let (plain, certified) =
            (said("[model.patch-moe]").unwrap(), said("[model.patch-moe]\n[certification]").unwrap());
        assert_ne!(plain.hash("flex"), certified.hash("flex"));
        assert_eq!(plain.twin_hash("flex", ""), certified.twin_hash("flex", ""));
        let masks = certified
            .config()
            .certification
            .as_ref()
            .unwrap()
            .patch_masks(&certified.config().model, InputShape { height: 32, width: 32, channels: 3 });
        assert_eq!(masks.map(|masks| masks.len()), Some(16));
    }

    #[test]
    fn what_cannot_be_certified_is_refused() {
        let refused = |table: &str| said(&format!("[model.patch-moe]\n[certification]\n{table}")).expect_err("refused");
        for (table, expected) in [
            ("window = 0", "certification.window is 0, expected 1 or more pixels"),
            ("window = 33", "certification.window is 33, expected 1 to"),
            ("images = 0", "certification.images is 0, expected 1 or more"),
            ("pixel-masks = 1", "certification.pixel-masks is 1, expected 0 for none, or 2 or more"),
        ] {
            let said = refused(table);
            assert!(said.contains(expected), "{said}");
        }
        let dense = said("[model.wide-resnet]\n[certification]").expect_err("nothing to mask");
        assert!(
            dense.contains("certification is asked of model.wide-resnet, expected a model whose experts"),
            "{dense}"
        );
        assert!(said("[model.wide-resnet]\n[certification]\npixel-masks = 6").is_ok());
        // The largest that is allowed is allowed.
        let said = refused("window = 33");
        let most = said.split("expected 1 to ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a number");
        assert!(super::tests::said(&format!("[model.patch-moe]\n[certification]\nwindow = {most}")).is_ok(), "{said}");
    }

    #[test]
    fn every_window_lies_under_a_mask_of_pixels() {
        let config =
            |window, pixel_masks| CertificationConfig { window, pixel_masks, ..CertificationConfig::default() };
        // Of 32 pixels 29 windows of 4, six strides of 5: masks of 8 pixels, the last moved back to the edge.
        assert_eq!(config(4, 6).pixel_mask_places(32), (vec![0, 5, 10, 15, 20, 24], 8));
        for (window, masks, length) in [(4, 6, 32), (1, 2, 28), (7, 3, 31), (32, 6, 32), (5, 40, 32)] {
            let (starts, long) = config(window, masks).pixel_mask_places(length);
            assert!(starts.len() <= masks && starts.iter().all(|start| start + long <= length));
            for window_start in 0..=length - window {
                let lies = |start: &usize| *start <= window_start && window_start + window <= start + long;
                assert!(starts.iter().any(lies), "window {window} at {window_start} of {length}, {starts:?} of {long}");
            }
        }
    }
}
