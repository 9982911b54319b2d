//! Phase 3: generates text. Caches keys and values, sets how tokens are sampled, and runs the generation.
//!
//! [`CachedEngine`] implements the interface [`Engine`](phase2_forward::Engine) with phase 2's model and a cache, from which the forward
//! pass takes the keys and values of earlier tokens. [`Generation`] uses only that interface and works with every engine.

mod cache;
mod cache_layout;
mod cached;
mod generate;
mod packing;
mod prefill;
mod read_cache;
mod sampling;
mod stopping;

pub use cache_layout::CacheLayout;
pub use cached::{CachedEngine, UnsuitableCache};
pub use formats::CacheFormat as CacheType;
pub use generate::{Generated, Generation, GenerationError, GenerationParams, Step, generate};
pub use prefill::{PREFILL_CHUNK, prefill, prefill_chunk};
pub use read_cache::ReadCache;
pub use sampling::{Sampler, SamplingError, SamplingParams};
pub use stopping::{EmptyStopString, FinishReason, StopCondition};
