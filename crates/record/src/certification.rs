use patchdoor_metrics::DoubleMasking;
use serde::{Deserialize, Serialize};

/// What double masking of test images comes to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CertificationMeasurements {
    /// Test images looked at, untouched and triggered.
    pub images: usize,
    /// Side of the square window that is certified, in pixels.
    pub window: usize,
    /// Of the backdoored classifier.
    #[serde(flatten)]
    pub victim: CertificationStanding,
    /// Of the clean twin, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean_twin: Option<CertificationStanding>,
}

/// A classifier with and without double masking, on the same images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CertificationStanding {
    /// Share of untouched images that it predicts right without masks, in [0, 1].
    pub untouched_accuracy: f64,
    /// Its attack success rate without masks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asr: Option<f64>,
    /// With masks of patches, which its experts pass over; `None` without experts that choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<MaskedStanding>,
    /// With masks of pixels, if that is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pixels: Option<MaskedStanding>,
}

/// What double masking comes to with one set of masks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MaskedStanding {
    /// Number of masks.
    pub masks: usize,
    /// Share of untouched images that it decides right, in [0, 1].
    pub accuracy: f64,
    /// Share of untouched images that it decides right whatever stands in one window, in [0, 1].
    pub certified_accuracy: f64,
    /// Attack success rate of its decisions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asr: Option<f64>,
    /// Robust accuracy of its decisions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub robust_accuracy: Option<f64>,
}

impl MaskedStanding {
    /// What so many masks come to.
    pub fn of(masks: usize, found: DoubleMasking) -> Self {
        let DoubleMasking { accuracy, certified_accuracy, asr, robust_accuracy } = found;
        Self { masks, accuracy, certified_accuracy, asr, robust_accuracy }
    }
}
