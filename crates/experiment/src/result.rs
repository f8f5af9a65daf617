use std::collections::BTreeMap;

use patchdoor_data::PoisoningConfig;
use patchdoor_metrics::{AttackOutcome, ClassAccuracy, Summary};
use serde::{Deserialize, Serialize};

use crate::config::ExpectedConfig;
use crate::defense::{DefenseResult, DefenseStanding, DefenseSummary, Ratings};
use crate::routing::{RoutingMeasurements, RoutingSummary};

/// Version of the result files' layout.
pub const SCHEMA: u32 = 1;

/// The images of a run, as every result file says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The clean twin's accuracy minus this classifier's.
    pub clean_accuracy_drop: Option<f64>,
    /// The same classifier trained without poison.
    pub clean_twin: Option<TwinMeasurements>,
    /// The numbers above for each class of the test images.
    pub classes: Vec<ClassMeasurements>,
    /// What the routers select, if the experiment asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<Box<RoutingMeasurements>>,
    /// Seconds spent training the backdoored classifier.
    pub training_seconds: f64,
    /// Training images per second.
    pub images_per_second: f64,
    /// What each defense came to, in the order of the experiment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub defenses: Vec<DefenseResult>,
}

/// What was measured on a clean twin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TwinMeasurements {
    /// Where its weights are, below the output folder.
    pub folder: String,
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

impl ClassMeasurements {
    /// Counts for each class; `clean` and `triggered` are predictions and true labels.
    pub(crate) fn count(
        names: &[String],
        clean: (&[u8], &[u8]),
        triggered: (&[u8], &[u8]),
        poisoning: &PoisoningConfig,
    ) -> Vec<Self> {
        let counts = patchdoor_metrics::accuracy_per_class(clean.0, clean.1, names.len());
        let of_class = |counts: ClassAccuracy| {
            let pairs = triggered.0.iter().zip(triggered.1).filter(|(_, label)| **label == counts.class);
            let (predicted, labels): (Vec<u8>, Vec<u8>) = pairs.unzip();
            let attack = attack_outcome(&predicted, &labels, poisoning, names.len());
            Self {
                class: names[usize::from(counts.class)].clone(),
                images: counts.images,
                clean_accuracy: counts.accuracy(),
                asr: attack.attack_success_rate(),
                robust_accuracy: attack.robust_accuracy(),
            }
        };
        counts.into_iter().map(of_class).collect()
    }
}

/// What an attack under some label rule came to on triggered images.
pub(crate) fn attack_outcome(
    predicted: &[u8],
    labels: &[u8],
    poisoning: &PoisoningConfig,
    classes: usize,
) -> AttackOutcome {
    let rule = |label| (poisoning.attack_target(label, classes), poisoning.attacks(label));
    AttackOutcome::by_rule(predicted, labels, rule)
}

/// What a whole run gave; `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RunSummary {
    /// Layout of this file.
    pub schema: u32,
    /// Name of the experiment.
    pub experiment: String,
    /// The run's folder, named for the experiment and what it depends on.
    pub run: String,
    /// Which images.
    #[serde(flatten)]
    pub images: ImagesUsed,
    /// What is to be known about these copies of the images.
    pub notes: Vec<String>,
    /// Whether this is the quick version, whose numbers mean nothing.
    pub quick: bool,
    /// What it was computed with.
    pub backend: String,
    /// On which device.
    pub device: String,
    /// Mean and spread over the finished seeds.
    pub metrics: MetricSummaries,
    /// Mean and spread over the finished seeds of what routers select, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub routing: BTreeMap<String, RoutingSummary>,
    /// The numbers the experiment expects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<ExpectedConfig>,
    /// Mean and spread of what each defense came to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub defenses: Vec<DefenseSummary>,
    /// What each seed gave.
    pub seeds: Vec<SeedResult>,
}

/// Mean and spread of each number over seeds; `None` where no seed has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MetricSummaries {
    /// Share of untouched test images predicted right.
    pub clean_accuracy: Option<Summary>,
    /// Attack success rate.
    pub asr: Option<Summary>,
    /// Attack success rate with the images of the target class counted in.
    pub asr_all_classes: Option<Summary>,
    /// Share of triggered images still given their true class.
    pub robust_accuracy: Option<Summary>,
    /// The clean twin's accuracy minus this classifier's.
    pub clean_accuracy_drop: Option<Summary>,
    /// The clean twin's share of untouched test images predicted right.
    pub clean_twin_accuracy: Option<Summary>,
    /// Share of triggered images that the clean twin takes for the target class anyway.
    pub clean_twin_asr: Option<Summary>,
}

/// One number of a seed: its name in the report, how to take it from the measurements.
pub(crate) struct Metric {
    /// As in the files of results.
    name: &'static str,
    pub(crate) label: &'static str,
    pub(crate) of: fn(&Measurements) -> Option<f64>,
    pub(crate) summary: fn(&MetricSummaries) -> Option<Summary>,
    pub(crate) expected: fn(&ExpectedConfig) -> Option<f64>,
}

/// The numbers of the report, in its order.
pub(crate) const METRICS: [Metric; 7] = [
    Metric {
        name: "clean-accuracy",
        label: "clean accuracy (CA)",
        of: |m| Some(m.clean_accuracy),
        summary: |s| s.clean_accuracy,
        expected: |e| e.clean_accuracy,
    },
    Metric {
        name: "clean-twin-accuracy",
        label: "clean twin's accuracy",
        of: |m| m.clean_twin.as_ref().map(|twin| twin.clean_accuracy),
        summary: |s| s.clean_twin_accuracy,
        expected: |_| None,
    },
    Metric {
        name: "clean-accuracy-drop",
        label: "clean accuracy drop (CAD)",
        of: |m| m.clean_accuracy_drop,
        summary: |s| s.clean_accuracy_drop,
        expected: |e| e.clean_accuracy_drop,
    },
    Metric { name: "asr", label: "attack success rate (ASR)", of: |m| m.asr, summary: |s| s.asr, expected: |e| e.asr },
    Metric {
        name: "asr-all-classes",
        label: "  target class counted in",
        of: |m| m.asr_all_classes,
        summary: |s| s.asr_all_classes,
        expected: |e| e.asr_all_classes,
    },
    Metric {
        name: "clean-twin-asr",
        label: "  of the clean twin",
        of: |m| m.clean_twin.as_ref().and_then(|twin| twin.asr),
        summary: |s| s.clean_twin_asr,
        expected: |_| None,
    },
    Metric {
        name: "robust-accuracy",
        label: "robust accuracy (RA)",
        of: |m| m.robust_accuracy,
        summary: |s| s.robust_accuracy,
        expected: |e| e.robust_accuracy,
    },
];

/// Every number of a seed by its name in tables of sweeps, in their order; `group/name` for what belongs together.
pub(crate) fn named_numbers(measurements: &Measurements) -> Vec<(String, f64)> {
    let metrics = METRICS.iter().filter_map(|metric| Some((metric.name.to_owned(), (metric.of)(measurements)?)));
    let mut numbers = metrics.collect::<Vec<_>>();
    let mut titles: Vec<&str> = Vec::new();
    for defense in &measurements.defenses {
        // Two defenses may be called the same.
        let same = titles.iter().filter(|title| **title == defense.title).count();
        let title = if same == 0 { defense.title.clone() } else { format!("{} ({})", defense.title, same + 1) };
        titles.push(&defense.title);
        let Some(measured) = defense.measurements() else { continue };
        let standing = |title: &str, after: &DefenseStanding, ratings: &Ratings| {
            let named = [
                ("clean-accuracy", Some(after.clean_accuracy)),
                ("asr", after.asr),
                ("robust-accuracy", after.robust_accuracy),
                ("defense-effectiveness", ratings.defense_effectiveness),
                ("robust-improvement", ratings.robust_improvement),
            ];
            let title = title.to_owned();
            named.into_iter().filter_map(move |(name, value)| Some((format!("{title}/{name}"), value?)))
        };
        numbers.extend(standing(&title, &measured.after, &measured.ratings));
        numbers.push((format!("{title}/seconds"), measured.seconds));
        for row in &measured.series {
            numbers.extend(standing(&format!("{title}, {} pruned", row.pruned_fraction), &row.after, &row.ratings));
        }
    }
    numbers.extend(measurements.routing.iter().flat_map(|routing| routing.named()));
    numbers
}

impl MetricSummaries {
    /// Summarizes the seeds that finished.
    pub fn of(seeds: &[SeedResult]) -> Self {
        let values = |of: fn(&Measurements) -> Option<f64>| {
            let values = seeds.iter().filter_map(SeedResult::measurements).filter_map(of);
            Summary::of(&values.collect::<Vec<_>>())
        };
        Self {
            clean_accuracy: values(|m| Some(m.clean_accuracy)),
            asr: values(|m| m.asr),
            asr_all_classes: values(|m| m.asr_all_classes),
            robust_accuracy: values(|m| m.robust_accuracy),
            clean_accuracy_drop: values(|m| m.clean_accuracy_drop),
            clean_twin_accuracy: values(|m| m.clean_twin.as_ref().map(|twin| twin.clean_accuracy)),
            clean_twin_asr: values(|m| m.clean_twin.as_ref().and_then(|twin| twin.asr)),
        }
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
}

impl RunSummary {
    /// Whether every seed finished.
    pub fn is_complete(&self) -> bool {
        self.seeds.iter().all(|seed| seed.measurements().is_some())
    }
}
