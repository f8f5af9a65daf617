use burn::tensor::activation::log_softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use patchdoor_data::ImageSet;
use patchdoor_kernels::Kernels;
use patchdoor_model::Classifier;
use patchdoor_train::{PREDICTION_BATCH, image_batches};

/// The natural logarithm of the share that logits give to each image's label, `[batch]`; its negative is the image's cross-entropy.
///
/// # Shapes
/// - logits: `[batch, class]`
/// - labels: `[batch]`
pub(crate) fn log_likelihood<B: Backend>(logits: Tensor<B, 2>, labels: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    let [images, _] = logits.dims();
    log_softmax(logits, 1).gather(1, labels.unsqueeze_dim(1)).reshape([images])
}

/// The same of every image of a set under its own label, as it is, in inference.
pub(crate) fn label_likelihoods<B: Kernels>(
    classifier: &Classifier<B>,
    set: &ImageSet,
    device: &B::Device,
) -> Vec<f64> {
    let mut found = Vec::with_capacity(set.len());
    for images in image_batches::<B>(set, PREDICTION_BATCH, device) {
        let batch = found.len()..found.len() + images.dims()[0];
        let labels = set.labels()[batch.clone()].iter().map(|&label| i32::from(label)).collect::<Vec<_>>();
        let labels = Tensor::from_data(TensorData::new(labels, [batch.len()]), device);
        found.extend(log_likelihood(classifier.forward(images), labels).into_data().iter::<f64>());
    }
    found
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;

    #[test]
    fn equal_logits_share_evenly_and_a_larger_one_gets_its_odds() {
        // ln(1/2); and odds of 3 to 1 are 3/4.
        let logits = Tensor::<Flex, 2>::from_data([[2.0, 2.0], [0.0, 3f64.ln()]], &FlexDevice);
        let found = log_likelihood(logits, Tensor::from_data([0, 1], &FlexDevice)).into_data();
        for (found, expected) in found.iter::<f64>().zip([0.5f64.ln(), 0.75f64.ln()]) {
            assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
        }
    }
}
