use patchdoor_metrics::{Estimate, OperatingPoint};
use serde::{Deserialize, Serialize};

/// What was measured of a detector of triggered inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DetectionMeasurements {
    /// With the backdoored classifier.
    #[serde(flatten)]
    pub victim: DetectorStanding,
    /// With the clean twin, if the experiment asks for it: what it finds, no backdoor makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean_twin: Option<DetectorStanding>,
    /// Images that were judged: validation images, then untouched and triggered test images.
    pub judged_images: usize,
    /// Seconds that preparing and judging took, the twin apart.
    pub seconds: f64,
}

/// How well a detector tells triggered test images, without those that are not attacked, from untouched ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DetectorStanding {
    /// Area under the ROC curve: the chance that a triggered image scores above an untouched one, ties counting half. 0.5 is
    /// chance; less means that triggered images score lower.
    pub auc: Option<Estimate>,
    /// The same with those triggered images only that are taken for the class the attacker wants.
    pub auc_successful: Option<Estimate>,
    /// At the detector's own threshold.
    pub own_threshold: OperatingPoint,
    /// At thresholds that flag stated shares of the validation images.
    pub at_rates: Vec<RatedPoint>,
}

/// A detector at the threshold that at most a stated share of the validation images lies above.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RatedPoint {
    /// The share, in [0, 1].
    pub validation_rate: f64,
    /// What comes of it on test images.
    #[serde(flatten)]
    pub point: OperatingPoint,
}

/// The shares of validation images at which every detector is measured.
pub const VALIDATION_RATES: [f64; 3] = [0.01, 0.05, 0.1];

impl DetectorStanding {
    /// Of scores of triggered images, of those of them whose attack succeeds, and of untouched images; `threshold` gives the
    /// score that a share of the validation images lies above.
    pub fn of(
        [triggered, successful, untouched]: [&[f64]; 3],
        own_threshold: f64,
        threshold: impl Fn(f64) -> f64,
    ) -> Self {
        let at = |threshold| OperatingPoint::at(threshold, triggered, untouched);
        Self {
            auc: patchdoor_metrics::separation(triggered, untouched),
            auc_successful: patchdoor_metrics::separation(successful, untouched),
            own_threshold: at(own_threshold),
            at_rates: VALIDATION_RATES
                .map(|validation_rate| RatedPoint { validation_rate, point: at(threshold(validation_rate)) })
                .into(),
        }
    }

    /// At the threshold of that share of the validation images.
    pub(crate) fn at_rate(&self, validation_rate: f64) -> Option<&OperatingPoint> {
        let found = self.at_rates.iter().find(|rated| (rated.validation_rate - validation_rate).abs() < 1e-9);
        found.map(|rated| &rated.point)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standing_is_written_and_read_as_it_is() {
        let scores = [0.0, 1.0, 2.0, 3.0];
        let standing = DetectorStanding::of([&scores[2..], &scores[3..], &scores[..2]], 1.0, |rate| 2.0 + rate);
        assert_eq!(standing.auc.map(|auc| auc.value), Some(1.0));
        assert_eq!(standing.auc_successful.map(|auc| auc.images), Some(3));
        assert_eq!(standing.own_threshold.false_positive_rate.map(|rate| rate.value), Some(0.0));
        let at = standing.at_rate(0.05).expect("one of the shares");
        assert_eq!((at.threshold, at.true_positive_rate.map(|rate| rate.value)), (Some(2.05), Some(0.5)));
        let measured = DetectionMeasurements { victim: standing, clean_twin: None, judged_images: 4, seconds: 1.0 };
        let text = serde_json::to_string(&measured).expect("plain data");
        assert_eq!(serde_json::from_str::<DetectionMeasurements>(&text).expect("as written"), measured);
    }
}
