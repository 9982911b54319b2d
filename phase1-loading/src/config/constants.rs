//! Constants that are the same in every gpt-oss model. A file that gives another value is refused, because the engines compute only with
//! these.

/// YaRN's β and α, in rotations over the full original context: the frequency of a dimension with more than β rotations is left unchanged
/// (fast), that of a dimension with fewer than α is interpolated (slow).
pub const BETA_FAST: f64 = 32.0;
pub const BETA_SLOW: f64 = 1.0;
/// SwiGLU's clamping limit, and the factor in its sigmoid.
pub const SWIGLU_LIMIT: f64 = 7.0;
pub const SWIGLU_ALPHA: f64 = 1.702;

/// YaRN's factor on queries and keys (mscale), for a context that is `factor` times longer than the original one.
pub fn attention_factor(factor: f64) -> f64 {
    if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 }
}

/// Whether a file's number equals the constant up to rounding; files write different numbers of digits.
pub(super) fn is_close(found: f64, constant: f64) -> bool {
    (found - constant).abs() <= 1e-4 * constant.abs()
}
