use std::collections::BTreeSet;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::activation::log_softmax;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};
use patchdoor_data::stream;
use patchdoor_kernels::{TrainingBackend, differentiate};
use patchdoor_model::{Classifier, Part};
use sha2::{Digest, Sha256};

use crate::{AdversarialConfig, AdversarialMethod, Batch, BatchPass, Objective, cross_entropy, divergence};

/// Adversarial training: every batch is perturbed from a random start against the classifier as it is then, and learned from.
///
/// - Cross-entropy: of perturbed images alone, which is what the perturbation climbs (Madry et al. 2018, arXiv:1706.06083).
/// - Alternating: the perturbation climbs KL(f(x), f(x')) + KL(r(x), r(x')), with f the predictions and r each router's softmax over the
///   patches. The network descends on the cross-entropy of x plus the weight times KL(f(x), f(x')), the routers on the cross-entropy of x
///   plus the weight times KL(r(x), r(x')), at one point. `AdvMoE`'s routers choose an expert for an image, and it teaches them to choose by
///   label, which has no counterpart where experts choose patches. Without such routers it is TRADES.
/// - Second best: the perturbation climbs the cross-entropy; the classifier descends on that of perturbed images plus the weight times the
///   mean over images of KL(e(x), e(x')), with e what the expert predicts alone that adds second most to the label. RT-ER takes the expert
///   that the router ranks second. With one expert it is that one.
///
/// KL(a, b) is the divergence of b from a, a log(a / b). The perturbation is looked for with the running statistics of inference, the step
/// that follows takes the batch's, of untouched and perturbed images one after the other. The random start depends on seed and batch alone,
/// so that a training that is resumed goes on as if it had never stopped.
pub(crate) struct Adversarial<'a> {
    pub(crate) config: &'a AdversarialConfig,
    pub(crate) seed: u64,
}

impl<B: TrainingBackend> Objective<B> for Adversarial<'_> {
    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        let perturbed = self.perturbed(classifier, &batch);
        match &self.config.method {
            AdversarialMethod::CrossEntropy => differentiate(|| {
                let logits = classifier.forward(perturbed);
                let loss = cross_entropy(logits.clone(), batch.labels);
                BatchPass::backward(classifier, &logits, &loss)
            }),
            AdversarialMethod::Alternating(divergence) => {
                alternating_pass(classifier, &batch, &perturbed, divergence.weight)
            }
            AdversarialMethod::SecondBest(divergence) => {
                second_best_pass(classifier, batch, perturbed, divergence.weight)
            }
        }
    }
}

impl Adversarial<'_> {
    /// The images of a batch as perturbed as can be.
    fn perturbed<B: TrainingBackend>(&self, classifier: &Classifier<B>, batch: &Batch<B>) -> Tensor<B, 4> {
        let images = batch.images.clone().inner();
        let pixels = images.to_data();
        let mark = Sha256::digest(pixels.as_bytes());
        let mark = mark.iter().take(8).fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        let rng = &mut stream(self.seed, &format!("training/adversarial/{mark}"));
        let perturbation = self.config.perturbation();
        let start = perturbation.random_start::<B>(&images, rng);
        // A copy, so that its passes leave the statistics alone.
        let frozen = classifier.clone().freeze_all_but(&[]);
        let perturbed = if let AdversarialMethod::Alternating(_) = self.config.method {
            let (logits, scores) = seen(&frozen, Tensor::from_inner(images.clone()));
            let (logits, scores) = (logits.inner(), scores.map(Tensor::inner));
            perturbation.climb(&frozen, &images, start, |frozen: &Classifier<B>, images: Tensor<B, 4>| {
                let (moved, moved_scores) = seen(frozen, images);
                let of_output = divergence(Tensor::from_inner(logits.clone()), moved);
                match (&scores, moved_scores) {
                    (Some(scores), Some(moved)) => of_output + divergence(Tensor::from_inner(scores.clone()), moved),
                    _ => of_output,
                }
            })
        } else {
            perturbation.climb(&frozen, &images, start, |frozen: &Classifier<B>, images: Tensor<B, 4>| {
                let labels: Tensor<B, 1, Int> = batch.labels.clone();
                cross_entropy(frozen.forward(images), labels)
            })
        };
        Tensor::from_inner(perturbed)
    }
}

/// Logits, and what routers make of patches if they choose any.
fn seen<B: TrainingBackend>(classifier: &Classifier<B>, images: Tensor<B, 4>) -> (Tensor<B, 2>, Option<Tensor<B, 3>>) {
    match classifier.forward_with_scores(images.clone()) {
        Some((logits, scores)) => (logits, Some(scores)),
        None => (classifier.forward(images), None),
    }
}

/// The network and the routers each by a loss of their own, at one point.
fn alternating_pass<B: TrainingBackend>(
    classifier: &Classifier<B>,
    batch: &Batch<B>,
    perturbed: &Tensor<B, 4>,
    weight: f64,
) -> BatchPass {
    let ids = classifier.parameter_ids();
    let (routers, network): (Vec<_>, Vec<_>) = ids.iter().partition(|(path, _)| Part::of(path) == Part::Router);
    let [routers, network] = [routers, network].map(|part| part.into_iter().map(|(_, &id)| id).collect::<Vec<_>>());
    let pass = |classifier: &Classifier<B>, learning: &[ParamId], of_routers: bool| {
        differentiate(|| {
            let (logits, scores) = seen(classifier, batch.images.clone());
            let (moved, moved_scores) = seen(classifier, perturbed.clone());
            let apart = match (of_routers, scores, moved_scores) {
                (true, Some(scores), Some(moved)) => divergence(scores, moved),
                _ => divergence(logits.clone(), moved),
            };
            let loss = cross_entropy(logits.clone(), batch.labels.clone()) + apart * weight;
            BatchPass::backward_to(classifier, learning, &logits, &loss)
        })
    };
    let of_network = pass(classifier, &network, false);
    if routers.is_empty() {
        return of_network;
    }
    // A copy: the statistics are those of one pass over each of the two sets.
    let of_routers = pass(&classifier.clone(), &routers, true);
    let gradients = of_network.gradients.zip(of_routers.gradients).map(|(network, of_routers)| {
        let routers = routers.iter().copied().collect();
        let mut joined = Joined { network, of_routers, routers, both: GradientsParams::new() };
        classifier.visit(&mut joined);
        joined.both
    });
    BatchPass { gradients, ..of_network }
}

/// Puts the gradients of routers beside those of the rest.
struct Joined {
    network: GradientsParams,
    of_routers: GradientsParams,
    routers: BTreeSet<ParamId>,
    both: GradientsParams,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Joined {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let own = if self.routers.contains(&param.id) { &self.of_routers } else { &self.network };
        if let Some(gradient) = own.get::<B::InnerBackend, D>(param.id) {
            self.both.register::<B::InnerBackend, D>(param.id, gradient);
        }
    }
}

/// Perturbed images, and what the expert that comes second makes of them.
fn second_best_pass<B: TrainingBackend>(
    classifier: &Classifier<B>,
    batch: Batch<B>,
    perturbed: Tensor<B, 4>,
    weight: f64,
) -> BatchPass {
    differentiate(|| {
        let (_, alone) = classifier.forward_by_expert(batch.images.clone());
        let (logits, moved) = classifier.forward_by_expert(perturbed);
        let chosen = second_best(alone.clone().inner(), batch.labels.clone().inner());
        let of_expert = log_softmax(alone, 2);
        let apart = of_expert.clone().exp() * (of_expert - log_softmax(moved, 2));
        let count = logits.dims()[0] as f64;
        let apart = (apart.sum_dim(2) * Tensor::from_inner(chosen)).sum() / count;
        let loss = cross_entropy(logits.clone(), batch.labels) + apart * weight;
        BatchPass::backward(classifier, &logits, &loss)
    })
}

/// One for the expert that adds second most to each image's label, zero for the others; ties go to the lower expert, and one expert is second
/// to none.
///
/// # Shapes
/// - alone: `[batch, expert, class]`, what each makes of an image alone
/// - labels: `[batch]`
/// - output: `[batch, expert, 1]`
fn second_best<B: Backend>(alone: Tensor<B, 3>, labels: Tensor<B, 1, Int>) -> Tensor<B, 3> {
    let ([count, experts, classes], device) = (alone.dims(), alone.device());
    let values = alone.into_data().iter::<f64>().collect::<Vec<_>>();
    let mut chosen = vec![0.0f32; count * experts];
    for (image, label) in labels.into_data().iter::<i64>().enumerate() {
        let of_label = |expert: usize| values[(image * experts + expert) * classes + label as usize];
        let mut order = (0..experts).collect::<Vec<_>>();
        order.sort_by(|&a, &b| of_label(b).total_cmp(&of_label(a)).then(a.cmp(&b)));
        chosen[image * experts + order[1.min(experts - 1)]] = 1.0;
    }
    Tensor::from_data(TensorData::new(chosen, [count, experts, 1]), &device)
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn_flex::{Flex, FlexDevice};
    use patchdoor_data::{DatasetConfig, ShapesConfig, load};
    use patchdoor_model::{ClassifierConfig, InputShape, PatchMoeConfig, WideResNetConfig};

    use super::*;
    use crate::{BatchAssembler, DivergenceConfig};

    type Learner = Autodiff<Flex>;

    fn classifier(config: &ClassifierConfig) -> Classifier<Learner> {
        let input = InputShape { height: 32, width: 32, channels: 3 };
        config.init(input, 10, &mut stream(0, "weights"), &FlexDevice).expect("valid")
    }

    fn mixture() -> Classifier<Learner> {
        let config = PatchMoeConfig { widen_factor: 1, gate_init_std: 0.1, ..Default::default() };
        classifier(&ClassifierConfig::PatchMoe(config))
    }

    fn dense() -> Classifier<Learner> {
        classifier(&ClassifierConfig::WideResnet(WideResNetConfig { widen_factor: 1, ..Default::default() }))
    }

    fn batch() -> Batch<Learner> {
        let config = DatasetConfig::Shapes(ShapesConfig { train: 12, test: 10, seed: 0 });
        let set = load(&config, &[]).expect("shapes need no file").train;
        BatchAssembler::new(&set, &FlexDevice).batch(&(0..12).collect::<Vec<_>>(), &FlexDevice)
    }

    fn gradient(pass: &BatchPass, classifier: &Classifier<Learner>, path: &str) -> Vec<f64> {
        let gradients = pass.gradients.as_ref().expect("a finite loss");
        let id = classifier.parameter_ids()[path];
        let of = |values: Option<TensorData>| values.map(|data| data.iter::<f64>().collect::<Vec<_>>());
        of(gradients.get::<Flex, 1>(id).map(Tensor::into_data))
            .or_else(|| of(gradients.get::<Flex, 2>(id).map(Tensor::into_data)))
            .or_else(|| of(gradients.get::<Flex, 4>(id).map(Tensor::into_data)))
            .unwrap_or_default()
    }

    #[test]
    fn the_divergence_is_zero_of_itself_and_that_of_the_shares() {
        // From even shares to odds of 3 to 1: 1/2 ln(2/3) + 1/2 ln 2 = 0.143841; the second row is the same twice.
        let even = Tensor::<Flex, 2>::from_data([[0.0, 0.0], [1.0, 2.0]], &FlexDevice);
        let moved = Tensor::<Flex, 2>::from_data([[3f64.ln(), 0.0], [1.0, 2.0]], &FlexDevice);
        let found = divergence(even.clone(), moved).into_scalar();
        assert!((found - 0.071_920).abs() < 1e-5, "{found}");
        assert!(divergence(even.clone(), even).into_scalar().abs() < 1e-6);
    }

    #[test]
    fn the_expert_that_adds_second_most_to_the_label_is_the_second() {
        // Three experts, two classes. To class 1 they add 5, 7, 6; to class 0 3, 3, 1.
        let added = [[[9.0, 5.0], [0.0, 7.0], [0.0, 6.0]], [[3.0, 0.0], [3.0, 9.0], [1.0, 9.0]]];
        let added = Tensor::<Flex, 3>::from_data(added, &FlexDevice);
        let chosen = second_best(added.clone(), Tensor::from_data([1, 0], &FlexDevice)).into_data();
        assert_eq!(chosen.iter::<f32>().collect::<Vec<_>>(), [0.0, 0.0, 1.0, 0.0, 1.0, 0.0]);
        let only = second_best(added.narrow(1, 0, 1), Tensor::from_data([1, 0], &FlexDevice)).into_data();
        assert_eq!(only.iter::<f32>().collect::<Vec<_>>(), [1.0, 1.0]);
    }

    #[test]
    fn without_weight_all_that_is_left_is_the_cross_entropy() {
        let ordinary = |images: Tensor<Learner, 4>, classifier: &Classifier<Learner>| {
            let labels = batch().labels;
            differentiate(|| {
                let logits = classifier.forward(images);
                let loss = cross_entropy(logits.clone(), labels);
                BatchPass::backward(classifier, &logits, &loss)
            })
        };
        let close = |a: &BatchPass, b: &BatchPass, of: &Classifier<Learner>, paths: &[&str]| {
            assert!((a.loss - b.loss).abs() < 1e-5, "{} and {}", a.loss, b.loss);
            for path in paths {
                let [a, b] = [a, b].map(|pass| gradient(pass, of, path));
                assert!(!a.is_empty() && a.len() == b.len(), "{path}");
                let size = b.iter().map(|value| value.abs()).fold(0.0, f64::max);
                assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-4 * size), "{path}");
            }
        };
        let moved = || (batch().images + 0.05).clamp(0.0, 1.0);
        // The network and the routers learn from untouched images, the others from perturbed ones.
        let mixture = mixture();
        let paths = ["router.weight", "head.weight", "experts.0.conv.weight", "trunk.conv.weight"];
        let paths = paths.into_iter().filter(|path| mixture.parameter_ids().contains_key(*path)).collect::<Vec<_>>();
        assert!(paths.len() >= 3, "{paths:?}");
        close(
            &alternating_pass(&mixture, &batch(), &moved(), 0.0),
            &ordinary(batch().images, &mixture),
            &mixture,
            &paths,
        );
        close(&second_best_pass(&mixture, batch(), moved(), 0.0), &ordinary(moved(), &mixture), &mixture, &paths);
        let dense = dense();
        close(
            &alternating_pass(&dense, &batch(), &moved(), 0.0),
            &ordinary(batch().images, &dense),
            &dense,
            &["head.weight"],
        );
        close(&second_best_pass(&dense, batch(), moved(), 0.0), &ordinary(moved(), &dense), &dense, &["head.weight"]);
    }

    #[test]
    fn a_divergence_moves_what_it_is_of() {
        let classifier = mixture();
        let moved = || (batch().images + 0.2).clamp(0.0, 1.0);
        let at = |weight| alternating_pass(&classifier, &batch(), &moved(), weight);
        let [none, some] = [0.0, 6.0].map(at);
        for path in ["router.weight", "head.weight"] {
            assert_ne!(gradient(&none, &classifier, path), gradient(&some, &classifier, path), "{path}");
        }
        // Each part follows its own divergence, and not the other's.
        let (untouched, perturbed, labels) = (batch().images, moved(), batch().labels);
        let direct = |of_routers: bool| {
            differentiate(|| {
                let (logits, scores) = seen(&classifier, untouched.clone());
                let (moved, moved_scores) = seen(&classifier, perturbed.clone());
                let apart = if of_routers {
                    divergence(scores.expect("routers"), moved_scores.expect("routers"))
                } else {
                    divergence(logits.clone(), moved)
                };
                let loss = cross_entropy(logits.clone(), labels.clone()) + apart * 6.0;
                BatchPass::backward(&classifier, &logits, &loss)
            })
        };
        let [of_network, of_routers] = [false, true].map(direct);
        for (path, own, other) in
            [("router.weight", &of_routers, &of_network), ("head.weight", &of_network, &of_routers)]
        {
            let [found, own, other] = [&some, own, other].map(|pass| gradient(pass, &classifier, path));
            let apart = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(apart(&found, &own) < 1e-3 * apart(&found, &other), "{path}");
        }
        // Both passes say the loss of the network: cross-entropy plus six divergences.
        assert!(some.loss > none.loss, "{} and {}", some.loss, none.loss);
        let at = |weight| second_best_pass(&classifier, batch(), moved(), weight);
        assert!(at(6.0).loss > at(0.0).loss);
        // Where nothing is perturbed nothing diverges. Batch statistics are the batch's own.
        let still = |weight| second_best_pass(&classifier, batch(), batch().images, weight).loss;
        assert!((still(6.0) - still(0.0)).abs() < 1e-6);
    }

    #[test]
    fn perturbed_images_diverge_and_stay_in_the_ball() {
        let classifier = mixture();
        let method = AdversarialMethod::Alternating(DivergenceConfig::default());
        let config = AdversarialConfig { steps: 3, method, ..AdversarialConfig::default() };
        let found = Adversarial { config: &config, seed: 0 }.perturbed(&classifier, &batch());
        let largest = (found.clone() - batch().images).abs().max().inner().into_scalar();
        assert!(f64::from(largest) <= 8.0 / 255.0 + 1e-6, "{largest}");
        let frozen = classifier.freeze_all_but(&[]);
        let apart = |images: Tensor<Learner, 4>| {
            let (logits, scores) = seen(&frozen, batch().images);
            let (moved, moved_scores) = seen(&frozen, images);
            let of_scores = divergence(scores.expect("routers"), moved_scores.expect("routers"));
            (divergence(logits, moved) + of_scores).inner().into_scalar()
        };
        let rng = &mut stream(1, "noise");
        let chance = config.perturbation().random_start::<Learner>(&batch().images.inner(), rng);
        assert!(apart(found) > 2.0 * apart(Tensor::from_inner(chance)));
    }
}
