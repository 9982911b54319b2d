//! The scheduler's options, and the limits that follow from them and the engine's capacity.

use phase2_forward::{Capacity, Engine};

/// Options of the scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The most requests that are computed together.
    pub max_running: usize,
    /// The most requests that wait in addition.
    pub max_waiting: usize,
    /// The most prompt tokens of a step in which other sequences decode; this bounds the time between their tokens. A step that completes a
    /// prompt may have a quarter more, and a step in which none decodes twice as many, both up to the engine's limit of tokens per step.
    pub prompt_tokens_per_step: usize,
    /// Whether sequences are kept for later prompts with the same beginning.
    pub prefix_cache: bool,
    /// Whether the engine computes steps of several sizes while it is idle, so that a GPU has compiled its kernels before requests need
    /// them.
    pub warm_up: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { max_running: 64, max_waiting: 256, prompt_tokens_per_step: 512, prefix_cache: true, warm_up: false }
    }
}

/// The most sequences in the prefix cache.
const MAX_PREFIXES: usize = 256;

/// Limits derived from the options and the engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub running: usize,
    pub prefixes: usize,
    /// The most prompt tokens of a step: `prompt_tokens` if other sequences decode (a quarter more if a prompt is then complete), `alone`
    /// if none does.
    pub prompt_tokens: usize,
    pub alone: usize,
    pub tokens_per_step: usize,
    pub steps_in_flight: usize,
    pub pages: usize,
    pub positions_per_page: usize,
    /// `sliding`: the most pages of sliding layers that a sequence holds between steps. `chunk`: further pages that they take during a step
    /// with chunks of prompts.
    pub sliding: usize,
    pub chunk: usize,
    /// The most tokens of a sequence.
    pub context: usize,
}

impl Limits {
    pub fn new(engine: &dyn Engine, options: &Options) -> Limits {
        let config = engine.config();
        let Capacity { tokens_per_step, steps_in_flight, pages_total: pages, positions_per_page, rewind, .. } =
            engine.capacity();
        // The prompt tokens of a step with decoding sequences fill at most an eighth of a small cache; most of it is left for sequences.
        let small = (pages / 8).max(1).saturating_mul(positions_per_page);
        let prompt_tokens = options.prompt_tokens_per_step.clamp(1, small);
        let alone = prompt_tokens.saturating_mul(2).min(tokens_per_step);
        // An engine with an unlimited `rewind` keeps whole sequences in sliding layers.
        let kept = config.sliding_window.saturating_add(rewind).min(config.context_length);
        let sliding = kept.div_ceil(positions_per_page) + 2;
        let chunk = alone.div_ceil(positions_per_page);
        Limits {
            running: options.max_running.clamp(1, tokens_per_step.min(512)),
            prefixes: if options.prefix_cache { MAX_PREFIXES.min(pages / 4) } else { 0 },
            prompt_tokens,
            alone,
            tokens_per_step,
            steps_in_flight: steps_in_flight.max(1),
            pages,
            positions_per_page,
            sliding,
            chunk,
            context: config
                .context_length
                .min(pages.saturating_sub(sliding + chunk).saturating_mul(positions_per_page)),
        }
    }

    /// The most pages of a sequence with `tokens` unshared tokens: those up to its end, one for growth, and those of sliding layers.
    pub fn pages_of(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.positions_per_page) + 1 + self.sliding
    }
}
