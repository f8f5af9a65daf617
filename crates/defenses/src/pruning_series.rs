use burn::module::AutodiffModule;
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::{Classifier, Pruning, Removal};
use serde::{Deserialize, Serialize};

use crate::error::{check_count, invalid};
use crate::filter_scores::{FilterScore, filter_scores, lowest_of_each, pruned_filters, scored_images};
use crate::{DefendedClassifier, Defense, DefenseError, ModelRepair, RepairDetails, RepairWork, Repaired, SeriesPoint};

/// Prunes at several fractions, each time from the same model and without training.
///
/// Asks whether pruning alone removes the backdoor (Chan et al. 2025, arXiv:2505.01811, say it does not). Filters are
/// chosen and pruned as in [`FinePruning`](crate::FinePruning). The repaired model is that of the last fraction; the
/// others are there to be measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PruningSeries {
    /// Shares of each expert's filters that are pruned, in [0, 1], rounded down.
    pub fractions: Vec<f64>,
    /// What filters are judged by.
    pub score: FilterScore,
    /// How many of the defender's images they are judged on, at most.
    pub scored_images: usize,
    /// How a filter is pruned: `weights`, as published, `activation`, which switches it off, or `channel`, its weights and its
    /// column of the head.
    #[serde(skip_serializing_if = "Removal::is_weights")]
    pub how: Removal,
}

impl Default for PruningSeries {
    /// Every tenth from 0.1 to 0.9; scores as Chan et al. (2025, arXiv:2505.01811) have them.
    fn default() -> Self {
        Self {
            fractions: vec![0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
            score: FilterScore::RawOutput,
            scored_images: 10_000,
            how: Removal::Weights,
        }
    }
}

impl Defense for PruningSeries {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        if self.fractions.is_empty() || self.fractions.iter().any(|fraction| !(0.0..=1.0).contains(fraction)) {
            let found = format!("{:?}", self.fractions);
            problems.push(invalid("fractions", found, "at least one fraction, each in [0, 1]"));
        }
        problems.extend(check_count("scored-images", self.scored_images));
        problems
    }
}

impl<B: TrainingBackend> ModelRepair<B> for PruningSeries {
    fn repair(
        &self,
        classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        let images = scored_images(work.data.clean, self.scored_images, work.seed, "pruning-series")?;
        let scores = filter_scores(&classifier.valid(), &images, self.score, device);
        let groups = classifier.filter_groups();
        let mut last = (classifier.clone(), Vec::new());
        let mut series = Vec::new();
        for &pruned_fraction in &self.fractions {
            let lowest = lowest_of_each(&scores, &groups, pruned_fraction);
            let pruned = classifier.clone().prune(&Pruning::of(&lowest, scores.len(), self.how));
            series.push(SeriesPoint {
                pruned_fraction,
                pruned_filters: lowest.len(),
                filters: scores.len(),
                classifier: pruned.clone(),
            });
            last = (pruned, lowest);
        }
        let details = RepairDetails { pruned: pruned_filters(&last.1, &groups), ..RepairDetails::default() };
        Ok(Repaired { details, series, ..Repaired::tuned(last.0, Vec::new()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Learner, ascending_filters, bits, repair_with, tensor};

    #[test]
    fn a_series_of_activations_masks_scale_and_shift_of_the_last_normalization_and_nothing_else() {
        let defense = PruningSeries { fractions: vec![0.25], how: Removal::Activation, ..Default::default() };
        let repaired = repair_with(&defense, ascending_filters(), None);
        let before = bits(&ascending_filters());
        for (name, values) in bits(&repaired.classifier) {
            if name == "norm.gamma" || name == "norm.beta" {
                for (filter, &value) in values.iter().enumerate() {
                    // The lowest floor(0.25 * 16) = 4 of each expert.
                    let expected = if filter % 16 < 4 { 0 } else { before[&name][filter] };
                    assert_eq!(value, expected, "{name} of filter {filter}");
                }
            } else {
                assert_eq!(values, before[&name], "{name}");
            }
        }
        assert_eq!((repaired.series[0].pruned_filters, repaired.series[0].filters), (16, 64));
    }

    #[test]
    fn each_fraction_starts_from_the_same_model_and_the_last_is_returned() {
        let defense = PruningSeries { fractions: vec![0.75, 0.25], ..Default::default() };
        let repaired = repair_with(&defense, ascending_filters(), None);
        let zero_rows = |classifier: &Classifier<Learner>| {
            let weights = tensor(classifier, "experts.2.conv.weight");
            weights.chunks(64).filter(|row| row.iter().all(|&weight| weight == 0.0)).count()
        };
        let rows: Vec<_> = repaired.series.iter().map(|point| zero_rows(&point.classifier)).collect();
        assert_eq!(rows, [12, 4]);
        assert_eq!(repaired.series.iter().map(|point| point.pruned_filters).collect::<Vec<_>>(), [48, 16]);
        assert_eq!(zero_rows(&repaired.classifier), 4);
        assert_eq!(repaired.details.pruned[3].filters, [0, 1, 2, 3]);
    }
}
