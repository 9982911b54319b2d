//! A lane's inputs in registers, as f32 or as pairs of 16-bit floats.

use cubecl::prelude::*;
use half::f16;

use super::plan::MatvecPlan;
use crate::packed::{PAIRS, pair_places};
use crate::vec4::max4;

/// The exponent bits of a power of two below which inputs are not scaled further.
const LEAST_EXPONENT: u32 = 64;

/// A lane's blocks of every input of a product.
#[derive(CubeType)]
pub(crate) struct LaneInputs {
    /// Eight vectors per block; unused if products are computed in pairs.
    pub floats: Sequence<Vector<f32, Const<4>>>,
    /// [`PAIRS`] per block, in the order of a row's [pairs](crate::packed::packed_pair), divided by the block's factor.
    pub pairs: Sequence<Vector<f16, Const<2>>>,
    /// For each block of pairs, a power of two.
    pub factors: Sequence<f32>,
}

/// Appends this lane's blocks of the input that begins at block `first` to `inputs`. Blocks past the input's end are zeros.
#[cube]
pub(crate) fn load_inputs(
    x: &[Vector<f32, Const<4>>],
    first: u32,
    lane: u32,
    inputs: &mut Sequence<Vector<f32, Const<4>>>,
    #[comptime] plan: MatvecPlan,
) {
    #[unroll]
    for i in 0..comptime![plan.blocks_per_lane()] {
        let block = lane + comptime![i * plan.lanes];
        let there = Vector::<f32, Const<4>>::new(select(block < plan.blocks, 1.0f32, 0.0f32));
        #[unroll]
        for j in 0..8u32 {
            inputs.push(x[((first + min(block, comptime![plan.blocks - 1])) * 8 + j) as usize] * there);
        }
    }
}

/// Converts the inputs that [`load_inputs`] read to what the products need.
#[cube]
pub(crate) fn prepare_inputs(floats: Sequence<Vector<f32, Const<4>>>, #[comptime] plan: MatvecPlan) -> LaneInputs {
    let mut pairs = Sequence::<Vector<f16, Const<2>>>::new();
    let mut factors = Sequence::<f32>::new();
    if comptime![plan.pairs] {
        #[unroll]
        for block in 0..comptime![plan.inputs * plan.blocks_per_lane()] {
            append_pairs(&floats, block, &mut pairs, &mut factors, plan);
        }
    }
    LaneInputs { floats, pairs, factors }
}

/// Appends the pairs and the factor of block `block` of `floats`. Multiplying by a power of two is exact, so that only the conversion to 16
/// bits rounds; numbers that are smaller than the block's largest by 2⁻²⁰ or more may become subnormal.
#[cube]
fn append_pairs(
    floats: &Sequence<Vector<f32, Const<4>>>,
    #[comptime] block: u32,
    pairs: &mut Sequence<Vector<f16, Const<2>>>,
    factors: &mut Sequence<f32>,
    #[comptime] plan: MatvecPlan,
) {
    let mut largest = floats[comptime![(block * 8) as usize]].abs();
    #[unroll]
    for i in 1..8u32 {
        largest = max(largest, floats[comptime![(block * 8 + i) as usize]].abs());
    }
    // The exponent of the largest number and of one below which subnormal f32 would appear.
    let exponent = max(u32::reinterpret(max4(largest)) >> 23u32, LEAST_EXPONENT);
    let target = comptime![plan.packing.input_exponent() - 1];
    let scale = f32::reinterpret((comptime![254 + target] - exponent) << 23u32);
    factors.push(f32::reinterpret((exponent - target) << 23u32));
    #[unroll]
    for i in 0..PAIRS {
        let places = comptime![pair_places(plan.packing.storage, i)];
        let mut pair = Vector::<f32, Const<2>>::empty();
        #[unroll]
        for half in 0..2u32 {
            let place = comptime![places[half as usize]];
            let four = floats[comptime![(block * 8 + place / 4) as usize]];
            pair.insert(comptime![half as usize], four.extract(comptime![(place % 4) as usize]) * scale);
        }
        pairs.push(Vector::<f16, Const<2>>::cast_from(pair));
    }
}
