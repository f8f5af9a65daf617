use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use serde::{Deserialize, Serialize};

use crate::error::check_positive;
use crate::reversal::ReversalConfig;
use crate::reversed_trigger::ReversedTrigger;
use crate::{DefendedClassifier, Defense, DefenseError, Inspection, InspectionWork, ModelInspector, Need};

/// What makes a normal distribution's median absolute deviation its standard deviation.
const CONSISTENCY: f64 = 1.4826;

/// Neural Cleanse (Wang et al. 2019, IEEE S&P): looks for the class that images can be sent to by the smallest trigger.
///
/// Of every class the smallest trigger is made that sends clean images of all classes to it ([`ReversalConfig`]). The score of a
/// class is how far the size of its mask, the sum of its pixels, lies *below* the median of all, in median absolute deviations
/// times 1.4826. A class above [`anomaly`](Self::anomaly) whose trigger works is flagged. (The published tools flag by the distance
/// to either side, and look at the side apart.)
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct NeuralCleanse {
    /// The score above which a class is flagged, a finite number above 0.
    pub anomaly: f64,
    /// How the trigger of a class is looked for.
    pub reversal: ReversalConfig,
}

impl Default for NeuralCleanse {
    /// The anomaly index of 2 of Wang et al. (2019).
    fn default() -> Self {
        Self { anomaly: 2.0, reversal: ReversalConfig::default() }
    }
}

impl Defense for NeuralCleanse {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        problems.extend(check_positive("anomaly", self.anomaly));
        problems.extend(self.reversal.validate());
        problems
    }

    fn needs(&self) -> &'static [Need] {
        if self.reversal.asks_routers() { &[Need::Experts] } else { &[] }
    }

    /// The 5 % of `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654).
    fn default_clean_fraction(&self) -> f64 {
        0.05
    }

    fn make_quick(&mut self) {
        self.reversal.make_quick();
    }
}

impl<B: TrainingBackend> ModelInspector<B> for NeuralCleanse {
    fn inspect(
        &self,
        classifier: Classifier<B>,
        work: &InspectionWork<'_>,
        device: &B::Device,
    ) -> Result<Inspection, DefenseError> {
        let lacks_routers = self.reversal.asks_routers() && classifier.config().network().experts().is_none();
        if lacks_routers {
            return Err(DefenseError::NoExperts { defense: "neural-cleanse" });
        }
        let triggers = self.reversal.reverse(classifier, (work.data.clean, work.seed), work.is_stopped, device)?;
        Ok(judged(&triggers, self.anomaly))
    }
}

/// Scores of all classes by the sizes of their triggers.
pub(crate) fn judged(triggers: &[ReversedTrigger], anomaly: f64) -> Inspection {
    let scores = below_median(&triggers.iter().map(ReversedTrigger::size).collect::<Vec<_>>());
    let flagged = |(score, trigger): (&f64, &ReversedTrigger)| trigger.succeeds && *score > anomaly;
    let is_flagged = scores.iter().zip(triggers).map(flagged).collect();
    Inspection { scores, is_flagged }
}

/// How far each value lies below the median, in median absolute deviations times 1.4826; all 0 if the deviation is.
pub(crate) fn below_median(values: &[f64]) -> Vec<f64> {
    let middle = median(values);
    let deviation = CONSISTENCY * median(&values.iter().map(|value| (value - middle).abs()).collect::<Vec<_>>());
    values.iter().map(|value| if deviation > 0.0 { (middle - value) / deviation } else { 0.0 }).collect()
}

/// The middle value, or the mean of the two in the middle; 0 of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::FlexDevice;

    use super::*;
    use crate::detectable::{Planted, TARGET};
    use crate::planted::planted;

    #[test]
    fn only_what_lies_far_below_the_median_is_anomalous() {
        // Median of 2, 9, 10, 11, 18 is 10, absolute deviations 8, 1, 0, 1, 8 have the median 1: 8 / 1.4826 = 5.395927.
        let scores = below_median(&[2.0, 9.0, 10.0, 11.0, 18.0]);
        assert!((scores[0] - 5.395_927).abs() < 1e-6 && (scores[4] + 5.395_927).abs() < 1e-6, "{scores:?}");
        assert!(scores[2].abs() < 1e-12);
        assert_eq!(below_median(&[3.0, 3.0, 3.0, 9.0]), [0.0; 4]);
        assert!((median(&[4.0, 1.0, 3.0, 2.0]) - 2.5).abs() < 1e-12 && median(&[]).abs() < 1e-12);
    }

    /// Where a class shows in the whole image, the square alone works as a small trigger. Three networks of three seeds had scores
    /// of 2.0, 3.8 and 4.5 for the target and at most 1.1 for another class; the clean twin of the first has at most 1.0.
    #[test]
    fn the_smallest_trigger_is_that_of_the_target_and_a_clean_twin_is_not_flagged() {
        let reversal = ReversalConfig { rounds: 20, batch_size: 16, ..ReversalConfig::of_small_images() };
        let defense = NeuralCleanse { anomaly: 1.5, reversal };
        let found = Planted::Backdoored.inspected(&defense);
        assert_eq!(found.is_flagged, (0..10).map(|class| class == TARGET).collect::<Vec<_>>(), "{found:?}");
        let of_twin = Planted::CleanTwin.inspected(&defense);
        assert!(!of_twin.is_flagged.contains(&true), "{of_twin:?}");
    }

    #[test]
    fn a_class_whose_trigger_does_not_work_is_not_flagged() {
        let shape = patchdoor_data::ImageShape { height: 2, width: 5, channels: 1 };
        let of_size = |size: f64, succeeds| ReversedTrigger::even(shape, size / 10.0, 1.0, succeeds);
        let sizes = [1.0, 8.0, 8.5, 9.0, 9.5];
        for works in [true, false] {
            let triggers = sizes.map(|size| of_size(size, works || size > 5.0));
            assert_eq!(judged(&triggers, 2.0).is_flagged, [works, false, false, false, false]);
        }
    }

    #[test]
    fn the_trigger_that_the_routers_shall_select_is_selected_more() {
        // The same search with and without the gates: what the routers weigh of the cells that the mask covers grows.
        let taken = |gate_weight: f64| {
            let reversal = ReversalConfig { gate_weight, rounds: 8, ..ReversalConfig::of_small_images() };
            let data = (planted().validation(), 0);
            let mut found =
                reversal.reverse(planted().victim(), data, &|| false, &FlexDevice).expect("nothing stops it");
            found.swap_remove(1).taken_by(&planted().victim(), planted().validation())
        };
        let (without, with) = (taken(0.0), taken(1.0));
        assert!(with > without, "{with} with, {without} without");
    }
}
