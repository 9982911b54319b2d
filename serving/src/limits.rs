//! What can be chosen about the scheduler, and what it makes of the engine's capacity.

use phase2_forward::{Capacity, Engine};

/// What can be chosen about the scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Requests that are computed together.
    pub max_running: usize,
    /// Requests that wait beside them.
    pub max_waiting: usize,
    /// Prompt tokens in a step that others decode in: it bounds the time between their tokens. Without others, twice as many.
    pub prompt_tokens_per_step: usize,
    /// Whether sequences are kept for prompts that begin alike.
    pub prefix_cache: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { max_running: 64, max_waiting: 256, prompt_tokens_per_step: 512, prefix_cache: true }
    }
}

/// Sequences that the prefix cache keeps at most.
const MOST_PREFIXES: usize = 256;

/// What follows from the options and the engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub running: usize,
    pub prefixes: usize,
    /// Prompt tokens of a step while others decode, and while none does.
    pub prompt_tokens: usize,
    pub alone: usize,
    pub tokens_per_step: usize,
    pub steps_in_flight: usize,
    pub pages: usize,
    pub positions_per_page: usize,
    /// Pages of sliding layers that a sequence holds between steps, and further ones while the chunks of a step are computed.
    pub sliding: usize,
    pub chunk: usize,
    /// Tokens that a sequence can have.
    pub context: usize,
}

impl Limits {
    pub fn new(engine: &dyn Engine, options: &Options) -> Limits {
        let config = engine.config();
        let Capacity { tokens_per_step, steps_in_flight, pages_total: pages, positions_per_page, rewind, .. } =
            engine.capacity();
        // Chunks leave most of a small cache to the sequences.
        let small = (pages / 8).max(1).saturating_mul(positions_per_page);
        let prompt_tokens = options.prompt_tokens_per_step.clamp(1, small);
        let alone = prompt_tokens.saturating_mul(2).min(tokens_per_step);
        // An engine that goes back as far as one likes keeps whole sequences.
        let kept = config.sliding_window.saturating_add(rewind).min(config.context_length);
        let sliding = kept.div_ceil(positions_per_page) + 2;
        let chunk = alone.div_ceil(positions_per_page);
        Limits {
            running: options.max_running.clamp(1, tokens_per_step.min(512)),
            prefixes: if options.prefix_cache { MOST_PREFIXES.min(pages / 4) } else { 0 },
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

    /// Pages that a sequence may hold that has `tokens` of its own: those up to its end, one to grow, and those of sliding layers.
    pub fn pages_of(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.positions_per_page) + 1 + self.sliding
    }
}
