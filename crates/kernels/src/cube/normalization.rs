//! Batch normalization with its rectifier: one pass over the rows for the statistics, one for the output.
//!
//! Rows are cut into parts; every part's sums are taken about its own first row and joined by Chan et al.'s formula
//! (1979), so that a large mean costs no digits and the result does not depend on how the device schedules its work.

use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::tensors::{array, contiguous, empty};

/// Units of a cube.
const UNITS: usize = 256;
/// Parts that rows are cut into for the statistics, at most.
const PARTS: usize = 128;
/// Rows of a part, at least.
const ROWS_OF_PART: usize = 64;
/// Rows that a cube writes.
const ROWS_WRITTEN: usize = 256;

/// What a normalization reads: a map as it is, or weighed for every expert.
#[derive(Clone)]
pub(super) enum Seen<R: CubeRuntime> {
    /// `[row, channel]`
    Map(CubeTensor<R>),
    /// Map `[batch, position, member * channel]` and weights `[batch, member * expert, position]`, seen as
    /// `[row, member * expert * channel]`.
    Weighed { map: CubeTensor<R>, weights: CubeTensor<R>, channels: usize },
}

/// How the rows are laid out, and cut.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    rows: usize,
    channels: usize,
    /// Channels of the map that an expert sees.
    map_channels: usize,
    /// Members side by side, each a map with experts of its own.
    members: usize,
    positions: usize,
    experts: usize,
    /// Channels that a unit works on side by side.
    side_by_side: usize,
    /// Units side by side in a cube.
    columns: usize,
    part_rows: usize,
    parts: usize,
    weighed: bool,
}

impl Layout {
    fn new(rows: usize, [map_channels, members]: [usize; 2], [experts, positions]: [usize; 2], weighed: bool) -> Self {
        let channels = map_channels * experts;
        let side_by_side = if map_channels.is_multiple_of(4) { 4 } else { 1 };
        let columns = if channels <= 16 { 16 } else { 32 } / side_by_side;
        let part_rows = rows.div_ceil(PARTS).max(ROWS_OF_PART);
        let parts = rows.div_ceil(part_rows).max(1);
        Self {
            rows,
            channels,
            map_channels,
            members,
            positions,
            experts,
            side_by_side,
            columns,
            part_rows,
            parts,
            weighed,
        }
    }

    fn tiles(&self) -> u32 {
        self.channels.div_ceil(self.columns * self.side_by_side) as u32
    }

    fn cube(&self) -> CubeDim {
        CubeDim::new_2d(self.columns as u32, (UNITS / self.columns) as u32)
    }

    fn launch<R: CubeRuntime>(&self, part_rows: usize) -> ShapeLaunch<R> {
        ShapeLaunch::new(
            self.rows as u32,
            (self.channels / self.side_by_side) as u32,
            (self.map_channels / self.side_by_side) as u32,
            (self.map_channels * self.members / self.side_by_side) as u32,
            (self.experts / self.members) as u32,
            self.positions as u32,
            self.experts as u32,
            part_rows as u32,
            self.parts as u32,
            self.part_rows as u32,
        )
    }
}

impl<R: CubeRuntime> Seen<R> {
    pub(super) fn map(x: CubeTensor<R>) -> Self {
        Self::Map(contiguous(x))
    }

    /// `parameters` are as many as the channels of all experts together.
    pub(super) fn weighed(map: CubeTensor<R>, weights: CubeTensor<R>, parameters: &CubeTensor<R>) -> Self {
        let channels = parameters.meta.shape()[0] / weights.meta.shape()[1].max(1);
        Self::Weighed { map: contiguous(map), weights: contiguous(weights), channels }
    }

    pub(super) fn layout(&self) -> Layout {
        match self {
            Self::Map(x) => {
                let shape = x.meta.shape();
                let channels = shape[shape.len() - 1];
                Layout::new(shape.num_elements() / channels.max(1), [channels, 1], [1, 1], false)
            }
            Self::Weighed { map, weights, channels } => {
                let (shape, weights) = (map.meta.shape(), weights.meta.shape());
                let wide = shape[shape.len() - 1].max(1);
                let members = wide / (*channels).max(1);
                Layout::new(shape.num_elements() / wide, [*channels, members], [weights[1], weights[2]], true)
            }
        }
    }

    /// The output's shape.
    fn shape(&self) -> Vec<usize> {
        let mut shape = self.values().meta.shape().to_vec();
        if let (Self::Weighed { weights, channels, .. }, Some(last)) = (self, shape.last_mut()) {
            *last = channels * weights.meta.shape()[1];
        }
        shape
    }

    fn values(&self) -> &CubeTensor<R> {
        match self {
            Self::Map(x) => x,
            Self::Weighed { map, .. } => map,
        }
    }

    fn weights(&self) -> &CubeTensor<R> {
        match self {
            Self::Map(x) => x,
            Self::Weighed { weights, .. } => weights,
        }
    }
}

#[derive(CubeLaunch, CubeType, Clone, Copy)]
struct Shape {
    rows: u32,
    /// Channels, in as many as lie side by side; so are those of the map.
    channels: u32,
    /// Channels of the map that an expert sees.
    map_channels: u32,
    /// Channels of the map in all.
    map_width: u32,
    experts_of_member: u32,
    positions: u32,
    experts: u32,
    /// Rows that one cube works on.
    cube_rows: u32,
    parts: u32,
    part_rows: u32,
}

/// Numbers of channels side by side: four, or one where channels cannot be cut into fours.
type Numbers<N> = Vector<f32, N>;

/// A gradient where the rectifier's input is above zero.
#[cube]
fn rectified<N: Size>(input: Numbers<N>, gradient: Numbers<N>) -> Numbers<N> {
    let none = Numbers::<N>::new(0.0f32);
    select_many(input.greater_than(none), gradient, none)
}

/// What is normalized.
#[cube]
fn seen<N: Size>(
    x: &Array<Numbers<N>>,
    weights: &Array<f32>,
    row: u32,
    channel: u32,
    shape: &Shape,
    #[comptime] weighed: bool,
) -> Numbers<N> {
    if comptime!(weighed) {
        let expert = channel / shape.map_channels;
        let within = channel - expert * shape.map_channels;
        let image = row / shape.positions;
        let position = row - image * shape.positions;
        let weight = weights[((image * shape.experts + expert) * shape.positions + position) as usize];
        let member = expert / shape.experts_of_member;
        Numbers::<N>::new(weight) * x[(row * shape.map_width + member * shape.map_channels + within) as usize]
    } else {
        x[(row * shape.channels + channel) as usize]
    }
}

/// Adds up what the units of a column hold; every unit of the column gets the sum. Columns are `CUBE_DIM_X` wide.
#[cube]
fn sum_of_column<N: Size>(shared: &mut SharedMemory<Numbers<N>>, value: Numbers<N>) -> Numbers<N> {
    sync_cube();
    shared[UNIT_POS as usize] = value;
    sync_cube();
    let mut sum = Numbers::<N>::new(0.0f32);
    for unit in 0..CUBE_DIM_Y {
        sum += shared[(unit * CUBE_DIM_X + UNIT_POS_X) as usize];
    }
    sum
}

/// Mean and sum of squared deviations of each part, `[part, channel]`.
#[cube(launch_unchecked)]
fn moments<N: Size>(
    x: &Array<Numbers<N>>,
    weights: &Array<f32>,
    means: &mut Array<Numbers<N>>,
    squares: &mut Array<Numbers<N>>,
    shape: Shape,
    #[comptime] weighed: bool,
) {
    let mut shared = SharedMemory::<Numbers<N>>::new(256usize);
    let channel = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    let inside = channel < shape.channels;
    let first = CUBE_POS_Y * shape.cube_rows;
    let last = min(first + shape.cube_rows, shape.rows);
    let mut shift = Numbers::<N>::new(0.0f32);
    if inside {
        shift = seen(x, weights, first, channel, &shape, weighed);
    }
    let mut sum = Numbers::<N>::new(0.0f32);
    let mut square = Numbers::<N>::new(0.0f32);
    let mut row = first + UNIT_POS_Y;
    if inside {
        while row < last {
            let value = seen(x, weights, row, channel, &shape, weighed) - shift;
            sum += value;
            square += value * value;
            row += CUBE_DIM_Y;
        }
    }
    let sum = sum_of_column(&mut shared, sum);
    let square = sum_of_column(&mut shared, square);
    if inside && UNIT_POS_Y == 0 {
        let count = Numbers::<N>::cast_from(last - first);
        let at = (CUBE_POS_Y * shape.channels + channel) as usize;
        means[at] = shift + sum / count;
        squares[at] = square - sum * sum / count;
    }
}

/// Joins the parts' moments of one channel: mean, and the sum of squared deviations from it.
#[cube]
fn joined<N: Size>(
    means: &Array<Numbers<N>>,
    squares: &Array<Numbers<N>>,
    shared: &mut SharedMemory<Numbers<N>>,
    channel: u32,
    shape: &Shape,
) -> (Numbers<N>, Numbers<N>) {
    let inside = channel < shape.channels;
    let mut sum = Numbers::<N>::new(0.0f32);
    let mut part = UNIT_POS_Y;
    if inside {
        while part < shape.parts {
            let first = part * shape.part_rows;
            let count = Numbers::<N>::cast_from(min(shape.part_rows, shape.rows - first));
            sum += count * means[(part * shape.channels + channel) as usize];
            part += CUBE_DIM_Y;
        }
    }
    let mean = sum_of_column(shared, sum) / Numbers::<N>::cast_from(shape.rows);
    let mut square = Numbers::<N>::new(0.0f32);
    let mut part = UNIT_POS_Y;
    if inside {
        while part < shape.parts {
            let first = part * shape.part_rows;
            let count = Numbers::<N>::cast_from(min(shape.part_rows, shape.rows - first));
            let at = (part * shape.channels + channel) as usize;
            let away = means[at] - mean;
            square += squares[at] + count * away * away;
            part += CUBE_DIM_Y;
        }
    }
    let square = sum_of_column(shared, square);
    (mean, square)
}

#[cube(launch_unchecked)]
fn normalize<N: Size>(
    x: &Array<Numbers<N>>,
    weights: &Array<f32>,
    means: &Array<Numbers<N>>,
    squares: &Array<Numbers<N>>,
    gamma: &Array<Numbers<N>>,
    beta: &Array<Numbers<N>>,
    output: &mut Array<Numbers<N>>,
    mean_out: &mut Array<Numbers<N>>,
    variance_out: &mut Array<Numbers<N>>,
    epsilon: f32,
    shape: Shape,
    #[comptime] weighed: bool,
) {
    let mut shared = SharedMemory::<Numbers<N>>::new(256usize);
    let channel = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    let (mean, square) = joined(means, squares, &mut shared, channel, &shape);
    if channel < shape.channels {
        let variance = square / Numbers::<N>::cast_from(shape.rows);
        if CUBE_POS_Y == 0 && UNIT_POS_Y == 0 {
            mean_out[channel as usize] = mean;
            variance_out[channel as usize] = variance;
        }
        let scale = gamma[channel as usize] / (variance + Numbers::<N>::new(epsilon)).sqrt();
        let shift = beta[channel as usize];
        let first = CUBE_POS_Y * shape.cube_rows;
        let last = min(first + shape.cube_rows, shape.rows);
        let mut row = first + UNIT_POS_Y;
        while row < last {
            let value = (seen(x, weights, row, channel, &shape, weighed) - mean) * scale + shift;
            output[(row * shape.channels + channel) as usize] = max(value, Numbers::<N>::new(0.0f32));
            row += CUBE_DIM_Y;
        }
    }
}

/// Normalizes by the batch's statistics and rectifies; output, mean, biased variance.
pub(super) fn batch_norm_relu<R: CubeRuntime>(
    seen: &Seen<R>,
    gamma: CubeTensor<R>,
    beta: CubeTensor<R>,
    epsilon: f64,
) -> (CubeTensor<R>, CubeTensor<R>, CubeTensor<R>) {
    let layout = seen.layout();
    let (gamma, beta) = (contiguous(gamma), contiguous(beta));
    let x = seen.values();
    let client = &x.client;
    let [means, squares] = [(); 2].map(|()| empty(x, [layout.parts, layout.channels]));
    unsafe {
        moments::launch_unchecked::<R>(
            client,
            CubeCount::Static(layout.tiles(), layout.parts as u32, 1),
            layout.cube(),
            layout.side_by_side,
            array(x),
            array(seen.weights()),
            array(&means),
            array(&squares),
            layout.launch(layout.part_rows),
            layout.weighed,
        );
    }
    let output = empty(x, seen.shape());
    let [mean, variance] = [(); 2].map(|()| empty(x, [layout.channels]));
    unsafe {
        normalize::launch_unchecked::<R>(
            client,
            CubeCount::Static(layout.tiles(), layout.rows.div_ceil(ROWS_WRITTEN) as u32, 1),
            layout.cube(),
            layout.side_by_side,
            array(x),
            array(seen.weights()),
            array(&means),
            array(&squares),
            array(&gamma),
            array(&beta),
            array(&output),
            array(&mean),
            array(&variance),
            epsilon as f32,
            layout.launch(ROWS_WRITTEN),
            layout.weighed,
        );
    }
    (output, mean, variance)
}

/// The parts' sums of the gradient behind the rectifier, plain and times the normalized value, `[part, channel]`.
#[cube(launch_unchecked)]
fn gradient_sums<N: Size>(
    x: &Array<Numbers<N>>,
    weights: &Array<f32>,
    gradient: &Array<Numbers<N>>,
    gamma: &Array<Numbers<N>>,
    beta: &Array<Numbers<N>>,
    mean: &Array<Numbers<N>>,
    variance: &Array<Numbers<N>>,
    beta_sums: &mut Array<Numbers<N>>,
    gamma_sums: &mut Array<Numbers<N>>,
    epsilon: f32,
    shape: Shape,
    #[comptime] weighed: bool,
) {
    let mut shared = SharedMemory::<Numbers<N>>::new(256usize);
    let channel = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    let inside = channel < shape.channels;
    let mut plain = Numbers::<N>::new(0.0f32);
    let mut times = Numbers::<N>::new(0.0f32);
    if inside {
        let mean = mean[channel as usize];
        let reciprocal = Numbers::<N>::new(1.0f32) / (variance[channel as usize] + Numbers::<N>::new(epsilon)).sqrt();
        let scale = gamma[channel as usize];
        let shift = beta[channel as usize];
        let first = CUBE_POS_Y * shape.cube_rows;
        let last = min(first + shape.cube_rows, shape.rows);
        let mut row = first + UNIT_POS_Y;
        while row < last {
            let normal = (seen(x, weights, row, channel, &shape, weighed) - mean) * reciprocal;
            let behind = rectified(normal * scale + shift, gradient[(row * shape.channels + channel) as usize]);
            plain += behind;
            times += behind * normal;
            row += CUBE_DIM_Y;
        }
    }
    let plain = sum_of_column(&mut shared, plain);
    let times = sum_of_column(&mut shared, times);
    if inside && UNIT_POS_Y == 0 {
        let at = (CUBE_POS_Y * shape.channels + channel) as usize;
        beta_sums[at] = plain;
        gamma_sums[at] = times;
    }
}

/// Adds up a channel's parts.
#[cube]
fn sum_of_parts<N: Size>(
    sums: &Array<Numbers<N>>,
    shared: &mut SharedMemory<Numbers<N>>,
    channel: u32,
    shape: &Shape,
) -> Numbers<N> {
    let mut sum = Numbers::<N>::new(0.0f32);
    if channel < shape.channels {
        let mut part = UNIT_POS_Y;
        while part < shape.parts {
            sum += sums[(part * shape.channels + channel) as usize];
            part += CUBE_DIM_Y;
        }
    }
    sum_of_column(shared, sum)
}

#[cube(launch_unchecked)]
fn input_gradient<N: Size>(
    x: &Array<Numbers<N>>,
    gradient: &Array<Numbers<N>>,
    gamma: &Array<Numbers<N>>,
    beta: &Array<Numbers<N>>,
    mean: &Array<Numbers<N>>,
    variance: &Array<Numbers<N>>,
    beta_sums: &Array<Numbers<N>>,
    gamma_sums: &Array<Numbers<N>>,
    x_gradient: &mut Array<Numbers<N>>,
    gamma_gradient: &mut Array<Numbers<N>>,
    beta_gradient: &mut Array<Numbers<N>>,
    epsilon: f32,
    shape: Shape,
) {
    let mut shared = SharedMemory::<Numbers<N>>::new(256usize);
    let channel = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    let plain = sum_of_parts(beta_sums, &mut shared, channel, &shape);
    let times = sum_of_parts(gamma_sums, &mut shared, channel, &shape);
    if channel < shape.channels {
        if CUBE_POS_Y == 0 && UNIT_POS_Y == 0 {
            beta_gradient[channel as usize] = plain;
            gamma_gradient[channel as usize] = times;
        }
        let count = Numbers::<N>::cast_from(shape.rows);
        let mean = mean[channel as usize];
        let reciprocal = Numbers::<N>::new(1.0f32) / (variance[channel as usize] + Numbers::<N>::new(epsilon)).sqrt();
        let scale = gamma[channel as usize];
        let shift = beta[channel as usize];
        let first = CUBE_POS_Y * shape.cube_rows;
        let last = min(first + shape.cube_rows, shape.rows);
        let mut row = first + UNIT_POS_Y;
        while row < last {
            let at = (row * shape.channels + channel) as usize;
            let normal = (x[at] - mean) * reciprocal;
            let behind = rectified(normal * scale + shift, gradient[at]);
            x_gradient[at] = (behind - plain / count - normal * (times / count)) * (scale * reciprocal);
            row += CUBE_DIM_Y;
        }
    }
}

/// Gradients for map and weights: a cube per position, a unit per channel of the map.
#[cube(launch_unchecked)]
fn weighed_gradient(
    map: &Array<f32>,
    weights: &Array<f32>,
    gradient: &Array<f32>,
    gamma: &Array<f32>,
    beta: &Array<f32>,
    mean: &Array<f32>,
    variance: &Array<f32>,
    gamma_gradient: &Array<f32>,
    beta_gradient: &Array<f32>,
    map_gradient: &mut Array<f32>,
    weights_gradient: &mut Array<f32>,
    epsilon: f32,
    shape: Shape,
) {
    let mut shared = SharedMemory::<f32>::new(64usize);
    let row = CUBE_POS as u32;
    if row < shape.rows {
        let image = row / shape.positions;
        let position = row - image * shape.positions;
        let count = f32::cast_from(shape.rows);
        for expert in 0..shape.experts {
            let at_weight = ((image * shape.experts + expert) * shape.positions + position) as usize;
            let weight = weights[at_weight];
            let member = expert / shape.experts_of_member;
            let is_first = expert == member * shape.experts_of_member;
            let mut dot = 0.0f32;
            let mut within = UNIT_POS;
            while within < shape.map_channels {
                let channel = expert * shape.map_channels + within;
                let at = channel as usize;
                let to = (row * shape.map_width + member * shape.map_channels + within) as usize;
                let value = map[to];
                let reciprocal = 1.0f32 / (variance[at] + epsilon).sqrt();
                let normal = (weight * value - mean[at]) * reciprocal;
                let mut behind = 0.0f32;
                if normal * gamma[at] + beta[at] > 0.0f32 {
                    behind = gradient[(row * shape.channels + channel) as usize];
                }
                let seen = (behind - beta_gradient[at] / count - normal * (gamma_gradient[at] / count))
                    * (gamma[at] * reciprocal);
                // A unit adds to the channels that are its own.
                if is_first {
                    map_gradient[to] = seen * weight;
                } else {
                    map_gradient[to] += seen * weight;
                }
                dot += seen * value;
                within += CUBE_DIM_X;
            }
            sync_cube();
            shared[UNIT_POS as usize] = dot;
            sync_cube();
            if UNIT_POS == 0 {
                let mut sum = 0.0f32;
                for unit in 0..CUBE_DIM_X {
                    sum += shared[unit as usize];
                }
                weights_gradient[at_weight] = sum;
            }
        }
    }
}

/// The parts' sums joined to the gradients of gamma and beta.
#[cube(launch_unchecked)]
fn join_sums<N: Size>(
    beta_sums: &Array<Numbers<N>>,
    gamma_sums: &Array<Numbers<N>>,
    gamma_gradient: &mut Array<Numbers<N>>,
    beta_gradient: &mut Array<Numbers<N>>,
    shape: Shape,
) {
    let mut shared = SharedMemory::<Numbers<N>>::new(256usize);
    let channel = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    let plain = sum_of_parts(beta_sums, &mut shared, channel, &shape);
    let times = sum_of_parts(gamma_sums, &mut shared, channel, &shape);
    if channel < shape.channels && UNIT_POS_Y == 0 {
        beta_gradient[channel as usize] = plain;
        gamma_gradient[channel as usize] = times;
    }
}

/// What a normalization's backward pass gives.
pub(super) struct Gradients<R: CubeRuntime> {
    /// Of the map.
    pub(super) map: CubeTensor<R>,
    /// Of the weights, where it was weighed.
    pub(super) weights: Option<CubeTensor<R>>,
    pub(super) gamma: CubeTensor<R>,
    pub(super) beta: CubeTensor<R>,
}

/// What a normalization's forward pass took and gave.
pub(super) struct Passed<R: CubeRuntime> {
    pub(super) gamma: CubeTensor<R>,
    pub(super) beta: CubeTensor<R>,
    pub(super) mean: CubeTensor<R>,
    pub(super) variance: CubeTensor<R>,
    pub(super) epsilon: f64,
}

/// Gradients of [`batch_norm_relu`]'s output.
pub(super) fn batch_norm_relu_gradients<R: CubeRuntime>(
    seen: &Seen<R>,
    passed: Passed<R>,
    gradient: CubeTensor<R>,
) -> Gradients<R> {
    let layout = seen.layout();
    let Passed { gamma, beta, mean, variance, epsilon } = passed;
    let [gamma, beta, mean, variance, gradient] = [gamma, beta, mean, variance, gradient].map(contiguous);
    let x = seen.values();
    let client = &x.client;
    let [beta_sums, gamma_sums] = [(); 2].map(|()| empty(x, [layout.parts, layout.channels]));
    unsafe {
        gradient_sums::launch_unchecked::<R>(
            client,
            CubeCount::Static(layout.tiles(), layout.parts as u32, 1),
            layout.cube(),
            layout.side_by_side,
            array(x),
            array(seen.weights()),
            array(&gradient),
            array(&gamma),
            array(&beta),
            array(&mean),
            array(&variance),
            array(&beta_sums),
            array(&gamma_sums),
            epsilon as f32,
            layout.launch(layout.part_rows),
            layout.weighed,
        );
    }
    let [gamma_gradient, beta_gradient] = [(); 2].map(|()| empty(x, [layout.channels]));
    let map = empty(x, x.meta.shape().clone());
    let weights = match seen {
        Seen::Map(_) => {
            unsafe {
                input_gradient::launch_unchecked::<R>(
                    client,
                    CubeCount::Static(layout.tiles(), layout.rows.div_ceil(ROWS_WRITTEN) as u32, 1),
                    layout.cube(),
                    layout.side_by_side,
                    array(x),
                    array(&gradient),
                    array(&gamma),
                    array(&beta),
                    array(&mean),
                    array(&variance),
                    array(&beta_sums),
                    array(&gamma_sums),
                    array(&map),
                    array(&gamma_gradient),
                    array(&beta_gradient),
                    epsilon as f32,
                    layout.launch(ROWS_WRITTEN),
                );
            }
            None
        }
        Seen::Weighed { weights, .. } => {
            unsafe {
                join_sums::launch_unchecked::<R>(
                    client,
                    CubeCount::Static(layout.tiles(), 1, 1),
                    layout.cube(),
                    layout.side_by_side,
                    array(&beta_sums),
                    array(&gamma_sums),
                    array(&gamma_gradient),
                    array(&beta_gradient),
                    layout.launch(layout.rows),
                );
            }
            let weights_gradient = empty(weights, weights.meta.shape().clone());
            unsafe {
                weighed_gradient::launch_unchecked::<R>(
                    client,
                    super::tensors::cubes(layout.rows),
                    CubeDim::new_1d(64),
                    array(x),
                    array(weights),
                    array(&gradient),
                    array(&gamma),
                    array(&beta),
                    array(&mean),
                    array(&variance),
                    array(&gamma_gradient),
                    array(&beta_gradient),
                    array(&map),
                    array(&weights_gradient),
                    epsilon as f32,
                    Layout { side_by_side: 1, ..layout }.launch(1),
                );
            }
            Some(weights_gradient)
        }
    };
    Gradients { map, weights, gamma: gamma_gradient, beta: beta_gradient }
}

#[cube(launch_unchecked)]
fn scale_and_rectify<N: Size>(
    x: &Array<Numbers<N>>,
    weights: &Array<f32>,
    scale: &Array<Numbers<N>>,
    shift: &Array<Numbers<N>>,
    output: &mut Array<Numbers<N>>,
    shape: Shape,
    #[comptime] weighed: bool,
) {
    let channel = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if channel < shape.channels {
        let scale = scale[channel as usize];
        let shift = shift[channel as usize];
        let first = CUBE_POS_Y * shape.cube_rows;
        let last = min(first + shape.cube_rows, shape.rows);
        let mut row = first + UNIT_POS_Y;
        while row < last {
            let value = seen(x, weights, row, channel, &shape, weighed) * scale + shift;
            output[(row * shape.channels + channel) as usize] = max(value, Numbers::<N>::new(0.0f32));
            row += CUBE_DIM_Y;
        }
    }
}

/// Computes `max(seen * scale + shift, 0)`.
pub(super) fn scale_shift_relu<R: CubeRuntime>(
    seen: &Seen<R>,
    scale: CubeTensor<R>,
    shift: CubeTensor<R>,
) -> CubeTensor<R> {
    let layout = seen.layout();
    let [scale, shift] = [scale, shift].map(contiguous);
    let x = seen.values();
    let output = empty(x, seen.shape());
    unsafe {
        scale_and_rectify::launch_unchecked::<R>(
            &x.client,
            CubeCount::Static(layout.tiles(), layout.rows.div_ceil(ROWS_WRITTEN) as u32, 1),
            layout.cube(),
            layout.side_by_side,
            array(x),
            array(seen.weights()),
            array(&scale),
            array(&shift),
            array(&output),
            layout.launch(ROWS_WRITTEN),
            layout.weighed,
        );
    }
    output
}
