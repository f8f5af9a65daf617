use burn::module::{Module, Param};
use burn::tensor::activation::tanh;
use burn::tensor::{Tensor, TensorData, backend::Backend};
use patchdoor_kernels::{
    ConvOptions, Kernels, average_statistics, batch_norm_relu, conv2d, fold_statistics, scale_shift_relu,
};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::InputShape;

/// How wide a network is that makes images or patterns of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct GeneratorConfig {
    /// Channels of its first convolutions, 1 or more; twice as many after every halving of the map.
    pub channels: usize,
}

impl Default for GeneratorConfig {
    /// The authors' for CIFAR-10 and GTSRB (Nguyen and Tran 2020, arXiv:2010.08138).
    fn default() -> Self {
        Self { channels: 32 }
    }
}

impl GeneratorConfig {
    /// How often it halves the map: three times, or twice where that leaves no whole map, as with the 28x28 pixels of
    /// MNIST; `None` if it cannot even do that.
    pub fn halvings(shape: InputShape) -> Option<usize> {
        [3, 2].into_iter().find(|&halvings| {
            let part = 1 << halvings;
            shape.height.is_multiple_of(part) && shape.width.is_multiple_of(part)
        })
    }
}

/// Share of a batch in running statistics, and what is added to a variance, as the authors have them.
const MOMENTUM: f64 = 0.05;
const EPSILON: f64 = 1e-5;

/// A network from images to maps of the same size: convolutions with halvings of the map between them, then with
/// doublings (Nguyen and Tran 2020, arXiv:2010.08138, code).
#[derive(Module, Debug)]
pub struct Generator<B: Backend> {
    blocks: Vec<Block<B>>,
    last: Block<B>,
    halvings: usize,
}

/// A 3x3 convolution and its normalization.
#[derive(Module, Debug)]
struct Block<B: Backend> {
    weight: Param<Tensor<B, 4>>,
    bias: Param<Tensor<B, 1>>,
    gamma: Param<Tensor<B, 1>>,
    beta: Param<Tensor<B, 1>>,
    running_mean: Param<Tensor<B, 1>>,
    running_variance: Param<Tensor<B, 1>>,
}

/// Means and variances of a batch, block by block.
pub type GeneratorStatistics<B> = Vec<[Tensor<B, 1>; 2]>;

impl<B: Backend> Block<B> {
    /// Weights as `PyTorch` draws them: uniform within one over the root of the inputs of a filter.
    fn new([input, output]: [usize; 2], rng: &mut impl Rng, device: &B::Device) -> Self {
        let limit = 1.0 / ((9 * input) as f64).sqrt();
        let mut draw =
            |count: usize| -> Vec<f32> { (0..count).map(|_| rng.random_range(-limit..limit) as f32).collect() };
        let weight = TensorData::new(draw(9 * input * output), [output, input, 3, 3]);
        let bias = TensorData::new(draw(output), [output]);
        let constant = |value: f32| Param::from_data(TensorData::new(vec![value; output], [output]), device);
        Self {
            weight: Param::from_data(weight, device),
            bias: Param::from_data(bias, device),
            gamma: constant(1.0),
            beta: constant(0.0),
            running_mean: constant(0.0).set_require_grad(false),
            running_variance: constant(1.0).set_require_grad(false),
        }
    }
}

impl<B: Kernels> Block<B> {
    fn convolved(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        conv2d(x, self.weight.val(), self.bias.val(), ConvOptions::symmetric([3, 3], 1))
    }

    /// By the batch's own statistics, which are returned too; rectified but in the last block.
    fn learning(&self, x: Tensor<B, 4>, rectified: bool) -> (Tensor<B, 4>, [Tensor<B, 1>; 2]) {
        let x = self.convolved(x);
        if rectified {
            let normalized = batch_norm_relu(x, self.gamma.val(), self.beta.val(), EPSILON);
            return (normalized.output, [normalized.mean.detach(), normalized.variance.detach()]);
        }
        let [batch, rows, columns, channels] = x.dims();
        let flat = x.reshape([batch * rows * columns, channels]);
        let mean = flat.clone().mean_dim(0);
        let centred = flat - mean.clone();
        let variance = centred.clone().powi_scalar(2).mean_dim(0);
        let unit = centred / variance.clone().add_scalar(EPSILON).sqrt();
        let output = unit * self.gamma.val().unsqueeze() + self.beta.val().unsqueeze();
        let statistics = [mean, variance].map(|statistic| statistic.reshape([channels]).detach());
        (output.reshape([batch, rows, columns, channels]), statistics)
    }

    /// By the running statistics.
    fn learned(&self, x: Tensor<B, 4>, rectified: bool) -> Tensor<B, 4> {
        let (scale, shift) = fold_statistics(
            vec![self.gamma.val()],
            vec![self.beta.val()],
            vec![self.running_mean.val()],
            vec![self.running_variance.val()],
            EPSILON,
        );
        let x = self.convolved(x);
        if rectified {
            return scale_shift_relu(x, scale, shift);
        }
        x * scale.unsqueeze() + shift.unsqueeze()
    }

    fn take(&mut self, [mean, variance]: [Tensor<B, 1>; 2]) {
        let (means, variances) = average_statistics(
            vec![self.running_mean.val().detach()],
            vec![self.running_variance.val().detach()],
            mean,
            variance,
            MOMENTUM,
        );
        for (running, values) in [(&mut self.running_mean, means), (&mut self.running_variance, variances)] {
            for value in values {
                *running = Param::initialized(running.id, value.detach().set_require_grad(false));
            }
        }
    }
}

impl<B: Backend> Generator<B> {
    /// A network whose weights are drawn on the host, with so many maps out for images of `shape`.
    ///
    /// # Panics
    /// If the images cannot be halved twice; [`GeneratorConfig::halvings`] tells.
    pub fn new(
        config: GeneratorConfig,
        shape: InputShape,
        outputs: usize,
        rng: &mut impl Rng,
        device: &B::Device,
    ) -> Self {
        let halvings = GeneratorConfig::halvings(shape).expect("sides can be halved twice");
        let widths = (0..halvings).map(|step| config.channels << step).collect::<Vec<_>>();
        let mut blocks = Vec::new();
        let mut width = shape.channels;
        let mut add = |input: usize, output: usize| blocks.push(Block::new([input, output], rng, device));
        for &next in &widths {
            add(width, next);
            add(next, next);
            width = next;
        }
        add(width, width);
        for step in (0..halvings).rev() {
            add(width, width);
            if step > 0 {
                add(width, widths[step - 1]);
                width = widths[step - 1];
            }
        }
        let last = Block::new([width, outputs], rng, device);
        Self { blocks, last, halvings }
    }

    /// Its tensors by their names, parameters and running statistics.
    pub fn tensors(&self) -> Vec<(String, TensorData)> {
        let blocks = self.blocks.iter().chain([&self.last]).enumerate();
        let named = blocks.flat_map(|(number, block)| {
            [
                ("weight", block.weight.val().into_data()),
                ("bias", block.bias.val().into_data()),
                ("gamma", block.gamma.val().into_data()),
                ("beta", block.beta.val().into_data()),
                ("running_mean", block.running_mean.val().into_data()),
                ("running_variance", block.running_variance.val().into_data()),
            ]
            .map(|(name, data)| (format!("blocks.{number}.{name}"), data))
        });
        named.collect()
    }

    /// The same network with other tensors, which `named` finds by their names and shapes.
    ///
    /// # Errors
    /// The first that `named` has none for.
    pub fn with_tensors<E>(
        mut self,
        mut named: impl FnMut(&str, Vec<usize>) -> Result<TensorData, E>,
        device: &B::Device,
    ) -> Result<Self, E> {
        for (number, block) in self.blocks.iter_mut().chain([&mut self.last]).enumerate() {
            let data = named(&format!("blocks.{number}.weight"), block.weight.dims().to_vec())?;
            block.weight = Param::initialized(block.weight.id, Tensor::from_data(data, device).require_grad());
            for (name, param, learns) in [
                ("bias", &mut block.bias, true),
                ("gamma", &mut block.gamma, true),
                ("beta", &mut block.beta, true),
                ("running_mean", &mut block.running_mean, false),
                ("running_variance", &mut block.running_variance, false),
            ] {
                let data = named(&format!("blocks.{number}.{name}"), param.dims().to_vec())?;
                let tensor = Tensor::from_data(data, device).set_require_grad(learns);
                *param = Param::initialized(param.id, tensor);
            }
        }
        Ok(self)
    }
}

impl<B: Kernels> Generator<B> {
    /// What it makes of images by the batch's own statistics, before any last function, and these statistics.
    ///
    /// # Shapes
    /// - images: `[batch, row, column, channel]`, pixels in [0, 1]
    /// - output: `[batch, row, column, map]`
    pub fn learning(&self, images: Tensor<B, 4>) -> (Tensor<B, 4>, GeneratorStatistics<B>) {
        let mut statistics = Vec::new();
        let output = self.pass(images, |block, x, rectified| {
            let (x, of_batch) = block.learning(x, rectified);
            statistics.push(of_batch);
            x
        });
        (output, statistics)
    }

    /// What it makes of images by its running statistics; an image's map does not depend on the others.
    pub fn learned(&self, images: Tensor<B, 4>) -> Tensor<B, 4> {
        self.pass(images, Block::learned)
    }

    /// Moves the running statistics towards those of a batch.
    pub fn take(&mut self, statistics: GeneratorStatistics<B>) {
        for (block, of_batch) in self.blocks.iter_mut().chain([&mut self.last]).zip(statistics) {
            block.take(of_batch);
        }
    }

    fn pass(
        &self,
        images: Tensor<B, 4>,
        mut through: impl FnMut(&Block<B>, Tensor<B, 4>, bool) -> Tensor<B, 4>,
    ) -> Tensor<B, 4> {
        let (down, rest) = self.blocks.split_at(2 * self.halvings);
        let mut x = images;
        for pair in down.chunks(2) {
            for block in pair {
                x = through(block, x, true);
            }
            x = halved(x);
        }
        x = through(&rest[0], x, true);
        for pair in rest[1..].chunks(2) {
            x = doubled(x);
            for block in pair {
                x = through(block, x, true);
            }
        }
        through(&self.last, x, false)
    }
}

/// Numbers as shares in [0, 1]: a hyperbolic tangent, moved and scaled.
pub fn as_shares<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 4> {
    tanh(x).mul_scalar(0.5).add_scalar(0.5)
}

/// The largest of every two by two positions.
fn halved<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 4> {
    let [batch, rows, columns, channels] = x.dims();
    let larger = |x: Tensor<B, 3>| x.clone().narrow(1, 0, 1).max_pair(x.narrow(1, 1, 1));
    let x = larger(x.reshape([batch * rows / 2, 2, columns * channels]));
    let x = larger(x.reshape([batch * rows * columns / 4, 2, channels]));
    x.reshape([batch, rows / 2, columns / 2, channels])
}

/// Twice the rows and columns, linear between the centres of positions and constant beyond the outermost.
fn doubled<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 4> {
    let [batch, rows, columns, channels] = x.dims();
    let x = stretched(x.reshape([batch, rows, columns * channels]));
    let x = stretched(x.reshape([2 * batch * rows, columns, channels]));
    x.reshape([batch, 2 * rows, 2 * columns, channels])
}

/// Doubles the middle axis.
fn stretched<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    let [outer, length, inner] = x.dims();
    let ends = [x.clone().narrow(1, 0, 1), x.clone().narrow(1, length - 1, 1)];
    let [first, last] = ends;
    let (before, after) = match length {
        1 => (first, last),
        _ => (
            Tensor::cat(vec![first, x.clone().narrow(1, 0, length - 1)], 1),
            Tensor::cat(vec![x.clone().narrow(1, 1, length - 1), last], 1),
        ),
    };
    let near = x.mul_scalar(0.75);
    let pair = [before, after].map(|neighbour| near.clone() + neighbour.mul_scalar(0.25));
    Tensor::stack::<4>(pair.into(), 2).reshape([outer, 2 * length, inner])
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn_flex::{Flex, FlexDevice};
    use patchdoor_kernels::differentiate;
    use rand::{SeedableRng, rngs::ChaCha8Rng};

    use super::*;

    const SHAPE: InputShape = InputShape { height: 8, width: 16, channels: 3 };

    fn map(values: &[f32], [rows, columns]: [usize; 2]) -> Tensor<Flex, 4> {
        Tensor::from_data(TensorData::new(values.to_vec(), [1, rows, columns, 1]), &FlexDevice)
    }

    fn values(map: Tensor<Flex, 4>) -> Vec<f32> {
        map.into_data().to_vec().unwrap()
    }

    #[test]
    fn halving_takes_the_largest_and_doubling_goes_between() {
        let x = map(&[1.0, 5.0, 2.0, 3.0, 4.0, 0.0, 9.0, 7.0], [2, 4]);
        assert_eq!(values(halved(x)), [5.0, 9.0]);
        // Along a row 0, 4: 0, 0.25 of the way, 0.75 of the way, 4; rows alike.
        let x = map(&[0.0, 4.0], [1, 2]);
        assert_eq!(values(doubled(x)), [0.0, 1.0, 3.0, 4.0, 0.0, 1.0, 3.0, 4.0]);
        // The upper row is 0, the lower 8: 0, 2, 6, 8 going down.
        let x = map(&[0.0, 8.0], [2, 1]);
        assert_eq!(values(doubled(x)), [0.0, 0.0, 2.0, 2.0, 6.0, 6.0, 8.0, 8.0]);
    }

    #[test]
    fn a_network_has_the_published_layers_and_its_maps_fit_the_images() {
        let config = GeneratorConfig { channels: 4 };
        let network = Generator::<Flex>::new(config, SHAPE, 2, &mut ChaCha8Rng::seed_from_u64(0), &FlexDevice);
        // 3-4-4, 4-8-8, 8-16-16, 16-16, then 16-16-8, 8-8-4, 4-4-2.
        let filters = network.tensors().into_iter().filter(|(name, _)| name.ends_with("weight"));
        let widths: Vec<[usize; 2]> = filters.map(|(_, data)| [data.shape[1], data.shape[0]]).collect();
        let up = [[16, 16], [16, 8], [8, 8], [8, 4], [4, 4], [4, 2]];
        assert_eq!(widths, [[[3, 4], [4, 4], [4, 8], [8, 8], [8, 16], [16, 16], [16, 16]].as_slice(), &up].concat());
        let images = Tensor::ones([5, 8, 16, 3], &FlexDevice);
        assert_eq!(network.learned(images.clone()).dims(), [5, 8, 16, 2]);
        assert_eq!(network.learning(images).0.dims(), [5, 8, 16, 2]);
        let side = |height, width| GeneratorConfig::halvings(InputShape { height, width, channels: 1 });
        assert_eq!((side(32, 32), side(28, 28), side(30, 32)), (Some(3), Some(2), None));
    }

    #[test]
    fn running_statistics_come_to_those_of_the_batch_and_then_both_ways_agree() {
        let mut network = Generator::<Flex>::new(
            GeneratorConfig { channels: 2 },
            SHAPE,
            1,
            &mut ChaCha8Rng::seed_from_u64(1),
            &FlexDevice,
        );
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let pixels: Vec<f32> = (0..3 * 8 * 16 * 3).map(|_| rng.random_range(0.0..1.0)).collect();
        let images = Tensor::from_data(TensorData::new(pixels, [3, 8, 16, 3]), &FlexDevice);
        let (by_batch, _) = network.learning(images.clone());
        let distance = |network: &Generator<Flex>| {
            let largest = (network.learned(images.clone()) - by_batch.clone()).abs().max();
            largest.into_scalar()
        };
        assert!(distance(&network) > 0.1, "statistics of nothing");
        for _ in 0..400 {
            let (_, statistics) = network.learning(images.clone());
            network.take(statistics);
        }
        // 0.95 to the 400th is 1e-9.
        assert!(distance(&network) < 1e-3, "{}", distance(&network));
        let alone = network.learned(images.clone().narrow(0, 1, 1));
        assert_eq!(values(alone), values(network.learned(images.clone()).narrow(0, 1, 1)));
    }

    type Learner = Autodiff<Flex>;

    #[test]
    fn gradients_of_halving_go_to_the_largest_and_those_of_doubling_to_all_alike() {
        let numbers = [1.0_f32, 5.0, 2.0, 3.0, 4.0, 0.0, 9.0, 7.0];
        let gradient = |of: fn(Tensor<Learner, 4>) -> Tensor<Learner, 4>| {
            let data = TensorData::new(numbers.to_vec(), [1, 2, 4, 1]);
            let x = Tensor::<Learner, 4>::from_data(data, &FlexDevice).require_grad();
            let gradient = differentiate(|| x.grad(&of(x.clone()).sum().backward()).expect("it learns"));
            gradient.into_data().to_vec::<f32>().unwrap()
        };
        assert_eq!(gradient(halved), [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
        // Twice as many rows and columns: each number is worth four.
        assert_eq!(gradient(doubled), [4.0; 8]);
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let new = || {
            let config = GeneratorConfig { channels: 2 };
            Generator::<Learner>::new(config, SHAPE, 1, &mut ChaCha8Rng::seed_from_u64(3), &FlexDevice)
        };
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let pixels: Vec<f32> = (0..2 * 8 * 16 * 3).map(|_| rng.random_range(0.0..1.0)).collect();
        let images = || Tensor::from_data(TensorData::new(pixels.clone(), [2, 8, 16, 3]), &FlexDevice);
        // A weighted sum, for a plain one of what is normalized does not depend on the weights.
        let loss = |network: &Generator<Learner>| {
            let shares = as_shares(network.learning(images()).0);
            (shares * images().narrow(3, 0, 1)).sum()
        };
        let network = new();
        let gradient = differentiate(|| {
            let gradient = network.last.gamma.val().grad(&loss(&network).backward()).expect("it learns");
            f64::from(gradient.into_data().to_vec::<f32>().unwrap()[0])
        });
        // The last block has no rectifier, so that the loss is smooth in what is shifted.
        let shifted = |by: f32| {
            let mut network = new();
            network.last.gamma = Param::from_data(TensorData::new(vec![1.0 + by], [1]), &FlexDevice);
            differentiate(|| f64::from(loss(&network).into_scalar()))
        };
        let difference = (shifted(0.01) - shifted(-0.01)) / 0.02;
        assert!((gradient - difference).abs() < 0.02 * difference.abs().max(0.1), "{gradient} and {difference}");
    }
}
