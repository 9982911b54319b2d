//! How long decoding steps take, and so how late the next step can be submitted without leaving the device idle.
//!
//! A submitted step cannot be changed: a request that arrives takes part in the step after those in flight. If the next step were always
//! submitted as soon as the one before it begins, every request would wait for the rest of one step and for all of another. It is therefore
//! submitted shortly before the one before it ends, and a request that arrives until then waits only for the rest of one step.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Number of measured steps. The shortest of them is the estimate, so that a single slow step does not lengthen it.
const MEASURED: usize = 4;
/// The next step is submitted this long before the expected end of the current one, or a quarter of its time before if that is longer.
const LEAD: Duration = Duration::from_millis(3);
/// If the host waited for less than this, the step may have ended before, and the device was idle.
const SHORTEST_WAIT: Duration = Duration::from_micros(500);

/// Measured times of decoding steps.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// When the oldest step in flight began to compute.
    began: Option<Instant>,
    /// Number of sequences of the measured steps, and the times of the last ones.
    sequences: usize,
    times: VecDeque<Duration>,
}

impl Pace {
    /// Records that the device began to compute a step.
    pub fn begin(&mut self, now: Instant) {
        self.began = Some(now);
    }

    /// Records that a step was collected, for which the host had waited since `waiting`; the next one in flight has begun. `decoded` is the
    /// number of its sequences if it was a decoding step.
    pub fn collected(&mut self, decoded: Option<usize>, waiting: Instant, now: Instant) {
        let Some(began) = self.began.replace(now) else { return };
        let Some(sequences) = decoded else { return };
        if sequences != self.sequences || now - waiting < SHORTEST_WAIT {
            self.times.clear();
            self.sequences = sequences;
        }
        if now - waiting >= SHORTEST_WAIT {
            self.times.push_back(now - began);
        }
        if self.times.len() > MEASURED {
            self.times.pop_front();
        }
    }

    /// The time until the step after the current one, which decodes this many sequences, should be submitted. Zero if it is not known.
    pub fn spare(&self, sequences: usize, now: Instant) -> Duration {
        match (self.began, self.times.iter().min()) {
            (Some(began), Some(&shortest)) if sequences == self.sequences && self.times.len() == MEASURED => {
                let lead = LEAD.max(shortest / 4);
                (began + shortest.saturating_sub(lead)).saturating_duration_since(now)
            }
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// Records steps of 9 sequences that took these times in milliseconds, for which the host waited for 1 ms; returns when the last ended.
    fn measure(pace: &mut Pace, times: &[u64]) -> Instant {
        let mut now = Instant::now();
        pace.begin(now);
        for &time in times {
            let waiting = now + ms(time - 1);
            now += ms(time);
            pace.collected(Some(9), waiting, now);
        }
        now
    }

    #[test]
    fn next_step_is_submitted_before_the_shortest_of_the_last_steps_would_end() {
        let mut pace = Pace::default();
        let now = measure(&mut pace, &[4, 10, 50, 9]);
        assert_eq!(pace.spare(9, now), ms(1));
        // The step of 4 ms is forgotten.
        let now = measure(&mut pace, &[11]);
        assert_eq!([0, 2, 6, 20].map(|after| pace.spare(9, now + ms(after))), [6, 4, 0, 0].map(ms));
        let now = measure(&mut pace, &[40, 40, 40, 40]);
        assert_eq!(pace.spare(9, now), ms(30));
        let now = measure(&mut pace, &[2]);
        assert_eq!(pace.spare(9, now), ms(0));
    }

    #[test]
    fn no_time_is_spare_without_enough_steps_of_the_same_size() {
        let mut pace = Pace::default();
        assert_eq!(pace.spare(0, Instant::now()), ms(0));
        let now = measure(&mut pace, &[10, 10, 10]);
        assert_eq!(pace.spare(9, now), ms(0));
        let now = measure(&mut pace, &[10]);
        assert_eq!([9, 10].map(|sequences| pace.spare(sequences, now)), [7, 0].map(ms));
        // A step with a prompt is not measured.
        pace.collected(None, now, now + ms(40));
        assert_eq!(pace.spare(9, now + ms(40)), ms(7));
        pace.collected(Some(10), now + ms(40), now + ms(50));
        assert_eq!([9, 10].map(|sequences| pace.spare(sequences, now + ms(50))), [0, 0].map(ms));
    }

    #[test]
    fn a_step_that_was_not_waited_for_discards_the_measurements() {
        let mut pace = Pace::default();
        let now = measure(&mut pace, &[10, 10, 10, 10]);
        pace.collected(Some(9), now + ms(12), now + ms(12));
        assert_eq!(pace.spare(9, now + ms(12)), ms(0));
        let now = measure(&mut pace, &[9, 9, 9, 9]);
        assert_eq!(pace.spare(9, now), ms(6));
    }
}
