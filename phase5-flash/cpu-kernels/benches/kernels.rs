//! Every kernel on every instruction set of this machine, one thread: bytes of weights or of cache a second, so that a figure
//! can be held against the machine's bandwidth.
//!
//! `cargo bench -p cpu-kernels`. Weights are read from a buffer far larger than the caches, another part of it each time.

use std::hint::black_box;

use cpu_kernels::{
    Blocks, Bound, CacheFormat, CoarseInputs, Isa, KeyBlock, POSITIONS, PackedRows, Panel, PanelFormat, Queries,
    Screen, Storage, TILE, attend, multiply_few, multiply_panel, multiply_strips, strip,
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const COLUMNS: usize = 2880;
const BUFFER: usize = 256 << 20;

/// Bytes that are sane weights in every format: no exponent is extreme.
fn buffer() -> Vec<u8> {
    (0..BUFFER / 4)
        .flat_map(|i: usize| ((i.wrapping_mul(2_654_435_761) as u32 & 0x3f3f_3f3f) | 0x3000_3000).to_le_bytes())
        .collect()
}

/// How a tile of rows meets its inputs.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Streamed,
    Strips,
    Tiled(PanelFormat),
}

fn products(c: &mut Criterion) {
    let buffer = buffer();
    for (name, inputs, way) in [
        ("one input", 1, Way::Streamed),
        ("one strip", 1, Way::Strips),
        ("two strips", 2, Way::Strips),
        ("four inputs", 4, Way::Streamed),
        ("four strips", 4, Way::Strips),
        ("panel of 10, f32", 10, Way::Tiled(PanelFormat::F32)),
        ("panel of 10, i16", 10, Way::Tiled(PanelFormat::I16)),
        ("panel of 64, f32", 64, Way::Tiled(PanelFormat::F32)),
        ("panel of 64, i16", 64, Way::Tiled(PanelFormat::I16)),
    ] {
        let mut group = c.benchmark_group(name);
        for storage in [Storage::Mxfp4, Storage::Q8_0, Storage::F16, Storage::F32] {
            let suits = match way {
                Way::Strips => storage == Storage::Mxfp4,
                Way::Tiled(PanelFormat::I16) => storage.is_quantized(),
                _ => true,
            };
            if !suits {
                continue;
            }
            let tile_bytes = TILE * COLUMNS / 32 * storage.block_bytes();
            group.throughput(Throughput::Bytes(tile_bytes as u64));
            for isa in Isa::all() {
                let x: Vec<Vec<f32>> =
                    (0..inputs).map(|i| (0..COLUMNS).map(|j| ((i + j) % 17) as f32 - 8.0).collect()).collect();
                let few: Vec<&[f32]> = x.iter().map(Vec::as_slice).collect();
                let mut words = vec![0; inputs * COLUMNS];
                for (words, x) in words.chunks_exact_mut(COLUMNS).zip(&x) {
                    strip(isa, x, words);
                }
                let strips: Vec<&[u32]> = words.chunks_exact(COLUMNS).collect();
                let mut panel = Panel::default();
                if let Way::Tiled(format) = way {
                    let filling = panel.begin(isa, format, COLUMNS, inputs);
                    for group in 0..filling.groups() {
                        // SAFETY: one thread.
                        unsafe { filling.pack(group, |i| &x[i]) };
                    }
                }
                let mut out = vec![0.0; inputs * TILE];
                let mut at = 0;
                group.bench_function(BenchmarkId::new(format!("{storage:?}"), isa), |bencher| {
                    bencher.iter(|| {
                        at = if at + 2 * tile_bytes > BUFFER { 0 } else { at + tile_bytes };
                        let rows = PackedRows::new(&buffer[at..at + tile_bytes], storage, COLUMNS);
                        match way {
                            Way::Streamed => multiply_few(isa, rows, &few, &mut out),
                            Way::Strips => multiply_strips(isa, rows, &strips, &mut out),
                            Way::Tiled(_) => multiply_panel(isa, rows, &panel, &mut out),
                        }
                        black_box(&mut out);
                    });
                });
            }
        }
        group.finish();
    }
}

/// Estimates of a matrix's products from its screen, and making one.
fn screens(c: &mut Criterion) {
    const ROWS: usize = BUFFER / (COLUMNS / 32 * 34) / TILE * TILE;
    let buffer = buffer();
    let row_bytes = COLUMNS / 32 * Storage::Q8_0.block_bytes();
    let rows = |tile: usize| {
        PackedRows::new(&buffer[tile * TILE * row_bytes..(tile + 1) * TILE * row_bytes], Storage::Q8_0, COLUMNS)
    };
    for isa in Isa::all() {
        let mut screen = Screen::new(ROWS, COLUMNS);
        let (tiles, tile_bytes) = (screen.tiles(), Screen::bytes(TILE, COLUMNS));
        let mut tile = 0;
        let mut next = || {
            tile = (tile + 1) % tiles;
            tile
        };
        let mut group = c.benchmark_group("a screen");
        group.throughput(Throughput::Bytes((TILE * row_bytes) as u64));
        group.bench_function(BenchmarkId::new("made of Q8_0", isa), |bencher| {
            let making = screen.make();
            // SAFETY: one thread.
            bencher.iter(|| unsafe { making.tile(isa, next(), rows(0)) });
        });
        group.throughput(Throughput::Bytes(tile_bytes as u64));
        for count in [1, 4, 10] {
            let x: Vec<f32> = (0..count * COLUMNS).map(|i| (i % 17) as f32 - 8.0).collect();
            let mut inputs = CoarseInputs::default();
            inputs.round(isa, &x, COLUMNS);
            let (mut estimates, mut bounds) = (vec![0.0; count * TILE], vec![Bound::default(); count]);
            group.bench_function(BenchmarkId::new(format!("inputs {count}"), isa), |bencher| {
                bencher.iter(|| screen.estimate(isa, next(), &inputs, black_box(&mut estimates), &mut bounds));
            });
        }
        group.finish();
    }
}

/// A key/value head with its 8 query heads over 4096 positions: one position, as in decoding, and 8, as in prefill.
fn attention(c: &mut Criterion) {
    const DIM: usize = 64;
    const HEADS: usize = 8;
    const DEPTH: usize = 4096;
    for count in [1, 8] {
        let mut group = c.benchmark_group(format!("attention of {count} positions to {DEPTH}"));
        for format in [CacheFormat::F32, CacheFormat::F16, CacheFormat::Q8_0] {
            let mut blocks = vec![vec![0; KeyBlock::bytes(format, DIM)]; DEPTH / POSITIONS];
            for position in 0..DEPTH {
                let value: Vec<f32> = (0..DIM).map(|d| ((position * 31 + d * 7) % 23) as f32 / 23.0).collect();
                KeyBlock::write(&mut blocks[position / POSITIONS], format, position % POSITIONS, &value, &value);
            }
            group.throughput(Throughput::Bytes((blocks.len() * blocks[0].len()) as u64));
            for isa in Isa::all() {
                let q = vec![0.1; count * HEADS * DIM];
                let start = DEPTH - count;
                let stride = HEADS * DIM;
                let queries =
                    Queries { q: &q, stride, sinks: &[0.0; HEADS], head_dim: DIM, count, start, window: usize::MAX };
                let mut out = vec![0.0; q.len()];
                let mut scratch = Vec::new();
                let at = |i: usize| KeyBlock { format, head_dim: DIM, data: &blocks[i] };
                let cached = Blocks { start: 0, count: blocks.len(), at: &at };
                group.bench_function(BenchmarkId::new(format!("{format:?}"), isa), |bencher| {
                    bencher.iter(|| attend(isa, &queries, &cached, black_box(&mut out), &mut scratch));
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, products, screens, attention);
criterion_main!(benches);
