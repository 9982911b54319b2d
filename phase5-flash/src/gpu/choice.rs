//! The choice of tokens from logits on the device: restrictions, the draw, and log probabilities.

use phase2_forward::Draw;

use super::GpuError;
use super::device::{Buffer, Gpu, Pending};
use super::kernels::greedy::{STRIPE_WORDS, Successors};
use super::kernels::logprobs::{LOGPROB_WORDS, STRIPE_TOP_WORDS, TopLogits};
use super::kernels::restrict::{NO_MASK, Restrict, Restrictions};
use super::kernels::sample::{CUT_WORDS, DIGIT_WORDS, Filters, SETTING_WORDS, Sample, settings};
use super::rows::ROW_WORDS;

/// The most rows whose logits are computed together: those of more fill gigabytes.
pub(super) const MOST_LOGITS: usize = 128;

/// The kernels that some draws need.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Choosing {
    /// `None` takes the largest logits.
    pub filters: Option<Filters>,
    pub restricted: bool,
    pub logprobs: bool,
}

impl Choosing {
    pub const GREEDY: Choosing = Choosing { filters: None, restricted: false, logprobs: false };

    fn of(draws: &[&Draw<'_>]) -> Choosing {
        let greedy = draws.iter().all(|draw| draw.is_greedy());
        Choosing {
            filters: (!greedy).then(|| Filters::of(draws.iter().copied())),
            restricted: draws.iter().any(|draw| draw.allowed.is_some() || !draw.adjustments.is_empty()),
            logprobs: draws.iter().any(|draw| draw.logprobs.is_some()),
        }
    }
}

/// Buffers for the choice of `rows` tokens.
pub(super) struct Choices {
    rows: usize,
    vocab: usize,
    /// `[rows, vocab]`
    pub logits: Buffer,
    stripes: Buffer,
    tokens: Buffer,
    settings: Buffer,
    /// What `settings` holds.
    settings_words: Vec<u32>,
    digits: Buffer,
    cuts: Buffer,
    /// Describes the rows that are drawn for, where they are not the pass's own.
    pub row_words: Buffer,
    restricted: Option<Restricted>,
    logprobs: Option<Top>,
}

/// What restrictions need.
struct Restricted {
    logits: Buffer,
    mask_of: Buffer,
    masks: Buffer,
    adjustments: Buffer,
}

/// What log probabilities need.
struct Top {
    stripes: Buffer,
    out: Buffer,
}

impl Choices {
    pub fn new(gpu: &Gpu, vocab: usize, rows: usize) -> Choices {
        Choices {
            rows,
            vocab,
            logits: gpu.empty(rows * vocab),
            stripes: gpu.empty(rows * STRIPE_WORDS),
            tokens: gpu.empty(rows),
            settings: gpu.empty(rows * SETTING_WORDS),
            settings_words: Vec::new(),
            digits: gpu.empty(rows * DIGIT_WORDS),
            cuts: gpu.empty(rows * CUT_WORDS),
            row_words: gpu.empty(rows * ROW_WORDS as usize),
            restricted: None,
            logprobs: None,
        }
    }

    /// The most rows whose logits the device binds in one piece, up to [`MOST_LOGITS`].
    ///
    /// # Errors
    /// None at all.
    pub fn most_rows(gpu: &Gpu, vocab: usize) -> Result<usize, GpuError> {
        let need = vocab as u64 * 4;
        match (gpu.binding_bytes / need) as usize {
            0 => Err(GpuError::Limit { what: "the logits of one position".into(), need, limit: gpu.binding_bytes }),
            rows => Ok(rows.min(MOST_LOGITS)),
        }
    }

    /// Makes room for `rows` tokens. Whether buffers moved, so that captured steps are void.
    pub fn reserve(&mut self, gpu: &Gpu, rows: usize) -> bool {
        let grows = rows > self.rows;
        if grows {
            *self = Choices::new(gpu, self.vocab, rows.next_power_of_two());
        }
        grows
    }

    /// Writes how the tokens of `rows` rows, which there is room for, are drawn; rows behind the draws are padding. Says which kernels
    /// that takes, and whether buffers moved.
    pub fn prepare(&mut self, gpu: &Gpu, draws: &[&Draw<'_>], rows: usize) -> (Choosing, bool) {
        let choosing = Choosing::of(draws);
        if choosing.filters.is_some() {
            let of_row = |row: usize| settings(draws.get(row).unwrap_or(&draws[0]));
            let words: Vec<u32> = (0..rows).flat_map(of_row).collect();
            if words != self.settings_words {
                gpu.write_at(&self.settings, 0, words.clone());
                self.settings_words = words;
            }
        }
        let moved = choosing.restricted && self.restrict(gpu, draws, rows);
        let missing = choosing.logprobs && self.logprobs.is_none();
        if missing {
            let room = |words: usize| gpu.empty(self.rows * words);
            self.logprobs = Some(Top { stripes: room(STRIPE_TOP_WORDS), out: room(LOGPROB_WORDS) });
        }
        (choosing, moved || missing)
    }

    /// Writes masks and adjustments. Whether buffers moved.
    fn restrict(&mut self, gpu: &Gpu, draws: &[&Draw<'_>], rows: usize) -> bool {
        let Some(Restrictions { mut mask_of, masks, adjustments }) = Restrictions::of(draws) else { return false };
        mask_of.resize(rows, NO_MASK);
        let fits = |known: &Restricted| known.adjustments.len >= adjustments.len();
        let moved = !self.restricted.as_ref().is_some_and(fits);
        if moved {
            self.restricted = Some(Restricted {
                logits: gpu.empty(self.rows * self.vocab),
                mask_of: gpu.empty(self.rows),
                masks: gpu.empty(self.rows * self.vocab.div_ceil(32)),
                adjustments: gpu.empty(adjustments.len().next_power_of_two().max(1024)),
            });
        }
        if let Some(known) = &self.restricted {
            gpu.write_at(&known.mask_of, 0, mask_of);
            gpu.write_at(&known.masks, 0, masks);
            gpu.write_at(&known.adjustments, 0, adjustments);
        }
        moved
    }

    /// Tokens from the logits of `rows` rows. They go to `drawn`, by slot, and `row_words` then describe what is fed next.
    pub fn launch(&self, gpu: &Gpu, choosing: Choosing, row_words: &Buffer, drawn: &Buffer, rows: usize) {
        let (vocab, inputs) = (self.vocab, rows);
        let mut logits = &self.logits;
        if let Some(known) = self.restricted.as_ref().filter(|_| choosing.restricted) {
            let Restricted { logits: out, mask_of, masks, adjustments } = known;
            Restrict { logits, out, vocab, mask_of, masks, adjustments, inputs }.launch(gpu);
            logits = out;
        }
        let (stripes, tokens) = (&self.stripes, &self.tokens);
        let successors = Successors { logits, vocab, stripes, rows: row_words, drawn, tokens, inputs };
        match choosing.filters {
            None => successors.launch_greedy(gpu),
            Some(filters) => {
                let (settings, digits, cuts) = (&self.settings, &self.digits, &self.cuts);
                Sample { successors, settings, digits, cuts, filters }.launch(gpu);
            }
        }
        if let Some(Top { stripes, out }) = self.logprobs.as_ref().filter(|_| choosing.logprobs) {
            TopLogits { logits: &self.logits, vocab, tokens, stripes, out, inputs }.launch(gpu);
        }
    }

    /// Begins to read the tokens and, where some are wanted, the log probabilities.
    pub fn read_later(&self, gpu: &Gpu, choosing: Choosing) -> Pending {
        match self.logprobs.as_ref().filter(|_| choosing.logprobs) {
            Some(top) => gpu.read_later(&[&self.tokens, &top.out]),
            None => gpu.read_later(&[&self.tokens]),
        }
    }
}
