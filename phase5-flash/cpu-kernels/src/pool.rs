//! A thread pool for operations of a few microseconds.
//!
//! A worker spins while it waits for the next operation, and parks after some 50 µs without one. Each thread has a contiguous range of
//! tasks, so that it reads memory in order; a thread that has finished its range steals from the others. A worker enters an operation
//! through a gate, an atomic word. A worker that the system has descheduled between operations does not delay the next one: the operation
//! ends when its tasks are done, and the worker then finds the gate closed.

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// Spin iterations before a waiting worker parks, or the waiting caller yields.
const SPINS: usize = 4000;

/// The gate's word: the operation's number in the upper half, one bit for "open", and the number of workers inside.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const NUMBER: u64 = 1 << 32;

type Work<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// A fixed number of threads, including the caller's.
pub struct Pool {
    common: Arc<Common>,
    workers: Vec<Worker>,
    /// Held while an operation runs on the workers.
    turn: Mutex<()>,
}

struct Worker {
    handle: Option<JoinHandle<()>>,
    parked: Arc<AtomicBool>,
}

/// The tasks of a thread that have not been started. Each `Range` has its own cache lines, since every task updates it.
#[derive(Default)]
#[repr(align(128))]
struct Range {
    next: AtomicUsize,
    end: AtomicUsize,
}

struct Common {
    gate: AtomicU64,
    ranges: Box<[Range]>,
    /// The operation; valid while the gate is open or a worker is inside.
    work: UnsafeCell<Option<*const Work<'static>>>,
    panicked: AtomicBool,
    stop: AtomicBool,
}

// SAFETY: `work` is written only while the gate is closed and no worker is inside, and read only by workers inside.
unsafe impl Sync for Common {}
// SAFETY: the pointer in `work` is to a `Sync` closure.
unsafe impl Send for Common {}

impl Pool {
    /// # Panics
    /// If `threads` is 0, or the system cannot start a thread.
    pub fn new(threads: usize) -> Pool {
        assert!(threads > 0, "a pool needs a thread");
        let common = Arc::new(Common {
            gate: AtomicU64::new(0),
            ranges: (0..threads).map(|_| Range::default()).collect(),
            work: UnsafeCell::new(None),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let spawn = |number| {
            let parked = Arc::new(AtomicBool::new(false));
            let (common, parked_too) = (common.clone(), parked.clone());
            let body = move || serve(&common, &parked_too, number);
            let thread = thread::Builder::new().name(format!("gptoss-{number}")).spawn(body);
            Worker { handle: Some(thread.expect("the system can start a thread")), parked }
        };
        Pool { workers: (1..threads).map(spawn).collect(), common, turn: Mutex::new(()) }
    }

    pub fn threads(&self) -> usize {
        1 + self.workers.len()
    }

    /// Calls `work(task, thread)` once for each task in `0..tasks`, on any of the threads, and returns when all calls have returned.
    ///
    /// # Panics
    /// If a task panics.
    pub fn run(&self, tasks: usize, work: &Work<'_>) {
        if self.workers.is_empty() || tasks <= 1 {
            (0..tasks).for_each(|task| work(task, 0));
            return;
        }
        let open = Operation::open(self, tasks, work);
        self.common.take_tasks(work, 0);
        drop(open);
        assert!(!self.common.panicked.swap(false, Ordering::Relaxed), "a task of the pool panicked");
    }
}

/// A running operation. Closing it waits for the workers inside.
struct Operation<'a> {
    pool: &'a Pool,
    _turn: MutexGuard<'a, ()>,
}

impl<'a> Operation<'a> {
    fn open(pool: &'a Pool, tasks: usize, work: &Work<'_>) -> Operation<'a> {
        let turn = pool.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let common = &*pool.common;
        // If a task of an earlier operation panicked on the caller's thread, a worker that also panicked may have left the flag set.
        common.panicked.store(false, Ordering::Relaxed);
        // SAFETY: only the lifetime changes, and dropping the `Operation` waits until no worker uses the pointer.
        let work: *const Work<'static> = unsafe { std::mem::transmute(std::ptr::from_ref(work)) };
        // SAFETY: the gate is closed, no worker is inside, and `turn` excludes other callers.
        unsafe { *common.work.get() = Some(work) };
        let threads = common.ranges.len();
        for (thread, range) in common.ranges.iter().enumerate() {
            range.next.store(thread * tasks / threads, Ordering::Relaxed);
            range.end.store((thread + 1) * tasks / threads, Ordering::Relaxed);
        }
        let number = common.gate.load(Ordering::Relaxed) & !(OPEN | INSIDE);
        // This store and those to `parked` are sequentially consistent: either this thread sees that a worker is parked, or the worker sees
        // the open gate.
        common.gate.store(number.wrapping_add(NUMBER) | OPEN, Ordering::SeqCst);
        for worker in &pool.workers {
            if worker.parked.load(Ordering::SeqCst) {
                worker.handle.as_ref().expect("a worker is joined only on drop").thread().unpark();
            }
        }
        Operation { pool, _turn: turn }
    }
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        let common = &*self.pool.common;
        common.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while common.gate.load(Ordering::Acquire) & INSIDE != 0 {
            // After a long wait, the worker inside has probably been descheduled: yield to it.
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { thread::yield_now() }
        }
    }
}

impl Common {
    fn take_tasks(&self, work: &Work<'_>, thread: usize) {
        let (before, own) = self.ranges.split_at(thread);
        for range in own.iter().chain(before) {
            let end = range.end.load(Ordering::Relaxed);
            loop {
                let task = range.next.fetch_add(1, Ordering::Relaxed);
                if task >= end {
                    break;
                }
                work(task, thread);
            }
        }
    }
}

/// The main loop of a worker.
fn serve(common: &Common, parked: &AtomicBool, thread: usize) {
    let mut last = 0;
    let mut spins = 0;
    while !common.stop.load(Ordering::Relaxed) {
        let gate = common.gate.load(Ordering::Acquire);
        let number = gate / NUMBER;
        if gate & OPEN != 0 && number != last {
            if common.gate.compare_exchange(gate, gate + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                last = number;
                spins = 0;
                // SAFETY: the gate was open and this worker is counted as inside, so the operation cannot end before the worker leaves.
                let work = unsafe { &*(*common.work.get()).expect("work is set before the gate opens") };
                if catch_unwind(AssertUnwindSafe(|| common.take_tasks(work, thread))).is_err() {
                    common.panicked.store(true, Ordering::Relaxed);
                }
                common.gate.fetch_sub(1, Ordering::AcqRel);
            }
        } else if spins < SPINS {
            spins += 1;
            std::hint::spin_loop();
        } else {
            parked.store(true, Ordering::SeqCst);
            let gate = common.gate.load(Ordering::SeqCst);
            if (gate & OPEN == 0 || gate / NUMBER == last) && !common.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            parked.store(false, Ordering::SeqCst);
            spins = 0;
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.common.stop.store(true, Ordering::SeqCst);
        for worker in &mut self.workers {
            if let Some(handle) = worker.handle.take() {
                handle.thread().unpark();
                // A worker catches panics of tasks, so its thread cannot have panicked.
                let _ = handle.join();
            }
        }
    }
}

/// A mutable slice of which the tasks of an operation write disjoint parts.
#[derive(Clone, Copy)]
pub struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    _slice: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `part`, whose caller promises disjoint parts.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as for `Sync`.
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Shared<'a, T> {
        Shared { start: slice.as_mut_ptr(), len: slice.len(), _slice: PhantomData }
    }

    /// # Safety
    /// No part that overlaps this one may be in use.
    ///
    /// # Panics
    /// If the part is not inside the slice.
    #[allow(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "the part is outside of the slice");
        // SAFETY: inside the slice, which is borrowed mutably for 'a; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_per_operation() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads);
            for round in 0..400 {
                let tasks = round % 37;
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|task, thread| {
                    assert!(thread < threads);
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    counts.iter().all(|count| count.load(Ordering::Relaxed) == 1),
                    "{threads} threads, {tasks} tasks"
                );
                if round % 100 == 50 {
                    thread::sleep(std::time::Duration::from_millis(3));
                }
            }
        }
    }

    #[test]
    fn a_panic_on_every_thread_does_not_fail_the_next_operation() {
        let pool = Pool::new(3);
        for _ in 0..20 {
            let panicking = || pool.run(50, &|_, _| panic!("on purpose"));
            assert!(catch_unwind(AssertUnwindSafe(panicking)).is_err());
            let sum = AtomicUsize::new(0);
            pool.run(50, &|task, _| {
                sum.fetch_add(task, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 1225);
        }
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_stays_usable() {
        let pool = Pool::new(3);
        let panicking = || pool.run(50, &|task, _| assert_ne!(task, 20, "on purpose"));
        assert!(catch_unwind(AssertUnwindSafe(panicking)).is_err());
        let sum = AtomicUsize::new(0);
        pool.run(50, &|task, _| {
            sum.fetch_add(task, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 1225);
    }
}
