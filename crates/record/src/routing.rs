use patchdoor_metrics::Estimate;
use serde::{Deserialize, Serialize};

use crate::{AuditMeasurements, BlockingMeasurements, RoutedStanding, SwapMeasurements};

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
    /// What the backdoored classifier makes of images that are routed otherwise, if the experiment asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<SwapMeasurements>,
    /// Whether routers or experts carry the backdoor, if the experiment asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditMeasurements>,
    /// What remains if experts pass over patches, if the experiment asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocking: Option<BlockingMeasurements>,
}

impl RoutingMeasurements {
    /// Where the backdoored classifier stands with each change of its routing or experts, by title.
    pub fn interventions(&self) -> Vec<(String, RoutedStanding)> {
        let swap = self.swap.iter().flat_map(SwapMeasurements::titled);
        let audit = self.audit.iter().flat_map(AuditMeasurements::titled);
        swap.chain(audit).chain(self.blocking.iter().flat_map(BlockingMeasurements::titled)).collect()
    }
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AssociationNumbers {
    /// Area under the ROC curve within each image; 0.5 without any relation.
    pub auc: Option<Estimate>,
    /// The same after the mean of each place over images is taken off: what content adds to place.
    pub auc_adjusted: Option<Estimate>,
    /// The first for each expert; empty in results of earlier versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub auc_by_expert: Vec<f64>,
    /// The second for each expert.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub auc_adjusted_by_expert: Vec<f64>,
    /// The first over the cells of all images together.
    pub pooled_auc: Option<Estimate>,
    /// Point-biserial correlation within each image; 0 without any relation.
    pub correlation: Option<Estimate>,
}

/// What the routers of a classifier select after one epoch of its training; a line of `epochs.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RoutingEpoch {
    /// Epoch, counted from 0.
    pub epoch: usize,
    /// Test images looked at.
    pub images: usize,
    /// What was selected in them.
    #[serde(flatten)]
    pub numbers: RoutingNumbers,
    /// Share of the images in which each expert selected each patch, untouched: `[expert, patch]`.
    pub clean_frequency: Vec<Vec<f64>>,
    /// The same, triggered.
    pub triggered_frequency: Vec<Vec<f64>>,
    /// The first for the images of each class, to four digits, `[class, expert, patch]`; no lists for a class without images, and none
    /// at all in results of earlier versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clean_frequency_by_class: Vec<Vec<Vec<f64>>>,
    /// The same, triggered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub triggered_frequency_by_class: Vec<Vec<Vec<f64>>>,
}
