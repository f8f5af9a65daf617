use burn::tensor::Tensor;

use crate::Kernels;
use crate::primitives::{primitive, tensor};

/// Moves running means and variances towards those of a batch: `running * (1 - momentum) + batch * momentum`.
///
/// # Shapes
/// - means, variances: `[channel]` each, for every group; so are the outputs
/// - mean, variance: `[group * channel]`
///
/// # Panics
/// If there is no group, or the shapes disagree.
pub fn average_statistics<B: Kernels>(
    means: Vec<Tensor<B, 1>>,
    variances: Vec<Tensor<B, 1>>,
    mean: Tensor<B, 1>,
    variance: Tensor<B, 1>,
    momentum: f64,
) -> (Vec<Tensor<B, 1>>, Vec<Tensor<B, 1>>) {
    let channels = means.first().expect("there is a group").dims();
    assert!(means.iter().chain(&variances).all(|running| running.dims() == channels), "groups have one shape");
    let all = [means.len() * channels[0]];
    assert!(mean.dims() == all && variance.dims() == all, "a batch has statistics of every group");
    let primitives = |list: Vec<Tensor<B, 1>>| list.into_iter().map(primitive).collect();
    let (means, variances) =
        B::average_statistics(primitives(means), primitives(variances), primitive(mean), primitive(variance), momentum);
    let tensors = |list: Vec<_>| list.into_iter().map(tensor::<B, 1>).collect();
    (tensors(means), tensors(variances))
}

/// What running statistics make of normalizations that lie side by side: a scale and a shift for each channel.
///
/// `scale = gamma / sqrt(variance + epsilon)` and `shift = beta - mean * scale`, all groups' in one tensor each. Gradients
/// flow into gammas and betas.
///
/// # Shapes
/// - gammas, betas, means, variances: `[channel]` each, for every group
/// - scale, shift: `[group * channel]`
///
/// # Panics
/// If there is no group, or the shapes disagree.
pub fn fold_statistics<B: Kernels>(
    gammas: Vec<Tensor<B, 1>>,
    betas: Vec<Tensor<B, 1>>,
    means: Vec<Tensor<B, 1>>,
    variances: Vec<Tensor<B, 1>>,
    epsilon: f64,
) -> (Tensor<B, 1>, Tensor<B, 1>) {
    let channels = gammas.first().expect("there is a group").dims();
    let lists = [gammas, betas, means, variances];
    let groups = lists[0].len();
    assert!(
        lists.iter().all(|list| list.len() == groups && list.iter().all(|tensor| tensor.dims() == channels)),
        "groups have one shape"
    );
    let (scale, shift) = B::fold_statistics(lists.map(|list| list.into_iter().map(primitive).collect()), epsilon);
    (tensor(scale), tensor(shift))
}
