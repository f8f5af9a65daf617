use burn::tensor::{Tensor, backend::Backend};

/// Averages a map over its positions.
///
/// # Shapes
/// - map: `[batch, row, column, channel]`
/// - output: `[batch, channel]`
pub(crate) fn average_positions<B: Backend>(map: Tensor<B, 4>) -> Tensor<B, 2> {
    let [batch, rows, columns, channels] = map.dims();
    map.reshape([batch, rows * columns, channels]).mean_dim(1).reshape([batch, channels])
}
