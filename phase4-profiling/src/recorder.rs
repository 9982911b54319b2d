//! A probe that records when each operation ended.
//!
//! On the CPU an operation is complete when it returns, so the host's clock suffices. On a GPU the host only queues work: the device writes
//! a timestamp before and after each operation if its driver supports that; otherwise the queue is drained after every operation and the
//! host's clock is read, which prevents the overlap of a normal step.

use std::time::Instant;

use cubecl::client::{Client, ProfileWindow};
use cubecl::future::block_on;
use cubecl::profile::{ProfileDuration, ProfileTicks, TimingMethod};
use cubecl::server::ProfileError;
use phase2_forward::{ComputeDevice, Probe, Span};

use crate::cost::CostModel;
use crate::profile::{Clock, LAUNCH, READBACK, TimedSpan, TimedStep};

/// Records one step at a time.
pub struct Recorder<'a> {
    costs: &'a CostModel,
    timer: Timer,
    spans: Vec<(Span, Mark)>,
    /// The instant to which the device's timestamps are relative.
    origin: Instant,
    begun: Instant,
}

enum Timer {
    Host,
    Device { client: Client, open: Option<ProfileWindow> },
}

/// How the time of an operation was measured.
enum Mark {
    Ended(Instant),
    /// `window` contains no measurement if the operation launched nothing.
    Window {
        submitted: Instant,
        window: Result<ProfileDuration, ProfileError>,
    },
}

impl<'a> Recorder<'a> {
    pub fn new(device: &ComputeDevice, costs: &'a CostModel) -> Recorder<'a> {
        let timer = match device.client() {
            Some(client) => Timer::Device { client, open: None },
            None => Timer::Host,
        };
        let now = Instant::now();
        Recorder { costs, timer, spans: Vec::new(), origin: now, begun: now }
    }

    /// Starts the clock of a step.
    pub fn begin(&mut self) {
        self.spans.clear();
        self.begun = Instant::now();
        self.timer.open();
    }

    /// Ends a step whose outcomes are on the host.
    pub fn finish(&mut self) -> (TimedStep, Clock) {
        let wall = self.begun.elapsed().as_secs_f64();
        self.timer.close();

        let mut timeline = Timeline { costs: self.costs, spans: Vec::new(), clock: Clock::Host, last: 0.0 };
        let mut device_begun = None;
        for (span, mark) in self.spans.drain(..) {
            match mark {
                Mark::Ended(instant) => timeline.push(span, timeline.last, (instant - self.begun).as_secs_f64()),
                Mark::Window { submitted, window } => match measured(window) {
                    None => timeline.push(span, timeline.last, timeline.last),
                    Some((ticks, clock)) => {
                        timeline.clock = clock;
                        let start = ticks.start_duration_since(self.origin).as_secs_f64();
                        // Aligns the device's clock with the host's at the submission of the first operation.
                        let ahead = *device_begun.get_or_insert(start - (submitted - self.begun).as_secs_f64());
                        let start = (start - ahead).max(timeline.last);
                        timeline.wait_until(start);
                        timeline.push(span, start, start + ticks.duration().as_secs_f64());
                    }
                },
            }
        }
        let readback = (wall - timeline.last).max(0.0);
        timeline.spans.push(TimedSpan::overhead(READBACK, timeline.last, readback));
        (TimedStep { wall, spans: timeline.spans }, timeline.clock)
    }
}

/// The device's timestamps of an operation; `None` if it launched nothing.
fn measured(window: Result<ProfileDuration, ProfileError>) -> Option<(ProfileTicks, Clock)> {
    let window = window.ok()?;
    let clock = match window.timing_method() {
        TimingMethod::Device => Clock::DeviceTimestamps,
        TimingMethod::System => Clock::Synchronized,
    };
    Some((block_on(window.resolve())?, clock))
}

impl Probe for Recorder<'_> {
    fn done(&mut self, span: Span) {
        let mark = match &mut self.timer {
            Timer::Host => Mark::Ended(Instant::now()),
            Timer::Device { client, open } => {
                let window = open.take().expect("`begin` and the end of every operation open a window");
                let window = client.profile_end(window);
                Mark::Window { submitted: Instant::now(), window }
            }
        };
        self.timer.open();
        self.spans.push((span, mark));
    }
}

impl Timer {
    fn open(&mut self) {
        if let Timer::Device { client, open } = self {
            *open = client.profile_start().ok();
        }
    }

    fn close(&mut self) {
        if let Timer::Device { client, open } = self
            && let Some(window) = open.take()
        {
            client.profile_abandon(window);
        }
    }
}

/// The spans of a step, in order.
struct Timeline<'a> {
    costs: &'a CostModel,
    spans: Vec<TimedSpan>,
    clock: Clock,
    /// When the last span ended, in seconds.
    last: f64,
}

impl Timeline<'_> {
    fn push(&mut self, span: Span, start: f64, end: f64) {
        self.spans.push(TimedSpan::of(span, self.costs.of(span), start, end - start));
        self.last = end;
    }

    /// Records that the device was idle, because the host had not yet launched the next operation.
    fn wait_until(&mut self, start: f64) {
        if start > self.last {
            self.spans.push(TimedSpan::overhead(LAUNCH, self.last, start - self.last));
        }
    }
}
