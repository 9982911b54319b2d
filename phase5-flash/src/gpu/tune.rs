//! Finds a [`Tuning`] by measuring whole steps of a model: one choice after another, each with the best values of the earlier ones.

use std::collections::VecDeque;
use std::time::Instant;

use gpu_kernels::Matrix;
use gpu_kernels::matmul::{PlaneLayout, RowSplit};
use gpu_kernels::matvec::{RowLoop, RowTile};
use phase2_forward::{Draw, Engine, EngineError, SequenceId, Want, Work, relative_rms, sample_tokens};

use super::engine::GpuEngine;
use super::plan::Products;
use super::tuning::{MAX_ROWS, NEVER, Tuning};

/// The sequence that holds the positions before the work.
const BASE: SequenceId = 0;
/// The sequence that does the work, forked from [`BASE`].
const SEQUENCE: SequenceId = 1;
/// Tokens that one measurement generates.
const TOKENS: usize = 16;
/// Measurements per variant; the fastest counts.
const ROUNDS: usize = 3;
/// A variant replaces the current choice only if it takes less than this share of that choice's time; smaller gains may be noise. Of
/// several such variants the fastest is chosen.
const GAIN: f64 = 0.98;
/// The largest rms error of a variant's logits, relative to their standard deviation, that is accepted: rounding may change the choice of
/// an expert.
const ROUNDING: f64 = 0.1;
/// Tokens of a prompt that a step takes.
const CHUNK: usize = 512;
/// Number of earlier positions in the cache when attention is measured; half the model's context if that is less.
const DEPTH: usize = 4096;
/// Number of rows at which [`Tuning::INPUTS_PER_READ`] and the layouts of tiles with fewer than 64 rows are measured.
const SINGLE_ROWS: usize = 10;
/// Number of rows at which the kernels for small batches are measured.
const SOME_ROWS: usize = 16;
/// Numbers of rows at which the kernels for single rows, small batches and tiles are compared.
const ROWS: [usize; 13] = [2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 512];
/// Single-row kernels are not measured above this number of rows: they read all weights for each row.
const MAX_SINGLE_ROWS: usize = 64;

/// The result of [`tune`].
#[derive(Clone, Copy, Debug)]
pub struct Tuned {
    pub tuning: Tuning,
    /// Seconds per token of one sequence with the defaults, and with the choices for products with one row, the first that are made.
    pub default_seconds: f64,
    pub seconds: f64,
}

/// The work that is measured: `rows` new tokens after `depth` positions.
#[derive(Clone, Copy)]
struct Workload {
    depth: usize,
    rows: usize,
}

struct Tuner<'a> {
    engine: &'a mut GpuEngine,
    best: Tuning,
    work: Workload,
    /// The logits that every variant must reproduce.
    logits: Vec<f32>,
    done: usize,
    progress: &'a mut dyn FnMut(usize, usize),
}

/// Finds the fastest kernel choices for a model on its device. It takes up to a few thousand steps, most of them of one token. `progress`
/// is called with (variants measured, the most that are measured).
///
/// # Errors
/// The device fails. Variants that it cannot run or that give wrong logits are skipped.
pub fn tune(engine: &mut GpuEngine, progress: &mut dyn FnMut(usize, usize)) -> Result<Tuned, EngineError> {
    let work = Workload { depth: 1, rows: 1 };
    let best = Tuning::unmeasured(engine.runner.forward.gpu.matrix_units());
    let mut tuner = Tuner { engine, best, work, logits: Vec::new(), done: 0, progress };
    tuner.begin(work)?;
    let default_seconds = tuner.measure(tuner.best)?;
    tuner.choose(RowLoop::all(), |tuning, project| Tuning { project, ..tuning })?;
    tuner.choose(RowLoop::all(), |tuning, gate_up| Tuning { gate_up, ..tuning })?;
    tuner.choose(RowLoop::all(), |tuning, down| Tuning { down, ..tuning })?;
    tuner.choose(Tuning::PRODUCT_CUBES, |tuning, product_cubes| Tuning { product_cubes, ..tuning })?;
    let seconds = tuner.measure(tuner.best)?;

    let longest = tuner.engine.config().context_length;
    tuner.begin(Workload { depth: DEPTH.min(longest / 2), rows: 1 })?;
    tuner.choose(Tuning::ATTENTION_CUBES, |tuning, attention_cubes| Tuning { attention_cubes, ..tuning })?;

    tuner.begin(Workload { depth: 0, rows: SINGLE_ROWS.min(longest / 2) })?;
    let singly = Tuning { single_rows: SINGLE_ROWS, ..tuner.best };
    let with_reads = |tuning, inputs_per_read| Tuning { inputs_per_read, ..tuning };
    tuner.best.inputs_per_read = tuner.quickest(Tuning::INPUTS_PER_READ, singly, with_reads)?.inputs_per_read;

    let few = tuner.best.small_always();
    tuner.begin(Workload { depth: 0, rows: SOME_ROWS.min(longest / 2) })?;
    let split = tuner.quickest(RowSplit::ALL, few, |tuning, small_batch| Tuning { small_batch, ..tuning })?;
    tuner.best.small_batch = split.small_batch;
    if tuner.engine.runner.forward.gpu.matrix_units().is_some() {
        tuner.tiles()?;
    }
    tuner.thresholds()?;
    let tuning = tuner.best;
    tuner.engine.release(SEQUENCE);
    tuner.engine.release(BASE);
    tuner.engine.runner.forward.set_tuning(tuning);
    Ok(Tuned { tuning, default_seconds, seconds })
}

/// The most variants that [`tune`] measures.
const ALL: usize = 2
    + 3 * RowLoop::COUNT
    + Tuning::PRODUCT_CUBES.len()
    + Tuning::ATTENTION_CUBES.len()
    + Tuning::INPUTS_PER_READ.len()
    + RowSplit::ALL.len()
    + 7 * ROWS.len()
    + 4 * Tuning::TILES.len();

/// The most rows for which the kernels for single rows, or those and the ones for pairs, are the fastest.
struct SingleRows {
    most: usize,
    /// Whether they were the fastest for all numbers of rows so far.
    wins: bool,
}

impl Default for SingleRows {
    fn default() -> SingleRows {
        SingleRows { most: 1, wins: true }
    }
}

impl SingleRows {
    fn add(&mut self, rows: usize, wins: bool) {
        self.wins = wins;
        self.most = if wins { rows } else { self.most };
    }
}

impl Tuner<'_> {
    /// Fills a sequence to the work's depth, and computes the expected logits with the default choices.
    fn begin(&mut self, work: Workload) -> Result<(), EngineError> {
        self.work = work;
        self.engine.release(BASE);
        self.engine.runner.forward.set_tuning(Tuning::default());
        for tokens in self.tokens(work.depth).chunks(MAX_ROWS) {
            self.engine.step(&[Work::tokens(BASE, tokens, Want::Nothing)])?;
        }
        self.logits = self.step()?;
        Ok(())
    }

    /// Sets a choice of the best tuning to the fastest of some values.
    fn choose<T>(
        &mut self,
        values: impl IntoIterator<Item = T>,
        with: impl Fn(Tuning, T) -> Tuning,
    ) -> Result<(), EngineError> {
        self.best = self.quickest(values, self.best, with)?;
        Ok(())
    }

    /// Returns `start` with the fastest of some values of a choice.
    fn quickest<T>(
        &mut self,
        values: impl IntoIterator<Item = T>,
        start: Tuning,
        with: impl Fn(Tuning, T) -> Tuning,
    ) -> Result<Tuning, EngineError> {
        let mut quickest = (start, self.measure(start)? * GAIN);
        let mut measured = vec![self.kernels(start)];
        for value in values {
            let tuning = with(start, value);
            let kernels = self.kernels(tuning);
            if !measured.contains(&kernels) {
                measured.push(kernels);
                let seconds = self.measure(tuning)?;
                if seconds < quickest.1 {
                    quickest = (tuning, seconds);
                }
            }
        }
        Ok(quickest.0)
    }

    /// The kernels that a tuning selects for this model. In small models different row loops give the same kernels.
    fn kernels(&self, tuning: Tuning) -> ([RowTile; 5], usize, usize, RowSplit, [PlaneLayout; 4]) {
        let forward = &self.engine.runner.forward;
        let (weights, chosen) = (&forward.weights, forward.config.experts_per_token);
        let layer = &weights.layers[0];
        let tile = |row_loop, matrix: &Matrix, slots| {
            RowTile::new(tuning.matvec(row_loop), matrix.storage(), slots * matrix.rows(), 1)
        };
        let tiles = [
            tile(tuning.project, &layer.qkv, 1),
            tile(tuning.project, &layer.o, 1),
            tile(tuning.project, &weights.head, 1),
            tile(tuning.gate_up, &layer.gate.weight, chosen),
            tile(tuning.down, &layer.down.weight, chosen),
        ];
        let layouts = [tuning.dense_tile, tuning.expert_tile, tuning.low_dense_tile, tuning.low_expert_tile];
        (tiles, tuning.attention_cubes, tuning.inputs_per_read, tuning.small_batch, layouts)
    }

    /// Finds the layouts of tiles on matrix units.
    fn tiles(&mut self) -> Result<(), EngineError> {
        let longest = self.engine.config().context_length / 2;
        self.begin(Workload { depth: 0, rows: CHUNK.min(longest) })?;
        self.choose(Tuning::TILES, |tuning, dense_tile| Tuning { dense_tile, ..tuning })?;
        let high = Tuning { tiled_slots: 1, ..self.best };
        let high = self.quickest(Tuning::TILES, high, |tuning, expert_tile| Tuning { expert_tile, ..tuning })?;
        self.best.expert_tile = high.expert_tile;
        self.begin(Workload { depth: 0, rows: SINGLE_ROWS.min(longest) })?;
        let low = Tuning { tiled_rows: 2, low_tile_rows: 2, ..self.best.small_always() };
        let low = self.quickest(Tuning::TILES, low, |tuning, low_dense_tile| Tuning { low_dense_tile, ..tuning })?;
        let low = self.quickest(Tuning::TILES, low, |tuning, low_expert_tile| Tuning { low_expert_tile, ..tuning })?;
        let Tuning { low_dense_tile, low_expert_tile, .. } = low;
        self.best = Tuning { low_dense_tile, low_expert_tile, ..self.best };
        Ok(())
    }

    /// Finds the numbers of rows up to which single-row kernels and pairs, and from which tiles, are fastest.
    fn thresholds(&mut self) -> Result<(), EngineError> {
        let longest = self.engine.config().context_length / 2;
        let few = self.best.small_always();
        let units = self.engine.runner.forward.gpu.matrix_units().is_some();
        let [mut dense, mut experts, mut pairs] = [(); 3].map(|()| SingleRows::default());
        let (mut tiled_rows, mut tiled_slots, mut low_tile_rows) = (NEVER, NEVER, NEVER);
        for rows in ROWS.into_iter().filter(|&rows| rows <= longest) {
            self.begin(Workload { depth: 0, rows })?;
            let by_few = self.measure(few)?;
            let by_tiles = self.measure(Tuning { tiled_rows: 1, ..few })?;
            let (high, low) = (Tuning { tiled_slots: 1, ..few }, Tuning { low_tile_rows: 2, ..few });
            let by_tiled_experts = self.measure(high)?;
            let by_low_tiles = if units { self.measure(low)? } else { f64::INFINITY };
            if dense.wins && rows <= MAX_SINGLE_ROWS {
                let singly = self.measure(Tuning { single_rows: rows, ..few })?;
                dense.add(rows, singly < by_few.min(by_tiles));
            }
            if pairs.wins && rows <= MAX_SINGLE_ROWS {
                let others = by_few.min(by_tiled_experts).min(by_low_tiles);
                let by_pairs = self.measure(Tuning { pair_rows: rows, ..few })?;
                let singly = match experts.wins {
                    true => self.measure(Tuning { single_expert_rows: rows, ..few })?,
                    false => f64::INFINITY,
                };
                experts.add(rows, singly < others.min(by_pairs));
                pairs.add(rows, singly.min(by_pairs) < others);
            }
            let slots = (rows * self.engine.config().experts_per_token).div_ceil(self.engine.config().experts);
            tiled_rows = if by_tiles < by_few { tiled_rows.min(rows) } else { NEVER };
            let config = self.engine.config();
            // With many rows per expert, both choices are tiles of 64 rows.
            if Products::experts(&high, config, rows) != Products::experts(&low, config, rows) {
                tiled_slots = if by_tiled_experts < by_few.min(by_low_tiles) { tiled_slots.min(slots) } else { NEVER };
            }
            low_tile_rows = if by_low_tiles < by_few { low_tile_rows.min(rows) } else { NEVER };
        }
        let (single_rows, single_expert_rows, pair_rows) = (dense.most, experts.most, pairs.most);
        self.best =
            Tuning { single_rows, tiled_rows, single_expert_rows, pair_rows, tiled_slots, low_tile_rows, ..self.best };
        Ok(())
    }

    /// Seconds that the work takes with a tuning; infinite if the device cannot run it or gives wrong logits.
    fn measure(&mut self, tuning: Tuning) -> Result<f64, EngineError> {
        self.done += 1;
        (self.progress)(self.done.min(ALL), ALL);
        self.engine.runner.forward.set_tuning(tuning);
        match self.time() {
            Err(EngineError::Unsupported(_)) => Ok(f64::INFINITY),
            other => other,
        }
    }

    fn time(&mut self) -> Result<f64, EngineError> {
        let logits = self.step()?;
        if relative_rms(&self.logits, &logits) > ROUNDING {
            return Ok(f64::INFINITY);
        }
        let mut quickest = f64::INFINITY;
        // The first round captures the step or warms up.
        for round in 0..=ROUNDS {
            let seconds = if self.work.rows == 1 { self.generate()? } else { self.pass()? };
            if round > 0 {
                quickest = quickest.min(seconds);
            }
        }
        Ok(quickest)
    }

    /// Seconds per token of greedy decoding.
    fn generate(&mut self) -> Result<f64, EngineError> {
        let token = self.tokens(1);
        let count = TOKENS.min(self.engine.config().context_length - self.work.depth);
        self.rewind()?;
        let start = Instant::now();
        let mut in_flight = VecDeque::new();
        for number in 0..count {
            let work = match number {
                0 => Work::tokens(SEQUENCE, &token, Want::Token(Draw::GREEDY)),
                _ => Work::decode(SEQUENCE, Draw::GREEDY),
            };
            in_flight.push_back(self.engine.submit(&[work])?);
            if in_flight.len() == self.engine.capacity().steps_in_flight || number + 1 == count {
                for ticket in in_flight.drain(..if number + 1 == count { in_flight.len() } else { 1 }) {
                    self.engine.collect(ticket)?;
                }
            }
        }
        Ok(start.elapsed().as_secs_f64() / count as f64)
    }

    /// Seconds of a pass without logits.
    fn pass(&mut self) -> Result<f64, EngineError> {
        let tokens = self.tokens(self.work.rows);
        self.rewind()?;
        let start = Instant::now();
        self.engine.step(&[Work::tokens(SEQUENCE, &tokens, Want::Nothing)])?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// The logits after the work's rows.
    fn step(&mut self) -> Result<Vec<f32>, EngineError> {
        let tokens = self.tokens(self.work.rows);
        self.rewind()?;
        self.engine.last_logits(SEQUENCE, &tokens)
    }

    /// Resets the sequence to its state before the work.
    fn rewind(&mut self) -> Result<(), EngineError> {
        self.engine.release(SEQUENCE);
        match self.work.depth {
            0 => Ok(()),
            depth => self.engine.fork(BASE, SEQUENCE, depth),
        }
    }

    fn tokens(&self, count: usize) -> Vec<u32> {
        sample_tokens(0, count, self.engine.config().vocab)
    }
}

#[cfg(test)]
mod tests {
    use gptoss_reference::test_seed;
    use phase1_loading::Checkpoint;
    use phase2_forward::ComputeDevice;
    use synthetic::SyntheticModel;

    use super::*;
    use crate::gpu::Options;

    /// The error that variants may have in f32, and with 16-bit inputs of matrix units. Tuning itself must tolerate that another expert is
    /// chosen; in these models every token goes to all experts.
    fn limit(engine: &GpuEngine) -> f64 {
        if engine.has_matrix_units() { 1e-2 } else { 1e-3 }
    }

    /// A model with a short context, so that few variants are measured.
    fn engine(seed: u64) -> GpuEngine {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("model.gguf");
        let model = SyntheticModel {
            layers: 2,
            experts: 4,
            experts_per_token: 4,
            ..SyntheticModel::preset("nano").expect("a preset")
        };
        model.write(&path, seed, &mut |_, _| ()).expect("written");
        let mut checkpoint = Checkpoint::open(&path).expect("opens");
        checkpoint.config.context_length = 64;
        let [_, gpu] = ComputeDevice::for_gates().expect("devices");
        GpuEngine::load(&checkpoint, &gpu, Options::default(), &mut |_, _| ()).expect("loads")
    }

    /// The logits after several steps with different numbers of tokens, for which different kernels are chosen.
    fn logits(engine: &mut GpuEngine) -> Vec<f32> {
        let lengths = [1, 3, 20];
        let of = |&rows: &usize| {
            let tokens: Vec<u32> = (0..rows as u32).map(|i| i * 7 % 50).collect();
            let logits = engine.last_logits(5, &tokens).expect("runs");
            engine.release(5);
            logits
        };
        lengths.iter().flat_map(of).collect()
    }

    #[test]
    fn every_variant_computes_the_same() {
        let seed = test_seed();
        let mut engine = engine(seed);
        let expected = logits(&mut engine);
        // With a single cube, row loops take several steps even in this small model.
        let default = Tuning { product_cubes: 1, ..Tuning::default() };
        let row_loops =
            RowLoop::all().map(|row_loop| Tuning { project: row_loop, gate_up: row_loop, down: row_loop, ..default });
        let few = default.small_always();
        let splits = RowSplit::ALL.map(|split| Tuning { small_batch: split, ..few });
        let tiles = [Tuning { tiled_rows: 1, ..few }, Tuning { tiled_slots: 1, ..few }];
        let low_tiles = Tuning { tiled_rows: 2, low_tile_rows: 2, ..few };
        let layouts =
            Tuning::TILES.map(|low_dense_tile| Tuning { low_dense_tile, low_expert_tile: low_dense_tile, ..low_tiles });
        let single = Tuning { single_rows: 64, single_expert_rows: 64, ..default };
        let pairs = Tuning { pair_rows: 64, ..few };
        let cubes = Tuning::ATTENTION_CUBES.map(|attention_cubes| Tuning { attention_cubes, ..default });
        let reads = Tuning::INPUTS_PER_READ.map(|inputs_per_read| Tuning { inputs_per_read, ..default });
        for tuning in
            row_loops.chain(splits).chain(tiles).chain(layouts).chain([single, pairs]).chain(cubes).chain(reads)
        {
            engine.runner.forward.set_tuning(tuning);
            let error = relative_rms(&expected, &logits(&mut engine));
            assert!(error < limit(&engine), "{tuning:?}: {error:e} {seed}");
        }
    }

    #[test]
    fn tuned_engine_computes_the_same() {
        let seed = test_seed();
        let mut engine = engine(seed);
        let expected = logits(&mut engine);
        let mut reports = Vec::new();
        let tuned = tune(&mut engine, &mut |done, all| reports.push((done, all))).expect("tunes");
        assert!(tuned.tuning.is_possible(), "{tuned:?}");
        // The defaults are measured first. Their time would be infinite only if their own logits did not match.
        assert!(tuned.seconds.is_finite() && tuned.default_seconds.is_finite(), "{tuned:?}");
        assert!(reports.is_sorted() && reports.iter().all(|&(done, all)| (1..=all).contains(&done)), "{reports:?}");
        assert!(reports.len() > 1 && reports.iter().all(|&(_, all)| all == ALL), "{reports:?}");
        let error = relative_rms(&expected, &logits(&mut engine));
        assert!(error < limit(&engine), "{tuned:?}: {error:e} {seed}");
    }
}
