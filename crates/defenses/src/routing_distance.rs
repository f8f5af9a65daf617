use burn::tensor::Tensor;
use patchdoor_data::ImageSet;
use patchdoor_kernels::{Kernels, TrainingBackend};
use patchdoor_model::{Classifier, Tapped};
use patchdoor_train::{PREDICTION_BATCH, classes_of};
use serde::{Deserialize, Serialize};

use crate::error::check_rate;
use crate::{DefendedClassifier, Defense, DefenseError, DetectionThreshold, InputDetector, Inputs, Need, Scorer};

/// How far an image's routing lies from that of the clean images of its predicted class.
///
/// This project's own. Of every image, a vector x is taken in the [`space`](Self::space) that is asked for. On the defender's clean
/// images, with c the class that the classifier predicts, m(c) is the mean of x over the images predicted as c, and v the variance
/// of x around these means, over all images, coordinate by coordinate. The score of an image predicted as c is the mean over
/// coordinates j of (x(j) - m(c, j))^2 / (v(j) + r), where r is a tenth of the mean of v, so that a coordinate that never moves
/// does not decide alone. Of a class that no clean image is predicted as, m(c) is the mean over all.
///
/// In the space of features it is the same distance without routing: beside it one sees what routing adds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct RoutingDistance {
    /// What of an image is compared.
    pub space: RoutingSpace,
    /// Share of validation images that may be flagged, in (0, 1).
    pub false_positive_rate: f64,
}

/// What of an image is compared with clean images of its predicted class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoutingSpace {
    /// Which patches every expert selects: 1 or 0 for each expert and patch.
    Selections,
    /// The gate of every expert for every patch, 0 where it is not selected.
    #[default]
    Gates,
    /// What the head sees; no routing.
    Features,
}

impl RoutingSpace {
    fn is_of_routing(self) -> bool {
        self != Self::Features
    }
}

impl Default for RoutingDistance {
    /// Gates, which found most on the victim of `docs/defenses.md`; 5 % false positives, as for every detector here that has no threshold of its own.
    fn default() -> Self {
        Self { space: RoutingSpace::Gates, false_positive_rate: 0.05 }
    }
}

impl Defense for RoutingDistance {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        check_rate("false-positive-rate", self.false_positive_rate).into_iter().collect()
    }

    fn needs(&self) -> &'static [Need] {
        if self.space.is_of_routing() { &[Need::Experts, Need::ValidationImages] } else { &[Need::ValidationImages] }
    }

    /// The 5 % of `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654).
    fn default_clean_fraction(&self) -> f64 {
        0.05
    }
}

impl<B: TrainingBackend> InputDetector<B> for RoutingDistance {
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
        if self.space.is_of_routing() && classifier.config().network().experts().is_none() {
            return Err(DefenseError::NoExperts { defense: "routing-distance" });
        }
        let space = self.space;
        let vectors = move |images: Inputs<'_>| {
            let batches = images.batches(PREDICTION_BATCH, device);
            let (classes, vectors): (Vec<_>, Vec<_>) = batches.map(|batch| of_batch(&classifier, batch, space)).unzip();
            (classes.concat(), vectors.concat())
        };
        let (classes, known) = vectors(Inputs::of(clean));
        let profile = Profile::of(&classes, &known, clean.class_count());
        Ok(Box::new(move |images| {
            let (classes, vectors) = vectors(images);
            classes.iter().zip(&vectors).map(|(&class, vector)| profile.distance(class, vector)).collect()
        }))
    }
}

/// Predicted classes of a batch, and the vector of each image.
fn of_batch<B: Kernels>(
    classifier: &Classifier<B>,
    batch: Tensor<B, 4>,
    space: RoutingSpace,
) -> (Vec<u8>, Vec<Vec<f64>>) {
    let count = batch.dims()[0];
    let rows = |data: burn::tensor::TensorData| {
        let values: Vec<f64> = data.iter::<f64>().collect();
        let length = values.len() / count;
        values.chunks_exact(length).map(<[f64]>::to_vec).collect::<Vec<_>>()
    };
    if space == RoutingSpace::Features {
        let (logits, mut taps) = classifier.forward_with_taps(batch, &["features"]);
        let features = taps.remove("features").and_then(Tapped::features).expect("every network has features");
        return (classes_of(logits), rows(features.into_data()));
    }
    let (logits, routings) = classifier.forward_with_routing(batch);
    let mut vectors = vec![Vec::new(); count];
    for routing in routings {
        for (vector, gates) in vectors.iter_mut().zip(rows(routing.weights().into_data())) {
            let taken = |gate: f64| if space == RoutingSpace::Gates { gate } else { f64::from(u8::from(gate > 0.0)) };
            vector.extend(gates.into_iter().map(taken));
        }
    }
    (classes_of(logits), vectors)
}

/// What is usual for each class.
struct Profile {
    /// `[class][coordinate]`
    means: Vec<Vec<f64>>,
    /// One over the regularised variance of each coordinate.
    precisions: Vec<f64>,
}

impl Profile {
    fn of(classes: &[u8], vectors: &[Vec<f64>], class_count: usize) -> Self {
        let length = vectors.first().map_or(0, Vec::len);
        let mean_of = |chosen: &[&Vec<f64>]| {
            let sum = |j: usize| chosen.iter().map(|vector| vector[j]).sum::<f64>();
            (0..length).map(|j| sum(j) / chosen.len().max(1) as f64).collect::<Vec<_>>()
        };
        let overall = mean_of(&vectors.iter().collect::<Vec<_>>());
        let of_class = |class: usize| {
            let chosen = classes.iter().zip(vectors).filter(|(own, _)| usize::from(**own) == class);
            let chosen = chosen.map(|(_, vector)| vector).collect::<Vec<_>>();
            if chosen.is_empty() { overall.clone() } else { mean_of(&chosen) }
        };
        let means = (0..class_count).map(of_class).collect::<Vec<_>>();
        let mut variances = vec![0.0; length];
        for (&class, vector) in classes.iter().zip(vectors) {
            for ((variance, value), mean) in variances.iter_mut().zip(vector).zip(&means[usize::from(class)]) {
                *variance += (value - mean).powi(2) / vectors.len() as f64;
            }
        }
        let ridge = (0.1 * variances.iter().sum::<f64>() / length.max(1) as f64).max(f64::MIN_POSITIVE);
        Self { means, precisions: variances.into_iter().map(|variance| 1.0 / (variance + ridge)).collect() }
    }

    fn distance(&self, class: u8, vector: &[f64]) -> f64 {
        let terms = vector.iter().zip(&self.means[usize::from(class)]).zip(&self.precisions);
        let sum: f64 = terms.map(|((value, mean), precision)| (value - mean).powi(2) * precision).sum();
        sum / vector.len().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use burn::module::AutodiffModule;
    use burn_flex::FlexDevice;
    use patchdoor_train::image_batches;

    use super::*;
    use crate::detectable::Planted;
    use crate::testing::{ascending_filters, shapes};

    #[test]
    fn the_distance_is_from_the_mean_of_the_predicted_class_in_its_own_spread() {
        // Class 0: (0, 0) and (2, 0), mean (1, 0); class 1: (10, 0), its own mean. Variances around them: (1 + 1 + 0) / 3 =
        // 2/3 and 0; r = 0.1 * (2/3 + 0) / 2 = 1/30.
        let vectors = [vec![0.0, 0.0], vec![2.0, 0.0], vec![10.0, 0.0]];
        let profile = Profile::of(&[0, 0, 1], &vectors, 3);
        // (3, 1) as class 0: (4 / (2/3 + 1/30) + 1 / (1/30)) / 2 = (40/7 + 30) / 2.
        assert!((profile.distance(0, &[3.0, 1.0]) - f64::midpoint(40.0 / 7.0, 30.0)).abs() < 1e-9);
        assert!(profile.distance(1, &[10.0, 0.0]).abs() < 1e-12);
        // No image is predicted as class 2: the mean of all is (4, 0).
        assert!((profile.distance(2, &[5.0, 0.0]) - 10.0 / 14.0).abs() < 1e-9);
    }

    #[test]
    fn the_spaces_are_selections_gates_and_features() {
        let classifier = ascending_filters().valid();
        let batch = || image_batches(&shapes(10), 10, &FlexDevice).next().expect("ten images");
        let of = |space| of_batch(&classifier, batch(), space).1;
        let [selections, gates, features] =
            [RoutingSpace::Selections, RoutingSpace::Gates, RoutingSpace::Features].map(of);
        // Four experts take 16 of 64 patches each; 64 features.
        assert_eq!((selections[0].len(), gates[0].len(), features[0].len()), (256, 256, 64));
        for (selected, gates) in selections.iter().zip(&gates) {
            assert!((selected.iter().sum::<f64>() - 64.0).abs() < 1e-9);
            assert!(selected.iter().zip(gates).all(|(&selected, &gate)| (selected > 0.5) == (gate > 0.0)));
        }
    }

    #[test]
    fn it_finds_the_triggered_images_of_a_backdoor_and_raises_no_alarm_on_untouched_ones() {
        for space in [RoutingSpace::Gates, RoutingSpace::Selections, RoutingSpace::Features] {
            let detector = RoutingDistance { space, ..RoutingDistance::default() };
            let (found, of_twin) = (Planted::Backdoored.judged(&detector), Planted::CleanTwin.judged(&detector));
            let least = if space == RoutingSpace::Selections { 0.5 } else { 0.9 };
            assert!(found.area > least, "{space:?}: {}", found.area);
            // A large white square is odd to the routers of the clean twin too; how odd, the twin's area says.
            assert!(of_twin.area < found.area, "{space:?}: {} of the clean twin", of_twin.area);
            for judged in [found, of_twin] {
                assert!(judged.false_alarms < 0.13, "{space:?}: {}", judged.false_alarms);
            }
        }
    }
}
