use patchdoor_model::{ClassifierConfig, InputShape};
use serde::{Deserialize, Serialize};

use crate::facts::choice_name;
use crate::problem::Problem;

/// How to look at what routers select. Test images are looked at and nothing is chosen by them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
#[allow(clippy::struct_excessive_bools, reason = "switches of a file that have nothing to do with each other")]
pub struct RoutingConfig {
    /// Whether the backdoored classifier is looked at after every epoch too.
    pub per_epoch: bool,
    /// Test images to look at after every epoch, a stratified draw, the same for every seed; all if there are fewer.
    pub per_epoch_images: usize,
    /// Whether heat maps are drawn.
    pub figures: bool,
    /// Whether test images also pass with a routing that is not their own: of the same image with or without the trigger,
    /// and of the clean twin.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub swap: bool,
    /// Whether random routers take the place of the trained ones, and experts are silenced, to see who carries the
    /// backdoor.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub audit: bool,
    /// Whether each expert passes over each patch in turn, to see which of these pairs the backdoor needs.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub blocking: bool,
}

impl Default for RoutingConfig {
    /// Our numbers; the authors look at one image.
    fn default() -> Self {
        Self { per_epoch: false, per_epoch_images: 1000, figures: true, swap: false, audit: false, blocking: false }
    }
}

impl RoutingConfig {
    /// How often every test image is predicted besides what any run predicts.
    pub fn predictions(&self) -> usize {
        // Two versions, each by the victim and the twin for their routing, again with what they gave, and with the twin's
        // routers; two versions with five random routers, and for what experts say.
        // Of pairs: 1,000 test images twice and 500 training images, for each of some 64 patches that experts take, and
        // 60,000 for pairs together; the test sets of the field have 10,000 images or so.
        usize::from(self.swap) * 10 + usize::from(self.audit) * 12 + usize::from(self.blocking) * 22
    }

    /// Every value that cannot be, for images of this shape if it is known.
    pub(crate) fn check(&self, model: &ClassifierConfig, input: Option<InputShape>) -> Vec<Problem> {
        let mut problems = Vec::new();
        let choice = model.network().expert_choice();
        if choice.is_none() {
            problems.push(Problem {
                field: "routing".into(),
                found: format!("asked of model.{}", choice_name(model)),
                allowed: "a model with routers, such as model.patch-moe, or no such table".into(),
            });
        }
        if let (true, Some(choice), Some(input)) = (self.blocking, choice, input)
            && (0..choice.experts()).all(|expert| choice.spare_patches(input, expert) == 0)
        {
            problems.push(Problem {
                field: "routing.blocking".into(),
                found: "true".into(),
                allowed: "false where every expert takes every patch that it may".into(),
            });
        }
        if self.per_epoch_images == 0 {
            problems.push(Problem {
                field: "routing.per-epoch-images".into(),
                found: "0".into(),
                allowed: "1 or more".into(),
            });
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConfigErrors, Plan, PlanOptions};

    fn plan(text: &str) -> Result<Plan, ConfigErrors> {
        Plan::from_text("a.toml", text, &PlanOptions::default())
    }

    #[test]
    fn an_empty_table_asks_for_the_defaults_and_changes_the_experiment() {
        let text = "dataset = \"shapes\"\n[trigger.square]\n[model.patch-moe]\n";
        let without = plan(text).expect("a valid experiment");
        let with = plan(&format!("{text}[routing]\n")).expect("a valid experiment");
        assert_eq!(without.config().routing, None);
        assert_eq!(with.config().routing, Some(RoutingConfig::default()));
        assert_ne!(without.hash("flex"), with.hash("flex"));
        assert_eq!(without.twin_hash("flex", ""), with.twin_hash("flex", ""), "the clean twin is the same");
        assert_eq!(plan(&with.to_toml()).expect("it was written by a plan").config(), with.config());
    }

    #[test]
    fn experts_that_can_spare_no_patch_cannot_pass_over_any() {
        let text = |patches: usize| {
            let model = format!("[model.patch-moe]\npatches-per-expert = {patches}\n");
            format!("dataset = \"shapes\"\n[trigger.square]\n{model}\n[routing]\nblocking = true\n")
        };
        plan(&text(63)).expect("each can spare one");
        insta::assert_snapshot!(plan(&text(64)).expect_err("none can spare any"), @r"
        error: routing.blocking is true, expected false where every expert takes every patch that it may
         --> a.toml:7:12
          |
        7 | blocking = true
          |            ^^^^
        ");
    }

    #[test]
    fn a_model_without_routers_is_refused_with_its_place() {
        let text = "dataset = \"shapes\"\n[trigger.square]\n[model.wide-resnet]\n\n[routing]\nper-epoch-images = 0\n";
        insta::assert_snapshot!(plan(text).expect_err("there are no routers"), @r"
        error: routing is asked of model.wide-resnet, expected a model with routers, such as model.patch-moe, or no such table
         --> a.toml:5:1
          |
        5 | [routing]
          | ^^^^^^^^^

        error: routing.per-epoch-images is 0, expected 1 or more
         --> a.toml:6:20
          |
        6 | per-epoch-images = 0
          |                    ^
        ");
    }
}
