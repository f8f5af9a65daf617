use burn::tensor::{Tensor, TensorData};
use patchdoor_data::StreamRng;
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::{TrainError, gradient_by};

/// How far from an image a perturbation may lead, and how it is looked for: projected gradient ascent within a ball of the largest
/// change of a pixel (Madry et al. 2018, arXiv:1706.06083).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PerturbationConfig {
    /// Largest change of a pixel, in steps of 1/255, in (0, 255].
    pub epsilon: f64,
    /// How far each step moves every pixel, in steps of 1/255, in (0, 255].
    pub step: f64,
    /// Steps.
    pub steps: usize,
}

impl Default for PerturbationConfig {
    /// The field's measurement on CIFAR-10: 8/255 in ten steps of 2/255.
    fn default() -> Self {
        Self { epsilon: 8.0, step: 2.0, steps: 10 }
    }
}

impl PerturbationConfig {
    /// Every field that cannot be, by its name in the table.
    pub fn validate(&self) -> Vec<TrainError> {
        self.validate_as(["epsilon", "step", "steps"])
    }

    /// The same with other names for the three fields.
    pub(crate) fn validate_as(&self, [epsilon, step, steps]: [&'static str; 3]) -> Vec<TrainError> {
        let mut problems = Vec::new();
        let mut expect = |holds: bool, field: &'static str, found: String, allowed: &str| {
            if !holds {
                problems.push(TrainError::InvalidField { field, found, allowed: allowed.into() });
            }
        };
        let allowed = "a number in (0, 255], in steps of 1/255";
        let is_change = |change: f64| change > 0.0 && change <= 255.0;
        expect(is_change(self.epsilon), epsilon, self.epsilon.to_string(), allowed);
        expect(is_change(self.step), step, self.step.to_string(), allowed);
        expect((1..=10_000).contains(&self.steps), steps, self.steps.to_string(), "1 to 10000");
        problems
    }

    /// A start drawn uniformly from the ball around each image, cut to [0, 1].
    ///
    /// # Shapes
    /// - images and output: `[batch, height, width, channel]`, pixels in [0, 1]
    pub fn random_start<B: TrainingBackend>(
        &self,
        images: &Tensor<B::InnerBackend, 4>,
        rng: &mut StreamRng,
    ) -> Tensor<B::InnerBackend, 4> {
        let shape = images.dims();
        let epsilon = (self.epsilon / 255.0) as f32;
        let noise: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-epsilon..=epsilon)).collect();
        (images.clone() + Tensor::from_data(TensorData::new(noise, shape), &images.device())).clamp(0.0, 1.0)
    }

    /// Climbs a loss from a start: each step adds `step` times the sign of the gradient, and goes back to the ball around the
    /// image and to [0, 1]. The classifier must be frozen: it then normalizes as in inference, and no weight takes a gradient.
    ///
    /// The loss is called in [`differentiate`](patchdoor_kernels::differentiate), and nothing else may happen in it.
    ///
    /// # Shapes
    /// - images, start and output: `[batch, height, width, channel]`, pixels in [0, 1]
    /// - loss: `[1]`
    pub fn climb<B: TrainingBackend>(
        &self,
        classifier: &Classifier<B>,
        images: &Tensor<B::InnerBackend, 4>,
        start: Tensor<B::InnerBackend, 4>,
        loss: impl Fn(&Classifier<B>, Tensor<B, 4>) -> Tensor<B, 1>,
    ) -> Tensor<B::InnerBackend, 4> {
        let (epsilon, step) = (self.epsilon / 255.0, self.step / 255.0);
        let (lowest, highest) = ((images.clone() - epsilon).clamp_min(0.0), (images.clone() + epsilon).clamp_max(1.0));
        let mut perturbed = start;
        for _ in 0..self.steps {
            let (gradient, ()) = gradient_by::<B, 4, _>(perturbed.clone(), |images| (loss(classifier, images), ()));
            perturbed = (perturbed + gradient.sign() * step).max_pair(lowest.clone()).min_pair(highest.clone());
        }
        perturbed
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn_flex::{Flex, FlexDevice};
    use patchdoor_data::stream;
    use patchdoor_model::{ClassifierConfig, InputShape, WideResNetConfig};

    use super::*;

    type Learner = Autodiff<Flex>;

    fn values(tensor: Tensor<Flex, 4>) -> Vec<f32> {
        tensor.into_data().into_vec().expect("f32")
    }

    fn frozen() -> Classifier<Learner> {
        let config = ClassifierConfig::WideResnet(WideResNetConfig { widen_factor: 1, ..Default::default() });
        let input = InputShape { height: 8, width: 8, channels: 1 };
        let classifier = config.init::<Learner>(input, 2, &mut stream(0, "weights"), &FlexDevice).expect("valid");
        classifier.freeze_all_but(&[])
    }

    fn flat(pixels: [f32; 4]) -> Tensor<Flex, 4> {
        Tensor::from_data(TensorData::new(pixels.to_vec(), [1, 2, 2, 1]), &FlexDevice)
    }

    #[test]
    fn steps_follow_the_sign_and_stay_in_the_ball_and_among_pixels() {
        // The loss sum(w x) has the gradient w whatever the classifier: signs +, -, 0, +.
        let weights = [0.5f32, -2.0, 0.0, 3.0];
        let loss = |_: &Classifier<Learner>, x: Tensor<Learner, 4>| (x * Tensor::from_inner(flat(weights))).sum();
        let images = flat([0.5, 0.5, 0.5, 0.99]);
        let config = PerturbationConfig { epsilon: 25.5, step: 20.4, steps: 1 };
        let once = values(config.climb(&frozen(), &images, images.clone(), loss));
        let expected = [0.58, 0.42, 0.5, 1.0];
        assert!(once.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-6), "{once:?}");
        // Two steps would be 0.16; the ball ends at 0.1.
        let twice = PerturbationConfig { steps: 2, ..config };
        let twice = values(twice.climb(&frozen(), &images, images.clone(), loss));
        let expected = [0.6, 0.4, 0.5, 1.0];
        assert!(twice.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-6), "{twice:?}");
    }

    #[test]
    fn a_random_start_lies_in_the_ball_and_is_the_same_for_a_seed() {
        let config = PerturbationConfig::default();
        let images = flat([0.0, 0.5, 1.0, 0.25]);
        let start = |seed| values(config.random_start::<Learner>(&images, &mut stream(seed, "start")));
        assert_eq!(start(0), start(0));
        assert_ne!(start(0), start(1));
        for (found, image) in start(0).into_iter().zip([0.0f32, 0.5, 1.0, 0.25]) {
            assert!((found - image).abs() <= 8.0 / 255.0 + 1e-6 && (0.0..=1.0).contains(&found), "{found}");
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        let wrong = PerturbationConfig { epsilon: 0.0, step: 300.0, steps: 0 };
        assert_eq!(wrong.validate().len(), 3);
        assert!(PerturbationConfig::default().validate().is_empty());
    }
}
