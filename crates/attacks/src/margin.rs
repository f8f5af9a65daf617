use burn::tensor::{Tensor, TensorData, backend::Backend};
use patchdoor_data::ImageSet;
use patchdoor_kernels::Kernels;
use patchdoor_model::Classifier;
use patchdoor_train::{PREDICTION_BATCH, image_batches};

/// How sure a classifier is of each image: the distance of its largest logit from the second, 0 or more, whatever the image
/// truly shows. Images near a border between classes have small ones.
///
/// An attacker who poisons these needs fewer of them, as "Eminence" claims of triggers that are placed near borders
/// (2025, arXiv:2512.10402); the choice of images by a surrogate's margins is ours.
pub fn margins<B: Kernels>(classifier: &Classifier<B>, images: &ImageSet, device: &B::Device) -> Vec<f64> {
    image_batches::<B>(images, PREDICTION_BATCH, device)
        .flat_map(|batch| of_logits(classifier.forward(batch)))
        .collect()
}

/// # Shapes
/// - logits: `[batch, class]`
fn of_logits<B: Backend>(logits: Tensor<B, 2>) -> Vec<f64> {
    let classes = logits.dims()[1];
    let logits: TensorData = logits.into_data();
    let logits = logits.iter::<f64>().collect::<Vec<_>>();
    let margin = |logits: &[f64]| {
        let (mut largest, mut second) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
        for &logit in logits {
            (largest, second) = if logit > largest { (logit, largest) } else { (largest, second.max(logit)) };
        }
        largest - second
    };
    logits.chunks(classes).map(margin).collect()
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;
    use crate::controlled::testing::{patches, twin};

    #[test]
    fn a_margin_is_the_distance_of_the_two_largest_logits() {
        let logits = TensorData::new(vec![1.0_f32, 4.0, 2.5, 7.0, -1.0, 7.0, -3.0, -2.0, -8.0], [3, 3]);
        assert_eq!(of_logits(Tensor::<Flex, 2>::from_data(logits, &FlexDevice)), [1.5, 0.0, 1.0]);
    }

    #[test]
    fn a_classifier_is_less_sure_of_images_that_are_half_another_class() {
        let (classifier, images) = (twin(6), patches("test", 40));
        let mixed = {
            let length = images.shape().size();
            let pixels = (0..40).flat_map(|index| {
                // The next image is of the next class.
                let (one, other) = (images.pixels(index), images.pixels((index + 1) % 40));
                (0..length).map(|pixel| u8::midpoint(one[pixel], other[pixel])).collect::<Vec<_>>()
            });
            let classes = images.classes().to_vec();
            ImageSet::new(images.shape(), pixels.collect(), images.labels().to_vec(), classes).unwrap()
        };
        let mean = |images: &ImageSet| margins(&classifier, images, &FlexDevice).iter().sum::<f64>() / 40.0;
        assert!(mean(&mixed) < 0.7 * mean(&images), "{} and {}", mean(&mixed), mean(&images));
    }
}
