//! Steps: the tokens of all work items become the rows of one pass, and results are read back while the next step runs.

use gpu_kernels::{Device, Error, Readback, Row};
use phase2_forward::{Draw, EngineError, Input, NoProbe, Outcome, Probe, SequenceId, Want, Work};

use super::captured::{CapturedSteps, Shape};
use super::choice::{Choices, drawn_tokens};
use super::error::GpuError;
use super::forward::Forward;
use super::plan::Pass;

/// Padding rows cycle through this many positions.
const PADDING_POSITIONS: u32 = 64;

/// A submitted step.
pub(super) struct Step {
    wanted: Vec<Wanted>,
    outputs: Vec<StepOutput>,
}

/// The requested result of a work item, and the length of its sequence after the step.
struct Wanted {
    /// `None` after the release of the sequence, because its number may have been reused.
    sequence: Option<SequenceId>,
    what: What,
    length: usize,
}

enum What {
    Nothing,
    Logits { rows: usize },
    Token { logprobs: Option<usize> },
}

/// A pending transfer to the host.
enum StepOutput {
    /// Drawn tokens of `rows` rows, with log probabilities if some are requested.
    Drawn { rows: usize, words: Readback },
    /// Logits of `rows` rows.
    Logits { rows: usize, words: Readback },
    /// Part of the last result, read only to know that all kernels ran.
    Done(Readback),
}

/// Submits steps to the device.
pub(super) struct Runner {
    pub forward: Forward,
    pub choices: Choices,
    /// The most rows whose logits are computed together.
    most_logits: usize,
    captured: CapturedSteps,
}

impl Runner {
    pub fn new(forward: Forward, most_logits: usize) -> Runner {
        let choices = Choices::new(&forward.gpu.device, forward.config.vocab, 1);
        Runner { forward, choices, most_logits, captured: CapturedSteps::default() }
    }

    /// Submits a step that was checked and whose pages are allocated; `lengths` are its sequences' lengths afterwards. With a probe it is
    /// launched operation by operation.
    pub fn begin(
        &mut self,
        work: &[Work<'_>],
        lengths: &[(SequenceId, usize)],
        probe: Option<&mut dyn Probe>,
    ) -> Result<Step, GpuError> {
        let mut rows = Vec::new();
        for (item, &(sequence, length)) in work.iter().zip(lengths) {
            let slot = self.forward.cache.slot(sequence);
            let row = |token, position| Row { token, position: position as u32, slot };
            match item.input {
                Input::Drawn => rows.push(row(None, length - 1)),
                Input::Tokens(tokens) => {
                    let first = length - tokens.len();
                    rows.extend(tokens.iter().enumerate().map(|(i, &token)| row(Some(token), first + i)));
                }
            }
        }
        self.forward.reserve_positions(lengths.iter().map(|&(_, length)| length).max().unwrap_or(0));
        let draws: Vec<&Draw<'_>> = work.iter().filter_map(drawn_by).collect();
        // Every item feeds one token and draws the next.
        let decodes = rows.len() == work.len() && draws.len() == rows.len();
        let outputs = match probe {
            None if decodes && Shape::padded(rows.len()) <= self.most_logits => self.decode(&rows, &draws)?,
            None => self.pass(work, &rows, &mut NoProbe)?,
            Some(probe) => self.pass(work, &rows, probe)?,
        };
        let wanted = |(item, &(sequence, length)): (&Work<'_>, &(SequenceId, usize))| {
            let what = match &item.want {
                Want::Nothing => What::Nothing,
                Want::Token(draw) => What::Token { logprobs: draw.logprobs },
                want => What::Logits { rows: want.rows(fed(item)) },
            };
            Wanted { sequence: Some(sequence), what, length }
        };
        Ok(Step { wanted: work.iter().zip(lengths).map(wanted).collect(), outputs })
    }

    /// Decodes one token for each row with a captured step.
    fn decode(&mut self, rows: &[Row], draws: &[&Draw<'_>]) -> Result<Vec<StepOutput>, GpuError> {
        let padded = Shape::padded(rows.len());
        let device = self.forward.gpu.device.clone();
        self.forward.reserve_rows(padded);
        self.forward.epoch += u64::from(self.choices.reserve(&device, padded));
        let (features, moved) = self.choices.prepare(&device, draws, padded);
        self.forward.epoch += u64::from(moved);
        self.place_decoding(rows, padded);
        let keys = rows.iter().map(|row| row.position as usize + 1).max().unwrap_or(1);
        let shape = Shape { rows: padded, keys: Shape::keys(keys), features };
        let Runner { forward, choices, captured, .. } = self;
        // SAFETY: forward and choices own every buffer of the step, and `epoch` counts whenever one is replaced.
        unsafe { captured.run(&device, shape, forward.epoch, &|| launch_step(forward, choices, shape)) }?;
        for row in &mut self.forward.placed {
            *row = Row { token: None, position: row.position + 1, slot: row.slot };
        }
        let words = self.choices.start_read(&device, features);
        Ok(vec![StepOutput::Drawn { rows: rows.len(), words }])
    }

    /// Writes the descriptions of the rows for a captured step, unless the previous one has left them in place.
    fn place_decoding(&mut self, rows: &[Row], padded: usize) {
        let forward = &mut self.forward;
        let padding_slot = forward.cache.padding_slot;
        let is_placed = |(placed, row): (&Row, &Row)| placed == row;
        let is_padding = |placed: &Row| placed.slot == padding_slot && placed.position < PADDING_POSITIONS;
        let placed = forward.placed.len() == padded
            && forward.placed.iter().zip(rows).all(is_placed)
            && forward.placed[rows.len()..].iter().all(is_padding);
        if !placed {
            let padding = Row { token: Some(0), position: 0, slot: padding_slot };
            forward.placed = rows.iter().copied().chain(std::iter::repeat_n(padding, padded - rows.len())).collect();
            forward.write_rows(&forward.placed);
        }
    }

    /// Computes any rows, launch by launch, and then the draws and logits that the items request.
    fn pass(&mut self, work: &[Work<'_>], rows: &[Row], probe: &mut dyn Probe) -> Result<Vec<StepOutput>, GpuError> {
        let device = self.forward.gpu.device.clone();
        self.forward.reserve_rows(rows.len());
        let pass = self.forward.set_rows(rows);
        self.forward.layers(pass, probe);

        let (mut drawing, mut draws, mut plain) = (Vec::new(), Vec::new(), Vec::new());
        let mut end = 0;
        for item in work {
            end += fed(item);
            match drawn_by(item) {
                Some(draw) => {
                    drawing.push(end - 1);
                    draws.push(draw);
                }
                None => plain.extend(end - item.want.rows(fed(item))..end),
            }
        }
        let mut outputs = Vec::new();
        for (drawing, draws) in drawing.chunks(self.most_logits).zip(draws.chunks(self.most_logits)) {
            let count = drawing.len();
            self.pick(drawing, probe);
            let (features, moved) = self.choices.prepare(&device, draws, count);
            self.forward.epoch += u64::from(moved);
            let words = drawing.iter().flat_map(|&row| rows[row].words()).collect();
            device.write_at(&self.choices.row_words, 0, words);
            self.choices.launch(&device, features, &self.choices.row_words, &self.forward.drawn, count);
            outputs.push(StepOutput::Drawn { rows: count, words: self.choices.start_read(&device, features) });
        }
        for picked in plain.chunks(self.most_logits) {
            self.pick(picked, probe);
            let logits = self.choices.logits.first(picked.len() * self.forward.config.vocab);
            outputs.push(StepOutput::Logits { rows: picked.len(), words: device.start_read(&[&logits]) });
        }
        if outputs.is_empty() {
            outputs.push(StepOutput::Done(device.start_read(&[&self.forward.buffers.x.first(1)])));
        }
        Ok(outputs)
    }

    /// Computes the logits of some rows of the last pass, into `choices.logits`.
    fn pick(&mut self, picked: &[usize], probe: &mut dyn Probe) {
        let forward = &mut self.forward;
        let device: &Device = &forward.gpu.device;
        forward.epoch += u64::from(self.choices.reserve(device, picked.len()));
        device.write_at(&forward.buffers.row_indices, 0, picked.iter().map(|&row| row as u32).collect());
        forward.logits(picked.len(), &forward.buffers.row_indices, &self.choices.logits, probe);
    }
}

/// Launches a decoding step: the forward pass of the rows and the choice of their next tokens.
fn launch_step(forward: &Forward, choices: &Choices, Shape { rows, keys, features }: Shape) {
    let buffers = &forward.buffers;
    forward.layers(Pass { rows, sequences: rows, keys, tiles: None }, &mut NoProbe);
    forward.logits(rows, &buffers.every_row, &choices.logits, &mut NoProbe);
    choices.launch(&forward.gpu.device, features, &buffers.row_words, &forward.drawn, rows);
}

impl Step {
    /// The sequence of each item; `None` for those that have been released.
    pub fn sequences(&self) -> Vec<Option<SequenceId>> {
        self.wanted.iter().map(|wanted| wanted.sequence).collect()
    }

    /// Marks a sequence as released.
    pub fn release(&mut self, sequence: SequenceId) {
        for wanted in self.wanted.iter_mut().filter(|wanted| wanted.sequence == Some(sequence)) {
            wanted.sequence = None;
        }
    }

    /// Waits until the step has run.
    ///
    /// # Errors
    /// The device failed.
    pub fn wait(self) -> Result<(), Error> {
        for output in self.outputs {
            let (StepOutput::Drawn { words, .. } | StepOutput::Logits { words, .. } | StepOutput::Done(words)) = output;
            words.wait()?;
        }
        Ok(())
    }

    /// Waits for the step's results.
    ///
    /// # Errors
    /// The device failed.
    pub fn outcomes(self, vocab: usize) -> Result<Vec<Outcome>, EngineError> {
        let (mut drawn, mut logits) = (Vec::new(), Vec::new());
        for output in self.outputs {
            match output {
                StepOutput::Drawn { rows, words } => {
                    drawn.extend(drawn_tokens(words.wait().map_err(GpuError::from)?, rows));
                }
                StepOutput::Logits { rows, words } => {
                    let words = words.wait().map_err(GpuError::from)?.swap_remove(0);
                    logits.extend(words[..rows * vocab].iter().copied().map(f32::from_bits));
                }
                StepOutput::Done(words) => {
                    words.wait().map_err(GpuError::from)?;
                }
            }
        }
        let (mut drawn, mut logits) = (drawn.into_iter(), logits.into_iter());
        let outcome = |Wanted { what, length, .. }| match what {
            What::Nothing => Outcome::Fed,
            What::Logits { rows } => {
                let logits: Vec<f32> = logits.by_ref().take(rows * vocab).collect();
                match logits.iter().any(|logit| logit.is_nan()) {
                    true => Outcome::NotANumber { position: length },
                    false => Outcome::Logits(logits),
                }
            }
            What::Token { logprobs } => match drawn.next().flatten() {
                Some(drawn) => Outcome::Token(drawn.with_logprobs(logprobs)),
                None => Outcome::NotANumber { position: length },
            },
        };
        Ok(self.wanted.into_iter().map(outcome).collect())
    }
}

/// Number of tokens that an item feeds.
pub(super) fn fed(item: &Work<'_>) -> usize {
    match item.input {
        Input::Tokens(tokens) => tokens.len(),
        Input::Drawn => 1,
    }
}

fn drawn_by<'w>(item: &'w Work<'_>) -> Option<&'w Draw<'w>> {
    if let Want::Token(draw) = &item.want { Some(draw) } else { None }
}

#[cfg(test)]
mod tests {
    use cubecl::wgpu::wgpu;
    use phase2_forward::{Engine, EngineError, Want, Work};

    use crate::gpu::captured::tests::alone;

    #[test]
    fn a_step_without_results_says_that_the_device_was_lost() {
        let (own, mut engine) = alone(2);
        let work = [Work::tokens(0, &[1, 2, 3], Want::Nothing)];
        engine.step(&work).expect("the device was not lost yet");
        own.wgpu.destroy();
        // The driver reports the loss only when the device is polled.
        let _ = own.wgpu.poll(wgpu::PollType::Poll);
        let refused = engine.step(&work);
        assert!(matches!(refused, Err(EngineError::Lost(_))), "{refused:?}");
    }
}
