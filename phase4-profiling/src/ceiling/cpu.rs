//! The peak rates of all CPU cores together: reads from a buffer larger than any cache, and multiply-adds in registers.

#[cfg(target_arch = "x86_64")]
mod x86;

use std::hint::black_box;
use std::thread::{available_parallelism, scope};
use std::time::Instant;

/// Words of the buffer that each thread reads: 256 MiB.
const WORDS: usize = 32 << 20;
/// Number of repetitions of a measurement; the fastest one is the result.
const PASSES: usize = 5;
/// Iterations of the arithmetic loops, which take a few tenths of a second.
const ROUNDS: usize = 20_000_000;

/// Bytes per second of all threads together.
pub fn read_bandwidth() -> f64 {
    let threads = threads();
    let buffers: Vec<Vec<u64>> = (0..threads).map(|_| resident_buffer()).collect();
    let fastest = (0..PASSES)
        .map(|_| {
            together(&buffers, |words| {
                black_box(sum(words));
            })
        })
        .fold(f64::INFINITY, f64::min);
    (threads * WORDS * size_of::<u64>()) as f64 / fastest
}

/// f32 operations per second of all threads together; a multiply-add counts as two.
pub fn f32_rate() -> f64 {
    rate(f32_loop())
}

/// Operations per second of 8-bit dot products with 32-bit sums; a multiply-add counts as two.
pub fn packed_rate() -> f64 {
    rate(packed_loop())
}

fn threads() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// A buffer with every page written, in pages as large as the system grants, so that page faults and page tables are not measured.
fn resident_buffer() -> Vec<u64> {
    let mut words: Vec<u64> = Vec::with_capacity(WORDS);
    #[cfg(target_os = "linux")]
    // SAFETY: advice about memory that the vector owns; it changes no contents.
    unsafe {
        libc::madvise(words.as_mut_ptr().cast(), WORDS * size_of::<u64>(), libc::MADV_HUGEPAGE);
    }
    words.resize(WORDS, 1);
    words
}

/// The sum of all words. Uses eight partial sums, so that additions do not wait for each other.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 8];
    for eight in words.as_chunks::<8>().0 {
        for (sum, word) in sums.iter_mut().zip(eight) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

/// An arithmetic loop, and the number of operations per iteration.
struct Loop {
    run: fn(usize),
    operations: usize,
}

fn rate(Loop { run, operations }: Loop) -> f64 {
    let units = vec![(); threads()];
    let fastest = (0..PASSES).map(|_| together(&units, |()| run(ROUNDS))).fold(f64::INFINITY, f64::min);
    (units.len() * operations * ROUNDS) as f64 / fastest
}

/// Runs `work` on one thread per share. Returns the seconds until all threads are done.
fn together<T: Sync>(shares: &[T], work: impl Fn(&T) + Sync) -> f64 {
    let start = Instant::now();
    scope(|scope| {
        for share in shares {
            scope.spawn(|| work(share));
        }
    });
    start.elapsed().as_secs_f64()
}

/// Independent accumulators: more than the latency of a multiply-add (in cycles) times its throughput (per cycle).
const CHAINS: usize = 12;

#[cfg(target_arch = "x86_64")]
fn f32_loop() -> Loop {
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the feature was just detected.
        return Loop { run: |rounds| unsafe { x86::f32_512::<CHAINS>(rounds) }, operations: CHAINS * 16 * 2 };
    }
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the features were just detected.
        return Loop { run: |rounds| unsafe { x86::f32_256::<CHAINS>(rounds) }, operations: CHAINS * 8 * 2 };
    }
    Loop { run: f32_portable, operations: CHAINS * 4 * 2 }
}

#[cfg(target_arch = "x86_64")]
fn packed_loop() -> Loop {
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
        // SAFETY: the features were just detected.
        return Loop { run: |rounds| unsafe { x86::packed_512::<CHAINS>(rounds) }, operations: CHAINS * 64 * 2 };
    }
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the feature was just detected.
        return Loop { run: |rounds| unsafe { x86::packed_256::<CHAINS>(rounds) }, operations: CHAINS * 32 * 2 };
    }
    Loop { run: packed_portable, operations: CHAINS * 4 * 2 }
}

#[cfg(not(target_arch = "x86_64"))]
fn f32_loop() -> Loop {
    Loop { run: f32_portable, operations: CHAINS * 4 * 2 }
}

#[cfg(not(target_arch = "x86_64"))]
fn packed_loop() -> Loop {
    Loop { run: packed_portable, operations: CHAINS * 4 * 2 }
}

/// f32 multiply-adds in four lanes, which compilers vectorize.
fn f32_portable(rounds: usize) {
    let (mut sums, factor) = ([[1.0f32; 4]; CHAINS], black_box([0.999f32; 4]));
    for _ in 0..rounds {
        for sum in &mut sums {
            for lane in 0..4 {
                sum[lane] = sum[lane] * factor[lane] + factor[lane];
            }
        }
    }
    black_box(sums);
}

/// 8-bit multiply-adds in four lanes. The XOR keeps compilers from replacing the loop by one multiplication.
fn packed_portable(rounds: usize) {
    let (mut sums, a, b) = ([[0i32; 4]; CHAINS], black_box([3i8; 4]), black_box([5i8; 4]));
    for _ in 0..rounds {
        for sum in &mut sums {
            for lane in 0..4 {
                sum[lane] = sum[lane].wrapping_add(i32::from(a[lane]) * i32::from(b[lane])) ^ 1;
            }
        }
    }
    black_box(sums);
}
