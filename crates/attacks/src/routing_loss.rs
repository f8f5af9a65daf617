use burn::tensor::activation::log_softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use patchdoor_kernels::Kernels;
use patchdoor_train::{cross_entropy, divergence};

/// What a pattern descends on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Objective {
    /// For each expert 1 if it shall select the patches that carry the pattern, -1 if not, 0 if that does not matter.
    Routing(Vec<f64>),
    /// Cross-entropy of a class, and the divergence of the routers' distributions from those for untouched images.
    Target { class: u8, routing_penalty: f64 },
}

impl Objective {
    /// Whether the scores of untouched images enter.
    pub(crate) fn needs_untouched(&self) -> bool {
        matches!(self, Self::Target { routing_penalty, .. } if *routing_penalty > 0.0)
    }

    /// The mean over the batch.
    ///
    /// An expert's distribution is the softmax of its scores over all patches, whether it selects before or after. One that
    /// shall select the carrying patches adds minus the logarithm of each one's probability, mean over them, so that none is
    /// left out; one that shall not adds minus the logarithm of the share of all others. Divided by the number of experts that
    /// matter.
    ///
    /// # Shapes
    /// - logits: `[batch, class]`
    /// - scores, untouched: `[batch, expert, patch]`
    /// - carries: `[batch, 1, patch]` or `[1, 1, patch]`, one or zero
    pub(crate) fn loss<B: Kernels>(
        &self,
        logits: Tensor<B, 2>,
        scores: Tensor<B, 3>,
        carries: Tensor<B, 3>,
        untouched: Option<Tensor<B, 3>>,
    ) -> Tensor<B, 1> {
        let ([batch, classes], device) = (logits.dims(), logits.device());
        match self {
            Self::Routing(wanted) => {
                let others = carries.ones_like() - carries.clone();
                let [for_it, against] = [1.0, -1.0].map(|sign| {
                    let weights = wanted.iter().map(|&weight| if weight * sign > 0.0 { 1.0f32 } else { 0.0 }).collect();
                    let weights: Vec<f32> = weights;
                    Tensor::<B, 2>::from_data(TensorData::new(weights, [1, wanted.len()]), &device)
                });
                let sum = mean_log(scores.clone(), carries) * for_it + log_share(scores, others) * against;
                let matter = wanted.iter().filter(|&&weight| weight != 0.0).count().max(1);
                sum.sum().mul_scalar(-1.0 / (matter * batch) as f64)
            }
            Self::Target { class, routing_penalty } => {
                debug_assert!(usize::from(*class) < classes, "the target is a class");
                let labels = TensorData::new(vec![i32::from(*class); batch], [batch]);
                let loss = cross_entropy(logits, Tensor::<B, 1, Int>::from_data(labels, &device));
                match untouched {
                    Some(untouched) => loss + divergence(untouched, scores).mul_scalar(*routing_penalty),
                    None => loss,
                }
            }
        }
    }
}

/// The mean logarithm of the probability of each marked patch in each expert's softmax, `[batch, expert]`.
fn mean_log<B: Backend>(scores: Tensor<B, 3>, marked: Tensor<B, 3>) -> Tensor<B, 2> {
    let [batch, experts, _] = scores.dims();
    let sum = (log_softmax(scores, 2) * marked.clone()).sum_dim(2);
    (sum / marked.sum_dim(2)).reshape([batch, experts])
}

/// The logarithm of the share that the marked patches have in each expert's softmax, `[batch, expert]`.
fn log_share<B: Backend>(scores: Tensor<B, 3>, marked: Tensor<B, 3>) -> Tensor<B, 2> {
    let [batch, experts, _] = scores.dims();
    // Far below any score, so that what is not marked vanishes.
    let among = scores.clone() + (marked - 1.0).mul_scalar(1e9);
    (log_sum(among) - log_sum(scores)).reshape([batch, experts])
}

/// The logarithm of the sum of exponentials over the patches, `[batch, expert, 1]`.
fn log_sum<B: Backend>(scores: Tensor<B, 3>) -> Tensor<B, 3> {
    let largest = scores.clone().detach().max_dim(2);
    (scores - largest.clone()).exp().sum_dim(2).log() + largest
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;

    fn number(tensor: Tensor<Flex, 1>) -> f64 {
        tensor.into_data().iter::<f64>().sum()
    }

    /// One image, two experts, three patches, with softmaxes (1, 2, 5) / 8 and (6, 1, 3) / 10.
    fn scores() -> Tensor<Flex, 3> {
        let ln = |values: [f64; 3]| values.map(|value| value.ln() as f32);
        Tensor::from_data([[ln([1.0, 2.0, 5.0]), ln([6.0, 1.0, 3.0])]], &FlexDevice)
    }

    fn loss(objective: &Objective, untouched: Option<Tensor<Flex, 3>>) -> f64 {
        // Softmax (1, 3) / 4 of two classes; patches 0 and 2 carry.
        let logits = Tensor::<Flex, 2>::from_data([[0.0, 3.0_f64.ln() as f32]], &FlexDevice);
        let carries = Tensor::<Flex, 3>::from_data([[[1.0, 0.0, 1.0]]], &FlexDevice);
        number(objective.loss(logits, scores(), carries, untouched))
    }

    #[test]
    fn experts_that_shall_select_pay_for_each_patch_they_miss_and_others_for_the_share_they_have() {
        let (one, two) = (f64::midpoint(0.125_f64.ln(), 0.625_f64.ln()), f64::midpoint(0.6_f64.ln(), 0.3_f64.ln()));
        let both = loss(&Objective::Routing(vec![1.0, 1.0]), None);
        assert!((both + f64::midpoint(one, two)).abs() < 1e-6, "{both}");
        let neither = loss(&Objective::Routing(vec![-1.0, -1.0]), None);
        assert!((neither + f64::midpoint(0.25_f64.ln(), 0.1_f64.ln())).abs() < 1e-6, "{neither}");
        let first = loss(&Objective::Routing(vec![1.0, -1.0]), None);
        assert!((first + f64::midpoint(one, 0.1_f64.ln())).abs() < 1e-6, "{first}");
        let second = loss(&Objective::Routing(vec![0.0, 1.0]), None);
        assert!((second + two).abs() < 1e-6, "{second}");
    }

    #[test]
    fn the_target_pays_cross_entropy_and_the_divergence_from_untouched_routing() {
        let plain = loss(&Objective::Target { class: 1, routing_penalty: 0.0 }, None);
        assert!((plain + 0.75_f64.ln()).abs() < 1e-6, "{plain}");
        let penalized = Objective::Target { class: 1, routing_penalty: 2.0 };
        assert!(penalized.needs_untouched());
        assert!((loss(&penalized, Some(scores())) - plain).abs() < 1e-6, "routing that stays costs nothing");
        // Untouched routing is uniform: sums of ln((1/3) / p) / 3 for both experts, twice their mean.
        let uniform = Tensor::<Flex, 3>::zeros([1, 2, 3], &FlexDevice);
        let of = |p: [f64; 3]| p.iter().map(|p| (1.0 / 3.0 / p).ln() / 3.0).sum::<f64>();
        let expected = plain + of([0.125, 0.25, 0.625]) + of([0.6, 0.1, 0.3]);
        let found = loss(&penalized, Some(uniform));
        assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
    }
}
