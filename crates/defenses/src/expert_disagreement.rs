use patchdoor_data::ImageSet;
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use patchdoor_train::PREDICTION_BATCH;
use serde::{Deserialize, Serialize};

use crate::error::check_rate;
use crate::expert_additions::for_each_addition;
use crate::{DefendedClassifier, Defense, DefenseError, DetectionThreshold, InputDetector, Inputs, Need, Scorer};

/// How much the experts disagree about an image: the idea by which `RGMoE` (Feng et al. 2025, arXiv:2510.15333) finds inputs of an attack
/// that few experts answer to.
///
/// Each expert alone predicts the softmax of what it adds to the classes. The score is the Jensen-Shannon divergence of these
/// predictions: the entropy of their mean less the mean of their entropies, in nats, in [0, ln experts]. The form for experts that
/// choose patches is ours; `RGMoE` works on graphs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ExpertDisagreement {
    /// Share of validation images that may be flagged, in (0, 1).
    pub false_positive_rate: f64,
}

impl Default for ExpertDisagreement {
    /// 5 % false positives, as for every detector here that has no threshold of its own.
    fn default() -> Self {
        Self { false_positive_rate: 0.05 }
    }
}

impl Defense for ExpertDisagreement {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        check_rate("false-positive-rate", self.false_positive_rate).into_iter().collect()
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Experts, Need::SeveralExperts, Need::ValidationImages]
    }

    /// It uses none of them; a detector is given some.
    fn default_clean_fraction(&self) -> f64 {
        0.05
    }
}

impl<B: TrainingBackend> InputDetector<B> for ExpertDisagreement {
    fn threshold(&self) -> DetectionThreshold {
        DetectionThreshold::FalsePositiveRate(self.false_positive_rate)
    }

    fn prepare<'a>(
        &self,
        classifier: Classifier<B::InnerBackend>,
        _clean: &ImageSet,
        _seed: u64,
        device: &'a B::Device,
    ) -> Result<Scorer<'a>, DefenseError> {
        if classifier.config().network().experts().is_none() {
            return Err(DefenseError::NoExperts { defense: "expert-disagreement" });
        }
        let experts = classifier.filter_groups().len();
        Ok(Box::new(move |images: Inputs<'_>| {
            let (mut scores, mut alone) = (Vec::with_capacity(images.len()), Vec::with_capacity(experts));
            for_each_addition(&classifier, images.batches(PREDICTION_BATCH, device), |_, added| {
                alone.push(softmax(added));
                if alone.len() == experts {
                    scores.push(disagreement(&alone));
                    alone.clear();
                }
            });
            scores
        }))
    }
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let odds = logits.iter().map(|&logit| f64::from(logit - largest).exp()).collect::<Vec<_>>();
    let sum = odds.iter().sum::<f64>();
    odds.into_iter().map(|odds| odds / sum).collect()
}

/// The Jensen-Shannon divergence of some predictions, in nats; never negative.
pub(crate) fn disagreement(predictions: &[Vec<f64>]) -> f64 {
    let count = predictions.len().max(1) as f64;
    let classes = predictions.first().map_or(0, Vec::len);
    let mean = (0..classes).map(|class| predictions.iter().map(|shares| shares[class]).sum::<f64>() / count);
    let mean = mean.collect::<Vec<_>>();
    (entropy(&mean) - predictions.iter().map(|shares| entropy(shares)).sum::<f64>() / count).max(0.0)
}

fn entropy(shares: &[f64]) -> f64 {
    shares.iter().filter(|&&share| share > 0.0).map(|share| -share * share.ln()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detectable::Planted;

    #[test]
    fn those_who_say_the_same_agree_and_those_who_are_sure_of_different_classes_do_not() {
        let even = softmax(&[2.0, 2.0]);
        assert_eq!(even, [0.5, 0.5]);
        assert!(disagreement(&[even.clone(), even.clone()]).abs() < 1e-12);
        // Two sure of two classes: ln 2.
        assert!((disagreement(&[vec![1.0, 0.0], vec![0.0, 1.0]]) - 2f64.ln()).abs() < 1e-12);
        // One sure, one even: H(3/4, 1/4) - ln(2) / 2 = 0.562335 - 0.346574.
        assert!((disagreement(&[vec![1.0, 0.0], even]) - 0.215_762).abs() < 1e-6);
        // Odds of 3 to 1, and no overflow.
        let odds = softmax(&[1000.0 + 3f32.ln(), 1000.0]);
        assert!((odds[0] - 0.75).abs() < 1e-4, "{odds:?}");
    }

    /// The areas were 0.87 and 0.20 where this was first seen: on the clean twin, experts agree about triggered images.
    #[test]
    fn it_ranks_triggered_images_of_a_backdoor_first_and_raises_no_alarm_on_untouched_ones() {
        let found = Planted::Backdoored.judged(&ExpertDisagreement::default());
        assert!(found.area > 0.75 && found.false_alarms < 0.13, "{} {}", found.area, found.false_alarms);
        let of_twin = Planted::CleanTwin.judged(&ExpertDisagreement::default());
        assert!(of_twin.area < 0.5 && of_twin.false_alarms < 0.13, "{} {}", of_twin.area, of_twin.false_alarms);
    }
}
