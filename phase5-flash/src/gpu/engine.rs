//! Phase 5's engine on a GPU: any number of sequences advance together, in passes of up to [`MAX_ROWS`] rows.

use std::collections::HashSet;
use std::ops::{ControlFlow, Range};

use burn::tensor::{Tensor, TensorData};
use phase1_loading::{Checkpoint, GptOssConfig};
use phase2_forward::{
    Chunk, ComputeDevice, Continuation, Engine, EngineError, LogitsFor, NoProbe, Probe, SequenceId, Snapshot,
    check_batch,
};
use phase3_kvcache::{CacheType, ReadCache};

use super::GpuError;
use super::cache::{Caches, PAGE};
use super::device::{Buffer, Gpu};
use super::kernels::fragments::Planes;
use super::kernels::prefill;
use super::pass::{Pass, rows_a_tile};
use super::resident::Resident;
use super::rows::Row;
use super::scratch::Scratch;
use super::tuning::Tuning;
use super::weights::Weights;

/// The most new tokens that one pass over the layers takes.
pub(crate) const MAX_ROWS: usize = 512;
/// Positions that the table of rotations holds at first; it doubles when a sequence outgrows it.
const FIRST_POSITIONS: usize = 4096;

/// Which products run in 16-bit tiles, the kernels for matrix units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tiles {
    /// Those of enough rows, on an adapter with matrix units.
    #[default]
    Auto,
    /// Every product of more than one row, so that a check with few rows reaches these kernels. An adapter without matrix
    /// units emulates them in f32.
    Always,
}

/// What can be chosen about the engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// How keys and values are stored.
    pub kv: CacheType,
    /// Computes in f32 throughout, where matrix units would take 16-bit floats.
    pub exact: bool,
    /// What was measured on the device, if it was.
    pub tuning: Option<Tuning>,
    /// Ignored with `exact`.
    pub tiles: Tiles,
}

/// A model on a GPU, with the caches of its sequences.
pub struct GpuEngine {
    pub(super) gpu: Gpu,
    pub(super) config: GptOssConfig,
    burn: burn::tensor::Device,
    pub(super) weights: Weights,
    pub(super) caches: Caches,
    /// (cosine, sine) of every position so far and pair of dimensions.
    pub(super) rotations: Buffer,
    positions: usize,
    pub(super) scratch: Scratch,
    /// How often a buffer that a step reads has been replaced: captured steps are void then.
    pub(super) moves: u64,
    pub(super) resident: Resident,
}

impl GpuEngine {
    /// Puts a checkpoint's weights on a GPU; `progress` hears (bytes so far, bytes in all).
    ///
    /// # Errors
    /// A device that is no GPU or lacks a limit, or weights that no reader agrees on.
    pub fn load(
        checkpoint: &Checkpoint,
        device: &ComputeDevice,
        options: Options,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<GpuEngine, GpuError> {
        Self::load_on(Gpu::new(device)?, device.burn.clone(), checkpoint, options, progress)
    }

    pub(super) fn load_on(
        gpu: Gpu,
        burn: burn::tensor::Device,
        checkpoint: &Checkpoint,
        options: Options,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<GpuEngine, GpuError> {
        let config = checkpoint.config.clone();
        let always = options.tiles == Tiles::Always && !options.exact;
        let planes = gpu.planes.or(always.then_some(Planes::PLAYED)).filter(|_| !options.exact);
        let tuning = options.tuning.unwrap_or(Tuning::unmeasured(planes));
        let tuning = if always { tuning.tiled_always() } else { tuning };
        let gpu = Gpu { planes, tuning, ..gpu };
        let weights = Weights::load(&gpu, checkpoint, progress)?;
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

    /// Whether tiles are of 16-bit floats on matrix units. Otherwise no product is tiled, or tiles are emulated in f32.
    pub fn has_matrix_units(&self) -> bool {
        self.gpu.planes.is_some_and(|planes| planes.fragments)
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

    /// Makes other choices from now on.
    pub(super) fn set_tuning(&mut self, tuning: Tuning) {
        self.gpu.tuning = tuning;
        // The shares of attention need more room, or less.
        self.scratch = Scratch::new(&self.gpu, &self.config, self.scratch.rows);
        self.moves += 1;
    }

    /// Puts rows where a pass finds them.
    pub(super) fn place(&self, rows: &[Row]) -> Pass {
        self.gpu.write(&self.scratch.row_words, rows.iter().flat_map(|row| row.words()).collect());
        let keys = rows.iter().map(|row| row.position as usize + 1).max().unwrap_or(0);
        let slots: HashSet<u32> = rows.iter().map(|row| row.slot).collect();
        let tiles = rows_a_tile(&self.gpu, &self.config).map(|most| prefill::tiles(rows, most));
        // A tile of one row costs as much as one of four.
        let tiles = tiles.unwrap_or_default();
        let count = tiles.len() / prefill::TILE_WORDS;
        let tiled = count > 0 && 2 * count <= rows.len();
        if tiled {
            self.gpu.write(&self.scratch.row_tiles, tiles);
        }
        Pass { rows: rows.len(), sequences: slots.len(), keys, tiles: tiled.then_some(count) }
    }

    /// Logits `[picks, vocab]` of some rows of the last pass.
    fn picked_logits(&self, picks: Vec<u32>, probe: &mut dyn Probe) -> Result<Tensor<2>, GpuError> {
        let (gpu, scratch, config) = (&self.gpu, &self.scratch, &self.config);
        let inputs = picks.len();
        let need = (inputs * config.vocab * 4) as u64;
        if need > gpu.binding_bytes {
            let what = format!("the logits of {inputs} positions (ask for fewer at a time)");
            return Err(GpuError::Limit { what, need, limit: gpu.binding_bytes });
        }
        gpu.write(&scratch.picks, picks);
        let out = gpu.empty(inputs * config.vocab);
        self.logits(inputs, &scratch.picks, &out, probe);
        Ok(gpu.tensor(&out, [inputs, config.vocab]))
    }

    /// All passes of a batch, in order; the logits that each chunk asked for.
    pub(super) fn run(
        &mut self,
        batch: &[Chunk<'_>],
        probe: &mut dyn Probe,
    ) -> Result<Vec<Option<Tensor<2>>>, GpuError> {
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
            self.layers(self.place(rows), probe);
            let in_pass = |wanted: &Range<usize>| {
                let start = wanted.start.max(pass * MAX_ROWS);
                start..wanted.end.min(pass * MAX_ROWS + rows.len()).max(start)
            };
            let picks: Vec<u32> = wanted.iter().flat_map(in_pass).map(|row| (row - pass * MAX_ROWS) as u32).collect();
            if picks.is_empty() {
                continue;
            }
            let count = picks.len();
            let logits = self.picked_logits(picks, probe)?;
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
