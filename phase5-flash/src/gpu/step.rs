//! Steps: work items become the rows of one pass, and what each item wants is on its way to the host while the next step runs.

use std::collections::HashSet;

use phase2_forward::{Draw, DrawnToken, EngineError, Input, NoProbe, Outcome, Probe, SequenceId, Ticket, Want, Work};

use super::GpuError;
use super::captured::Shape;
use super::device::Pending;
use super::engine::GpuEngine;
use super::kernels::greedy::NO_TOKEN;
use super::kernels::logprobs::{LOGPROB_WORDS, read_logprobs};
use super::kernels::prefill;
use super::pass::{Pass, rows_a_tile};
use super::rows::Row;

/// Positions that padding rows go through before they begin anew.
const PADDING_POSITIONS: u32 = 64;

/// A step that was submitted.
pub(super) struct Step {
    pub ticket: Ticket,
    wanted: Vec<Wanted>,
    readings: Vec<Reading>,
}

/// What an item wants, and the length of its sequence after the step.
struct Wanted {
    /// `None` once it was released: another one may have its number by now.
    sequence: Option<SequenceId>,
    what: What,
    length: usize,
}

enum What {
    Nothing,
    Logits { rows: usize },
    Token { logprobs: Option<usize> },
}

/// Words on their way to the host.
enum Reading {
    /// Tokens of so many rows, perhaps with log probabilities.
    Drawn { rows: usize, words: Pending },
    /// Logits of so many rows.
    Logits { rows: usize, words: Pending },
    /// Something of the last result: it says whether all kernels ran.
    Done(Pending),
}

impl GpuEngine {
    /// Begins a step that has been checked, and whose rows there is room for in the cache; `lengths` are those that its sequences
    /// reach. With a probe it is launched operation by operation.
    pub(super) fn begin(
        &mut self,
        work: &[Work<'_>],
        lengths: &[(SequenceId, usize)],
        probe: Option<&mut dyn Probe>,
    ) -> Result<Ticket, GpuError> {
        let mut rows = Vec::new();
        for (item, &(sequence, length)) in work.iter().zip(lengths) {
            let slot = self.cache.slot(sequence);
            let row = |token, position| Row { token, position: position as u32, slot };
            match item.input {
                Input::Drawn => rows.push(row(None, length - 1)),
                Input::Tokens(tokens) => {
                    let first = length - tokens.len();
                    rows.extend(tokens.iter().enumerate().map(|(i, &token)| row(Some(token), first + i)));
                }
            }
        }
        self.reserve_positions(lengths.iter().map(|&(_, length)| length).max().unwrap_or(0));
        let draws: Vec<&Draw<'_>> = work.iter().filter_map(drawn_by).collect();
        // Every row draws.
        let decodes = rows.len() == work.len() && draws.len() == rows.len();
        let readings = match probe {
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
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let wanted = work.iter().zip(lengths).map(wanted).collect();
        self.steps.push_back(Step { ticket, wanted, readings });
        Ok(ticket)
    }

    /// One token of each row's sequence, by a captured step.
    fn decode(&mut self, rows: &[Row], draws: &[&Draw<'_>]) -> Result<Vec<Reading>, GpuError> {
        let padded = Shape::padded(rows.len());
        self.reserve_rows(padded);
        self.moves += u64::from(self.choices.reserve(&self.gpu, padded));
        let (choosing, moved) = self.choices.prepare(&self.gpu, draws, padded);
        self.moves += u64::from(moved);
        self.place_decoding(rows, padded);
        let keys = rows.iter().map(|row| row.position as usize + 1).max().unwrap_or(1);
        self.run_captured(Shape { rows: padded, keys: Shape::keys(keys), choosing })?;
        for row in &mut self.placed {
            *row = Row { token: None, position: row.position + 1, slot: row.slot };
        }
        let words = self.choices.read_later(&self.gpu, choosing);
        Ok(vec![Reading::Drawn { rows: rows.len(), words }])
    }

    /// Puts rows where a captured step finds them, unless the last one has left them there.
    fn place_decoding(&mut self, rows: &[Row], padded: usize) {
        let padding_slot = self.cache.padding_slot;
        let is_placed = |(placed, row): (&Row, &Row)| placed == row;
        let is_padding = |placed: &Row| placed.slot == padding_slot && placed.position < PADDING_POSITIONS;
        let placed = self.placed.len() == padded
            && self.placed.iter().zip(rows).all(is_placed)
            && self.placed[rows.len()..].iter().all(is_padding);
        if !placed {
            let padding = Row { token: Some(0), position: 0, slot: padding_slot };
            self.placed = rows.iter().copied().chain(std::iter::repeat_n(padding, padded - rows.len())).collect();
            self.write_rows(&self.placed);
        }
    }

    /// Any rows, launch by launch; then the draws and logits that items want.
    fn pass(&mut self, work: &[Work<'_>], rows: &[Row], probe: &mut dyn Probe) -> Result<Vec<Reading>, GpuError> {
        self.reserve_rows(rows.len());
        let pass = self.place(rows);
        self.layers(pass, probe);

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
        let mut readings = Vec::new();
        for (drawing, draws) in drawing.chunks(self.most_logits).zip(draws.chunks(self.most_logits)) {
            let count = drawing.len();
            self.pick(drawing, probe);
            let (choosing, moved) = self.choices.prepare(&self.gpu, draws, count);
            self.moves += u64::from(moved);
            let words = drawing.iter().flat_map(|&row| rows[row].words()).collect();
            self.gpu.write_at(&self.choices.row_words, 0, words);
            self.choices.launch(&self.gpu, choosing, &self.choices.row_words, &self.drawn, count);
            readings.push(Reading::Drawn { rows: count, words: self.choices.read_later(&self.gpu, choosing) });
        }
        for picked in plain.chunks(self.most_logits) {
            self.pick(picked, probe);
            let logits = self.choices.logits.first(picked.len() * self.config.vocab);
            readings.push(Reading::Logits { rows: picked.len(), words: self.gpu.read_later(&[&logits]) });
        }
        if readings.is_empty() {
            readings.push(Reading::Done(self.gpu.read_later(&[&self.scratch.x.first(1)])));
        }
        Ok(readings)
    }

    /// Puts rows where a pass finds them.
    pub(super) fn place(&mut self, rows: &[Row]) -> Pass {
        self.placed.clear();
        self.write_rows(rows);
        let keys = rows.iter().map(|row| row.position as usize + 1).max().unwrap_or(0);
        let slots: HashSet<u32> = rows.iter().map(|row| row.slot).collect();
        let tiles = rows_a_tile(&self.gpu, &self.config).map(|most| prefill::tiles(rows, most));
        // A tile of one row costs as much as one of four.
        let tiles = tiles.unwrap_or_default();
        let count = tiles.len() / prefill::TILE_WORDS;
        let tiled = count > 0 && 2 * count <= rows.len();
        if tiled {
            self.gpu.write_at(&self.scratch.row_tiles, 0, tiles);
        }
        Pass { rows: rows.len(), sequences: slots.len(), keys, tiles: tiled.then_some(count) }
    }

    /// Describes the rows of the next pass to the device.
    pub(super) fn write_rows(&self, rows: &[Row]) {
        self.gpu.write_at(&self.scratch.row_words, 0, rows.iter().flat_map(|row| row.words()).collect());
    }

    /// The logits of some rows of the last pass, into `choices.logits`.
    fn pick(&mut self, picked: &[usize], probe: &mut dyn Probe) {
        self.moves += u64::from(self.choices.reserve(&self.gpu, picked.len()));
        self.gpu.write_at(&self.scratch.picks, 0, picked.iter().map(|&row| row as u32).collect());
        self.logits(picked.len(), &self.scratch.picks, &self.choices.logits, probe);
    }
}

impl Step {
    /// The sequence of each item, `None` for those that were released since.
    pub fn sequences(&self) -> Vec<Option<SequenceId>> {
        self.wanted.iter().map(|wanted| wanted.sequence).collect()
    }

    /// Takes note that a sequence was released.
    pub fn release(&mut self, sequence: SequenceId) {
        for wanted in self.wanted.iter_mut().filter(|wanted| wanted.sequence == Some(sequence)) {
            wanted.sequence = None;
        }
    }

    /// Waits for the step.
    ///
    /// # Errors
    /// A device that failed.
    pub fn wait(self) -> Result<(), GpuError> {
        for reading in self.readings {
            let (Reading::Drawn { words, .. } | Reading::Logits { words, .. } | Reading::Done(words)) = reading;
            words.wait()?;
        }
        Ok(())
    }

    /// Waits for the step's results.
    ///
    /// # Errors
    /// A device that failed.
    pub fn outcomes(self, vocab: usize) -> Result<Vec<Outcome>, EngineError> {
        let (mut drawn, mut logits) = (Vec::new(), Vec::new());
        for reading in self.readings {
            match reading {
                Reading::Drawn { rows, words } => {
                    let mut words = words.wait()?.into_iter();
                    let tokens = words.next().unwrap_or_default();
                    let tops = words.next().unwrap_or_default();
                    let mut tops = tops.chunks_exact(LOGPROB_WORDS).map(<[u32]>::to_vec);
                    drawn.extend(tokens[..rows].iter().map(|&token| (token, tops.next())));
                }
                Reading::Logits { rows, words } => {
                    let words = words.wait()?.swap_remove(0);
                    logits.extend(words[..rows * vocab].iter().copied().map(f32::from_bits));
                }
                Reading::Done(words) => {
                    words.wait()?;
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
            What::Token { logprobs } => match drawn.next() {
                Some((id, top)) if id != NO_TOKEN => {
                    let logprobs = logprobs.zip(top).map(|(count, words)| read_logprobs(&words, count));
                    Outcome::Token(DrawnToken { id, logprobs })
                }
                _ => Outcome::NotANumber { position: length },
            },
        };
        Ok(self.wanted.into_iter().map(outcome).collect())
    }
}

/// Tokens that an item feeds.
pub(super) fn fed(item: &Work<'_>) -> usize {
    match item.input {
        Input::Tokens(tokens) => tokens.len(),
        Input::Drawn => 1,
    }
}

fn drawn_by<'w>(item: &'w Work<'_>) -> Option<&'w Draw<'w>> {
    if let Want::Token(draw) = &item.want { Some(draw) } else { None }
}
