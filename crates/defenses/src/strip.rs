use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use patchdoor_data::{ImageSet, stratified_subset, stream};
use patchdoor_kernels::{Kernels, TrainingBackend};
use patchdoor_model::Classifier;
use patchdoor_train::{PREDICTION_BATCH, image_batches};
use serde::{Deserialize, Serialize};

use crate::error::{check_rate, invalid};
use crate::{DefendedClassifier, Defense, DefenseError, DetectionThreshold, InputDetector, Need, Scorer};

/// STRIP (Gao et al. 2019, arXiv:1902.06531): superimposes clean images on an input and looks at the entropy of the predictions,
/// which stays low where a trigger decides.
///
/// The score of an image x is minus the mean over overlays o of the entropy of softmax(f(x + o)), in bits, in [-log2 classes, 0].
/// Departure: the authors draw other overlays for every input; here all inputs get the same ones, so that an image's score depends
/// on nothing but the image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Strip {
    /// How many clean images are superimposed, at most; a stratified draw of the defender's.
    pub overlays: usize,
    /// How.
    pub superimposition: Superimposition,
    /// Share of validation images that may be flagged, in (0, 1).
    pub false_positive_rate: f64,
}

/// How two images become one, by pixel, in [0, 1].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Superimposition {
    /// Their sum, cut at 1, as in the authors' code.
    #[default]
    Sum,
    /// Their mean, as `TrojanZoo` has it (Pang et al. 2022, arXiv:2012.09302).
    Mean,
}

impl Superimposition {
    /// Of a batch and one image.
    fn of<B: Kernels>(self, images: Tensor<B, 4>, overlay: Tensor<B, 4>) -> Tensor<B, 4> {
        let sum = images + overlay;
        match self {
            Self::Sum => sum.clamp_max(1.0),
            Self::Mean => sum * 0.5,
        }
    }
}

impl Default for Strip {
    /// 64 overlays, as `TrojanZoo` has them (the authors: 100, and 10 are enough, their section 5); 5 % false positives, as for
    /// every detector here that has no threshold of its own (the authors show 0.5 to 3 %).
    fn default() -> Self {
        Self { overlays: 64, superimposition: Superimposition::Sum, false_positive_rate: 0.05 }
    }
}

impl Defense for Strip {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        if !(1..=10_000).contains(&self.overlays) {
            problems.push(invalid("overlays", self.overlays, "1 to 10000"));
        }
        problems.extend(check_rate("false-positive-rate", self.false_positive_rate));
        problems
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::ValidationImages]
    }

    /// The 5 % of `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654).
    fn default_clean_fraction(&self) -> f64 {
        0.05
    }

    fn make_quick(&mut self) {
        self.overlays = self.overlays.min(4);
    }
}

impl<B: TrainingBackend> InputDetector<B> for Strip {
    fn threshold(&self) -> DetectionThreshold {
        DetectionThreshold::FalsePositiveRate(self.false_positive_rate)
    }

    fn prepare<'a>(
        &self,
        classifier: Classifier<B::InnerBackend>,
        clean: &ImageSet,
        seed: u64,
        device: &'a B::Device,
    ) -> Result<Scorer<'a>, DefenseError> {
        let drawn = stratified_subset(clean, self.overlays.min(clean.len()), &mut stream(seed, "defense/strip"));
        let overlays = image_batches::<B::InnerBackend>(&clean.subset(&drawn), 1, device).collect::<Vec<_>>();
        let superimposition = self.superimposition;
        Ok(Box::new(move |images| {
            let of_batch = |batch: Tensor<B::InnerBackend, 4>| {
                let count = batch.dims()[0];
                let mut entropies = vec![0.0; count];
                for overlay in &overlays {
                    let logits = classifier.forward(superimposition.of(batch.clone(), overlay.clone()));
                    for (sum, entropy) in entropies.iter_mut().zip(entropies_of(logits)) {
                        *sum += entropy;
                    }
                }
                entropies.into_iter().map(|sum| -sum / overlays.len() as f64).collect::<Vec<_>>()
            };
            images.batches(PREDICTION_BATCH, device).flat_map(of_batch).collect()
        }))
    }
}

/// The entropy of each row's softmax, in bits.
fn entropies_of<B: Kernels>(logits: Tensor<B, 2>) -> Vec<f64> {
    let [_, classes] = logits.dims();
    let shares: Vec<f64> = softmax(logits, 1).into_data().iter::<f64>().collect();
    // Adding 0 to 0 log 0, which is a zero of any sign.
    let entropy = |row: &[f64]| row.iter().map(|&p| if p > 0.0 { -p * p.log2() } else { 0.0 }).sum::<f64>();
    shares.chunks_exact(classes).map(entropy).collect()
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use burn_flex::{Flex, FlexDevice};

    use super::*;
    use crate::detectable::Planted;

    #[test]
    fn the_entropy_of_an_even_answer_is_all_bits_and_of_a_sure_one_none() {
        // ln 1 and ln 3: shares 1/4 and 3/4, of 1/4 * 2 + 3/4 * log2(4/3) = 0.811278 bits.
        let logits = [0.0, 0.0, 0.0, 3.0f32.ln(), 0.0, 1000.0];
        let logits = Tensor::<Flex, 2>::from_data(TensorData::new(logits.to_vec(), [3, 2]), &FlexDevice);
        let entropies = entropies_of(logits);
        for (entropy, expected) in entropies.iter().zip([1.0, 0.811_278, 0.0]) {
            assert!((entropy - expected).abs() < 1e-6, "{entropy} for {expected}");
        }
    }

    #[test]
    fn images_are_added_up_to_white_or_averaged() {
        let image = |value: f32| Tensor::<Flex, 4>::full([1, 1, 1, 1], value, &FlexDevice);
        let of = |how: Superimposition| how.of(image(0.75), image(0.5)).into_scalar();
        assert_eq!((of(Superimposition::Sum), of(Superimposition::Mean)), (1.0, 0.625));
    }

    #[test]
    fn it_finds_the_triggered_images_of_a_backdoor_and_none_of_a_clean_twin() {
        let strip = Strip { overlays: 16, ..Strip::default() };
        let (found, invented) = (Planted::Backdoored.judged(&strip), Planted::CleanTwin.judged(&strip));
        assert!(found.area > 0.9 && found.false_alarms < 0.13, "{}, {}", found.area, found.false_alarms);
        // To the clean twin the square is one more thing to doubt, so that triggered images score lower.
        assert!(invented.area < 0.6 && invented.false_alarms < 0.13, "{}, {}", invented.area, invented.false_alarms);
    }
}
