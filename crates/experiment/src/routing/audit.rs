use patchdoor_data::{ImageSet, stratified_subset, stream};
use patchdoor_kernels::{Kernels, TrainingBackend};
use patchdoor_model::{Classifier, Part};
use patchdoor_record::{AuditMeasurements, RoutedStanding, StandingBand};
use patchdoor_train::{PREDICTION_BATCH, predict, predict_features};
use rand::seq::SliceRandom;

use crate::exam::Exam;

/// Draws of random routers.
const DRAWS: usize = 5;
/// Clean training images that experts are ranked by and whose mean takes the place of a silenced expert.
const RANKING_IMAGES: usize = 1000;
/// Up to so many experts, every order of silencing is tried; of more experts, as many orders are drawn as [`ORDERS`] says.
const ALL_ORDERS_UP_TO: usize = 4;
/// Orders drawn where there are too many.
const ORDERS: usize = 20;

/// Judges the backdoored classifier with random routers, and with experts silenced. `training` are untouched training images;
/// the test images choose nothing.
pub(crate) fn audit<B: TrainingBackend>(
    exam: &Exam<'_>,
    victim: &Classifier<B::InnerBackend>,
    training: &ImageSet,
    seed: u64,
    device: &B::Device,
) -> AuditMeasurements {
    let random_routers =
        (0..DRAWS).map(|draw| with_random_routers::<B::InnerBackend>(exam, victim, seed, draw, device));
    let random_routers = random_routers.collect::<Vec<_>>();

    let drawn = stratified_subset(training, RANKING_IMAGES.min(training.len()), &mut stream(seed, "audit/images"));
    let ranking = training.subset(&drawn);
    let triggered = exam.attack.trigger_all(&ranking);
    let votes = |images: &ImageSet| Votes::of::<B::InnerBackend>(victim, images, device);
    let means = votes(&ranking).means();
    let [of_clean, of_triggered] = [votes(exam.test), votes(&exam.triggered)];
    let experts = means.len();
    let standing = |is_silenced: &[bool]| {
        let [clean, triggered] = [&of_clean, &of_triggered].map(|votes| votes.classes(&means, is_silenced));
        exam.routed_standing_of(&clean, &triggered)
    };

    let classes = exam.test.class_count();
    let votes = votes(&triggered);
    let targets = ranking.labels().iter().map(|&label| {
        let config = exam.attack.config;
        config.attacks(label).then(|| config.attack_target(label, classes))
    });
    let targets = targets.collect::<Vec<_>>();
    let of_all = votes.mean_log_probability(&means, &vec![false; experts], &targets);
    let without = |expert: usize| votes.mean_log_probability(&means, &only(&[expert], experts), &targets);
    let contributions = (0..experts).map(|expert| of_all - without(expert)).collect::<Vec<_>>();
    let mut order = (0..experts).collect::<Vec<_>>();
    order.sort_by(|&a, &b| contributions[b].total_cmp(&contributions[a]));

    let alone = (0..experts).map(|expert| {
        let mut is_silenced = vec![true; experts];
        is_silenced[expert] = false;
        standing(&is_silenced)
    });
    let steps = 1..experts;
    let curve_of =
        |order: &[usize]| steps.clone().map(|count| standing(&only(&order[..count], experts))).collect::<Vec<_>>();
    let silenced = curve_of(&order);
    let orders = orders(experts, seed);
    let curves = orders.iter().map(|order| curve_of(order)).collect::<Vec<_>>();
    let bands = (0..silenced.len()).map(|step| {
        let at = curves.iter().map(|curve| curve[step]).collect::<Vec<_>>();
        StandingBand::of(&at)
    });
    AuditMeasurements {
        random_routers,
        ranking_images: targets.iter().flatten().count(),
        alone: alone.collect(),
        silenced_in_any_order: bands.collect(),
        silenced,
        contributions,
        order,
        orders: orders.len(),
    }
}

/// With kernels drawn from a normal distribution as wide as the trained ones, so that weights are as uneven.
fn with_random_routers<B: Kernels>(
    exam: &Exam<'_>,
    victim: &Classifier<B>,
    seed: u64,
    draw: usize,
    device: &B::Device,
) -> RoutedStanding {
    let mut tensors = victim.tensors();
    tensors.retain(|path, _| Part::of(path) == Part::Router);
    let kernels = tensors.values().flat_map(|kernels| kernels.iter::<f64>()).collect::<Vec<_>>();
    let deviation = (kernels.iter().map(|kernel| kernel * kernel).sum::<f64>() / kernels.len().max(1) as f64).sqrt();
    let random = victim.clone().redraw_router(deviation, &mut stream(seed, &format!("audit/routers/{draw}")));
    let of = |images| predict(&random, images, PREDICTION_BATCH, device);
    exam.routed_standing_of(&of(exam.test), &of(&exam.triggered))
}

/// Marks for some of so many experts.
fn only(some: &[usize], experts: usize) -> Vec<bool> {
    (0..experts).map(|expert| some.contains(&expert)).collect()
}

/// Every order of few experts, or some drawn orders of many.
fn orders(experts: usize, seed: u64) -> Vec<Vec<usize>> {
    if experts > ALL_ORDERS_UP_TO {
        let draw = |number| {
            let mut order = (0..experts).collect::<Vec<_>>();
            order.shuffle(&mut stream(seed, &format!("audit/order/{number}")));
            order
        };
        return (0..ORDERS).map(draw).collect();
    }
    let mut orders = vec![Vec::new()];
    for expert in 0..experts {
        let longer = orders.into_iter().flat_map(|order: Vec<usize>| {
            (0..=order.len()).map(move |place| {
                let mut order = order.clone();
                order.insert(place, expert);
                order
            })
        });
        orders = longer.collect();
    }
    orders
}

/// What each expert adds to the logits of each image through the head.
struct Votes {
    experts: usize,
    /// What the head adds itself, `[class]`.
    bias: Vec<f64>,
    /// `[image, expert, class]`
    of_experts: Vec<f64>,
}

impl Votes {
    fn of<B: Kernels>(classifier: &Classifier<B>, images: &ImageSet, device: &B::Device) -> Self {
        let features = predict_features(classifier, images, PREDICTION_BATCH, device);
        let tensors = classifier.tensors();
        let numbers = |name: &str| tensors[name].iter::<f64>().collect::<Vec<_>>();
        let (weight, bias) = (numbers("head.weight"), numbers("head.bias"));
        let groups = classifier.filter_groups();
        let width = weight.len() / bias.len();
        let mut votes = Vec::with_capacity(images.len() * groups.len() * bias.len());
        for features in features.chunks_exact(width) {
            for own in groups.iter().map(|group| group.first..group.first + group.count) {
                votes.extend(weight.chunks_exact(width).map(|row| {
                    let pairs = row[own.clone()].iter().zip(&features[own.clone()]);
                    pairs.map(|(weight, &feature)| weight * f64::from(feature)).sum::<f64>()
                }));
            }
        }
        Self { experts: groups.len(), of_experts: votes, bias }
    }

    /// Each expert's votes on average over the images, `[expert][class]`.
    fn means(&self) -> Vec<Vec<f64>> {
        let classes = self.bias.len();
        let each = self.experts * classes;
        let images = (self.of_experts.len() / each).max(1) as f64;
        let mean = |place: usize| self.of_experts.iter().skip(place).step_by(each).sum::<f64>() / images;
        (0..self.experts).map(|expert| (0..classes).map(|class| mean(expert * classes + class)).collect()).collect()
    }

    /// Logits of each image with the votes of silenced experts replaced by their means.
    fn logits(&self, means: &[Vec<f64>], is_silenced: &[bool]) -> impl Iterator<Item = Vec<f64>> {
        let classes = self.bias.len();
        self.of_experts.chunks_exact(self.experts * classes).map(move |votes| {
            let mut logits = self.bias.clone();
            for (expert, own) in votes.chunks_exact(classes).enumerate() {
                let heard = if is_silenced[expert] { &means[expert] } else { own };
                logits.iter_mut().zip(heard).for_each(|(logit, vote)| *logit += vote);
            }
            logits
        })
    }

    /// The predicted classes; ties go to the lower class.
    fn classes(&self, means: &[Vec<f64>], is_silenced: &[bool]) -> Vec<u8> {
        let best =
            |row: Vec<f64>| (0..row.len()).fold(0, |best, class| if row[class] > row[best] { class } else { best });
        self.logits(means, is_silenced).map(|row| best(row) as u8).collect()
    }

    /// The targets' log probability on average over the images that have one, in nats.
    fn mean_log_probability(&self, means: &[Vec<f64>], is_silenced: &[bool], targets: &[Option<u8>]) -> f64 {
        let (mut sum, mut count) = (0.0, 0);
        for (logits, target) in self.logits(means, is_silenced).zip(targets) {
            let Some(target) = target else { continue };
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total = logits.iter().map(|logit| (logit - largest).exp()).sum::<f64>();
            sum += logits[usize::from(*target)] - largest - total.ln();
            count += 1;
        }
        sum / f64::from(count.max(1))
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use patchdoor_data::{DatasetConfig, ShapesConfig, load};
    use patchdoor_model::{ClassifierConfig, InputShape, PatchMoeConfig, Pruning, Removal};

    use super::*;

    fn shapes() -> ImageSet {
        load(&DatasetConfig::Shapes(ShapesConfig { train: 40, test: 20, seed: 0 }), &[]).expect("no file").train
    }

    fn classifier() -> Classifier<Flex> {
        let config = PatchMoeConfig { widen_factor: 1, gate_init_std: 1.0, ..PatchMoeConfig::default() };
        let input = InputShape { height: 32, width: 32, channels: 3 };
        let mut network: Classifier<Flex> =
            ClassifierConfig::PatchMoe(config).init(input, 10, &mut stream(0, "weights"), &FlexDevice).expect("valid");
        // A head that tells images apart, so that a silenced expert shows.
        let mut tensors = network.tensors();
        tensors.retain(|path, _| path == "head.weight");
        let louder = tensors["head.weight"].iter::<f32>().map(|weight| 50.0 * weight).collect::<Vec<_>>();
        let shape = tensors["head.weight"].shape.clone();
        tensors.insert("head.weight".into(), burn::tensor::TensorData::new(louder, shape));
        network = network.with_tensors(tensors);
        network
    }

    #[test]
    fn votes_of_all_experts_are_what_the_classifier_says_and_without_one_what_it_says_pruned() {
        let (network, images) = (classifier(), shapes());
        let votes = Votes::of(&network, &images, &FlexDevice);
        let nothing = vec![vec![0.0; 10]; 4];
        let say = |network: &Classifier<Flex>| predict(network, &images, 16, &FlexDevice);
        assert_eq!(votes.classes(&nothing, &[false; 4]), say(&network));
        let filters = (16..32).collect::<Vec<_>>();
        let pruned = network.clone().prune(&Pruning::of(&filters, 64, Removal::Channel));
        assert_eq!(votes.classes(&nothing, &[false, true, false, false]), say(&pruned));
        assert_ne!(say(&pruned), say(&network), "the expert matters");
    }

    #[test]
    fn a_silenced_expert_says_the_same_of_every_image_and_all_silenced_say_one_class() {
        let votes = Votes {
            experts: 2,
            bias: vec![0.5, 0.0],
            // Two images, two experts, two classes.
            of_experts: vec![1.0, 0.0, 0.0, 4.0, 3.0, 0.0, 0.0, 2.0],
        };
        let means = votes.means();
        assert_eq!(means, [[2.0, 0.0], [0.0, 3.0]]);
        let logits = |is_silenced: [bool; 2]| votes.logits(&means, &is_silenced).collect::<Vec<_>>();
        assert_eq!(logits([false, false]), [[1.5, 4.0], [3.5, 2.0]]);
        assert_eq!(logits([true, false]), [[2.5, 4.0], [2.5, 2.0]]);
        assert_eq!(logits([true, true]), [[2.5, 3.0], [2.5, 3.0]]);
        assert_eq!(votes.classes(&means, &[false, false]), [1, 0]);
        // ln(e^2 / (e^3.5 + e^2)) of the second image; the first has no target.
        let expected = 2.0 - (3.5f64.exp() + 2.0f64.exp()).ln();
        let found = votes.mean_log_probability(&means, &[false, false], &[None, Some(1)]);
        assert!((found - expected).abs() < 1e-12, "{found}");
    }

    #[test]
    fn few_experts_are_silenced_in_every_order_and_many_in_some() {
        let mut all = orders(3, 0);
        all.sort();
        assert_eq!(all, [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]);
        let drawn = orders(8, 0);
        assert_eq!(drawn.len(), ORDERS);
        assert!(drawn.iter().any(|order| *order != drawn[0]));
        assert_eq!(drawn, orders(8, 0));
        for mut order in drawn {
            order.sort_unstable();
            assert_eq!(order, (0..8).collect::<Vec<_>>());
        }
    }
}
