//! Harmony: the conversation format of GPT-OSS.
//!
//! [`Harmony`] renders messages as tokens; [`Parser`] reads a model's output token by token. Models make mistakes in this format, so the
//! parser never fails: all text ends up in a message, with the channel that the model gave it, or is quoted in a warning.
//!
//! Format: <https://cookbook.openai.com/articles/openai-harmony>. Rendering equals the `openai-harmony` package token for token,
//! except where [`DeveloperPrompt`] and [`Harmony::render_conversation`] say otherwise. This crate never runs a model.

mod builtin;
mod control;
mod conversation;
mod header;
mod message;
mod parse;
mod prompt;
mod render;
mod schema;
mod visible;

pub use control::{Harmony, MissingControlToken};
pub use conversation::NotAConversation;
pub use header::Header;
pub use message::{Message, ReasoningEffort, Role};
pub use parse::{Delta, Parser};
pub use prompt::{DeveloperPrompt, Function, ResponseFormat, SystemPrompt};
