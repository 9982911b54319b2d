//! An engine that computes as many steps as it is let, so that a stream stands still where a test looks at it.

use std::sync::{Arc, Condvar, Mutex};

use phase1_loading::GptOssConfig;
use phase2_forward::{Capacity, Engine, EngineError, Outcome, SequenceId, Ticket, Work};
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
    /// Lets so many steps through from now on.
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
    fn config(&self) -> &GptOssConfig {
        self.inner.config()
    }

    fn capacity(&self) -> Capacity {
        self.inner.capacity()
    }

    fn length(&self, sequence: SequenceId) -> usize {
        self.inner.length(sequence)
    }

    fn submit(&mut self, work: &[Work<'_>]) -> Result<Ticket, EngineError> {
        self.gate.pass();
        self.inner.submit(work)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Outcome>, EngineError> {
        self.inner.collect(ticket)
    }

    fn fork(&mut self, from: SequenceId, to: SequenceId, length: usize) -> Result<(), EngineError> {
        self.inner.fork(from, to, length)
    }

    fn truncate(&mut self, sequence: SequenceId, length: usize) -> Result<(), EngineError> {
        self.inner.truncate(sequence, length)
    }

    fn release(&mut self, sequence: SequenceId) {
        self.inner.release(sequence);
    }
}
