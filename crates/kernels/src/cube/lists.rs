//! Operations on many small tensors in one launch: joining, moving averages, a step of the optimiser.

use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::tensors::{array, contiguous, empty};
use crate::SgdStep;

const UNITS: usize = 256;
/// Cubes for a step of the optimiser: enough for a GPU, and each goes on where the tensors are larger.
const CUBES: usize = 264;
/// Buffers that a kernel gets besides the listed ones.
const OTHERS: usize = 4;

fn arrays<R: CubeRuntime>(tensors: &[CubeTensor<R>]) -> SequenceArg<R, Array<f32>> {
    tensors.iter().map(array).collect()
}

/// How many rows of so many tensors one kernel may list.
fn rows_at_once<R: CubeRuntime>(tensor: &CubeTensor<R>, each: usize) -> usize {
    let most = tensor.client.properties().hardware.max_bindings as usize;
    (most.saturating_sub(OTHERS) / each).max(1)
}

#[cube(launch_unchecked)]
fn join_arrays(parts: &Sequence<Array<f32>>, output: &mut Array<f32>, length: u32, first: u32) {
    let at = ABSOLUTE_POS as u32;
    let part = at / length;
    let within = (at - part * length) as usize;
    #[unroll]
    for i in 0..parts.len() {
        if part == comptime!(i as u32) {
            output[(first * length + at) as usize] = parts.index(i)[within];
        }
    }
}

/// Tensors of one shape along their first axis.
pub(super) fn join<R: CubeRuntime>(parts: Vec<CubeTensor<R>>) -> CubeTensor<R> {
    let parts: Vec<_> = parts.into_iter().map(contiguous).collect();
    let mut shape = parts[0].meta.shape().to_vec();
    let length = parts[0].meta.shape().num_elements();
    shape[0] *= parts.len();
    let output = empty(&parts[0], shape);
    let at_once = rows_at_once(&output, 1);
    for (chunk, parts) in parts.chunks(at_once).enumerate() {
        unsafe {
            join_arrays::launch_unchecked::<R>(
                &output.client,
                CubeCount::Static((parts.len() * length).div_ceil(UNITS) as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                arrays(parts),
                array(&output),
                length as u32,
                (chunk * at_once) as u32,
            );
        }
    }
    output
}

#[cube(launch_unchecked)]
fn split_array(joined: &Array<f32>, parts: &mut Sequence<Array<f32>>, length: u32, first: u32) {
    let at = ABSOLUTE_POS as u32;
    let part = at / length;
    let within = (at - part * length) as usize;
    #[unroll]
    for i in 0..parts.len() {
        if part == comptime!(i as u32) {
            parts.index_mut(i)[within] = joined[(first * length + at) as usize];
        }
    }
}

/// Equal parts along the first axis.
pub(super) fn split<R: CubeRuntime>(joined: CubeTensor<R>, count: usize) -> Vec<CubeTensor<R>> {
    let joined = contiguous(joined);
    let mut shape = joined.meta.shape().to_vec();
    shape[0] /= count;
    let parts: Vec<_> = (0..count).map(|_| empty(&joined, shape.clone())).collect();
    let length = parts[0].meta.shape().num_elements();
    let at_once = rows_at_once(&joined, 1);
    for (chunk, parts) in parts.chunks(at_once).enumerate() {
        unsafe {
            split_array::launch_unchecked::<R>(
                &joined.client,
                CubeCount::Static((parts.len() * length).div_ceil(UNITS) as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                array(&joined),
                arrays(parts),
                length as u32,
                (chunk * at_once) as u32,
            );
        }
    }
    parts
}

#[cube(launch_unchecked)]
fn average_arrays(
    means: &Sequence<Array<f32>>,
    variances: &Sequence<Array<f32>>,
    mean: &Array<f32>,
    variance: &Array<f32>,
    new_means: &mut Sequence<Array<f32>>,
    new_variances: &mut Sequence<Array<f32>>,
    momentum: f32,
    length: u32,
    first: u32,
) {
    let at = ABSOLUTE_POS as u32;
    let part = at / length;
    let within = (at - part * length) as usize;
    let from = (first * length + at) as usize;
    #[unroll]
    for i in 0..means.len() {
        if part == comptime!(i as u32) {
            new_means.index_mut(i)[within] = means.index(i)[within] * (1.0f32 - momentum) + mean[from] * momentum;
            new_variances.index_mut(i)[within] =
                variances.index(i)[within] * (1.0f32 - momentum) + variance[from] * momentum;
        }
    }
}

/// Moving averages of statistics that lie side by side in `mean` and `variance`.
pub(super) fn average_statistics<R: CubeRuntime>(
    means: Vec<CubeTensor<R>>,
    variances: Vec<CubeTensor<R>>,
    mean: CubeTensor<R>,
    variance: CubeTensor<R>,
    momentum: f64,
) -> (Vec<CubeTensor<R>>, Vec<CubeTensor<R>>) {
    let [means, variances] = [means, variances].map(|list| list.into_iter().map(contiguous).collect::<Vec<_>>());
    let [mean, variance] = [mean, variance].map(contiguous);
    let length = means[0].meta.shape().num_elements();
    let new = |list: &[CubeTensor<R>]| list.iter().map(|old| empty(old, old.meta.shape().clone())).collect::<Vec<_>>();
    let (new_means, new_variances) = (new(&means), new(&variances));
    let at_once = rows_at_once(&mean, 4);
    for first in (0..means.len()).step_by(at_once) {
        let rows = first..means.len().min(first + at_once);
        unsafe {
            average_arrays::launch_unchecked::<R>(
                &mean.client,
                CubeCount::Static((rows.len() * length).div_ceil(UNITS) as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                arrays(&means[rows.clone()]),
                arrays(&variances[rows.clone()]),
                array(&mean),
                array(&variance),
                arrays(&new_means[rows.clone()]),
                arrays(&new_variances[rows]),
                momentum as f32,
                length as u32,
                first as u32,
            );
        }
    }
    (new_means, new_variances)
}

#[cube(launch_unchecked)]
fn fold_arrays(
    gammas: &Sequence<Array<f32>>,
    betas: &Sequence<Array<f32>>,
    means: &Sequence<Array<f32>>,
    variances: &Sequence<Array<f32>>,
    scale: &mut Array<f32>,
    shift: &mut Array<f32>,
    epsilon: f32,
    length: u32,
    first: u32,
) {
    let at = ABSOLUTE_POS as u32;
    let part = at / length;
    let within = (at - part * length) as usize;
    let to = (first * length + at) as usize;
    #[unroll]
    for i in 0..gammas.len() {
        if part == comptime!(i as u32) {
            let own = gammas.index(i)[within] / (variances.index(i)[within] + epsilon).sqrt();
            scale[to] = own;
            shift[to] = betas.index(i)[within] - means.index(i)[within] * own;
        }
    }
}

/// Scale and shift of every group, side by side; takes gammas, betas, means and variances.
pub(super) fn fold_statistics<R: CubeRuntime>(
    lists: [Vec<CubeTensor<R>>; 4],
    epsilon: f64,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let [gammas, betas, means, variances] = lists.map(|list| list.into_iter().map(contiguous).collect::<Vec<_>>());
    let length = gammas[0].meta.shape().num_elements();
    let [scale, shift] = [(); 2].map(|()| empty(&gammas[0], [gammas.len() * length]));
    let at_once = rows_at_once(&scale, 4);
    for first in (0..gammas.len()).step_by(at_once) {
        let rows = first..gammas.len().min(first + at_once);
        unsafe {
            fold_arrays::launch_unchecked::<R>(
                &scale.client,
                CubeCount::Static((rows.len() * length).div_ceil(UNITS) as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                arrays(&gammas[rows.clone()]),
                arrays(&betas[rows.clone()]),
                arrays(&means[rows.clone()]),
                arrays(&variances[rows]),
                array(&scale),
                array(&shift),
                epsilon as f32,
                length as u32,
                first as u32,
            );
        }
    }
    (scale, shift)
}

#[cube(launch_unchecked)]
fn step_arrays(
    parameters: &Sequence<Array<f32>>,
    gradients: &Sequence<Array<f32>>,
    velocities: &Sequence<Array<f32>>,
    new_parameters: &mut Sequence<Array<f32>>,
    new_velocities: &mut Sequence<Array<f32>>,
    lengths: &Sequence<u32>,
    rate: f32,
    decay: f32,
    momentum: f32,
    #[comptime] nesterov: bool,
    #[comptime] velocity: Velocity,
) {
    #[unroll]
    for i in 0..parameters.len() {
        let mut at = ABSOLUTE_POS as u32;
        while at < *lengths.index(i) {
            let index = at as usize;
            let parameter = parameters.index(i)[index];
            let mut change = gradients.index(i)[index] + decay * parameter;
            if comptime!(velocity != Velocity::None) {
                let mut moving = change;
                if comptime!(velocity == Velocity::Running) {
                    moving = momentum * velocities.index(i)[index] + change;
                }
                new_velocities.index_mut(i)[index] = moving;
                if comptime!(nesterov) {
                    change += momentum * moving;
                } else {
                    change = moving;
                }
            }
            new_parameters.index_mut(i)[index] = parameter - rate * change;
            at += comptime!(264 * 256) as u32;
        }
    }
}

/// What a step keeps of the steps before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Velocity {
    None,
    First,
    Running,
}

/// One step of stochastic gradient descent for all parameters.
pub(super) fn sgd_step<R: CubeRuntime>(
    parameters: Vec<CubeTensor<R>>,
    gradients: Vec<CubeTensor<R>>,
    velocities: Vec<CubeTensor<R>>,
    step: SgdStep,
) -> (Vec<CubeTensor<R>>, Vec<CubeTensor<R>>) {
    let Some(any) = parameters.first().cloned() else { return (parameters, velocities) };
    let [parameters, gradients, velocities] =
        [parameters, gradients, velocities].map(|list| list.into_iter().map(contiguous).collect::<Vec<_>>());
    let velocity = match (step.momentum > 0.0, velocities.is_empty()) {
        (false, _) => Velocity::None,
        (true, true) => Velocity::First,
        (true, false) => Velocity::Running,
    };
    let new = |list: &[CubeTensor<R>]| list.iter().map(|old| empty(old, old.meta.shape().clone())).collect::<Vec<_>>();
    let new_parameters = new(&parameters);
    let new_velocities = if velocity == Velocity::None { Vec::new() } else { new(&parameters) };
    let at_once = rows_at_once(&any, 5);
    let listed = |list: &[CubeTensor<R>], rows: std::ops::Range<usize>| arrays(list.get(rows).unwrap_or_default());
    for first in (0..parameters.len()).step_by(at_once) {
        let rows = first..parameters.len().min(first + at_once);
        let lengths = parameters[rows.clone()].iter().map(|old| old.meta.shape().num_elements() as u32).collect();
        unsafe {
            step_arrays::launch_unchecked::<R>(
                &any.client,
                CubeCount::Static(CUBES as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                listed(&parameters, rows.clone()),
                listed(&gradients, rows.clone()),
                listed(&velocities, rows.clone()),
                listed(&new_parameters, rows.clone()),
                listed(&new_velocities, rows.clone()),
                lengths,
                step.rate as f32,
                step.weight_decay as f32,
                step.momentum as f32,
                step.nesterov,
                velocity,
            );
        }
    }
    (new_parameters, new_velocities)
}
