//! Maps logits to integers with the same order.

use cubecl::prelude::*;

/// The rank of −∞, which is not a candidate.
pub(super) const NO_CANDIDATE: u32 = 0x007f_ffff;
/// The rank of NaN: above that of +∞.
pub(super) const NAN_RANK: u32 = u32::MAX;

/// An integer that is larger for a larger logit, and equal for equal ones.
#[cube]
pub(super) fn rank(logit: f32) -> u32 {
    // −0 and 0 are equal.
    let bits = select(logit == 0.0f32, 0u32, u32::reinterpret(logit));
    select(bits >> 31u32 == 1u32, bits ^ 0xffff_ffffu32, bits | 0x8000_0000u32)
}

/// As [`rank`], with [`NAN_RANK`] for NaN.
#[cube]
pub(super) fn rank_or_nan(logit: f32) -> u32 {
    // NaN has all exponent bits and some mantissa bits set.
    let is_nan = (u32::reinterpret(logit) & 0x7fff_ffffu32) > 0x7f80_0000u32;
    select(is_nan, NAN_RANK, rank(logit))
}

/// The logit of a rank other than NaN's.
#[cube]
pub(super) fn logit_of(rank: u32) -> f32 {
    f32::reinterpret(select(rank >> 31u32 == 1u32, rank ^ 0x8000_0000u32, rank ^ 0xffff_ffffu32))
}
