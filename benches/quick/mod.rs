//! Criterion's settings for benches with many cases. Each of these benches includes this file by its path.

use std::time::Duration;

use criterion::Criterion;

/// Criterion with 0.3 s of warm-up, 1 s of measurement and 20 samples per case, instead of its defaults of 3 s, 5 s and 100.
pub fn quick() -> Criterion {
    // The warm-up also raises the clock of an idle GPU.
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
}
