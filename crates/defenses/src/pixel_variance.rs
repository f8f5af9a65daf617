use burn::module::AutodiffModule;
use patchdoor_data::ImageSet;
use patchdoor_kernels::TrainingBackend;
use patchdoor_metrics::share_up;
use patchdoor_model::Classifier;
use patchdoor_train::{PREDICTION_BATCH, gradient_by, image_batches};
use serde::{Deserialize, Serialize};

use crate::error::{check_count, check_positive, check_share, invalid};
use crate::label_likelihood::label_likelihoods;
use crate::mm_bd::margins_of;
use crate::{DatasetFilter, DefendedClassifier, Defense, DefenseError, Filtering};

/// Looks for pixels that decide a class and are the same in its surest examples: the idea of the variance-based defense
/// (Aseervatham et al. 2025, arXiv:2506.01444), which needs no clean image.
///
/// The suspects of a class are the [`suspects`](Self::suspects) share of its examples whose label the classifier is surest of. The pixels
/// that matter are those with the largest slope of the class's margin, the logit of the class minus the largest other, over the
/// suspects. Where they vary over the suspects less than [`variance`](Self::variance) times as much as over the whole set, they are part of
/// a trigger; a class with fewer than [`least_pixels`](Self::least_pixels) of them is clean. The score of an example is 1 / (1 + d), with d
/// its mean squared distance there from the suspects' mean, over the set's variance there, and 0 in a clean class; d below
/// [`distance`](Self::distance) is dropped.
///
/// What of the paper is public are its steps in words: overfit a small network, take the most confident right images, the pixels of the
/// gradient, the variance over the suspects, and drop what matches. All numbers are ours, and so are the logits in the gradient, where the
/// paper takes probabilities, and the victim itself as the network that knows the set. A trigger that is not the same pixels in
/// every image (an input-aware one, a warp, a blend of low weight) is not found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PixelVariance {
    /// Share of a class's examples, the surest, that are suspects, in (0, 1].
    pub suspects: f64,
    /// Share of the pixels that matter, those of the largest slope, in (0, 1].
    pub important: f64,
    /// The share of a pixel's variance over the set below which it is part of a trigger, in (0, 1).
    pub variance: f64,
    /// Pixels, at least, of a trigger, 1 or more.
    pub least_pixels: usize,
    /// The distance below which an example is dropped, a finite number above 0; 1 is that of any two images on average, less their means'.
    pub distance: f64,
    /// Whether a classifier is trained anew on what is left.
    pub retrain: bool,
}

impl Default for PixelVariance {
    /// Ours: a fiftieth of each class, a tenth of the pixels, a fifth of their variance, four of them, and a distance of 0.25.
    fn default() -> Self {
        Self { suspects: 0.02, important: 0.1, variance: 0.2, least_pixels: 4, distance: 0.25, retrain: false }
    }
}

impl Defense for PixelVariance {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        for (field, share) in [("suspects", self.suspects), ("important", self.important)] {
            problems.extend(check_share(field, share));
        }
        if !(self.variance > 0.0 && self.variance < 1.0) {
            problems.push(invalid("variance", self.variance, "a fraction in (0, 1)"));
        }
        problems.extend(check_count("least-pixels", self.least_pixels));
        problems.extend(check_positive("distance", self.distance));
        problems
    }
}

impl<B: TrainingBackend> DatasetFilter<B> for PixelVariance {
    fn retrains(&self) -> bool {
        self.retrain
    }

    fn filter(
        &self,
        set: &ImageSet,
        classifier: Classifier<B::InnerBackend>,
        device: &B::Device,
    ) -> Result<Filtering, DefenseError> {
        let likelihoods = label_likelihoods(&classifier, set, device);
        // Frozen, it normalizes as in inference, and no weight takes a gradient.
        let classifier = Classifier::<B>::from_inner(classifier).freeze_all_but(&[]);
        let everything = Moments::of(set, &(0..set.len()).collect::<Vec<_>>());
        let mut filtering = Filtering::of_none(set.len());
        for class in 0..set.class_count() {
            let examples = (0..set.len()).filter(|&index| usize::from(set.label(index)) == class).collect::<Vec<_>>();
            let suspects = self.suspects_of(&examples, &likelihoods);
            if suspects.is_empty() {
                continue;
            }
            let slopes = slopes(&classifier, &set.subset(&suspects), class, device);
            let moments = Moments::of(set, &suspects);
            let trigger = self.trigger(&slopes, &moments, &everything);
            if trigger.len() < self.least_pixels {
                continue;
            }
            for &example in &examples {
                let distance = moments.distance(set, example, &trigger, &everything);
                filtering.scores[example] = 1.0 / (1.0 + distance);
                filtering.is_suspect[example] = distance < self.distance;
            }
        }
        Ok(filtering)
    }
}

impl PixelVariance {
    /// The examples of a class, predicted right, whose label the classifier is surest of; of equal ones the first.
    fn suspects_of(&self, examples: &[usize], likelihoods: &[f64]) -> Vec<usize> {
        let mut order = examples.to_vec();
        order.sort_by(|&a, &b| likelihoods[b].total_cmp(&likelihoods[a]).then(a.cmp(&b)));
        order.truncate(share_up(self.suspects, examples.len()));
        // More than one half: no other class has more.
        order.retain(|&example| likelihoods[example] > 0.5f64.ln());
        order
    }

    /// The pixels that matter and hardly vary over the suspects.
    fn trigger(&self, slopes: &[f64], suspects: &Moments, everything: &Moments) -> Vec<usize> {
        let mut order = (0..slopes.len()).collect::<Vec<_>>();
        order.sort_by(|&a, &b| slopes[b].total_cmp(&slopes[a]).then(a.cmp(&b)));
        order.truncate(share_up(self.important, slopes.len()));
        // A pixel that never varies tells nothing.
        order.retain(|&pixel| suspects.variances[pixel] < self.variance * everything.variances[pixel]);
        order
    }
}

/// What pixels are over some images; colours of a pixel count together.
struct Moments {
    /// `[pixel * channel]`, in [0, 255]
    means: Vec<f64>,
    /// Sum over channels of the variance, `[pixel]`.
    variances: Vec<f64>,
}

impl Moments {
    fn of(set: &ImageSet, examples: &[usize]) -> Self {
        let shape = set.shape();
        let (mut sums, mut squares) = (vec![0.0; shape.size()], vec![0.0; shape.size()]);
        for &example in examples {
            for ((sum, square), &value) in sums.iter_mut().zip(&mut squares).zip(set.pixels(example)) {
                *sum += f64::from(value);
                *square += f64::from(value).powi(2);
            }
        }
        let count = examples.len().max(1) as f64;
        let means = sums.iter().map(|sum| sum / count).collect::<Vec<_>>();
        let of_values = means.iter().zip(&squares).map(|(mean, square)| square / count - mean.powi(2));
        let of_values = of_values.collect::<Vec<_>>();
        Self { means, variances: of_values.chunks_exact(shape.channels).map(|values| values.iter().sum()).collect() }
    }

    /// How far an image lies from the means at these pixels, squared, over what pixels vary there over everything.
    fn distance(&self, set: &ImageSet, example: usize, pixels: &[usize], everything: &Self) -> f64 {
        let channels = set.shape().channels;
        let (image, mut apart, mut usual) = (set.pixels(example), 0.0, 0.0);
        for &pixel in pixels {
            let values = pixel * channels..(pixel + 1) * channels;
            apart += image[values.clone()]
                .iter()
                .zip(&self.means[values])
                .map(|(&v, m)| (f64::from(v) - m).powi(2))
                .sum::<f64>();
            usual += everything.variances[pixel];
        }
        apart / usual
    }
}

/// How steeply the margin of a class depends on each pixel, `[pixel]`: the mean over images, and the sum over channels, of the absolute
/// slope.
fn slopes<B: TrainingBackend>(
    classifier: &Classifier<B>,
    images: &ImageSet,
    class: usize,
    device: &B::Device,
) -> Vec<f64> {
    let shape = images.shape();
    let mut slopes = vec![0.0; shape.height * shape.width];
    for batch in image_batches::<B::InnerBackend>(images, PREDICTION_BATCH, device) {
        let (gradient, ()) = gradient_by::<B, 4, _>(batch, |images| {
            let logits = classifier.forward(images);
            let (_, signs) = margins_of(logits.clone().inner(), class);
            ((logits * burn::tensor::Tensor::from_inner(signs)).sum(), ())
        });
        let sums = gradient.abs().sum_dim(0).sum_dim(3).into_data();
        for (slope, sum) in slopes.iter_mut().zip(sums.iter::<f64>()) {
            *slope += sum / images.len() as f64;
        }
    }
    slopes
}

#[cfg(test)]
mod tests {
    use patchdoor_data::ImageShape;

    use super::*;
    use crate::planted::{SeenOn, planted};

    fn set(pixels: Vec<u8>) -> ImageSet {
        let shape = ImageShape { height: 1, width: 2, channels: 2 };
        let labels = vec![0; pixels.len() / 4];
        ImageSet::new(shape, pixels, labels, vec!["a".to_owned()]).expect("valid")
    }

    #[test]
    fn variances_are_of_all_colours_of_a_pixel_and_distances_in_units_of_them() {
        let images = set(vec![0, 10, 5, 5, 4, 10, 5, 9]);
        let all = Moments::of(&images, &[0, 1]);
        // Pixel 0: variances 4 and 0; pixel 1: 0 and 4.
        assert_eq!((all.means.as_slice(), all.variances.as_slice()), (&[2.0, 10.0, 5.0, 7.0][..], &[4.0, 4.0][..]));
        let first = Moments::of(&images, &[0]);
        // At pixel 0 the second image is 4 from the first, 16 over 4; at both 16 + 16 over 8.
        assert!((first.distance(&images, 1, &[0], &all) - 4.0).abs() < 1e-12);
        assert!((first.distance(&images, 1, &[0, 1], &all) - 4.0).abs() < 1e-12);
        assert!(first.distance(&images, 0, &[0, 1], &all).abs() < 1e-12);
    }

    #[test]
    fn a_trigger_is_what_matters_and_does_not_vary() {
        let config = PixelVariance { important: 0.5, variance: 0.2, ..PixelVariance::default() };
        let moments = |variances: [f64; 4]| Moments { means: Vec::new(), variances: variances.to_vec() };
        let everything = moments([10.0, 10.0, 10.0, 0.0]);
        // The two that matter are 1 and 0; of them only 1 is steady. What is steady and does not matter is none.
        let found = config.trigger(&[2.0, 3.0, 1.0, 0.0], &moments([5.0, 1.0, 0.0, 0.0]), &everything);
        assert_eq!(found, [1]);
        // What never varies is none either.
        assert!(config.trigger(&[0.0, 0.0, 1.0, 2.0], &moments([9.0, 9.0, 9.0, 0.0]), &everything).is_empty());
    }

    #[test]
    fn suspects_are_the_surest_of_those_predicted_right() {
        let config = PixelVariance { suspects: 0.5, ..PixelVariance::default() };
        let likelihoods = [0.9, 0.4, 0.95, 0.99, 0.2, 0.3].map(f64::ln);
        assert_eq!(config.suspects_of(&[0, 1, 2, 4], &likelihoods), [2, 0]);
        // Rounded up, and none that may be predicted wrong.
        assert_eq!(config.suspects_of(&[1, 4, 5], &likelihoods), [0usize; 0]);
    }

    /// On the processor that it was seen on, 160 of 160 poisoned examples are dropped, 5 of 640 others, and 39 of 800 without poison.
    #[test]
    fn it_drops_the_poisoned_images_and_few_others_and_few_without_poison() {
        if !SeenOn::Avx2.is_here() {
            return;
        }
        let outcome = planted().isolated(&planted().filtered(true, &PixelVariance::default()).is_suspect);
        assert!(outcome.true_positive_rate() > Some(0.9), "{outcome:?}");
        assert!(outcome.false_positive_rate() < Some(0.05), "{outcome:?}");
        let of_twin = planted().filtered(false, &PixelVariance::default()).is_suspect;
        let dropped = of_twin.iter().filter(|&&suspect| suspect).count();
        assert!(dropped < 80, "{dropped} of {}", of_twin.len());
    }
}
