/// Stride and zero padding of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvOptions {
    /// Step of the kernel along both axes, at least 1.
    pub stride: usize,
    /// Zero rows and columns around the input: top, left, bottom, right.
    pub padding: [usize; 4],
}

impl ConvOptions {
    /// Padding with which the output has `ceil(size / stride)` rows and columns, the odd zero row below and the odd
    /// zero column to the right (TensorFlow's `SAME`).
    ///
    /// # Panics
    /// If `stride` is 0.
    pub fn same(size: [usize; 2], kernel: [usize; 2], stride: usize) -> Self {
        let total =
            |axis: usize| ((size[axis].div_ceil(stride).max(1) - 1) * stride + kernel[axis]).saturating_sub(size[axis]);
        let (rows, columns) = (total(0), total(1));
        Self { stride, padding: [rows / 2, columns / 2, rows - rows / 2, columns - columns / 2] }
    }

    /// Padding with the same number of zeros, `kernel / 2`, on either side (`PyTorch`'s usual choice for odd kernels).
    pub fn symmetric(kernel: [usize; 2], stride: usize) -> Self {
        let [rows, columns] = [kernel[0] / 2, kernel[1] / 2];
        Self { stride, padding: [rows, columns, rows, columns] }
    }

    /// Rows and columns of the output for an input of `size`.
    ///
    /// # Panics
    /// If the stride is 0 or the padded input is smaller than the kernel.
    pub fn output_size(&self, size: [usize; 2], kernel: [usize; 2]) -> [usize; 2] {
        let [top, left, bottom, right] = self.padding;
        let padded = [size[0] + top + bottom, size[1] + left + right];
        assert!(
            padded[0] >= kernel[0] && padded[1] >= kernel[1] && self.stride > 0,
            "a kernel of {kernel:?} with {self:?} does not fit an input of {size:?}"
        );
        [(padded[0] - kernel[0]) / self.stride + 1, (padded[1] - kernel[1]) / self.stride + 1]
    }
}
