use burn::tensor::Tensor;
use patchdoor_kernels::TrainingBackend;

/// Adam (Kingma and Ba 2015, arXiv:1412.6980) over a tensor that is no parameter of a classifier, with 1e-8 beside the root.
#[derive(Clone, Debug)]
pub struct Adam<B: TrainingBackend, const D: usize> {
    rate: f64,
    betas: [f64; 2],
    /// Running means of the gradient and of its square; `None` before the first step.
    means: Option<[Tensor<B::InnerBackend, D>; 2]>,
    steps: i32,
}

impl<B: TrainingBackend, const D: usize> Adam<B, D> {
    /// The moments that the paper proposes.
    pub const BETAS: [f64; 2] = [0.9, 0.999];

    /// One that has not stepped yet; `betas` in [0, 1) are the shares of the running means that a step keeps.
    pub fn new(rate: f64, betas: [f64; 2]) -> Self {
        Self { rate, betas, means: None, steps: 0 }
    }

    /// Where a step down the gradient leads.
    ///
    /// # Shapes
    /// - at, gradient and output: the same in every step
    pub fn step(
        &mut self,
        at: Tensor<B::InnerBackend, D>,
        gradient: Tensor<B::InnerBackend, D>,
    ) -> Tensor<B::InnerBackend, D> {
        let [mean, square] = self.means.take().unwrap_or_else(|| [gradient.zeros_like(), gradient.zeros_like()]);
        let [first, second] = self.betas;
        self.steps += 1;
        let mean = mean * first + gradient.clone() * (1.0 - first);
        let square = square * second + gradient.powi_scalar(2) * (1.0 - second);
        // Both start from zero; this makes up for it.
        let [of_mean, of_square] = self.betas.map(|beta| 1.0 - beta.powi(self.steps));
        let step = (mean.clone() / of_mean) / ((square.clone() / of_square).sqrt() + 1e-8);
        self.means = Some([mean, square]);
        at - step * self.rate
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn_flex::{Flex, FlexDevice};

    use super::*;

    fn vector(values: [f32; 2]) -> Tensor<Flex, 1> {
        Tensor::from_data(values, &FlexDevice)
    }

    fn near(found: Tensor<Flex, 1>, expected: [f64; 2]) {
        let found = found.into_data().iter::<f64>().collect::<Vec<_>>();
        assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-6), "{found:?}");
    }

    #[test]
    fn two_steps_of_adam_worked_out_by_hand() {
        // Betas 0.5 and 0.9, rate 0.1. Gradients 2, then -1: m = 1, v = 0.4; 1 / 0.5 = 2, sqrt(0.4 / 0.1) = 2, a step of 1.
        // m = 0, v = 0.46: no step. The second coordinate has no gradient.
        let mut adam = Adam::<Autodiff<Flex>, 1>::new(0.1, [0.5, 0.9]);
        let at = adam.step(vector([1.0, 1.0]), vector([2.0, 0.0]));
        near(at.clone(), [0.9, 1.0]);
        near(adam.step(at.clone(), vector([-1.0, 0.0])), [0.9, 1.0]);
        // m = 0.5, v = 0.9 * 0.46 + 0.1 = 0.514: (0.5 / 0.875) / sqrt(0.514 / 0.271) = 0.571429 / 1.377205 = 0.414919.
        near(adam.step(at, vector([1.0, 0.0])), [0.858_508, 1.0]);
    }
}
