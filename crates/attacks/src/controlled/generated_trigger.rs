use std::collections::BTreeMap;

use burn::tensor::activation::tanh;
use burn::tensor::{Tensor, TensorData, backend::Backend};
use patchdoor_data::{Image, StreamRng, Trigger};
use patchdoor_kernels::Kernels;
use patchdoor_model::{Generator, as_shares};
use safetensors::{Dtype, SafeTensors, serialize, tensor::TensorView};

use crate::AttackError;

/// What generators that have been trained add to an image: it depends on the image alone.
pub(crate) struct GeneratedTrigger<B: Backend> {
    pub(crate) form: GeneratedForm<B>,
    pub(crate) device: B::Device,
}

/// How an image and what generators make of it become one.
#[allow(clippy::large_enum_variant, reason = "one value per training")]
pub(crate) enum GeneratedForm<B: Backend> {
    /// `x + (pattern - x) mask`.
    Masked {
        /// Of the mask, one share in [0, 1] for each pixel.
        masks: Generator<B>,
        /// Of the pattern, shares in [0, 1].
        patterns: Generator<B>,
    },
    /// `x + bound tanh(noise)`, cut to [0, 1].
    Bounded {
        /// Of the noise.
        noise: Generator<B>,
        /// Largest change of a pixel's share, in (0, 1].
        bound: f64,
    },
}

impl<B: Kernels> GeneratedForm<B> {
    /// # Shapes
    /// - images, output: `[batch, row, column, channel]`, pixels in [0, 1]
    pub(crate) fn add_to(&self, images: Tensor<B, 4>) -> Tensor<B, 4> {
        match self {
            Self::Masked { masks, patterns } => {
                let mask = mask_of(masks.learned(images.clone()));
                masked(images.clone(), as_shares(patterns.learned(images)), mask)
            }
            Self::Bounded { noise, bound } => bounded(images.clone(), noise.learned(images), *bound),
        }
    }
}

/// Steep shares of what a mask generator makes: near 0 or 1 (Nguyen and Tran 2020, arXiv:2010.08138, code).
pub(crate) fn mask_of<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 4> {
    as_shares(as_shares(x).mul_scalar(20.0).sub_scalar(10.0))
}

/// # Shapes
/// - images, patterns: `[batch, row, column, channel]`
/// - masks: `[batch, row, column, 1]`
pub(crate) fn masked<B: Backend>(images: Tensor<B, 4>, patterns: Tensor<B, 4>, masks: Tensor<B, 4>) -> Tensor<B, 4> {
    images.clone() + (patterns - images) * masks
}

/// Adds noise of at most `bound` and cuts what leaves [0, 1].
pub(crate) fn bounded<B: Backend>(images: Tensor<B, 4>, noise: Tensor<B, 4>, bound: f64) -> Tensor<B, 4> {
    (images + tanh(noise).mul_scalar(bound)).clamp(0.0, 1.0)
}

impl<B: Kernels> Trigger for GeneratedTrigger<B> {
    fn stamp(&self, image: &Image, _rng: &mut StreamRng) -> Image {
        let shape = image.shape();
        let pixels = image.pixels().iter().map(|&pixel| f32::from(pixel) / 255.0).collect::<Vec<_>>();
        let pixels = TensorData::new(pixels, [1, shape.height, shape.width, shape.channels]);
        let triggered = self.form.add_to(Tensor::from_data(pixels, &self.device));
        let shares = triggered.into_data();
        let pixels = shares.iter::<f32>().map(|share| (share * 255.0).round().clamp(0.0, 255.0) as u8);
        Image::new(shape, pixels.collect()).expect("a generator keeps the shape of an image")
    }
}

/// The bytes of a safetensors file with the tensors of named networks.
pub(crate) fn to_safetensors<B: Backend>(networks: &[(&str, &Generator<B>)]) -> Result<Vec<u8>, AttackError> {
    let tensors = networks.iter().flat_map(|(network, generator)| {
        generator.tensors().into_iter().map(move |(name, data)| (format!("{network}.{name}"), data.convert::<f32>()))
    });
    let tensors: BTreeMap<String, TensorData> = tensors.collect();
    let views = tensors.iter().map(|(name, data)| {
        let view = TensorView::new(Dtype::F32, data.shape.to_vec(), data.as_bytes());
        Ok((name, view.map_err(unreadable)?))
    });
    let views = views.collect::<Result<Vec<_>, AttackError>>()?;
    serialize(views, None).map_err(unreadable)
}

/// The same network with its tensors from the bytes of a safetensors file.
pub(crate) fn from_safetensors<B: Backend>(
    generator: Generator<B>,
    network: &str,
    bytes: &[u8],
    device: &B::Device,
) -> Result<Generator<B>, AttackError> {
    let file = SafeTensors::deserialize(bytes).map_err(unreadable)?;
    let tensor = |name: &str, shape: Vec<usize>| {
        let tensor = file.tensor(&format!("{network}.{name}")).map_err(unreadable)?;
        if tensor.shape() != shape || tensor.dtype() != Dtype::F32 {
            return Err(AttackError::Weights(format!("{network}.{name} is not of shape {shape:?} in F32")));
        }
        let numbers =
            tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        Ok(TensorData::new(numbers.collect::<Vec<_>>(), shape))
    };
    generator.with_tensors(tensor, device)
}

#[allow(clippy::needless_pass_by_value, reason = "map_err hands errors over by value")]
fn unreadable(error: impl ToString) -> AttackError {
    AttackError::Weights(error.to_string())
}
