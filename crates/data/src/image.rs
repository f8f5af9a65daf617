use crate::DataError;

/// Height, width and channels of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImageShape {
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// Colour channels: 3 for RGB, 1 for grey.
    pub channels: usize,
}

impl ImageShape {
    /// The shape of the 32x32 RGB images of CIFAR, GTSRB and `shapes`.
    pub const RGB_32: Self = Self { height: 32, width: 32, channels: 3 };

    /// Bytes of one image: height x width x channels.
    pub fn size(self) -> usize {
        self.height * self.width * self.channels
    }
}

impl std::fmt::Display for ImageShape {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}x{}x{}", self.height, self.width, self.channels)
    }
}

/// One image of its own, pixels in 0..=255, height x width x channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub(crate) shape: ImageShape,
    pub(crate) pixels: Vec<u8>,
}

impl Image {
    /// Makes an image of pixels in the order height x width x channel.
    ///
    /// # Errors
    ///
    /// [`DataError::PixelCount`] if there are not exactly `shape.size()` bytes.
    pub fn new(shape: ImageShape, pixels: Vec<u8>) -> Result<Self, DataError> {
        if pixels.len() == shape.size() {
            Ok(Self { shape, pixels })
        } else {
            Err(DataError::PixelCount { expected: shape.size(), found: pixels.len() })
        }
    }

    /// Makes an image of a copy of `pixels`, in the order height x width x channel.
    ///
    /// # Errors
    ///
    /// [`DataError::PixelCount`] if there are not exactly `shape.size()` bytes.
    pub fn from_slice(shape: ImageShape, pixels: &[u8]) -> Result<Self, DataError> {
        Self::new(shape, pixels.to_vec())
    }

    /// Height, width and channels.
    pub fn shape(&self) -> ImageShape {
        self.shape
    }

    /// All bytes, height x width x channel.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// All bytes, height x width x channel, to write to.
    pub fn pixels_mut(&mut self) -> &mut [u8] {
        &mut self.pixels
    }

    /// The channels of one pixel, rows counted from the top and columns from the left, both from 0.
    ///
    /// # Panics
    ///
    /// If `row` or `column` lies outside the image.
    pub fn pixel(&self, row: usize, column: usize) -> &[u8] {
        let start = self.offset(row, column);
        &self.pixels[start..start + self.shape.channels]
    }

    /// The channels of one pixel, to write to.
    ///
    /// # Panics
    ///
    /// If `row` or `column` lies outside the image.
    pub fn pixel_mut(&mut self, row: usize, column: usize) -> &mut [u8] {
        let start = self.offset(row, column);
        &mut self.pixels[start..start + self.shape.channels]
    }

    /// Gives the bytes away, height x width x channel.
    pub fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }

    fn offset(&self, row: usize, column: usize) -> usize {
        let ImageShape { height, width, channels } = self.shape;
        assert!(row < height && column < width, "pixel ({row}, {column}) lies outside an image of {height}x{width}");
        (row * width + column) * channels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pixel_is_found_by_row_and_column() {
        // 2x3 pixels of two channels: pixel (1, 2) is the sixth and last, bytes 10 and 11.
        let shape = ImageShape { height: 2, width: 3, channels: 2 };
        let mut image = Image::new(shape, (0..12).collect()).unwrap();
        assert_eq!(image.pixel(1, 2), [10, 11]);
        image.pixel_mut(0, 1).fill(9);
        assert_eq!(image.pixels(), [0, 1, 9, 9, 4, 5, 6, 7, 8, 9, 10, 11]);
    }

    #[test]
    fn a_wrong_number_of_bytes_is_an_error() {
        let error = Image::new(ImageShape::RGB_32, vec![0; 3071]).unwrap_err();
        assert_eq!(error.to_string(), "an image has 3071 bytes, expected 3072");
    }

    #[test]
    #[should_panic(expected = "pixel (0, 3) lies outside")]
    fn a_column_outside_the_image_does_not_wrap_into_the_next_row() {
        let shape = ImageShape { height: 2, width: 3, channels: 1 };
        Image::new(shape, vec![0; 6]).unwrap().pixel(0, 3);
    }
}
