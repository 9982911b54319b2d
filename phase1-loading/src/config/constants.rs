//! What every gpt-oss has alike, and files may say all the same: another value would be another computation.

/// YaRN's β and α: rotations in a full context that mark a dimension as fast (left as it is) or slow (interpolated).
pub const BETA_FAST: f64 = 32.0;
pub const BETA_SLOW: f64 = 1.0;
/// Where SwiGLU's inputs are clamped, and the factor in its sigmoid.
pub const SWIGLU_LIMIT: f64 = 7.0;
pub const SWIGLU_ALPHA: f64 = 1.702;

/// What YaRN multiplies queries and keys by, for a context that is `factor` times as long.
pub fn attention_factor(factor: f64) -> f64 {
    if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 }
}

/// Whether a number of a file is that constant, however many digits the file gives it.
pub(super) fn is_about(found: f64, constant: f64) -> bool {
    (found - constant).abs() <= 1e-4 * constant.abs()
}
