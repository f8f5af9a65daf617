use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use patchdoor_data::ImageShape;
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use patchdoor_train::input_shape;

/// The share of every pixel in the mean of its cell, `[pixel, patch]`: cells of the image lie as patches on the map do. `None`
/// for a classifier whose experts choose no patches.
pub(crate) fn cells<B: TrainingBackend>(
    classifier: &Classifier<B>,
    shape: ImageShape,
    device: &B::Device,
) -> Option<Tensor<B, 2>> {
    let config = classifier.config();
    let (rows, columns) = config.network().expert_choice()?.patch_grid(input_shape(shape));
    let ImageShape { height, width, .. } = shape;
    let cell_of = |pixel: usize| (pixel / width * rows / height) * columns + pixel % width * columns / width;
    let cells = (0..height * width).map(cell_of).collect::<Vec<_>>();
    let mut sizes = vec![0.0f32; rows * columns];
    for &cell in &cells {
        sizes[cell] += 1.0;
    }
    let mut shares = vec![0.0f32; height * width * rows * columns];
    for (pixel, &cell) in cells.iter().enumerate() {
        shares[pixel * rows * columns + cell] = 1.0 / sizes[cell];
    }
    Some(Tensor::from_data(TensorData::new(shares, [height * width, rows * columns]), device))
}

/// How little the experts weigh the patches that a mask covers: the mean over images and experts of minus the logarithm of the
/// sum over patches of gate times covered share, in nats.
///
/// # Shapes
/// - gates: `[batch, expert, patch]`
/// - mask: `[1, row, column, 1]`
/// - cells: `[pixel, patch]`
pub(crate) fn unselected<B: Backend>(gates: Tensor<B, 3>, mask: Tensor<B, 4>, cells: Tensor<B, 2>) -> Tensor<B, 1> {
    let [pixels, patches] = cells.dims();
    let covered = mask.reshape([1, pixels]).matmul(cells).reshape([1, 1, patches]);
    ((gates * covered).sum_dim(2) + 1e-6).log().mean().neg()
}

#[cfg(test)]
mod tests {
    use burn_flex::FlexDevice;

    use super::*;
    use crate::testing::ascending_filters;

    #[test]
    fn the_gates_are_asked_how_much_of_the_covered_cells_they_take() {
        let classifier = ascending_filters();
        let shape = ImageShape { height: 32, width: 32, channels: 3 };
        let cells = cells(&classifier, shape, &FlexDevice).expect("experts choose");
        assert_eq!(cells.dims(), [1024, 64]);
        // A mask over the 4x4 pixels of the last patch alone; expert 0 gives it a quarter, expert 1 nothing.
        let mask = (0..1024).map(|pixel| f32::from(u8::from(pixel / 32 >= 28 && pixel % 32 >= 28))).collect::<Vec<_>>();
        let mask = Tensor::from_data(TensorData::new(mask, [1, 32, 32, 1]), &FlexDevice);
        let mut gates = vec![0.0f32; 128];
        gates[63] = 0.25;
        gates[64] = 1.0;
        let gates = Tensor::from_data(TensorData::new(gates, [1, 2, 64]), &FlexDevice);
        let found = unselected::<crate::testing::Learner>(gates, mask, cells).inner().into_scalar();
        // -(ln 0.250001 + ln 1e-6) / 2 = (1.386290 + 13.815511) / 2.
        assert!((found - 7.600_9).abs() < 1e-3, "{found}");
    }
}
