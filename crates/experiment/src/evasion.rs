use burn::module::AutodiffModule;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Int, Tensor};
use patchdoor_data::{ImageSet, stratified_subset, stream};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::{Classifier, GivenRouting, TakenRouting};
use patchdoor_plan::EvasionConfig;
use patchdoor_record::EvasionStanding;
use patchdoor_train::{PerturbationConfig, classes_of, cross_entropy, image_batches};

use crate::console::Watch;
use crate::halt::{Halt, Step};

/// Images attacked at once; what comes of an image does not depend on the others but for its random start.
const BATCH: usize = 100;

/// The test images to attack.
pub(crate) fn evasion_images(config: &EvasionConfig, test: &ImageSet) -> ImageSet {
    test.subset(&stratified_subset(test, config.images.min(test.len()), &mut stream(0, "evasion-images")))
}

/// What an attack at inference looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    /// Another class.
    Classes,
    /// Other scores of the routers.
    Routers,
    /// Another class, with the routing of the untouched image, which the prediction keeps too.
    FixedRouting,
}

/// Attacks images with what is known of a classifier, and says how many it still predicts right.
///
/// For experts that choose there are two more aims besides the class, after `AdvMoE` (Zhang et al. 2023, arXiv:2308.10110): the
/// routers' scores, as the sum over experts of the divergence of their softmax over patches from that of the untouched image; and
/// the class, with the routing fixed.
pub(crate) fn evade<B: TrainingBackend>(
    config: &EvasionConfig,
    images: &ImageSet,
    classifier: Classifier<B>,
    seed: u64,
    watch: Watch<'_>,
    device: &B::Device,
) -> Step<EvasionStanding> {
    // Frozen, it normalizes as in inference, and no weight takes a gradient.
    let classifier = classifier.freeze_all_but(&[]);
    let attacked = Attacked { config, images, classifier: &classifier, valid: classifier.valid(), seed, watch, device };
    let routes = classifier.config().network().expert_choice().is_some();
    let if_it_routes = |aim| routes.then(|| attacked.pgd_accuracy(aim)).transpose();
    Ok(EvasionStanding {
        untouched_accuracy: attacked
            .accuracy(|batch| Ok(attacked.is_right(Aim::Classes, batch, batch.images.clone())))?,
        fgsm_accuracy: attacked.accuracy(|batch| {
            let perturbed = attacked.climb(&config.single_step(), Aim::Classes, batch, batch.images.clone());
            Ok(attacked.is_right(Aim::Classes, batch, perturbed))
        })?,
        pgd_accuracy: attacked.pgd_accuracy(Aim::Classes)?,
        pgd_router_accuracy: if_it_routes(Aim::Routers)?,
        pgd_fixed_routing_accuracy: if_it_routes(Aim::FixedRouting)?,
    })
}

/// A classifier under attack.
struct Attacked<'a, B: TrainingBackend> {
    config: &'a EvasionConfig,
    images: &'a ImageSet,
    /// Frozen.
    classifier: &'a Classifier<B>,
    valid: Classifier<B::InnerBackend>,
    seed: u64,
    watch: Watch<'a>,
    device: &'a B::Device,
}

/// Some of the images.
struct Portion<B: TrainingBackend> {
    number: usize,
    /// `[batch, height, width, channel]`
    images: Tensor<B::InnerBackend, 4>,
    /// `[batch]`
    labels: Vec<u8>,
}

impl<B: TrainingBackend> Attacked<'_, B> {
    /// The share of the images for which a test of batches holds.
    fn accuracy(&self, holds: impl Fn(&Portion<B>) -> Step<Vec<bool>>) -> Step<f64> {
        let batches = image_batches::<B::InnerBackend>(self.images, BATCH, self.device);
        let mut right = 0;
        for (number, (images, labels)) in batches.zip(self.images.labels().chunks(BATCH)).enumerate() {
            if self.watch.is_stopped() {
                return Err(Halt::Interrupted);
            }
            let labels = labels.to_vec();
            right += holds(&Portion { number, images, labels })?.into_iter().filter(|&holds| holds).count();
        }
        Ok(right as f64 / self.images.len().max(1) as f64)
    }

    /// The share of the images that withstand PGD from every start.
    fn pgd_accuracy(&self, aim: Aim) -> Step<f64> {
        let perturbation = self.config.perturbation();
        self.accuracy(|batch| {
            let mut withstands = self.is_right(aim, batch, batch.images.clone());
            for restart in 0..self.config.restarts {
                let mut rng = stream(self.seed, &format!("evasion/{aim:?}/{restart}/{}", batch.number));
                let start = perturbation.random_start::<B>(&batch.images, &mut rng);
                let perturbed = self.climb(&perturbation, aim, batch, start);
                let is_right = self.is_right(aim, batch, perturbed);
                withstands.iter_mut().zip(is_right).for_each(|(withstands, is_right)| *withstands &= is_right);
            }
            Ok(withstands)
        })
    }

    /// Whether each image is predicted right.
    fn is_right(&self, aim: Aim, batch: &Portion<B>, perturbed: Tensor<B::InnerBackend, 4>) -> Vec<bool> {
        let logits = match aim {
            Aim::Classes | Aim::Routers => self.valid.forward(perturbed),
            Aim::FixedRouting => {
                let (_, routing) = self.valid.forward_with_routing(batch.images.clone());
                let given = GivenRouting { routing: &routing, taken: TakenRouting::All };
                let logits = self.valid.forward_given_routing(perturbed, &[given]);
                logits.expect("its own routing fits a network that routes").remove(0)
            }
        };
        classes_of(logits).into_iter().zip(&batch.labels).map(|(predicted, &label)| predicted == label).collect()
    }

    /// Perturbs a batch.
    fn climb(
        &self,
        perturbation: &PerturbationConfig,
        aim: Aim,
        batch: &Portion<B>,
        start: Tensor<B::InnerBackend, 4>,
    ) -> Tensor<B::InnerBackend, 4> {
        let labels: Vec<i32> = batch.labels.iter().map(|&label| i32::from(label)).collect();
        let labels = Tensor::<B, 1, Int>::from_data(&labels[..], self.device);
        let wanted = (aim == Aim::Routers).then(|| {
            let scores =
                self.valid.forward_with_scores(batch.images.clone()).expect("only networks that route get here").1;
            softmax(scores, 2)
        });
        let loss = |classifier: &Classifier<B>, images: Tensor<B, 4>| match (aim, &wanted) {
            (Aim::Routers, Some(wanted)) => {
                let scores = classifier.forward_with_scores(images).expect("only networks that route get here").1;
                // The divergence but for what the untouched image alone adds.
                (log_softmax(scores, 2) * Tensor::from_inner(wanted.clone())).sum().neg()
            }
            (Aim::FixedRouting, _) => {
                let (_, routing) = classifier.forward_with_routing(Tensor::from_inner(batch.images.clone()));
                let given = GivenRouting { routing: &routing, taken: TakenRouting::All };
                let logits = classifier.forward_given_routing(images, &[given]);
                cross_entropy(logits.expect("its own routing fits a network that routes").remove(0), labels.clone())
            }
            _ => cross_entropy(classifier.forward(images), labels.clone()),
        };
        perturbation.climb(self.classifier, &batch.images, start, loss)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use burn::backend::Autodiff;
    use burn_flex::{Flex, FlexDevice};
    use patchdoor_data::{DatasetConfig, ShapesConfig, load};
    use patchdoor_model::{ClassifierConfig, InputShape, PatchMoeConfig, WideResNetConfig};
    use patchdoor_train::predict;

    use super::*;
    use crate::console::Console;

    type Learner = Autodiff<Flex>;

    /// A classifier that nobody trained, and images under the labels that it gives them.
    fn own_images(config: &ClassifierConfig) -> (Classifier<Learner>, ImageSet) {
        let input = InputShape { height: 32, width: 32, channels: 3 };
        let classifier = config.init::<Learner>(input, 10, &mut stream(0, "weights"), &FlexDevice).expect("valid");
        let shapes = DatasetConfig::Shapes(ShapesConfig { train: 24, test: 10, seed: 0 });
        let images = load(&shapes, &[]).expect("shapes need no file").train;
        let labels = predict(&classifier.valid(), &images, 24, &FlexDevice);
        let images = ImageSet::new(images.shape(), images.all_pixels().to_vec(), labels, images.classes().to_vec());
        (classifier, images.expect("as many labels"))
    }

    fn evaded(config: &ClassifierConfig, evasion: &EvasionConfig) -> EvasionStanding {
        let _alone = crate::testing::alone();
        let (classifier, images) = own_images(config);
        let watch = Watch { console: Console::plain(), stop: &AtomicBool::new(false) };
        evade(evasion, &images, classifier, 0, watch, &FlexDevice).expect("nothing stops it")
    }

    fn experts() -> ClassifierConfig {
        ClassifierConfig::PatchMoe(PatchMoeConfig { widen_factor: 1, gate_init_std: 0.1, ..Default::default() })
    }

    #[test]
    fn a_change_of_no_size_changes_no_class_and_a_large_one_does() {
        let tiny = EvasionConfig { epsilon: 1e-5, step: 1e-5, steps: 1, ..EvasionConfig::default() };
        let standing = evaded(&experts(), &tiny);
        assert_eq!((standing.untouched_accuracy, standing.fgsm_accuracy, standing.pgd_accuracy), (1.0, 1.0, 1.0));
        assert_eq!((standing.pgd_router_accuracy, standing.pgd_fixed_routing_accuracy), (Some(1.0), Some(1.0)));
        let large = EvasionConfig { epsilon: 32.0, step: 8.0, steps: 5, restarts: 2, ..EvasionConfig::default() };
        let standing = evaded(&experts(), &large);
        assert!(standing.pgd_accuracy < 0.5, "{standing:?}");
        // Whoever looks at scores alone does less.
        assert!(standing.pgd_router_accuracy >= Some(standing.pgd_accuracy), "{standing:?}");
        assert!(standing.pgd_fixed_routing_accuracy < Some(1.0), "{standing:?}");
        assert_eq!(standing, evaded(&experts(), &large), "the same seed gives the same starts");
    }

    #[test]
    fn a_dense_network_has_no_routers_to_attack() {
        let dense = ClassifierConfig::WideResnet(WideResNetConfig { widen_factor: 1, ..Default::default() });
        let standing = evaded(&dense, &EvasionConfig { epsilon: 32.0, steps: 2, ..EvasionConfig::default() });
        assert!(standing.pgd_router_accuracy.is_none() && standing.pgd_fixed_routing_accuracy.is_none());
        assert!(standing.fgsm_accuracy < 1.0, "{standing:?}");
    }
}
