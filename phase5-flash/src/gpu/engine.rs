//! Phase 5's engine on a GPU: the new tokens of all sequences of a step are one pass over the layers, and up to two steps are in flight.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use gpu_kernels::{Buffer, Device, Gpu, KvRow, MatrixUnits, PAGE};
use phase1_loading::{Checkpoint, GptOssConfig};
use phase2_forward::plain::check_rewind;
use phase2_forward::{
    BadRequest, Capacity, ComputeDevice, Engine, EngineError, Input, Inspect, Outcome, Probe, SequenceId, Snapshots,
    Ticket, Want, Work, check_work,
};
use phase3_kvcache::{CacheType, ReadCache};

use super::cache::{Cache, SLOTS};
use super::choice::Choices;
use super::error::GpuError;
use super::forward::Forward;
use super::load_times::{LoadTimes, StageClock};
use super::step::{Runner, Step, fed};
use super::tuning::{MAX_ROWS, Tuning};
use super::warm_up::{self, WarmUp};
use super::weights::{Weights, check_shape};
use crate::pages::{Full, POSITIONS, Pages, REWIND};

/// The most steps in flight: one computes, one is queued.
const IN_FLIGHT: usize = 2;

/// Which products use 16-bit tiles, the kernels for matrix units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tiles {
    /// Products with enough rows, on adapters with matrix units.
    #[default]
    Auto,
    /// Every product of more than one row, so that a check with few rows reaches these kernels. An adapter without matrix
    /// units emulates them in f32.
    Always,
}

/// Options of the engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Format of the KV cache.
    pub kv: CacheType,
    /// Size in bytes of the KV cache; by default room for one full context and some short sequences, limited to the free memory.
    pub kv_bytes: Option<u64>,
    /// Computes in f32 throughout. Matrix units, which take 16-bit floats, and products of 16-bit floats are not used.
    pub exact: bool,
    /// Kernel choices that `gptoss tune` measured on the device; defaults if not given.
    pub tuning: Option<Tuning>,
    /// Ignored with `exact`.
    pub tiles: Tiles,
}

/// A model on a GPU, with the KV cache of its sequences.
pub struct GpuEngine {
    pub(super) runner: Runner,
    /// Sequences whose last step drew a token.
    has_drawn: HashSet<SequenceId>,
    in_flight: VecDeque<(Ticket, Step)>,
    next_ticket: u64,
    load_times: LoadTimes,
}

impl GpuEngine {
    /// Uploads a checkpoint's weights to a GPU; `progress` is called with (bytes so far, bytes in all).
    ///
    /// # Errors
    /// The device is not a GPU, or lacks a limit or memory; the kernels do not support a shape; or an MXFP4 scale byte is 255.
    pub fn load(
        checkpoint: &Checkpoint,
        device: &ComputeDevice,
        options: Options,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<GpuEngine, GpuError> {
        let mut clock = StageClock::start();
        let found = device.client().zip(device.queue()).ok_or_else(|| GpuError::NoGpu(device.name.clone()))?;
        let gpu = Gpu::new(Device::new(found.0, found.1, device.memory))?;
        let probe = clock.end_stage();
        let mut engine = Self::load_on(gpu, checkpoint, options, progress)?;
        engine.load_times.probe = probe;
        Ok(engine)
    }

    pub(super) fn load_on(
        gpu: Gpu,
        checkpoint: &Checkpoint,
        options: Options,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<GpuEngine, GpuError> {
        let mut clock = StageClock::start();
        let config = checkpoint.config.clone();
        let always = options.tiles == Tiles::Always && !options.exact;
        let units = gpu.matrix_units().or(always.then_some(MatrixUnits::EMULATED)).filter(|_| !options.exact);
        let tuning = options.tuning.unwrap_or(Tuning::unmeasured(units));
        let tuning = match (always, options.exact && gpu.matrix_units().is_some()) {
            (true, _) => tuning.tiled_always(),
            (false, true) => tuning.without_matrix_units(),
            (false, false) => tuning,
        };
        let gpu = if options.exact { gpu.in_f32() } else { gpu.with_matrix_units(units) };
        let device = gpu.device.clone();
        // Without this, memory that an earlier engine left in the allocator's pools would count as used.
        device.free_unused_memory();
        check_shape(&config)?;
        let row = KvRow::new(options.kv, config.kv_heads, config.head_dim).map_err(GpuError::CacheFormat)?;
        let most_logits = Choices::most_rows(device.binding_bytes(), config.vocab)?;
        let (weights, filling) = Weights::allocate(&device, checkpoint)?;
        let weights = Arc::new(weights);
        let pages = Cache::count(&device, &config, row, options.kv_bytes)?;
        let cache = Cache::new(&device, &config, row, pages, MAX_ROWS);
        let mut load_times = LoadTimes::default();
        if checkpoint.weight_bytes() < warm_up::MIN_BYTES {
            load_times.allocation = clock.end_stage();
            load_times.upload = filling.run(&device, progress)?;
            clock.end_stage();
        } else {
            let warm_up = WarmUp::new(&gpu, tuning, &config, row, &weights);
            load_times.allocation = clock.end_stage();
            let (uploaded, compiled) = warm_up.compile_during(|| filling.run(&device, progress));
            load_times.upload = uploaded?;
            load_times.warm_up = compiled;
            // Frees the memory that the warm-up used.
            device.free_unused_memory();
            load_times.warm_up_end = clock.end_stage().saturating_sub(load_times.upload.total);
        }
        let mut engine = GpuEngine {
            runner: Runner::new(Forward::new(gpu, tuning, config, weights, cache), most_logits),
            has_drawn: HashSet::new(),
            in_flight: VecDeque::new(),
            next_ticket: 0,
            load_times,
        };
        engine.try_out()?;
        engine.load_times.first_step = clock.end_stage();
        Ok(engine)
    }

    /// How long the stages of loading took.
    pub fn load_times(&self) -> LoadTimes {
        self.load_times
    }

    /// Whether tiled products multiply 16-bit floats on matrix units. Otherwise, also with emulated matrix units, they are computed in f32.
    pub fn has_matrix_units(&self) -> bool {
        self.runner.forward.gpu.matrix_units().is_some_and(|units| !units.are_emulated())
    }

    /// Compiles and runs the kernels of a step, so that a device that lacks a limit is refused when the model is loaded.
    fn try_out(&mut self) -> Result<(), GpuError> {
        let (sequence, work) = (SequenceId::MAX, [Work::tokens(SequenceId::MAX, &[0], Want::Nothing)]);
        let lengths = [(sequence, 1)];
        self.extend(&lengths).expect("nothing else is in the cache");
        let step = self.runner.begin(&work, &lengths, None)?;
        self.pages_mut().release(sequence);
        Ok(step.wait()?)
    }

    pub(super) fn pages(&self) -> &Pages {
        &self.runner.forward.cache.pages
    }

    fn pages_mut(&mut self) -> &mut Pages {
        &mut self.runner.forward.cache.pages
    }

    /// Allocates pages so that sequences can grow to new lengths: for all of them or for none.
    fn extend(&mut self, lengths: &[(SequenceId, usize)]) -> Result<(), Full> {
        let Forward { gpu, cache, .. } = &mut self.runner.forward;
        cache.extend(&gpu.device, lengths)
    }

    /// Checks a step, allocates its pages and submits it.
    fn enter(&mut self, work: &[Work<'_>], probe: Option<&mut dyn Probe>) -> Result<Ticket, EngineError> {
        if self.in_flight.len() == IN_FLIGHT {
            return Err(BadRequest::TooManySteps(IN_FLIGHT).into());
        }
        check_work(self, work)?;
        let is_drawn =
            |item: &&Work<'_>| matches!(item.input, Input::Drawn) && !self.has_drawn.contains(&item.sequence);
        if let Some(item) = work.iter().find(is_drawn) {
            return Err(BadRequest::NothingDrawn(item.sequence).into());
        }
        self.check_slots(work.iter().filter(|item| !self.pages().contains(item.sequence)).count())?;
        let reached = |item: &Work<'_>| (item.sequence, self.length(item.sequence) + fed(item));
        let lengths: Vec<(SequenceId, usize)> = work.iter().map(reached).collect();
        self.extend(&lengths)?;
        let begun = self.runner.begin(work, &lengths, probe);
        if begun.is_err() {
            lengths.iter().for_each(|&(sequence, _)| self.pages_mut().retract(sequence));
        }
        let ticket = Ticket(self.next_ticket);
        self.in_flight.push_back((ticket, begun?));
        self.next_ticket += 1;
        for (item, &(sequence, length)) in work.iter().zip(&lengths) {
            self.pages_mut().advance(sequence, length);
            match item.want {
                Want::Token(_) => self.has_drawn.insert(sequence),
                _ => self.has_drawn.remove(&sequence),
            };
        }
        Ok(ticket)
    }

    /// Waits for a step's outcomes. A sequence whose logits are NaN has drawn nothing.
    fn outcomes(&mut self, step: Step) -> Result<Vec<Outcome>, EngineError> {
        let sequences = step.sequences();
        let outcomes = step.outcomes(self.config().vocab)?;
        for (sequence, outcome) in sequences.into_iter().zip(&outcomes) {
            if let (Some(sequence), Outcome::NotANumber { .. }) = (sequence, outcome) {
                self.forget_drawn(sequence);
            }
        }
        Ok(outcomes)
    }

    /// # Errors
    /// If the page tables have no room for `new` more sequences.
    fn check_slots(&self, new: usize) -> Result<(), EngineError> {
        let most = SLOTS.min(self.pages().total());
        match self.pages().sequences() + new > most {
            true => Err(EngineError::Unsupported(format!("this engine holds at most {most} sequences; release some"))),
            false => Ok(()),
        }
    }

    /// Discards the drawn token of the sequence: the next step must feed it tokens.
    pub(super) fn forget_drawn(&mut self, sequence: SequenceId) {
        self.has_drawn.remove(&sequence);
    }

    fn check_rewind(&self, sequence: SequenceId, length: usize) -> Result<(), BadRequest> {
        let pages = self.pages();
        let known = pages.contains(sequence).then(|| pages.length(sequence));
        check_rewind(sequence, known, length, || pages.reaches_back(sequence, length))
    }
}

impl Engine for GpuEngine {
    fn config(&self) -> &GptOssConfig {
        &self.runner.forward.config
    }

    fn capacity(&self) -> Capacity {
        Capacity {
            tokens_per_step: MAX_ROWS,
            steps_in_flight: IN_FLIGHT,
            pages_total: self.pages().total(),
            pages_free: self.pages().free(),
            positions_per_page: POSITIONS,
            rewind: REWIND,
        }
    }

    fn length(&self, sequence: SequenceId) -> usize {
        self.pages().length(sequence)
    }

    fn submit(&mut self, work: &[Work<'_>]) -> Result<Ticket, EngineError> {
        self.enter(work, None)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Outcome>, EngineError> {
        match self.in_flight.pop_front_if(|(oldest, _)| *oldest == ticket) {
            Some((_, step)) => self.outcomes(step),
            None => Err(BadRequest::UnknownTicket(ticket).into()),
        }
    }

    fn fork(&mut self, from: SequenceId, to: SequenceId, length: usize) -> Result<(), EngineError> {
        if self.pages().contains(to) {
            return Err(BadRequest::SequenceExists(to).into());
        }
        self.check_rewind(from, length)?;
        self.check_slots(1)?;
        self.pages_mut().fork(from, to, length);
        Ok(())
    }

    fn truncate(&mut self, sequence: SequenceId, length: usize) -> Result<(), EngineError> {
        self.check_rewind(sequence, length)?;
        self.pages_mut().truncate(sequence, length);
        self.forget_drawn(sequence);
        Ok(())
    }

    fn release(&mut self, sequence: SequenceId) {
        self.pages_mut().release(sequence);
        self.in_flight.iter_mut().for_each(|(_, step)| step.release(sequence));
        self.forget_drawn(sequence);
    }

    fn snapshots(&mut self) -> Option<&mut dyn Snapshots> {
        Some(self)
    }
}

impl Inspect for GpuEngine {
    fn inspect(&mut self, work: &[Work<'_>], probe: &mut dyn Probe) -> Result<Vec<Outcome>, EngineError> {
        let ticket = self.enter(work, Some(probe))?;
        // Outcomes of earlier steps remain available by their tickets.
        match self.in_flight.pop_back_if(|(newest, _)| *newest == ticket) {
            Some((_, step)) => self.outcomes(step),
            None => Err(BadRequest::UnknownTicket(ticket).into()),
        }
    }
}

impl ReadCache for GpuEngine {
    fn read_cache(&self, sequence: SequenceId, layer: usize) -> Option<(Vec<usize>, Tensor<3>, Tensor<3>)> {
        if !self.pages().contains(sequence) {
            return None;
        }
        let Forward { gpu, cache, config, .. } = &self.runner.forward;
        let places = cache.position_rows(sequence, layer, config.sliding_window);
        let row = cache.row;
        let pool = cache.layer(layer).pool;
        let read = |pool: &Buffer| {
            let words = gpu.device.read(pool).ok()?;
            let values = |head: usize, place: usize| {
                let first = (place + head * PAGE) * row.words();
                row.decode(&words[first..][..row.words()])
            };
            let heads = (0..row.kv_heads()).flat_map(|head| places.iter().map(move |&(_, place)| (head, place)));
            let values: Vec<f32> = heads.flat_map(|(head, place)| values(head, place)).collect();
            let dims = [row.kv_heads(), places.len(), row.head_dim()];
            Some(Tensor::<3>::from_data(TensorData::new(values, dims), &burn::tensor::Device::flex()))
        };
        let (keys, values) = (read(pool.keys())?, read(pool.values())?);
        Some((places.into_iter().map(|(position, _)| position).collect(), keys, values))
    }
}
