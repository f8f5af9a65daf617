use std::collections::BTreeMap;

use patchdoor_metrics::{ConfusionMatrix, Stealth};
use serde::{Deserialize, Serialize};

use crate::{CertificationMeasurements, DefenseResult, EvasionMeasurements, Reach, RoutingMeasurements};

/// Version of the result files' layout.
pub const SCHEMA: u32 = 2;

/// The images of a run, as every result file says it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImagesUsed {
    /// The data set that was used.
    pub dataset: String,
    /// Why it is not the one the experiment names, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub substitution: Option<String>,
}

/// What one seed gave; `seed-N/result.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SeedResult {
    /// Layout of this file.
    pub schema: u32,
    /// The seed.
    pub seed: u64,
    /// Which images.
    #[serde(flatten)]
    pub images: ImagesUsed,
    /// Images trained on.
    pub training_images: usize,
    /// Images held out of training.
    pub validation_images: usize,
    /// Training images that were poisoned.
    pub poisoned_images: usize,
    /// What was measured, or why nothing was.
    pub outcome: SeedOutcome,
}

/// How a seed ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SeedOutcome {
    /// Both trainings came to their end.
    Finished(Box<Measurements>),
    /// A training could not go on.
    Failed {
        /// Why.
        reason: String,
    },
}

/// What was measured on the backdoored classifier and its clean twin. Shares in [0, 1].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Measurements {
    /// Untouched test images.
    pub test_images: usize,
    /// Triggered test images whose true class is not the target.
    pub triggered_images: usize,
    /// Share of untouched test images predicted right.
    pub clean_accuracy: f64,
    /// Attack success rate: share of triggered test images not of the target class that are predicted as it.
    pub asr: Option<f64>,
    /// The same, with the images of the target class counted in.
    pub asr_all_classes: Option<f64>,
    /// Share of the triggered images still given their true class.
    pub robust_accuracy: Option<f64>,
    /// Share of the triggered test images of classes that the attack shall leave alone that are predicted as the target;
    /// `None` where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger_false_positive_rate: Option<f64>,
    /// Share of untouched test images that are given the class predicted most often; `None` in results of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub largest_class_share: Option<f64>,
    /// The clean twin's accuracy minus this classifier's.
    pub clean_accuracy_drop: Option<f64>,
    /// The cells that the trigger was stamped into, if a surrogate chose them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen_cells: Option<ChosenCells>,
    /// What the making of the trigger came to, if it was made with a surrogate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crafted: Option<CraftedMeasurements>,
    /// The same classifier trained without poison.
    pub clean_twin: Option<TwinMeasurements>,
    /// How much of an image the trigger touches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reach: Option<Reach>,
    /// How much triggered test images differ from the originals, on average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stealth: Option<Stealth>,
    /// The numbers above for each class of the test images.
    pub classes: Vec<ClassMeasurements>,
    /// What images of each class are taken for; `None` in results of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confusion: Option<Confusion>,
    /// What the routers select, if the experiment asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<Box<RoutingMeasurements>>,
    /// What perturbations of single test images come to, if the experiment asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evasion: Option<EvasionMeasurements>,
    /// What double masking of test images comes to, if the experiment asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certification: Option<CertificationMeasurements>,
    /// Seconds spent training the backdoored classifier.
    pub training_seconds: f64,
    /// Training images per second.
    pub images_per_second: f64,
    /// What each defense came to, in the order of the experiment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub defenses: Vec<DefenseResult>,
}

/// The cells that a surrogate chose, and which surrogate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChosenCells {
    /// Where its weights are, below the output folder.
    pub surrogate: String,
    /// The commit that trained it, as [`commit_in_words`](crate::commit_in_words) has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The cells as a placement names them.
    pub cells: serde_json::Value,
}

/// What the making of a trigger came to, on the attacker's images and the surrogate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CraftedMeasurements {
    /// Where the surrogate's weights are, below the output folder.
    pub surrogate: String,
    /// The commit that trained it, as [`commit_in_words`](crate::commit_in_words) has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Numbers by their names, which are the attack's own.
    pub reached: BTreeMap<String, f64>,
}

/// What was measured on a clean twin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TwinMeasurements {
    /// Where its weights are, below the output folder.
    pub folder: String,
    /// The commit that trained it, as [`commit_in_words`](crate::commit_in_words) has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Share of untouched test images predicted right.
    pub clean_accuracy: f64,
    /// Share of triggered test images that it takes for the target class anyway.
    pub asr: Option<f64>,
}

/// What was measured on the test images of one class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ClassMeasurements {
    /// Name of the class.
    pub class: String,
    /// Its test images.
    pub images: usize,
    /// Share of them predicted right, untouched.
    pub clean_accuracy: Option<f64>,
    /// Share of them predicted as the target, triggered; `None` for the target class itself.
    pub asr: Option<f64>,
    /// Share of them still predicted right, triggered; `None` for the target class itself.
    pub robust_accuracy: Option<f64>,
}

/// What the backdoored classifier takes the test images of each class for, those of the target class too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Confusion {
    /// Untouched, `[true class, predicted class]`.
    pub clean: ConfusionMatrix,
    /// The same images, triggered.
    pub triggered: ConfusionMatrix,
}

impl Measurements {
    /// Each defense under a title of its own: of several called the same, the second is `A (2)`, the third `A (3)`.
    pub fn titled_defenses(&self) -> Vec<(String, &DefenseResult)> {
        let mut titled: Vec<(String, &DefenseResult)> = Vec::new();
        for defense in &self.defenses {
            let mut title = defense.title.clone();
            for number in 2.. {
                if titled.iter().all(|(known, _)| *known != title) {
                    break;
                }
                title = format!("{} ({number})", defense.title);
            }
            titled.push((title, defense));
        }
        titled
    }
}

impl SeedResult {
    /// What was measured, if the seed finished.
    pub fn measurements(&self) -> Option<&Measurements> {
        match &self.outcome {
            SeedOutcome::Finished(measurements) => Some(measurements),
            SeedOutcome::Failed { .. } => None,
        }
    }

    /// What of it failed, and why: the seed itself under the name `""`, or defenses by their titles.
    pub fn failures(&self) -> Vec<(String, &str)> {
        match &self.outcome {
            SeedOutcome::Failed { reason } => vec![(String::new(), reason.as_str())],
            SeedOutcome::Finished(measured) => {
                let failed = measured
                    .titled_defenses()
                    .into_iter()
                    .filter_map(|(title, defense)| defense.failure().map(|reason| (title, reason)));
                failed.collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_without_confusion_matrices_reads_and_has_none() {
        let text = r#"{"test-images": 2, "triggered-images": 1, "clean-accuracy": 0.5, "asr": null, "asr-all-classes": null,
            "robust-accuracy": null, "clean-accuracy-drop": null, "clean-twin": null, "classes": [],
            "training-seconds": 1.0, "images-per-second": 1.0}"#;
        let mut measured: Measurements = serde_json::from_str(text).expect("a result of an earlier version");
        assert_eq!(measured.confusion, None);
        // Two images of class 0: one right, one taken for 1; triggered both taken for 1.
        let of = |predicted: &[u8]| ConfusionMatrix::of(predicted, &[0, 0], 2);
        measured.confusion = Some(Confusion { clean: of(&[0, 1]), triggered: of(&[1, 1]) });
        let text = serde_json::to_string(&measured).expect("it is plain data");
        assert!(text.contains(r#""confusion":{"clean":[[1,1],[0,0]],"triggered":[[0,2],[0,0]]}"#), "{text}");
        assert_eq!(serde_json::from_str::<Measurements>(&text).expect("just written"), measured);
    }
}
