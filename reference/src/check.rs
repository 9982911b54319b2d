//! One comparison with a golden tensor.

/// The allowed distance of a tensor from the golden values, relative to the golden's standard deviation.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub rms: f64,
    pub max: f64,
}

impl Limit {
    /// For engines that compute in f32, whatever the order of their sums.
    pub const F32: Limit = Limit { rms: 2e-5, max: 2e-4 };
    /// For values that must be bit for bit the same, because both sides compute them exactly or with the same rounding.
    pub const EQUAL: Limit = Limit { rms: 0.0, max: 0.0 };
}

/// The result of comparing a tensor with its golden.
#[derive(Clone, Debug)]
pub struct Check {
    pub case: String,
    /// The tensor's name, and YaRN's ramp if it matters.
    pub tensor: String,
    /// Root mean square of the error, relative to the golden's standard deviation.
    pub rms: f64,
    /// Largest error, relative to the golden's standard deviation.
    pub max: f64,
    pub limit: Limit,
}

impl Check {
    /// Compares two tensors of real numbers. An empty tensor, a difference in length, or a value that is not finite counts as an infinite
    /// error.
    pub fn values(case: &str, tensor: impl Into<String>, expected: &[f32], found: &[f32], limit: Limit) -> Check {
        let count = expected.len() as f64;
        let mean = expected.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
        let square = |v: f64| v * v;
        let variance = expected.iter().map(|&v| square(f64::from(v) - mean)).sum::<f64>() / count;
        // A constant tensor has a standard deviation of 0: its errors are not scaled.
        let deviation = if variance > 0.0 { variance.sqrt() } else { 1.0 };
        let errors = expected.iter().zip(found).map(|(&e, &f)| (f64::from(e) - f64::from(f)).abs());
        let comparable = expected.len() == found.len()
            && !expected.is_empty()
            && expected.iter().chain(found).all(|v| v.is_finite());
        let (rms, max) = if comparable {
            let squares = errors.clone().map(square).sum::<f64>();
            ((squares / count).sqrt() / deviation, errors.fold(0.0, f64::max) / deviation)
        } else {
            (f64::INFINITY, f64::INFINITY)
        };
        Check { case: case.into(), tensor: tensor.into(), rms, max, limit }
    }

    /// Compares integers such as tokens or expert ids. The errors are 0 if all are equal; otherwise `rms` is the share of positions that
    /// differ, and `max` is 1. If the lengths differ or there are no integers, both are 1.
    pub fn ids(case: &str, tensor: impl Into<String>, expected: &[u32], found: &[u32]) -> Check {
        let different = expected.iter().zip(found).filter(|(e, f)| e != f).count();
        let (rms, max) = if expected.len() != found.len() || expected.is_empty() {
            (1.0, 1.0)
        } else {
            (different as f64 / expected.len() as f64, f64::from(different > 0))
        };
        Check { case: case.into(), tensor: tensor.into(), rms, max, limit: Limit::EQUAL }
    }

    pub fn passed(&self) -> bool {
        self.rms <= self.limit.rms && self.max <= self.limit.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expected: &[f32], found: &[f32]) -> Check {
        Check::values("case", "tensor", expected, found, Limit::F32)
    }

    #[test]
    fn equal_values_have_no_error() {
        let values = [1.0, -2.0, 3.5];
        let check = check(&values, &values);
        assert!(check.passed());
        assert_eq!((check.rms, check.max), (0.0, 0.0));
    }

    #[test]
    fn errors_are_in_standard_deviations() {
        let check = check(&[-10.0, 10.0], &[-10.0, 11.0]);
        assert!((check.max - 0.1).abs() < 1e-12, "{check:?}");
        assert!((check.rms - 0.1 / 2f64.sqrt()).abs() < 1e-12, "{check:?}");
        assert!(!check.passed());
    }

    #[test]
    fn incomparable_values_fail() {
        for (expected, found) in [
            (&[1.0, 2.0][..], &[1.0][..]),
            (&[], &[]),
            (&[1.0, 2.0], &[1.0, f32::NAN]),
            (&[1.0, f32::INFINITY], &[1.0, f32::INFINITY]),
        ] {
            assert!(!check(expected, found).passed(), "{expected:?} against {found:?}");
        }
        assert!(!Check::ids("case", "tensor", &[], &[]).passed());
        assert!(!Check::ids("case", "tensor", &[1, 2], &[1]).passed());
        assert!(!Check::ids("case", "tensor", &[1, 2], &[1, 3]).passed());
        assert!(Check::ids("case", "tensor", &[1, 2], &[1, 2]).passed());
    }
}
