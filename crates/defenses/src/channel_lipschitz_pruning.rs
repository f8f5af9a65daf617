use std::collections::BTreeMap;

use burn::tensor::TensorData;
use burn::tensor::backend::Backend;
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::{Classifier, NormInput, NormLayer};
use serde::{Deserialize, Serialize};

use crate::error::check_weight;
use crate::norm_channels::{NormChannels, Silencing, prune_channels, pruned_channels};
use crate::spectrum::largest_singular_value;
use crate::{
    DefendedClassifier, Defense, DefenseError, ModelRepair, Need, RepairDetails, RepairWork, Repaired, Strengths,
};

/// Switches off channels that answer much more strongly than the others of their layer, without any image.
///
/// Channel-Lipschitzness-based pruning (CLP; Zheng et al. 2022, ECCV). A channel's bound is the largest singular value of
/// its kernel, `[in, row * column]`, times |gamma| / sqrt(running variance + epsilon) of the batch normalization that
/// *follows*. In these pre-activation networks that is the first normalization of the next block: its channel sees the sum
/// of a block's last convolution and its shortcut, one kernel over both inputs. Each expert's normalization follows
/// the convolution that makes the map. Two differences from the published code: it takes the last convolution in the order
/// of its modules for the partner of a normalization, which in a residual block may be the shortcut alone; and it
/// leaves epsilon out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ChannelLipschitzPruning {
    /// How many standard deviations (with n - 1) over the mean of its normalization a channel's bound must lie to be
    /// pruned, a finite number of 0 or more.
    pub deviations: f64,
}

impl Default for ChannelLipschitzPruning {
    /// The 3 of Zheng et al. (2022) for CIFAR-10.
    fn default() -> Self {
        Self { deviations: 3.0 }
    }
}

impl Defense for ChannelLipschitzPruning {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        check_weight("deviations", self.deviations).into_iter().collect()
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::BatchNorm]
    }

    fn strengths(&self) -> Option<Strengths> {
        Some(Strengths { field: "deviations", values: vec![5.0, 4.0, 3.0, 2.5, 2.0, 1.5] })
    }

    fn set_strength(&mut self, value: f64) {
        self.deviations = value;
    }
}

impl<B: TrainingBackend> ModelRepair<B> for ChannelLipschitzPruning {
    fn repair(
        &self,
        classifier: Classifier<B>,
        _work: &mut RepairWork<'_>,
        _device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        let bounds = channel_bounds(&classifier);
        let pruned: Vec<_> = bounds.iter().map(|bounds| outliers(bounds, self.deviations)).collect();
        let details = RepairDetails { pruned: pruned_channels(&pruned), ..RepairDetails::default() };
        let classifier = prune_channels(classifier, &pruned, Silencing::ScaleAndShift);
        Ok(Repaired { details, ..Repaired::tuned(classifier, Vec::new()) })
    }
}

/// Bound of every channel of every normalization.
fn channel_bounds<B: Backend>(classifier: &Classifier<B>) -> Vec<NormChannels<f64>> {
    let tensors = classifier.tensors();
    let of_norm = |layer: &NormLayer<'_, B>| {
        let norms = kernels_before(&layer.input, &tensors).into_iter().map(|kernel| largest_singular_value(&kernel));
        let bounds = norms.zip(layer.scales()).map(|(norm, scale)| norm * scale.abs());
        NormChannels { path: layer.path.clone(), values: bounds.collect() }
    };
    classifier.norms().iter().map(of_norm).collect()
}

/// For every channel that a normalization sees, the kernel that makes it: one row of taps for each input channel.
fn kernels_before(input: &NormInput, tensors: &BTreeMap<String, TensorData>) -> Vec<Vec<Vec<f64>>> {
    let of = |path: &String, side: usize| filters(&tensors[&format!("{path}.weight")], side);
    match input {
        NormInput::SideBySide(paths) => paths.iter().flat_map(|path| of(path, 0)).collect(),
        NormInput::Sum(paths) => {
            // A smaller kernel is a larger one with zeros around it.
            let side = paths.iter().map(|path| tensors[&format!("{path}.weight")].shape[2]).max().unwrap_or(0);
            let mut parts = paths.iter().map(|path| of(path, side));
            let mut sums = parts.next().unwrap_or_default();
            for part in parts {
                sums.iter_mut().zip(part).for_each(|(kernel, more)| kernel.extend(more));
            }
            sums
        }
    }
}

/// The filters of a convolution, `[out, in, row, column]`, each as one row of taps per input channel; zeros around them
/// where `side` is larger than the kernel.
fn filters(weight: &TensorData, side: usize) -> Vec<Vec<Vec<f64>>> {
    let [inputs, kernel] = [weight.shape[1], weight.shape[2]];
    let side = side.max(kernel);
    let border = (side - kernel) / 2;
    let values: Vec<f64> = weight.iter::<f64>().collect();
    let taps = |own: &[f64]| {
        let mut taps = vec![0.0; side * side];
        for (row, own) in own.chunks_exact(kernel).enumerate() {
            taps[(border + row) * side + border..][..kernel].copy_from_slice(own);
        }
        taps
    };
    let rows = |filter: &[f64]| filter.chunks_exact(kernel * kernel).map(taps).collect();
    values.chunks_exact(inputs * kernel * kernel).map(rows).collect()
}

/// The channels whose bound lies more than so many standard deviations over the mean of their normalization.
fn outliers(bounds: &NormChannels<f64>, deviations: f64) -> NormChannels<bool> {
    let count = bounds.values.len() as f64;
    let mean = bounds.values.iter().sum::<f64>() / count;
    let squares = bounds.values.iter().map(|bound| (bound - mean).powi(2)).sum::<f64>();
    let deviation = (squares / (count - 1.0).max(1.0)).sqrt();
    bounds.map(|&bound| bound > mean + deviations * deviation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planted::planted;
    use crate::testing::{Learner, ascending_filters, bits, repair_with, tensor};

    #[test]
    fn the_bound_of_a_channel_is_that_of_its_kernel_times_the_scale_that_follows() {
        // group1.conv1 makes what group1.norm2 sees: filter 5 has the taps 3 and 4 for its first input channel and nothing
        // else, so its only singular value is 5; gamma 2, variance 0.999 and epsilon 0.001 double it.
        let mut weight = tensor(&ascending_filters(), "trunk.group1.conv1.weight");
        let per_filter = 16 * 9;
        weight[5 * per_filter..6 * per_filter].fill(0.0);
        (weight[5 * per_filter], weight[5 * per_filter + 1]) = (3.0, 4.0);
        let changed = [
            ("trunk.group1.conv1.weight", TensorData::new(weight, [16, 16, 3, 3])),
            ("trunk.group1.norm2.gamma", TensorData::new(vec![-2.0f32; 16], [16])),
            ("trunk.group1.norm2.running_variance", TensorData::new(vec![0.999f32; 16], [16])),
        ];
        let changed = changed.map(|(path, data)| (path.to_owned(), data)).into();
        let bounds = channel_bounds(&ascending_filters().with_tensors(changed));
        let norm2 = bounds.iter().find(|bounds| bounds.path == "trunk.group1.norm2").expect("it is there");
        assert!((norm2.values[5] - 10.0).abs() < 1e-6, "{}", norm2.values[5]);
        assert_eq!(
            bounds.iter().map(|norm| norm.values.len()).collect::<Vec<_>>(),
            [16, 16, 16, 32, 32, 64, 64, 64, 64, 64]
        );
    }

    #[test]
    fn a_sum_of_convolutions_is_one_kernel_over_both_inputs() {
        // One input channel each, a 3x3 kernel with 3 in its middle and a 1x1 kernel of 4: rows (.., 3, ..) and (.., 4, ..),
        // whose largest singular value is 5. With the 3 in a corner the rows are orthogonal, and it is 4.
        let of = |at: usize| {
            let mut taps = vec![0.0f32; 9];
            taps[at] = 3.0;
            let tensors = [
                ("a.weight".to_owned(), TensorData::new(taps, [1, 1, 3, 3])),
                ("b.weight".to_owned(), TensorData::new(vec![4.0f32], [1, 1, 1, 1])),
            ];
            let input = NormInput::Sum(vec!["a".into(), "b".into()]);
            largest_singular_value(&kernels_before(&input, &tensors.into())[0])
        };
        assert!((of(4) - 5.0).abs() < 1e-12 && (of(0) - 4.0).abs() < 1e-12, "{} {}", of(4), of(0));
    }

    #[test]
    fn only_what_lies_over_mean_and_deviations_is_an_outlier() {
        // Eleven times 1 and once 13: mean 2, deviation sqrt((11 * 1 + 121) / 11) = sqrt(12) = 3.46; 13 lies 3.18 over it.
        let mut values = vec![1.0; 11];
        values.push(13.0);
        let bounds = NormChannels { path: "norm".into(), values };
        let marked = |deviations| outliers(&bounds, deviations).values.iter().filter(|&&outlier| outlier).count();
        assert_eq!([marked(3.0), marked(3.2)], [1, 0]);
        // Channels that are all alike have no outlier, whatever is asked.
        let alike = NormChannels { path: "norm".into(), values: vec![2.0; 8] };
        assert!(outliers(&alike, 0.0).values.iter().all(|&outlier| !outlier));
    }

    #[test]
    fn a_channel_that_answers_too_strongly_is_switched_off_and_no_other() {
        let strong = |classifier: Classifier<Learner>| {
            let mut gamma = tensor(&classifier, "experts.2.norm.gamma");
            gamma[7] = 40.0;
            classifier.with_tensors([("experts.2.norm.gamma".to_owned(), TensorData::new(gamma, [64]))].into())
        };
        let before = bits(&strong(ascending_filters()));
        let repaired = repair_with(&ChannelLipschitzPruning::default(), strong(ascending_filters()), None);
        let pruned = repaired.details.pruned.iter().filter(|norm| !norm.filters.is_empty());
        let pruned: Vec<_> = pruned.map(|norm| (norm.convolution.as_str(), norm.filters.as_slice())).collect();
        assert_eq!(pruned, [("experts.2.norm", &[7][..])]);
        for (name, values) in bits(&repaired.classifier) {
            let changed = (0..values.len()).filter(|&at| values[at] != before[&name][at]).collect::<Vec<_>>();
            // The shift was zero already.
            let expected: &[usize] = if name == "experts.2.norm.gamma" { &[7] } else { &[] };
            assert_eq!(changed, expected, "{name}");
        }
    }

    #[test]
    fn a_clean_classifier_keeps_its_accuracy() {
        let planted = planted();
        let repaired = planted.repair(&ChannelLipschitzPruning::default(), planted.clean_twin());
        let (before, after) = (planted.accuracy(&planted.clean_twin()), planted.accuracy(&repaired.classifier));
        assert!(after > before - 0.05, "{before} before, {after} after");
    }
}
