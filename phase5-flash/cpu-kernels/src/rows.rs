//! Operations on rows of activations: RMS norm, SwiGLU, rotary embedding and softmax.

use crate::isa::{Isa, Kernel};
use crate::simd::{LANES, Simd};

/// SwiGLU's clamp, and the factor of its sigmoid's argument.
const SWIGLU_LIMIT: f32 = 7.0;
const SWIGLU_ALPHA: f32 = 1.702;

/// `out = x / √(mean(x²) + ε) · weight`.
///
/// # Panics
/// If the lengths differ.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len(), "the lengths differ");
    // SAFETY: lengths are equal.
    unsafe { isa.run(RmsNorm { x, weight, epsilon, out }) }
}

/// `(clamp(up, ±7) + 1) · g · σ(1.702 g)` with `g = min(gate, 7)`, written over `gate`.
///
/// # Panics
/// If the lengths differ.
pub fn swiglu(isa: Isa, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "the lengths differ");
    // SAFETY: lengths are equal.
    unsafe { isa.run(Swiglu { gate, up }) }
}

/// Rotary embedding of one head, `[head_dim]`: rotates dimensions i and i + head_dim / 2 by angle i. `cosines` and `sines` are
/// `[head_dim / 2]`.
///
/// # Panics
/// If `head` is not twice as long as `cosines` and `sines`.
pub fn rotate(head: &mut [f32], cosines: &[f32], sines: &[f32]) {
    assert!(
        head.len() == 2 * cosines.len() && cosines.len() == sines.len(),
        "there must be a pair of dimensions per angle"
    );
    let (first, second) = head.split_at_mut(cosines.len());
    for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(cosines.iter().zip(sines)) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

/// Softmax, in place.
pub fn softmax(x: &mut [f32]) {
    let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    x.iter_mut().for_each(|value| *value = (*value - largest).exp());
    let sum: f32 = x.iter().sum();
    x.iter_mut().for_each(|value| *value /= sum);
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    /// # Safety
    /// Equal lengths.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let RmsNorm { x, weight, epsilon, out } = self;
        let whole = x.len() / LANES * LANES;
        // SAFETY: vectors end at `whole`, which is within all three.
        unsafe {
            let mut squares = S::zero();
            for i in (0..whole).step_by(LANES) {
                let v = S::load(x.as_ptr().add(i));
                squares = S::fma(v, v, squares);
            }
            let rest: f32 = x[whole..].iter().map(|v| v * v).sum();
            let factor = 1.0 / ((S::sum(squares) + rest) / x.len() as f32 + epsilon).sqrt();
            let factors = S::splat(factor);
            for i in (0..whole).step_by(LANES) {
                let v = S::mul(S::load(x.as_ptr().add(i)), factors);
                S::store(out.as_mut_ptr().add(i), S::mul(v, S::load(weight.as_ptr().add(i))));
            }
            for i in whole..x.len() {
                out[i] = x[i] * factor * weight[i];
            }
        }
    }
}

struct Swiglu<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for Swiglu<'_> {
    type Output = ();

    /// # Safety
    /// Equal lengths.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Swiglu { gate, up } = self;
        let mut padded = ([0.0; LANES], [0.0; LANES]);
        for (gate, up) in gate.chunks_mut(LANES).zip(up.chunks(LANES)) {
            let whole = gate.len() == LANES;
            // SAFETY: a whole chunk holds a vector, and so does the padding.
            unsafe {
                let (g, u) = if whole {
                    (S::load(gate.as_ptr()), S::load(up.as_ptr()))
                } else {
                    padded.0[..gate.len()].copy_from_slice(gate);
                    padded.1[..up.len()].copy_from_slice(up);
                    (S::load(padded.0.as_ptr()), S::load(padded.1.as_ptr()))
                };
                // `min` and `max` return their second argument if one is NaN: in this order NaN is kept.
                let g = S::min(S::splat(SWIGLU_LIMIT), g);
                let u = S::max(S::splat(-SWIGLU_LIMIT), S::min(S::splat(SWIGLU_LIMIT), u));
                let one = S::splat(1.0);
                let denominator = S::add(one, S::exp(S::mul(g, S::splat(-SWIGLU_ALPHA))));
                let result = S::div(S::mul(S::add(u, one), g), denominator);
                if whole {
                    S::store(gate.as_mut_ptr(), result);
                } else {
                    S::store(padded.0.as_mut_ptr(), result);
                    gate.copy_from_slice(&padded.0[..gate.len()]);
                }
            }
        }
    }
}
