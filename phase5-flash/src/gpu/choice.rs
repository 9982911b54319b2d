//! Choosing tokens from logits on the device: masks and adjustments, the draw, and log probabilities.

use gpu_kernels::sampling::{
    self, DrawSettings, Filters, HISTOGRAM_WORDS, LogitAdjustment, MAX_TOP_LOGITS, NO_MASK, NO_TOKEN, NextTokens,
    PARTIAL_MAX_WORDS, Restrict, RowTop, SETTING_WORDS, STRIPE_TOP_WORDS, THRESHOLD_WORDS, TOP_LOGITS_WORDS, TopLogits,
    adjustment_words, mask_words,
};
use gpu_kernels::{Buffer, Device, Error, ROW_WORDS, Readback};
use phase2_forward::{Adjustment, Draw, DrawnToken, Logprobs, MAX_LOGPROBS, Sampling};

const _: () = assert!(MAX_LOGPROBS <= MAX_TOP_LOGITS, "the kernel finds as many as can be requested");

/// The most rows whose logits are computed together, to limit memory.
pub(super) const MAX_LOGITS: usize = 128;

/// The kernels that some draws need.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct DrawFeatures {
    /// `None` if all draws are greedy.
    pub filters: Option<Filters>,
    pub restricted: bool,
    pub logprobs: bool,
}

impl DrawFeatures {
    pub const GREEDY: DrawFeatures = DrawFeatures { filters: None, restricted: false, logprobs: false };

    fn of(draws: &[&Draw<'_>]) -> DrawFeatures {
        let greedy = draws.iter().all(|draw| draw.is_greedy());
        DrawFeatures {
            filters: (!greedy).then(|| Filters::of(draws.iter().map(|draw| settings(draw)))),
            restricted: draws.iter().any(|draw| is_restricted(draw)),
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
    partial_max: Buffer,
    tokens: Buffer,
    settings: Buffer,
    /// The contents of `settings`.
    settings_words: Vec<u32>,
    histogram: Buffer,
    thresholds: Buffer,
    /// Describes the rows to draw for, if they are not all rows of the pass.
    pub row_words: Buffer,
    restricted: Option<Restricted>,
    logprobs: Option<Top>,
}

/// Buffers for masks and adjustments.
struct Restricted {
    logits: Buffer,
    mask_of: Buffer,
    masks: Buffer,
    adjustments: Buffer,
}

/// Buffers for log probabilities.
struct Top {
    stripes: Buffer,
    out: Buffer,
}

impl Choices {
    pub fn new(device: &Device, vocab: usize, rows: usize) -> Choices {
        Choices {
            rows,
            vocab,
            logits: device.empty(rows * vocab),
            partial_max: device.empty(rows * PARTIAL_MAX_WORDS),
            tokens: device.empty(rows),
            settings: device.empty(rows * SETTING_WORDS),
            settings_words: Vec::new(),
            histogram: device.empty(rows * HISTOGRAM_WORDS),
            thresholds: device.empty(rows * THRESHOLD_WORDS),
            row_words: device.empty(rows * ROW_WORDS as usize),
            restricted: None,
            logprobs: None,
        }
    }

    /// The most rows whose logits fit a binding of `limit` bytes, up to [`MAX_LOGITS`].
    ///
    /// # Errors
    /// A binding cannot hold one row of logits.
    pub fn most_rows(limit: u64, vocab: usize) -> Result<usize, Error> {
        let need = vocab as u64 * 4;
        match limit / need {
            0 => Err(Error::Limit { what: "a row of logits".into(), need, limit }),
            rows => Ok(rows.min(MAX_LOGITS as u64) as usize),
        }
    }

    /// Makes room for `rows` tokens. Returns whether buffers were replaced, which invalidates captured steps.
    pub fn reserve(&mut self, device: &Device, rows: usize) -> bool {
        let grows = rows > self.rows;
        if grows {
            *self = Choices::new(device, self.vocab, rows.next_power_of_two());
        }
        grows
    }

    /// Writes the settings of the draws for `rows` rows, which must have been reserved; rows past the draws are padding. Returns the
    /// kernels that are needed, and whether buffers were replaced.
    pub fn prepare(&mut self, device: &Device, draws: &[&Draw<'_>], rows: usize) -> (DrawFeatures, bool) {
        let features = DrawFeatures::of(draws);
        if features.filters.is_some() {
            let of_row = |row: usize| settings(draws.get(row).unwrap_or(&draws[0])).words();
            let words: Vec<u32> = (0..rows).flat_map(of_row).collect();
            if words != self.settings_words {
                device.write_at(&self.settings, 0, words.clone());
                self.settings_words = words;
            }
        }
        let moved = features.restricted && self.restrict(device, draws, rows);
        let missing = features.logprobs && self.logprobs.is_none();
        if missing {
            let room = |words: usize| device.empty(self.rows * words);
            self.logprobs = Some(Top { stripes: room(STRIPE_TOP_WORDS), out: room(TOP_LOGITS_WORDS) });
        }
        (features, moved || missing)
    }

    /// Writes masks and adjustments. Returns whether buffers were replaced.
    fn restrict(&mut self, device: &Device, draws: &[&Draw<'_>], rows: usize) -> bool {
        let mut masks = Vec::new();
        let mut mask_of: Vec<u32> = Vec::new();
        for draw in draws {
            let number = (masks.len() / mask_words(self.vocab)) as u32;
            mask_of.push(if draw.allowed.is_some() { number } else { NO_MASK });
            masks.extend_from_slice(draw.allowed.unwrap_or_default());
        }
        mask_of.resize(rows, NO_MASK);
        let adjustments = adjustment_words(&adjustments(draws));
        let fits = |known: &Restricted| known.adjustments.len() >= adjustments.len();
        let moved = !self.restricted.as_ref().is_some_and(fits);
        if moved {
            self.restricted = Some(Restricted {
                logits: device.empty(self.rows * self.vocab),
                mask_of: device.empty(self.rows),
                masks: device.empty(self.rows * mask_words(self.vocab)),
                adjustments: device.empty(adjustments.len().next_power_of_two().max(1024)),
            });
        }
        if let Some(known) = &self.restricted {
            device.write_at(&known.mask_of, 0, mask_of);
            device.write_at(&known.masks, 0, masks);
            device.write_at(&known.adjustments, 0, adjustments);
        }
        moved
    }

    /// Draws tokens from the logits of `rows` rows into `drawn`, by slot (the number that
    /// identifies a row's sequence). `row_words` then describes the rows of the next step.
    pub fn launch(&self, device: &Device, features: DrawFeatures, row_words: &Buffer, drawn: &Buffer, rows: usize) {
        let (vocab, inputs) = (self.vocab, rows);
        let mut logits = &self.logits;
        if let Some(known) = self.restricted.as_ref().filter(|_| features.restricted) {
            let Restricted { logits: out, mask_of, masks, adjustments } = known;
            Restrict { logits, out, vocab, mask_of, masks, adjustments, inputs }.launch(device);
            logits = out;
        }
        let (partial_max, tokens) = (&self.partial_max, &self.tokens);
        let next = NextTokens { logits, vocab, partial_max, rows: row_words, drawn, tokens, inputs };
        match features.filters {
            None => next.launch_argmax(device),
            Some(filters) => {
                let (settings, histogram, thresholds) = (&self.settings, &self.histogram, &self.thresholds);
                sampling::Draw { next, settings, histogram, thresholds, filters }.launch(device);
            }
        }
        if let Some(Top { stripes, out }) = self.logprobs.as_ref().filter(|_| features.logprobs) {
            TopLogits { logits: &self.logits, vocab, tokens, stripes, out, inputs }.launch(device);
        }
    }

    /// Starts reading the tokens, and log probabilities if some are requested.
    pub fn start_read(&self, device: &Device, features: DrawFeatures) -> Readback {
        match self.logprobs.as_ref().filter(|_| features.logprobs) {
            Some(top) => device.start_read(&[&self.tokens, &top.out]),
            None => device.start_read(&[&self.tokens]),
        }
    }
}

/// The tokens that were drawn for `rows` rows, from the words that [`Choices::start_read`] reads; `None` for a row in which
/// a logit is NaN or all are −∞.
pub(super) fn drawn_tokens(words: Vec<Vec<u32>>, rows: usize) -> Vec<Option<RowDrawn>> {
    let mut words = words.into_iter();
    let (tokens, tops) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut tops = tops.chunks_exact(TOP_LOGITS_WORDS).map(<[u32]>::to_vec);
    let drawn = |&id: &u32| {
        let top = tops.next();
        (id != NO_TOKEN).then_some(RowDrawn { id, top })
    };
    tokens[..rows].iter().map(drawn).collect()
}

/// A token drawn for a row, and the values that its log probabilities are computed from.
pub(super) struct RowDrawn {
    id: u32,
    top: Option<Vec<u32>>,
}

impl RowDrawn {
    /// The token, with log probabilities of the `count` most likely tokens.
    pub fn with_logprobs(self, count: Option<usize>) -> DrawnToken {
        let logprobs = count.zip(self.top).map(|(count, words)| {
            let RowTop { log_sum, drawn, top } = RowTop::read(&words, count);
            Logprobs::from_parts(log_sum, drawn, top)
        });
        DrawnToken { id: self.id, logprobs }
    }
}

fn is_restricted(draw: &Draw<'_>) -> bool {
    draw.allowed.is_some() || !draw.adjustments.is_empty()
}

fn settings(draw: &Draw<'_>) -> DrawSettings {
    let Sampling { temperature, top_k, top_p, min_p } = draw.sampling;
    DrawSettings { temperature, top_k, top_p, min_p, seed: draw.seed }
}

/// The adjustments of all draws, with their rows.
fn adjustments(draws: &[&Draw<'_>]) -> Vec<LogitAdjustment> {
    let of_row = |(row, draw): (usize, &&Draw<'_>)| {
        let one = |&Adjustment { token, bias, repetition_penalty, penalty }: &Adjustment| LogitAdjustment {
            row: row as u32,
            token,
            bias,
            repetition_penalty,
            penalty,
        };
        draw.adjustments.iter().map(one).collect::<Vec<_>>()
    };
    draws.iter().enumerate().flat_map(of_row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_fit_a_binding() {
        const VOCAB: usize = 201_088;
        let row = 4 * VOCAB as u64;
        let most = |limit| Choices::most_rows(limit, VOCAB);
        for (limit, rows) in [(row, 1), (2 * row - 1, 1), (2 * row, 2), (u64::MAX, MAX_LOGITS)] {
            assert_eq!(most(limit).expect("a row"), rows, "{limit}");
        }
        let refused = most(row - 1).expect_err("refused").to_string();
        assert!(refused.contains("needs a buffer of 804352 bytes") && refused.ends_with("at most 804351"), "{refused}");
    }
}
