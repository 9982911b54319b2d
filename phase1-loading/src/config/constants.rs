//! What every gpt-oss has alike, and files may say all the same: another value would be another computation.

/// YaRN's β and α.
pub(super) const BETA_FAST: f64 = 32.0;
pub(super) const BETA_SLOW: f64 = 1.0;
/// Where SwiGLU's inputs are clamped, and the factor in its sigmoid.
pub(super) const SWIGLU_LIMIT: f64 = 7.0;
pub(super) const SWIGLU_ALPHA: f64 = 1.702;

/// What YaRN multiplies queries and keys by, for a context that is `factor` times as long.
pub(super) fn attention_factor(factor: f64) -> f64 {
    if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 }
}

/// Whether a number of a file is that constant, however many digits the file gives it.
pub(super) fn is_about(found: f64, constant: f64) -> bool {
    (found - constant).abs() <= 1e-4 * constant.abs()
}
