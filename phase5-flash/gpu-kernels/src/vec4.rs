//! Vectors of four.

use cubecl::prelude::*;

/// The sum of a vector's values.
#[cube]
pub(crate) fn sum4(values: Vector<f32, Const<4>>) -> f32 {
    (values.extract(0usize) + values.extract(1usize)) + (values.extract(2usize) + values.extract(3usize))
}

/// The largest of a vector's values.
#[cube]
pub(crate) fn max4(values: Vector<f32, Const<4>>) -> f32 {
    max(max(values.extract(0usize), values.extract(1usize)), max(values.extract(2usize), values.extract(3usize)))
}

/// Column `j` of four rows of four.
#[cube]
pub(crate) fn transposed(square: &Array<Vector<f32, Const<4>>>, #[comptime] j: u32) -> Vector<f32, Const<4>> {
    let mut column = Vector::<f32, Const<4>>::empty();
    #[unroll]
    for i in 0..4u32 {
        column.insert(comptime![i as usize], square[comptime![i as usize]].extract(comptime![j as usize]));
    }
    column
}
