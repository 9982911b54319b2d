//! Compares attention of random shapes, in every cache format and on every instruction set of this machine, with f64.

mod common;

use common::cases;
use cpu_kernels::{Blocks, CacheFormat, Isa, KeyBlock, POSITIONS, Queries, attend, attend_share, merge_shares};
use gptoss_reference::Random;
use proptest::prelude::*;

/// Attention in f64, from keys and values decoded from the cache.
#[allow(clippy::too_many_arguments, reason = "a formula's symbols")]
fn reference(
    q: &[f32],
    keys: &[Vec<f32>],
    values: &[Vec<f32>],
    sinks: &[f32],
    dim: usize,
    start: usize,
    count: usize,
    window: usize,
) -> Vec<f64> {
    let mut out = vec![0.0; count * sinks.len() * dim];
    for i in 0..count {
        let position = start + i;
        for (h, &sink) in sinks.iter().enumerate() {
            let q = &q[(i * sinks.len() + h) * dim..][..dim];
            let visible = (position + 1).saturating_sub(window)..=position;
            let score = |j: usize| q.iter().zip(&keys[j]).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>();
            let largest = visible.clone().map(score).fold(f64::from(sink), f64::max);
            let sum: f64 = visible.clone().map(|j| (score(j) - largest).exp()).sum();
            let sum = sum + (f64::from(sink) - largest).exp();
            for j in visible {
                let p = (score(j) - largest).exp() / sum;
                for d in 0..dim {
                    out[(i * sinks.len() + h) * dim + d] += p * f64::from(values[j][d]);
                }
            }
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(150)))]

    #[test]
    fn any_shape_equals_f64(
        seed: u64, heads in 1usize..=9, dims in 1usize..=5, start in 0usize..300, count in 1usize..12,
        window in prop::sample::select(vec![1, 3, 16, 64, 100, 128, 1000]),
        format in prop::sample::select(vec![CacheFormat::F32, CacheFormat::F16, CacheFormat::Q8_0]),
        loudness in -3i32..5, dropped in 0usize..3,
    ) {
        let dim = if format == CacheFormat::Q8_0 { dims * 32 } else { dims * 16 };
        let mut random = Random::new(seed);
        let total = start + count;
        // Up to two blocks that no query sees are dropped. Unused positions contain bytes of 0xff, which are NaN in F32 and F16.
        let dropped = dropped.min((start + 1).saturating_sub(window) / POSITIONS);
        let bytes = KeyBlock::bytes(format, dim);
        let mut blocks = vec![vec![0xff; bytes]; total.div_ceil(POSITIONS)];
        let loudness = 2f32.powi(loudness) / (dim as f32).sqrt();
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for position in 0..total {
            let (key, value) = (random.values(dim, 2.0), random.values(dim, 2.0));
            KeyBlock::write(&mut blocks[position / POSITIONS], format, position % POSITIONS, &key, &value);
            let block = KeyBlock { format, head_dim: dim, data: &blocks[position / POSITIONS] };
            let (mut read_key, mut read_value) = (vec![f32::NAN; dim], vec![f32::NAN; dim]);
            block.read(position % POSITIONS, &mut read_key, &mut read_value);
            // In Q8_0 the quantization step of values below 2 is at most 9/512.
            let tolerance = match format { CacheFormat::F32 => 0.0, CacheFormat::F16 => 1e-3, CacheFormat::Q8_0 => 1.76e-2 };
            for (before, after) in key.iter().zip(&read_key).chain(value.iter().zip(&read_value)) {
                prop_assert!((before - after).abs() <= tolerance, "{format:?} keeps {before} as {after}");
            }
            keys.push(read_key);
            values.push(read_value);
        }
        let stride = heads * dim + 7;
        let q = random.values(count * stride, loudness);
        let packed: Vec<f32> = (0..count).flat_map(|i| q[i * stride..][..heads * dim].to_vec()).collect();
        let sinks = random.values(heads, 3.0);
        let expected = reference(&packed, &keys, &values, &sinks, dim, start, count, window);
        let queries = Queries { q: &q, stride, sinks: &sinks, head_dim: dim, count, start, window };
        let at = |i: usize| KeyBlock { format, head_dim: dim, data: &blocks[dropped + i] };
        let cached = Blocks { start: dropped * POSITIONS, count: blocks.len() - dropped, at: &at };
        let mut scratch = vec![f32::NAN; 10];
        for isa in Isa::all() {
            let mut out = vec![f32::NAN; count * stride];
            attend(isa, &queries, &cached, &mut out, &mut scratch);
            for i in 0..count {
                for at in 0..heads * dim {
                    let (found, expected) = (f64::from(out[i * stride + at]), expected[i * heads * dim + at]);
                    prop_assert!((found - expected).abs() < 3e-5, "{isa}: query {i}, {at}: {found}, not {expected}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(12)))]

    /// Attention over keys in up to four shares is close to f64, and bit-identical whether a query is computed alone or with others, and
    /// its shares in one call or one by one.
    #[test]
    fn merged_key_shares_equal_one_share(
        seed: u64, heads in 1usize..=3, start in 1000usize..3200, count in 1usize..10, loudness in -3i32..5,
    ) {
        const DIM: usize = 16;
        let mut random = Random::new(seed);
        let total = start + count;
        let mut blocks = vec![vec![0xff; KeyBlock::bytes(CacheFormat::F32, DIM)]; total.div_ceil(POSITIONS)];
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for position in 0..total {
            let (key, value) = (random.values(DIM, 2.0), random.values(DIM, 2.0));
            let block = &mut blocks[position / POSITIONS];
            KeyBlock::write(block, CacheFormat::F32, position % POSITIONS, &key, &value);
            keys.push(key);
            values.push(value);
        }
        let width = heads * DIM;
        let q = random.values(count * width, 2f32.powi(loudness) / (DIM as f32).sqrt());
        let sinks = random.values(heads, 3.0);
        let expected = reference(&q, &keys, &values, &sinks, DIM, start, count, usize::MAX);
        let at = |i: usize| KeyBlock { format: CacheFormat::F32, head_dim: DIM, data: &blocks[i] };
        let cached = Blocks { start: 0, count: blocks.len(), at: &at };
        let queries = |first: usize, count: usize| Queries {
            q: &q[first * width..],
            stride: width,
            sinks: &sinks,
            head_dim: DIM,
            count,
            start: start + first,
            window: usize::MAX,
        };
        let mut scratch = Vec::new();
        for isa in Isa::all() {
            let all = queries(0, count);
            prop_assert_eq!(all.shares(), total.div_ceil(1024));
            let mut out = vec![f32::NAN; count * width];
            attend(isa, &all, &cached, &mut out, &mut scratch);
            for (at, (&found, &expected)) in out.iter().zip(&expected).enumerate() {
                prop_assert!((f64::from(found) - expected).abs() < 3e-5, "{isa}: {at}: {found}, not {expected}");
            }
            for i in 0..count {
                let one = queries(i, 1);
                let (mut alone, mut merged) = (vec![f32::NAN; width], vec![f32::NAN; width]);
                attend(isa, &one, &cached, &mut alone, &mut scratch);
                let mut results = vec![f32::NAN; one.shares() * one.share_len()];
                // The shares are computed from the last to the first, because threads may finish them in any order.
                for (share, result) in results.chunks_exact_mut(one.share_len()).enumerate().rev() {
                    attend_share(isa, &one, &cached, share, result, &mut scratch);
                }
                merge_shares(&one, &mut results, &mut merged);
                prop_assert_eq!(&alone, &out[i * width..(i + 1) * width], "{}: query {}", isa, i);
                prop_assert_eq!(&merged, &alone, "{}: query {}", isa, i);
            }
        }
    }
}
