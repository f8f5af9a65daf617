use burn::tensor::Tensor;
use patchdoor_kernels::{TrainingBackend, differentiate};

/// The gradient of a number by something that is no parameter of a classifier, such as images or a perturbation of them, and what else
/// the pass found; zeros if the number does not depend on it.
///
/// `pass` gets it as a leaf of the graph and returns a scalar that follows from it. It runs in [`differentiate`]: nothing else belongs in
/// it. Give classifiers frozen ([`freeze_all_but`](patchdoor_model::Classifier::freeze_all_but)), so that they normalize as in inference
/// and no weight takes a gradient.
///
/// # Shapes
/// - scalar: `[1]`
/// - gradient: as `at`
pub fn gradient_by<B: TrainingBackend, const D: usize, T>(
    at: Tensor<B::InnerBackend, D>,
    pass: impl FnOnce(Tensor<B, D>) -> (Tensor<B, 1>, T),
) -> (Tensor<B::InnerBackend, D>, T) {
    let (shape, device) = (at.dims(), at.device());
    let leaf = Tensor::<B, D>::from_inner(at);
    let (gradient, found) = differentiate(|| {
        let leaf = leaf.require_grad();
        let (scalar, found) = pass(leaf.clone());
        (leaf.grad(&scalar.backward()), found)
    });
    (gradient.unwrap_or_else(|| Tensor::zeros(shape, &device)), found)
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
        let (gradient, value) = gradient_by::<Autodiff<Flex>, 4, _>(images, |images| {
            let weights = Tensor::from_data(weights, &FlexDevice);
            let sum = (images.powi_scalar(2) * weights).sum();
            (sum.clone(), sum.into_data().iter::<f64>().sum::<f64>())
        });
        assert_eq!(gradient.into_data().iter::<f64>().collect::<Vec<_>>(), [1.0, 6.0, -2.0, 2.0]);
        assert!((value - (0.25 + 3.0 + 2.0 + 0.25)).abs() < 1e-9, "{value}");
    }

    #[test]
    fn a_number_that_does_not_depend_on_it_has_a_gradient_of_zeros() {
        let at = Tensor::<Flex, 1>::from_data([2.0, 5.0], &FlexDevice);
        let other = Tensor::<Autodiff<Flex>, 1>::from_data([7.0], &FlexDevice).require_grad();
        let (gradient, ()) = gradient_by::<Autodiff<Flex>, 1, _>(at, |_| (other, ()));
        assert_eq!(gradient.into_data().iter::<f64>().collect::<Vec<_>>(), [0.0, 0.0]);
    }
}
