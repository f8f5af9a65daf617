use burn::module::AutodiffModule;
use patchdoor_data::ImageSet;
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use patchdoor_train::{PREDICTION_BATCH, predict_features};

/// The experts that contribute least to the logits of the true classes, in rising order.
///
/// An expert's contribution is the mean absolute change of the true class's logit when what the head sees of the expert is
/// replaced by its mean over the images.
///
/// # Panics
/// If the classifier has no experts.
pub(crate) fn least_contributing<B: TrainingBackend>(
    classifier: &Classifier<B>,
    images: &ImageSet,
    count: usize,
    device: &B::Device,
) -> Vec<usize> {
    let experts = classifier.config().network().experts().expect("a surrogate with experts");
    let features = predict_features(&classifier.valid(), images, PREDICTION_BATCH, device);
    let weights: Vec<f32> = classifier
        .tensors()
        .remove("head.weight")
        .map(|data| data.iter::<f32>().collect())
        .expect("every network has a head");
    let contributions = contributions(&features, &weights, images.labels(), experts);
    let mut order: Vec<usize> = (0..experts).collect();
    order.sort_by(|&a, &b| contributions[a].total_cmp(&contributions[b]));
    order.truncate(count);
    order.sort_unstable();
    order
}

/// Features are `[image, feature]`, expert by expert, and weights `[class, feature]`.
fn contributions(features: &[f32], weights: &[f32], labels: &[u8], experts: usize) -> Vec<f64> {
    let images = labels.len().max(1);
    let length = features.len() / images;
    let mut means = vec![0.0; length];
    for row in features.chunks_exact(length.max(1)) {
        row.iter().zip(&mut means).for_each(|(value, mean)| *mean += f64::from(*value) / images as f64);
    }
    let each = length / experts.max(1);
    let of = |expert: usize| {
        let own = expert * each..(expert + 1) * each;
        let changes = features.chunks_exact(length.max(1)).zip(labels).map(|(row, &label)| {
            let weights = &weights[usize::from(label) * length..][..length];
            own.clone().map(|at| f64::from(weights[at]) * (f64::from(row[at]) - means[at])).sum::<f64>().abs()
        });
        changes.sum::<f64>() / images as f64
    };
    (0..experts).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contribution_is_what_the_true_logit_loses_with_the_experts_mean() {
        // Two experts of one feature, two images of classes 0 and 1: means 2 and 4. Expert 0: |2 (1 - 2)| and |-1 (3 - 2)|,
        // mean 1.5; expert 1: |0.5 (4 - 4)| twice, 0.
        let found = contributions(&[1.0, 4.0, 3.0, 4.0], &[2.0, 0.5, -1.0, 0.5], &[0, 1], 2);
        assert_eq!(found, [1.5, 0.0]);
    }
}
