//! Sums over a whole cube.

use cubecl::prelude::*;

/// Computes the plane sums of `sums[first..first + count]` and stores them in row `PLANE_POS` of `shared: [planes, places]`, from column
/// `at` on. [`total`] can read them after a `sync_cube`.
#[cube]
pub(crate) fn plane_sums(
    sums: &Array<f32>,
    shared: &mut Shared<[f32]>,
    #[comptime] first: u32,
    at: u32,
    #[comptime] count: u32,
    #[comptime] places: u32,
) {
    #[unroll]
    for r in 0..count {
        let sum = plane_sum(sums[comptime![(first + r) as usize]]);
        if UNIT_POS_PLANE == 0 {
            shared[(PLANE_POS * places + at + r) as usize] = sum;
        }
    }
}

/// The sum over all units of the value in column `i` of `shared: [planes, count]`, after [`plane_sums`].
#[cube]
pub(crate) fn total(shared: &Shared<[f32]>, i: u32, #[comptime] count: u32) -> f32 {
    let planes = CUBE_DIM.div_ceil(PLANE_DIM);
    let mut total = 0.0f32;
    for plane in 0..planes {
        total += shared[(plane * count + i) as usize];
    }
    total
}

/// The sum over all units, returned to each of them. `shared` can be reused afterwards.
#[cube]
pub(crate) fn cube_sum(value: f32, shared: &mut Shared<[f32]>) -> f32 {
    let sum = plane_sum(value);
    if UNIT_POS_PLANE == 0 {
        shared[PLANE_POS as usize] = sum;
    }
    sync_cube();
    let planes = CUBE_DIM.div_ceil(PLANE_DIM);
    let mut total = 0.0f32;
    for plane in 0..planes {
        total += shared[plane as usize];
    }
    sync_cube();
    total
}
