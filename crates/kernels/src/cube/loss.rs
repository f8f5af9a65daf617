//! Cross-entropy of a batch, what it got right, and its gradient, in one launch.

use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::sums::total;
use super::tensors::{array, contiguous, empty};

const UNITS: usize = 256;

#[cube(launch_unchecked)]
fn score(
    logits: &Array<f32>,
    labels: &Array<i32>,
    loss: &mut Array<f32>,
    totals: &mut Array<f32>,
    gradient: &mut Array<f32>,
    batch: u32,
    classes: u32,
) {
    let mut shared = SharedMemory::<f32>::new(256usize);
    let mut losses = 0.0f32;
    let mut hits = 0.0f32;
    let mut row = UNIT_POS;
    while row < batch {
        let first = row * classes;
        let label = u32::cast_from(labels[row as usize]);
        let mut best = 0u32;
        let mut highest = logits[first as usize];
        for class in 1..classes {
            let logit = logits[(first + class) as usize];
            if logit > highest {
                highest = logit;
                best = class;
            }
        }
        let mut sum = 0.0f32;
        for class in 0..classes {
            sum += (logits[(first + class) as usize] - highest).exp();
        }
        losses += sum.ln() - (logits[(first + label) as usize] - highest);
        if best == label {
            hits += 1.0f32;
        }
        for class in 0..classes {
            let at = (first + class) as usize;
            let mut wanted = 0.0f32;
            if class == label {
                wanted = 1.0f32;
            }
            gradient[at] = ((logits[at] - highest).exp() / sum - wanted) / f32::cast_from(batch);
        }
        row += CUBE_DIM_X;
    }
    let losses = total(&mut shared, losses);
    let hits = total(&mut shared, hits);
    if UNIT_POS == 0 {
        loss[0] = losses / f32::cast_from(batch);
        totals[0] = losses;
        totals[1] = hits;
    }
}

/// Mean cross-entropy `[1]`, its sum and the number of hits `[2]`, gradient of the mean for the logits.
pub(super) fn cross_entropy<R: CubeRuntime>(
    logits: CubeTensor<R>,
    labels: CubeTensor<R>,
) -> (CubeTensor<R>, CubeTensor<R>, CubeTensor<R>) {
    let [logits, labels] = [logits, labels].map(contiguous);
    let [batch, classes] = logits.meta.shape().dims();
    let (loss, totals, gradient) = (empty(&logits, [1]), empty(&logits, [2]), empty(&logits, [batch, classes]));
    unsafe {
        score::launch_unchecked::<R>(
            &logits.client,
            CubeCount::Static(1, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            array(&logits),
            array(&labels),
            array(&loss),
            array(&totals),
            array(&gradient),
            batch as u32,
            classes as u32,
        );
    }
    (loss, totals, gradient)
}
