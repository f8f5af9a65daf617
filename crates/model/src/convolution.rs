use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};
use patchdoor_kernels::{ConvOptions, InferenceConv, Kernels, grouped_conv2d, join};
use rand::Rng;

use crate::Padding;
use crate::init::ParameterSource;
use crate::network::FilterLayer;

/// A two-dimensional convolution with bias over channels-last maps.
#[derive(Module, Debug)]
pub(crate) struct Convolution<B: Backend> {
    /// `[out, in, row, column]`
    pub(crate) weight: Param<Tensor<B, 4>>,
    /// `[out]`
    pub(crate) bias: Param<Tensor<B, 1>>,
    stride: usize,
    #[module(skip)]
    padding: Padding,
}

impl<B: Backend> Convolution<B> {
    pub(crate) fn new<R: Rng>(
        source: &mut ParameterSource<'_, R, B>,
        [input, output]: [usize; 2],
        kernel: usize,
        stride: usize,
        padding: Padding,
    ) -> Self {
        let weight = source.weight([output, input, kernel, kernel]);
        let bias = source.constant(0.0, output);
        Self { weight, bias, stride, padding }
    }

    /// Its filters, by its path.
    pub(crate) fn filters(&self, path: &str) -> FilterLayer {
        FilterLayer { path: path.to_owned(), count: self.bias.dims()[0] }
    }
}

impl<B: Kernels> Convolution<B> {
    /// Convolutions of one shape side by side, each over its own group of channels.
    ///
    /// # Shapes
    /// - input: `[batch, row, column, group * channel]`
    /// - output: `[batch, row / stride, column / stride, group * channel]`, sizes rounded up
    pub(crate) fn forward_groups(groups: &[&Self], x: Tensor<B, 4>) -> Tensor<B, 4> {
        let [_, rows, columns, _] = x.dims();
        let options = groups[0].options([rows, columns]);
        let (weight, bias) = Self::parameters(groups);
        grouped_conv2d(x, weight, bias, groups.len(), options)
    }

    /// Convolutions of one shape side by side, for a pass over maps of this size that learns nothing.
    pub(crate) fn inference(groups: &[&Self], size: [usize; 2]) -> InferenceConv<B> {
        let (weight, bias) = Self::parameters(groups);
        let (groups, options) = (groups.len(), groups[0].options(size));
        InferenceConv { before: None, weight, bias, added: None, after: None, groups, options }
    }

    /// All groups' weights, and all their biases.
    fn parameters(groups: &[&Self]) -> (Tensor<B, 4>, Tensor<B, 1>) {
        let (weights, biases) = groups.iter().map(|group| (group.weight.val(), group.bias.val())).unzip();
        (join(weights), join(biases))
    }

    /// Whether the kernel is a single pixel.
    pub(crate) fn is_pointwise(&self) -> bool {
        let [_, _, rows, columns] = self.weight.dims();
        rows == 1 && columns == 1
    }

    fn options(&self, [rows, columns]: [usize; 2]) -> ConvOptions {
        let [_, _, kernel, _] = self.weight.dims();
        let [top, bottom] = self.padding.around(rows, kernel, self.stride);
        let [left, right] = self.padding.around(columns, kernel, self.stride);
        ConvOptions { stride: self.stride, padding: [top, left, bottom, right] }
    }
}

impl Padding {
    /// Zeros before and after an axis of `size` under a kernel of odd side `kernel`.
    pub(crate) fn around(self, size: usize, kernel: usize, stride: usize) -> [usize; 2] {
        match self {
            Self::Tensorflow => {
                let total = ((size.div_ceil(stride) - 1) * stride + kernel).saturating_sub(size);
                [total / 2, total - total / 2]
            }
            Self::Symmetric => [kernel / 2, kernel / 2],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensorflow_pads_a_strided_even_axis_at_its_end() {
        // 32 rows, kernel 3, stride 2: 16 outputs need 15 * 2 + 3 = 33 rows.
        assert_eq!(Padding::Tensorflow.around(32, 3, 2), [0, 1]);
        assert_eq!(Padding::Tensorflow.around(32, 3, 1), [1, 1]);
        // 7 rows, stride 2: 4 outputs need 3 * 2 + 3 = 9 rows.
        assert_eq!(Padding::Tensorflow.around(7, 3, 2), [1, 1]);
        assert_eq!(Padding::Tensorflow.around(32, 1, 2), [0, 0]);
        assert_eq!(Padding::Symmetric.around(32, 3, 2), [1, 1]);
    }
}
