//! Constants of every gpt-oss model. A file may state them, but another value would be another computation.

/// YaRN's β and α, in rotations over the full original context: a dimension with more than β is left as it is (fast), one with fewer than α
/// is interpolated (slow).
pub const BETA_FAST: f64 = 32.0;
pub const BETA_SLOW: f64 = 1.0;
/// SwiGLU's clamping limit, and the factor in its sigmoid.
pub const SWIGLU_LIMIT: f64 = 7.0;
pub const SWIGLU_ALPHA: f64 = 1.702;

/// YaRN's factor on queries and keys (mscale), for a context that is `factor` times longer.
pub fn attention_factor(factor: f64) -> f64 {
    if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 }
}

/// Whether a file's number equals the constant, however many digits the file writes.
pub(super) fn is_close(found: f64, constant: f64) -> bool {
    (found - constant).abs() <= 1e-4 * constant.abs()
}
