//! Measures the CPU kernels in bytes of weights or cache per second, to compare with the machine's memory bandwidth.
//!
//! `cargo bench -p cpu-kernels`. Groups have the names that `gptoss profile` uses for the operation that a kernel computes:
//!
//! | group | cases |
//! |---|---|
//! | `moe.gate_up` | 32 rows of an expert's matrix, one thread, on each instruction set; `moe.down` has rows of the same length |
//! | `attn.qkv` | 32 rows of a projection, as above, in Q8_0, F16 and F32 |
//! | `head` | the coarse copy of the head, from which greedy tokens are shortlisted |
//! | `attn.scores` | one key/value head on each instruction set, and all full layers with several memory layouts of the cache and numbers of threads |
//!
//! Each product of the first two groups reads weights from another part of a buffer of 256 MiB, which is larger than the caches of most
//! CPUs.

use std::fmt::Debug;
use std::hint::black_box;
use std::num::NonZero;
use std::thread::available_parallelism;

use cpu_kernels::{
    Blocks, Bound, CacheFormat, CoarseInputs, CoarseMatrix, Isa, KeyBlock, POSITIONS, PackedRows, Panel, PanelFormat,
    Pool, Queries, Shared, Storage, TILE, attend, attend_share, merge_shares, multiply_panel, multiply_prepared,
    multiply_small_batch, prepare_input,
};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::MmapMut;

#[path = "../../../benches/quick/mod.rs"]
mod quick;

const COLUMNS: usize = 2880;
const BUFFER: usize = 256 << 20;

/// gpt-oss-20b's query heads per key/value head, dimensions per head, key/value heads and full layers.
const GROUP: usize = 8;
const DIM: usize = 64;
const KV_HEADS: usize = 8;
const LAYERS: usize = 12;
/// Number of cached positions, and of their blocks.
const DEPTH: usize = 4096;
const BLOCKS: usize = DEPTH / POSITIONS;

/// Bytes that are valid weights in every format, without extreme exponents: subnormal products take a CPU ten times as long.
fn buffer() -> Vec<u8> {
    (0..BUFFER / 4)
        .flat_map(|i: usize| ((i.wrapping_mul(2_654_435_761) as u32 & 0x3f3f_3f3f) | 0x3030_3030).to_le_bytes())
        .collect()
}

/// How a tile of rows is multiplied by its inputs.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Streamed,
    Prepared,
    Tiled(PanelFormat),
}

/// A format's name, as on the command line.
fn name(format: impl Debug) -> String {
    format!("{format:?}").to_lowercase()
}

fn products(c: &mut Criterion) {
    let buffer = buffer();
    let dense = [Storage::Q8_0, Storage::F16, Storage::F32];
    for (operation, storages) in [("moe.gate_up", &[Storage::Mxfp4][..]), ("attn.qkv", &dense[..])] {
        let mut group = c.benchmark_group(operation);
        for &storage in storages {
            products_with(&mut group, storage, &buffer);
        }
        group.finish();
    }
}

/// Benchmarks every kernel for one format on a tile of rows.
fn products_with(group: &mut BenchmarkGroup<'_, WallTime>, storage: Storage, buffer: &[u8]) {
    let tile_bytes = TILE * COLUMNS / 32 * storage.block_bytes();
    group.throughput(Throughput::BytesDecimal(tile_bytes as u64));
    for (what, inputs, way) in [
        ("one input", 1, Way::Streamed),
        ("one prepared input", 1, Way::Prepared),
        ("two prepared inputs", 2, Way::Prepared),
        ("four inputs", 4, Way::Streamed),
        ("four prepared inputs", 4, Way::Prepared),
        ("panel of 10, f32", 10, Way::Tiled(PanelFormat::F32)),
        ("panel of 10, i16", 10, Way::Tiled(PanelFormat::I16)),
        ("panel of 64, f32", 64, Way::Tiled(PanelFormat::F32)),
        ("panel of 64, i16", 64, Way::Tiled(PanelFormat::I16)),
    ] {
        let suits = match way {
            Way::Prepared => storage == Storage::Mxfp4,
            Way::Tiled(PanelFormat::I16) => storage.is_quantized(),
            _ => true,
        };
        if !suits {
            continue;
        }
        for isa in Isa::all() {
            let x: Vec<Vec<f32>> =
                (0..inputs).map(|i| (0..COLUMNS).map(|j| ((i + j) % 17) as f32 - 8.0).collect()).collect();
            let few: Vec<&[f32]> = x.iter().map(Vec::as_slice).collect();
            let mut words = vec![0; inputs * COLUMNS];
            for (words, x) in words.chunks_exact_mut(COLUMNS).zip(&x) {
                prepare_input(isa, x, words);
            }
            let prepared: Vec<&[u32]> = words.chunks_exact(COLUMNS).collect();
            let mut panel = Panel::default();
            if let Way::Tiled(format) = way {
                let filling = panel.begin(isa, format, COLUMNS, inputs);
                for group in 0..filling.groups() {
                    // SAFETY: only this thread uses the buffers.
                    unsafe { filling.pack(group, |i| &x[i]) };
                }
            }
            let mut out = vec![0.0; inputs * TILE];
            let mut at = 0;
            group.bench_function(BenchmarkId::new(format!("{}, {what}", name(storage)), isa), |bencher| {
                bencher.iter(|| {
                    at = if at + 2 * tile_bytes > BUFFER { 0 } else { at + tile_bytes };
                    let rows = PackedRows::new(&buffer[at..at + tile_bytes], storage, COLUMNS);
                    match way {
                        Way::Streamed => multiply_small_batch(isa, rows, &few, &mut out),
                        Way::Prepared => multiply_prepared(isa, rows, &prepared, &mut out),
                        Way::Tiled(_) => multiply_panel(isa, rows, &panel, &mut out),
                    }
                    black_box(&mut out);
                });
            });
        }
    }
}

/// Estimates of a matrix's products from its coarse copy, and the construction of a copy.
fn coarse_copies(c: &mut Criterion) {
    const ROWS: usize = BUFFER / (COLUMNS / 32 * 34) / TILE * TILE;
    let buffer = buffer();
    let row_bytes = COLUMNS / 32 * Storage::Q8_0.block_bytes();
    let rows = |tile: usize| {
        PackedRows::new(&buffer[tile * TILE * row_bytes..(tile + 1) * TILE * row_bytes], Storage::Q8_0, COLUMNS)
    };
    let mut group = c.benchmark_group("head");
    for isa in Isa::all() {
        let mut coarse = CoarseMatrix::new(ROWS, COLUMNS);
        let (tiles, tile_bytes) = (coarse.tiles(), CoarseMatrix::bytes(TILE, COLUMNS));
        let mut tile = 0;
        let mut next = || {
            tile = (tile + 1) % tiles;
            tile
        };
        group.throughput(Throughput::BytesDecimal((TILE * row_bytes) as u64));
        group.bench_function(BenchmarkId::new("coarse copy made from q8_0", isa), |bencher| {
            let making = coarse.make();
            // SAFETY: only this thread uses the buffers.
            bencher.iter(|| unsafe { making.tile(isa, next(), rows(0)) });
        });
        group.throughput(Throughput::BytesDecimal(tile_bytes as u64));
        for (what, count) in [("one input", 1), ("four inputs", 4), ("ten inputs", 10)] {
            let x: Vec<f32> = (0..count * COLUMNS).map(|i| (i % 17) as f32 - 8.0).collect();
            let mut inputs = CoarseInputs::default();
            inputs.round(isa, &x, COLUMNS);
            let (mut estimates, mut bounds) = (vec![0.0; count * TILE], vec![Bound::default(); count]);
            group.bench_function(BenchmarkId::new(format!("coarse copy, {what}"), isa), |bencher| {
                bencher.iter(|| coarse.estimate(isa, next(), &inputs, black_box(&mut estimates), &mut bounds));
            });
        }
    }
    group.finish();
}

fn attention(c: &mut Criterion) {
    let mut group = c.benchmark_group("attn.scores");
    one_head(&mut group);
    full_layers(&mut group);
    group.finish();
}

/// A key/value head with its 8 query heads over 4096 cached positions: queries of one position, as in decoding, and of 8, as in prefill.
fn one_head(group: &mut BenchmarkGroup<'_, WallTime>) {
    for count in [1, 8] {
        for format in [CacheFormat::F32, CacheFormat::F16, CacheFormat::Q8_0] {
            let mut blocks = vec![vec![0; KeyBlock::bytes(format, DIM)]; DEPTH / POSITIONS];
            for position in 0..DEPTH {
                let value: Vec<f32> = (0..DIM).map(|d| ((position * 31 + d * 7) % 23) as f32 / 23.0).collect();
                KeyBlock::write(&mut blocks[position / POSITIONS], format, position % POSITIONS, &value, &value);
            }
            group.throughput(Throughput::BytesDecimal((blocks.len() * blocks[0].len()) as u64));
            let positions = if count == 1 { "position" } else { "positions" };
            let what = format!("one head, {}, {count} {positions} to {DEPTH}", name(format));
            for isa in Isa::all() {
                let q = vec![0.1; count * GROUP * DIM];
                let start = DEPTH - count;
                let stride = GROUP * DIM;
                let queries =
                    Queries { q: &q, stride, sinks: &[0.0; GROUP], head_dim: DIM, count, start, window: usize::MAX };
                let mut out = vec![0.0; q.len()];
                let mut scratch = Vec::new();
                let at = |i: usize| KeyBlock { format, head_dim: DIM, data: &blocks[i] };
                let cached = Blocks { start: 0, count: blocks.len(), at: &at };
                group.bench_function(BenchmarkId::new(&what, isa), |bencher| {
                    bencher.iter(|| attend(isa, &queries, &cached, black_box(&mut out), &mut scratch));
                });
            }
        }
    }
}

/// A memory layout of a layer's cache: `place` gives the number of a head's block among all blocks of the layer.
struct Layout {
    name: &'static str,
    huge_pages: bool,
    place: fn(usize, usize) -> usize,
}

const LAYOUTS: [Layout; 4] = [
    Layout { name: "each head contiguous", huge_pages: true, place: |block, head| head * BLOCKS + block },
    Layout { name: "pages in order", huge_pages: true, place: |block, head| block * KV_HEADS + head },
    Layout { name: "pages scattered", huge_pages: true, place: scattered },
    Layout { name: "pages scattered, small system pages", huge_pages: false, place: scattered },
];

/// The pages in a scattered order: steps of 29 modulo 64 visit each page once.
fn scattered(block: usize, head: usize) -> usize {
    block * 29 % BLOCKS * KV_HEADS + head
}

/// The cache of one layer, filled with 4096 positions.
fn cached(layout: &Layout, format: CacheFormat) -> MmapMut {
    let bytes = KeyBlock::bytes(format, DIM);
    let mut memory = MmapMut::map_anon(KV_HEADS * BLOCKS * bytes).expect("memory");
    // The system may refuse the advice, which only affects speed.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(if layout.huge_pages { Advice::HugePage } else { Advice::NoHugePage });
    for head in 0..KV_HEADS {
        for position in 0..DEPTH {
            let value: [f32; DIM] = std::array::from_fn(|d| ((position * 31 + d * 7 + head) % 23) as f32 / 23.0);
            let start = (layout.place)(position / POSITIONS, head) * bytes;
            KeyBlock::write(&mut memory[start..start + bytes], format, position % POSITIONS, &value, &value);
        }
    }
    memory
}

/// Attention of one position in all full layers, as in a decoding step, for each memory layout and number of threads. The layers have
/// 100 MB (F16) or 200 MB (F32), more than the caches of most CPUs.
fn full_layers(group: &mut BenchmarkGroup<'_, WallTime>) {
    let isa = Isa::best();
    let mut thread_counts = vec![1, available_parallelism().map_or(1, NonZero::get)];
    thread_counts.dedup();
    for format in [CacheFormat::F32, CacheFormat::F16] {
        let bytes = KeyBlock::bytes(format, DIM);
        group.throughput(Throughput::BytesDecimal((LAYERS * KV_HEADS * BLOCKS * bytes) as u64));
        for layout in &LAYOUTS {
            let layers: Vec<MmapMut> = (0..LAYERS).map(|_| cached(layout, format)).collect();
            for &threads in &thread_counts {
                let pool = Pool::new(threads);
                let q = vec![0.1; GROUP * DIM];
                let queries = Queries {
                    q: &q,
                    stride: q.len(),
                    sinks: &[0.0; GROUP],
                    head_dim: DIM,
                    count: 1,
                    start: DEPTH - 1,
                    window: usize::MAX,
                };
                let (shares, len) = (queries.shares(), queries.share_len());
                let mut results = vec![0.0; KV_HEADS * shares * len];
                let mut out = vec![0.0; KV_HEADS * q.len()];
                let mut scratch = vec![Vec::new(); threads];
                let mut layer = |memory: &MmapMut| {
                    let (results, scratch) = (Shared::new(&mut results), Shared::new(&mut scratch));
                    let all = Shared::new(&mut out);
                    pool.run(KV_HEADS * shares, &|task, thread| {
                        let (head, share) = (task / shares, task % shares);
                        let at = |block: usize| {
                            let start = (layout.place)(block, head) * bytes;
                            KeyBlock { format, head_dim: DIM, data: &memory[start..start + bytes] }
                        };
                        let blocks = Blocks { start: 0, count: BLOCKS, at: &at };
                        // SAFETY: each thread has its own scratch, and each task its own result.
                        let (result, own) = unsafe { (results.part(task * len, len), scratch.part(thread, 1)) };
                        attend_share(isa, &queries, &blocks, share, result, &mut own[0]);
                    });
                    pool.run(KV_HEADS, &|head, _| {
                        // SAFETY: each task has its own head, and each head its own results.
                        let (results, out) = unsafe {
                            (results.part(head * shares * len, shares * len), all.part(head * q.len(), q.len()))
                        };
                        merge_shares(&queries, results, out);
                    });
                };
                let what = format!("{LAYERS} layers, {}, {}", name(format), layout.name);
                group.bench_function(BenchmarkId::new(what, format!("{threads} threads")), |bencher| {
                    bencher.iter(|| layers.iter().for_each(&mut layer));
                });
                black_box(&out);
            }
        }
    }
}

criterion_group! {
    name = benches;
    config = quick::quick();
    targets = products, coarse_copies, attention
}
criterion_main!(benches);
