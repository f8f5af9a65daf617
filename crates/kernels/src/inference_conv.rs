use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::ConvOptions;

/// A convolution with what is before and after it where nothing is learned and normalizations have constants.
///
/// `output = after(conv2d(before(x), weight, bias) + added)`, where a normalization is `max(value * scale + shift, 0)`
/// with one scale and shift per channel, as of [`scale_shift_relu`](crate::scale_shift_relu).
#[derive(Clone, Debug)]
pub struct InferenceConv<B: Backend> {
    /// Scale and shift of every channel of the input; the input is taken as it is without.
    pub before: Option<[Tensor<B, 1>; 2]>,
    /// `[groups * out, channel, kernel height, kernel width]`
    pub weight: Tensor<B, 4>,
    /// `[groups * out]`
    pub bias: Tensor<B, 1>,
    /// What is added to the output, of its shape.
    pub added: Option<Tensor<B, 4>>,
    /// Scale and shift of every channel of the output; the output is given as it is without.
    pub after: Option<[Tensor<B, 1>; 2]>,
    /// Groups of channels, as of [`grouped_conv2d`](crate::grouped_conv2d).
    pub groups: usize,
    /// Stride and padding.
    pub options: ConvOptions,
}

impl<B: Backend> InferenceConv<B> {
    /// Height and width of the output of an input of this size.
    ///
    /// # Panics
    /// If the kernel does not fit into the padded input.
    pub fn output_size(&self, size: [usize; 2]) -> [usize; 2] {
        let [_, _, rows, columns] = self.weight.dims();
        self.options.output_size(size, [rows, columns])
    }

    /// Shape of the output of an input of this shape.
    pub(crate) fn output(&self, [batch, height, width, channels]: [usize; 4]) -> [usize; 4] {
        let [out, weight_channels, _, _] = self.weight.dims();
        let groups = self.groups;
        assert_eq!(
            channels,
            groups * weight_channels,
            "the input and the convolution's weight must have the same channels"
        );
        assert!(groups > 0 && out % groups == 0, "{groups} groups must divide {out} output channels");
        assert_eq!([out], self.bias.dims(), "a convolution's bias must have one value per output channel");
        let [height, width] = self.output_size([height, width]);
        for (normalization, channels) in [(&self.before, channels), (&self.after, out)] {
            for parameter in normalization.iter().flatten() {
                assert_eq!([channels], parameter.dims(), "a normalization needs one parameter per channel");
            }
        }
        if let Some(added) = &self.added {
            assert_eq!([batch, height, width, out], added.dims(), "what is added must have the output's shape");
        }
        [batch, height, width, out]
    }
}
