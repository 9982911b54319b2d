//! One file a kernel.

pub(crate) mod attention;
pub(crate) mod cache;
pub(crate) mod codes;
pub(crate) mod decoding;
pub(crate) mod embed;
pub(crate) mod experts;
pub(crate) mod few;
pub(crate) mod flash;
pub(crate) mod fragments;
pub(crate) mod gemm;
pub(crate) mod greedy;
pub(crate) mod group;
pub(crate) mod logprobs;
pub(crate) mod mma;
pub(crate) mod norm;
pub(crate) mod prefill;
pub(crate) mod project;
mod reduce;
pub(crate) mod restrict;
pub(crate) mod rope;
pub(crate) mod router;
pub(crate) mod sample;
mod share;
#[cfg(test)]
pub(crate) mod testing;
mod threefry;
mod tile;
