use burn::tensor::Tensor;
use patchdoor_data::ImageSet;
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use patchdoor_train::{PREDICTION_BATCH, classes_of};
use serde::{Deserialize, Serialize};

use crate::error::invalid;
use crate::{DefendedClassifier, Defense, DefenseError, DetectionThreshold, InputDetector, Need, Scorer};

/// SCALE-UP (Guo et al. 2023, arXiv:2302.03251): multiplies an input's pixels and looks at whether its predicted class stays, as
/// that of triggered images does.
///
/// The score of an image is the share of the factors n for which f(min(n x, 1)) gives the class that f(x) gives: the authors'
/// scaled prediction consistency, in the variant that needs no data. It takes few values, so that many images tie; ties are not
/// flagged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ScaleUp {
    /// What pixels are multiplied by, each above 1.
    pub factors: Vec<f64>,
    /// The score above which an image is flagged, in [0, 1].
    pub threshold: f64,
}

impl Default for ScaleUp {
    /// The authors' code: factors 3, 5, 7, 9 and 11, threshold 0.5.
    fn default() -> Self {
        Self { factors: vec![3.0, 5.0, 7.0, 9.0, 11.0], threshold: 0.5 }
    }
}

impl Defense for ScaleUp {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        if self.factors.is_empty() || !self.factors.iter().all(|&factor| factor > 1.0 && factor <= 255.0) {
            let found = format!("{:?}", self.factors);
            problems.push(invalid("factors", found, "at least one factor, each above 1 and up to 255"));
        }
        if !(0.0..=1.0).contains(&self.threshold) {
            problems.push(invalid("threshold", self.threshold, "a share in [0, 1]"));
        }
        problems
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::ValidationImages]
    }

    fn make_quick(&mut self) {
        self.factors.truncate(3);
    }
}

impl<B: TrainingBackend> InputDetector<B> for ScaleUp {
    fn threshold(&self) -> DetectionThreshold {
        DetectionThreshold::Score(self.threshold)
    }

    fn prepare<'a>(
        &self,
        classifier: Classifier<B::InnerBackend>,
        _clean: &ImageSet,
        _seed: u64,
        device: &'a B::Device,
    ) -> Result<Scorer<'a>, DefenseError> {
        let factors = self.factors.clone();
        Ok(Box::new(move |images| {
            let of_batch = |batch: Tensor<B::InnerBackend, 4>| {
                let classes = |images| classes_of(classifier.forward(images));
                let own = classes(batch.clone());
                let mut kept = vec![0usize; own.len()];
                for &factor in &factors {
                    let scaled = classes((batch.clone() * factor).clamp_max(1.0));
                    for ((kept, own), scaled) in kept.iter_mut().zip(&own).zip(scaled) {
                        *kept += usize::from(*own == scaled);
                    }
                }
                kept.into_iter().map(|kept| kept as f64 / factors.len() as f64).collect::<Vec<_>>()
            };
            images.batches(PREDICTION_BATCH, device).flat_map(of_batch).collect()
        }))
    }
}

#[cfg(test)]
mod tests {
    use burn::module::AutodiffModule;
    use burn_flex::FlexDevice;
    use patchdoor_data::ImageShape;
    use patchdoor_train::predict;

    use super::*;
    use crate::Inputs;
    use crate::detectable::Planted;
    use crate::testing::{Learner, ascending_filters};

    #[test]
    fn the_score_is_the_share_of_factors_that_keep_the_class() {
        let classifier = ascending_filters();
        // A black image stays black: its class stays for every factor. One whose pixels are all 100 becomes 200 by the
        // factor 2, and white by 3 and 4.
        let shape = ImageShape { height: 32, width: 32, channels: 3 };
        let flat = |values: &[u8]| {
            let pixels = values.iter().flat_map(|&value| vec![value; shape.size()]).collect();
            ImageSet::new(shape, pixels, vec![0; values.len()], vec!["any".to_owned()]).expect("valid")
        };
        let detector = ScaleUp { factors: vec![2.0, 3.0, 4.0], ..ScaleUp::default() };
        let judge =
            InputDetector::<Learner>::prepare(&detector, classifier.valid(), &flat(&[0]), 0, &FlexDevice).expect("any");
        let scores = judge(Inputs::of(&flat(&[0, 100])));
        let classes = predict(&classifier.valid(), &flat(&[100, 200, 255]), 3, &FlexDevice);
        let kept = f64::from(u8::from(classes[0] == classes[1])) + 2.0 * f64::from(u8::from(classes[0] == classes[2]));
        assert_eq!(scores, [1.0, kept / 3.0]);
    }

    #[test]
    fn it_finds_the_triggered_images_of_a_backdoor_and_none_of_a_clean_twin() {
        let detector = ScaleUp::default();
        let (found, invented) = (Planted::Backdoored.judged(&detector), Planted::CleanTwin.judged(&detector));
        assert!(found.area > 0.9 && found.false_alarms < 0.13, "{}, {}", found.area, found.false_alarms);
        assert!((invented.area - 0.5).abs() < 0.1, "{}", invented.area);
        assert!(invented.false_alarms < 0.13, "{}", invented.false_alarms);
    }
}
