//! A test that every attention kernel must pass.

use std::ops::Range;

use formats::CacheFormat;

use super::{Attention, ROW_TILE_WORDS, Unrotated, partial_words, row_tiles, rows_per_tile};
use crate::device::{Buffer, Device};
use crate::kv::{KvPool, KvRow, PAGE};
use crate::matrix_units::MatrixUnits;
use crate::rope::Rope;
use crate::rows::Row;
use crate::testing::{F16, F32, Random, TestCache, assert_close, assert_within, gpu, poisoned};

/// The most new tokens of a sequence in one pass, and the number of passes.
const LONGEST: usize = 70;
const PASSES: usize = 7;

/// The shape of the heads, their cache format, and the number of splits of the keys.
#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    format: CacheFormat,
    splits: usize,
}

impl Shape {
    /// Number of values in a row of queries, keys and values.
    fn width(self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

/// The rows of a pass, and their queries, keys and values.
struct Pass {
    rows: Vec<Row>,
    row_words: Buffer,
    qkv: Vec<f32>,
    qkv_buffer: Buffer,
}

/// A layer's cache: a ring of pages in a sliding layer, all pages in a full one.
struct Layer {
    cache: TestCache,
    reach: usize,
}

/// The kernels' results for a pass: rotated queries, and outputs with the allowed error of each.
struct Found {
    queries: Vec<f32>,
    outs: Vec<(f64, Vec<f32>)>,
}

/// Appends the tokens of two sequences to a cache in passes of several lengths. Compares the last two passes (one with several tokens per
/// sequence, one with a single token) with softmax over all keys in reach, in f64. Keys and values are read back from the cache, so that
/// only attention is tested.
fn check(shape: Shape) {
    let gpu = gpu();
    let device = &gpu.device;
    let mut random = Random::fresh();
    let Shape { heads, kv_heads, head_dim, format, .. } = shape;
    let window = 1 + random.below(150);
    let context = format!("{shape:?} {window} {random:?}");
    let row = KvRow::new(format, kv_heads, head_dim).expect("whole blocks");
    let full_pages = (PASSES * LONGEST).div_ceil(PAGE);
    let layers = [(window, (window + LONGEST - 1).div_ceil(PAGE)), (usize::MAX, full_pages)].map(|(reach, pages)| {
        let pool = KvPool::new(device, row, 2 * pages + 3);
        Layer { cache: TestCache::new(device, &mut random, pool, [2, pages, pages + 1]), reach }
    });
    let angles: Vec<f32> =
        (0..PASSES * LONGEST * head_dim / 2).flat_map(|i| [(i as f32).cos(), (i as f32).sin()]).collect();
    let table = device.upload_f32(&angles);
    let sinks = random.values(heads, 2.0);
    let mut lengths = [0usize; 2];
    for number in 0..PASSES {
        let new = match number {
            0 => [LONGEST, 1],
            6 => [1, 1],
            _ => [(); 2].map(|()| 2 + random.below(LONGEST - 1)),
        };
        let positions = [0, 1].map(|sequence| lengths[sequence]..lengths[sequence] + new[sequence]);
        lengths = [0, 1].map(|sequence| lengths[sequence] + new[sequence]);
        for layer in &layers {
            let pass = pass(device, &mut random, shape, &layer.cache, &positions);
            let found = attend(&gpu, shape, layer, &pass, &table, &sinks, &context);
            check_rotation(shape, &pass, &found.queries, &angles, &context);
            if number + 2 >= PASSES {
                check_outputs(device, shape, layer, &pass, &found, &sinks, &context);
            }
        }
    }
}

/// Rows at some positions of both sequences, with random queries, keys and values.
fn pass(device: &Device, random: &mut Random, shape: Shape, cache: &TestCache, positions: &[Range<usize>; 2]) -> Pass {
    let of_sequence = |(sequence, positions): (usize, &Range<usize>)| {
        let slot = cache.slot(sequence);
        positions.clone().map(move |position| Row { token: Some(0), position: position as u32, slot })
    };
    let rows: Vec<Row> = positions.iter().enumerate().flat_map(of_sequence).collect();
    let row_words = device.upload(rows.iter().flat_map(|row| row.words()).collect());
    let qkv = random.values(rows.len() * shape.width(), 1.0);
    let qkv_buffer = device.upload_f32(&qkv);
    Pass { rows, row_words, qkv, qkv_buffer }
}

/// Appends the keys and values of a pass, and runs attention over the whole cache with every kernel.
fn attend(
    gpu: &crate::gpu::Gpu,
    shape: Shape,
    layer: &Layer,
    pass: &Pass,
    table: &Buffer,
    sinks: &[f32],
    context: &str,
) -> Found {
    let device = &gpu.device;
    let Shape { heads, head_dim, splits, .. } = shape;
    let (inputs, cache) = (pass.rows.len(), layer.cache.view());
    let words = inputs * heads * head_dim;
    let queries = poisoned(device, words);
    let sinks = device.upload_f32(sinks);
    let mut outs = Vec::new();
    let mut by = |limit: f64, launch: &dyn Fn(&Attention<'_>)| {
        let out = poisoned(device, words);
        let partials = poisoned(device, inputs * heads * splits * partial_words(head_dim));
        let (queries, rows, sinks, partials) = (&queries, &pass.row_words, &sinks, &partials);
        let reach = layer.reach;
        launch(&Attention { queries, rows, cache, sinks, out: &out, partials, splits, heads, reach, inputs });
        outs.push((limit, device.read_f32(&out).expect("reads")));
    };
    let pool = || [cache.pool.keys(), cache.pool.values()].map(|part| device.read(part).expect("reads"));
    // With one row per sequence, attention can also rotate and append. The resulting cache must equal that of `Rope`.
    let alone = (inputs == 2).then(|| {
        let unrotated = Unrotated { qkv: &pass.qkv_buffer, table };
        by(F32, &|attention| attention.launch_unrotated(gpu, unrotated));
        pool()
    });
    Rope { qkv: &pass.qkv_buffer, table, rows: &pass.row_words, cache, queries: &queries, heads, inputs }
        .launch(device);
    assert!(alone.is_none_or(|alone| alone == pool()), "{context}: the caches differ");
    by(F32, &|attention| attention.launch(gpu));
    let units = gpu.matrix_units().unwrap_or(MatrixUnits::EMULATED);
    for units in [None, Some(units)] {
        let gpu = gpu.clone().with_matrix_units(units);
        if let Some(most) = rows_per_tile(&gpu, cache.pool.row(), heads) {
            let words = row_tiles(&pass.rows, most);
            let (count, tiles) = (words.len() / ROW_TILE_WORDS, device.upload(words));
            let limit = if units.is_some_and(|units| !units.are_emulated()) { F16 } else { F32 };
            by(limit, &|attention| attention.launch_tiled(&gpu, &tiles, count));
        }
    }
    Found { queries: device.read_f32(&queries).expect("reads"), outs }
}

fn check_rotation(shape: Shape, pass: &Pass, queries: &[f32], angles: &[f32], context: &str) {
    let Shape { heads, head_dim, .. } = shape;
    let half = head_dim / 2;
    for (input, row) in pass.rows.iter().enumerate() {
        for head in 0..heads {
            let q = &pass.qkv[input * shape.width() + head * head_dim..][..head_dim];
            for i in 0..head_dim {
                let angle = 2 * (row.position as usize * half + i % half);
                let (cos, sin) = (f64::from(angles[angle]), f64::from(angles[angle + 1]));
                let partner = if i < half { -q[i + half] } else { q[i - half] };
                let expected = f64::from(q[i]) * cos + f64::from(partner) * sin;
                assert_close(queries[(input * heads + head) * head_dim + i], expected, 2.0, context);
            }
        }
    }
}

fn check_outputs(
    device: &Device,
    shape: Shape,
    layer: &Layer,
    pass: &Pass,
    found: &Found,
    sinks: &[f32],
    context: &str,
) {
    let Shape { heads, kv_heads, head_dim, .. } = shape;
    let cache = &layer.cache;
    let [keys, values] = [cache.pool.keys(), cache.pool.values()].map(|part| device.read(part).expect("reads"));
    for (input, row) in pass.rows.iter().enumerate() {
        let position = row.position as usize;
        let sequence = (0..2).find(|&sequence| cache.slot(sequence) == row.slot).expect("a sequence");
        for head in 0..heads {
            let read = |pool: &[u32], position: usize| {
                let first = cache.word(sequence, position, head / (heads / kv_heads));
                cache.pool.row().decode(&pool[first..][..cache.pool.row().words()])
            };
            let q = &found.queries[(input * heads + head) * head_dim..][..head_dim];
            let mut total = f64::from(sinks[head]).exp();
            let mut acc = vec![0.0; head_dim];
            for seen in (position + 1).saturating_sub(layer.reach)..=position {
                let key = read(&keys, seen);
                let score: f64 = q.iter().zip(&key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                let p = (score / (head_dim as f64).sqrt()).exp();
                total += p;
                for (acc, value) in acc.iter_mut().zip(read(&values, seen)) {
                    *acc += p * f64::from(value);
                }
            }
            for (i, acc) in acc.into_iter().enumerate() {
                let context = format!("{context} reach {} row {input} {row:?}", layer.reach);
                for (limit, out) in &found.outs {
                    assert_within(*limit, out[(input * heads + head) * head_dim + i], acc / total, 5.0, &context);
                }
            }
        }
    }
}

#[test]
fn equals_f64_for_every_head_shape() {
    // A software rasterizer takes seconds to compile each kernel, so each shape has either one split of the keys or three, not both.
    for (heads, kv_heads, head_dim, splits) in
        [(8, 1, 64, 3), (6, 2, 32, 1), (2, 2, 64, 1), (3, 1, 4, 3), (5, 5, 48, 3), (16, 2, 128, 1)]
    {
        check(Shape { heads, kv_heads, head_dim, format: CacheFormat::F32, splits });
    }
}

#[test]
fn equals_f64_for_every_cache_format() {
    for format in [CacheFormat::F16, CacheFormat::Q8_0] {
        for (heads, kv_heads, head_dim) in [(8, 1, 64), (6, 2, 32)] {
            check(Shape { heads, kv_heads, head_dim, format, splits: 2 });
        }
    }
}
