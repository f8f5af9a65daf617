use std::collections::BTreeMap;

use patchdoor_metrics::{Estimate, Summary};
use serde::{Deserialize, Serialize};

use crate::result::SeedResult;

/// What routers of a seed's classifiers select. Intervals are over test images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RoutingMeasurements {
    /// Experts of each classifier.
    pub experts: usize,
    /// Patches each expert selects.
    pub patches_per_expert: usize,
    /// Patches it selects from.
    pub patches: usize,
    /// Patches that lie over a changed pixel, on average over triggered test images.
    pub triggered_patches: f64,
    /// Share of them that an expert would select by chance: patches per expert / patches.
    pub chance_capture: f64,
    /// Share of them that one of the experts or more would select if each did by chance.
    pub chance_capture_any: f64,
    /// Intersection over union of two selections by chance.
    pub chance_overlap: f64,
    /// Of the backdoored classifier.
    pub victim: RoutingNumbers,
    /// Of its clean twin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean_twin: Option<RoutingNumbers>,
}

/// What the routers of one classifier select, each number averaged over experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RoutingNumbers {
    /// Share of the triggered patches that an expert selects in the triggered image.
    pub trigger_capture: Option<Estimate>,
    /// Share of the same patches that an expert selects in the untouched image.
    pub trigger_capture_untouched: Option<Estimate>,
    /// Like `trigger_capture`, over the patches that see a changed pixel anywhere in their receptive field.
    pub trigger_capture_receptive_field: Option<Estimate>,
    /// Share of the triggered patches that at least one expert selects in the triggered image.
    pub trigger_capture_any: Option<Estimate>,
    /// Intersection over union of what an expert selects in the untouched and in the triggered image.
    pub overlap: Option<Estimate>,
    /// On untouched images.
    pub clean: SetNumbers,
    /// On triggered images.
    pub triggered: SetNumbers,
}

/// What the routers of one classifier select in one set of images, each number averaged over experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SetNumbers {
    /// Brightness of a cell for its selection.
    pub intensity: AssociationNumbers,
    /// Variance within a cell for its selection.
    pub variance: AssociationNumbers,
    /// Gradient magnitude in a cell for its selection.
    pub gradient: AssociationNumbers,
    /// Entropy of an expert's selections over positions, in [0, 1]: 1 if it takes all positions equally often.
    pub load_entropy: Option<f64>,
    /// Intersection over union of what two experts select in one image, over all pairs.
    pub expert_similarity: Option<Estimate>,
}

/// How a property of image cells goes with their selection.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AssociationNumbers {
    /// Area under the ROC curve within each image; 0.5 without any relation.
    pub auc: Option<Estimate>,
    /// The same after the mean of each place over images is taken off: what content adds to place.
    pub auc_adjusted: Option<Estimate>,
    /// The first over the cells of all images together.
    pub pooled_auc: Option<Estimate>,
    /// Point-biserial correlation within each image; 0 without any relation.
    pub correlation: Option<Estimate>,
}

/// Mean and spread of one routing number over seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RoutingSummary {
    /// Of the backdoored classifiers.
    pub victim: Option<Summary>,
    /// Of their clean twins.
    pub clean_twin: Option<Summary>,
    /// What it would be without any relation.
    pub chance: Option<f64>,
}

/// One number of the routing table.
pub(crate) struct RoutingMetric {
    /// Key in `summary.json`.
    pub(crate) name: &'static str,
    /// Words in the report.
    pub(crate) label: &'static str,
    of: fn(&RoutingNumbers) -> Option<f64>,
    chance: fn(&RoutingMeasurements) -> Option<f64>,
}

fn value(estimate: Option<Estimate>) -> Option<f64> {
    estimate.map(|estimate| estimate.value)
}

impl RoutingMeasurements {
    /// Every number of the routing table by its name in tables of sweeps, and what chance would give.
    pub(crate) fn named(&self) -> Vec<(String, f64)> {
        let of = |group: &'static str, numbers: Option<&RoutingNumbers>| {
            let numbers = numbers.cloned();
            let values = METRICS.iter().filter_map(move |metric| Some((metric.name, (metric.of)(numbers.as_ref()?)?)));
            values.map(move |(name, value)| (format!("{group}/{name}"), value)).collect::<Vec<_>>()
        };
        let chance = [
            ("trigger-capture", self.chance_capture),
            ("trigger-capture-any", self.chance_capture_any),
            ("overlap", self.chance_overlap),
        ];
        let chance = chance.map(|(name, value)| (format!("routing, by chance/{name}"), value));
        let twin = of("routing, clean twin", self.clean_twin.as_ref());
        of("routing", Some(&self.victim)).into_iter().chain(twin).chain(chance).collect()
    }
}

/// The numbers of the routing table, in its order.
pub(crate) const METRICS: [RoutingMetric; 19] = [
    RoutingMetric {
        name: "trigger-capture",
        label: "trigger capture",
        of: |n| value(n.trigger_capture),
        chance: |m| Some(m.chance_capture),
    },
    RoutingMetric {
        name: "trigger-capture-untouched",
        label: "  the same patches, untouched",
        of: |n| value(n.trigger_capture_untouched),
        chance: |m| Some(m.chance_capture),
    },
    RoutingMetric {
        name: "trigger-capture-receptive-field",
        label: "  of all patches that see it",
        of: |n| value(n.trigger_capture_receptive_field),
        chance: |m| Some(m.chance_capture),
    },
    RoutingMetric {
        name: "trigger-capture-any",
        label: "  by any expert",
        of: |n| value(n.trigger_capture_any),
        chance: |m| Some(m.chance_capture_any),
    },
    RoutingMetric {
        name: "auc-intensity",
        label: "AUC of intensity, clean",
        of: |n| value(n.clean.intensity.auc),
        chance: |_| Some(0.5),
    },
    RoutingMetric {
        name: "auc-intensity-adjusted",
        label: "  its place's mean taken off",
        of: |n| value(n.clean.intensity.auc_adjusted),
        chance: |_| Some(0.5),
    },
    RoutingMetric {
        name: "auc-intensity-triggered",
        label: "  triggered",
        of: |n| value(n.triggered.intensity.auc),
        chance: |_| Some(0.5),
    },
    RoutingMetric {
        name: "auc-variance",
        label: "AUC of variance, clean",
        of: |n| value(n.clean.variance.auc),
        chance: |_| Some(0.5),
    },
    RoutingMetric {
        name: "auc-variance-adjusted",
        label: "  its place's mean taken off",
        of: |n| value(n.clean.variance.auc_adjusted),
        chance: |_| Some(0.5),
    },
    RoutingMetric {
        name: "auc-variance-triggered",
        label: "  triggered",
        of: |n| value(n.triggered.variance.auc),
        chance: |_| Some(0.5),
    },
    RoutingMetric {
        name: "auc-gradient",
        label: "AUC of gradient, clean",
        of: |n| value(n.clean.gradient.auc),
        chance: |_| Some(0.5),
    },
    RoutingMetric {
        name: "auc-gradient-adjusted",
        label: "  its place's mean taken off",
        of: |n| value(n.clean.gradient.auc_adjusted),
        chance: |_| Some(0.5),
    },
    RoutingMetric {
        name: "auc-gradient-triggered",
        label: "  triggered",
        of: |n| value(n.triggered.gradient.auc),
        chance: |_| Some(0.5),
    },
    RoutingMetric {
        name: "correlation-intensity",
        label: "correlation with intensity, clean",
        of: |n| value(n.clean.intensity.correlation),
        chance: |_| Some(0.0),
    },
    RoutingMetric {
        name: "overlap",
        label: "overlap clean/triggered (IoU)",
        of: |n| value(n.overlap),
        chance: |m| Some(m.chance_overlap),
    },
    RoutingMetric {
        name: "load-entropy",
        label: "load entropy, clean",
        of: |n| n.clean.load_entropy,
        chance: |_| Some(1.0),
    },
    RoutingMetric {
        name: "load-entropy-triggered",
        label: "  triggered",
        of: |n| n.triggered.load_entropy,
        chance: |_| Some(1.0),
    },
    RoutingMetric {
        name: "expert-similarity",
        label: "similarity of experts, clean (IoU)",
        of: |n| value(n.clean.expert_similarity),
        chance: |m| Some(m.chance_overlap),
    },
    RoutingMetric {
        name: "expert-similarity-triggered",
        label: "  triggered",
        of: |n| value(n.triggered.expert_similarity),
        chance: |m| Some(m.chance_overlap),
    },
];

/// Mean and spread over the seeds that looked at their routers, by the name of the number; empty if none did.
pub(crate) fn summarize(seeds: &[SeedResult]) -> BTreeMap<String, RoutingSummary> {
    let measured = seeds.iter().filter_map(SeedResult::measurements).filter_map(|m| m.routing.as_deref());
    let measured: Vec<&RoutingMeasurements> = measured.collect();
    let Some(first) = measured.first() else { return BTreeMap::new() };
    let of = |metric: &RoutingMetric| {
        let victim: Vec<f64> = measured.iter().filter_map(|seed| (metric.of)(&seed.victim)).collect();
        let twins = measured.iter().filter_map(|seed| seed.clean_twin.as_ref());
        let clean_twin: Vec<f64> = twins.filter_map(metric.of).collect();
        let chance = (metric.chance)(first);
        RoutingSummary { victim: Summary::of(&victim), clean_twin: Summary::of(&clean_twin), chance }
    };
    METRICS.iter().map(|metric| (metric.name.to_owned(), of(metric))).collect()
}
