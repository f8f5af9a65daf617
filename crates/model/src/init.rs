use burn::module::Param;
use burn::tensor::{Tensor, TensorData, backend::Backend};
use rand::{Rng, RngExt};
use rand_distr::{Distribution, Normal};

use crate::Initializer;

/// Draws initial parameters on the host, in the order in which layers are built, so that a seed
/// gives the same weights on every backend.
pub(crate) struct ParameterSource<'a, R: Rng, B: Backend> {
    rng: &'a mut R,
    device: &'a B::Device,
    initializer: Initializer,
}

impl<'a, R: Rng, B: Backend> ParameterSource<'a, R, B> {
    pub(crate) fn new(rng: &'a mut R, device: &'a B::Device, initializer: Initializer) -> Self {
        Self { rng, device, initializer }
    }

    pub(crate) fn device(&self) -> &'a B::Device {
        self.device
    }

    /// A weight of shape `[out, in, ..]`; the axes after the second count into both fans.
    pub(crate) fn weight<const D: usize>(&mut self, shape: [usize; D]) -> Param<Tensor<B, D>> {
        let field: usize = shape[2..].iter().product();
        let (fan_out, fan_in) = ((shape[0] * field) as f64, (shape[1] * field) as f64);
        let count = shape.iter().product();
        let values: Vec<f32> = match self.initializer {
            Initializer::GlorotUniform => {
                let limit = (6.0 / (fan_in + fan_out)).sqrt();
                (0..count).map(|_| self.rng.random_range(-limit..limit) as f32).collect()
            }
            Initializer::HeNormal => draw_normal((2.0 / fan_in).sqrt(), count, self.rng),
        };
        self.parameter(values, shape)
    }

    pub(crate) fn normal<const D: usize>(&mut self, std: f64, shape: [usize; D]) -> Param<Tensor<B, D>> {
        let values = draw_normal(std, shape.iter().product(), self.rng);
        self.parameter(values, shape)
    }

    pub(crate) fn constant(&self, value: f32, length: usize) -> Param<Tensor<B, 1>> {
        self.parameter(vec![value; length], [length])
    }

    fn parameter<const D: usize>(&self, values: Vec<f32>, shape: [usize; D]) -> Param<Tensor<B, D>> {
        Param::from_data(TensorData::new(values, shape), self.device)
    }
}

/// Draws numbers around zero, rounded to single precision.
pub(crate) fn draw_normal(std: f64, count: usize, rng: &mut impl Rng) -> Vec<f32> {
    let normal = Normal::new(0.0, std).expect("standard deviations are finite and not negative");
    (0..count).map(|_| normal.sample(rng) as f32).collect()
}
