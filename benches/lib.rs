//! Inputs that several benches share. All are drawn from fixed seeds, so every run measures the same work.
//!
//! Benches build their inputs inside the function given to `bench_function`, not around it: a run that
//! is asked for one benchmark then does not wait for the inputs of the others.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData, backend::Backend};
use patchdoor_data::{ImageSet, ImageShape, stream};
use patchdoor_model::{Classifier, ClassifierConfig, InputShape, PatchMoeConfig};
use rand::RngExt;

/// The shape of CIFAR's images.
pub const SHAPE: ImageShape = ImageShape { height: 32, width: 32, channels: 3 };

/// Bytes without pattern.
pub fn bytes(name: &str, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream(0, name).fill(&mut bytes[..]);
    bytes
}

/// Images of noise in ten classes that take turns.
///
/// # Panics
/// Never: the lengths fit the shape.
pub fn images(count: usize) -> ImageSet {
    let labels = (0..count).map(|index| (index % 10) as u8).collect();
    let classes: Arc<[String]> = (0..10).map(|class| format!("class {class}")).collect();
    ImageSet::new(SHAPE, bytes("images", count * SHAPE.size()), labels, classes).expect("as many pixels as images need")
}

/// Values evenly spread over [-1, 1).
pub fn tensor<B: Backend, const D: usize>(name: &str, shape: [usize; D], device: &B::Device) -> Tensor<B, D> {
    let mut rng = stream(0, name);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// The images that the classifiers take.
pub const INPUT: InputShape = InputShape { height: SHAPE.height, width: SHAPE.width, channels: SHAPE.channels };

/// A classifier for ten classes of 32x32 images with weights as before training.
///
/// # Panics
/// If the configuration is not valid for such images.
pub fn classifier<B: Backend>(config: PatchMoeConfig, device: &B::Device) -> Classifier<B> {
    let config = ClassifierConfig::PatchMoe(config);
    config.init(INPUT, 10, &mut stream(0, "weights"), device).expect("a valid configuration")
}
