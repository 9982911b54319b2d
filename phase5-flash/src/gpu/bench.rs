//! Times every kernel with gpt-oss-20b's shapes and checks it against the host, variant by variant: what tuning is done with.
//!
//! Weights rotate through more memory than a last-level cache holds. A time is that of a replayed launch, its share of the
//! host's work included.

mod steps;

use std::time::{Duration, Instant};

use phase1_loading::{AttentionKind, Format, GptOssConfig, HostTensor, RopeConfig};
use phase2_forward::{Choice, ComputeDevice};
use phase3_kvcache::CacheType;

use super::GpuError;
use super::cache::Caches;
use super::device::{Buffer, Gpu};
use super::kernels::attention::Attention;
use super::kernels::codes::Codes;
use super::kernels::embed::embed;
use super::kernels::experts::{Down, Experts, GateUp};
use super::kernels::few::{Division, FEW, Few};
use super::kernels::gemm::Gemm;
use super::kernels::greedy::{STRIPE_WORDS, Successors};
use super::kernels::group::{GroupedExperts, TILE, TILE_WORDS, add_up, group, most_tiles};
use super::kernels::norm::norm;
use super::kernels::prefill::{self, rows_a_tile};
use super::kernels::project::{Cut, Project};
use super::kernels::rope::Rope;
use super::kernels::router::{self, Route};
use super::kernels::sample::{CUT_WORDS, DIGIT_WORDS, Filters, Sample, settings};
use super::layout::Matrix;
use super::rows::Row;

pub use steps::steps;

/// One kernel, in one variant.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// The kernel and what it works on.
    pub name: String,
    /// The variant.
    pub variant: String,
    /// Seconds a launch.
    pub seconds: f64,
    /// Bytes that a launch must read.
    pub bytes: usize,
    /// Tokens that a launch advances sequences by; 0 for a single kernel.
    pub tokens: usize,
    /// The largest error against the host, over the size of the terms added; `None` where nothing is compared.
    pub error: Option<f64>,
}

impl Measurement {
    /// Bytes a second, in units of 10⁹.
    pub fn gigabytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds / 1e9
    }

    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }
}

/// How much to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// gpt-oss-20b's shapes.
    Full,
    /// A layer that a software rasterizer gets through.
    Small,
    /// Every kernel once, on next to nothing.
    Least,
}

/// The dimensions measured with.
#[derive(Clone, Copy)]
struct Shape {
    hidden: usize,
    width: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    experts: usize,
    vocab: usize,
    /// Copies that weights rotate through.
    copies: usize,
    launches: usize,
    /// Times that the launches are repeated; the quickest counts.
    repeats: usize,
    depths: &'static [usize],
}

const FULL: Shape = Shape {
    hidden: 2880,
    width: 2880,
    heads: 64,
    kv_heads: 8,
    head_dim: 64,
    experts: 32,
    vocab: 201_088,
    copies: 8,
    launches: 96,
    repeats: 24,
    depths: &[1, 128, 4096, 16_384],
};

const SMALL: Shape = Shape {
    hidden: 288,
    width: 320,
    heads: 8,
    kv_heads: 2,
    head_dim: 64,
    experts: 8,
    vocab: 2051,
    copies: 2,
    launches: 3,
    repeats: 3,
    depths: &[1, 100, 700],
};

const LEAST: Shape = Shape {
    hidden: 32,
    width: 32,
    heads: 2,
    kv_heads: 1,
    head_dim: 32,
    experts: 4,
    vocab: 40,
    copies: 2,
    launches: 1,
    repeats: 1,
    depths: &[1, 100],
};

const CHOSEN: usize = 4;

/// Measures everything, and hands over each result as it comes. The first line describes the device.
///
/// # Errors
/// A device that is no GPU or fails.
pub fn run(
    device: &ComputeDevice,
    size: Size,
    describe: &mut dyn FnMut(&str),
    report: &mut dyn FnMut(&Measurement),
) -> Result<(), GpuError> {
    let gpu = Gpu::new(device)?;
    let shape = match size {
        Size::Full => FULL,
        Size::Small => SMALL,
        Size::Least => LEAST,
    };
    let (codes, plane) = (gpu.codes, gpu.plane);
    let gb = gpu.binding_bytes as f64 / 1e9;
    describe(&format!(
        "{}: planes of {plane}, bindings up to {gb:.2} GB, codes as {codes:?}, {}",
        device.name,
        gpu.client.name()
    ));
    let bench = Bench { gpu, shape };
    bench.projections(report)?;
    bench.experts(report)?;
    bench.router(report)?;
    bench.ends(report)?;
    bench.attention(report)?;
    bench.tiled(report)
}

struct Bench {
    gpu: Gpu,
    shape: Shape,
}

impl Bench {
    /// Seconds a launch: the best of a few replays of `launches` launches each.
    fn time(&self, launch: &dyn Fn(usize)) -> Result<f64, GpuError> {
        let client = &self.gpu.client;
        let failed = |error| GpuError::Device(format!("{error:?}"));
        let launches = self.shape.launches;
        client.graph_prepare().map_err(failed)?;
        (0..self.shape.copies).for_each(launch);
        client.start_capture().map_err(failed)?;
        (0..launches).for_each(launch);
        let graph = client.stop_capture().map_err(failed)?;
        let mut best = Duration::MAX;
        for _ in 0..self.shape.repeats {
            self.gpu.sync()?;
            let start = Instant::now();
            // SAFETY: the buffers of the captured launches are still alive.
            unsafe { graph.replay() }.map_err(failed)?;
            self.gpu.sync()?;
            best = best.min(start.elapsed());
        }
        Ok(best.as_secs_f64() / launches as f64)
    }

    fn tensor(&self, format: Format, shape: Vec<usize>, seed: &mut u64) -> HostTensor {
        let values = shape.iter().product::<usize>();
        let mut data = vec![0u8; format.row_bytes(values)];
        for bytes in data.chunks_mut(8) {
            let number = next(seed).to_le_bytes();
            bytes.copy_from_slice(&number[..bytes.len()]);
        }
        // Scales of one size.
        match format {
            Format::Mxfp4 => data.chunks_exact_mut(17).for_each(|block| block[0] = 121 + block[0] % 2),
            Format::Q8_0 => data.chunks_exact_mut(34).for_each(|block| {
                block[..2].copy_from_slice(&half::f16::from_f32(0.001).to_le_bytes());
            }),
            _ => {}
        }
        HostTensor::packed_rows(format, shape, data.into())
    }

    fn values(&self, count: usize, seed: &mut u64) -> Vec<f32> {
        (0..count).map(|_| (next(seed) >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    fn projections(&self, report: &mut dyn FnMut(&Measurement)) -> Result<(), GpuError> {
        let Shape { hidden, heads, kv_heads, head_dim, vocab, copies, .. } = self.shape;
        let q = heads * head_dim;
        let kinds = [
            ("qkv", q + 2 * kv_heads * head_dim, hidden, true, copies),
            ("attention out", hidden, q, false, copies),
            ("head", vocab, hidden, false, 1),
        ];
        let mut seed = 1;
        for (name, rows, columns, normalize, copies) in kinds {
            let host = self.tensor(Format::Q8_0, vec![rows, columns], &mut seed);
            let upload = |_| Matrix::upload(&self.gpu, name, &[&host]);
            let matrices = (0..copies).map(upload).collect::<Result<Vec<_>, _>>()?;
            let x = self.values(columns, &mut seed);
            let (x_buffer, norm) = (self.gpu.upload_f32(&x), self.gpu.upload_f32(&vec![1.0; columns]));
            let bias = self.gpu.upload_f32(&vec![0.0; rows]);
            let out = self.gpu.empty(rows);
            for (at_once, steps) in [(1, 1), (1, 4), (2, 1), (2, 2), (2, 4), (2, 8), (2, 16), (4, 1), (4, 2), (4, 4)] {
                let launch = |i: usize| {
                    Project {
                        matrix: &matrices[i % copies],
                        x: &x_buffer,
                        norm: normalize.then_some((&norm, 1e-5)),
                        bias: Some(&bias),
                        out: &out,
                        add: false,
                        inputs: 1,
                    }
                    .launch_cut(&self.gpu, Cut { rows: at_once, steps });
                };
                launch(0);
                let factor = if normalize { rms(&x).recip() } else { 1.0 };
                let found = self.gpu.read_f32(&out)?;
                let error = worst(&found, rows, |row| product(&host, row, &x, factor));
                report(&Measurement {
                    name: name.into(),
                    variant: format!("{steps} times {at_once} rows a cube"),
                    seconds: self.time(&launch)?,
                    bytes: matrices[0].bytes(),
                    tokens: 0,
                    error: Some(error),
                });
            }
        }
        Ok(())
    }

    fn experts(&self, report: &mut dyn FnMut(&Measurement)) -> Result<(), GpuError> {
        let Shape { hidden, width, experts, copies, .. } = self.shape;
        let mut seed = 2;
        let mut stack = |rows: usize, columns: usize| {
            let host = self.tensor(Format::Mxfp4, vec![experts, rows, columns], &mut seed);
            let weight = Matrix::upload(&self.gpu, "experts", &[&host])?;
            let bias = self.gpu.upload_f32(&vec![0.0; experts * rows]);
            Ok::<_, GpuError>((host, Experts { weight, bias }))
        };
        let ((gate_host, gate), (up_host, up)) = (stack(width, hidden)?, stack(width, hidden)?);
        let (down_host, down) = stack(hidden, width)?;
        let chosen: Vec<Vec<u32>> =
            (0..copies).map(|i| (0..CHOSEN).map(|j| ((i * CHOSEN + j) % experts) as u32).collect()).collect();
        let chosen_buffers: Vec<Buffer> = chosen.iter().map(|ids| self.gpu.upload(ids.clone())).collect();
        let logits: Vec<Buffer> = chosen.iter().map(|ids| self.gpu.upload_f32(&logits_for(ids, experts))).collect();
        let written = [CHOSEN; 2].map(|len| self.gpu.empty(len));
        let mut seed = 3;
        let x = self.values(hidden, &mut seed);
        let activations = self.values(CHOSEN * width, &mut seed);
        let weights = [0.4, 0.3, 0.2, 0.1];
        let (x_buffer, activations_buffer) = (self.gpu.upload_f32(&x), self.gpu.upload_f32(&activations));
        let weights_buffer = self.gpu.upload_f32(&weights);
        let mut variants = vec![self.gpu.codes, Codes::Less2];
        variants.dedup();
        for codes in variants {
            let gpu = Gpu { codes, ..self.gpu.clone() };
            for (rows, steps) in
                [(1, 1), (1, 4), (1, 8), (1, 16), (2, 1), (2, 2), (2, 4), (2, 8), (2, 16), (4, 1), (4, 4)]
            {
                let out = gpu.empty(CHOSEN * width);
                let launch = |i: usize| {
                    GateUp {
                        gate: &gate,
                        up: &up,
                        x: &x_buffer,
                        logits: &logits[i % copies],
                        experts,
                        chosen: &written[0],
                        weights: &written[1],
                        chosen_per_row: CHOSEN,
                        out: &out,
                        inputs: 1,
                    }
                    .launch_cut(&gpu, Cut { rows, steps });
                };
                launch(1);
                let found = gpu.read_f32(&out)?;
                let error = worst(&found, CHOSEN * width, |i| {
                    let row = chosen[1][i / width] as usize * width + i % width;
                    let (g, g_size) = product(&gate_host, row, &x, 1.0);
                    let (u, u_size) = product(&up_host, row, &x, 1.0);
                    let (g, u) = (g.min(7.0), u.clamp(-7.0, 7.0));
                    ((u + 1.0) * g / (1.0 + (-1.702 * g).exp()), 10.0 * (1.0 + g_size + u_size))
                });
                report(&Measurement {
                    name: "gate and up".into(),
                    variant: format!("{codes:?}, {steps} times 2 × {rows} rows a cube"),
                    seconds: self.time(&launch)?,
                    bytes: CHOSEN * (gate.weight.bytes() + up.weight.bytes()),
                    tokens: 0,
                    error: Some(error),
                });
            }
            for (rows, steps) in
                [(1, 1), (1, 4), (1, 8), (2, 1), (2, 2), (2, 4), (2, 6), (2, 8), (4, 1), (4, 2), (4, 4)]
            {
                let out = gpu.empty(hidden);
                let launch = |i: usize| {
                    Down {
                        down: &down,
                        x: &activations_buffer,
                        chosen: &chosen_buffers[i % copies],
                        weights: &weights_buffer,
                        chosen_per_row: CHOSEN,
                        out: &out,
                        inputs: 1,
                    }
                    .launch_cut(&gpu, Cut { rows, steps });
                };
                gpu.write(&out, vec![0; hidden]);
                launch(1);
                let found = gpu.read_f32(&out)?;
                let error = worst(&found, hidden, |row| {
                    (0..CHOSEN).fold((0.0, 0.0), |(sum, size), slot| {
                        let expert_row = chosen[1][slot] as usize * hidden + row;
                        let x = &activations[slot * width..][..width];
                        let (y, y_size) = product(&down_host, expert_row, x, f64::from(weights[slot]));
                        (sum + y, size + y_size)
                    })
                });
                report(&Measurement {
                    name: "down".into(),
                    variant: format!("{codes:?}, {steps} times {rows} rows a cube"),
                    seconds: self.time(&launch)?,
                    bytes: CHOSEN * down.weight.bytes(),
                    tokens: 0,
                    error: Some(error),
                });
            }
        }
        Ok(())
    }

    /// Products of several rows, by the kernel that reads weights once a row and by the tiled one.
    fn tiled(&self, report: &mut dyn FnMut(&Measurement)) -> Result<(), GpuError> {
        let Shape { hidden, width, experts, heads, kv_heads, head_dim, .. } = self.shape;
        let mut seed = 6;
        let rows = (heads + 2 * kv_heads) * head_dim;
        let dense_host = self.tensor(Format::Q8_0, vec![rows, hidden], &mut seed);
        let dense = Matrix::upload(&self.gpu, "dense", &[&dense_host])?;
        let mut stack = |rows: usize, columns: usize| {
            let host = self.tensor(Format::Mxfp4, vec![experts, rows, columns], &mut seed);
            let weight = Matrix::upload(&self.gpu, "experts", &[&host])?;
            Ok::<_, GpuError>(Experts { weight, bias: self.gpu.upload_f32(&vec![0.0; experts * rows]) })
        };
        let (gate, up, down) = (stack(width, hidden)?, stack(width, hidden)?, stack(hidden, width)?);
        for inputs in [2, 4, 10, 16, 32, 64, 128, 512] {
            let slots = inputs * CHOSEN;
            let mut seed = 7;
            let x = self.gpu.upload_f32(&self.values(inputs * hidden, &mut seed));
            let out = self.gpu.empty(inputs * rows.max(hidden));
            let again = self.gpu.empty(inputs * rows.max(hidden));
            let chosen: Vec<u32> = (0..inputs).flat_map(|_| distinct(experts, &mut seed)).collect();
            let logits: Vec<f32> = chosen.chunks(CHOSEN).flat_map(|ids| logits_for(ids, experts)).collect();
            let logits = self.gpu.upload_f32(&logits);
            let touched = (0..experts as u32).filter(|expert| chosen.contains(expert)).count();
            let chosen = self.gpu.upload(chosen);
            let weights = self.gpu.upload_f32(&vec![0.25; slots]);
            let (activations, products) = (self.gpu.empty(slots * width), self.gpu.empty(slots * hidden));
            let order = self.gpu.empty(slots);
            let tiles = self.gpu.empty(most_tiles(slots, experts, FEW) * TILE_WORDS as usize);
            let (matrix, bias, gpu) = (&dense, None, &self.gpu);
            let dense_single = |_| {
                Project { matrix, x: &x, norm: None, bias, out: &out, add: false, inputs }.launch(gpu);
            };
            let dense_tiled = |_| Gemm { matrix, x: &x, bias, out: &again, add: false, inputs }.launch(gpu);
            let (gate_ref, up_ref, down_ref) = (&gate, &up, &down);
            let gate_single = |_| {
                GateUp {
                    gate: gate_ref,
                    up: up_ref,
                    x: &x,
                    logits: &logits,
                    experts,
                    chosen: &chosen,
                    weights: &weights,
                    chosen_per_row: CHOSEN,
                    out: &activations,
                    inputs,
                }
                .launch(gpu);
            };
            let down_single = |_| {
                let (chosen, weights, x) = (&chosen, &weights, &activations);
                Down { down: down_ref, x, chosen, weights, chosen_per_row: CHOSEN, out: &out, inputs }.launch(gpu);
            };
            let grouped = GroupedExperts {
                gate: &gate,
                up: &up,
                down: &down,
                x: &x,
                order: &order,
                tiles: &tiles,
                activations: &activations,
                out: &products,
                chosen_per_row: CHOSEN,
                inputs,
            };
            let group_few = |_| group(gpu, &chosen, [slots, experts], FEW, &order, &tiles);
            let group_slots = |_| group(gpu, &chosen, [slots, experts], TILE, &order, &tiles);
            let gate_tiled = |_| grouped.launch_gate_up(gpu);
            let down_tiled = |_| {
                grouped.launch_down(gpu);
                add_up(gpu, &products, &weights, &again, [inputs, CHOSEN, hidden]);
            };
            let expert_bytes = touched * gate.weight.bytes();
            let (single, few) = (inputs <= 64, inputs <= 128);
            type Run<'a> = (&'a str, &'a str, &'a dyn Fn(usize), usize, usize, bool);
            let runs: [Run<'_>; 8] = [
                ("qkv", "row by row", &dense_single, dense.bytes(), rows * hidden, single),
                ("qkv", "tiled", &dense_tiled, dense.bytes(), rows * hidden, true),
                ("gate and up", "row by row", &gate_single, 2 * expert_bytes, 2 * CHOSEN * width * hidden, single),
                ("down", "row by row", &down_single, expert_bytes, CHOSEN * width * hidden, single),
                ("group", "tiles of 8", &group_few, slots * 4, 0, few),
                ("group", "tiles of 64", &group_slots, slots * 4, 0, true),
                ("gate and up", "tiled", &gate_tiled, 2 * expert_bytes, 2 * CHOSEN * width * hidden, true),
                ("down", "tiled", &down_tiled, expert_bytes, CHOSEN * width * hidden, true),
            ];
            let mut measure = |name: &str, variant: &str, launch: &dyn Fn(usize), bytes, products: usize| {
                let seconds = self.time(launch)?;
                let teraflops = 2.0 * (products * inputs) as f64 / seconds / 1e12;
                report(&Measurement {
                    name: format!("{name}, {inputs} rows"),
                    variant: format!("{variant}, {teraflops:.2} TFLOP/s"),
                    seconds,
                    bytes,
                    tokens: 0,
                    error: None,
                });
                Ok::<_, GpuError>(())
            };
            for (name, variant, launch, bytes, products, wanted) in runs {
                if wanted {
                    measure(name, variant, launch, bytes, products)?;
                }
            }
            if few {
                group_few(0);
                for (shares, ahead) in [(8, 1), (8, 2), (12, 1)] {
                    let division = Division { shares, ahead };
                    let variant = format!("few, {shares} shares, {ahead} ahead");
                    let dense_few = |_| {
                        Few { matrix, x: &x, bias, out: &again, add: false, inputs }.launch_divided(gpu, division);
                    };
                    let gate_few = |_| grouped.launch_few_gate_up(gpu, division);
                    let down_few = |_| {
                        grouped.launch_few_down(gpu, division);
                        add_up(gpu, &products, &weights, &again, [inputs, CHOSEN, hidden]);
                    };
                    measure("qkv", &variant, &dense_few, dense.bytes(), rows * hidden)?;
                    measure("gate and up", &variant, &gate_few, 2 * expert_bytes, 2 * CHOSEN * width * hidden)?;
                    measure("down", &variant, &down_few, expert_bytes, CHOSEN * width * hidden)?;
                }
            }
        }
        // What unpacking costs: the same product in every format.
        let inputs = 512;
        let x = self.gpu.upload_f32(&self.values(inputs * hidden, &mut seed));
        let out = self.gpu.empty(inputs * rows);
        for format in [Format::F32, Format::F16, Format::Q8_0, Format::Mxfp4] {
            let host = self.tensor(format, vec![rows, hidden], &mut seed);
            let matrix = Matrix::upload(&self.gpu, "dense", &[&host])?;
            let launch =
                |_| Gemm { matrix: &matrix, x: &x, bias: None, out: &out, add: false, inputs }.launch(&self.gpu);
            let seconds = self.time(&launch)?;
            let teraflops = 2.0 * (rows * hidden * inputs) as f64 / seconds / 1e12;
            report(&Measurement {
                name: format!("qkv, {inputs} rows, {format:?}"),
                variant: format!("tiled, {teraflops:.2} TFLOP/s"),
                seconds,
                bytes: matrix.bytes(),
                tokens: 0,
                error: None,
            });
        }
        Ok(())
    }

    fn router(&self, report: &mut dyn FnMut(&Measurement)) -> Result<(), GpuError> {
        let Shape { hidden, experts, .. } = self.shape;
        let mut seed = 4;
        let (x, weight) = (self.values(hidden, &mut seed), self.values(experts * hidden, &mut seed));
        let [normed, logits, chosen, weights] = [hidden, experts, CHOSEN, CHOSEN].map(|len| self.gpu.empty(len));
        let (x_buffer, weight_buffer) = (self.gpu.upload_f32(&x), self.gpu.upload_f32(&weight));
        let (norm, bias) = (self.gpu.upload_f32(&vec![1.0; hidden]), self.gpu.upload_f32(&vec![0.0; experts]));
        let route = Route {
            x: &x_buffer,
            norm: &norm,
            eps: 1e-5,
            weight: &weight_buffer,
            bias: &bias,
            normed: &normed,
            logits: &logits,
            hidden,
            experts,
            inputs: 1,
        };
        let choice = router::Choice { chosen: &chosen, weights: &weights, per_row: CHOSEN };
        let host = HostTensor::packed_rows(Format::F32, vec![experts, hidden], Format::F32.encode(&weight).into());
        let variants: [(&str, &dyn Fn(usize)); 2] = [
            ("one cube, with the choice", &|_| route.launch(&self.gpu, &choice)),
            ("a cube an expert", &|_| route.launch_logits(&self.gpu)),
        ];
        for (variant, launch) in variants {
            launch(0);
            let found = self.gpu.read_f32(&logits)?;
            let error = worst(&found, experts, |row| product(&host, row, &x, rms(&x).recip()));
            report(&Measurement {
                name: "router".into(),
                variant: variant.into(),
                seconds: self.time(launch)?,
                bytes: 4 * experts * hidden,
                tokens: 0,
                error: Some(error),
            });
        }
        Ok(())
    }

    /// What comes before the layers and after the head.
    fn ends(&self, report: &mut dyn FnMut(&Measurement)) -> Result<(), GpuError> {
        let Shape { hidden, vocab, .. } = self.shape;
        let gpu = &self.gpu;
        let mut seed = 9;
        let table = Matrix::upload(gpu, "embedding", &[&self.tensor(Format::Q8_0, vec![vocab, hidden], &mut seed)])?;
        let rows = gpu.upload(Row { token: 1, position: 0, slot: 0 }.words().into());
        let (x, normed) = (gpu.empty(hidden), gpu.empty(hidden));
        let (weight, picks) = (gpu.upload_f32(&vec![1.0; hidden]), gpu.upload(vec![0]));
        let logits = gpu.upload_f32(&self.values(vocab, &mut seed));
        let (stripes, token) = (gpu.empty(STRIPE_WORDS), gpu.empty(1));
        let embed_row = |_| embed(gpu, &table, &rows, &x, 1);
        let norm_row = |_| norm(gpu, &x, &picks, &weight, 1e-5, &normed, [1, hidden]);
        let (stripes, tokens) = (&stripes, &token);
        let successors = || Successors { logits: &logits, vocab, stripes, rows: &rows, tokens, inputs: 1 };
        let likeliest = |_| successors().launch_greedy(gpu);
        let choice = Choice { temperature: 1.0, top_k: 50, top_p: 0.9, min_p: 0.0 };
        let chosen = gpu.upload(settings(choice).to_vec());
        let (digits, cuts) = (gpu.empty(DIGIT_WORDS), gpu.empty(CUT_WORDS));
        let draws = gpu.upload_f32(&vec![0.5; 1 << 12]);
        let draw = |filters| {
            let (settings, draws, digits, cuts) = (&chosen, &draws, &digits, &cuts);
            Sample { successors: successors(), settings, draws, digits, cuts, filters }.launch(gpu);
        };
        let [plain, top_p, both] =
            [(false, false), (false, true), (true, true)].map(|(top_k, top_p)| Filters { top_k, top_p });
        type Run<'a> = (&'a str, &'a dyn Fn(usize), usize);
        let runs: [Run<'_>; 6] = [
            ("embed", &embed_row, hidden),
            ("norm", &norm_row, 4 * hidden),
            ("greedy", &likeliest, 4 * vocab),
            ("draw", &|_| draw(plain), 8 * vocab),
            ("draw, top-p", &|_| draw(top_p), 40 * vocab),
            ("draw, top-k and top-p", &|_| draw(both), 72 * vocab),
        ];
        for (name, launch, bytes) in runs {
            report(&Measurement {
                name: name.into(),
                variant: "one row".into(),
                seconds: self.time(launch)?,
                bytes,
                tokens: 0,
                error: None,
            });
        }
        Ok(())
    }

    fn attention(&self, report: &mut dyn FnMut(&Measurement)) -> Result<(), GpuError> {
        let Shape { heads, kv_heads, head_dim, depths, .. } = self.shape;
        let config = GptOssConfig {
            hidden: 32,
            expert_width: 32,
            heads,
            kv_heads,
            head_dim,
            experts: 1,
            experts_per_token: 1,
            vocab: 1,
            context_length: 1 << 17,
            rms_eps: 1e-5,
            sliding_window: 128,
            attention: vec![AttentionKind::Full],
            rope: RopeConfig { theta: 1e4, factor: 1.0, original_context: 4096 },
        };
        let mut seed = 5;
        let width = (heads + 2 * kv_heads) * head_dim;
        let deepest = depths.iter().max().copied().unwrap_or(1);
        let rotations = vec![0.5; deepest * head_dim];
        let (table, sinks) = (self.gpu.upload_f32(&rotations), self.gpu.upload_f32(&vec![0.0; heads]));
        let most_splits = 128;
        let shares = self.gpu.empty(most_splits * heads * (head_dim + 2));
        for kind in CacheType::ALL {
            let mut caches = Caches::new(&self.gpu, &config, kind, 512)?;
            caches.reserve(&self.gpu, 0, deepest)?;
            let (queries, out) = (self.gpu.empty(512 * heads * head_dim), self.gpu.empty(512 * heads * head_dim));
            let mut rope = |positions: std::ops::Range<usize>, row_words: &Buffer| {
                let qkv = self.gpu.upload_f32(&self.values(positions.len() * width, &mut seed));
                let rope = || {
                    Rope {
                        qkv: &qkv,
                        table: &table,
                        rows: row_words,
                        cache: caches.layer(0),
                        queries: &queries,
                        heads,
                        shape: caches.row,
                        inputs: positions.len(),
                    }
                    .launch(&self.gpu);
                };
                rope();
                (positions.len() == 1).then(|| self.time(&|_| rope())).transpose()
            };
            for start in (0..deepest).step_by(512) {
                let positions = start..(start + 512).min(deepest);
                let rows = positions.clone().map(|p| Row { token: 0, position: p as u32, slot: 0 });
                let row_words = self.gpu.upload(rows.flat_map(|row| row.words()).collect());
                rope(positions, &row_words)?;
            }
            for &depth in depths {
                let row_words = self.gpu.upload(Row { token: 0, position: depth as u32 - 1, slot: 0 }.words().into());
                let seconds = rope(depth - 1..depth, &row_words)?.unwrap_or(f64::NAN);
                if depth == 1 {
                    report(&Measurement {
                        name: format!("rotate and append, {kind}"),
                        variant: "one row".into(),
                        seconds,
                        bytes: width * 4,
                        tokens: 0,
                        error: None,
                    });
                }
                if depth > 1 {
                    self.attention_of_rows(&caches, depth, &queries, &sinks, &out, report)?;
                }
                let mut reference: Option<Vec<f32>> = None;
                for splits in [1, 2, 8, 16, 32, 64, 128] {
                    if splits > depth.div_ceil(64) {
                        continue;
                    }
                    let launch = |_| {
                        Attention {
                            queries: &queries,
                            rows: &row_words,
                            cache: caches.layer(0),
                            sinks: &sinks,
                            out: &out,
                            shares: &shares,
                            splits,
                            heads,
                            shape: caches.row,
                            reach: usize::MAX,
                            inputs: 1,
                        }
                        .launch(&self.gpu);
                    };
                    launch(0);
                    // One share is checked by the tests; more must give the same.
                    let found = self.gpu.read_f32(&out)?[..heads * head_dim].to_vec();
                    let expected = reference.get_or_insert_with(|| found.clone());
                    let error = found.iter().zip(expected).map(|(a, b)| f64::from((a - *b).abs())).fold(0.0, f64::max);
                    report(&Measurement {
                        name: format!("attention, {kind}, depth {depth}"),
                        variant: format!("{splits} shares"),
                        seconds: self.time(&launch)?,
                        bytes: 2 * depth * kv_heads * caches.row.words() * 4,
                        tokens: 0,
                        error: Some(error),
                    });
                }
            }
        }
        Ok(())
    }

    /// Attention of the last 512 of `depth` positions, row by row and in tiles of rows.
    fn attention_of_rows(
        &self,
        caches: &Caches,
        depth: usize,
        queries: &Buffer,
        sinks: &Buffer,
        out: &Buffer,
        report: &mut dyn FnMut(&Measurement),
    ) -> Result<(), GpuError> {
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        let (kind, inputs) = (caches.row.kind, depth.min(512));
        let row = |position: usize| Row { token: 0, position: position as u32, slot: 0 };
        let rows: Vec<Row> = (depth - inputs..depth).map(row).collect();
        let row_words = self.gpu.upload(rows.iter().flat_map(|row| row.words()).collect());
        let most = rows_a_tile(heads, caches.row).expect("heads that fit");
        let words = prefill::tiles(&rows, most);
        let count = words.len() / prefill::TILE_WORDS;
        let tiles = self.gpu.upload(words);
        for (what, reach) in [("", usize::MAX), (" window 128,", 128)] {
            let attention = Attention {
                queries,
                rows: &row_words,
                cache: caches.layer(0),
                sinks,
                out,
                shares: out,
                splits: 1,
                heads,
                shape: caches.row,
                reach,
                inputs,
            };
            attention.launch(&self.gpu);
            let expected = self.gpu.read_f32(out)?;
            self.gpu.write(out, vec![f32::NAN.to_bits(); out.len]);
            attention.launch_tiles(&self.gpu, &tiles, count);
            let found = self.gpu.read_f32(out)?;
            let values = inputs * heads * head_dim;
            let error = worst(&found, values, |i| (f64::from(expected[i]), 1.0));
            let pairs: usize = rows.iter().map(|row| (row.position as usize + 1).min(reach)).sum();
            let (single, tiled) =
                (|_| attention.launch(&self.gpu), |_| attention.launch_tiles(&self.gpu, &tiles, count));
            type Run<'a> = (&'a str, &'a dyn Fn(usize), Option<f64>);
            let runs: [Run<'_>; 2] = [("row by row", &single, None), ("tiles of rows", &tiled, Some(error))];
            for (variant, launch, error) in runs {
                let seconds = self.time(launch)?;
                let teraflops = (4 * heads * head_dim * pairs) as f64 / seconds / 1e12;
                report(&Measurement {
                    name: format!("attention, {kind},{what} {inputs} rows to {depth}"),
                    variant: format!("{variant}, {teraflops:.2} TFLOP/s"),
                    seconds,
                    bytes: 2 * depth.min(reach.saturating_add(inputs)) * kv_heads * caches.row.words() * 4,
                    tokens: 0,
                    error,
                });
            }
        }
        Ok(())
    }
}

fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn rms(x: &[f32]) -> f64 {
    (x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64 + 1e-5).sqrt()
}

/// One row's product in f64, times `factor`, and the sum of its terms' sizes.
fn product(weights: &HostTensor, row: usize, x: &[f32], factor: f64) -> (f64, f64) {
    let mut values = vec![0.0; weights.row_len()];
    weights.decode_row(row, &mut values);
    let terms = values.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x) * factor);
    terms.fold((0.0, 1e-30), |(sum, size), term| (sum + term, size + term.abs()))
}

/// The largest error of a sample of outputs, over the size of their terms; infinite if one is not a number.
fn worst(found: &[f32], len: usize, expected: impl Fn(usize) -> (f64, f64)) -> f64 {
    let step = (len / 61).max(1);
    let sample = (0..len).step_by(step).chain([len - 1]);
    let error = |i: usize| {
        let (expected, size) = expected(i);
        let error = (f64::from(found[i]) - expected).abs() / size;
        if error.is_finite() { error } else { f64::INFINITY }
    };
    sample.map(error).fold(0.0, f64::max)
}

/// Logits that make the router choose `ids`, in this order.
fn logits_for(ids: &[u32], experts: usize) -> Vec<f32> {
    let place = |expert: u32| ids.iter().position(|&id| id == expert);
    (0..experts as u32).map(|expert| place(expert).map_or(-9.0, |place| -(place as f32))).collect()
}

/// As many different experts as a token gets.
fn distinct(experts: usize, seed: &mut u64) -> Vec<u32> {
    let mut ids: Vec<u32> = Vec::new();
    while ids.len() < CHOSEN {
        let id = (next(seed) % experts as u64) as u32;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}
