use burn::tensor::{Tensor, backend::Backend};
use patchdoor_data::ImageSet;
use patchdoor_kernels::Kernels;
use patchdoor_model::Classifier;

use crate::batches::BatchAssembler;

/// Predicts the class of every image, in the order of the set, without augmentation.
///
/// Give it a classifier of an inner backend (`trained.classifier.valid()`): under autodiff, batch
/// normalization would take each batch's own statistics.
pub fn predict<B: Kernels>(
    classifier: &Classifier<B>,
    images: &ImageSet,
    batch_size: usize,
    device: &B::Device,
) -> Vec<u8> {
    let indices: Vec<usize> = (0..images.len()).collect();
    let mut assembler = BatchAssembler::plain(images);
    let batches = indices.chunks(batch_size.max(1));
    batches.flat_map(|chunk| classes_of(classifier.forward(assembler.assemble::<B>(chunk, device).images))).collect()
}

/// The class with the largest logit of each row; ties go to the lower class.
pub(crate) fn classes_of<B: Backend>(logits: Tensor<B, 2>) -> Vec<u8> {
    let [_, classes] = logits.dims();
    let data = logits.into_data().convert::<f32>();
    let values = data.as_slice::<f32>().expect("converted to f32");
    let best = |row: &[f32]| (0..classes).fold(0, |best, class| if row[class] > row[best] { class } else { best });
    values.chunks_exact(classes).map(|row| best(row) as u8).collect()
}
