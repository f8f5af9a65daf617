//! What the tests of several triggers share.

use patchdoor_data::{Image, ImageShape, Trigger, stream};
use proptest::prelude::*;
use rand::Rng;
use sha2::{Digest, Sha256};

/// The input on which other toolkits' triggers were recorded: pixel (i, j), channel c is (7 i + 13 j + 29 c) mod 256.
pub(crate) fn reference_input() -> Image {
    drawn(|i, j, c| 7 * i + 13 * j + 29 * c)
}

/// The pattern that other toolkits' blends were recorded with: (3 i + 5 j + 101 c) mod 256.
pub(crate) fn reference_pattern() -> Image {
    drawn(|i, j, c| 3 * i + 5 * j + 101 * c)
}

fn drawn(value: impl Fn(usize, usize, usize) -> usize) -> Image {
    let ImageShape { height, width, channels } = ImageShape::RGB_32;
    let mut image = Image::new(ImageShape::RGB_32, vec![0; height * width * channels]).unwrap();
    for i in 0..height {
        for j in 0..width {
            for (c, channel) in image.pixel_mut(i, j).iter_mut().enumerate() {
                *channel = (value(i, j, c) % 256) as u8;
            }
        }
    }
    image
}

/// What a line of the reference table says about an image: the sum of its bytes, the first 16 hexadecimal digits of
/// their SHA-256, and how many bytes differ from the reference input.
pub(crate) fn summary(image: &Image) -> (u32, String, usize) {
    let sum = image.pixels().iter().map(|&pixel| u32::from(pixel)).sum();
    let digest = Sha256::digest(image.pixels());
    let hash = format!("{:016x}", u64::from_be_bytes(digest[..8].try_into().unwrap()));
    (sum, hash, changed(image, &reference_input()))
}

/// A trigger with the pictures it wants, built for images of `shape`.
pub(crate) fn with_pictures(mut trigger: Box<dyn Trigger>, shape: ImageShape) -> Box<dyn Trigger> {
    if trigger.pictures_wanted().is_some() {
        let mut rng = stream(0, "pictures");
        let mut picture = || {
            let mut pixels = vec![0; shape.size()];
            rng.fill_bytes(&mut pixels);
            Image::new(shape, pixels).unwrap()
        };
        trigger.take_pictures(vec![picture(), picture()]);
    }
    trigger
}

/// How many bytes differ.
pub(crate) fn changed(a: &Image, b: &Image) -> usize {
    a.pixels().iter().zip(b.pixels()).filter(|(a, b)| a != b).count()
}

/// Any image of up to 11 x 11 pixels, grey or RGB.
pub(crate) fn any_image() -> impl Strategy<Value = Image> {
    (1_usize..12, 1_usize..12, prop_oneof![Just(1_usize), Just(3)])
        .prop_flat_map(|(height, width, channels)| image_of(ImageShape { height, width, channels }))
}

/// Any image of a shape.
pub(crate) fn image_of(shape: ImageShape) -> impl Strategy<Value = Image> {
    prop::collection::vec(any::<u8>(), shape.size()).prop_map(move |pixels| Image::new(shape, pixels).unwrap())
}

/// A file of conformance numbers; images there are 32x32 RGB and have the channel first.
pub(crate) struct Conformance {
    bytes: Vec<u8>,
}

impl Conformance {
    pub(crate) fn open(name: &str) -> Self {
        let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/conformance");
        let directory = std::env::var("PATCHDOOR_CONFORMANCE").unwrap_or_else(|_| default.to_owned());
        Self { bytes: std::fs::read(format!("{directory}/{name}")).unwrap() }
    }

    pub(crate) fn tensors(&self) -> safetensors::SafeTensors<'_> {
        safetensors::SafeTensors::deserialize(&self.bytes).unwrap()
    }

    pub(crate) fn values(&self, name: &str) -> Vec<f64> {
        let tensors = self.tensors();
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), safetensors::Dtype::F32, "{name}");
        let words = tensor.data().chunks_exact(4);
        words.map(|word| f64::from(f32::from_le_bytes(word.try_into().unwrap()))).collect()
    }

    /// A tensor whose last axis has two entries.
    pub(crate) fn pairs(&self, name: &str) -> Vec<[f64; 2]> {
        assert_eq!(self.tensors().tensor(name).unwrap().shape().last(), Some(&2), "{name}");
        self.values(name).chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect()
    }

    /// Images in [0, 1], brought to 0..=255 and to channels last.
    pub(crate) fn unit_images(&self, name: &str) -> Vec<Vec<f64>> {
        let scaled: Vec<f64> = self.values(name).iter().map(|value| value * 255.0).collect();
        scaled.chunks_exact(ImageShape::RGB_32.size()).map(channels_last).collect()
    }

    /// Images of `u8`.
    pub(crate) fn images(&self, name: &str) -> Vec<Image> {
        let tensors = self.tensors();
        let planes = tensors.tensor(name).unwrap().data().chunks_exact(ImageShape::RGB_32.size());
        planes.map(|planes| Image::new(ImageShape::RGB_32, channels_last(planes)).unwrap()).collect()
    }
}

fn channels_last<T: Copy>(planes: &[T]) -> Vec<T> {
    (0..planes.len()).map(|index| planes[(index % 3) * 1024 + index / 3]).collect()
}
