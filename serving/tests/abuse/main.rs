//! Abusive requests: each gets an error, gets a usual answer or loses its connection, and does not affect other clients.
//!
//! During each of them another client, the neighbour, streams answers; their text must equal that of an undisturbed stream. Afterwards no
//! request runs, every page of the cache is free, and memory is near its earlier size. No test asserts a speed. Open files and memory are
//! read from Linux's interfaces.
#![cfg(target_os = "linux")]

mod bodies;
mod connections;
#[path = "../http/mod.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod http;
mod readers;
mod shared_server;
mod values;
