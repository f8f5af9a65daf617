use burn::module::AutodiffModule;
use burn::optim::{AdamConfig, GradientsParams, Optimizer};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use patchdoor_data::{ImageSet, stream};
use patchdoor_kernels::{Kernels, TrainingBackend, differentiate};
use patchdoor_model::{Classifier, Generator, GeneratorConfig, Tapped, as_shares};
use patchdoor_train::{
    Adam, BatchAssembler, PREDICTION_BATCH, classes_of, cross_entropy, gradient_by, image_batches, input_shape,
};
use serde::{Deserialize, Serialize};

use crate::error::{check_count, check_positive, check_weight, invalid};
use crate::neuron_noise_inspection::inspection_by_shares;
use crate::{DefendedClassifier, Defense, DefenseError, Inspection, InspectionWork, ModelInspector};

/// Looks for the class that images go to when all is changed in them but what tells their class: the inspector of BTI-DBF (Xu et al. 2024,
/// ICLR), which inverts a trigger after it has told benign features from others.
///
/// 1. A mask over the features before the head, from ones, descends on the cross-entropy of clean images by the masked features minus
///    that by the rest: it keeps what tells the class.
/// 2. A network from images to images learns to give images back (`identity-rounds`), and then to move the rest: minus the mean squared change
///    of the features times one minus the mask, plus that of the masked features and that of the pixels. These two count a hundredth while
///    they are below their bounds, and fully above.
/// 3. A class's score is the share of clean images of other classes that are taken for it once the network has changed them. The class of the
///    largest score is flagged if that is above `share`.
///
/// Departures: pixels are in [0, 1] here, so the authors' bound of 0.3 in units of a normalized image is about 0.02; the bound of the masked
/// features is one of their mean square in clean images, where the authors have 3. They take the most predicted class without a share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct BtiDbf {
    /// Passes over the images in which the mask learns, 1 or more.
    pub mask_rounds: usize,
    /// Adam's rate for the mask, a finite number above 0.
    pub mask_learning_rate: f64,
    /// What the mean of the mask weighs beside the cross-entropies, as BAN has it (Xu et al. 2024, arXiv:2405.19928), so that less is said
    /// to tell the class; a finite number of 0 or more.
    pub mask_weight: f64,
    /// Passes in which the network learns to give images back.
    pub identity_rounds: usize,
    /// Passes in which it learns to move features, 1 or more.
    pub rounds: usize,
    /// Adam's rate for the network, a finite number above 0.
    pub learning_rate: f64,
    /// Images of each batch, 2 or more.
    pub batch_size: usize,
    /// The network.
    pub generator: GeneratorConfig,
    /// Mean squared change of a pixel below which it hardly counts, pixels in [0, 1]; a finite number of 0 or more.
    pub pixel_bound: f64,
    /// Mean squared change of the masked features, over their mean square, below which it hardly counts; a finite number of 0 or more.
    pub feature_bound: f64,
    /// The score above which a class is flagged, in (0, 1).
    pub share: f64,
}

impl Default for BtiDbf {
    /// The authors' rounds and rates, and no weight of the mask; bounds as said above, the network of input-aware attacks, and a share of one half are ours.
    fn default() -> Self {
        Self {
            mask_rounds: 20,
            mask_learning_rate: 0.01,
            mask_weight: 0.0,
            identity_rounds: 50,
            rounds: 30,
            learning_rate: 1e-3,
            batch_size: 128,
            generator: GeneratorConfig::default(),
            pixel_bound: 0.02,
            feature_bound: 1.0,
            share: 0.5,
        }
    }
}

impl Defense for BtiDbf {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        let counts = [
            ("mask-rounds", self.mask_rounds),
            ("rounds", self.rounds),
            ("generator.channels", self.generator.channels),
        ];
        problems.extend(counts.into_iter().filter_map(|(field, count)| check_count(field, count)));
        problems.extend(check_positive("mask-learning-rate", self.mask_learning_rate));
        problems.extend(check_positive("learning-rate", self.learning_rate));
        if self.batch_size < 2 {
            problems.push(invalid("batch-size", self.batch_size, "2 or more"));
        }
        problems.extend(check_weight("mask-weight", self.mask_weight));
        problems.extend(check_weight("pixel-bound", self.pixel_bound));
        problems.extend(check_weight("feature-bound", self.feature_bound));
        if !(self.share > 0.0 && self.share < 1.0) {
            problems.push(invalid("share", self.share, "a fraction in (0, 1)"));
        }
        problems
    }

    /// The authors' 5 %.
    fn default_clean_fraction(&self) -> f64 {
        0.05
    }

    fn make_quick(&mut self) {
        self.mask_rounds = self.mask_rounds.min(2);
        self.identity_rounds = self.identity_rounds.min(1);
        self.rounds = self.rounds.min(1);
        self.batch_size = self.batch_size.min(32);
        self.generator.channels = self.generator.channels.min(4);
    }
}

impl<B: TrainingBackend> ModelInspector<B> for BtiDbf {
    fn inspect(
        &self,
        classifier: Classifier<B>,
        work: &InspectionWork<'_>,
        device: &B::Device,
    ) -> Result<Inspection, DefenseError> {
        let clean = work.data.clean;
        let shape = input_shape(clean.shape());
        if GeneratorConfig::halvings(shape).is_none() {
            let found = format!("a network that halves images of {}", clean.shape());
            return Err(invalid("generator", found, "images whose sides can be divided by 4"));
        }
        let classifier = classifier.freeze_all_but(&[]);
        let features = features_of(&classifier.valid(), clean, device);
        let mask = self.benign_mask(&classifier, &features, clean, work.seed, device);
        let generator = self.moving_network(&classifier, &features, &mask, work, device)?;
        let (plain, generator) = (classifier.valid(), generator.valid());
        let changed = image_batches::<B::InnerBackend>(clean, PREDICTION_BATCH, device)
            .map(|batch| as_shares(generator.learned(batch)));
        let predicted = changed.flat_map(|images| classes_of(plain.forward(images))).collect::<Vec<_>>();
        Ok(inspection_by_shares(&predicted, clean, self.share))
    }
}

/// What the head sees of every image, `[image, feature]`.
fn features_of<B: Kernels>(classifier: &Classifier<B>, images: &ImageSet, device: &B::Device) -> Tensor<B, 2> {
    Tensor::cat(
        image_batches::<B>(images, PREDICTION_BATCH, device).map(|batch| features(classifier, batch)).collect(),
        0,
    )
}

fn features<B: Kernels>(classifier: &Classifier<B>, images: Tensor<B, 4>) -> Tensor<B, 2> {
    let (_, mut taps) = classifier.forward_with_taps(images, &["features"]);
    taps.remove("features").and_then(Tapped::features).expect("every network has features")
}

/// The features of some of the images.
fn of_rows<B: Backend>(features: &Tensor<B, 2>, rows: &[usize], device: &B::Device) -> Tensor<B, 2> {
    let rows = TensorData::new(rows.iter().map(|&row| row as i32).collect::<Vec<_>>(), [rows.len()]);
    features.clone().select(0, Tensor::from_data(rows, device))
}

/// The mean over images and features of the squared numbers.
fn mean_square<B: Backend>(numbers: Tensor<B, 2>) -> Tensor<B, 1> {
    numbers.powi_scalar(2).mean()
}

impl BtiDbf {
    /// One for features that tell the class, `[1, feature]`, in [0, 1].
    fn benign_mask<B: TrainingBackend>(
        &self,
        classifier: &Classifier<B>,
        features: &Tensor<B::InnerBackend, 2>,
        clean: &ImageSet,
        seed: u64,
        device: &B::Device,
    ) -> Tensor<B::InnerBackend, 2> {
        let parameter = |path| classifier.parameter(path).expect("every network has a head").inner();
        let (count, width) = (features.dims()[0], features.dims()[1]);
        let weights = parameter("head.weight").reshape([classifier.classes(), width]).transpose();
        let biases = parameter("head.bias").reshape([1, classifier.classes()]);
        let mut mask = Tensor::<B::InnerBackend, 2>::ones([1, width], device);
        let mut adam = Adam::<B, 2>::new(self.mask_learning_rate, Adam::<B, 2>::BETAS);
        for round in 0..self.mask_rounds {
            for rows in orders(count, self.batch_size, seed, &format!("defense/bti-dbf/mask/{round}")) {
                let labels = rows.iter().map(|&row| i32::from(clean.label(row))).collect::<Vec<_>>();
                let labels = Tensor::<B, 1, Int>::from_data(&labels[..], device);
                let batch = of_rows(features, &rows, device);
                let (gradient, ()) = gradient_by::<B, 2, _>(mask.clone(), |mask| {
                    let by = |kept: Tensor<B, 2>| {
                        let heard = Tensor::from_inner(batch.clone()) * kept;
                        let logits = heard.matmul(Tensor::from_inner(weights.clone()));
                        cross_entropy(logits + Tensor::from_inner(biases.clone()), labels.clone())
                    };
                    let kept = mask.clone().mean() * self.mask_weight;
                    (by(mask.clone()) - by(mask.neg() + 1.0) + kept, ())
                });
                mask = adam.step(mask, gradient).clamp(0.0, 1.0);
            }
        }
        mask
    }

    /// A network that gives images back with other features but for those of the mask.
    fn moving_network<B: TrainingBackend>(
        &self,
        classifier: &Classifier<B>,
        clean_features: &Tensor<B::InnerBackend, 2>,
        mask: &Tensor<B::InnerBackend, 2>,
        work: &InspectionWork<'_>,
        device: &B::Device,
    ) -> Result<Generator<B>, DefenseError> {
        let clean = work.data.clean;
        let shape = input_shape(clean.shape());
        let rng = &mut stream(work.seed, "defense/bti-dbf/generator");
        let mut generator = Generator::<B>::new(self.generator, shape, shape.channels, rng, device);
        let mut optimizer = AdamConfig::new().with_epsilon(1e-8).init();
        let size = mean_square(clean_features.clone() * mask.clone()).into_data().iter::<f64>().sum::<f64>();
        let assembler = BatchAssembler::<B>::new(clean, device);
        for round in 0..self.identity_rounds + self.rounds {
            if (work.is_stopped)() {
                return Err(DefenseError::Interrupted { epochs: 0 });
            }
            for rows in orders(clean.len(), self.batch_size, work.seed, &format!("defense/bti-dbf/network/{round}")) {
                let images = assembler.batch(&rows, device).images;
                let learned = differentiate(|| {
                    let (output, statistics) = generator.learning(images.clone());
                    let changed = as_shares(output);
                    let of_pixels = (changed.clone() - images.clone()).powi_scalar(2).mean();
                    let loss = if round < self.identity_rounds {
                        of_pixels
                    } else {
                        let before = of_rows(clean_features, &rows, device);
                        let moved = features(classifier, changed) - Tensor::from_inner(before);
                        let mask = Tensor::<B, 2>::from_inner(mask.clone());
                        let benign = mean_square(moved.clone() * mask.clone());
                        let rest = mean_square(moved * (mask.neg() + 1.0));
                        bounded(benign, self.feature_bound * size) + bounded(of_pixels, self.pixel_bound) - rest
                    };
                    let is_finite = loss.clone().into_data().iter::<f64>().all(f64::is_finite);
                    is_finite.then(|| (GradientsParams::from_grads(loss.backward(), &generator), statistics))
                });
                // A step that is no number moves nothing.
                if let Some((gradients, statistics)) = learned {
                    generator = optimizer.step(self.learning_rate, generator, gradients);
                    generator.take(statistics);
                }
            }
        }
        Ok(generator)
    }
}

/// A cost that counts a hundredth while it is below a bound.
fn bounded<B: Backend>(cost: Tensor<B, 1>, bound: f64) -> Tensor<B, 1> {
    let value = cost.clone().into_data().iter::<f64>().sum::<f64>();
    cost * if value > bound { 1.0 } else { 0.01 }
}

/// All rows in batches, in a random order; what fills no batch is one, unless it is a single row.
fn orders(count: usize, batch_size: usize, seed: u64, name: &str) -> Vec<Vec<usize>> {
    use rand::seq::SliceRandom;

    let mut order = (0..count).collect::<Vec<_>>();
    order.shuffle(&mut stream(seed, name));
    order.chunks(batch_size).filter(|rows| rows.len() > 1).map(<[usize]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;
    use crate::DefenderData;
    use crate::planted::planted;
    use crate::testing::{Learner, ascending_filters, shapes};

    #[test]
    fn costs_count_a_hundredth_below_their_bound() {
        let cost = |value: f32| Tensor::<Flex, 1>::from_data([value], &FlexDevice);
        assert!((bounded(cost(2.0), 1.0).into_scalar() - 2.0).abs() < 1e-6);
        assert!((bounded(cost(1.0), 2.0).into_scalar() - 0.01).abs() < 1e-6);
    }

    #[test]
    fn every_row_comes_once_and_none_alone() {
        let mut rows = orders(10, 4, 0, "test").concat();
        rows.sort_unstable();
        assert_eq!(rows, (0..10).collect::<Vec<_>>());
        assert_eq!(orders(9, 4, 0, "test").concat().len(), 8);
        assert_ne!(orders(10, 4, 0, "test"), orders(10, 4, 1, "test"));
    }

    #[test]
    fn the_mask_keeps_what_tells_the_class() {
        // The head hears feature 5 for class 0 and feature 9 for class 1, and no other.
        let clean = shapes(40);
        let classifier = ascending_filters();
        let mut weight = vec![0.0f32; 640];
        (weight[5], weight[64 + 9]) = (4.0, 4.0);
        let head = ("head.weight".to_owned(), TensorData::new(weight, [10, 64]));
        let classifier = classifier.with_tensors([head].into()).freeze_all_but(&[]);
        // Feature 5 is one for images of class 0 and feature 9 for those of class 1; all else says nothing.
        let features = (0..40).flat_map(|image| (0..64).map(move |feature| (image, feature)));
        let told = |(image, feature): (usize, usize)| match feature {
            5 => f32::from(u8::from(clean.label(image) == 0)),
            9 => f32::from(u8::from(clean.label(image) == 1)),
            _ => 0.5,
        };
        let features = TensorData::new(features.map(told).collect::<Vec<_>>(), [40, 64]);
        let features = Tensor::<Flex, 2>::from_data(features, &FlexDevice);
        let defense = BtiDbf { mask_rounds: 40, batch_size: 20, ..BtiDbf::default() };
        let mask = defense.benign_mask::<Learner>(&classifier, &features, &clean, 0, &FlexDevice);
        let mask = mask.into_data().to_vec::<f32>().expect("f32");
        assert!(mask.iter().all(|share| (0.0..=1.0).contains(share)));
        assert!(mask[5] > 0.99 && mask[9] > 0.99, "{mask:?}");
        // What no class hears has no gradient and stays where it was.
        assert!((mask[20] - 1.0).abs() < 1e-6, "{mask:?}");
    }

    #[test]
    fn the_network_gives_images_back_and_then_moves_what_the_mask_leaves() {
        let clean = planted().validation();
        let classifier = planted().victim().freeze_all_but(&[]);
        let before = features_of(&classifier.valid(), clean, &FlexDevice);
        // Every other feature is said to tell the class.
        let kept = (0..before.dims()[1]).map(|feature| (feature % 2) as f32).collect::<Vec<_>>();
        let mask = Tensor::<Flex, 2>::from_data(TensorData::new(kept, [1, before.dims()[1]]), &FlexDevice);
        let data = DefenderData { clean, validation: None };
        let work = InspectionWork { data, seed: 0, is_stopped: &|| false };
        let changes = |identity_rounds: usize, rounds: usize| {
            let generator = GeneratorConfig { channels: 8 };
            let defense =
                BtiDbf { identity_rounds, rounds, batch_size: 50, generator, learning_rate: 3e-3, ..BtiDbf::default() };
            let network = defense.moving_network(&classifier, &before, &mask, &work, &FlexDevice);
            let network = network.expect("nothing stops it").valid();
            let images = image_batches::<Flex>(clean, clean.len(), &FlexDevice).next().expect("there are images");
            let changed = as_shares(network.learned(images.clone()));
            let moved = features(&classifier.valid(), changed.clone()) - before.clone();
            let number = |tensor: Tensor<Flex, 1>| tensor.into_data().iter::<f64>().sum::<f64>();
            let rest = mean_square(moved.clone() * (mask.clone().neg() + 1.0));
            [number((changed - images).powi_scalar(2).mean()), number(mean_square(moved * mask.clone())), number(rest)]
        };
        let [untrained, back, moving] = [changes(0, 0), changes(150, 0), changes(150, 20)];
        assert!(back[0] < 0.6 * untrained[0], "images are given back: {untrained:?}, then {back:?}");
        assert!(moving[2] > 10.0 * back[2] && moving[2] > moving[1], "the rest moves: {back:?}, then {moving:?}");
        let stopped = InspectionWork { data, seed: 0, is_stopped: &|| true };
        let halted = BtiDbf::default().moving_network(&classifier, &before, &mask, &stopped, &FlexDevice);
        assert!(matches!(halted, Err(DefenseError::Interrupted { .. })));
    }
}
