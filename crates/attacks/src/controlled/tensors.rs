use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

/// The one number of a loss.
pub(super) fn scalar<B: Backend>(loss: &Tensor<B, 1>) -> f64 {
    loss.clone().into_data().iter::<f64>().sum()
}

/// Numbers of rows as a tensor.
pub(super) fn numbers<B: Backend>(rows: &[usize], device: &B::Device) -> Tensor<B, 1, Int> {
    let numbers = rows.iter().map(|&row| row as i32).collect::<Vec<_>>();
    Tensor::from_data(TensorData::new(numbers, [rows.len()]), device)
}
