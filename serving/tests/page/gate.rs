//! An engine that computes only as many steps as a test allows, so that a stream stops at a known place.

use std::sync::{Arc, Condvar, Mutex};

use phase2_forward::{Engine, EngineError, Ticket, Work, delegate_engine};
use phase5_flash::CpuEngine;

/// Steps that may be computed; any number if `None`.
#[derive(Default)]
struct Steps {
    left: Mutex<Option<usize>>,
    more: Condvar,
}

#[derive(Clone, Default)]
pub struct Gate(Arc<Steps>);

impl Gate {
    /// Allows this many steps from now on, in place of those that were still allowed.
    pub fn allow(&self, steps: usize) {
        self.set(Some(steps));
    }

    pub fn open(&self) {
        self.set(None);
    }

    fn set(&self, left: Option<usize>) {
        *self.0.left.lock().expect("no panic") = left;
        self.0.more.notify_all();
    }

    fn pass(&self) {
        let left = self.0.left.lock().expect("no panic");
        let mut left = self.0.more.wait_while(left, |left| *left == Some(0)).expect("no panic");
        *left = left.map(|steps| steps - 1);
    }
}

pub struct Gated {
    pub inner: CpuEngine,
    pub gate: Gate,
}

impl Engine for Gated {
    delegate_engine!(inner: config, capacity, length, collect, fork, truncate, release);

    fn submit(&mut self, work: &[Work<'_>]) -> Result<Ticket, EngineError> {
        self.gate.pass();
        self.inner.submit(work)
    }
}
