//! The arithmetic of phase 5 on GPUs: CubeCL kernels that compute a layer in a few launches.
//!
//! This crate deals with buffers, shapes and number formats, not with tensors, files, models or sequences. A launch is a struct with
//! public fields and a method (or a function, such as [`embed`]) that checks the lengths of its buffers. Each kernel's file describes the
//! kernel, and lists changes of it that were measured, if there are any.
//!
//! The *contents* of buffers cannot be checked at a launch. Tokens, positions, slots, page numbers, chosen experts and row indices are used
//! without a check: the caller that writes them promises that they are in range.
//!
//! From the bottom up: [`Device`] and [`Buffer`]; [`Matrix`] (packed weights), [`KvPool`] (paged keys and values); [`moe`] (the choice of
//! experts); and four groups of kernels that do not use each other: [`matvec`] (few rows), [`matmul`] (more rows), [`attention`],
//! [`sampling`].
#![allow(clippy::too_many_arguments, reason = "a kernel's arguments are its buffers and its shape")]

pub mod attention;
mod device;
mod e2m1;
mod embed;
mod epilogue;
mod error;
mod fill;
mod floats;
mod gpu;
pub mod kv;
pub mod matmul;
mod matrix;
mod matrix_units;
pub mod matvec;
pub mod moe;
mod norm;
mod pack;
mod packed;
mod probe;
mod product;
mod reduce;
mod rope;
mod rows;
pub mod sampling;
#[cfg(test)]
mod testing;
mod upload;
mod vec4;

pub use device::{Buffer, Device, Readback};
pub use embed::embed;
pub use error::Error;
pub use fill::Unfilled;
pub use gpu::Gpu;
pub use kv::{KvCache, KvPool, KvRow, PAGE};
pub use matrix::Matrix;
pub use matrix_units::MatrixUnits;
pub use norm::Norm;
pub use product::{ExpertProduct, Experts, Product};
pub use rope::Rope;
pub use rows::{ROW_WORDS, Row};
pub use upload::{Upload, UploadTimes};
