use burn::tensor::Tensor;
use burn::tensor::TensorData;
use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use patchdoor_data::ImageSet;
use patchdoor_kernels::{Kernels, TrainingBackend};
use patchdoor_model::{Classifier, Part};
use patchdoor_train::{PREDICTION_BATCH, accuracy_on, classes_of};
use serde::{Deserialize, Serialize};

use crate::error::{check_count, invalid};
use crate::{DefendedClassifier, Defense, DefenseError, DetectionThreshold, InputDetector, Need, Scorer};

/// IBD-PSC (Hou et al. 2024, arXiv:2405.09786): scales up the batch normalizations of the last layers and looks at whether the
/// classifier stays sure of an input's class, as it does of triggered images.
///
/// Scale and shift of the normalizations of the last k layers are multiplied by [`factor`](Self::factor). The smallest k is taken
/// at which the scaled classifier errs on more than [`error_rate`](Self::error_rate) of the clean images; there, and with each of
/// the next [`classifiers`](Self::classifiers) - 1 layers more, as far as there are layers (if no k is enough, of the last so many), the softmax of the class that the
/// classifier itself predicts is taken. The score is their mean. The experts' normalizations lie side by side and are one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ParameterScaling {
    /// What scales and shifts are multiplied by, above 1.
    pub factor: f64,
    /// How many scaled classifiers are asked, 1 or more.
    pub classifiers: usize,
    /// The share of clean images that the first of them gets wrong, in [0, 1).
    pub error_rate: f64,
    /// The score above which an image is flagged, in [0, 1].
    pub threshold: f64,
}

impl Default for ParameterScaling {
    /// The numbers of Hou et al. (2024): 1.5, five classifiers, an error of 0.6, a threshold of 0.9.
    fn default() -> Self {
        Self { factor: 1.5, classifiers: 5, error_rate: 0.6, threshold: 0.9 }
    }
}

impl Defense for ParameterScaling {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        if !(self.factor > 1.0 && self.factor.is_finite()) {
            problems.push(invalid("factor", self.factor, "a finite number above 1"));
        }
        problems.extend(check_count("classifiers", self.classifiers));
        if !(0.0..1.0).contains(&self.error_rate) {
            problems.push(invalid("error-rate", self.error_rate, "a fraction in [0, 1)"));
        }
        if !(0.0..=1.0).contains(&self.threshold) {
            problems.push(invalid("threshold", self.threshold, "a number in [0, 1]"));
        }
        problems
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::BatchNorm, Need::ValidationImages]
    }

    /// The 5 % of `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654).
    fn default_clean_fraction(&self) -> f64 {
        0.05
    }
}

impl<B: TrainingBackend> InputDetector<B> for ParameterScaling {
    fn threshold(&self) -> DetectionThreshold {
        DetectionThreshold::Score(self.threshold)
    }

    fn prepare<'a>(
        &self,
        classifier: Classifier<B::InnerBackend>,
        clean: &ImageSet,
        _seed: u64,
        device: &'a B::Device,
    ) -> Result<Scorer<'a>, DefenseError> {
        let layers = norm_layers(&classifier);
        let with_last = |count: usize| scaled(&classifier, &layers[layers.len() - count..], self.factor);
        let errs = |count: &usize| {
            let accuracy = accuracy_on(&with_last(*count), clean, PREDICTION_BATCH, device);
            1.0 - accuracy.unwrap_or(1.0) > self.error_rate
        };
        let least = (layers.len() + 1).saturating_sub(self.classifiers).max(1);
        let first = (1..=layers.len()).find(errs).unwrap_or(least);
        let most = layers.len().min(first + self.classifiers - 1);
        let scaled = (first..=most).map(with_last).collect::<Vec<_>>();
        Ok(Box::new(move |images| {
            let of_batch = |batch: Tensor<B::InnerBackend, 4>| {
                let classes = classes_of(classifier.forward(batch.clone()));
                let mut sums = vec![0.0; classes.len()];
                for scaled in &scaled {
                    let confidences = confidences(scaled.forward(batch.clone()), &classes);
                    sums.iter_mut().zip(confidences).for_each(|(sum, confidence)| *sum += confidence);
                }
                sums.into_iter().map(|sum| sum / scaled.len() as f64).collect::<Vec<_>>()
            };
            images.batches(PREDICTION_BATCH, device).flat_map(of_batch).collect()
        }))
    }
}

/// Paths of the normalizations layer by layer, from the images to the head; those of the experts are one layer.
fn norm_layers<B: Backend>(classifier: &Classifier<B>) -> Vec<Vec<String>> {
    let mut layers: Vec<(Part, Vec<String>)> = Vec::new();
    for norm in classifier.norms() {
        match layers.last_mut() {
            Some((Part::Experts, paths)) if norm.part == Part::Experts => paths.push(norm.path),
            _ => layers.push((norm.part, vec![norm.path])),
        }
    }
    layers.into_iter().map(|(_, paths)| paths).collect()
}

/// The classifier with scales and shifts of these layers multiplied.
fn scaled<B: Backend>(classifier: &Classifier<B>, layers: &[Vec<String>], factor: f64) -> Classifier<B> {
    let wanted = |path: &String| {
        let norm = path.strip_suffix(".gamma").or_else(|| path.strip_suffix(".beta"));
        norm.is_some_and(|norm| layers.iter().flatten().any(|layer| layer == norm))
    };
    let mut tensors = classifier.tensors();
    tensors.retain(|path, _| wanted(path));
    for data in tensors.values_mut() {
        let values = data.iter::<f64>().map(|value| (value * factor) as f32).collect::<Vec<_>>();
        *data = TensorData::new(values, data.shape.clone()).convert_dtype(data.dtype);
    }
    classifier.clone().with_tensors(tensors)
}

/// The softmax of each row at its class.
fn confidences<B: Kernels>(logits: Tensor<B, 2>, classes: &[u8]) -> Vec<f64> {
    let count = logits.dims()[1];
    let shares: Vec<f64> = softmax(logits, 1).into_data().iter::<f64>().collect();
    shares.chunks_exact(count).zip(classes).map(|(row, &class)| row[usize::from(class)]).collect()
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;
    use crate::detectable::Planted;
    use crate::testing::{ascending_filters, bits, tensor};

    #[test]
    fn the_confidence_is_the_softmax_of_the_given_class() {
        // ln 1 and ln 3: a quarter and three quarters.
        let logits = Tensor::<Flex, 2>::from_data([[0.0, 3.0f32.ln()], [0.0, 3.0f32.ln()]], &FlexDevice);
        let found = confidences(logits, &[0, 1]);
        assert!((found[0] - 0.25).abs() < 1e-6 && (found[1] - 0.75).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn the_last_layers_are_scaled_and_nothing_else() {
        let classifier = ascending_filters();
        let layers = norm_layers(&classifier);
        // Two blocks of two, the one before the map, that of the experts and the last.
        assert_eq!(layers.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1, 1, 1, 4, 1]);
        let changed = scaled(&classifier, &layers[5..], 1.5);
        let (before, after) = (bits(&classifier), bits(&changed));
        for name in before.keys() {
            let is_scaled = name == "norm.gamma" || name.ends_with("norm.gamma") && name.starts_with("experts.");
            // The experts' shifts are zero; those of the last normalization are one half.
            let is_scaled = is_scaled || name == "norm.beta";
            assert_eq!(before[name] != after[name], is_scaled, "{name}");
        }
        assert!((tensor(&changed, "experts.2.norm.gamma")[7] - 1.5).abs() < 1e-6);
        assert!((tensor(&changed, "norm.beta")[7] - 0.75).abs() < 1e-6);
    }

    #[test]
    fn it_finds_the_triggered_images_of_a_backdoor_and_none_of_a_clean_twin() {
        // A network of seven layers stays right under the published 1.5: no number of layers makes it err on most clean images,
        // and the area is 0.65. Of the network that AVX-512 trains it is 0.91, of that of AVX2 0.79.
        let detector = ParameterScaling { factor: 5.0, classifiers: 3, ..Default::default() };
        let (found, invented) = (Planted::Backdoored.judged(&detector), Planted::CleanTwin.judged(&detector));
        assert!(found.area > 0.75 && found.false_alarms < 0.13, "{}, {}", found.area, found.false_alarms);
        assert!(invented.area < 0.6 && invented.false_alarms < 0.13, "{}, {}", invented.area, invented.false_alarms);
    }
}
