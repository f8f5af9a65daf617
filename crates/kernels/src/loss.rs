use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use crate::Kernels;
use crate::primitives::{primitive, tensor};

/// What [`cross_entropy`] gives.
#[derive(Clone, Debug)]
pub struct Loss<B: Backend> {
    /// Mean cross-entropy in nats, `[1]`.
    pub mean: Tensor<B, 1>,
    /// Sum of the cross-entropies in nats and number of images whose largest logit is their label's, `[2]`, without
    /// gradient. Ties go to the lower class.
    pub totals: Tensor<B, 1>,
}

/// Cross-entropy of a batch and what it got right, without a number leaving the device.
///
/// # Shapes
/// - logits: `[batch, class]`
/// - labels: `[batch]`, each below the number of classes
///
/// # Panics
/// If logits and labels are of different images.
pub fn cross_entropy<B: Kernels>(logits: Tensor<B, 2>, labels: Tensor<B, 1, Int>) -> Loss<B> {
    assert_eq!(logits.dims()[0], labels.dims()[0], "every image needs a label");
    let (mean, totals, _) = B::cross_entropy(primitive(logits), labels.into_primitive());
    Loss { mean: tensor(mean), totals: tensor(totals) }
}
