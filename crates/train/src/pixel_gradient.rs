use burn::tensor::Tensor;
use patchdoor_kernels::{TrainingBackend, differentiate};

/// The gradient of a number by pixels, or by anything of the form of images, and what else the pass found.
///
/// `pass` gets the images as a leaf of the graph and returns a scalar that follows from them. It runs in
/// [`differentiate`]: nothing else belongs in it. Give classifiers frozen
/// ([`freeze_all_but`](patchdoor_model::Classifier::freeze_all_but)), so that they normalize as in inference and no weight takes
/// a gradient.
///
/// # Shapes
/// - images, gradient: `[batch, height, width, channel]`
///
/// # Panics
/// If the scalar does not depend on the images.
pub fn pixel_gradient<B: TrainingBackend, T>(
    images: Tensor<B::InnerBackend, 4>,
    pass: impl FnOnce(Tensor<B, 4>) -> (Tensor<B, 1>, T),
) -> (Tensor<B::InnerBackend, 4>, T) {
    differentiate(|| {
        let images = Tensor::<B, 4>::from_inner(images).require_grad();
        let (scalar, found) = pass(images.clone());
        let gradients = scalar.backward();
        (images.grad(&gradients).expect("the scalar depends on the images"), found)
    })
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn_flex::{Flex, FlexDevice};

    use super::*;

    #[test]
    fn the_gradient_of_a_weighted_sum_of_squares_is_twice_the_weighted_pixels() {
        let pixels = [[[[0.5], [1.0]], [[-2.0], [0.25]]]];
        let weights = [[[[1.0], [3.0]], [[0.5], [4.0]]]];
        let images = Tensor::<Flex, 4>::from_data(pixels, &FlexDevice);
        let (gradient, value) = pixel_gradient::<Autodiff<Flex>, _>(images, |images| {
            let weights = Tensor::from_data(weights, &FlexDevice);
            let sum = (images.powi_scalar(2) * weights).sum();
            (sum.clone(), sum.into_data().iter::<f64>().sum::<f64>())
        });
        assert_eq!(gradient.into_data().iter::<f64>().collect::<Vec<_>>(), [1.0, 6.0, -2.0, 2.0]);
        assert!((value - (0.25 + 3.0 + 2.0 + 0.25)).abs() < 1e-9, "{value}");
    }
}
