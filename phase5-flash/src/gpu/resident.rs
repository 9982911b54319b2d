//! Generation that stays on the device: a step of some sequences is captured once and replayed, their tokens chosen and fed
//! back where they were computed. The host reads the tokens while the device works on the next.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use cubecl::client::Graph;
use cubecl::future::block_on;
use phase2_forward::{Choice, Continuation, NoProbe};

use super::GpuError;
use super::device::{Buffer, Gpu, Pending};
use super::engine::GpuEngine;
use super::kernels::greedy::{NO_TOKEN, STRIPE_WORDS, Successors};
use super::kernels::sample::{CUT_WORDS, DIGIT_WORDS, Filters, SETTING_WORDS, Sample, rounded, settings};
use super::pass::Pass;
use super::rows::Row;

/// Steps that room is made for at a time.
const STRETCH: usize = 256;
/// Steps that are under way at most: one computes, one waits its turn.
const QUEUED: usize = 2;

/// What generation on the device needs beside the engine's own buffers.
#[derive(Default)]
pub(super) struct Resident {
    buffers: Option<Buffers>,
    captured: Vec<CapturedStep>,
    /// The engine's count of moved buffers that the captured steps know.
    moves: u64,
}

/// Buffers for the choice of `rows` tokens.
pub(super) struct Buffers {
    rows: usize,
    pub logits: Buffer,
    stripes: Buffer,
    tokens: Buffer,
    settings: Buffer,
    draws: Buffer,
    digits: Buffer,
    cuts: Buffer,
}

/// What a step is captured for.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shape {
    rows: usize,
    /// Keys that attention is split for.
    keys: usize,
    choosing: Choosing,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Choosing {
    Likeliest,
    Drawn(Filters),
}

impl Choosing {
    fn of(choices: impl Iterator<Item = Choice> + Clone) -> Choosing {
        match choices.clone().all(|choice| choice.temperature == 0.0) {
            true => Choosing::Likeliest,
            false => Choosing::Drawn(Filters::of(choices)),
        }
    }
}

struct CapturedStep {
    shape: Shape,
    graph: Graph,
}

impl GpuEngine {
    /// What [`Engine::decode`](phase2_forward::Engine::decode) promises, in stretches that room is made for.
    pub(super) fn go_on(
        &mut self,
        batch: &mut [Continuation<'_>],
        count: usize,
        on_tokens: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<(), GpuError> {
        let room = |item: &Continuation<'_>| self.config.context_length - self.caches.length(item.sequence);
        let mut left = batch.iter().map(room).min().unwrap_or(0).min(count);
        while left > 0 {
            let stretch = left.min(STRETCH);
            if self.stretch(batch, stretch, on_tokens)?.is_break() {
                return Ok(());
            }
            left -= stretch;
        }
        Ok(())
    }

    /// One stretch; the batch's tokens are then those to be fed next.
    fn stretch(
        &mut self,
        batch: &mut [Continuation<'_>],
        count: usize,
        on_tokens: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, GpuError> {
        let shape = self.make_room(batch, count)?;
        let row = |item: &Continuation<'_>| Row {
            token: item.token,
            position: self.caches.length(item.sequence) as u32,
            slot: self.caches.slot(item.sequence),
        };
        let rows: Vec<u32> = batch.iter().flat_map(|item| row(item).words()).collect();
        if let Choosing::Drawn(_) = shape.choosing {
            let draws = (0..count)
                .flat_map(|_| batch.iter_mut().map(|item| rounded((item.draws)()).to_bits()).collect::<Vec<_>>());
            let draws = draws.collect();
            self.write_choices(batch.iter().map(|item| item.choice), draws);
        }
        self.capture(shape, &rows)?;
        self.gpu.write(&self.scratch.row_words, rows);

        let gpu = self.gpu.clone();
        let mut pending: VecDeque<Pending<'_>> = VecDeque::new();
        let mut queued = 0;
        let mut outcome = Ok(ControlFlow::Continue(()));
        while queued < count || !pending.is_empty() {
            while queued < count && pending.len() < QUEUED && matches!(outcome, Ok(ControlFlow::Continue(()))) {
                pending.push_back(self.replay(&gpu, shape)?);
                queued += 1;
            }
            // A readback is waited for even when its tokens no longer matter: its staging buffer is mapped until then.
            let Some(read) = pending.pop_front() else { break };
            let words = block_on(read)?;
            if !matches!(outcome, Ok(ControlFlow::Continue(()))) {
                continue;
            }
            let tokens = &words[..batch.len()];
            for (item, &token) in batch.iter_mut().zip(tokens) {
                self.caches.advance(item.sequence, 1);
                item.token = token;
            }
            outcome = match batch.iter().find(|item| item.token == NO_TOKEN) {
                Some(item) => Err(GpuError::NotANumber { position: self.caches.length(item.sequence) }),
                None => Ok(on_tokens(tokens)),
            };
        }
        outcome
    }

    /// Makes room for `count` more positions of every sequence, and says which step takes them there.
    fn make_room(&mut self, batch: &[Continuation<'_>], count: usize) -> Result<Shape, GpuError> {
        let rows = batch.len();
        let mut longest = 0;
        for item in batch {
            let length = self.caches.length(item.sequence) + count;
            self.reserve_positions(item.sequence, length)?;
            longest = longest.max(length);
        }
        self.reserve_rows(rows);
        self.reserve_choices(rows)?;
        let choosing = Choosing::of(batch.iter().map(|item| item.choice));
        Ok(Shape { rows, keys: longest.next_power_of_two(), choosing })
    }

    /// Makes room for choosing `rows` tokens.
    pub(super) fn reserve_choices(&mut self, rows: usize) -> Result<(), GpuError> {
        if self.resident.buffers.as_ref().is_none_or(|buffers| buffers.rows < rows) {
            self.resident.buffers = Some(Buffers::new(&self.gpu, self.config.vocab, rows.next_power_of_two())?);
            self.moves += 1;
        }
        Ok(())
    }

    /// Says how each row's token is drawn, and with which numbers, `[steps, rows]`.
    pub(super) fn write_choices(&self, choices: impl Iterator<Item = Choice>, draws: Vec<u32>) {
        self.gpu.write(&self.buffers().settings, choices.flat_map(settings).collect());
        self.gpu.write(&self.buffers().draws, draws);
    }

    /// Queues a step and the readback of its tokens.
    fn replay<'a>(&self, gpu: &'a Gpu, shape: Shape) -> Result<Pending<'a>, GpuError> {
        let step = self.resident.captured.iter().find(|step| step.shape == shape).expect("captured before");
        // SAFETY: the engine owns every buffer of the step and captures anew when one moves; all work is on one stream.
        unsafe { step.graph.replay() }?;
        Ok(gpu.read_later(&self.buffers().tokens))
    }

    /// Captures a step, unless it is. `rows` are the words of the step to come.
    fn capture(&mut self, shape: Shape, rows: &[u32]) -> Result<(), GpuError> {
        if self.resident.moves != self.moves {
            self.resident.captured.clear();
            self.resident.moves = self.moves;
        }
        if self.resident.captured.iter().any(|step| step.shape == shape) {
            return Ok(());
        }
        let client = self.gpu.client.clone();
        // The warm-up compiles every kernel. It takes the step to come, which then overwrites the keys that it appends.
        self.gpu.write(&self.scratch.row_words, rows.to_vec());
        client.graph_prepare()?;
        self.launch_step(shape);
        client.start_capture()?;
        self.launch_step(shape);
        let graph = client.stop_capture()?;
        self.resident.captured.push(CapturedStep { shape, graph });
        Ok(())
    }

    /// The rows through the model, and the choice of their successors.
    fn launch_step(&self, shape: Shape) {
        self.layers(Pass { rows: shape.rows, sequences: shape.rows, keys: shape.keys, tiles: None }, &mut NoProbe);
        self.logits(shape.rows, &self.scratch.every_row, &self.buffers().logits, &mut NoProbe);
        self.choose(shape.rows, shape.choosing);
    }

    /// Tokens from the logits of `rows` rows, which then stand where they are fed next.
    pub(super) fn choose(&self, rows: usize, choosing: Choosing) {
        let buffers = self.buffers();
        let successors = Successors {
            logits: &buffers.logits,
            vocab: self.config.vocab,
            stripes: &buffers.stripes,
            rows: &self.scratch.row_words,
            tokens: &buffers.tokens,
            inputs: rows,
        };
        match choosing {
            Choosing::Likeliest => successors.launch_greedy(&self.gpu),
            Choosing::Drawn(filters) => Sample {
                successors,
                settings: &buffers.settings,
                draws: &buffers.draws,
                digits: &buffers.digits,
                cuts: &buffers.cuts,
                filters,
            }
            .launch(&self.gpu),
        }
    }

    pub(super) fn buffers(&self) -> &Buffers {
        self.resident.buffers.as_ref().expect("room was made")
    }
}

impl Buffers {
    /// # Errors
    /// More logits than the device binds.
    fn new(gpu: &Gpu, vocab: usize, rows: usize) -> Result<Buffers, GpuError> {
        let need = (rows * vocab * 4) as u64;
        if need > gpu.binding_bytes {
            let what = format!("the logits of {rows} sequences at once (run fewer)");
            return Err(GpuError::Limit { what, need, limit: gpu.binding_bytes });
        }
        Ok(Buffers {
            rows,
            logits: gpu.empty(rows * vocab),
            stripes: gpu.empty(rows * STRIPE_WORDS),
            tokens: gpu.empty(rows),
            settings: gpu.empty(rows * SETTING_WORDS),
            draws: gpu.empty(rows * STRETCH),
            digits: gpu.empty(rows * DIGIT_WORDS),
            cuts: gpu.empty(rows * CUT_WORDS),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use cubecl::MemoryScope;
    use cubecl::wgpu::wgpu;
    use phase1_loading::Checkpoint;
    use phase2_forward::{ComputeDevice, Engine};
    use synthetic::SyntheticModel;

    use super::*;
    use crate::gpu::Options;
    use crate::gpu::kernels::testing::OwnDevice;

    /// What a step does beside computing.
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Trace {
        /// Numbers of the device's queue that it took.
        queued: u64,
        /// Times that the host waits for the device.
        waits: u64,
        /// Bytes of device memory that it added.
        bytes: i64,
    }

    /// The queue's next number; asking takes one.
    fn number(queue: &wgpu::Queue) -> u64 {
        let index = format!("{:?}", queue.submit([]));
        index.chars().filter(char::is_ascii_digit).collect::<String>().parse().expect("a number")
    }

    /// 64 steps in the middle of a stretch, and what a readback does that finds nothing queued.
    fn trace(sequences: u64, choice: Choice) -> (Vec<Trace>, Trace) {
        let OwnDevice { queue, gpu, .. } = OwnDevice::new(16_384);
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("model.gguf");
        SyntheticModel::preset("nano").expect("a preset").write(&path, 1, &mut |_, _| ()).expect("written");
        let checkpoint = Checkpoint::open(&path).expect("opens");
        let [burn, _] = ComputeDevice::for_gates().expect("devices");
        let options = Options::default();
        let loaded = GpuEngine::load_on(gpu.clone(), burn.burn, &checkpoint, options, &mut |_, _| ());
        let mut engine = loaded.expect("loads");
        let seen = || {
            let bytes = gpu.client.memory_report(MemoryScope::Device).usage().bytes_reserved as i64;
            Trace { queued: number(&queue), waits: gpu.waits.load(Ordering::Relaxed), bytes }
        };
        // One number is that of looking.
        let between = |before: Trace, after: Trace| Trace {
            queued: after.queued - before.queued - 1,
            waits: after.waits - before.waits,
            bytes: after.bytes - before.bytes,
        };
        let mut draws = vec![|| 0.5; sequences as usize];
        let mut batch: Vec<_> = (0..)
            .zip(&mut draws)
            .map(|(sequence, draws)| Continuation { sequence, token: sequence as u32, choice, draws })
            .collect();
        let mut marks = Vec::new();
        let listen = &mut |_: &[u32]| {
            marks.push(seen());
            if marks.len() == 128 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        engine.decode(&mut batch, 200, listen).expect("a loop").expect("decodes");
        let steps = marks[63..].windows(2).map(|marks| between(marks[0], marks[1])).collect();
        gpu.sync().expect("still there");
        let before = seen();
        gpu.read(&engine.buffers().tokens).expect("reads");
        (steps, between(before, seen()))
    }

    /// `cargo test -p phase5-flash --release --lib trace -- --nocapture` shows it.
    #[test]
    fn a_trace_of_64_steps_has_one_readback_each_and_no_allocation() {
        let greedy = Choice::LIKELIEST;
        let drawn = Choice { temperature: 0.8, top_p: 0.9, ..greedy };
        for (sequences, choice) in [(1, greedy), (1, drawn), (3, drawn)] {
            let (steps, readback) = trace(sequences, choice);
            println!("{sequences} sequences, {choice:?}; a readback alone: {readback:?}");
            steps.iter().enumerate().for_each(|(number, step)| println!("step {number:2}: {step:?}"));
            assert_eq!((steps.len(), readback.waits, readback.bytes), (64, 1, 0));
            // The launches are one submission. The tokens' copy is another, and wgpu counts the mapping of its target too.
            let expected = Trace { queued: 1 + readback.queued, waits: 1, bytes: 0 };
            assert!(steps.iter().all(|&step| step == expected), "{sequences} {choice:?}: {steps:?}, {expected:?}");
        }
    }
}
