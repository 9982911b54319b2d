//! Phase 5's engine on a GPU: any number of sequences advance together, in passes of up to [`MAX_ROWS`] rows.

use std::ops::{ControlFlow, Range};

use burn::tensor::{Tensor, TensorData};
use gptoss_reference::RopeMode;
use phase1_loading::{AttentionKind, Checkpoint, GptOssConfig};
use phase2_forward::{
    Chunk, ComputeDevice, Continuation, Engine, EngineError, LogitsFor, NoProbe, Operation, Probe, SequenceId,
    Snapshot, Span, check_batch,
};
use phase3_kvcache::CacheType;
use phase3_kvcache::gate::ReadCache;

use super::GpuError;
use super::cache::{Caches, PAGE};
use super::device::{Buffer, Gpu};
use super::kernels::attention::Attention;
use super::kernels::embed::embed;
use super::kernels::experts::{Down, GateUp};
use super::kernels::few::{Division, FEW, Few};
use super::kernels::gemm::Gemm;
use super::kernels::group::{GroupedExperts, TILE, TILE_WORDS, add_up, group, most_tiles};
use super::kernels::norm::norm;
use super::kernels::prefill::{self, QUERIES, rows_a_tile};
use super::kernels::project::Project;
use super::kernels::rope::Rope;
use super::kernels::router::{Choice, Route};
use super::layout::Matrix;
use super::resident::Resident;
use super::rows::{ROW_WORDS, Row};
use super::weights::{Layer, Weights};

/// The most new tokens that one pass over the layers takes.
pub(crate) const MAX_ROWS: usize = 512;
/// Rows up to which each has cubes of its own, which find the weights that their neighbours read in the cache.
const SINGLE_ROWS: usize = 15;
/// Rows from which on a product is tiled: below, its weights go from memory to registers, for a few rows at a time.
const TILED_ROWS: usize = 24;
/// Rows an expert, on average, from which on experts are tiled.
const TILED_SLOTS: usize = 16;
/// Positions that the table of rotations holds at first; it doubles when a sequence outgrows it.
const FIRST_POSITIONS: usize = 4096;
/// Cubes that keep a large GPU busy: on an H100, 32 shares for 8 key/value heads were the fastest at depths 4096 and 16384.
const BUSY_CUBES: usize = 256;

/// What can be chosen about the engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// How keys and values are stored.
    pub kv: CacheType,
}

/// A model on a GPU, with the caches of its sequences.
pub struct GpuEngine {
    pub(super) gpu: Gpu,
    pub(super) config: GptOssConfig,
    burn: burn::tensor::Device,
    weights: Weights,
    pub(super) caches: Caches,
    /// (cosine, sine) of every position so far and pair of dimensions.
    rotations: Buffer,
    positions: usize,
    pub(super) scratch: Scratch,
    /// How often a buffer that a step reads has been replaced: captured steps are void then.
    pub(super) moves: u64,
    pub(super) resident: Resident,
}

/// Buffers of one pass, for up to `rows` rows.
pub(super) struct Scratch {
    rows: usize,
    pub row_words: Buffer,
    row_tiles: Buffer,
    picks: Buffer,
    x: Buffer,
    qkv: Buffer,
    queries: Buffer,
    shares: Buffer,
    mixed: Buffer,
    normed: Buffer,
    router_logits: Buffer,
    chosen: Buffer,
    weights: Buffer,
    activations: Buffer,
    /// The slots by expert, the tiles over them, and their products.
    order: Buffer,
    tiles: Buffer,
    products: Buffer,
    /// 0, 1, 2 …
    pub every_row: Buffer,
}

impl GpuEngine {
    /// Puts a checkpoint's weights on a GPU; `progress` hears (bytes so far, bytes in all).
    ///
    /// # Errors
    /// A device that is no GPU or lacks a limit, or weights that no reader agrees on.
    pub fn load(
        checkpoint: &Checkpoint,
        device: &ComputeDevice,
        mode: RopeMode,
        options: Options,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<GpuEngine, GpuError> {
        Self::load_on(Gpu::new(device)?, device.burn.clone(), checkpoint, mode, options, progress)
    }

    pub(super) fn load_on(
        gpu: Gpu,
        burn: burn::tensor::Device,
        checkpoint: &Checkpoint,
        mode: RopeMode,
        options: Options,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<GpuEngine, GpuError> {
        let config = checkpoint.config.clone();
        let weights = Weights::load(&gpu, checkpoint, mode, progress)?;
        let caches = Caches::new(&gpu, &config, options.kv, MAX_ROWS)?;
        let scratch = Scratch::new(&gpu, &config, 1);
        let (rotations, positions) = (gpu.empty(0), 0);
        let resident = Resident::default();
        gpu.sync()?;
        let mut engine =
            GpuEngine { gpu, config, burn, weights, caches, rotations, positions, scratch, moves: 0, resident };
        engine.try_out()?;
        Ok(engine)
    }

    /// Compiles the kernels of a step and reads what they give, so that a device that lacks a limit is refused before any work.
    fn try_out(&mut self) -> Result<(), GpuError> {
        let sequence = SequenceId::MAX;
        let chunk = Chunk { sequence, tokens: &[0], logits: LogitsFor::Nothing };
        self.run(&[chunk], &mut NoProbe)?;
        self.caches.release(sequence);
        self.gpu.read(&self.scratch.x).map(|_| ())
    }

    /// Makes room for everything a batch adds.
    fn reserve(&mut self, batch: &[Chunk<'_>]) -> Result<(), GpuError> {
        for chunk in batch {
            let length = self.caches.length(chunk.sequence) + chunk.tokens.len();
            self.reserve_positions(chunk.sequence, length)?;
        }
        self.reserve_rows(batch.iter().map(|chunk| chunk.tokens.len()).sum::<usize>().min(MAX_ROWS));
        Ok(())
    }

    /// Makes room for a sequence to reach `length` positions.
    pub(super) fn reserve_positions(&mut self, sequence: SequenceId, length: usize) -> Result<(), GpuError> {
        if self.caches.reserve(&self.gpu, sequence, length)? {
            self.moves += 1;
        }
        if length > self.positions {
            self.positions = length.next_power_of_two().max(FIRST_POSITIONS);
            let rope = &self.weights.rope;
            let angles = (0..self.positions).flat_map(|p| rope.inverse_frequencies.iter().map(move |f| p as f32 * f));
            let table = angles.flat_map(|angle| [angle.cos() * rope.mscale, angle.sin() * rope.mscale]);
            self.rotations = self.gpu.upload(table.map(f32::to_bits).collect());
            self.moves += 1;
        }
        Ok(())
    }

    /// Makes room for passes of `rows` rows.
    pub(super) fn reserve_rows(&mut self, rows: usize) {
        if rows > self.scratch.rows {
            self.scratch = Scratch::new(&self.gpu, &self.config, rows.next_power_of_two());
            self.moves += 1;
        }
    }

    /// Runs rows through all layers; the residual stream is in `scratch.x` then.
    fn pass(&self, rows: &[Row], probe: &mut dyn Probe) {
        self.gpu.write(&self.scratch.row_words, rows.iter().flat_map(|row| row.words()).collect());
        let keys = rows.iter().map(|row| row.position as usize + 1).max().unwrap_or(0);
        let tiles = rows_a_tile(self.config.heads, self.caches.row).map(|most| prefill::tiles(rows, most));
        // A tile of one row costs as much as one of four.
        let tiles = tiles.unwrap_or_default();
        let count = tiles.len() / prefill::TILE_WORDS;
        let tiled = count > 0 && 2 * count <= rows.len();
        if tiled {
            self.gpu.write(&self.scratch.row_tiles, tiles);
        }
        self.layers(rows.len(), keys, tiled.then_some(count), probe);
    }

    /// Runs the `n` rows that `scratch.row_words` describes through all layers; they see `keys` keys at most, and attend in
    /// `tiles` tiles that `scratch.row_tiles` describes, or each for itself.
    pub(super) fn layers(&self, n: usize, keys: usize, tiles: Option<usize>, probe: &mut dyn Probe) {
        let (gpu, scratch, config) = (&self.gpu, &self.scratch, &self.config);
        embed(gpu, &self.weights.embedding, &scratch.row_words, &scratch.x, n);
        let see = |probe: &mut dyn Probe, name: &dyn Fn() -> String, buffer: &Buffer, width| {
            probe.see(name, &gpu.tensor(buffer, [n, width]));
        };
        see(probe, &|| "embed".into(), &scratch.x, config.hidden);
        probe.done(Span { operation: Operation::Embed, layer: None, tokens: n, keys: 0 });
        for (number, layer) in self.weights.layers.iter().enumerate() {
            self.attention(number, layer, n, keys, tiles, probe);
            see(probe, &|| format!("layers.{number}.resid_attn"), &scratch.x, config.hidden);
            self.experts(number, layer, n, probe);
            see(probe, &|| format!("layers.{number}.router_logits"), &scratch.router_logits, config.experts);
            see(probe, &|| format!("layers.{number}.resid_mlp"), &scratch.x, config.hidden);
        }
    }

    fn attention(
        &self,
        number: usize,
        layer: &Layer,
        n: usize,
        keys: usize,
        tiles: Option<usize>,
        probe: &mut dyn Probe,
    ) {
        let (gpu, scratch, config) = (&self.gpu, &self.scratch, &self.config);
        let (heads, shape) = (config.heads, self.caches.row);
        let span = |operation, keys| Span { operation, layer: Some(number), tokens: n, keys };
        if n <= SINGLE_ROWS {
            Project {
                matrix: &layer.qkv,
                x: &scratch.x,
                norm: Some((&layer.attention_norm, config.rms_eps)),
                bias: Some(&layer.qkv_bias),
                out: &scratch.qkv,
                add: false,
                inputs: n,
            }
            .launch(gpu);
        } else {
            let shape = [n, config.hidden];
            let weight = &layer.attention_norm;
            norm(gpu, &scratch.x, &scratch.every_row, weight, config.rms_eps, &scratch.normed, shape);
            probe.done(span(Operation::AttentionNorm, 0));
            self.product(&layer.qkv, &scratch.normed, Some(&layer.qkv_bias), &scratch.qkv, false, n);
        }
        probe.done(span(Operation::Qkv, 0));
        Rope {
            qkv: &scratch.qkv,
            table: &self.rotations,
            rows: &scratch.row_words,
            cache: self.caches.layer(number),
            queries: &scratch.queries,
            heads,
            shape,
            inputs: n,
        }
        .launch(gpu);
        let reach = match layer.attention {
            AttentionKind::Sliding => config.sliding_window,
            AttentionKind::Full => usize::MAX,
        };
        let keys = keys.min(reach.saturating_add(n - 1));
        probe.done(span(Operation::CacheAppend, keys));
        let attention = Attention {
            queries: &scratch.queries,
            rows: &scratch.row_words,
            cache: self.caches.layer(number),
            sinks: &layer.sinks,
            out: &scratch.mixed,
            shares: &scratch.shares,
            splits: splits(config, tiles.unwrap_or(n), keys.min(reach)),
            heads,
            shape,
            reach,
            inputs: n,
        };
        match tiles {
            Some(count) => attention.launch_tiles(gpu, &scratch.row_tiles, count),
            None => attention.launch(gpu),
        }
        probe.done(span(Operation::Attention, keys));
        self.product(&layer.o, &scratch.mixed, Some(&layer.o_bias), &scratch.x, true, n);
        probe.done(span(Operation::AttentionOut, 0));
    }

    fn experts(&self, number: usize, layer: &Layer, n: usize, probe: &mut dyn Probe) {
        let (gpu, scratch, config) = (&self.gpu, &self.scratch, &self.config);
        let span = |operation| Span { operation, layer: Some(number), tokens: n, keys: 0 };
        let route = Route {
            x: &scratch.x,
            norm: &layer.mlp_norm,
            eps: config.rms_eps,
            weight: &layer.router,
            bias: &layer.router_bias,
            normed: &scratch.normed,
            logits: &scratch.router_logits,
            hidden: config.hidden,
            experts: config.experts,
            inputs: n,
        };
        if n <= SINGLE_ROWS {
            route.launch_logits(gpu);
            probe.done(span(Operation::Router));
            self.single_experts(layer, n);
            probe.done(span(Operation::GateUp));
            self.single_down(layer, n);
        } else {
            let per_row = config.experts_per_token;
            route.launch(gpu, &Choice { chosen: &scratch.chosen, weights: &scratch.weights, per_row });
            probe.done(span(Operation::Router));
            let slots = n * config.experts_per_token;
            let few = slots < TILED_SLOTS * config.experts;
            let tile = if few { FEW } else { TILE };
            group(gpu, &scratch.chosen, [slots, config.experts], tile, &scratch.order, &scratch.tiles);
            let experts = GroupedExperts {
                gate: &layer.gate,
                up: &layer.up,
                down: &layer.down,
                x: &scratch.normed,
                order: &scratch.order,
                tiles: &scratch.tiles,
                activations: &scratch.activations,
                out: &scratch.products,
                chosen_per_row: config.experts_per_token,
                inputs: n,
            };
            match few {
                true => experts.launch_few_gate_up(gpu, Division::default()),
                false => experts.launch_gate_up(gpu),
            }
            probe.done(span(Operation::GateUp));
            match few {
                true => experts.launch_few_down(gpu, Division::default()),
                false => experts.launch_down(gpu),
            }
            let shape = [n, config.experts_per_token, config.hidden];
            add_up(gpu, &scratch.products, &scratch.weights, &scratch.x, shape);
        }
        probe.done(span(Operation::Down));
    }

    fn single_experts(&self, layer: &Layer, n: usize) {
        let scratch = &self.scratch;
        GateUp {
            gate: &layer.gate,
            up: &layer.up,
            x: &scratch.normed,
            logits: &scratch.router_logits,
            experts: self.config.experts,
            chosen: &scratch.chosen,
            weights: &scratch.weights,
            chosen_per_row: self.config.experts_per_token,
            out: &scratch.activations,
            inputs: n,
        }
        .launch(&self.gpu);
    }

    fn single_down(&self, layer: &Layer, n: usize) {
        let scratch = &self.scratch;
        Down {
            down: &layer.down,
            x: &scratch.activations,
            chosen: &scratch.chosen,
            weights: &scratch.weights,
            chosen_per_row: self.config.experts_per_token,
            out: &scratch.x,
            inputs: n,
        }
        .launch(&self.gpu);
    }

    /// One product for each of `inputs` rows, by whichever kernel suits their number.
    fn product(&self, matrix: &Matrix, x: &Buffer, bias: Option<&Buffer>, out: &Buffer, add: bool, inputs: usize) {
        if inputs <= SINGLE_ROWS {
            Project { matrix, x, norm: None, bias, out, add, inputs }.launch(&self.gpu);
        } else if inputs < TILED_ROWS {
            Few { matrix, x, bias, out, add, inputs }.launch(&self.gpu);
        } else {
            Gemm { matrix, x, bias, out, add, inputs }.launch(&self.gpu);
        }
    }

    /// Logits `[picks, vocab]` of some rows of the last pass.
    fn logits(&self, picks: Vec<u32>, probe: &mut dyn Probe) -> Result<Tensor<2>, GpuError> {
        let (gpu, scratch, config) = (&self.gpu, &self.scratch, &self.config);
        let inputs = picks.len();
        let need = (inputs * config.vocab * 4) as u64;
        if need > gpu.binding_bytes {
            let what = format!("the logits of {inputs} positions (ask for fewer at a time)");
            return Err(GpuError::Limit { what, need, limit: gpu.binding_bytes });
        }
        gpu.write(&scratch.picks, picks);
        let out = gpu.empty(inputs * config.vocab);
        self.head(inputs, &scratch.picks, &out, probe);
        Ok(gpu.tensor(&out, [inputs, config.vocab]))
    }

    /// The logits of the picked rows of the last pass into `out`.
    pub(super) fn head(&self, inputs: usize, picks: &Buffer, out: &Buffer, probe: &mut dyn Probe) {
        let (gpu, scratch, config) = (&self.gpu, &self.scratch, &self.config);
        let shape = [inputs, config.hidden];
        norm(gpu, &scratch.x, picks, &self.weights.final_norm, config.rms_eps, &scratch.normed, shape);
        probe.see(&|| "final_norm".into(), &gpu.tensor(&scratch.normed, shape));
        probe.done(Span { operation: Operation::HeadNorm, layer: None, tokens: inputs, keys: 0 });
        self.product(&self.weights.head, &scratch.normed, None, out, false, inputs);
        probe.done(Span { operation: Operation::Head, layer: None, tokens: inputs, keys: 0 });
    }

    /// All passes of a batch, in order; the logits that each chunk asked for.
    fn run(&mut self, batch: &[Chunk<'_>], probe: &mut dyn Probe) -> Result<Vec<Option<Tensor<2>>>, GpuError> {
        self.reserve(batch)?;
        let mut rows = Vec::new();
        let mut wanted: Vec<Range<usize>> = Vec::new();
        for &Chunk { sequence, tokens, logits } in batch {
            let (slot, length) = (self.caches.slot(sequence), self.caches.length(sequence));
            let row = |(i, &token): (usize, &u32)| Row { token, position: (length + i) as u32, slot };
            rows.extend(tokens.iter().enumerate().map(row));
            let end = rows.len();
            wanted.push(match logits {
                LogitsFor::Nothing => end..end,
                LogitsFor::LastToken => end - 1..end,
                LogitsFor::EveryToken => end - tokens.len()..end,
            });
        }
        let mut pieces: Vec<Vec<Tensor<2>>> = vec![Vec::new(); batch.len()];
        for (pass, rows) in rows.chunks(MAX_ROWS).enumerate() {
            self.pass(rows, probe);
            let in_pass = |wanted: &Range<usize>| {
                let start = wanted.start.max(pass * MAX_ROWS);
                start..wanted.end.min(pass * MAX_ROWS + rows.len()).max(start)
            };
            let picks: Vec<u32> = wanted.iter().flat_map(in_pass).map(|row| (row - pass * MAX_ROWS) as u32).collect();
            if picks.is_empty() {
                continue;
            }
            let count = picks.len();
            let logits = self.logits(picks, probe)?;
            let mut first = 0;
            for (wanted, pieces) in wanted.iter().zip(&mut pieces) {
                let len = in_pass(wanted).len();
                if len == count {
                    pieces.push(logits.clone());
                } else if len > 0 {
                    pieces.push(logits.clone().narrow(0, first, len));
                }
                first += len;
            }
        }
        for chunk in batch {
            self.caches.advance(chunk.sequence, chunk.tokens.len());
        }
        let join = |mut pieces: Vec<Tensor<2>>| match pieces.len() {
            0 | 1 => pieces.pop(),
            _ => Some(Tensor::cat(pieces, 0)),
        };
        Ok(pieces.into_iter().map(join).collect())
    }
}

/// Shares of the keys that keep the GPU busy with `n` rows, or tiles of rows, that see `keys` keys.
fn splits(config: &GptOssConfig, n: usize, keys: usize) -> usize {
    let wish = BUSY_CUBES.div_ceil(config.kv_heads * n);
    wish.min(keys.div_ceil(PAGE)).max(1)
}

impl Scratch {
    fn new(gpu: &Gpu, config: &GptOssConfig, rows: usize) -> Scratch {
        let GptOssConfig { hidden, heads, kv_heads, head_dim, experts, experts_per_token, .. } = *config;
        // The fewest tiles have the most shares.
        let tile = (QUERIES as usize).div_ceil(heads / kv_heads);
        let most_splits = (1..=rows).map(|n| n * splits(config, n.div_ceil(tile), usize::MAX)).max().unwrap_or(1);
        let slots = rows * experts_per_token;
        Scratch {
            rows,
            row_words: gpu.empty(rows * ROW_WORDS as usize),
            row_tiles: gpu.empty(rows * prefill::TILE_WORDS),
            picks: gpu.empty(rows),
            x: gpu.empty(rows * hidden),
            qkv: gpu.empty(rows * (heads + 2 * kv_heads) * head_dim),
            queries: gpu.empty(rows * heads * head_dim),
            shares: gpu.empty(most_splits * heads * (head_dim + 2)),
            mixed: gpu.empty(rows * heads * head_dim),
            normed: gpu.empty(rows * hidden),
            router_logits: gpu.empty(rows * experts),
            chosen: gpu.empty(slots),
            weights: gpu.empty(slots),
            activations: gpu.empty(slots * config.expert_width),
            order: gpu.empty(slots),
            tiles: gpu.empty(most_tiles(slots, experts, FEW) * TILE_WORDS as usize),
            products: gpu.empty(if rows == 1 { 0 } else { slots * hidden }),
            every_row: gpu.upload((0..rows as u32).collect()),
        }
    }
}

impl Engine for GpuEngine {
    fn config(&self) -> &GptOssConfig {
        &self.config
    }

    fn length(&self, sequence: SequenceId) -> usize {
        self.caches.length(sequence)
    }

    fn step(&mut self, batch: &[Chunk<'_>], probe: &mut dyn Probe) -> Result<Vec<Option<Tensor<2>>>, EngineError> {
        check_batch(self, batch)?;
        self.run(batch, probe).map_err(|error| EngineError::Device(error.to_string()))
    }

    fn decode(
        &mut self,
        batch: &mut [Continuation<'_>],
        count: usize,
        on_tokens: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Option<Result<(), EngineError>> {
        if batch.len() > MAX_ROWS {
            return None;
        }
        let chunk = |item: &'_ Continuation<'_>| (item.sequence, [item.token]);
        let tokens: Vec<_> = batch.iter().map(chunk).collect();
        let chunks: Vec<Chunk<'_>> = tokens
            .iter()
            .map(|(sequence, tokens)| Chunk { sequence: *sequence, tokens, logits: LogitsFor::Nothing })
            .collect();
        let outcome = check_batch(self, &chunks)
            .and_then(|()| self.go_on(batch, count, on_tokens).map_err(|error| EngineError::Device(error.to_string())));
        Some(outcome)
    }

    fn save(&self, sequence: SequenceId) -> Option<Snapshot> {
        self.save_sequence(sequence)
    }

    fn restore(&mut self, sequence: SequenceId, snapshot: &Snapshot) -> Result<(), EngineError> {
        self.restore_sequence(sequence, snapshot)
    }

    fn release(&mut self, sequence: SequenceId) {
        self.caches.release(sequence);
    }
}

impl ReadCache for GpuEngine {
    fn read_cache(&self, sequence: SequenceId, layer: usize) -> Option<(Vec<usize>, Tensor<3>, Tensor<3>)> {
        let places = self.caches.places(sequence, layer, self.config.sliding_window)?;
        let shape = self.caches.row;
        let pool = self.caches.layer(layer).pool;
        let read = |pool: &Buffer| {
            let words = self.gpu.read(pool).ok()?;
            let row = |head: usize, place: usize| {
                let first = (place + head * PAGE) * shape.words();
                shape.decode(&words[first..][..shape.words()])
            };
            let rows = (0..shape.kv_heads).flat_map(|head| places.iter().flat_map(move |&(_, place)| row(head, place)));
            let dims = [shape.kv_heads, places.len(), shape.head_dim];
            Some(Tensor::<3>::from_data(TensorData::new(rows.collect::<Vec<f32>>(), dims), &self.burn))
        };
        let (keys, values) = (read(&pool.keys)?, read(&pool.values)?);
        Some((places.into_iter().map(|(position, _)| position).collect(), keys, values))
    }
}
