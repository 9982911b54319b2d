//! Phase 5's engine on a GPU: the new tokens of all sequences of a step are one pass over the layers, and up to two steps are in flight.

use std::collections::{HashSet, VecDeque};

use burn::tensor::{Device, Tensor, TensorData};
use phase1_loading::{Checkpoint, GptOssConfig};
use phase2_forward::plain::check_rewind;
use phase2_forward::{
    BadRequest, Capacity, ComputeDevice, Engine, EngineError, Input, Inspect, Outcome, Probe, SequenceId, Snapshots,
    Ticket, Want, Work, check_work,
};
use phase3_kvcache::{CacheType, ReadCache};

use super::GpuError;
use super::cache::{Cache, PAGE, SLOTS};
use super::captured::CapturedSteps;
use super::choice::Choices;
use super::device::{Buffer, Gpu};
use super::kernels::cache::CacheRow;
use super::kernels::fragments::Planes;
use super::rows::Row;
use super::scratch::Scratch;
use super::step::{Step, fed};
use super::tuning::Tuning;
use super::weights::Weights;
use crate::pages::{POSITIONS, REWIND};

/// The most new tokens of a step: a chunk of a prompt and 128 sequences that decode.
pub(crate) const MAX_ROWS: usize = 640;
/// Steps in flight at most: one computes, one waits its turn.
const IN_FLIGHT: usize = 2;
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
    /// Bytes of the KV cache; if not given, room for one full context, or for less where the device has less left.
    pub kv_bytes: Option<u64>,
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
    pub(super) weights: Weights,
    pub(super) cache: Cache,
    /// (cosine, sine) of every position so far and pair of dimensions.
    pub(super) rotations: Buffer,
    positions: usize,
    pub(super) scratch: Scratch,
    pub(super) choices: Choices,
    /// The most rows whose logits are computed together.
    pub(super) most_logits: usize,
    /// By slot the token drawn last.
    pub(super) drawn: Buffer,
    /// Sequences whose last step drew a token.
    has_drawn: HashSet<SequenceId>,
    /// What `scratch.row_words` describes once all steps so far have run; nothing after a pass launch by launch.
    pub(super) placed: Vec<Row>,
    /// How often a buffer that a step reads has been replaced: captured steps are void then.
    pub(super) moves: u64,
    pub(super) captured: CapturedSteps,
    pub(super) steps: VecDeque<Step>,
    pub(super) next_ticket: u64,
}

impl GpuEngine {
    /// Puts a checkpoint's weights on a GPU; `progress` hears (bytes so far, bytes in all).
    ///
    /// # Errors
    /// A device that is no GPU or lacks a limit or memory, or weights that no reader agrees on.
    pub fn load(
        checkpoint: &Checkpoint,
        device: &ComputeDevice,
        options: Options,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<GpuEngine, GpuError> {
        Self::load_on(Gpu::new(device)?, checkpoint, options, progress)
    }

    pub(super) fn load_on(
        gpu: Gpu,
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
        // What an engine before this one left in the allocator's pools counts as taken otherwise.
        let _ = gpu.client.memory_cleanup();
        let row = CacheRow::new(options.kv, &config)?;
        let most_logits = Choices::most_rows(&gpu, config.vocab)?;
        let weights = Weights::load(&gpu, checkpoint, progress)?;
        let scratch = Scratch::new(&gpu, &config, 1);
        let choices = Choices::new(&gpu, config.vocab, 1);
        gpu.sync()?;
        let pages = Cache::count(&gpu, &config, row, options.kv_bytes)?;
        let cache = Cache::new(&gpu, &config, row, pages, MAX_ROWS);
        let mut engine = GpuEngine {
            drawn: gpu.upload(vec![0; cache.padding_slot as usize + 1]),
            rotations: gpu.empty(0),
            positions: 0,
            has_drawn: HashSet::new(),
            placed: Vec::new(),
            moves: 0,
            captured: CapturedSteps::default(),
            steps: VecDeque::new(),
            next_ticket: 0,
            gpu,
            config,
            weights,
            cache,
            scratch,
            choices,
            most_logits,
        };
        engine.try_out()?;
        Ok(engine)
    }

    /// Whether tiles are of 16-bit floats on matrix units. Otherwise no product is tiled, or tiles are emulated in f32.
    pub fn has_matrix_units(&self) -> bool {
        self.gpu.planes.is_some_and(|planes| planes.fragments)
    }

    /// Compiles the kernels of a step and reads what they give, so that a device that lacks a limit is refused before any work.
    fn try_out(&mut self) -> Result<(), GpuError> {
        let (sequence, work) = (SequenceId::MAX, [Work::tokens(SequenceId::MAX, &[0], Want::Nothing)]);
        let lengths = [(sequence, 1)];
        self.cache.extend(&self.gpu, &lengths).expect("nothing else is in the cache");
        self.begin(&work, &lengths, None)?;
        let step = self.steps.pop_back().expect("begun");
        self.cache.pages.release(sequence);
        step.wait()
    }

    /// Makes room in the table of rotations for a sequence of `length` positions.
    pub(super) fn reserve_positions(&mut self, length: usize) {
        if length > self.positions {
            self.positions = length.next_power_of_two().max(FIRST_POSITIONS);
            let rope = &self.weights.rope;
            let angles = (0..self.positions).flat_map(|p| rope.inverse_frequencies.iter().map(move |f| p as f32 * f));
            let table = angles.flat_map(|angle| [angle.cos() * rope.mscale, angle.sin() * rope.mscale]);
            self.rotations = self.gpu.upload(table.map(f32::to_bits).collect());
            self.moves += 1;
        }
    }

    /// Makes room for passes of `rows` rows.
    pub(super) fn reserve_rows(&mut self, rows: usize) {
        if rows > self.scratch.rows {
            self.scratch = Scratch::new(&self.gpu, &self.config, rows.next_power_of_two().min(MAX_ROWS));
            self.placed.clear();
            self.moves += 1;
        }
    }

    /// Makes other choices from now on.
    pub(super) fn set_tuning(&mut self, tuning: Tuning) {
        self.gpu.tuning = tuning;
        // The shares of attention need more room, or less.
        self.scratch = Scratch::new(&self.gpu, &self.config, self.scratch.rows);
        self.placed.clear();
        self.moves += 1;
    }

    /// Checks a step, makes room for it and begins it.
    fn enter(&mut self, work: &[Work<'_>], probe: Option<&mut dyn Probe>) -> Result<Ticket, EngineError> {
        if self.steps.len() == IN_FLIGHT {
            return Err(BadRequest::TooManySteps(IN_FLIGHT).into());
        }
        check_work(self, work)?;
        let is_drawn =
            |item: &&Work<'_>| matches!(item.input, Input::Drawn) && !self.has_drawn.contains(&item.sequence);
        if let Some(item) = work.iter().find(is_drawn) {
            return Err(BadRequest::NothingDrawn(item.sequence).into());
        }
        self.check_slots(work.iter().filter(|item| !self.cache.pages.contains(item.sequence)).count())?;
        let reached = |item: &Work<'_>| (item.sequence, self.length(item.sequence) + fed(item));
        let lengths: Vec<(SequenceId, usize)> = work.iter().map(reached).collect();
        self.cache.extend(&self.gpu, &lengths)?;
        let begun = self.begin(work, &lengths, probe);
        if begun.is_err() {
            lengths.iter().for_each(|&(sequence, _)| self.cache.pages.retract(sequence));
        }
        let ticket = begun?;
        for (item, &(sequence, length)) in work.iter().zip(&lengths) {
            self.cache.pages.advance(sequence, length);
            match item.want {
                Want::Token(_) => self.has_drawn.insert(sequence),
                _ => self.has_drawn.remove(&sequence),
            };
        }
        Ok(ticket)
    }

    /// What became of a step. A sequence whose logits are NaN has drawn nothing.
    fn outcomes(&mut self, step: Step) -> Result<Vec<Outcome>, EngineError> {
        let sequences = step.sequences();
        let outcomes = step.outcomes(self.config.vocab)?;
        for (sequence, outcome) in sequences.into_iter().zip(&outcomes) {
            if let (Some(sequence), Outcome::NotANumber { .. }) = (sequence, outcome) {
                self.forget_drawn(sequence);
            }
        }
        Ok(outcomes)
    }

    /// # Errors
    /// More sequences than the tables have room for, were there `new` more.
    fn check_slots(&self, new: usize) -> Result<(), EngineError> {
        let most = SLOTS.min(self.cache.pages.total());
        match self.cache.pages.sequences() + new > most {
            true => Err(EngineError::Unsupported(format!("this engine holds at most {most} sequences; release some"))),
            false => Ok(()),
        }
    }

    /// The sequence must be fed a token by number next.
    pub(super) fn forget_drawn(&mut self, sequence: SequenceId) {
        self.has_drawn.remove(&sequence);
    }

    fn check_rewind(&self, sequence: SequenceId, length: usize) -> Result<(), BadRequest> {
        let pages = &self.cache.pages;
        let known = pages.contains(sequence).then(|| pages.length(sequence));
        check_rewind(sequence, known, length, || pages.reaches_back(sequence, length))
    }
}

impl Engine for GpuEngine {
    fn config(&self) -> &GptOssConfig {
        &self.config
    }

    fn capacity(&self) -> Capacity {
        Capacity {
            tokens_per_step: MAX_ROWS,
            steps_in_flight: IN_FLIGHT,
            pages_total: self.cache.pages.total(),
            pages_free: self.cache.pages.free(),
            positions_per_page: POSITIONS,
            rewind: REWIND,
        }
    }

    fn length(&self, sequence: SequenceId) -> usize {
        self.cache.length(sequence)
    }

    fn submit(&mut self, work: &[Work<'_>]) -> Result<Ticket, EngineError> {
        self.enter(work, None)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Outcome>, EngineError> {
        match self.steps.pop_front_if(|step| step.ticket == ticket) {
            Some(step) => self.outcomes(step),
            None => Err(BadRequest::UnknownTicket(ticket).into()),
        }
    }

    fn fork(&mut self, from: SequenceId, to: SequenceId, length: usize) -> Result<(), EngineError> {
        if self.cache.pages.contains(to) {
            return Err(BadRequest::SequenceExists(to).into());
        }
        self.check_rewind(from, length)?;
        self.check_slots(1)?;
        self.cache.pages.fork(from, to, length);
        Ok(())
    }

    fn truncate(&mut self, sequence: SequenceId, length: usize) -> Result<(), EngineError> {
        self.check_rewind(sequence, length)?;
        self.cache.pages.truncate(sequence, length);
        self.forget_drawn(sequence);
        Ok(())
    }

    fn release(&mut self, sequence: SequenceId) {
        self.cache.pages.release(sequence);
        self.steps.iter_mut().for_each(|step| step.release(sequence));
        self.forget_drawn(sequence);
    }

    fn snapshots(&mut self) -> Option<&mut dyn Snapshots> {
        Some(self)
    }
}

impl Inspect for GpuEngine {
    fn inspect(&mut self, work: &[Work<'_>], probe: &mut dyn Probe) -> Result<Vec<Outcome>, EngineError> {
        let ticket = self.enter(work, Some(probe))?;
        // Outcomes of earlier steps stay with their own tickets.
        match self.steps.pop_back_if(|step| step.ticket == ticket) {
            Some(step) => self.outcomes(step),
            None => Err(BadRequest::UnknownTicket(ticket).into()),
        }
    }
}

impl ReadCache for GpuEngine {
    fn read_cache(&self, sequence: SequenceId, layer: usize) -> Option<(Vec<usize>, Tensor<3>, Tensor<3>)> {
        if !self.cache.pages.contains(sequence) {
            return None;
        }
        let places = self.cache.places(sequence, layer, self.config.sliding_window);
        let shape = self.cache.row;
        let pool = self.cache.layer(layer).pool;
        let read = |pool: &Buffer| {
            let words = self.gpu.read(pool).ok()?;
            let row = |head: usize, place: usize| {
                let first = (place + head * PAGE) * shape.words();
                shape.decode(&words[first..][..shape.words()])
            };
            let rows = (0..shape.kv_heads).flat_map(|head| places.iter().flat_map(move |&(_, place)| row(head, place)));
            let dims = [shape.kv_heads, places.len(), shape.head_dim];
            Some(Tensor::<3>::from_data(TensorData::new(rows.collect::<Vec<f32>>(), dims), &Device::flex()))
        };
        let (keys, values) = (read(&pool.keys)?, read(&pool.values)?);
        Some((places.into_iter().map(|(position, _)| position).collect(), keys, values))
    }
}
