use patchdoor_model::ClassifierConfig;
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
}

impl Default for RoutingConfig {
    /// Our numbers; the authors look at one image.
    fn default() -> Self {
        Self { per_epoch: false, per_epoch_images: 1000, figures: true, swap: false, audit: false }
    }
}

impl RoutingConfig {
    /// How often every test image is predicted besides what any run predicts.
    pub fn predictions(&self) -> usize {
        // Two versions, each by the victim and the twin for their routing, again with what they gave, and with the twin's
        // routers; two versions with five random routers, and for what experts say.
        usize::from(self.swap) * 10 + usize::from(self.audit) * 12
    }

    /// Every value that cannot be.
    pub(crate) fn check(&self, model: &ClassifierConfig) -> Vec<Problem> {
        let mut problems = Vec::new();
        if model.network().expert_choice().is_none() {
            problems.push(Problem {
                field: "routing".into(),
                found: format!("asked of model.{}", choice_name(model)),
                allowed: "a model with routers, such as model.patch-moe, or no such table".into(),
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
