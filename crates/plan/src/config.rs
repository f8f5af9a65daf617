use std::borrow::Cow;
use std::collections::BTreeMap;

use patchdoor_attacks::{ControlledConfig, CraftedConfig, Crafting, SurrogateConfig};
use patchdoor_data::{AugmentationConfig, DatasetConfig, PoisoningConfig};
use patchdoor_model::ClassifierConfig;
use patchdoor_train::TrainingConfig;
use patchdoor_triggers::{PlacementConfig, TriggerConfig};
use serde::{Deserialize, Serialize};

use crate::certification::CertificationConfig;
use crate::curves::CurvesConfig;
use crate::defender::DefenderConfig;
use crate::evasion::EvasionConfig;
use crate::precision::Precision;
use crate::routing::RoutingConfig;
use crate::victim::{Start, VictimConfig};

/// An experiment as written in a TOML file.
///
/// Nothing here is checked yet: [`Plan`](crate::Plan) is the checked form, and only a plan can run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ExperimentConfig {
    /// Which images.
    pub dataset: DatasetConfig,
    /// One training of the backdoored classifier per seed.
    #[serde(default = "default_seeds")]
    pub seeds: Vec<u64>,
    /// Whether a clean twin (same configuration and seed, no poisoning) is trained for each seed, so
    /// that the clean accuracy drop is known. A twin is shared by all experiments that differ only in
    /// the attack.
    #[serde(default = "default_clean_twin")]
    pub clean_twin: bool,
    /// How many of the images, and what is done to them before training.
    #[serde(default)]
    pub data: DataConfig,
    /// Which training images are poisoned, and with what label.
    #[serde(default)]
    pub poisoning: PoisoningConfig,
    /// What is added to an image; not given where another table stands in its place ([`Self::trigger`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<TriggerConfig>,
    /// What is added to an image, made with the surrogate, in the place of `trigger`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crafted: Option<CraftedConfig>,
    /// What an attacker does who controls the training, in the place of `trigger`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controlled: Option<ControlledConfig>,
    /// In which cells of the image; where the trigger itself says if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<PlacementConfig>,
    /// The clean model by which the attacker chooses cells, where the placement asks for one, or with which he makes the
    /// trigger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub surrogate: Option<SurrogateConfig>,
    /// The classifier.
    pub model: ClassifierConfig,
    /// How it is trained.
    #[serde(default)]
    pub training: TrainingConfig,
    /// What is different about the training of the backdoored one.
    #[serde(default, skip_serializing_if = "VictimConfig::is_default")]
    pub victim: VictimConfig,
    /// What the operands of convolutions are rounded to, in training and in evaluation.
    #[serde(default, skip_serializing_if = "Precision::is_full")]
    pub precision: Precision,
    /// What is tried, each on its own, to remove the backdoor.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub defenses: Vec<DefenderConfig>,
    /// How the backdoored classifier is followed on test images through its training, for display.
    #[serde(default, skip_serializing_if = "CurvesConfig::is_default")]
    pub curves: CurvesConfig,
    /// Whether and how to look at what routers select after training; not at all if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<RoutingConfig>,
    /// Whether and how both classifiers are attacked by perturbations of single test images; not at all if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evasion: Option<EvasionConfig>,
    /// Whether and how it is measured which answers hold whatever stands in one window of an image; not at all if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certification: Option<CertificationConfig>,
    /// Numbers to print beside ours, usually a paper's. They change no result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<ExpectedConfig>,
}

impl ExperimentConfig {
    /// Whether a clean twin is trained for each seed, if so many images are poisoned (`None` if that is not known): without
    /// poison a classifier is its own twin, unless it starts from one.
    pub fn trains_twin(&self, poisoned: Option<usize>) -> bool {
        self.clean_twin && (poisoned != Some(0) || self.victim.start == Start::CleanTwin)
    }

    /// The ordinary trigger: that of its table, or of the attack that stands in its place; `None` where a trigger is made with
    /// a model or in the training.
    pub fn trigger(&self) -> Option<&TriggerConfig> {
        match &self.controlled {
            Some(controlled) => controlled.kind().trigger(),
            None => self.trigger.as_ref(),
        }
    }

    /// Whether there is no trigger before the victim is trained.
    pub fn makes_trigger_in_training(&self) -> bool {
        self.controlled.is_some() && self.trigger().is_none()
    }

    /// What the attack is called, as in the file.
    pub fn attack_name(&self) -> &'static str {
        let controlled = self.controlled.as_ref().map(ControlledConfig::name);
        let crafted = self.crafted.as_ref().map(CraftedConfig::name);
        controlled.or(crafted).or(self.trigger.as_ref().map(TriggerConfig::name)).unwrap_or("no trigger")
    }

    /// Where the trigger lies, if not where it says itself: in the cells of the placement, or in those that a crafted one takes
    /// without any.
    pub fn trigger_placement(&self) -> Option<Cow<'_, PlacementConfig>> {
        let default = || self.crafted.as_ref().and_then(|crafted| crafted.kind().default_placement());
        self.placement.as_ref().map(Cow::Borrowed).or_else(|| default().map(Cow::Owned))
    }

    /// Cover images for each poisoned one, as the trigger asks for them.
    pub fn covers_per_poisoned_image(&self) -> f64 {
        self.trigger().map_or(0.0, TriggerConfig::covers_per_poisoned_image)
    }

    /// The surrogate, if one chooses the cells of the placement or the images to poison, or the trigger is made with one, and its
    /// network.
    pub fn surrogate_in_use(&self) -> Option<(SurrogateConfig, ClassifierConfig)> {
        let chooses_cells = self.placement.as_ref().is_some_and(|placement| placement.surrogate().is_some());
        let crafts = self.crafted.as_ref().map(CraftedConfig::kind);
        if !chooses_cells && crafts.is_none() && !self.poisoning.selection.asks_surrogate() {
            return None;
        }
        let surrogate = self.surrogate.clone().unwrap_or_default();
        let needs_routers = chooses_cells || crafts.is_some_and(Crafting::needs_routers);
        let model = surrogate.classifier(&self.model, needs_routers);
        Some((surrogate, model))
    }
}

fn default_seeds() -> Vec<u64> {
    vec![0]
}

fn default_clean_twin() -> bool {
    true
}

/// How many of the images are used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct DataConfig {
    /// Share of the training split held out for validation, stratified by class, in [0, 0.5]. With 0
    /// nothing is held out, as in the authors' code.
    pub validation_fraction: f64,
    /// Images to train on, a stratified draw from what the validation split leaves; all of them if
    /// not given. The validation split shrinks in proportion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training_images: Option<usize>,
    /// Leaves out the images that this seed less so much trains on: set for a surrogate that shares no image with its victim,
    /// whose seed is so much lower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apart_from: Option<u64>,
    /// Test images to evaluate on, a stratified draw, the same for every seed; all if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_images: Option<usize>,
    /// What to do if the data set is neither on disk nor to be fetched; an error if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when_missing: Option<WhenMissing>,
    /// Random changes to training images, after poisoning.
    pub augmentation: AugmentationConfig,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            validation_fraction: 0.1,
            training_images: None,
            apart_from: None,
            test_images: None,
            when_missing: None,
            augmentation: AugmentationConfig::default(),
        }
    }
}

/// What stands in for a missing data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenMissing {
    /// The built-in, procedurally drawn set.
    Shapes,
}

/// Numbers to print beside ours. Shares in [0, 1].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ExpectedConfig {
    /// Share of untouched test images predicted right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clean_accuracy: Option<f64>,
    /// Attack success rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asr: Option<f64>,
    /// Attack success rate with the images of the target class counted in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asr_all_classes: Option<f64>,
    /// Share of triggered test images still given their true class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub robust_accuracy: Option<f64>,
    /// The clean twin's accuracy minus the backdoored classifier's, in [-1, 1].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clean_accuracy_drop: Option<f64>,
}

impl ExpectedConfig {
    /// The numbers that are given, by their names in results.
    pub fn numbers(&self) -> BTreeMap<String, f64> {
        let named = [
            ("clean-accuracy", self.clean_accuracy),
            ("asr", self.asr),
            ("asr-all-classes", self.asr_all_classes),
            ("robust-accuracy", self.robust_accuracy),
            ("clean-accuracy-drop", self.clean_accuracy_drop),
        ];
        named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<T>(value: &T) -> T
    where
        T: Serialize + for<'de> Deserialize<'de>,
    {
        toml::from_str(&toml::to_string(value).expect("serializes")).expect("parses")
    }

    #[test]
    fn defaults_round_trip_through_toml() {
        assert_eq!(round_trip(&DataConfig::default()), DataConfig::default());
        assert_eq!(round_trip(&ExpectedConfig::default()), ExpectedConfig::default());
        assert_eq!(round_trip(&PoisoningConfig::default()), PoisoningConfig::default());
        assert_eq!(round_trip(&TrainingConfig::default()), TrainingConfig::default());
    }

    #[test]
    fn an_experiment_with_every_default_written_out_reads_back_the_same() {
        let text = "dataset = \"shapes\"\n[trigger.square]\n[model.patch-moe]\n";
        let config: ExperimentConfig = toml::from_str(text).expect("parses");
        assert_eq!(config.seeds, [0]);
        assert!(config.clean_twin);
        assert_eq!(round_trip(&config), config);
    }
}
