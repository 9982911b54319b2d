//! Counters and gauges of the scheduler, for metrics.

use std::time::Duration;

use crate::request::Finish;

/// The current state of the scheduler, and totals since its start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// Requests that are being computed.
    pub running: usize,
    pub waiting: usize,
    /// Pages of the KV cache; [`usize::MAX`] for an engine that allocates memory as needed.
    pub pages_total: usize,
    pub pages_free: usize,
    /// Sequences in the prefix cache.
    pub prefixes: usize,
    /// Prompt tokens of all requests that have started.
    pub prompt_tokens: u64,
    /// Prompt tokens that came from the prefix cache.
    pub cached_tokens: u64,
    pub generated_tokens: u64,
    pub preemptions: u64,
    pub steps: u64,
    pub finished: Finished,
    /// Sequences on disk; zeros without a folder.
    pub spilled: Spilled,
    /// Time from arrival to the start of computation.
    pub queue_time: Histogram,
    /// Time from arrival to the first token.
    pub ttft: Histogram,
    /// Time between two tokens of a request.
    pub inter_token: Histogram,
    /// Time from arrival to the end, of requests that end while they run: by a stop token, their length, their deadline or an error of
    /// their constraint. Not recorded for requests that were cancelled, failed in the engine, no longer fit in its cache, or ended while
    /// they waited.
    pub request_time: Histogram,
}

/// Sequences on disk, with totals of writes and reads since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spilled {
    /// Files in the folder, including those of other models and those that are being written.
    pub files: usize,
    /// Total size of all files.
    pub bytes: u64,
    pub spilled_tokens: u64,
    pub spilled_bytes: u64,
    /// Tokens that were restored to the engine.
    pub restored_tokens: u64,
    pub restored_bytes: u64,
}

/// Requests that have ended, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Finished {
    pub stop: u64,
    pub length: u64,
    pub deadline: u64,
    pub failed: u64,
    pub cancelled: u64,
}

impl Finished {
    pub fn count(&mut self, finish: &Finish) {
        let counter = match finish {
            Finish::Stop(_) => &mut self.stop,
            Finish::Length => &mut self.length,
            Finish::Deadline => &mut self.deadline,
            Finish::Failed(_) => &mut self.failed,
        };
        *counter += 1;
    }
}

/// A histogram of durations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// One bucket per bound in [`Histogram::BOUNDS`]: the number of durations up to this bound and above the previous one. One more bucket,
    /// the last, counts the durations above all bounds.
    pub counts: [u64; Histogram::BOUNDS.len() + 1],
    /// Sum of all durations in seconds.
    pub sum: f64,
}

impl Histogram {
    /// Upper bounds of the buckets in seconds.
    pub const BOUNDS: [f64; 17] =
        [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0];

    pub fn record(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        self.counts[Self::BOUNDS.partition_point(|&bound| bound < seconds)] += 1;
        self.sum += seconds;
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Mean in seconds; `None` without durations.
    pub fn mean(&self) -> Option<f64> {
        let count = self.count();
        (count > 0).then(|| self.sum / count as f64)
    }

    /// Each bound with the number of durations up to it, as Prometheus needs them. Durations above all bounds are counted only in
    /// [`Histogram::count`].
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let running = self.counts.iter().scan(0u64, |sum, count| {
            *sum += count;
            Some(*sum)
        });
        Self::BOUNDS.into_iter().zip(running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_counted_below_their_bound() {
        let mut histogram = Histogram::default();
        for seconds in [0.0005, 0.001, 0.0015, 700.0] {
            histogram.record(Duration::from_secs_f64(seconds));
        }
        let cumulative: Vec<_> = histogram.cumulative().collect();
        assert_eq!(cumulative[..2], [(0.001, 2), (0.002, 3)]);
        assert_eq!(cumulative.last(), Some(&(600.0, 3)));
        assert_eq!(histogram.count(), 4);
        assert!(histogram.mean().is_some_and(|mean| (mean - 700.003 / 4.0).abs() < 1e-9));
    }
}
