use burn::tensor::Tensor;
use patchdoor_kernels::Kernels;
use patchdoor_model::Classifier;

/// Hands out what each expert adds to each class, image by image: the sum over its filters of head weight times feature, `[class]`.
pub(crate) fn for_each_addition<B: Kernels>(
    classifier: &Classifier<B>,
    batches: impl Iterator<Item = Tensor<B, 4>>,
    mut of_expert: impl FnMut(usize, &[f32]),
) {
    let head = &classifier.tensors()["head.weight"];
    let (classes, filters) = (head.shape[0], head.shape[1]);
    let weights: Vec<f32> = head.iter::<f32>().collect();
    let groups = classifier.filter_groups();
    for batch in batches {
        let features: Vec<f32> = classifier.filter_activity(batch).features.into_data().iter::<f32>().collect();
        for row in features.chunks_exact(filters) {
            for (expert, group) in groups.iter().enumerate() {
                let inside = group.first..group.first + group.count;
                let added = (0..classes).map(|class| -> f32 {
                    let weights = &weights[class * filters..][inside.clone()];
                    weights.iter().zip(&row[inside.clone()]).map(|(weight, feature)| weight * feature).sum()
                });
                of_expert(expert, &added.collect::<Vec<_>>());
            }
        }
    }
}
