use burn::tensor::TensorData;
use burn::tensor::backend::Backend;
use patchdoor_model::Classifier;

use crate::PrunedFilters;

/// What is known of the channels of one batch normalization.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NormChannels<T> {
    /// Path of the normalization, such as `experts.0.norm`.
    pub(crate) path: String,
    /// One value for each of its channels.
    pub(crate) values: Vec<T>,
}

impl<T> NormChannels<T> {
    pub(crate) fn map<U>(&self, change: impl FnMut(&T) -> U) -> NormChannels<U> {
        NormChannels { path: self.path.clone(), values: self.values.iter().map(change).collect() }
    }
}

/// What of a channel becomes zero when it is pruned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Silencing {
    /// Its scale; what is left is the constant relu(shift).
    Scale,
    /// Its scale and its shift, so that the channel is zero for every image.
    ScaleAndShift,
}

/// Prunes the channels of batch normalizations that are marked; all else stays.
pub(crate) fn prune_channels<B: Backend>(
    classifier: Classifier<B>,
    pruned: &[NormChannels<bool>],
    silencing: Silencing,
) -> Classifier<B> {
    let parameters: &[&str] = match silencing {
        Silencing::Scale => &["gamma"],
        Silencing::ScaleAndShift => &["gamma", "beta"],
    };
    let mut tensors = classifier.tensors();
    let kept =
        pruned.iter().flat_map(|norm| parameters.iter().map(move |name| (norm, format!("{}.{name}", norm.path))));
    let changed = kept.filter_map(|(norm, path)| {
        let data = tensors.remove(&path)?;
        let values = data.iter::<f32>().zip(&norm.values).map(|(value, &pruned)| if pruned { 0.0 } else { value });
        let values = TensorData::new(values.collect::<Vec<_>>(), data.shape.clone()).convert_dtype(data.dtype);
        Some((path, values))
    });
    let changed = changed.collect();
    classifier.with_tensors(changed)
}

/// Which channels of which normalization these are.
pub(crate) fn pruned_channels(pruned: &[NormChannels<bool>]) -> Vec<PrunedFilters> {
    let of_norm = |norm: &NormChannels<bool>| PrunedFilters {
        convolution: norm.path.clone(),
        filters: (0..norm.values.len()).filter(|&channel| norm.values[channel]).collect(),
        of: norm.values.len(),
    };
    pruned.iter().map(of_norm).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ascending_filters, bits};

    #[test]
    fn marked_channels_lose_what_they_shall_and_all_else_keeps_every_bit() {
        let before = bits(&ascending_filters());
        let marked = NormChannels { path: "norm".to_owned(), values: (0..64).map(|channel| channel == 3).collect() };
        for silencing in [Silencing::Scale, Silencing::ScaleAndShift] {
            let after = bits(&prune_channels(ascending_filters(), std::slice::from_ref(&marked), silencing));
            for (name, values) in &after {
                let mut expected = before[name].clone();
                if name == "norm.gamma" || (name == "norm.beta" && silencing == Silencing::ScaleAndShift) {
                    expected[3] = 0;
                }
                assert!(*values == expected, "{name} by {silencing:?}");
            }
        }
        let named = pruned_channels(&[marked]);
        assert_eq!((named[0].filters.as_slice(), named[0].of), (&[3][..], 64));
    }
}
