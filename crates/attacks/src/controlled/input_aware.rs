use burn::module::{AutodiffModule, Module};
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::{Adam, AdamConfig, GradientsParams, Optimizer};
use burn::tensor::Tensor;
use burn::tensor::activation::relu;
use burn::tensor::backend::{AutodiffBackend, Backend};
use patchdoor_data::{ImageShape, Trigger, stream};
use patchdoor_kernels::{Kernels, TrainingBackend, differentiate};
use patchdoor_model::{Classifier, Generator, GeneratorConfig, GeneratorStatistics, as_shares};
use patchdoor_train::{
    Batch, BatchAssembler, BatchPass, BatchPosition, Objective, ObjectiveState, classes_of, cross_entropy, input_shape,
};
use rand::RngExt;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::controlled::attack::{ControlledAttack, ControlledKind, HandInTraining, Scene};
use crate::controlled::generated_trigger::{
    GeneratedForm, GeneratedTrigger, from_safetensors, mask_of, masked, to_safetensors,
};
use crate::controlled::state::{from_bytes, join, split, to_bytes};
use crate::controlled::tensors::{numbers, scalar};
use crate::{AttackError, controlled::checks};

/// Input-aware dynamic trigger (Nguyen and Tran 2020, arXiv:2010.08138): one network makes a mask of an image, another a
/// pattern, and the pattern replaces the image under the mask. Images with *another* image's mask and pattern keep their
/// label, so that a trigger works on its own image only.
///
/// The mask network is trained first and then fixed; the pattern network learns together with the classifier. Which images
/// are poisoned is drawn once, as for every attack, where the authors take others in every batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct InputAwareConfig {
    /// Both networks.
    pub generator: GeneratorConfig,
    /// Epochs over the training images in which the mask network learns, before the classifier's first.
    pub mask_epochs: usize,
    /// Mean of a mask that costs nothing, in (0, 1).
    pub mask_density: f64,
    /// Weight of what a mask has above its density, in the mask network's loss.
    pub density_weight: f64,
    /// Weight of the diversity loss: distance of two images over that of their patterns, or masks.
    pub diversity_weight: f64,
    /// Images with another image's trigger for each image with its own, in every batch.
    pub cross_per_poisoned: f64,
    /// Learning rate of both networks, of Adam with momenta 0.5 and 0.9; a tenth after 1/3, 1/2, 2/3 and 5/6 of the epochs.
    pub learning_rate: f64,
}

impl Default for InputAwareConfig {
    /// The authors' (their `config.py` and paper, section 4.1); their steps at 200, 300, 400 and 500 of 600 epochs as shares.
    fn default() -> Self {
        Self {
            generator: GeneratorConfig::default(),
            mask_epochs: 25,
            mask_density: 0.032,
            density_weight: 100.0,
            diversity_weight: 1.0,
            cross_per_poisoned: 1.0,
            learning_rate: 0.01,
        }
    }
}

impl ControlledKind for InputAwareConfig {
    fn validate(&self, shape: ImageShape) -> Vec<AttackError> {
        let mut problems = checks::generator(self.generator, shape);
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let not_negative = |value: f64| value.is_finite() && value >= 0.0;
        for (field, value, holds, allowed) in [
            (
                "mask-density",
                self.mask_density,
                self.mask_density > 0.0 && self.mask_density < 1.0,
                "a number in (0, 1)",
            ),
            ("density-weight", self.density_weight, not_negative(self.density_weight), "a number of 0 or more"),
            ("diversity-weight", self.diversity_weight, not_negative(self.diversity_weight), "a number of 0 or more"),
            (
                "cross-per-poisoned",
                self.cross_per_poisoned,
                not_negative(self.cross_per_poisoned),
                "a number of 0 or more",
            ),
            ("learning-rate", self.learning_rate, positive(self.learning_rate), "a number above 0"),
        ] {
            problems.extend((!holds).then(|| checks::invalid(field, value, allowed)));
        }
        problems
    }

    fn make_quick(&mut self) {
        self.mask_epochs = self.mask_epochs.min(1);
        self.generator.channels = self.generator.channels.min(4);
    }
}

impl<B: TrainingBackend> ControlledAttack<B> for InputAwareConfig {
    fn enter<'a>(
        &'a self,
        scene: Scene<'a>,
        device: &B::Device,
    ) -> Result<Box<dyn HandInTraining<B> + 'a>, AttackError> {
        Ok(Box::new(InputAware::<B>::new("input-aware", self, scene, device)?))
    }
}

/// What is done to an image of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// It gets its own trigger.
    Own,
    /// Nothing, unless it gets another's.
    Free,
}

/// The rows of a batch by what is done to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rows {
    /// With their own trigger.
    own: Vec<usize>,
    /// With the trigger of another image.
    cross: Vec<usize>,
    /// Whose trigger that is, for each.
    sources: Vec<usize>,
    /// As they are.
    rest: Vec<usize>,
}

impl Rows {
    /// `roles` are those of the batch's images.
    fn draw(roles: &[Role], cross_per_poisoned: f64, rng: &mut impl rand::Rng) -> Self {
        let (own, mut free): (Vec<_>, Vec<_>) = (0..roles.len()).partition(|&row| roles[row] == Role::Own);
        free.shuffle(rng);
        let wanted = (own.len() as f64 * cross_per_poisoned).round() as usize;
        let wanted = if roles.len() < 2 { 0 } else { wanted.min(free.len()) };
        let mut rest = free.split_off(wanted);
        rest.sort_unstable();
        // Any image but the row's own.
        let other = |&row: &usize| (row + rng.random_range(1..roles.len())) % roles.len();
        let sources = free.iter().map(other).collect();
        Self { own, cross: free, sources, rest }
    }
}

type GeneratorAdam<B> = OptimizerAdaptor<Adam, Generator<B>, B>;
/// Gradients of a generator and statistics of its batch.
type Learned<B> = (GradientsParams, GeneratorStatistics<B>);

/// The attack under way.
pub(super) struct InputAware<'a, B: TrainingBackend> {
    config: &'a InputAwareConfig,
    scene: Scene<'a>,
    identity: String,
    roles: Vec<Role>,
    masks: Generator<B>,
    are_masks_trained: bool,
    patterns: Generator<B>,
    optimizer: GeneratorAdam<B>,
    rate: f64,
    rows: Rows,
    device: B::Device,
}

fn adam<B: AutodiffBackend>() -> GeneratorAdam<B> {
    AdamConfig::new().with_beta_1(0.5).with_beta_2(0.9).with_epsilon(1e-8).init()
}

impl<'a, B: TrainingBackend> InputAware<'a, B> {
    pub(super) fn new(
        name: &str,
        config: &'a InputAwareConfig,
        scene: Scene<'a>,
        device: &B::Device,
    ) -> Result<Self, AttackError> {
        let shape = scene.training.shape();
        if let Some(problem) = config.validate(shape).into_iter().next() {
            return Err(problem);
        }
        let mut roles = vec![Role::Free; scene.training.len()];
        let own = scene.plan.examples().iter().map(|example| example.index);
        for index in own.chain(scene.plan.covers().iter().map(|cover| cover.index)) {
            roles[index] = Role::Own;
        }
        let rng = &mut stream(scene.seed, "controlled/generators");
        let masks = Generator::new(config.generator, input_shape(shape), 1, rng, device);
        let patterns = Generator::new(config.generator, input_shape(shape), shape.channels, rng, device);
        let written = serde_json::to_string(config).map_err(|error| AttackError::Weights(error.to_string()))?;
        Ok(Self {
            identity: format!("{name} {written}"),
            config,
            scene,
            roles,
            masks,
            are_masks_trained: false,
            patterns,
            optimizer: adam(),
            rate: config.learning_rate,
            rows: Rows::default(),
            device: device.clone(),
        })
    }

    /// Trains the mask network: its masks are small, and those of two images differ as far as the images do.
    fn train_masks(&mut self) {
        let images = self.scene.training.len();
        let mut optimizer = adam::<B>();
        let assembler = BatchAssembler::<B>::new(self.scene.training, &self.device);
        for epoch in 0..self.config.mask_epochs {
            let [first, second] = ["first", "second"].map(|which| {
                let mut order = (0..images).collect::<Vec<_>>();
                order.shuffle(&mut stream(self.scene.seed, &format!("controlled/masks/{which}/{epoch}")));
                order
            });
            let rate = decayed(self.config.learning_rate, epoch, self.config.mask_epochs);
            let (mut density, mut batches) = (0.0, 0);
            for (one, other) in first.chunks(self.scene.batch_size).zip(second.chunks(self.scene.batch_size)) {
                if (self.scene.is_stopped)() {
                    // The training stops with its first step, and begins anew later.
                    return;
                }
                let pair = [one, other].map(|indices| assembler.batch(indices, &self.device).images);
                let (gradients, statistics, mean) = differentiate(|| mask_pass(&self.masks, pair, self.config));
                self.masks = optimizer.step(rate, self.masks.clone(), gradients);
                self.masks.take(statistics);
                density += mean;
                batches += 1;
            }
            let (of, mean) = (self.config.mask_epochs, density / f64::from(batches.max(1)));
            (self.scene.say)(format!("mask network, epoch {} of {of}: mean of a mask {mean:.3}", epoch + 1));
        }
        self.are_masks_trained = true;
    }

    /// A pass over a batch of which some rows get triggers; also what follows from it for the pattern network.
    fn triggered_pass(&self, classifier: &Classifier<B>, batch: &Batch<B>) -> (BatchPass, Option<Learned<B>>) {
        let Rows { own, cross, sources, rest } = &self.rows;
        let changed = [own.as_slice(), cross].concat();
        let order = [changed.as_slice(), rest].concat();
        let take = |rows: &[usize]| batch.images.clone().select(0, numbers(rows, &self.device));
        let seen = take(&[own.as_slice(), sources].concat());
        let (base, untouched) = (take(&changed), (!rest.is_empty()).then(|| take(rest)));
        let labels = batch.labels.clone().select(0, numbers(&order, &self.device));
        let masks = Tensor::from_inner(mask_of(self.masks.valid().learned(seen.clone().inner())));
        let pairs = own.len().min(sources.len());
        let distance_of_images = (pairs > 0).then(|| {
            let [one, other] = halves(&seen, own.len(), pairs);
            root_mean_square(one - other)
        });
        let (mut pass, learned) = differentiate(|| {
            let (raw, statistics) = self.patterns.learning(seen);
            let patterns = as_shares(raw);
            let triggered = masked(base, patterns.clone(), masks);
            let images = Tensor::cat([triggered].into_iter().chain(untouched).collect(), 0);
            let logits = classifier.forward(images);
            let predicted = classes_of(logits.clone().inner());
            let entropy = cross_entropy(logits, labels);
            let shown = scalar(&entropy);
            let loss = match distance_of_images {
                Some(distance) => {
                    let [one, other] = halves(&patterns, own.len(), pairs);
                    let diversity = (distance / root_mean_square(one - other).add_scalar(DISTANCE)).mean();
                    entropy + diversity.mul_scalar(self.config.diversity_weight)
                }
                None => entropy,
            };
            if !scalar(&loss).is_finite() {
                return (BatchPass { loss: shown, predicted, gradients: None }, None);
            }
            let mut gradients = loss.backward();
            let of_classifier = GradientsParams::from_module(&mut gradients, classifier);
            let of_patterns = GradientsParams::from_module(&mut gradients, &self.patterns);
            (BatchPass { loss: shown, predicted, gradients: Some(of_classifier) }, Some((of_patterns, statistics)))
        });
        let mut predicted = vec![0; order.len()];
        for (&row, class) in order.iter().zip(pass.predicted) {
            predicted[row] = class;
        }
        pass.predicted = predicted;
        (pass, learned)
    }
}

/// What is added to a distance that is divided by.
const DISTANCE: f64 = 1e-7;

/// The first `pairs` of the first `own` rows, and as many after these.
fn halves<B: Backend>(x: &Tensor<B, 4>, own: usize, pairs: usize) -> [Tensor<B, 4>; 2] {
    [x.clone().narrow(0, 0, pairs), x.clone().narrow(0, own, pairs)]
}

/// The root of the mean square of each image, `[batch, 1]`. Its slope at zero is kept finite.
fn root_mean_square<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 2> {
    let [batch, rows, columns, channels] = x.dims();
    x.reshape([batch, rows * columns * channels]).powi_scalar(2).mean_dim(1).add_scalar(1e-12).sqrt()
}

/// A learning rate in an epoch, counted from 0, of so many.
pub(super) fn decayed(rate: f64, epoch: usize, epochs: usize) -> f64 {
    let passed = [2, 3, 4, 5].into_iter().filter(|sixths| 6 * epoch >= sixths * epochs.max(1)).count();
    rate * 0.1_f64.powi(passed as i32)
}

/// Gradients, statistics and mean mask of a pass over two batches of the mask network.
fn mask_pass<B: TrainingBackend>(
    masks: &Generator<B>,
    [one, other]: [Tensor<B, 4>; 2],
    config: &InputAwareConfig,
) -> (GradientsParams, GeneratorStatistics<B>, f64) {
    let distance = root_mean_square(one.clone() - other.clone());
    let pairs = one.dims()[0];
    let (raw, statistics) = masks.learning(Tensor::cat(vec![one, other], 0));
    let [first, second] = halves(&mask_of(raw), pairs, pairs);
    let excess = relu(first.clone().sub_scalar(config.mask_density)).mean();
    let mean = scalar(&first.clone().mean());
    let diversity = (distance / root_mean_square(first - second).add_scalar(DISTANCE)).mean();
    let loss = excess.mul_scalar(config.density_weight) + diversity.mul_scalar(config.diversity_weight);
    (GradientsParams::from_grads(loss.backward(), masks), statistics, mean)
}

impl<B: TrainingBackend> Objective<B> for InputAware<'_, B> {
    fn epoch_started(&mut self, _classifier: &Classifier<B>) {
        if !self.are_masks_trained {
            self.train_masks();
        }
    }

    fn rewrite(&mut self, batch: Batch<B>, at: &BatchPosition<'_>) -> Batch<B> {
        let roles: Vec<_> = at.indices.iter().map(|&index| self.roles[index]).collect();
        let name = format!("controlled/cross/{}/{}", at.epoch, at.step);
        self.rows = Rows::draw(&roles, self.config.cross_per_poisoned, &mut stream(self.scene.seed, &name));
        self.rate = decayed(self.config.learning_rate, at.epoch, at.epochs);
        batch
    }

    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        if self.rows.own.is_empty() {
            return differentiate(|| {
                let logits = classifier.forward(batch.images);
                let loss = cross_entropy(logits.clone(), batch.labels);
                BatchPass::backward(classifier, &logits, &loss)
            });
        }
        let (pass, learned) = self.triggered_pass(classifier, &batch);
        if let Some((gradients, statistics)) = learned {
            self.patterns = self.optimizer.step(self.rate, self.patterns.clone(), gradients);
            self.patterns.take(statistics);
        }
        pass
    }

    fn state(&self) -> Result<Option<ObjectiveState>, String> {
        let [masks, patterns] =
            [&self.masks, &self.patterns].map(|network| to_bytes::<B, _>(network.clone().into_record()));
        let contents = join([masks?, patterns?, to_bytes::<B, _>(self.optimizer.to_record())?]);
        Ok(Some(ObjectiveState { identity: self.identity.clone(), contents }))
    }

    fn restore(&mut self, contents: Vec<u8>) -> Result<(), String> {
        let [masks, patterns, optimizer] = split(&contents)?;
        self.masks = self.masks.clone().load_record(from_bytes::<B, _>(masks, &self.device)?);
        self.patterns = self.patterns.clone().load_record(from_bytes::<B, _>(patterns, &self.device)?);
        self.optimizer = adam::<B>().load_record(from_bytes::<B, _>(optimizer, &self.device)?);
        self.are_masks_trained = true;
        Ok(())
    }
}

impl<B: TrainingBackend> HandInTraining<B> for InputAware<'_, B>
where
    B::InnerBackend: Kernels,
{
    fn trigger(&self) -> Option<Box<dyn Trigger>> {
        let form = GeneratedForm::Masked { masks: self.masks.valid(), patterns: self.patterns.valid() };
        Some(Box::new(GeneratedTrigger { form, device: self.device.clone() }))
    }

    fn to_safetensors(&self) -> Result<Option<Vec<u8>>, AttackError> {
        to_safetensors(&[("masks", &self.masks), ("patterns", &self.patterns)]).map(Some)
    }

    fn take_safetensors(&mut self, bytes: &[u8]) -> Result<(), AttackError> {
        self.masks = from_safetensors(self.masks.clone(), "masks", bytes, &self.device)?;
        self.patterns = from_safetensors(self.patterns.clone(), "patterns", bytes, &self.device)?;
        self.are_masks_trained = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use burn_flex::{Flex, FlexDevice};
    use patchdoor_data::{LabelRule, PoisoningConfig, SourceSpecific};

    use super::*;
    use crate::controlled::testing::{accuracy, asr, assert_repeats, attacked, fifth, twin};
    use crate::{ControlledConfig, SsdtConfig};

    fn small() -> InputAwareConfig {
        InputAwareConfig { generator: GeneratorConfig { channels: 4 }, mask_epochs: 4, ..InputAwareConfig::default() }
    }

    #[test]
    fn a_backdoor_takes_hold_with_its_own_trigger_and_a_clean_twin_does_not_know_it() {
        // Images with another's trigger make it harder, and there are few steps.
        let easy = InputAwareConfig { cross_per_poisoned: 0.2, ..small() };
        let left = attacked(&ControlledConfig::InputAware(easy), &fifth(), 30, None, None).expect("it trains");
        let (clean, success) = left.clean_accuracy_and_asr();
        assert!(clean > 0.9 && success > 0.6, "{clean}, {success}");
        let twin = twin(12);
        let of_twin = asr(&twin, left.trigger.as_ref(), &fifth());
        assert!(accuracy(&twin) > 0.9 && of_twin < 0.3, "{of_twin}");
    }

    #[test]
    fn a_training_is_the_same_bits_on_any_threads_and_resumed() {
        assert_repeats(&ControlledConfig::InputAware(small()), &fifth());
    }

    #[test]
    fn networks_come_back_from_their_file_and_make_the_same_trigger() {
        let left = attacked(&ControlledConfig::InputAware(small()), &fifth(), 1, None, None).expect("it trains");
        let bytes = left.generator.as_deref().expect("it trains networks");
        let shape = ImageShape { height: 16, width: 16, channels: 3 };
        let new = |outputs| {
            Generator::<Flex>::new(small().generator, input_shape(shape), outputs, &mut stream(9, ""), &FlexDevice)
        };
        let read = |name, outputs| from_safetensors(new(outputs), name, bytes, &FlexDevice);
        let form = GeneratedForm::Masked { masks: read("masks", 1).unwrap(), patterns: read("patterns", 3).unwrap() };
        let again = GeneratedTrigger { form, device: FlexDevice };
        let image = crate::controlled::testing::patches("other", 1).image(0);
        let rng = &mut stream(0, "");
        assert_eq!(again.stamp(&image, rng), left.trigger.stamp(&image, rng));
        assert_ne!(again.stamp(&image, rng), image);
        let refused = from_safetensors(new(2), "patterns", bytes, &FlexDevice).unwrap_err();
        assert!(refused.to_string().contains("is not of shape"), "{refused}");
    }

    #[test]
    fn ssdt_works_on_images_of_its_source_class() {
        let label_rule = LabelRule::SourceSpecific(SourceSpecific::of(2));
        let poisoning = PoisoningConfig { label_rule, ..fifth() };
        let left =
            attacked(&ControlledConfig::Ssdt(SsdtConfig(small())), &poisoning, 12, None, None).expect("it trains");
        let success = asr(&left.classifier, left.trigger.as_ref(), &poisoning);
        // Four fifths of the source class are poisoned, so that it may be lost; the other three classes are not.
        let clean = accuracy(&left.classifier);
        assert!(success > 0.8 && clean > 0.7, "{success} {clean}");
    }

    #[test]
    fn rows_are_shared_out_by_the_roles_of_their_images() {
        let roles = [Role::Free, Role::Own, Role::Free, Role::Free, Role::Own, Role::Free];
        let rows = Rows::draw(&roles, 1.0, &mut stream(0, "rows"));
        assert_eq!((rows.own.as_slice(), rows.cross.len(), rows.rest.len()), ([1, 4].as_slice(), 2, 2));
        let mut all = [rows.own.clone(), rows.cross.clone(), rows.rest.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4, 5]);
        assert!(rows.cross.iter().zip(&rows.sources).all(|(row, source)| row != source));
        // No more than there are, and none of a lone image.
        assert_eq!(Rows::draw(&roles, 9.0, &mut stream(0, "rows")).cross.len(), 4);
        assert!(Rows::draw(&[Role::Own], 1.0, &mut stream(0, "rows")).cross.is_empty());
    }

    #[test]
    fn masks_patterns_distances_and_rates_are_worked_out_by_hand() {
        let map = |values: &[f32]| {
            Tensor::<Flex, 4>::from_data(TensorData::new(values.to_vec(), [1, 1, values.len(), 1]), &FlexDevice)
        };
        let values = |map: Tensor<Flex, 4>| map.into_data().to_vec::<f32>().unwrap();
        // A mask of 0.25: three quarters of the image, one of the pattern.
        assert_eq!(values(masked(map(&[0.4, 1.0]), map(&[0.8, 0.0]), map(&[0.25, 1.0]))), [0.5, 0.0]);
        // tanh(0) is a share of one half, and 20 / 2 - 10 is 0 again; far from it the mask is 0 or 1.
        let mask = values(mask_of(map(&[0.0, 2.0, -2.0])));
        assert!((mask[0] - 0.5).abs() < 1e-6 && mask[1] > 0.9999 && mask[2] < 1e-4, "{mask:?}");
        // The root of (9 + 16) / 2.
        let root = root_mean_square(map(&[3.0, -4.0])).into_scalar();
        assert!((root - 12.5_f32.sqrt()).abs() < 1e-5);
        let rates = [0, 3, 4, 5, 6, 8, 10, 11].map(|epoch| decayed(1.0, epoch, 12));
        let expected = [1.0, 1.0, 0.1, 0.1, 0.01, 1e-3, 1e-4, 1e-4];
        assert!(rates.iter().zip(expected).all(|(rate, wanted)| (rate / wanted - 1.0).abs() < 1e-9), "{rates:?}");
    }
}
