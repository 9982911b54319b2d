//! Attention over blocks of 64 cached positions, with a running softmax that begins with the sink.
//!
//! A SIMD vector holds values of 16 keys, so that scores need no sums across lanes, or 16 dimensions of the result. Each
//! [block](crate::cache) is decoded once and used for all query heads that share its key/value head.
//!
//! While a block is decoded, the next one is prefetched. One query at position 16384 over an f16 cache, one layer of 8 key/value heads in
//! two threads, takes 1.28 ms instead of 1.88 ms with hardware prefetching alone.
//!
//! A sink is a key without a value: the running softmax of a query head starts with the sink's logit as the maximum and 1 as the sum.
//!
//! In full layers the keys of a long sequence are split into shares of 1024 positions; a sliding window is one share. Each share has its
//! own maximum, sum and result, and only the first includes the sink; they are merged in order, so that threads may compute shares in any
//! order. Share boundaries depend only on positions, so a query's result is bit-identical, whatever else is in the batch and however many
//! threads compute it.

use crate::cache::{KeyBlock, POSITIONS, decode_keys, decode_values};
use crate::isa::{Isa, Kernel};
use crate::simd::{LANES, Simd, array};

/// Vectors of keys in a block.
const KEY_VECTORS: usize = POSITIONS / LANES;

/// The query heads that share a key/value head, at consecutive positions of one sequence.
pub struct Queries<'a> {
    /// `[count, stride]`, scaled by 1 / √head_dim: head h of query i begins at `i · stride + h · head_dim`.
    pub q: &'a [f32],
    pub stride: usize,
    /// The attention sink's logit of each query head, `[heads]`.
    pub sinks: &'a [f32],
    pub head_dim: usize,
    /// Number of positions.
    pub count: usize,
    /// The position of the first query.
    pub start: usize,
    /// How many positions a query attends to, up to and including its own; `usize::MAX` in a full layer.
    pub window: usize,
}

/// The cached blocks of one key/value head of a sequence.
#[derive(Clone, Copy)]
pub struct Blocks<'a, 'b> {
    /// The first position of the first block, a multiple of 64.
    pub start: usize,
    pub count: usize,
    /// Returns block i, counted from the first.
    pub at: &'a dyn Fn(usize) -> KeyBlock<'b>,
}

/// Positions in a share.
const SHARE: usize = 1024;
/// Alignment of scratch, in floats: 4 KB, like the engine's cached blocks. Decoding alternately loads from a block and stores
/// into scratch, and on Intel's processors a load waits for a recent store with the same low 12 address bits.
const ALIGNMENT: usize = 4096 / size_of::<f32>();

impl Queries<'_> {
    /// Number of shares of the keys that these queries attend to. A sliding window is one share.
    pub fn shares(&self) -> usize {
        if self.window == usize::MAX { (self.start + self.count).div_ceil(SHARE) } else { 1 }
    }

    /// Length in floats of a share's result, for [`attend_share`] and [`merge_shares`].
    pub fn share_len(&self) -> usize {
        self.rows() * (self.head_dim + 2)
    }

    /// A row is one query head at one position.
    fn rows(&self) -> usize {
        self.count * self.sinks.len()
    }

    /// Length in floats of the scratch that computing a share needs, in addition to its result.
    fn scratch_len(&self) -> usize {
        (2 * POSITIONS + self.rows()) * self.head_dim + MAX_ROWS * POSITIONS
    }

    /// Indices of the first and the last block of a share, counted from the block that begins at `blocks_start`.
    fn blocks_of(&self, share: usize, blocks_start: usize) -> (usize, usize) {
        let (oldest, newest) = ((self.start + 1).saturating_sub(self.window), self.start + self.count - 1);
        let (from, to) = match self.window == usize::MAX {
            true => (share * SHARE, newest.min((share + 1) * SHARE - 1)),
            false => (oldest, newest),
        };
        ((from - blocks_start) / POSITIONS, (to - blocks_start) / POSITIONS)
    }
}

/// Computes attention over the cached positions. The result of head h of query i goes to `out[i · stride + h · head_dim..]`. `scratch`
/// grows as needed and can be reused by the next call.
///
/// # Panics
/// If there are no queries or heads, the window is 0, `head_dim` is not a positive multiple of 16, lengths do not match, or the blocks do
/// not begin at a multiple of 64 or lack a position that a query attends to.
pub fn attend(isa: Isa, queries: &Queries<'_>, blocks: &Blocks<'_, '_>, out: &mut [f32], scratch: &mut Vec<f32>) {
    let (own, share) = (queries.scratch_len(), queries.share_len());
    let (scratch, shares) = aligned(scratch, own + 2 * share).split_at_mut(own);
    let (total, next) = shares.split_at_mut(share);
    compute_share(isa, queries, blocks, 0, total, scratch);
    for number in 1..queries.shares() {
        compute_share(isa, queries, blocks, number, next, scratch);
        merge(queries, total, next);
    }
    finish(queries, total, out);
}

/// Computes attention over one share of the cached positions. `result`, of length [`Queries::share_len`], is input to [`merge_shares`].
///
/// # Panics
/// As [`attend`], or if there is no such share.
pub fn attend_share(
    isa: Isa,
    queries: &Queries<'_>,
    blocks: &Blocks<'_, '_>,
    share: usize,
    result: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    compute_share(isa, queries, blocks, share, result, aligned(scratch, queries.scratch_len()));
}

/// Merges the results of all shares, in order, and writes the same result as [`attend`] to `out`. Overwrites `results`.
///
/// # Panics
/// If lengths do not match.
pub fn merge_shares(queries: &Queries<'_>, results: &mut [f32], out: &mut [f32]) {
    let share = queries.share_len();
    assert_eq!(results.len(), queries.shares() * share, "one result per share is needed");
    let (total, others) = results.split_at_mut(share);
    for next in others.chunks_exact(share) {
        merge(queries, total, next);
    }
    finish(queries, total, out);
}

/// `len` floats of a buffer, from its first address that is aligned to [`ALIGNMENT`]. The buffer grows if it is too short.
fn aligned(scratch: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if scratch.len() < len + ALIGNMENT {
        scratch.resize(len + ALIGNMENT, 0.0);
    }
    let start = scratch.as_ptr().align_offset(ALIGNMENT * size_of::<f32>()).min(ALIGNMENT);
    &mut scratch[start..start + len]
}

fn compute_share(
    isa: Isa,
    queries: &Queries<'_>,
    blocks: &Blocks<'_, '_>,
    share: usize,
    result: &mut [f32],
    scratch: &mut [f32],
) {
    let Queries { q, stride, sinks, head_dim, count, start, window } = *queries;
    assert!(count > 0 && window > 0 && !sinks.is_empty(), "attention needs queries, a window and heads");
    assert!(head_dim > 0 && head_dim.is_multiple_of(LANES), "a head of {head_dim} is not a multiple of {LANES}");
    let width = sinks.len() * head_dim;
    assert!(width <= stride && q.len() >= (count - 1) * stride + width, "the queries are too short");
    assert!(blocks.start.is_multiple_of(POSITIONS), "blocks begin at multiples of {POSITIONS}");
    let oldest = (start + 1).saturating_sub(window);
    let end = blocks.start + blocks.count * POSITIONS;
    assert!(blocks.start <= oldest && start + count <= end, "a visible position is in no block");
    assert!(share < queries.shares(), "share {share} of {}", queries.shares());
    assert!(
        result.len() == queries.share_len() && scratch.len() >= queries.scratch_len(),
        "the result or the scratch is too short"
    );
    // SAFETY: the lengths that the kernel asks for were just checked.
    unsafe { isa.run(Attend { queries, blocks, share, result, scratch }) }
}

/// Merges a share's result into that of the shares before it.
fn merge(queries: &Queries<'_>, total: &mut [f32], share: &[f32]) {
    let (rows, head_dim) = (queries.rows(), queries.head_dim);
    let (results, rest) = total.split_at_mut(rows * head_dim);
    let (largest, sums) = rest.split_at_mut(rows);
    let (more_results, rest) = share.split_at(rows * head_dim);
    let (more_largest, more_sums) = rest.split_at(rows);
    for row in 0..rows {
        let most = largest[row].max(more_largest[row]);
        let (kept, added) = ((largest[row] - most).exp(), (more_largest[row] - most).exp());
        largest[row] = most;
        sums[row] = sums[row] * kept + more_sums[row] * added;
        let row = row * head_dim..(row + 1) * head_dim;
        for (result, more) in results[row.clone()].iter_mut().zip(&more_results[row]) {
            *result = *result * kept + more * added;
        }
    }
}

/// Divides each row's weighted sum of values by its sum of exponentials, and writes it to `out`.
fn finish(queries: &Queries<'_>, total: &[f32], out: &mut [f32]) {
    let &Queries { stride, sinks, head_dim, .. } = queries;
    let (rows, heads) = (queries.rows(), sinks.len());
    let sums = &total[rows * (head_dim + 1)..];
    for (row, results) in total[..rows * head_dim].chunks_exact(head_dim).enumerate() {
        let factor = 1.0 / sums[row];
        let out = &mut out[row / heads * stride + row % heads * head_dim..][..head_dim];
        for (out, result) in out.iter_mut().zip(results) {
            *out = result * factor;
        }
    }
}

/// The most rows that are computed together over a decoded block.
const MAX_ROWS: usize = 8;

struct Attend<'a, 'b> {
    queries: &'a Queries<'a>,
    blocks: &'a Blocks<'a, 'b>,
    share: usize,
    result: &'a mut [f32],
    scratch: &'a mut [f32],
}

/// The buffers of one call. `results`, `largest` and `sums` are the share's result; the others are in `scratch`.
struct Buffers {
    /// `[head_dim, 64]`
    keys: *mut f32,
    /// `[64, head_dim]`
    values: *mut f32,
    /// `[rows, head_dim]`, rows of one position side by side.
    q: *mut f32,
    /// `[8, 64]`
    scores: *mut f32,
    /// `[rows, head_dim]`, not yet divided by the sums.
    results: *mut f32,
    /// The running softmax, each `[rows]`: the largest score so far, and the sum of `e^(score − largest)`.
    largest: *mut f32,
    sums: *mut f32,
}

impl Kernel for Attend<'_, '_> {
    type Output = ();

    /// # Safety
    /// The lengths are those that [`compute_share`] checks.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Attend { queries, blocks, share, result, scratch } = self;
        let &Queries { q, stride, sinks, head_dim, count, start, window } = queries;
        let heads = sinks.len();
        let rows = count * heads;
        // SAFETY: `result` and `scratch` hold all of these, one after another; rows and dimensions stay below their counts.
        unsafe {
            let keys = scratch.as_mut_ptr();
            let values = keys.add(POSITIONS * head_dim);
            let own_q = values.add(POSITIONS * head_dim);
            let scores = own_q.add(rows * head_dim);
            let results = result.as_mut_ptr();
            let largest = results.add(rows * head_dim);
            let sums = largest.add(rows);
            let buffers = Buffers { keys, values, q: own_q, scores, results, largest, sums };
            for row in 0..rows {
                let from = q.as_ptr().add(row / heads * stride + row % heads * head_dim);
                std::ptr::copy_nonoverlapping(from, own_q.add(row * head_dim), head_dim);
                // Only the first share starts with the sink. The others start with a maximum below every score, so that a share without
                // visible keys has no weight in the merge.
                (*largest.add(row), *sums.add(row)) =
                    if share == 0 { (sinks[row % heads], 1.0) } else { (f32::MIN, 0.0) };
            }
            std::ptr::write_bytes(results, 0, rows * head_dim);

            let (first, last) = queries.blocks_of(share, blocks.start);
            let block_at = blocks.at;
            let mut next = block_at(first);
            for number in first..=last {
                let block = next;
                if number < last {
                    next = block_at(number + 1);
                }
                assert!(block.head_dim == head_dim, "the block has another head size");
                assert_eq!(block.data.len(), KeyBlock::bytes(block.format, head_dim), "the block is not whole");
                let first_key = blocks.start + number * POSITIONS;
                let ahead = next.data.as_ptr();
                decode_keys::<S>(&block, buffers.keys, ahead);
                decode_values::<S>(&block, buffers.values, ahead.wrapping_add(block.data.len() / 2));
                let mut row = 0;
                while row < rows {
                    // Rows that are computed together attend to different positions if they belong to different queries.
                    let visible = |row: usize| {
                        let position = start + row / heads;
                        let from = (position + 1).saturating_sub(window).max(first_key);
                        let to = (position + 1).min(first_key + POSITIONS);
                        (from.min(to) - first_key.min(to), to.saturating_sub(first_key))
                    };
                    let left = rows - row;
                    let taken = if S::PARALLEL_ROWS == 4 && left >= 8 {
                        over_block::<S, 8>(&buffers, row, head_dim, &visible);
                        8
                    } else if S::PARALLEL_ROWS == 4 && left >= 4 {
                        over_block::<S, 4>(&buffers, row, head_dim, &visible);
                        4
                    } else if left >= 2 {
                        over_block::<S, 2>(&buffers, row, head_dim, &visible);
                        2
                    } else {
                        over_block::<S, 1>(&buffers, row, head_dim, &visible);
                        1
                    };
                    row += taken;
                }
            }
        }
    }
}

/// Adds the decoded block to the results of N rows from `row` on. `visible` returns the first slot (a key's place in the block, below 64)
/// that a row attends to, and the slot after the last.
///
/// # Safety
/// The buffers have the shapes that [`Buffers`] gives, and hold the rows.
#[inline(always)]
unsafe fn over_block<S: Simd, const N: usize>(
    buffers: &Buffers,
    row: usize,
    head_dim: usize,
    visible: &impl Fn(usize) -> (usize, usize),
) {
    let ranges: [(usize, usize); N] = array(|i| visible(row + i));
    let from = ranges.iter().filter(|(from, to)| from < to).map(|range| range.0).min();
    let to = ranges.iter().map(|range| range.1).max();
    let (Some(from), Some(to)) = (from, to) else { return };
    // SAFETY: the caller guarantees the contract; slots are below 64.
    unsafe {
        let q = buffers.q.add(row * head_dim);
        for pair in 0..KEY_VECTORS / 2 {
            let keys = buffers.keys.add(pair * 2 * LANES);
            let mut scores = [[S::zero(); 2]; N];
            for d in 0..head_dim {
                let (a, b) = (S::load(keys.add(d * POSITIONS)), S::load(keys.add(d * POSITIONS + LANES)));
                for i in 0..N {
                    let q = S::splat(*q.add(i * head_dim + d));
                    scores[i][0] = S::fma(q, a, scores[i][0]);
                    scores[i][1] = S::fma(q, b, scores[i][1]);
                }
            }
            for i in 0..N {
                let to = buffers.scores.add(i * POSITIONS + pair * 2 * LANES);
                S::store(to, scores[i][0]);
                S::store(to.add(LANES), scores[i][1]);
            }
        }
        for i in 0..N {
            let scores = buffers.scores.add(i * POSITIONS);
            let (from, to) = ranges[i];
            let hide = |value: f32| {
                for slot in (0..from).chain(to..POSITIONS) {
                    *scores.add(slot) = value;
                }
            };
            hide(f32::NEG_INFINITY);
            let mut v: [S::V; KEY_VECTORS] = array(|k| S::load(scores.add(k * LANES)));
            let mut most = v[0];
            for &v in &v[1..] {
                most = S::max(most, v);
            }
            let before = *buffers.largest.add(row + i);
            let largest = before.max(S::maximum(most));
            for (k, v) in v.iter_mut().enumerate() {
                *v = S::exp(S::sub(*v, S::splat(largest)));
                S::store(scores.add(k * LANES), *v);
            }
            // Hidden keys get exactly zero weight, whatever their slots contain.
            hide(0.0);
            let mut sum = S::zero();
            for k in 0..KEY_VECTORS {
                sum = S::add(sum, S::load(scores.add(k * LANES)));
            }
            if largest > before {
                let correction = (before - largest).exp();
                *buffers.largest.add(row + i) = largest;
                *buffers.sums.add(row + i) *= correction;
                let results = buffers.results.add((row + i) * head_dim);
                for d in (0..head_dim).step_by(LANES) {
                    S::store(results.add(d), S::mul(S::load(results.add(d)), S::splat(correction)));
                }
            }
            *buffers.sums.add(row + i) += S::sum(sum);
        }
        let mut d = 0;
        while d < head_dim {
            let two = d + 2 * LANES <= head_dim;
            let results = buffers.results.add(row * head_dim + d);
            let mut sums: [[S::V; 2]; N] = array(|i| {
                let results = results.add(i * head_dim);
                [S::load(results), if two { S::load(results.add(LANES)) } else { S::zero() }]
            });
            for slot in from..to {
                let value = buffers.values.add(slot * head_dim + d);
                let (a, b) = (S::load(value), if two { S::load(value.add(LANES)) } else { S::zero() });
                for i in 0..N {
                    let p = S::splat(*buffers.scores.add(i * POSITIONS + slot));
                    sums[i][0] = S::fma(p, a, sums[i][0]);
                    sums[i][1] = S::fma(p, b, sums[i][1]);
                }
            }
            for i in 0..N {
                let results = results.add(i * head_dim);
                S::store(results, sums[i][0]);
                if two {
                    S::store(results.add(LANES), sums[i][1]);
                }
            }
            d += 2 * LANES;
        }
    }
}
