use burn::module::AutodiffModule;
use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use patchdoor_data::ImageSet;
use patchdoor_kernels::{Kernels, TrainingBackend, differentiate};
use patchdoor_metrics::share_down;
use patchdoor_model::{Classifier, Part};
use patchdoor_train::{
    Batch, BatchPass, BatchPosition, Objective, PREDICTION_BATCH, Trainable, TrainingConfig, cross_entropy, divergence,
    image_batches,
};
use serde::{Deserialize, Serialize};

use crate::defense::has_training_table;
use crate::error::{check_share, check_weight};
use crate::expert_disagreement::disagreement;
use crate::tuning::{field_training, tune_on, validate_own_training};
use crate::{DefendedClassifier, Defense, DefenseError, ModelRepair, Need, RepairWork, Repaired};

/// Trains the routers so that, where experts disagree, the one that stands apart is given patches on which it says what the others say.
///
/// After the robust router of `RGMoE` (Feng et al. 2025, arXiv:2510.15333), which sends inputs that experts disagree about to experts that an
/// attack has not reached; there the router chooses experts for an input. The form for experts that choose patches is ours. Before the
/// training each expert predicts every clean image of the defender alone. The images with the largest Jensen-Shannon divergence of these
/// predictions count as suspicious ([`ExpertDisagreement`](crate::ExpertDisagreement)), and in each of them the expert apart is the one
/// whose prediction diverges most from the mean of the others. Routers alone learn: the cross-entropy of all images, plus
/// [`consensus_weight`](Self::consensus_weight) times the divergence of that expert's prediction from the mean of the others as they were.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct RouterConsensus {
    /// Share of the images that count as suspicious, rounded down, in (0, 1].
    pub suspicious_fraction: f64,
    /// What the divergence counts beside the cross-entropy, a finite number of 0 or more.
    pub consensus_weight: f64,
    /// How the defender's images are fitted.
    pub training: TrainingConfig,
}

impl Default for RouterConsensus {
    /// Ours: a tenth of the images, as much weight as the cross-entropy has; the training of the field.
    fn default() -> Self {
        Self { suspicious_fraction: 0.1, consensus_weight: 1.0, training: field_training(20) }
    }
}

impl Defense for RouterConsensus {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        problems.extend(check_share("suspicious-fraction", self.suspicious_fraction));
        problems.extend(check_weight("consensus-weight", self.consensus_weight));
        problems.extend(validate_own_training(&self.training));
        problems
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Experts, Need::SeveralExperts, Need::LearningRouters]
    }

    /// The 5 % of `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654).
    fn default_clean_fraction(&self) -> f64 {
        0.05
    }

    has_training_table!();
}

impl<B: TrainingBackend> ModelRepair<B> for RouterConsensus {
    fn repair(
        &self,
        classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        if classifier.config().network().experts().is_none() {
            return Err(DefenseError::NoExperts { defense: "router-consensus" });
        }
        let alone = alone(&classifier.valid(), work.data.clean, device);
        let most = share_down(self.suspicious_fraction, alone.len());
        let mut objective =
            Consensus { opinions: opinions(&alone, most), weight: self.consensus_weight, indices: Vec::new() };
        let trainable = Trainable::only(&[Part::Router]);
        let (classifier, history) =
            tune_on(Some(&mut objective), classifier, &self.training, &trainable, work, device)?;
        Ok(Repaired::tuned(classifier, history))
    }
}

/// What each expert predicts of each image alone, `[image][expert][class]`, in [0, 1].
fn alone<B: Kernels>(classifier: &Classifier<B>, images: &ImageSet, device: &B::Device) -> Vec<Vec<Vec<f64>>> {
    let mut predictions = Vec::with_capacity(images.len());
    for batch in image_batches::<B>(images, PREDICTION_BATCH, device) {
        let shares = softmax(classifier.forward_by_expert(batch).1, 2);
        let [_, experts, classes] = shares.dims();
        let shares = shares.into_data().iter::<f64>().collect::<Vec<_>>();
        let of_image = |image: &[f64]| image.chunks_exact(classes).map(<[f64]>::to_vec).collect::<Vec<_>>();
        predictions.extend(shares.chunks_exact(experts * classes).map(of_image));
    }
    predictions
}

/// What a suspicious image's expert apart should say.
#[derive(Clone, Debug, PartialEq)]
struct Opinion {
    expert: usize,
    /// The mean prediction of the others, `[class]`.
    of_others: Vec<f64>,
}

/// The opinions on the images that experts disagree most about, so many; ties go to the lower image and to the lower expert.
fn opinions(alone: &[Vec<Vec<f64>>], most: usize) -> Vec<Option<Opinion>> {
    let scores = alone.iter().map(|predictions| disagreement(predictions)).collect::<Vec<_>>();
    let mut order = (0..alone.len()).collect::<Vec<_>>();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let mut opinions = vec![None; alone.len()];
    for &image in &order[..most.min(order.len())] {
        opinions[image] = Some(expert_apart(&alone[image]));
    }
    opinions
}

/// The expert whose prediction diverges most from the mean of the others, and that mean.
fn expert_apart(predictions: &[Vec<f64>]) -> Opinion {
    let others = |expert: usize| {
        let count = predictions.len().saturating_sub(1).max(1) as f64;
        let classes = 0..predictions[expert].len();
        let of_class = |class| {
            let shares = predictions.iter().enumerate().filter(|&(other, _)| other != expert);
            shares.map(|(_, shares)| shares[class]).sum::<f64>() / count
        };
        classes.map(of_class).collect::<Vec<_>>()
    };
    let divergence = |expert: usize| {
        let terms = predictions[expert].iter().zip(others(expert));
        terms.map(|(&own, other)| if own > 0.0 { own * (own / other.max(1e-12)).ln() } else { 0.0 }).sum::<f64>()
    };
    let farther = |best: usize, expert: usize| if divergence(expert) > divergence(best) { expert } else { best };
    let expert = (0..predictions.len()).reduce(farther).unwrap_or(0);
    Opinion { expert, of_others: others(expert) }
}

/// The cross-entropy, and what the experts apart should say.
struct Consensus {
    /// One for each of the defender's images, where it is suspicious.
    opinions: Vec<Option<Opinion>>,
    weight: f64,
    /// The images of the batch.
    indices: Vec<usize>,
}

impl<B: TrainingBackend> Objective<B> for Consensus {
    fn rewrite(&mut self, batch: Batch<B>, at: &BatchPosition<'_>) -> Batch<B> {
        self.indices = at.indices.to_vec();
        batch
    }

    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        differentiate(|| {
            let (logits, alone) = classifier.forward_by_expert(batch.images);
            let loss = cross_entropy(logits.clone(), batch.labels);
            let loss = match self.apart(alone) {
                Some(apart) => loss + apart * self.weight,
                None => loss,
            };
            BatchPass::backward(classifier, &logits, &loss)
        })
    }
}

impl Consensus {
    /// The divergence of the experts apart from the others, a mean over the batch's images, suspicious or not; `None` if none is.
    ///
    /// # Shapes
    /// - alone: `[batch, expert, class]`
    fn apart<B: Backend>(&self, alone: Tensor<B, 3>) -> Option<Tensor<B, 1>> {
        let [count, experts, classes] = alone.dims();
        let opinions = self.indices.iter().enumerate();
        let opinions = opinions.filter_map(|(row, &image)| Some((row, self.opinions[image].as_ref()?)));
        let (rows, wanted): (Vec<_>, Vec<_>) =
            opinions.map(|(row, opinion)| ((row * experts + opinion.expert) as i64, opinion.of_others.iter())).unzip();
        if rows.is_empty() {
            return None;
        }
        let device = alone.device();
        let suspicious = rows.len();
        let rows = Tensor::from_data(TensorData::new(rows, [suspicious]), &device);
        let own = alone.reshape([count * experts, classes]).select(0, rows);
        let wanted = wanted.into_iter().flatten().map(|&share| share.max(1e-12).ln() as f32).collect::<Vec<_>>();
        let wanted = Tensor::from_data(TensorData::new(wanted, [suspicious, classes]), (&device, own.dtype()));
        Some(divergence::<B, 2>(wanted, own) * (suspicious as f64 / count as f64))
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;
    use crate::planted::planted;
    use crate::testing::{Learner, ascending_filters, bits, quick_training, repair_with};

    #[test]
    fn the_expert_apart_is_the_one_that_the_others_do_not_expect() {
        let alone = [vec![0.8, 0.2], vec![0.7, 0.3], vec![0.1, 0.9]].map(|shares| shares.clone()).to_vec();
        let found = expert_apart(&alone);
        assert_eq!(found.expert, 2);
        assert!((found.of_others[0] - 0.75).abs() < 1e-12 && (found.of_others[1] - 0.25).abs() < 1e-12);
        let agreed = vec![vec![0.8, 0.2]; 3];
        let opinions = opinions(&[agreed.clone(), alone, agreed], 1);
        assert!(opinions[0].is_none() && opinions[2].is_none());
        assert_eq!(opinions[1].as_ref(), Some(&found));
    }

    #[test]
    fn only_suspicious_images_count_and_the_mean_is_over_all() {
        // Odds of the others 3 to 1, the expert apart says even: 3/4 ln(3/2) + 1/4 ln(1/2) = 0.130812; of two images.
        let opinion = Opinion { expert: 1, of_others: vec![0.75, 0.25] };
        let mut consensus = Consensus { opinions: vec![None, Some(opinion)], weight: 1.0, indices: vec![1, 0] };
        let alone = Tensor::<Flex, 3>::from_data([[[9.0, 0.0], [1.0, 1.0]], [[0.0, 5.0], [7.0, 0.0]]], &FlexDevice);
        let found = consensus.apart(alone.clone()).expect("one is suspicious").into_scalar();
        assert!((found - 0.065_406).abs() < 1e-5, "{found}");
        consensus.indices = vec![0, 0];
        assert!(consensus.apart(alone).is_none());
    }

    #[test]
    fn routers_learn_and_all_else_keeps_every_bit() {
        let before = bits(&ascending_filters());
        let repaired = |consensus_weight| {
            let defense = RouterConsensus { consensus_weight, training: quick_training(), ..Default::default() };
            bits(&repair_with(&defense, ascending_filters(), None).classifier)
        };
        let (without, with) = (repaired(0.0), repaired(10.0));
        assert_ne!(without, with, "the consensus counts");
        for (name, values) in &with {
            assert_eq!(values != &before[name], Part::of(name) == Part::Router, "{name}");
        }
    }

    /// A finding, not a wish: the expert apart comes nearer to the others, and the backdoor stays.
    #[test]
    fn the_expert_apart_comes_nearer_and_a_planted_backdoor_stays() {
        let training = TrainingConfig { epochs: 15, batch_size: 20, learning_rate: 0.05, ..field_training(1) };
        let clean = planted().validation();
        let before = opinions(&alone(&planted().victim().valid(), clean, &FlexDevice), clean.len());
        let distance = |classifier: &Classifier<Learner>| {
            let consensus = Consensus { opinions: before.clone(), weight: 1.0, indices: (0..clean.len()).collect() };
            let batch = image_batches::<Flex>(clean, clean.len(), &FlexDevice).next().expect("there are images");
            let alone = classifier.valid().forward_by_expert(batch).1;
            f64::from(consensus.apart(alone).expect("all are suspicious").into_scalar())
        };
        let repaired = |consensus_weight| {
            let defense = RouterConsensus { consensus_weight, suspicious_fraction: 1.0, training: training.clone() };
            planted().repair(&defense, planted().victim()).classifier
        };
        let (without, with) = (repaired(0.0), repaired(10.0));
        let distances = [&planted().victim(), &without, &with].map(distance);
        let [success, accuracy] = [planted().attack_success(&with), planted().accuracy(&with)];
        assert!(distances[2] < 0.9 * distances[0].min(distances[1]), "{distances:?}");
        assert!(success > 0.8 && accuracy > 0.95, "{success} {accuracy}");
    }
}
