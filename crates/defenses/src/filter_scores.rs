use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use patchdoor_data::{ImageSet, stratified_subset, stream};
use patchdoor_kernels::Kernels;
use patchdoor_metrics::share_down;
use patchdoor_model::{Classifier, FilterGroup};
use patchdoor_train::image_batches;
use serde::{Deserialize, Serialize};

use crate::{DefenseError, PrunedFilters};

/// Images looked at together; the scores do not depend on it but for rounding.
const BATCH: usize = 256;

/// What a filter is judged by: the lower, the sooner it is pruned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FilterScore {
    /// Mean of its raw output, signed, before batch normalization and rectifier, over all positions of the map (the
    /// code of Chan et al. 2025, arXiv:2505.01811).
    #[default]
    RawOutput,
    /// Mean of what the head sees of it, after batch normalization and rectifier (Liu et al. 2018, arXiv:1805.12185, as
    /// `BackdoorBench` does it).
    Activation,
}

/// The defender's images that filters and routers are measured on: all, or a stratified draw of `most`.
pub(crate) fn scored_images(
    clean: &ImageSet,
    most: usize,
    seed: u64,
    defense: &'static str,
) -> Result<ImageSet, DefenseError> {
    if clean.is_empty() {
        return Err(DefenseError::NoImages { defense });
    }
    Ok(clean.subset(&stratified_subset(clean, most, &mut stream(seed, "defense/scored-images"))))
}

/// Score of every filter before the head, in inference mode.
pub(crate) fn filter_scores<B: Kernels>(
    classifier: &Classifier<B>,
    images: &ImageSet,
    score: FilterScore,
    device: &B::Device,
) -> Vec<f64> {
    let mut sums: Vec<f64> = Vec::new();
    for batch in image_batches::<B>(images, BATCH, device) {
        let count = batch.dims()[0] as f64;
        let activity = classifier.filter_activity(batch);
        let means = match score {
            FilterScore::RawOutput => {
                let [batch, rows, columns, filters] = activity.outputs.dims();
                // Positions first, so that f32 sums stay short.
                let positions = activity.outputs.reshape([batch, rows * columns, filters]).mean_dim(1);
                mean_of_rows(positions.reshape([batch, filters]))
            }
            FilterScore::Activation => mean_of_rows(activity.features),
        };
        sums.resize(means.len(), 0.0);
        for (sum, mean) in sums.iter_mut().zip(means) {
            *sum += count * mean;
        }
    }
    let images = images.len().max(1) as f64;
    sums.into_iter().map(|sum| sum / images).collect()
}

fn mean_of_rows<B: Backend>(rows: Tensor<B, 2>) -> Vec<f64> {
    rows.mean_dim(0).into_data().iter::<f64>().collect()
}

/// All filters, the lowest score first; ties go to the lower number.
pub(crate) fn lowest_first(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
    order
}

/// The lowest share of each convolution's filters, rounded down: 0.1 of 160 are 16.
pub(crate) fn lowest_of_each(scores: &[f64], groups: &[FilterGroup], share: f64) -> Vec<usize> {
    let of_group = |group: &FilterGroup| {
        let count = share_down(share, group.count);
        let order = lowest_first(&scores[group.first..group.first + group.count]);
        order.into_iter().take(count).map(|filter| group.first + filter).collect::<Vec<_>>()
    };
    groups.iter().flat_map(of_group).collect()
}

/// Which filters of which convolution these are.
pub(crate) fn pruned_filters(pruned: &[usize], groups: &[FilterGroup]) -> Vec<PrunedFilters> {
    let of_group = |group: &FilterGroup| {
        let inside = group.first..group.first + group.count;
        let mut filters: Vec<usize> =
            pruned.iter().filter(|filter| inside.contains(filter)).map(|filter| filter - group.first).collect();
        filters.sort_unstable();
        PrunedFilters { convolution: group.path.clone(), filters, of: group.count }
    };
    groups.iter().map(of_group).collect()
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;
    use crate::testing::{constant_filters, shapes};

    #[test]
    fn a_filter_that_answers_a_constant_has_it_as_its_score() {
        // Weights are zero, so every raw output is the bias, at all 64 positions of every image.
        let biases: Vec<f32> = (0..64).map(|filter| (filter as f32 - 20.0) / 8.0).collect();
        let classifier = constant_filters::<Flex>(&biases);
        let raw = filter_scores(&classifier, &shapes(300), FilterScore::RawOutput, &FlexDevice);
        let activation = filter_scores(&classifier, &shapes(300), FilterScore::Activation, &FlexDevice);
        for (filter, bias) in biases.iter().map(|&bias| f64::from(bias)).enumerate() {
            // Sums over 64 positions and 300 images in f32 leave about six digits.
            let tolerance = 1e-5 * (1.0 + bias.abs());
            assert!((raw[filter] - bias).abs() < tolerance, "signed: {} for {bias}", raw[filter]);
            // Running mean 0 and variance 1, epsilon 1e-3: max(b / sqrt(1.001), 0).
            let rectified = (bias / 1.001f64.sqrt()).max(0.0);
            assert!((activation[filter] - rectified).abs() < tolerance, "rectified: {}", activation[filter]);
        }
    }

    #[test]
    fn a_sixth_of_each_group_is_rounded_down_and_ties_go_to_the_lower_filter() {
        let groups = [
            FilterGroup { path: "a".into(), first: 0, count: 4 },
            FilterGroup { path: "b".into(), first: 4, count: 4 },
        ];
        let scores = [3.0, 1.0, 1.0, 2.0, -1.0, -5.0, 0.0, -2.0];
        assert_eq!(lowest_of_each(&scores, &groups, 0.5), [1, 2, 5, 7]);
        assert_eq!(lowest_of_each(&scores, &groups, 0.3), [1, 5]);
        assert!(lowest_of_each(&scores, &groups, 0.2).is_empty());
        assert_eq!(lowest_first(&scores), [5, 7, 4, 6, 1, 2, 3, 0]);
        let named = pruned_filters(&[7, 5, 1], &groups);
        assert_eq!(named[0].filters, [1]);
        assert_eq!((named[1].filters.as_slice(), named[1].of), (&[1, 3][..], 4));
        // The authors' 16 of 160.
        let wide = [FilterGroup { path: "e".into(), first: 0, count: 160 }];
        assert_eq!(lowest_of_each(&vec![0.0; 160], &wide, 0.1).len(), 16);
    }
}
