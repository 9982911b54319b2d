//! Sums over a whole cube.

use cubecl::prelude::*;

/// The sum of a vector's values.
#[cube]
pub(crate) fn sum4(values: Vector<f32, Const<4>>) -> f32 {
    (values.extract(0usize) + values.extract(1usize)) + (values.extract(2usize) + values.extract(3usize))
}

/// Puts the sums over each plane of `count` values a unit, from value `first` on, into `shared`, at place `at` and on of `places`.
/// After a `sync_cube` they are there for [`total`].
#[cube]
pub(crate) fn share_sums(
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

/// The sum over all units of the value at place `i` of `count`, after [`share_sums`].
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
