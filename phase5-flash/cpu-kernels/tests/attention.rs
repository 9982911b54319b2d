//! Attention of random shapes, in every cache format and on every instruction set here, against f64.

mod common;

use common::{Random, cases};
use cpu_kernels::{CacheFormat, Isa, KeyBlock, POSITIONS, Queries, attend};
use proptest::prelude::*;

/// What attention computes, from the keys and values as the cache gives them back.
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
    fn any_shape(
        seed: u64, heads in 1usize..=9, dims in 1usize..=5, start in 0usize..300, count in 1usize..12,
        window in prop::sample::select(vec![1, 3, 16, 64, 100, 128, 1000]),
        format in prop::sample::select(vec![CacheFormat::F32, CacheFormat::F16, CacheFormat::Q8_0]),
        loudness in -3i32..5, dropped in 0usize..3,
    ) {
        let dim = if format == CacheFormat::Q8_0 { dims * 32 } else { dims * 16 };
        let mut random = Random(seed);
        let total = start + count;
        // Blocks that no query sees are gone, and slots that hold no position hold NaN.
        let dropped = dropped.min((start + 1).saturating_sub(window) / POSITIONS);
        let bytes = KeyBlock::bytes(format, dim);
        let mut blocks = vec![vec![0xff; bytes]; total.div_ceil(POSITIONS)];
        let loudness = 2f32.powi(loudness) / (dim as f32).sqrt();
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for position in 0..total {
            let (key, value) = (random.floats(dim, 2.0), random.floats(dim, 2.0));
            KeyBlock::write(&mut blocks[position / POSITIONS], format, position % POSITIONS, &key, &value);
            let block = KeyBlock { format, head_dim: dim, data: &blocks[position / POSITIONS] };
            let (mut read_key, mut read_value) = (vec![f32::NAN; dim], vec![f32::NAN; dim]);
            block.read(position % POSITIONS, &mut read_key, &mut read_value);
            // In Q8_0 the step of values below 2 is 9/512 at most.
            let tolerance = match format { CacheFormat::F32 => 0.0, CacheFormat::F16 => 1e-3, CacheFormat::Q8_0 => 1.76e-2 };
            for (before, after) in key.iter().zip(&read_key).chain(value.iter().zip(&read_value)) {
                prop_assert!((before - after).abs() <= tolerance, "{format:?} keeps {before} as {after}");
            }
            keys.push(read_key);
            values.push(read_value);
        }
        let stride = heads * dim + 7;
        let q = random.floats(count * stride, loudness);
        let packed: Vec<f32> = (0..count).flat_map(|i| q[i * stride..][..heads * dim].to_vec()).collect();
        let sinks = random.floats(heads, 3.0);
        let expected = reference(&packed, &keys, &values, &sinks, dim, start, count, window);
        let queries = Queries { q: &q, stride, sinks: &sinks, head_dim: dim, count, start, window };
        let block = |i: usize| KeyBlock { format, head_dim: dim, data: &blocks[dropped + i] };
        let mut scratch = vec![f32::NAN; 10];
        for isa in Isa::all() {
            let mut out = vec![f32::NAN; count * stride];
            attend(isa, &queries, dropped * POSITIONS, &block, blocks.len() - dropped, &mut out, &mut scratch);
            for i in 0..count {
                for at in 0..heads * dim {
                    let (found, expected) = (f64::from(out[i * stride + at]), expected[i * heads * dim + at]);
                    prop_assert!((found - expected).abs() < 3e-5, "{isa}: query {i}, {at}: {found}, not {expected}");
                }
            }
        }
    }
}
