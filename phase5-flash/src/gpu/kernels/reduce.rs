//! Sums over a whole cube.

use cubecl::prelude::*;

/// Puts the sums over each plane of `count` values a unit into `shared`, for [`total`]. All units of the cube call it together.
#[cube]
pub(crate) fn plane_sums(values: &Array<f32>, shared: &mut Shared<[f32]>, #[comptime] count: u32) {
    #[unroll]
    for i in 0..count {
        let sum = plane_sum(values[comptime![i as usize]]);
        if UNIT_POS_PLANE == 0 {
            shared[(PLANE_POS * count + i) as usize] = sum;
        }
    }
    sync_cube();
}

/// The sum over all units of value `i`, after [`plane_sums`].
#[cube]
pub(crate) fn total(shared: &Shared<[f32]>, i: u32, #[comptime] count: u32) -> f32 {
    let planes = CUBE_DIM.div_ceil(PLANE_DIM);
    let mut total = 0.0f32;
    for plane in 0..planes {
        total += shared[(plane * count + i) as usize];
    }
    total
}

/// One sum over all units, the same for each of them. `shared` may be used again after it.
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
