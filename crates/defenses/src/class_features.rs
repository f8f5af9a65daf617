use patchdoor_data::ImageSet;
use patchdoor_kernels::Kernels;
use patchdoor_model::Classifier;
use patchdoor_train::{PREDICTION_BATCH, predict_features};

/// What the head sees of every example of a set, by the label it has there.
pub(crate) struct ClassFeatures {
    /// `[example][feature]`
    features: Vec<Vec<f64>>,
    /// The examples of each class, in their order.
    pub(crate) classes: Vec<Vec<usize>>,
}

impl ClassFeatures {
    pub(crate) fn of<B: Kernels>(classifier: &Classifier<B>, set: &ImageSet, device: &B::Device) -> Self {
        let values = predict_features(classifier, set, PREDICTION_BATCH, device);
        let length = (values.len() / set.len().max(1)).max(1);
        let features = values.chunks_exact(length).map(|row| row.iter().map(|&value| f64::from(value)).collect());
        let of_class = |class: usize| (0..set.len()).filter(|&index| usize::from(set.label(index)) == class).collect();
        Self { features: features.collect(), classes: (0..set.class_count()).map(of_class).collect() }
    }

    /// The features of some examples.
    pub(crate) fn rows(&self, examples: &[usize]) -> Vec<&[f64]> {
        examples.iter().map(|&example| self.features[example].as_slice()).collect()
    }
}
