//! How benches with many cases are measured. Each includes this file by its path.

use std::time::Duration;

use criterion::Criterion;

/// Criterion with 0.3 s of warm-up and 1 s of measurement a case, where its defaults are 3 s and 5 s.
pub fn quick() -> Criterion {
    // The warm-up is also what brings the clock of an idle GPU up.
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
}
