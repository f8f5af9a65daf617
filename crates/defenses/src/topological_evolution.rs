use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use patchdoor_data::ImageSet;
use patchdoor_kernels::{Kernels, TrainingBackend, dense};
use patchdoor_model::{Classifier, Tapped};
use patchdoor_train::{PREDICTION_BATCH, classes_of};
use serde::{Deserialize, Serialize};

use crate::error::check_rate;
use crate::principal::{dot, mean_of, principal_axes};
use crate::{DefendedClassifier, Defense, DefenseError, DetectionThreshold, InputDetector, Inputs, Need, Scorer};

/// TED (Mo et al. 2024, IEEE S&P): looks at how near, layer by layer, an input comes to clean images of the class that it is
/// predicted as. Triggered images come near late.
///
/// At each layer the clean images are ordered by their Euclidean distance from the input's activation; the place of the first
/// with the predicted class as its label, counted from 0 and over the number of images, is the layer's rank. The vector of
/// ranks is judged by principal components fitted to those of the clean images, each ranked among the others: the score is the
/// sum over components of the squared projection over the variance. Layers are the maps after the groups of the network, the map
/// that experts choose their patches from and what the head sees; where there are routers, which patches each expert selects is
/// one more, our own. Departures: the authors rank in every layer, and their detector measures distances from the ends of the axes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct TopologicalEvolution {
    /// Whether selections are a layer too, where there are any.
    pub selections: bool,
    /// Share of validation images that may be flagged, in (0, 1).
    pub false_positive_rate: f64,
}

impl Default for TopologicalEvolution {
    /// With selections; 5 % false positives, as for every detector here that has no threshold of its own.
    fn default() -> Self {
        Self { selections: true, false_positive_rate: 0.05 }
    }
}

impl Defense for TopologicalEvolution {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        check_rate("false-positive-rate", self.false_positive_rate).into_iter().collect()
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::ValidationImages]
    }

    /// The 5 % of `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654).
    fn default_clean_fraction(&self) -> f64 {
        0.05
    }
}

impl<B: TrainingBackend> InputDetector<B> for TopologicalEvolution {
    fn threshold(&self) -> DetectionThreshold {
        DetectionThreshold::FalsePositiveRate(self.false_positive_rate)
    }

    fn prepare<'a>(
        &self,
        classifier: Classifier<B::InnerBackend>,
        clean: &ImageSet,
        _seed: u64,
        device: &'a B::Device,
    ) -> Result<Scorer<'a>, DefenseError> {
        let selections = self.selections;
        let batches = Inputs::of(clean).batches(PREDICTION_BATCH, device);
        let (classes, layers): (Vec<_>, Vec<_>) =
            batches.map(|batch| activations(&classifier, batch, selections)).unzip();
        let classes = classes.concat();
        let neighbours = Neighbours { layers: joined(&layers), labels: clean.labels().to_vec() };
        let own = neighbours.layers.iter().map(|layer| layer.points.clone()).collect::<Vec<_>>();
        let usual = Usual::of(&neighbours.ranks(&classes, &own, true));
        Ok(Box::new(move |images| {
            let of_batch = |batch| {
                let (classes, layers) = activations(&classifier, batch, selections);
                let ranks = neighbours.ranks(&classes, &layers, false);
                ranks.iter().map(|ranks| usual.distance(ranks)).collect::<Vec<_>>()
            };
            images.batches(PREDICTION_BATCH, device).flat_map(of_batch).collect()
        }))
    }
}

/// Predicted classes of a batch, and its activations layer by layer, `[image, number]`.
fn activations<B: Kernels>(
    classifier: &Classifier<B>,
    batch: Tensor<B, 4>,
    selections: bool,
) -> (Vec<u8>, Vec<Tensor<B, 2>>) {
    // The filters' raw outputs are between the map and the features, and as large as the map.
    let names = classifier.taps().iter().copied().filter(|&name| name != "filters").collect::<Vec<_>>();
    let count = batch.dims()[0];
    let (logits, mut taps) = classifier.forward_with_taps(batch.clone(), &names);
    let mut layers = Vec::new();
    for name in names {
        layers.push(match taps.remove(name) {
            Some(Tapped::Map(map)) => {
                let length = map.dims().iter().skip(1).product::<usize>();
                map.reshape([count, length])
            }
            Some(Tapped::Features(features)) => features,
            None => unreachable!("{name} was asked for"),
        });
    }
    if selections && classifier.config().network().experts().is_some() {
        for routing in classifier.forward_with_routing(batch).1 {
            let selected = routing.weights().greater_elem(0.0).float();
            let [_, experts, patches] = selected.dims();
            layers.push(selected.reshape([count, experts * patches]));
        }
    }
    (classes_of(logits), layers)
}

/// Clean images at one layer.
struct Layer<B: Backend> {
    /// `[image, number]`
    points: Tensor<B, 2>,
    /// Minus half of the squared length of each: what of a distance does not depend on the input, `[image]`.
    offsets: Tensor<B, 1>,
}

impl<B: Backend> Layer<B> {
    fn of(points: Tensor<B, 2>) -> Self {
        let count = points.dims()[0];
        let offsets = points.clone().powi_scalar(2).sum_dim(1).reshape([count]) * -0.5;
        Self { points, offsets }
    }
}

fn joined<B: Backend>(batches: &[Vec<Tensor<B, 2>>]) -> Vec<Layer<B>> {
    let count = batches.first().map_or(0, Vec::len);
    let of = |layer: usize| Layer::of(Tensor::cat(batches.iter().map(|batch| batch[layer].clone()).collect(), 0));
    (0..count).map(of).collect()
}

/// Clean images that others are ranked among.
struct Neighbours<B: Backend> {
    layers: Vec<Layer<B>>,
    labels: Vec<u8>,
}

impl<B: Kernels> Neighbours<B> {
    /// Ranks of images with these predicted classes, `[image][layer]`; of the clean images themselves, each is ranked among the
    /// others.
    fn ranks(&self, classes: &[u8], activations: &[Tensor<B, 2>], are_own: bool) -> Vec<Vec<f64>> {
        let mut ranks = vec![Vec::new(); classes.len()];
        for (layer, points) in self.layers.iter().zip(activations) {
            // |a - b|^2 = |a|^2 - 2 (ab - |b|^2 / 2): the larger what is in the brackets, the nearer.
            let nearness = dense(points.clone(), layer.points.clone(), layer.offsets.clone());
            let values: Vec<f64> = nearness.into_data().iter::<f64>().collect();
            for (image, row) in values.chunks_exact(self.labels.len()).enumerate() {
                let own = are_own.then_some(image);
                ranks[image].push(rank(row, &self.labels, classes[image], own));
            }
        }
        ranks
    }
}

/// The share of the images that are nearer than the nearest of a class, one left out if that is said; 1 if there is none.
fn rank(nearness: &[f64], labels: &[u8], class: u8, left_out: Option<usize>) -> f64 {
    let others = || (0..labels.len()).filter(|&other| Some(other) != left_out);
    let nearest = others().filter(|&other| labels[other] == class).map(|other| nearness[other]).reduce(f64::max);
    let count = others().count().max(1) as f64;
    nearest.map_or(1.0, |nearest| others().filter(|&other| nearness[other] > nearest).count() as f64 / count)
}

/// What ranks are usual, by principal components.
struct Usual {
    mean: Vec<f64>,
    /// Each with one over the variance along it.
    axes: Vec<(Vec<f64>, f64)>,
}

impl Usual {
    fn of(ranks: &[Vec<f64>]) -> Self {
        let mean = mean_of(&ranks.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let centred = ranks.iter().map(|ranks| difference(ranks, &mean)).collect::<Vec<_>>();
        let axes = principal_axes(&centred, mean.len());
        let count = centred.len().max(1) as f64;
        let variances = axes.iter().map(|axis| centred.iter().map(|row| dot(row, axis).powi(2)).sum::<f64>() / count);
        let variances = variances.collect::<Vec<_>>();
        // A direction in which clean images never differ would decide alone: they differ by one place, at least.
        let least = (1e-3 * variances.iter().copied().fold(0.0, f64::max)).max(count.powi(-2));
        let weighed = axes.into_iter().zip(variances).map(|(axis, variance)| (axis, 1.0 / variance.max(least)));
        Self { axes: weighed.collect(), mean }
    }

    fn distance(&self, ranks: &[f64]) -> f64 {
        let from = difference(ranks, &self.mean);
        self.axes.iter().map(|(axis, precision)| dot(&from, axis).powi(2) * precision).sum()
    }
}

fn difference(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

#[cfg(test)]
mod tests {
    use burn::module::AutodiffModule;
    use burn::tensor::TensorData;
    use burn_flex::{Flex, FlexDevice};
    use patchdoor_train::image_batches;

    use super::*;
    use crate::detectable::Planted;
    use crate::testing::{ascending_filters, shapes};

    #[test]
    fn the_rank_is_how_many_are_nearer_than_the_nearest_of_the_class() {
        // Points 0, 3, 5 and 9 on a line with labels 0, 1, 1, 0; from 4: 3 and 5 are nearer than 0.
        let points = Tensor::<Flex, 2>::from_data([[0.0], [3.0], [5.0], [9.0]], &FlexDevice);
        let known = Neighbours { layers: vec![Layer::of(points.clone())], labels: vec![0, 1, 1, 0] };
        let from = |at: f32, class: u8| {
            let at = Tensor::<Flex, 2>::from_data(TensorData::new(vec![at], [1, 1]), &FlexDevice);
            known.ranks(&[class], &[at], false)[0][0]
        };
        assert_eq!(vec![from(4.0, 1), from(4.0, 0), from(0.5, 0), from(4.0, 7)], [0.0, 0.5, 0.0, 1.0]);
        // Each among the three others: to 0 the next of class 0 is 9, after 3 and 5; to 3 it is 5, the nearest.
        let own = known.ranks(&[0, 1, 1, 0], &[points], true);
        assert_eq!(own, [vec![2.0 / 3.0], vec![0.0], vec![0.0], vec![2.0 / 3.0]]);
    }

    #[test]
    fn the_distance_is_in_standard_deviations_along_the_axes() {
        // Variances 2 and 0.5 along the coordinates.
        let ranks = [[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]].map(Vec::from);
        let usual = Usual::of(&ranks);
        assert!((usual.distance(&[2.0, 1.0]) - (2.0 + 2.0)).abs() < 1e-9, "{}", usual.distance(&[2.0, 1.0]));
        // Of four that are all alike, one place in four is the unit.
        let alike = Usual::of(&vec![vec![0.0]; 4]);
        assert!((alike.distance(&[0.5]) - 4.0).abs() < 1e-9, "{}", alike.distance(&[0.5]));
    }

    #[test]
    fn selections_are_one_layer_more() {
        let classifier = ascending_filters().valid();
        let of = |selections| {
            let batch = image_batches::<Flex>(&shapes(10), 10, &FlexDevice).next().expect("ten images");
            activations(&classifier, batch, selections).1.iter().map(|layer| layer.dims()[1]).collect::<Vec<_>>()
        };
        // 32x32 places of 16 channels, 16x16 of 32, 8x8 of 64, and 64 features; four experts and 64 patches.
        assert_eq!(of(false), [16384, 8192, 4096, 64]);
        assert_eq!(of(true), [16384, 8192, 4096, 64, 256]);
    }

    #[test]
    fn it_finds_the_triggered_images_of_a_backdoor_and_raises_no_alarm_on_untouched_ones() {
        for selections in [true, false] {
            let detector = TopologicalEvolution { selections, ..TopologicalEvolution::default() };
            let (found, of_twin) = (Planted::Backdoored.judged(&detector), Planted::CleanTwin.judged(&detector));
            assert!(found.area > 0.9 && of_twin.area < found.area, "{} and {}", found.area, of_twin.area);
            assert!(found.false_alarms < 0.13 && of_twin.false_alarms < 0.13);
        }
    }
}
