//! What the units of a cube add up together.

use burn_cubecl::cubecl;
use cubecl::prelude::*;

/// Adds up what the units of a cube along one axis hold; every unit gets the sum. `shared` has a place for each.
#[cube]
pub(super) fn total(shared: &mut SharedMemory<f32>, value: f32) -> f32 {
    sync_cube();
    shared[UNIT_POS as usize] = value;
    sync_cube();
    let mut sum = 0.0f32;
    for unit in 0..CUBE_DIM_X {
        sum += shared[unit as usize];
    }
    sum
}
