//! What no client should do and some do: each abuse gets its error, and harms nobody else.
//!
//! Beside each, a neighbour streams; its text has to be that of an undisturbed stream. Afterwards nothing runs, every page of the cache
//! is free, and memory is near where it was. Nothing here asserts speed. Files and memory are read as Linux has them.
#![cfg(target_os = "linux")]

mod bodies;
mod connections;
mod ground;
#[path = "../http/mod.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod http;
mod readers;
mod values;
