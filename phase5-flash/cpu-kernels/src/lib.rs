//! The arithmetic of phase 5 on the CPU: products with packed weights, attention, and the threads that share them.
//!
//! This crate works on slices and has no tensors, models or files, so that it builds in seconds and its `unsafe` code can be run under
//! AddressSanitizer. Every kernel is written once over vectors of 16 floats (`simd`) and compiled for each instruction set; a value of
//! [`Isa`] proves that this machine has that instruction set.
//!
//! The speeds of AVX-512, AVX2 and plain Rust were measured. NEON (aarch64) is tested in emulation only, and its speed was not measured. Of
//! its extensions, only the dot product of bytes is used; i8mm and BF16 are not. `bash .ci/kernels-aarch64` runs the tests in emulation.
#![allow(clippy::needless_range_loop, reason = "a kernel's rows, inputs and lanes are numbers")]

mod attention;
mod cache;
mod coarse;
mod isa;
mod panel;
mod pool;
mod prepared;
mod product;
mod rows;
mod simd;
mod weights;

pub use attention::{Blocks, Queries, attend, attend_share, merge_shares};
pub use cache::{KeyBlock, POSITIONS};
pub use coarse::{Bound, CoarseInputs, CoarseMatrix, CoarseMatrixBuilder};
pub use formats::{CacheFormat, Storage};
pub use isa::Isa;
pub use panel::{Panel, PanelFormat};
pub use pool::{Pool, Shared};
pub use prepared::{multiply_prepared, prepare_input};
pub use product::{SMALL_BATCH, TILE, multiply_panel, multiply_small_batch};
pub use rows::{rms_norm, rotate, softmax, swiglu};
pub use weights::PackedRows;
