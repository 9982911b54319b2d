//! Chooses the next token of each row of a step from the row's logits, on the device, and writes it into the row as the input of the next
//! step.

mod argmax;
mod candidates;
mod draw;
mod logprobs;
mod rank;
mod restrict;
mod threefry;
mod threshold;

pub use argmax::{NO_TOKEN, NextTokens, PARTIAL_MAX_WORDS};
pub use candidates::{HISTOGRAM_WORDS, SETTING_WORDS, THRESHOLD_WORDS};
pub use draw::{Draw, DrawSettings, Filters};
pub use logprobs::{MAX_TOP_LOGITS, RowTop, STRIPE_TOP_WORDS, TOP_LOGITS_WORDS, TopLogits};
pub use restrict::{LogitAdjustment, NO_MASK, Restrict, adjustment_words, mask_words};
