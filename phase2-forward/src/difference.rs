//! Measures the difference between the values of two engines.

/// Root mean square of the differences over the standard deviation of the expected values; infinite if a value is NaN.
pub fn relative_rms(expected: &[f32], found: &[f32]) -> f64 {
    let count = expected.len() as f64;
    let mean = expected.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
    let variance = expected.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count;
    let square = expected.iter().zip(found).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum::<f64>() / count;
    let relative = (square / variance.max(f64::MIN_POSITIVE)).sqrt();
    if relative.is_nan() { f64::INFINITY } else { relative }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_in_standard_deviations() {
        // A mean of 3 and a standard deviation of 2.
        let expected = [1.0, 5.0, 1.0, 5.0];
        assert_eq!(relative_rms(&expected, &expected), 0.0);
        assert_eq!(relative_rms(&expected, &[2.0, 6.0, 2.0, 6.0]), 0.5);
        // The squares 16, 0, 0 and 0 have the mean 4.
        assert_eq!(relative_rms(&expected, &[5.0, 5.0, 1.0, 5.0]), 1.0);
        assert_eq!(relative_rms(&[7.0, 7.0], &[7.0, 7.0]), 0.0);
        assert_eq!(relative_rms(&expected, &[1.0, f32::NAN, 1.0, 5.0]), f64::INFINITY);
        assert_eq!(relative_rms(&[1.0, f32::NAN], &[1.0, 2.0]), f64::INFINITY);
    }
}
