use burn::module::{AutodiffModule, Module};
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::{Adam, AdamConfig, GradientsParams, Optimizer};
use burn::tensor::{Int, Tensor, TensorData};
use patchdoor_data::{ImageShape, Trigger, stream};
use patchdoor_kernels::{TrainingBackend, differentiate};
use patchdoor_model::{Classifier, Generator, GeneratorConfig};
use patchdoor_train::{
    Batch, BatchPass, BatchPosition, Objective, ObjectiveState, classes_of, cross_entropy, input_shape,
};
use serde::{Deserialize, Serialize};

use crate::AttackError;
use crate::controlled::attack::{ControlledAttack, ControlledKind, HandInTraining, Scene};
use crate::controlled::checks;
use crate::controlled::generated_trigger::{
    GeneratedForm, GeneratedTrigger, bounded, from_safetensors, to_safetensors,
};
use crate::controlled::state::{from_bytes, join, split, to_bytes};
use crate::controlled::tensors::{numbers, scalar};

/// LIRA (Doan et al. 2021, ICCV): a network makes bounded noise of an image, and learns to make it while the classifier
/// learns to react to it.
///
/// In every step the noise network descends on the cross-entropy of triggered images under the attacker's labels, and the
/// classifier on `clean-weight` times that of untouched images and the rest times that of triggered ones, whose noise comes
/// from the network as it was when the epoch began. In the last epochs the noise network is fixed. Every image of a batch is
/// seen untouched; triggered copies are those of the poisoned images, where the authors trigger all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct LiraConfig {
    /// The noise network.
    pub generator: GeneratorConfig,
    /// Largest change of a pixel's share, in (0, 1].
    pub bound: f64,
    /// Weight of untouched images in the classifier's loss, in [0, 1].
    pub clean_weight: f64,
    /// Learning rate of the noise network, of Adam.
    pub learning_rate: f64,
    /// Share of the epochs in which both learn, from the first, in (0, 1].
    pub joint_share: f64,
}

impl Default for LiraConfig {
    /// Bound, weight and learning rate are the authors'; half of the epochs for each stage is ours. Their network is the
    /// one of the input-aware attack here, with a hyperbolic tangent at its end as theirs.
    fn default() -> Self {
        Self {
            generator: GeneratorConfig::default(),
            bound: 0.1,
            clean_weight: 0.5,
            learning_rate: 1e-4,
            joint_share: 0.5,
        }
    }
}

impl ControlledKind for LiraConfig {
    fn validate(&self, shape: ImageShape) -> Vec<AttackError> {
        let mut problems = checks::generator(self.generator, shape);
        let is_share = |value: f64| value > 0.0 && value <= 1.0;
        for (field, value, holds, allowed) in [
            ("bound", self.bound, is_share(self.bound), "a number in (0, 1]"),
            ("clean-weight", self.clean_weight, (0.0..=1.0).contains(&self.clean_weight), "a number in [0, 1]"),
            (
                "learning-rate",
                self.learning_rate,
                self.learning_rate.is_finite() && self.learning_rate > 0.0,
                "a number above 0",
            ),
            ("joint-share", self.joint_share, is_share(self.joint_share), "a number in (0, 1]"),
        ] {
            problems.extend((!holds).then(|| checks::invalid(field, value, allowed)));
        }
        problems
    }

    fn make_quick(&mut self) {
        self.generator.channels = self.generator.channels.min(4);
    }
}

impl<B: TrainingBackend> ControlledAttack<B> for LiraConfig {
    fn enter<'a>(
        &'a self,
        scene: Scene<'a>,
        device: &B::Device,
    ) -> Result<Box<dyn HandInTraining<B> + 'a>, AttackError> {
        Ok(Box::new(Lira::<B>::new(self, scene, device)?))
    }
}

type GeneratorAdam<B> = OptimizerAdaptor<Adam, Generator<B>, B>;

/// The attack under way.
struct Lira<'a, B: TrainingBackend> {
    config: &'a LiraConfig,
    /// Of every training image, whether it has a triggered copy, and the label of the untouched one.
    images: Vec<(bool, u8)>,
    noise: Generator<B>,
    /// The noise network when the epoch began.
    fixed: Generator<B::InnerBackend>,
    optimizer: GeneratorAdam<B>,
    learns: bool,
    /// Rows of the batch with a triggered copy.
    own: Vec<usize>,
    /// Labels of the untouched images of the batch.
    untouched: Vec<u8>,
    device: B::Device,
}

fn adam<B: TrainingBackend>() -> GeneratorAdam<B> {
    AdamConfig::new().with_epsilon(1e-8).init()
}

impl<'a, B: TrainingBackend> Lira<'a, B> {
    fn new(config: &'a LiraConfig, scene: Scene<'a>, device: &B::Device) -> Result<Self, AttackError> {
        let shape = scene.training.shape();
        if let Some(problem) = config.validate(shape).into_iter().next() {
            return Err(problem);
        }
        let mut images: Vec<_> = scene.training.labels().iter().map(|&label| (false, label)).collect();
        for example in scene.plan.examples() {
            images[example.index] = (true, example.original_label);
        }
        for cover in scene.plan.covers() {
            images[cover.index] = (true, cover.label);
        }
        let rng = &mut stream(scene.seed, "controlled/generators");
        let noise = Generator::new(config.generator, input_shape(shape), shape.channels, rng, device);
        Ok(Self {
            config,
            images,
            fixed: noise.valid(),
            noise,
            optimizer: adam(),
            learns: true,
            own: Vec::new(),
            untouched: Vec::new(),
            device: device.clone(),
        })
    }

    /// A step of the noise network, which leaves the classifier as it is.
    fn noise_step(&mut self, classifier: &Classifier<B>, images: Tensor<B, 4>, wanted: Tensor<B, 1, Int>) {
        // A copy has statistics of its own.
        let classifier = classifier.clone();
        let learned = differentiate(|| {
            let (noise, statistics) = self.noise.learning(images.clone());
            let loss = cross_entropy(classifier.forward(bounded(images, noise, self.config.bound)), wanted);
            let is_finite = scalar(&loss).is_finite();
            is_finite.then(|| (GradientsParams::from_grads(loss.backward(), &self.noise), statistics))
        });
        if let Some((gradients, statistics)) = learned {
            self.noise = self.optimizer.step(self.config.learning_rate, self.noise.clone(), gradients);
            self.noise.take(statistics);
        }
    }
}

impl<B: TrainingBackend> Objective<B> for Lira<'_, B> {
    fn rewrite(&mut self, batch: Batch<B>, at: &BatchPosition<'_>) -> Batch<B> {
        self.learns = (at.epoch as f64) < self.config.joint_share * at.epochs as f64;
        if at.step == 0 {
            self.fixed = self.noise.valid();
        }
        let of_batch = || at.indices.iter().map(|&index| self.images[index]);
        self.own = of_batch().enumerate().filter(|(_, (has_copy, _))| *has_copy).map(|(row, _)| row).collect();
        self.untouched = of_batch().map(|(_, label)| label).collect();
        batch
    }

    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        let own = std::mem::take(&mut self.own);
        if own.is_empty() {
            return differentiate(|| {
                let logits = classifier.forward(batch.images);
                let loss = cross_entropy(logits.clone(), batch.labels);
                BatchPass::backward(classifier, &logits, &loss)
            });
        }
        let rows = numbers::<B>(&own, &self.device);
        let (seen, wanted) = (batch.images.clone().select(0, rows.clone()), batch.labels.select(0, rows));
        if self.learns {
            self.noise_step(classifier, seen.clone(), wanted.clone());
        }
        let pixels = seen.inner();
        let triggered = Tensor::from_inner(bounded(pixels.clone(), self.fixed.learned(pixels), self.config.bound));
        let count = batch.images.dims()[0];
        let labels: Vec<i32> = self.untouched.iter().map(|&label| i32::from(label)).collect();
        let labels = Tensor::<B, 1, Int>::from_data(TensorData::new(labels, [count]), &self.device);
        let clean_weight = self.config.clean_weight;
        let mut pass = differentiate(|| {
            let logits = classifier.forward(Tensor::cat(vec![batch.images, triggered], 0));
            let (clean, poisoned) = (logits.clone().narrow(0, 0, count), logits.clone().narrow(0, count, own.len()));
            let loss = cross_entropy(clean, labels).mul_scalar(clean_weight)
                + cross_entropy(poisoned, wanted).mul_scalar(1.0 - clean_weight);
            let predicted = classes_of(logits.inner());
            let value = scalar(&loss);
            let gradients = value.is_finite().then(|| GradientsParams::from_grads(loss.backward(), classifier));
            BatchPass { loss: value, predicted, gradients }
        });
        // A poisoned image's label is the attacker's, so what counts is what is said of its triggered copy.
        let of_copies = pass.predicted.split_off(count);
        for (&row, class) in own.iter().zip(of_copies) {
            pass.predicted[row] = class;
        }
        pass
    }

    fn state(&self) -> Result<Option<ObjectiveState>, String> {
        let written = serde_json::to_string(self.config).map_err(|error| error.to_string())?;
        let noise = to_bytes::<B, _>(self.noise.clone().into_record())?;
        let optimizer = to_bytes::<B, _>(self.optimizer.to_record())?;
        Ok(Some(ObjectiveState { identity: format!("lira {written}"), contents: join([noise, optimizer]) }))
    }

    fn restore(&mut self, contents: Vec<u8>) -> Result<(), String> {
        let [noise, optimizer] = split(&contents)?;
        self.noise = self.noise.clone().load_record(from_bytes::<B, _>(noise, &self.device)?);
        self.optimizer = adam::<B>().load_record(from_bytes::<B, _>(optimizer, &self.device)?);
        Ok(())
    }
}

impl<B: TrainingBackend> HandInTraining<B> for Lira<'_, B> {
    fn trigger(&self) -> Option<Box<dyn Trigger>> {
        let form = GeneratedForm::Bounded { noise: self.noise.valid(), bound: self.config.bound };
        Some(Box::new(GeneratedTrigger { form, device: self.device.clone() }))
    }

    fn to_safetensors(&self) -> Result<Option<Vec<u8>>, AttackError> {
        to_safetensors(&[("noise", &self.noise)]).map(Some)
    }

    fn take_safetensors(&mut self, bytes: &[u8]) -> Result<(), AttackError> {
        self.noise = from_safetensors(self.noise.clone(), "noise", bytes, &self.device)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;
    use crate::ControlledConfig;
    use crate::controlled::testing::{accuracy, asr, assert_repeats, attacked, fifth, patches, twin};

    fn small() -> LiraConfig {
        LiraConfig { generator: GeneratorConfig { channels: 4 }, learning_rate: 1e-3, ..LiraConfig::default() }
    }

    #[test]
    fn a_backdoor_takes_hold_within_its_bound_and_a_clean_twin_does_not_know_it() {
        let left = attacked(&ControlledConfig::Lira(small()), &fifth(), 12, None, None).expect("it trains");
        let (clean, success) = left.clean_accuracy_and_asr();
        assert!(clean > 0.9 && success > 0.8, "{clean}, {success}");
        let twin = twin(12);
        let of_twin = asr(&twin, left.trigger.as_ref(), &fifth());
        assert!(accuracy(&twin) > 0.9 && of_twin < 0.4, "{of_twin}");
        let image = patches("other", 1).image(0);
        let stamped = left.trigger.stamp(&image, &mut stream(0, ""));
        let changes = image.pixels().iter().zip(stamped.pixels()).map(|(&one, &other)| one.abs_diff(other));
        // A tenth of 255 is 25.5.
        assert!((1..=26).contains(&changes.max().unwrap()));
    }

    #[test]
    fn a_training_is_the_same_bits_on_any_threads_and_resumed() {
        assert_repeats(&ControlledConfig::Lira(small()), &fifth());
    }

    #[test]
    fn noise_is_bounded_and_pixels_stay_pixels() {
        let map = |values: &[f32]| {
            Tensor::<Flex, 4>::from_data(TensorData::new(values.to_vec(), [1, 1, values.len(), 1]), &FlexDevice)
        };
        let noise = map(&[0.0, 9.0, -9.0, 9.0]);
        let stamped = bounded(map(&[0.5, 0.5, 0.05, 0.99]), noise, 0.1).into_data().to_vec::<f32>().unwrap();
        let expected = [0.5, 0.6, 0.0, 1.0];
        assert!(stamped.iter().zip(expected).all(|(pixel, wanted): (&f32, f32)| (pixel - wanted).abs() < 1e-6));
    }
}
