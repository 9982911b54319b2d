//! Harmony: the format in which GPT-OSS holds a conversation.
//!
//! [`render`] writes messages as tokens for the model to continue; [`Parser`] reads what it answers. Models make mistakes in
//! this format, so the parser never fails and never drops a token: everything generated ends up in reasoning, content or a
//! tool call, and [`Turn::irregularities`] says what was odd. [`parse_conversation`] reads a whole conversation back.
//!
//! Format: <https://cookbook.openai.com/articles/openai-harmony>. This crate never runs a model.

mod conversation;
mod message;
mod parse;
mod render;

pub use conversation::parse_conversation;
pub use message::{Effort, Message, Role, SystemPrompt};
pub use parse::{Parser, Piece, ToolCall, Turn};
pub use render::{render, render_for_completion};
